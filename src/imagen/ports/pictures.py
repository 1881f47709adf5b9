"""Pictures and files that are kept for callers: the shelf, the cache, and whose files went on to the service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec


class ShelvedPicture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture on the shelf.

    Attributes:
        id: `pic_…`, unguessable: whoever knows it may look at the picture.
        name: a file name for it, id and extension.
        media_type: such as `image/png`.
        size_bytes: its length.
        kept_at: when it was put there, aware, UTC.
        version: differs when the bytes under this id differ; printable, without quotes.
        path: the file that holds it.
    """

    id: str
    name: str
    media_type: str
    size_bytes: int
    kept_at: datetime
    version: str
    path: Path


class PictureShelf(Protocol):
    """Keeps pictures under unguessable ids, for as long as nobody removes them. Safe to share between processes.

    Raises:
        StoreError: the shelf could not be read.
    """

    def check(self) -> None:
        """Find out whether a picture could be put here now. Quick; leaves nothing behind.

        Raises:
            ConfigError: it could not, saying why and what to do.
        """

    async def put(self, content: bytes, *, media_type: str, key: str | None = None) -> ShelvedPicture:
        """Keep a picture. When this returns it is there to stay; when it raises nothing of it is there.

        Args:
            content: the whole picture.
            media_type: one of those that `imagen.pictures` can check.
            key: a secret that names the picture: what was put under the same key before is replaced, so that
                putting twice is the same as putting once.

        Raises:
            InvalidRequest: a picture of that type is not kept.
            DeliveryError: no space, no permission, and the like.
        """

    async def locate(self, picture_id: str) -> ShelvedPicture:
        """The picture of that id. Any text may be asked for.

        Raises:
            NotFound: there is none.
        """

    async def at(self, path: Path) -> ShelvedPicture | None:
        """The picture that lies at `path`, as `ShelvedPicture.path` told it; None when this shelf has none there."""

    async def remove(self, picture_id: str) -> None:
        """Take a picture away for good; whoever reads it just now reads it to its end.

        Raises:
            NotFound: there is none.
        """


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a prediction made that may be asked for again.

    Attributes:
        key: of the request: account, model and canonical input.
        prediction_id: the one that was paid for; seed: its own.
        pictures: file names in the folder of the cache, in order.
        media_types, size_bytes: of the pictures.
        created_at, used_at: when it was made, and last asked for.
    """

    key: str
    prediction_id: str
    model: str
    version: str | None
    seed: int | None
    pictures: tuple[str, ...]
    media_types: tuple[str, ...]
    size_bytes: int
    created_at: datetime
    used_at: datetime


class CacheIndex(Protocol):
    """Knows what is in the cache of pictures. Each method is one durable transaction.

    An entry that cannot be read any more is forgotten by whoever meets it, as if it had never been put.

    Raises:
        StoreError: the store could not be read or written.
    """

    async def find(self, key: str, *, now: datetime) -> CacheEntry | None:
        """The entry under that key; it counts as used now."""

    async def put(self, entry: CacheEntry) -> None:
        """Write down an entry; one of the same key is replaced."""

    async def remove(self, key: str, *, prediction_id: str) -> None:
        """Forget the pictures of that prediction; those that another has put under the key since then stay."""

    async def oldest(self, *, above_bytes: int) -> Sequence[CacheEntry]:
        """The least recently used ones, as many as have to go so that the rest has at most that size."""

    async def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""


class RelayedFiles(Protocol):
    """Knows who has uploaded files to the gateway's own account. Each method is one durable transaction.

    Raises:
        StoreError: it could not be written or read.
    """

    async def add(self, file_id: str, *, scope: str, expires_at: datetime, now: datetime) -> None:
        """Remember whose a file is, until it expires. What has expired by `now` is forgotten."""

    async def owner(self, file_id: str, *, now: datetime) -> str | None:
        """The scope that has uploaded a file; None when nobody did, or it has expired."""

    async def of(self, scope: str, *, now: datetime) -> frozenset[str]:
        """The ids of all that a scope has uploaded and that have not expired."""

    async def remove(self, file_id: str) -> None:
        """Forget a file."""
