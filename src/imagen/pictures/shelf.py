"""Pictures that are kept, in a folder: `<folder>/<two characters>/<id>.<ext>`, whole or not at all.

The folders and files are for this user alone. A name that is asked for becomes a path only after it was found to be
an id, and only ordinary files count: whatever else somebody puts into the folder does not exist for us.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from imagen.domain.identifiers import new_secret
from imagen.errors import ConfigError, DeliveryError, InvalidRequest, NotFound, StoreError
from imagen.pictures.files import Landing, sync_folder
from imagen.pictures.inspect import MEDIA_TYPES
from imagen.ports import ShelvedPicture

SPARE_BYTES = 64 * 1024 * 1024
"""What must be free before a picture is bought for the shelf: room for the largest that models make, several times."""

_PREFIX = "pic"
_ID = re.compile(r"pic_[0-9a-hjkmnp-tv-z]{32}")
_EXTENSIONS = {media_type: extension for extension, media_type in MEDIA_TYPES.items()}
_SETTING = "pictures.folder"
_NOT_THERE = (FileNotFoundError, NotADirectoryError)
_REASONS = {
    errno.ENOSPC: "has no space left",
    errno.EDQUOT: "has its disk quota used up",
    errno.EFBIG: "does not take files this large",
    errno.EACCES: "does not allow us to write",
    errno.EPERM: "does not allow us to write",
    errno.EROFS: "is on a read-only file system",
    errno.ENOTDIR: "is no folder",
    errno.EEXIST: "is no folder",
    errno.EIO: "is on a disk that reports an error",
}


class FolderShelf:
    """`ports.PictureShelf` in a folder, which several processes may share. Makes it when it is first needed.

    Args:
        folder: where the pictures lie.
        spare_bytes: what must be free for `check` to pass.
    """

    def __init__(self, folder: Path, *, spare_bytes: int = SPARE_BYTES) -> None:
        self.folder = folder
        self._spare_bytes = spare_bytes

    def check(self) -> None:
        """See the port."""
        try:
            with _reasoned():
                _make_private(self.folder)
                if shutil.disk_usage(self.folder).free < self._spare_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with Landing(self.folder / "check"):
                    pass
        except DeliveryError as error:
            raise ConfigError(
                f"pictures cannot be kept: {error.detail}",
                setting=_SETTING,
                hint=f"Make room or give permission, set {_SETTING} to another folder, or do not ask to keep them.",
            ) from error

    async def put(self, content: bytes, *, media_type: str, key: str | None = None) -> ShelvedPicture:
        """See the port."""
        if media_type not in _EXTENSIONS:
            raise InvalidRequest(f"pictures of the type {media_type[:80]!r} are not kept")
        picture_id = new_secret(_PREFIX) if key is None else _id_of(key)
        return await asyncio.to_thread(self._put, picture_id, content, media_type)

    async def locate(self, picture_id: str) -> ShelvedPicture:
        """See the port."""
        return await asyncio.to_thread(self._locate, picture_id)

    async def at(self, path: Path) -> ShelvedPicture | None:
        """See the port."""
        found = await asyncio.to_thread(self._find, path.stem)
        return found if found is not None and found.path == path else None

    async def remove(self, picture_id: str) -> None:
        """See the port."""
        await asyncio.to_thread(self._remove, picture_id)

    # --- in a worker thread ------------------------------------------------------------------------------

    def _put(self, picture_id: str, content: bytes, media_type: str) -> ShelvedPicture:
        path = self._path(picture_id, _EXTENSIONS[media_type])
        before = self._find(picture_id)
        if before is not None and before.path == path and _holds(path, content):
            return before
        try:
            with _reasoned():
                _make_private(self.folder)
                _make_private(path.parent)
                # With `force` two who put the same picture at once leave one whole file, not a second beside it.
                with Landing(path, force=True) as landing:
                    landing.part.chmod(0o600)
                    landing.write(content)
                    landing.commit()
                if before is not None and before.path != path:
                    before.path.unlink(missing_ok=True)
        except DeliveryError as error:
            raise DeliveryError(
                f"the picture could not be kept: {error.detail}",
                hint=f"Make room or give permission in the folder of {_SETTING}.",
            ) from error.__cause__
        return self._locate(picture_id)

    def _locate(self, picture_id: str) -> ShelvedPicture:
        if (found := self._find(picture_id)) is None:
            raise _unknown()
        return found

    def _find(self, picture_id: str) -> ShelvedPicture | None:
        if not _ID.fullmatch(picture_id):
            return None
        for extension in MEDIA_TYPES:
            path = self._path(picture_id, extension)
            try:
                found = path.lstat()
            except _NOT_THERE:
                continue
            except OSError as error:
                raise StoreError(f"the kept pictures cannot be read: {error.strerror}") from error
            if stat.S_ISREG(found.st_mode):
                return _shelved(picture_id, path, found)
        return None

    def _remove(self, picture_id: str) -> None:
        path = self._locate(picture_id).path
        try:
            path.unlink()
        except _NOT_THERE:
            raise _unknown() from None
        except OSError as error:
            raise StoreError(f"the picture cannot be removed: {error.strerror}") from error

    def _path(self, picture_id: str, extension: str) -> Path:
        digits = picture_id.removeprefix(f"{_PREFIX}_")
        return self.folder / digits[:2] / f"{picture_id}.{extension}"


def _id_of(key: str) -> str:
    return f"{_PREFIX}_{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _shelved(picture_id: str, path: Path, found: os.stat_result) -> ShelvedPicture:
    return ShelvedPicture(
        id=picture_id,
        name=path.name,
        media_type=MEDIA_TYPES[path.suffix.removeprefix(".")],
        size_bytes=found.st_size,
        kept_at=datetime.fromtimestamp(found.st_mtime, UTC),
        version=f"{found.st_mtime_ns:x}-{found.st_size:x}",
        path=path,
    )


def _make_private(folder: Path) -> None:
    """Make a folder that only this user may enter; one that is there keeps the mode that somebody gave it."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def _reasoned() -> Iterator[None]:
    """What the disk says as a `DeliveryError` that gives the reason and not the path: strangers read it."""
    try:
        yield
    except (OSError, DeliveryError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        number, text = (cause.errno or 0, cause.strerror) if isinstance(cause, OSError) else (0, None)
        reason = _REASONS.get(number, f"cannot be written to ({text})")
        raise DeliveryError(f"the folder of {_SETTING} {reason}") from cause


def _unknown() -> NotFound:
    return NotFound("no picture is kept under this address", hint="It was removed, or the address is wrong.")
