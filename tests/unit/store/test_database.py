"""The database itself: grouped commits, other processes, and everything that can be wrong with a file."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from alembic import op
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text

from fakes.clock import BEGINNING
from fakes.make import make_entry, make_prediction
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.errors import SchemaMismatch, StoreBusy, StoreError
from imagen.store import database as database_module
from imagen.store import migrate
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from imagen.store.predictions import SqlPredictionStore

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "data" / "imagen.db")
    yield opened
    opened.close()


def raw(database: Database, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(database.path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that can use the fakes; it has read its script when it prints a line."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def output_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    return out


# --- what others see in the file ---


async def test_the_file_is_private_and_made_with_its_folder(database: Database):
    await SqlPredictionStore(database).add(make_prediction())
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700


async def test_nothing_is_opened_before_it_is_needed(database: Database):
    assert not database.path.parent.exists()


@pytest.mark.parametrize(
    ("cost", "shown"),
    [(Usd(3000), 0.003), (Usd(1), 1e-06), (Usd(0), 0), (Usd(123_456_789), 123.456789), (None, None)],
)
async def test_raw_sql_shows_costs_in_dollars(database: Database, cost: Usd | None, shown: float | None):
    await SqlLedger(database).record([make_entry(cost=cost)])
    assert raw(database, "SELECT cost_usd_estimate FROM imagen_usage") == [(shown,)]


async def test_the_usage_table_has_the_columns_and_indexes_that_were_asked_for(database: Database):
    await SqlLedger(database).record([make_entry()])
    columns = {row[1] for row in raw(database, "PRAGMA table_xinfo(imagen_usage)")}
    wanted = "id created_at backend model seed prompt_hash latency_ms cost_usd_estimate caller"
    assert set(wanted.split()) <= columns
    indexes = " ".join(
        str(row[0]) for row in raw(database, "SELECT sql FROM sqlite_master WHERE type = 'index'")
    )
    assert re.search(r"imagen_usage \(created_at DESC\)", indexes)
    assert re.search(r"imagen_usage \(caller\)", indexes)


async def test_no_prompt_is_in_the_usage_table(database: Database):
    await SqlLedger(database).record([make_entry()])
    columns = [str(row[1]) for row in raw(database, "PRAGMA table_xinfo(imagen_usage)")]
    assert [name for name in columns if "prompt" in name] == ["prompt_hash"]


async def test_every_commit_is_on_the_disk_when_it_returns(database: Database):
    def settings(connection: Connection) -> tuple[object, object]:
        journal = connection.execute(text("PRAGMA journal_mode")).scalar()
        return journal, connection.execute(text("PRAGMA synchronous")).scalar()

    assert await database.write(settings) == ("wal", 2)


# --- grouped commits ---


async def test_five_hundred_writers_share_a_few_commits(database: Database):
    store = SqlPredictionStore(database)
    await store.add(make_prediction(0))
    commits = 0

    def count(_: Connection) -> None:
        nonlocal commits
        commits += 1

    event.listen(database._engine, "commit", count)
    await asyncio.gather(*(store.add(make_prediction(number)) for number in range(1, 501)))
    assert raw(database, "SELECT count(*) FROM predictions") == [(501,)]
    assert commits <= 50


async def test_a_job_that_fails_fails_alone(database: Database):
    store = SqlPredictionStore(database)
    await store.add(make_prediction(0))

    def fail(connection: Connection) -> None:
        connection.execute(text("INSERT INTO alembic_version VALUES ('half of it')"))
        raise ZeroDivisionError("mine")

    jobs = [store.add(make_prediction(number)) for number in range(1, 30)]
    jobs[10:10] = [database.write(fail), store.add(make_prediction(0))]
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(outcomes.pop(10), ZeroDivisionError)
    assert isinstance(outcomes.pop(10), StoreError)
    assert outcomes == [None] * 29
    assert raw(database, "SELECT count(*) FROM predictions") == [(30,)]
    assert raw(database, "SELECT count(*) FROM alembic_version") == [(1,)]


async def test_wrong_sql_is_told_as_ours(database: Database):
    with pytest.raises(StoreError, match="no such table"):
        await database.write(lambda connection: connection.execute(text("SELECT * FROM missing")))
    with pytest.raises(StoreError, match="no such table"):
        await database.read(lambda connection: connection.execute(text("SELECT * FROM missing")))


async def test_closing_writes_what_waits(database: Database):
    store = SqlPredictionStore(database)
    await store.add(make_prediction(0))
    writing = [asyncio.ensure_future(store.add(make_prediction(number))) for number in range(1, 100)]
    await asyncio.sleep(0)
    database.close()
    await asyncio.gather(*writing)
    assert raw(database, "SELECT count(*) FROM predictions") == [(100,)]


async def test_closing_twice_or_unopened_does_no_harm(database: Database):
    database.close()
    await SqlPredictionStore(database).add(make_prediction())
    database.close()
    database.close()
    assert await SqlPredictionStore(database).get(make_prediction().id) == make_prediction()


async def test_what_is_asked_while_another_thread_closes_it_is_answered(database: Database):
    await database.open()
    slow = asyncio.ensure_future(database.read(lambda _: time.sleep(0.3)))
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(asyncio.to_thread(database.close))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(15):
        one = await database.read(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
        two = await database.write(lambda connection: connection.execute(text("SELECT 2")).scalar_one())
        await closing
        await slow
    assert (one, two) == (1, 2)
    assert database.is_open  # by those who came last


async def test_readers_keep_their_connections(database: Database):
    await database.open()
    made: list[int] = []
    event.listen(database._engine, "connect", lambda *_: made.append(1), named=False)
    for _ in range(5):
        found = await asyncio.gather(
            *(
                database.read(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
                for _ in range(20)
            )
        )
        assert found == [1] * 20
    assert len(made) <= database_module._READERS


async def test_a_read_that_nobody_waits_for_any_more_is_not_made(database: Database):
    began, made = threading.Barrier(database_module._READERS + 1), list[int]()
    busy = [
        asyncio.ensure_future(database.read(lambda _: began.wait(5))) for _ in range(database_module._READERS)
    ]
    late = asyncio.ensure_future(database.read(lambda _: made.append(1)))
    await asyncio.sleep(0.05)
    late.cancel()
    await asyncio.to_thread(began.wait, 5)
    await asyncio.gather(*busy)
    await database.read(lambda _: None)
    assert made == []


def test_tasks_of_several_loops_share_one_database(database: Database):
    for number in range(3):
        asyncio.run(SqlPredictionStore(database).add(make_prediction(number)))
    assert len(asyncio.run(SqlPredictionStore(database).list(limit=9))) == 3


# --- other processes ---

WRITER = """
import asyncio, sys
from pathlib import Path
from fakes.make import make_prediction
from imagen.store.database import Database
from imagen.store.predictions import SqlPredictionStore

async def main(path, first, count):
    database = Database(Path(path))
    store = SqlPredictionStore(database)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(first, first + count):
        await store.add(make_prediction(number))
    database.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.parametrize("made_before", [False, True])
async def test_several_processes_create_and_write_one_database_at_once(database: Database, made_before: bool):
    if made_before:
        await SqlPredictionStore(database).list(limit=1)
    writers = [python(WRITER, database.path, number * 1000, 40) for number in range(4)]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        output_of(writer)
    assert raw(database, "SELECT count(*) FROM predictions") == [(160,)]


async def test_a_database_that_another_process_holds_is_busy_and_then_free(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    store = SqlPredictionStore(database)
    await store.add(make_prediction(1))
    holder = sqlite3.connect(database.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreBusy, match=r"held by another process") as told:
        await store.add(make_prediction(2))
    assert told.value.retryable
    assert len(await store.list(limit=9)) == 1, "readers are not held up"
    holder.execute("ROLLBACK")
    holder.close()
    await store.add(make_prediction(2))


async def test_a_new_database_that_another_process_holds_is_busy(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    database.path.parent.mkdir()
    holder = sqlite3.connect(database.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreBusy):
        await SqlPredictionStore(database).add(make_prediction())
    holder.execute("ROLLBACK")
    holder.close()
    await SqlPredictionStore(database).add(make_prediction())


# --- what can be wrong with a file ---


@pytest.mark.parametrize(
    "content", [b"this is no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000]
)
async def test_a_file_that_is_no_database_is_named(database: Database, content: bytes):
    database.path.parent.mkdir()
    database.path.write_bytes(content)
    with pytest.raises(StoreError, match=r"imagen\.db.*damaged or no database") as told:
        await SqlPredictionStore(database).add(make_prediction())
    assert told.value.hint
    assert database.path.read_bytes() == content, "nobody's file is overwritten"


async def test_a_damaged_database_is_told_and_does_not_break_the_process(database: Database):
    store = SqlPredictionStore(database)
    for number in range(200):
        await store.add(make_prediction(number, prompt="x" * 500))
    database.close()
    with database.path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 100_000)
    with pytest.raises(StoreError):
        await store.list(limit=1000)
    with pytest.raises(StoreError):
        await store.add(make_prediction(1000))


async def test_a_database_of_a_newer_release_is_left_alone(database: Database):
    await SqlPredictionStore(database).add(make_prediction())
    database.close()
    connection = sqlite3.connect(database.path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(SchemaMismatch, match="9999") as told:
        await SqlPredictionStore(database).list(limit=1)
    assert told.value.hint == "Install the newer imagen again."
    assert raw(database, "SELECT count(*) FROM predictions") == [(1,)]


async def test_a_folder_in_place_of_the_file_and_a_file_in_place_of_the_folder(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "imagen.db"):
        database = Database(path)
        with pytest.raises(StoreError) as told:
            await SqlPredictionStore(database).list(limit=1)
        assert str(path) in told.value.detail
        assert told.value.hint == "Set IMAGEN_DATA_DIR to a folder that can be written."
        database.close()


UNPRIVILEGED = """
import asyncio, os, sys, tempfile
from pathlib import Path
from fakes.make import make_prediction
from imagen.errors import StoreError
from imagen.store.database import Database
from imagen.store.predictions import SqlPredictionStore

async def main(path):
    database = Database(Path(path) / "imagen.db")
    try:
        await SqlPredictionStore(database).add(make_prediction())
        print("written")
    except StoreError as error:
        print(error)
    database.close()

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))  # everything is imported now
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_what_may_not_be_written_is_told_with_a_way_out(database: Database, what: str):
    await SqlPredictionStore(database).list(limit=1)
    database.close()
    for folder in database.path.parents:
        if stat.S_IMODE(folder.stat().st_mode) & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(0o755)
    for path in database.path.parent.iterdir():
        path.chmod(0o444 if what == "file" else 0o644)
    database.path.parent.chmod(0o555 if what == "folder" else 0o777)
    told = output_of(python(UNPRIVILEGED, database.path.parent))
    database.path.parent.chmod(0o700)
    assert re.search(r"^written\n.*imagen\.db cannot be (used|written)", told), told
    assert "Set IMAGEN_DATA_DIR to a folder that can be written." in told


async def test_a_full_disk_is_told_and_what_was_written_stays(database: Database):
    store = SqlPredictionStore(database)
    await store.add(make_prediction(0))
    await database.write(lambda connection: connection.execute(text("PRAGMA max_page_count = 40")))
    jobs = (store.add(make_prediction(number, prompt="x" * 4000)) for number in range(1, 100))
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    failed = [one for one in outcomes if one is not None]
    assert failed
    assert all(isinstance(one, StoreError) for one in failed), failed
    assert "is full" in str(failed[0])
    assert "Free some space" in str(failed[0])
    told_written = {make_prediction(number).id for number, one in enumerate(outcomes, 1) if one is None}
    rows = {one.id for one in await store.list(limit=1000)}
    assert {make_prediction(0).id} | told_written <= rows
    await database.write(lambda connection: connection.execute(text("PRAGMA max_page_count = 100000")))
    await store.add(make_prediction(1000))


FULL = """
import asyncio, resource, sys
from pathlib import Path
from fakes.make import make_prediction
from imagen.errors import StoreError
from imagen.store.database import Database
from imagen.store.predictions import SqlPredictionStore

async def main(path):
    database = Database(Path(path))
    store = SqlPredictionStore(database)
    await store.add(make_prediction(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    try:
        for number in range(1, 1000):
            await store.add(make_prediction(number, prompt="x" * 4000))
    except StoreError as error:
        print(number, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.add(make_prediction(number))
    print(len(await store.list(limit=10000)) == number + 1)
    database.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_a_file_that_may_not_grow_is_told_and_works_again_when_it_may(database: Database):
    told, whole = output_of(python(FULL, database.path)).splitlines()
    assert re.search(r"disk.*IMAGEN_DATA_DIR", told), told
    assert whole == "True"


# --- migrations ---


def test_head_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.HEAD


async def test_an_interrupted_migration_is_made_again_from_the_beginning(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    def broken(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_index", broken)
        with pytest.raises(StoreError, match="No space left"):
            await SqlPredictionStore(database).list(limit=1)
    await SqlPredictionStore(database).add(make_prediction())


async def test_all_instants_are_written_alike_whoever_writes_them(database: Database):
    at = BEGINNING.astimezone(timezone(timedelta(hours=2)))
    instants = dict.fromkeys(("sent_at", "ended_at", "delivered_at", "settled_at"), at)
    store = SqlPredictionStore(database)
    await store.add(make_prediction(1, status=Status.SUCCEEDED, created_at=at, **instants))
    await store.add(make_prediction(2, created_at=at))
    await store.save(make_prediction(2, status=Status.SUCCEEDED, created_at=at, **instants))
    rows = raw(database, "SELECT created_at, sent_at, ended_at, delivered_at, settled_at FROM predictions")
    assert {value for row in rows for value in row} == {"2026-11-01 12:00:00.000000"}


async def test_a_new_file_that_another_process_just_uses_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "data" / "imagen.db"
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # whoever holds a file that is not yet in write-ahead mode
    opened = Database(path)
    opening = asyncio.ensure_future(opened.read(lambda connection: connection.execute(text("SELECT 1"))))
    await asyncio.sleep(0.2)
    assert not opening.done()
    other.execute("ROLLBACK")
    other.close()
    await opening
    opened.close()
