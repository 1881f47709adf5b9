"""How the database is told to be: by what really happens to it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from fakes.make import make_prediction
from imagen.errors import StoreError, UpstreamTaken
from imagen.instrumentation.clock import SystemClock
from imagen.store import pulse as pulse_module
from imagen.store.database import Database
from imagen.store.predictions import SqlPredictionStore
from imagen.store.pulse import DatabasePulse

pytestmark = pytest.mark.anyio
NO_LIMIT = 1 << 30


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "imagen.db")
    yield opened
    await asyncio.to_thread(opened.close)


@pytest.fixture
def pulse(database: Database, monkeypatch: pytest.MonkeyPatch) -> DatabasePulse:
    """One that asks whenever it is asked."""
    monkeypatch.setattr(pulse_module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(pulse_module, "_AGAIN_SECONDS", 0.0)
    return DatabasePulse(database, SystemClock())


async def let_grow(database: Database, *, pages: int) -> None:
    """So many more pages than it has, and then SQLite says that the disk is full."""
    limit = NO_LIMIT
    if pages < NO_LIMIT:
        limit = pages + await database.read(
            lambda connection: int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        )
    await database.open()
    # Of each connection: the writer's is made anew after a fault.
    event.listen(
        database._engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={limit}"), named=False
    )
    await database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={limit}"))


@contextmanager
def held(database: Database) -> Iterator[None]:
    """By somebody else."""
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


async def test_a_new_database_takes_what_is_written(pulse: DatabasePulse) -> None:
    condition = await pulse.feel(within_seconds=5)

    assert (condition.state, condition.detail) == ("ok", None)


async def test_asking_leaves_nothing_behind(pulse: DatabasePulse, database: Database) -> None:
    await pulse.feel(within_seconds=5)

    rows = await database.read(
        lambda connection: connection.exec_driver_sql("SELECT count(*) FROM gates").scalar_one()
    )
    assert rows == 0


async def test_it_does_not_write_while_others_do(tmp_path: Path) -> None:
    database = Database(tmp_path / "imagen.db")
    pulse = DatabasePulse(database, SystemClock())
    try:
        await SqlPredictionStore(database).add(make_prediction())
        before = (tmp_path / "imagen.db-wal").stat().st_size
        for _ in range(5):
            assert (await pulse.feel(within_seconds=5)).state == "ok"
        assert (tmp_path / "imagen.db-wal").stat().st_size == before
    finally:
        await asyncio.to_thread(database.close)


async def test_a_full_disk_is_told_with_since_when_until_there_is_room(
    pulse: DatabasePulse, database: Database
) -> None:
    store = SqlPredictionStore(database)
    await store.add(make_prediction(1))
    began = datetime.now(UTC)
    await let_grow(database, pages=0)

    first = await pulse.feel(within_seconds=5)
    await store.save(make_prediction(1))  # a small thing that still finds a place
    second = await pulse.feel(within_seconds=5)
    await let_grow(database, pages=NO_LIMIT)
    third = await pulse.feel(within_seconds=5)

    assert (first.state, second.state, third.state) == ("full", "full", "ok")
    assert "full" in (first.detail or "")
    assert first.since == second.since >= began
    assert third.since >= second.since


async def test_what_a_writer_met_is_known_without_asking(tmp_path: Path) -> None:
    database = Database(tmp_path / "imagen.db")
    pulse = DatabasePulse(database, SystemClock())
    store = SqlPredictionStore(database)
    try:
        await store.add(make_prediction(1))
        await let_grow(database, pages=0)
        made = [store.add(make_prediction(number)) for number in range(2, 100)]
        results = await asyncio.gather(*made, return_exceptions=True)
        assert any(isinstance(one, StoreError) and "full" in one.detail for one in results)
        assert (await pulse.feel(within_seconds=5)).state == "full"
    finally:
        await asyncio.to_thread(database.close)


async def test_a_database_that_another_process_holds_is_busy_until_it_lets_go(
    pulse: DatabasePulse, database: Database
) -> None:
    await pulse.feel(within_seconds=5)
    began = datetime.now(UTC)
    with held(database):
        condition = await pulse.feel(within_seconds=0.8)
        assert condition.state == "busy"
        assert began - timedelta(seconds=1) <= condition.since <= datetime.now(UTC)

    assert (await pulse.feel(within_seconds=5)).state == "ok"


async def test_a_write_is_over_before_its_end_is_told(database: Database) -> None:
    """Else whoever heard of it would take the database for busy still."""
    seen: list[float | None] = []
    database.told = lambda _: seen.append(database.writing_since)
    await database.write(lambda _: None)
    with pytest.raises(ZeroDivisionError):
        await database.write(lambda _: 1 // 0)
    assert seen == [None, None]


async def test_what_is_no_fault_of_the_database_is_not_told(pulse: DatabasePulse, database: Database) -> None:
    store = SqlPredictionStore(database)
    await store.add(make_prediction(1, upstream_id="up-1"))
    await store.add(make_prediction(2))
    with pytest.raises(UpstreamTaken):
        await store.save(make_prediction(2, upstream_id="up-1"))
    with pytest.raises(StoreError, match="already"):
        await store.add(make_prediction(1))

    assert pulse._condition.state == "ok"


async def test_a_file_that_is_no_database_is_failing(tmp_path: Path) -> None:
    (tmp_path / "imagen.db").write_bytes(b"this is no database" * 100)
    database = Database(tmp_path / "imagen.db")

    condition = await DatabasePulse(database, SystemClock()).feel(within_seconds=5)

    assert condition.state == "failing"
    assert "no database" in (condition.detail or "")
    await asyncio.to_thread(database.close)
