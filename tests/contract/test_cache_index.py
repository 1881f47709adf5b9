"""What `ports.CacheIndex` promises, of every implementation."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import BEGINNING
from fakes.make import FLUX
from imagen.ports import CacheEntry, CacheIndex
from imagen.store.cache import SqlCacheIndex
from imagen.store.database import Database

pytestmark = pytest.mark.anyio


def entry(number: int, **facts: Any) -> CacheEntry:
    """One of 100 bytes that was used `number` minutes after the beginning."""
    at = BEGINNING + timedelta(minutes=number)
    given: dict[str, Any] = {
        "key": f"key-{number}",
        "prediction_id": f"pred_{number}",
        "model": FLUX,
        "version": None,
        "seed": 7,
        "pictures": (f"{number}.png",),
        "media_types": ("image/png",),
        "size_bytes": 100,
        "created_at": at,
        "used_at": at,
    }
    return CacheEntry(**given | facts)


@pytest.fixture(params=["sqlite"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheIndex]:
    database = Database(tmp_path / "imagen.db")
    yield SqlCacheIndex(database)
    database.close()


async def names(index: CacheIndex, *, above_bytes: int) -> list[str]:
    return [one.key for one in await index.oldest(above_bytes=above_bytes)]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"version": "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa", "seed": None},
        {"seed": 2**63 - 1, "size_bytes": 2**40},
        {"pictures": ("a.png", "b.webp"), "media_types": ("image/png", "image/webp")},
    ],
)
async def test_an_entry_comes_back_whole_and_counts_as_used(index: CacheIndex, facts: dict[str, Any]):
    put = entry(1, **facts)
    await index.put(put)
    later = BEGINNING + timedelta(hours=5)
    found = await index.find(put.key, now=later)
    assert found == entry(1, **facts, used_at=later)


async def test_a_key_that_was_never_put_or_was_removed_finds_nothing(index: CacheIndex):
    await index.put(entry(1))
    await index.remove("key-1", prediction_id="pred_1")
    await index.remove("never there", prediction_id="pred_1")
    for key in ("key-1", "key-2", "", "%", "KEY-1"):
        assert await index.find(key, now=BEGINNING) is None
    assert await index.size() == (0, 0)


async def test_an_entry_of_the_same_key_is_replaced(index: CacheIndex):
    await index.put(entry(1))
    other = entry(1, prediction_id="pred_other", pictures=("x.jpg",), size_bytes=7)
    await index.put(other)
    assert await index.size() == (1, 7)
    assert await index.find("key-1", now=other.used_at) == other


async def test_what_another_has_put_in_its_place_is_not_removed(index: CacheIndex):
    await index.put(entry(1))
    other = entry(1, prediction_id="pred_other")
    await index.put(other)
    await index.remove("key-1", prediction_id="pred_1")
    assert await index.find("key-1", now=other.used_at) == other


@pytest.mark.parametrize(
    "damage",
    [
        "pictures = '[\"x'",
        "pictures = '5'",
        "media_types = '[1]'",
        "size_bytes = 'many'",
        "created_at = 'never'",
        "model = CAST(x'ff' AS TEXT)",
        "prediction_id = CAST(x'70ff' AS TEXT)",
    ],
)
async def test_a_row_that_cannot_be_read_is_forgotten_by_whoever_meets_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
):
    database = Database(tmp_path / "imagen.db")
    try:
        index = SqlCacheIndex(database)
        for meet in (index.find("key-2", now=BEGINNING), index.oldest(above_bytes=0)):
            for number in (1, 2, 3):
                await index.put(entry(number))
            with sqlite3.connect(tmp_path / "imagen.db") as connection:
                connection.execute(f"UPDATE cached SET {damage} WHERE key = 'key-2'")  # noqa: S608 - ours
            connection.close()
            found = await meet
            assert found is None or [one.key for one in found] == ["key-1", "key-3"]
            assert await index.size() == (2, 200)
        assert len([record for record in caplog.records if "cannot be read" in record.message]) == 2
        await index.put(entry(2))
        assert await index.find("key-2", now=BEGINNING) is not None
    finally:
        database.close()


async def test_the_size_is_that_of_all(index: CacheIndex):
    assert await index.size() == (0, 0)
    for number in range(1, 4):
        await index.put(entry(number, size_bytes=number))
    assert await index.size() == (3, 6)


async def test_as_many_have_to_go_as_it_takes_and_the_oldest_first(index: CacheIndex):
    for number in (3, 1, 2):
        await index.put(entry(number))
    assert await names(index, above_bytes=300) == []
    assert await names(index, above_bytes=299) == ["key-1"]
    assert await names(index, above_bytes=200) == ["key-1"]
    assert await names(index, above_bytes=199) == ["key-1", "key-2"]
    assert await names(index, above_bytes=0) == ["key-1", "key-2", "key-3"]


async def test_whoever_was_found_is_not_the_oldest_any_more(index: CacheIndex):
    for number in (1, 2, 3):
        await index.put(entry(number))
    await index.find("key-1", now=BEGINNING + timedelta(minutes=9))
    assert await names(index, above_bytes=200) == ["key-2"]


async def test_of_those_used_at_one_instant_exactly_as_many_go_as_must(index: CacheIndex):
    for number in (1, 2, 3):
        await index.put(entry(number, used_at=BEGINNING))
    assert len(await index.oldest(above_bytes=200)) == 1


async def test_what_another_process_writes_is_seen(tmp_path: Path):
    here, there = Database(tmp_path / "imagen.db"), Database(tmp_path / "imagen.db")
    try:
        one, other = SqlCacheIndex(here), SqlCacheIndex(there)
        await asyncio.gather(*((one, other)[number % 2].put(entry(number)) for number in range(20)))
        assert await one.size() == await other.size() == (20, 2000)
        await one.remove("key-3", prediction_id="pred_3")
        assert await other.find("key-3", now=BEGINNING) is None
    finally:
        here.close()
        there.close()
