"""The cache of pictures never has more than it may, and whoever was not asked for the longest goes first."""

from __future__ import annotations

import asyncio
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.clock import ManualClock
from fakes.make import make_prediction
from imagen.domain.prediction import Status
from imagen.ports import Fetched
from imagen.service.cache import PictureCache
from imagen.store.cache import SqlCacheIndex
from imagen.store.database import Database

MOST_BYTES = 1000
KEYS = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.lists(st.integers(100, 1100), min_size=1, max_size=3)),
        st.tuples(st.just("find"), KEYS, st.none()),
    ),
    max_size=30,
)


def picture(size_bytes: int) -> bytes:
    """A whole PNG of one pixel and exactly so many bytes."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    tail = _chunk(b"IDAT", zlib.compress(b"\0\0")) + _chunk(b"IEND", b"")
    filling = size_bytes - len(head) - len(tail) - 12
    return head + _chunk(b"tEXt", b"a\0".ljust(filling, b"x")) + tail


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Painter:
    """A source of pictures whose addresses say their sizes."""

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        content = picture(int(url.partition("-")[0]))
        assert len(content) <= limit_bytes
        await asyncio.to_thread(target.write_bytes, content)
        return Fetched(size_bytes=len(content), media_type="image/png")


class Believed:
    """What should be there: keys with their sizes, the least recently used first."""

    def __init__(self) -> None:
        self.entries: dict[str, list[int]] = {}

    @property
    def size(self) -> int:
        return sum(map(sum, self.entries.values()))

    def put(self, key: str, sizes: list[int]) -> bool:
        if sum(sizes) > MOST_BYTES:
            return False
        self.entries.pop(key, None)
        while self.size + sum(sizes) > MOST_BYTES:
            del self.entries[next(iter(self.entries))]
        self.entries[key] = sizes
        return True

    def find(self, key: str) -> list[int] | None:
        sizes = self.entries.pop(key, None)
        if sizes is not None:
            self.entries[key] = sizes
        return sizes


@pytest.fixture(scope="module")
def index() -> Iterator[SqlCacheIndex]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / "imagen.db")
        yield SqlCacheIndex(database)
        database.close()


@settings(max_examples=40)
@given(steps=STEPS)
def test_it_is_as_a_list_by_last_use_would_be(
    index: SqlCacheIndex, steps: list[tuple[str, str, list[int] | None]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_walk(index, Path(folder) / "pictures", steps))


def _lying(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()} if folder.exists() else {}


async def _walk(index: SqlCacheIndex, folder: Path, steps: list[tuple[str, str, list[int] | None]]) -> None:
    for left in await index.oldest(above_bytes=0):
        await index.remove(left.key, prediction_id=left.prediction_id)
    clock, believed = ManualClock(), Believed()
    cache = PictureCache(
        index=index, folder=folder, limit_bytes=MOST_BYTES, picture_bytes=MOST_BYTES * 2, clock=clock
    )
    for number, (step, key, sizes) in enumerate(steps):
        clock.advance(1)
        if step == "put" and sizes is not None:
            tap = cache.tap(Painter())
            output = tuple(f"{size}-{place}" for place, size in enumerate(sizes))
            made = make_prediction(number, status=Status.SUCCEEDED, output=output)
            assert await cache.put(key, made, tap) == believed.put(key, sizes)
            tap.clear()
        else:
            found, wanted = await cache.find(key), believed.find(key)
            assert (None if found is None else [len(each) for each in found.contents]) == wanted
        by_use = await index.oldest(above_bytes=0)
        assert [one.key for one in by_use] == list(believed.entries)
        count, size = await index.size()
        assert (count, size) == (len(believed.entries), believed.size)
        assert size <= MOST_BYTES
        lying = _lying(folder)
        assert set(lying) == {name for one in by_use for name in one.pictures}
        assert sum(lying.values()) == size
