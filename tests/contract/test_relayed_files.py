"""What `ports.RelayedFiles` promises, of every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from fakes.clock import BEGINNING
from imagen.ports import RelayedFiles
from imagen.store.database import Database
from imagen.store.relayed_files import SqlRelayedFiles
from imagen.store.tables import relayed_files

pytestmark = pytest.mark.anyio
HOUR = timedelta(hours=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imagen.db")
    yield opened
    opened.close()


@pytest.fixture
def files(database: Database) -> RelayedFiles:
    return SqlRelayedFiles(database)


async def test_a_file_is_its_uploaders_until_it_expires(files: RelayedFiles) -> None:
    await files.add("a", scope="key:1", expires_at=BEGINNING + HOUR, now=BEGINNING)
    await files.add("b", scope="key:2", expires_at=BEGINNING + 2 * HOUR, now=BEGINNING)
    assert await files.owner("a", now=BEGINNING) == "key:1"
    assert await files.of("key:1", now=BEGINNING) == {"a"}
    assert await files.owner("c", now=BEGINNING) is None
    assert await files.of("key:3", now=BEGINNING) == frozenset()
    later = BEGINNING + HOUR
    assert await files.owner("a", now=later) is None
    assert await files.of("key:1", now=later) == frozenset()
    assert await files.owner("b", now=later) == "key:2"


async def test_a_file_can_be_forgotten(files: RelayedFiles) -> None:
    await files.add("a", scope="key:1", expires_at=BEGINNING + HOUR, now=BEGINNING)
    await files.remove("a")
    await files.remove("a")
    assert await files.owner("a", now=BEGINNING) is None


async def test_an_id_that_is_given_again_is_the_new_ones(files: RelayedFiles) -> None:
    await files.add("a", scope="key:1", expires_at=BEGINNING + HOUR, now=BEGINNING)
    await files.add("a", scope="key:2", expires_at=BEGINNING + 2 * HOUR, now=BEGINNING)
    assert await files.owner("a", now=BEGINNING + HOUR) == "key:2"


async def test_what_has_expired_takes_no_room(database: Database, files: RelayedFiles) -> None:
    for number in range(3):
        await files.add(f"old{number}", scope="key:1", expires_at=BEGINNING + HOUR, now=BEGINNING)
    await files.add("new", scope="key:1", expires_at=BEGINNING + 3 * HOUR, now=BEGINNING + 2 * HOUR)
    counted = select(func.count()).select_from(relayed_files)
    assert await database.read(lambda connection: connection.execute(counted).scalar_one()) == 1
