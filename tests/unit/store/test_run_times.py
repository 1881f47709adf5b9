"""How long models run, kept in SQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.store.database import Database
from imagen.store.run_times import SqlRunTimes

pytestmark = pytest.mark.anyio


async def test_what_was_remembered_is_recalled_by_the_next_process(tmp_path: Path) -> None:
    first = Database(tmp_path / "imagen.db")
    await SqlRunTimes(first).remember({"a/one": {"10": 1.5}, "b/two": {"-3": 2.0, "4": 0.25}})
    await SqlRunTimes(first).remember({"a/one": {"11": 3.0}})
    await SqlRunTimes(first).remember({})
    first.close()
    second = Database(tmp_path / "imagen.db")
    told = await SqlRunTimes(second).recall()
    second.close()
    assert told == {"a/one": {"11": 3.0}, "b/two": {"-3": 2.0, "4": 0.25}}


async def test_at_first_nothing_is_known(tmp_path: Path) -> None:
    database = Database(tmp_path / "imagen.db")
    assert await SqlRunTimes(database).recall() == {}
    database.close()
