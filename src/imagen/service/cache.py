"""Pictures that were made before, kept for whoever asks for the same again.

The files lie in one folder, the index says which of them belong to which request. A file comes before its index entry
and goes after it, so whatever dies on the way leaves at worst a file that nobody knows, which is swept. What cannot be
read whole, byte for byte as it was kept, is forgotten: a damaged cache only costs what it would have saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from imagen.domain.prediction import Prediction, Status
from imagen.errors import ImagenError, StoreError
from imagen.pictures import DefectivePicture, inspect_picture
from imagen.ports import CacheEntry, CacheIndex, Clock, Fetched
from imagen.service.deliver import PictureSource

SWEEP_SECONDS = 3600.0
"""So often files that nobody knows are looked for, and so old they are when they are removed."""

_ADDRESS = "cached:"
_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}\.[a-z]{3,4}|[0-9a-f]{32}\.part")
_DIGEST = slice(33, 97)

_log = logging.getLogger(__name__)


class CachedPictures(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures of the cache, read and found whole. A `PictureSource` for its own `addresses`.

    Attributes:
        entry: what the index says of them.
        contents: their bytes, in order.
    """

    entry: CacheEntry
    contents: tuple[bytes, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """By which `fetch` knows them, in order."""
        return tuple(f"{_ADDRESS}{number}" for number in range(len(self.contents)))

    @property
    def shelf_key(self) -> str:
        """A secret that is the same for the same pictures: it has a part that was drawn and never shown."""
        return f"cached-{self.entry.pictures[0]}"

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:  # noqa: ARG002 - it was kept below
        """See `PictureSource`."""
        number = int(url.removeprefix(_ADDRESS))
        await asyncio.to_thread(target.write_bytes, self.contents[number])
        return Fetched(size_bytes=len(self.contents[number]), media_type=self.entry.media_types[number])


class Tap:
    """A source of pictures that keeps a second name for each file that it fetched.

    Args:
        source: fetches them.
        folder: of the second names.
    """

    def __init__(self, source: PictureSource, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._kept: dict[str, Path] = {}

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        """See `PictureSource`."""
        fetched = await self._source.fetch(url, target, limit_bytes=limit_bytes)
        await asyncio.to_thread(self._keep, url, target)
        return fetched

    async def all_of(self, urls: Sequence[str], *, limit_bytes: int) -> Sequence[Path]:
        """The files of all these addresses; those that were not fetched before are fetched now.

        Raises:
            ImagenError, OSError: one of them cannot be had.
        """
        for url in urls:
            if url not in self._kept:
                await asyncio.to_thread(_make_private, self._folder)
                path = self._new_name()
                self._kept[url] = path
                await self._source.fetch(url, path, limit_bytes=limit_bytes)
        return [self._kept[url] for url in urls]

    def clear(self) -> None:
        """Remove those that nobody took over."""
        for path in self._kept.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._kept.clear()

    def _keep(self, url: str, target: Path) -> None:
        """Keep what was fetched, as far as the disk lets us: the picture itself matters more."""
        before = self._kept.pop(url, None)
        path = self._new_name()
        try:
            if before is not None:
                before.unlink(missing_ok=True)
            _make_private(self._folder)
            try:
                os.link(target, path)
            except OSError:
                shutil.copyfile(target, path)  # another file system, or one without links
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            _log.warning("a picture could not be kept for the cache: %s", error.strerror)
        else:
            self._kept[url] = path

    def _new_name(self) -> Path:
        return self._folder / f"{secrets.token_hex(16)}.part"


class PictureCache:
    """Pictures by the requests that they were made for; what was not asked for the longest goes first.

    Safe to share between tasks, and between processes of one data folder.

    Args:
        index: knows what is there.
        folder: where the files lie; made when it is first needed.
        limit_bytes: the most that all of them may have.
        picture_bytes: the most that one may have.
        clock: tells the time.
    """

    def __init__(
        self, *, index: CacheIndex, folder: Path, limit_bytes: int, picture_bytes: int, clock: Clock
    ) -> None:
        self._index = index
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._picture_bytes = picture_bytes
        self._clock = clock
        self._swept_at: float | None = None
        self._adding = asyncio.Lock()

    async def find(self, key: str) -> CachedPictures | None:
        """The pictures of a request, if all of them are there and whole. What is not is forgotten.

        A cache that cannot be looked into is an empty one.
        """
        try:
            entry = await self._index.find(key, now=self._clock.now())
            if entry is None:
                return None
            contents = await asyncio.to_thread(self._read, entry)
            if contents is not None:
                return CachedPictures(entry=entry, contents=contents)
            _log.warning("the cached pictures of %s are damaged or gone: forgotten", entry.prediction_id)
            await self._drop(entry)
        except StoreError as error:
            _log.warning("the cache of pictures could not be looked into: %s", error.detail)
        return None

    def tap(self, source: PictureSource) -> Tap:
        """A source whose pictures can be put into the cache without being fetched twice."""
        return Tap(source, self._folder)

    async def put(self, key: str, prediction: Prediction, tap: Tap) -> bool:
        """Keep the pictures of a prediction that succeeded; those that the tap has not seen are fetched.

        Args:
            key: of its request.
            prediction: with the addresses of its pictures.
            tap: through which they were fetched.

        Returns:
            Whether they are kept. They are not when one is no whole picture or cannot be had now, when all of them are
            larger than the cache, or when there is no room on the disk: none of that is a fault of the prediction.
        """
        if prediction.status is not Status.SUCCEEDED or not prediction.output:
            return False
        try:
            await self._sweep_now_and_then()
            parts = await tap.all_of(prediction.output, limit_bytes=self._picture_bytes)
            checked = await asyncio.to_thread(_checked, parts)
            now = self._clock.now()
            entry = CacheEntry(
                key=key,
                prediction_id=prediction.id,
                model=prediction.model,
                version=prediction.version,
                seed=prediction.seed,
                pictures=tuple(name for name, _, _ in checked),
                media_types=tuple(media_type for _, media_type, _ in checked),
                size_bytes=sum(size for _, _, size in checked),
                created_at=now,
                used_at=now,
            )
            if entry.size_bytes > self._limit_bytes:
                return False
            async with self._adding:
                await self._add(entry, parts)
        except (ImagenError, OSError, DefectivePicture) as error:
            _log.warning(
                "the pictures of %s could not be put into the cache: %s", prediction.id, type(error).__name__
            )
            return False
        return True

    async def sweep(self, *, older_than_seconds: float = SWEEP_SECONDS) -> int:
        """Remove files that the index does not know, and that are older than that; how many those were.

        Raises:
            StoreError: the index cannot be read.
        """
        known = {name for entry in await self._index.oldest(above_bytes=0) for name in entry.pictures}
        until = self._clock.now().timestamp() - older_than_seconds
        return await asyncio.to_thread(self._sweep, known, until)

    # --- the steps ---------------------------------------------------------------------------------------

    async def _sweep_now_and_then(self) -> None:
        now = self._clock.monotonic()
        if self._swept_at is None or now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            await self.sweep()

    async def _add(self, entry: CacheEntry, parts: Sequence[Path]) -> None:
        """Make room, then the files, then the entry: so there is never more than there may be."""
        if (before := await self._index.find(entry.key, now=entry.used_at)) is not None:
            await self._drop(before)
        await self._make_room(self._limit_bytes - entry.size_bytes)
        try:
            await asyncio.to_thread(self._name, parts, entry.pictures)
            await self._index.put(entry)
        except (StoreError, OSError):
            await asyncio.to_thread(self._unlink, entry.pictures)
            raise
        await self._make_room(self._limit_bytes)  # another process may have taken the same room

    async def _make_room(self, most_bytes: int) -> None:
        """Let those go that were not asked for the longest, until the others have at most that size."""
        for entry in await self._index.oldest(above_bytes=most_bytes):
            await self._drop(entry)

    async def _drop(self, entry: CacheEntry) -> None:
        await self._index.remove(entry.key, prediction_id=entry.prediction_id)
        await asyncio.to_thread(self._unlink, entry.pictures)

    # --- in a worker thread ------------------------------------------------------------------------------

    def _read(self, entry: CacheEntry) -> tuple[bytes, ...] | None:
        """Every picture of an entry, whole; None when one is not as it was kept."""
        contents = []
        for name in entry.pictures:
            if not _NAME.fullmatch(name):
                return None
            try:
                content = (self._folder / name).read_bytes()
            except OSError:
                return None
            if hashlib.sha256(content).hexdigest() != name[_DIGEST]:
                return None
            contents.append(content)
        return tuple(contents) or None

    def _name(self, parts: Sequence[Path], names: Sequence[str]) -> None:
        for part, name in zip(parts, names, strict=True):
            part.chmod(0o600)
            part.rename(self._folder / name)

    def _unlink(self, names: Sequence[str]) -> None:
        for name in filter(_NAME.fullmatch, names):
            with contextlib.suppress(OSError):
                (self._folder / name).unlink(missing_ok=True)

    def _sweep(self, known: set[str], until: float) -> int:
        removed = 0
        try:
            found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        except OSError:
            return 0
        for path in found:
            with contextlib.suppress(OSError):
                # The instant of its latest name, as the bytes of a second name may be much older.
                if path.name not in known and path.lstat().st_ctime <= until:
                    path.unlink()
                    removed += 1
        return removed


def _checked(parts: Sequence[Path]) -> list[tuple[str, str, int]]:
    """A name, the media type and the size of each picture.

    Raises:
        DefectivePicture: one is no whole picture.
        OSError: one cannot be read.
    """
    checked = []
    for part in parts:
        facts = inspect_picture(part)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"{secrets.token_hex(16)}-{digest}.{facts.format}"
        checked.append((name, facts.media_type, facts.size_bytes))
    return checked


def _make_private(folder: Path) -> None:
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
