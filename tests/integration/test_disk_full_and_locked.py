"""The disk is full, the database is locked, the service is away: work waits, says so, and goes on by itself."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway import ADMIN, RunningGateway, running_gateway
from sqlalchemy import event

from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ITEMS = 40
PRICE = 0.003
NO_LIMIT = 1 << 30
QUICK = {"IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1", "IMAGEN_REPLICATE__CONNECT_TIMEOUT": "1"}


async def accept(gateway: RunningGateway, count: int = ITEMS) -> str:
    """The id of a batch that was taken on; its pictures are kept."""
    tasks = [{"prompt": f"a red fox {number}", "seed": number + 1} for number in range(count)]
    body = {"model_name": "flux-schnell", "store": True, "tasks": tasks}
    answer = await gateway.request("POST", "/batches", json=body, headers=ADMIN)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


async def state(gateway: RunningGateway, batch_id: str) -> dict[str, Any]:
    answer = await gateway.request("GET", f"/batches/{batch_id}", headers=ADMIN)
    found: dict[str, Any] = answer.json() if answer.status == 200 else {}
    return found


async def health(gateway: RunningGateway) -> dict[str, Any]:
    answer = await gateway.request("GET", "/health", headers=ADMIN)
    assert answer.status == 200
    found: dict[str, Any] = answer.json()
    return found


async def trouble_told(gateway: RunningGateway, batch_id: str) -> dict[str, Any]:
    """What the events of a batch say keeps it waiting."""
    async with gateway.session.get(f"{gateway.url}/batches/{batch_id}/events", headers=ADMIN) as response:
        kind = b""
        async for line in response.content:
            name, _, value = line.strip().partition(b": ")
            kind = value if name == b"event" else kind
            if kind == b"trouble" and name == b"data" and value != b"null":
                found: dict[str, Any] = json.loads(value)
                return found
    raise AssertionError("its events came to an end without that")


async def begun(gateway: RunningGateway, batch_id: str, *, ended: int = 3) -> None:
    """Wait until it is in the middle of it."""

    async def some() -> bool:
        return (await state(gateway, batch_id))["counts"]["succeeded"] >= ended

    await until(some)


async def check_all_made(
    gateway: RunningGateway, batch_id: str, emulator: EmulatorThread, *, within: float = 60.0
) -> None:
    """Everything ended once and well, in its order, with one purchase and one entry of the ledger each."""

    async def over() -> bool:
        return (await state(gateway, batch_id)).get("status") not in {None, "running"}

    await until(over, within=within)
    told = await state(gateway, batch_id)
    assert told["status"] == "succeeded", told
    assert emulator.purchases == ITEMS
    answer = await gateway.request("GET", f"/batches/{batch_id}/results.jsonl", headers=ADMIN)
    items = [json.loads(line) for line in answer.body.splitlines()]
    assert [item["index"] for item in items] == list(range(ITEMS))
    assert {item["status"] for item in items} == {"succeeded"}
    assert all(item["files"] for item in items)
    entries = await gateway.app.ledger.entries()
    assert len(entries) == ITEMS
    assert len({entry.upstream_id for entry in entries}) == ITEMS
    assert told["cost"]["so_far_usd"] == pytest.approx(ITEMS * PRICE)

    async def all_is_written_down() -> bool:
        return not (await gateway.app.store.unfinished() or await gateway.app.store.unsettled())

    await until(all_is_written_down)

    async def places_are_free() -> bool:
        return bool((await health(gateway))["concurrency_status"]["running"] == 0)

    # an end that could not be written down at once gives its place back a little later
    await until(places_are_free)


async def check_well_again(gateway: RunningGateway) -> None:
    """Whoever asks is told that nothing is the matter any more."""

    async def well() -> bool:
        told = await health(gateway)
        ready = await gateway.request("GET", "/ready")
        return told["store"]["state"] == "ok" and not told["work"]["troubles"] and ready.status == 200

    await until(well)
    work = (await health(gateway))["work"]
    assert (work["items_queued"], work["items_running"], work["worked_on"]) == (0, 0, 0)


# --- the disk --------------------------------------------------------------------------------------------


class Disk:
    """Of the database: SQLite itself says that it is full, on every connection that is made."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._database = gateway.app.database
        self._limit = NO_LIMIT

    async def fill(self) -> None:
        """Not one page more."""
        self._limit = await self._database.read(
            lambda connection: int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        )
        await self._database.open()
        event.listen(self._database._engine, "connect", self._prepare)
        await self._apply()

    async def make_room(self) -> None:
        self._limit = NO_LIMIT
        await self._apply()

    def _prepare(self, raw: sqlite3.Connection, _record: object) -> None:
        raw.execute(f"PRAGMA max_page_count={self._limit}")

    async def _apply(self) -> None:
        await self._database.write(
            lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={self._limit}")
        )


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_a_batch_goes_on_by_itself_after_the_disk_was_full(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    limits = {"REPLICATE_CONCURRENT_LIMIT": "4"}
    async with running_gateway(tmp_path, replicate_emulator, **limits, **QUICK) as gateway:
        batch_id = await accept(gateway)
        await begun(gateway, batch_id)
        disk = Disk(gateway)
        await disk.fill()

        async def waits() -> dict[str, Any] | None:
            told = await health(gateway)
            return told if told["work"]["troubles"] and told["store"]["state"] == "full" else None

        told = await until(waits)
        (trouble,) = told["work"]["troubles"]
        assert trouble["of"] == "store"
        assert "full" in trouble["reason"]
        assert trouble["since"] <= trouble["next_try"]
        assert "full" in told["store"]["detail"]
        assert told["work"]["items_running"] + told["work"]["items_queued"] > 0
        ready = await gateway.request("GET", "/ready")
        assert (ready.status, ready.json()["reason"]) == (503, "the disk of the database is full")

        async def tells() -> dict[str, Any] | None:
            told = await state(gateway, batch_id)
            return told if told["trouble"] else None

        waiting = await until(tells)
        assert waiting["status"] == "running"
        assert "full" in waiting["trouble"]["reason"]
        assert waiting["counts"]["failed"] == 0

        await disk.make_room()

        await check_all_made(gateway, batch_id, replicate_emulator)
        await check_well_again(gateway)


# --- the lock --------------------------------------------------------------------------------------------


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """By another process: one that wants to write and does not come to an end."""
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.timeout(120)
@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_a_batch_goes_on_by_itself_after_another_process_held_the_database_for_twelve_seconds(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    limits = {"REPLICATE_CONCURRENT_LIMIT": "4"}
    async with running_gateway(tmp_path, replicate_emulator, **limits, **QUICK) as gateway:
        batch_id = await accept(gateway)
        await begun(gateway, batch_id)
        clock = asyncio.get_running_loop().time
        async with locked(gateway.app.database.path):
            since = clock()

            async def busy() -> dict[str, Any] | None:
                told = await health(gateway)
                return told if told["store"]["state"] == "busy" else None

            told = await until(busy, within=5)
            assert told["status"] == "healthy"
            assert "another process" in told["store"]["detail"]

            async def refuses() -> bool:
                answer = await gateway.request("GET", "/ready")
                why = "the database is held by another process"  # on a busy machine it may only be slow at first
                return answer.status == 503 and answer.json()["reason"] == why

            await until(refuses, within=10)
            assert (await state(gateway, batch_id))["counts"]["failed"] == 0
            await asyncio.sleep(max(0.0, 12 - (clock() - since)))

        await check_all_made(gateway, batch_id, replicate_emulator)
        await check_well_again(gateway)


# --- the service -----------------------------------------------------------------------------------------


class Service:
    """The emulator, which can go away and come back at the same place with all that it has made."""

    def __init__(self, emulator: EmulatorThread) -> None:
        self._emulator, self._loop = emulator._emulator, emulator._loop
        ports = (urlsplit(url).port for url in (emulator.url, emulator.delivery_url))
        self._emulator._ports = (next(ports) or 0, next(ports) or 0)

    async def leave(self) -> None:
        await self._do(self._emulator.stop())

    async def come_back(self) -> None:
        made = self._emulator.world.state
        await self._do(self._emulator.start())
        self._emulator.world.state = made

    async def _do(self, step: Any) -> None:
        assert self._loop is not None
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step, self._loop))


@pytest.mark.timeout(120)
@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_a_batch_goes_on_by_itself_after_the_service_was_away(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    limits = {"REPLICATE_CONCURRENT_LIMIT": "4"}
    async with running_gateway(tmp_path, replicate_emulator, **limits, **QUICK) as gateway:
        batch_id = await accept(gateway)
        await begun(gateway, batch_id)
        service = Service(replicate_emulator)
        telling = asyncio.create_task(trouble_told(gateway, batch_id))
        await service.leave()

        async def waits() -> dict[str, Any] | None:
            told = await health(gateway)
            return told if told["work"]["troubles"] else None

        told = await until(waits, within=60)
        (trouble,) = told["work"]["troubles"]
        assert trouble["of"] == "own_account"
        assert told["store"]["state"] == "ok"
        waiting = await state(gateway, batch_id)
        assert waiting["status"] == "running"
        assert waiting["trouble"]["reason"]
        assert waiting["counts"]["failed"] == 0
        async with asyncio.timeout(10):
            assert (await telling)["reason"]

        await service.come_back()

        await check_all_made(gateway, batch_id, replicate_emulator, within=90)
        await check_well_again(gateway)
