"""What `/health` tells of durable work and of the database."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = pytest.mark.anyio
PUBLIC = {"FLASK_HOST": "0.0.0.0"}  # noqa: S104 - what a server does that others than this machine can reach


async def health(gateway: RunningGateway) -> dict[str, Any]:
    answer = await gateway.request("GET", "/health", headers=ADMIN)
    assert answer.status == 200
    found: dict[str, Any] = answer.json()
    return found


async def accept(gateway: RunningGateway, count: int, **more: Any) -> str:
    tasks = [{"prompt": f"a red fox {number}"} for number in range(count)]
    body = {"model_name": "flux-schnell", "tasks": tasks} | more
    answer = await gateway.request("POST", "/batches", json=body, headers=ADMIN)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


async def test_a_gateway_without_work_says_so(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        told = await health(gateway)

    assert told["store"] | {"since": ""} == {"state": "ok", "since": "", "detail": None, "unreadable": 0}
    assert datetime.fromisoformat(told["store"]["since"]) <= datetime.now(UTC)
    assert told["work"] == {
        "batches_running": 0,
        "batches_paused": 0,
        "items_queued": 0,
        "items_running": 0,
        "worked_on": 0,
        "troubles": [],
        "deliveries": {"waiting": 0, "failing": 0, "trouble": None},
        "watcher": {"watched": 0, "held_open": 0},
    }


@pytest.mark.replicate_emulator(run_seconds=3)
async def test_running_and_paused_batches_and_what_is_waited_for_are_counted(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    limits = {"REPLICATE_CONCURRENT_LIMIT": "2", "IMAGEN_REPLICATE__HELD_OPEN": "1"}
    async with running_gateway(tmp_path, replicate_emulator, **limits) as gateway:
        await accept(gateway, 5)
        paused = await accept(gateway, 3)
        await gateway.request("POST", f"/batches/{paused}/pause", headers=ADMIN)

        async def both_run() -> dict[str, Any] | None:
            work = (await health(gateway))["work"]
            watcher = work["watcher"]
            busy = watcher["watched"] + watcher["held_open"] == 2
            return work if busy and work["batches_paused"] else None

        work = await until(both_run)
        assert (work["batches_running"], work["batches_paused"]) == (1, 1)
        assert work["items_queued"] + work["items_running"] == 8
        assert work["worked_on"] >= 2
        for batch in (await gateway.request("GET", "/batches", headers=ADMIN)).json()["batches"]:
            await gateway.request("POST", f"/batches/{batch['id']}/cancel", headers=ADMIN)

        async def idle() -> bool:
            work = (await health(gateway))["work"]
            return work["batches_running"] + work["batches_paused"] + work["items_running"] == 0

        await until(idle)


async def test_a_stranger_sees_nothing_of_it(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **PUBLIC) as gateway:
        told = (await gateway.request("GET", "/health")).json()

    assert "store" not in told
    assert "work" not in told


async def test_a_damaged_row_is_counted_and_keeps_nothing_from_being_taken_up(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await gateway.generate(prompt="one")).status == 200
        assert (await gateway.generate(prompt="two")).status == 200
        first, second = [one.id for one in await gateway.app.store.list(limit=10)]
        connection = sqlite3.connect(gateway.app.database.path)
        with connection:
            connection.execute(
                "UPDATE predictions SET input = '{', delivered_at = NULL WHERE id = ?", (first,)
            )
            connection.execute("UPDATE predictions SET delivered_at = NULL WHERE id = ?", (second,))
        connection.close()

    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def taken_up() -> bool:
            return (await gateway.app.store.get(second)).finished

        await until(taken_up)
        assert (await health(gateway))["store"]["unreadable"] == 1
        assert (await gateway.request("GET", "/ready")).status == 200
