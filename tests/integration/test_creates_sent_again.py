"""Creates of Replicate's API that come again without a key: whoever had no answer gets what they became, once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import ADMIN, Answer, RunningGateway, leave, running_gateway

from imagen.emulator import EmulatorThread
from imagen.errors import StoreBusy
from imagen.store.batches import SqlBatches
from waiting import until

pytestmark = pytest.mark.anyio

CREATE = "/v1/models/black-forest-labs/flux-schnell/predictions"
HELD = {"Prefer": "wait=30"}


async def create(gateway: RunningGateway, prompt: str, **headers: str) -> Answer:
    """By a client of its own, which stays when the gateway leaves."""
    body = {"input": {"prompt": prompt}}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}{CREATE}", json=body, headers=ADMIN | headers) as answer,
    ):
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, found, await answer.read())


@pytest.mark.replicate_emulator(run_seconds=3.0)
async def test_what_was_answered_when_the_gateway_was_told_to_stop_is_not_given_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.2") as gateway:
        asking = asyncio.create_task(create(gateway, "a fox", **HELD))
        await until(lambda: replicate_emulator.purchases == 1)
    first = await asking
    assert first.status == 202
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        second = await create(gateway, "a fox", **HELD)
    assert (second.status, "idempotent-replayed" in second.headers) == (201, False)
    assert second.json()["id"] != first.json()["id"]
    assert replicate_emulator.purchases == 2


@pytest.mark.replicate_emulator(run_seconds=2.0)
async def test_what_was_accepted_while_the_gateway_was_told_to_stop_is_found_by_the_next(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """Its caller was cut off: the database was held so long that no answer could be sent."""
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.2") as gateway:
        await until(gateway.is_ready)
        other = sqlite3.connect(gateway.app.database.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        asking = asyncio.create_task(create(gateway, "a fox", **HELD))
        await until(lambda: not gateway.app.database._jobs.empty() or gateway.app.database.writing_since)
        await asyncio.sleep(0.3)
        threading.Timer(4.0, other.close).start()  # what waits for it at the end keeps the loop waiting
    (cut_off,) = await asyncio.gather(asking, return_exceptions=True)
    assert not isinstance(cut_off, Answer) or cut_off.status >= 500
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        again = await create(gateway, "a fox", **HELD)
    assert (again.status, again.headers.get("idempotent-replayed")) == (201, "true")
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=3.0)
async def test_what_could_not_be_looked_up_when_it_came_again_is_found_the_time_after(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await leave(asyncio.create_task(create(gateway, "a fox", **HELD)), replicate_emulator, purchases=1)
        await until(lambda: gateway.context.orphans)

        async def busy(*_: Any, **__: Any) -> Any:
            raise StoreBusy("held by another process")

        with monkeypatch.context() as patched:
            patched.setattr(SqlBatches, "items", busy)
            assert (await create(gateway, "a fox", **HELD)).status == 503
        again = await create(gateway, "a fox", **HELD)
    assert again.headers["idempotent-replayed"] == "true"
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=20.0)
async def test_a_create_that_is_accepted_while_the_gateway_lets_go_of_its_work_keeps_it_from_nothing(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, release = SqlBatches.accept, SqlBatches.release
    lets_go, asked = asyncio.Event(), asyncio.Event()

    async def late(store: SqlBatches, *given: Any, **named: Any) -> str:
        asked.set()
        await lets_go.wait()
        return await accept(store, *given, **named)

    async def slow(store: SqlBatches, *given: Any, **named: Any) -> None:
        lets_go.set()
        await asyncio.sleep(0.05)
        await release(store, *given, **named)

    monkeypatch.setattr(SqlBatches, "release", slow)
    async with asyncio.timeout(20):
        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.2") as gateway:
            assert (await create(gateway, "a hen")).status == 201
            await until(lambda: replicate_emulator.purchases == 1)
            monkeypatch.setattr(SqlBatches, "accept", late)
            asking = asyncio.create_task(create(gateway, "a fox"))
            await asked.wait()
        await asyncio.gather(asking, return_exceptions=True)
