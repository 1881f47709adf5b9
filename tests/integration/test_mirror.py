"""The ledger's second copy: it comes to be complete whatever happens to the sink, and no picture waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest
from gateway import ADMIN, RunningGateway, running_gateway
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.clock import ManualClock
from fakes.make import make_entry
from fakes.postgres import Postgres
from fakes.postgrest import SERVICE_KEY, PostgrestDouble, postgrest_double
from fakes.stores import Memory, MemoryLedger
from imagen.domain.usage import UsageEntry
from imagen.emulator import EmulatorThread
from imagen.errors import SinkError, StoreBusy
from imagen.ports import Clock, UsageSink
from imagen.service.mirror import LONGEST_PAUSE_SECONDS, Mirror, pause_after
from imagen.sinks.schema import schema_sql
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from waiting import until

pytestmark = pytest.mark.anyio


class MemorySink:
    """One that fails as told, before or after it has taken something."""

    name = "memory:1"

    def __init__(self) -> None:
        self.rows: dict[str, UsageEntry] = {}
        self.batches: list[int] = []
        self.faults: list[str] = []

    async def write(self, entries: Sequence[UsageEntry]) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refused":
            raise SinkError("it said no")
        if fault == "breaks":
            raise ValueError("a fault of a library, with a secret in it")
        if fault == "hangs":
            await asyncio.Event().wait()
        taken = entries[: len(entries) // 2] if fault == "half" else entries
        for entry in taken:
            self.rows.setdefault(entry.id, entry)
        self.batches.append(len(taken))
        if fault:
            raise SinkError("the answer was lost")

    async def read(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[UsageEntry]:
        return list(self.rows.values())[:limit]

    async def migrate(self) -> None:
        """Nothing."""

    async def aclose(self) -> None:
        """Nothing."""


class Mine:
    """A turn that everybody has, or nobody."""

    def __init__(self, *, is_mine: bool = True) -> None:
        self.is_mine = is_mine

    def mine(self) -> bool:
        return self.is_mine


def mirror_of(
    ledger: SqlLedger | MemoryLedger,
    sink: UsageSink | None,
    *,
    clock: Clock | None = None,
    turn: Mine | None = None,
) -> Mirror:
    return Mirror(
        ledger=ledger, sink=sink, turn=turn or Mine(), clock=clock or ManualClock(), chance=lambda: 0.0
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    database = Database(tmp_path / "imagen.db")
    yield SqlLedger(database)
    database.close()


async def test_everything_is_written_in_batches_oldest_first_and_once(ledger: SqlLedger):
    await ledger.record([make_entry(number) for number in range(1201)])
    sink = MemorySink()
    mirror = mirror_of(ledger, sink)
    assert await mirror.waiting() == 1201
    assert await mirror.sync() == 1201
    assert sink.batches == [500, 500, 201]
    assert list(sink.rows) == [make_entry(number).id for number in range(1201)]
    assert (await mirror.sync(), await mirror.waiting()) == (0, 0)


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.one_of(
            st.integers(1, 700),
            st.sampled_from(["refused", "lost", "half", "sync", "dies before it is marked"]),
        ),
        max_size=10,
    )
)
def test_whatever_fails_in_the_end_the_sink_has_each_entry_once(steps: list[int | str]):
    async def story() -> None:
        ledger, sink, made = MemoryLedger(Memory()), MemorySink(), 0
        for step in steps:
            if isinstance(step, int):
                await ledger.record([make_entry(made + number) for number in range(step)])
                made += step
            elif step == "dies before it is marked":
                await sink.write(await ledger.unsunk(sink.name, limit=500))
            else:
                sink.faults = [] if step == "sync" else [step]
                with suppress(SinkError):
                    await mirror_of(ledger, sink).sync()
                sink.faults = []
            # nothing is marked that is not there
            assert made - len(sink.rows) <= await ledger.count_unsunk(sink.name)
        await mirror_of(ledger, sink).sync()
        assert set(sink.rows) == {make_entry(number).id for number in range(made)}
        assert await ledger.count_unsunk(sink.name) == 0

    asyncio.run(story())


async def test_a_failure_warns_once_is_kept_and_passes(ledger: SqlLedger, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "imagen.service.mirror")
    await ledger.record([make_entry()])
    sink, clock = MemorySink(), ManualClock()
    mirror = mirror_of(ledger, sink, clock=clock)
    sink.faults = ["refused"] * 4
    running = asyncio.create_task(mirror.run())
    await until(lambda: len(caplog.records) == 2)
    running.cancel()
    assert sink.rows
    assert clock.slept[:4] == [1.0, 2.0, 4.0, 8.0]
    assert [record.getMessage() for record in caplog.records] == [
        "entries of the ledger wait for their sink: it said no",
        "the sink takes entries of the ledger again",
    ]
    assert mirror.trouble is None


async def test_a_fault_that_nobody_foresaw_is_no_other_than_an_outage(
    ledger: SqlLedger, caplog: pytest.LogCaptureFixture
):
    await ledger.record([make_entry()])
    sink = MemorySink()
    sink.faults = ["breaks", "breaks"]
    mirror = mirror_of(ledger, sink)
    await mirror.flush(within_seconds=5)
    assert mirror.trouble is not None
    assert mirror.trouble.detail == "unexpected fault of the sink (ValueError)"
    assert "secret" not in caplog.text
    running = asyncio.create_task(mirror.run())
    await until(lambda: sink.rows)
    running.cancel()


async def test_a_database_of_ours_that_fails_does_not_end_the_loop(ledger: SqlLedger):
    class Failing(SqlLedger):
        failures = 2

        async def unsunk(self, sink: str, *, limit: int) -> Sequence[UsageEntry]:
            if self.failures:
                self.failures -= 1
                raise StoreBusy("the database is held by another process")
            return await super().unsunk(sink, limit=limit)

    await ledger.record([make_entry()])
    sink = MemorySink()
    mirror = mirror_of(Failing(ledger._database), sink)
    running = asyncio.create_task(mirror.run())
    await until(lambda: sink.rows)
    running.cancel()


async def test_before_a_command_ends_it_waits_no_longer_than_allowed(ledger: SqlLedger):
    await ledger.record([make_entry()])
    sink = MemorySink()
    sink.faults = ["hangs", "refused"]
    mirror = mirror_of(ledger, sink)
    async with asyncio.timeout(5):
        await mirror.flush(within_seconds=0.05)
        await mirror.flush(within_seconds=5)
    assert not sink.rows
    await mirror.flush(within_seconds=5)
    assert len(sink.rows) == 1


async def test_who_has_not_the_turn_leaves_it_to_the_one_who_has(ledger: SqlLedger):
    await ledger.record([make_entry()])
    sink = MemorySink()
    await mirror_of(ledger, sink, turn=Mine(is_mine=False)).flush(within_seconds=5)
    assert not sink.rows


async def test_without_a_sink_nothing_is_done(ledger: SqlLedger):
    await ledger.record([make_entry()])
    mirror = mirror_of(ledger, None)
    await mirror.flush(within_seconds=5)
    assert (await mirror.sync(), await mirror.waiting()) == (0, 0)


def test_pauses_grow_to_a_bound():
    pauses = [pause_after(failures, chance=0.0) for failures in range(1, 40)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert pause_after(1, chance=1.0) == 0.8


# --- a gateway with a project ----------------------------------------------------------------------------


@pytest.fixture
def project(postgres: Postgres) -> Iterator[PostgrestDouble]:
    with postgrest_double(postgres) as double:
        double.migrate(schema_sql())
        yield double


@asynccontextmanager
async def gateway_of(
    tmp_path: Path, emulator: EmulatorThread, project: PostgrestDouble
) -> AsyncIterator[RunningGateway]:
    async with running_gateway(
        tmp_path, emulator, SUPABASE_URL=project.url, SUPABASE_SERVICE_ROLE_KEY=SERVICE_KEY
    ) as gateway:
        yield gateway


@pytest.mark.xdist_group("postgres")
async def test_what_a_gateway_makes_is_in_the_project_soon(
    tmp_path: Path, replicate_emulator: EmulatorThread, project: PostgrestDouble
):
    async with gateway_of(tmp_path, replicate_emulator, project) as gateway:
        answer = await gateway.generate(prompt="a secret fox")
        assert answer.status == 200
        rows = await until(lambda: _rows(project))
        (entry,) = await gateway.app.ledger.entries()
        assert await gateway.app.mirror.sink.read() == [entry]
        assert await until(lambda: _sink_is_well(gateway))
    assert rows[0]["prompt_hash"] == entry.prompt_hash
    assert "secret fox" not in json.dumps(rows)


async def _sink_is_well(gateway: RunningGateway) -> bool:
    health = (await gateway.request("GET", "/health", headers=ADMIN)).json()
    return health["sink"] == {"kind": "supabase", "waiting": 0, "trouble": None, "since": None}


@pytest.mark.xdist_group("postgres")
async def test_an_outage_of_the_project_costs_no_picture_and_is_told(
    tmp_path: Path,
    replicate_emulator: EmulatorThread,
    project: PostgrestDouble,
    caplog: pytest.LogCaptureFixture,
):
    project.faults.extend(["503", "drop", "lost"])
    async with gateway_of(tmp_path, replicate_emulator, project) as gateway:
        answers = await asyncio.gather(*(gateway.generate(prompt=f"fox {number}") for number in range(5)))
        assert {answer.status for answer in answers} == {200}

        async def told() -> object:
            health = (await gateway.request("GET", "/health", headers=ADMIN)).json()
            assert health["status"] == "healthy"
            return health["sink"]["trouble"]

        trouble = await until(told)
        assert "Supabase" in trouble
        assert SERVICE_KEY not in trouble
        assert (await gateway.request("GET", "/ready")).status == 200
        await until(lambda: len(_rows(project)) == 5)
    assert sum("wait for their sink" in record.getMessage() for record in caplog.records) == 1
    assert SERVICE_KEY not in caplog.text


def _rows(project: PostgrestDouble) -> list[dict[str, object]]:
    import psycopg  # noqa: PLC0415
    from psycopg.rows import dict_row  # noqa: PLC0415

    with psycopg.connect(project.database, row_factory=dict_row) as connection:
        return [
            {name: str(value) for name, value in row.items()}
            for row in connection.execute("select * from mai.imagen_usage").fetchall()
        ]
