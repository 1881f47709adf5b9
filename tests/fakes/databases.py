"""New databases as copies of one that was migrated, where the migration is not what is tested.

Running the migrations takes 30 ms each time, and loading what runs them 0.3 s; a thousand tests begin with an empty folder.
Everything else stays as it is: the file and its lock are made, looked into and opened by the code itself. The migrations are
tested in `tests/unit/store`, and run by every command and gateway that has a process of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import Engine

from imagen.store import migrate
from imagen.store.database import Database

_upgrade = migrate._upgrade


def copy_new_ones(patch: pytest.MonkeyPatch) -> None:
    """From now on a database that is empty becomes a copy; one that is not is migrated as ever."""

    def upgrade(engine: Engine, version: str | None) -> None:
        if version is not None:
            _upgrade(engine, version)
            return
        copy = sqlite3.connect(":memory:")
        copy.deserialize(_migrated())
        with engine.connect() as connection:
            copy.backup(connection.connection.driver_connection)
        copy.close()

    patch.setattr(migrate, "_upgrade", upgrade)


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "_upgrade", _upgrade)
        path = Path(folder) / "imagen.db"

        async def make() -> None:
            database = Database(path)
            await database.read(lambda _: None)
            database.close()

        asyncio.run(make())
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # what is in memory has no file beside it
        connection.close()
        return path.read_bytes()
