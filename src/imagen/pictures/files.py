"""How a picture comes to lie in its folder: whole or not at all, and never over another one.

It is written to a part file beside its name (`.cat.png.1f3a9c07.part`: hidden, on the same file system),
made durable, and only then given its name in one step. Without `force` that step cannot replace a file, not
even one that appeared a moment before: the picture then takes the next free name (`cat-2.png`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from imagen.errors import DeliveryError, InvalidInput, Problem

PART_SUFFIX = ".part"
"""How the name of an unfinished file ends; it begins with a dot."""

_MAX_NAME_BYTES = 255
_CHUNK = 1 << 20
_SENTENCES = {
    errno.ENOSPC: ("there is no space left in {folder}", "Free some space, or choose another place with -o."),
    errno.EDQUOT: (
        "your disk quota in {folder} is used up",
        "Free some space, or choose another place with -o.",
    ),
    errno.EFBIG: (
        "{folder} does not take files this large",
        "Raise the file size limit (ulimit -f), or use -o.",
    ),
    errno.EACCES: (
        "{folder} does not allow us to write",
        "Change its permissions, or choose another with -o.",
    ),
    errno.EPERM: (
        "{folder} does not allow us to write",
        "Change its permissions, or choose another with -o.",
    ),
    errno.EROFS: ("{folder} is on a read-only file system", "Choose another place with -o."),
    errno.ENOENT: ("{folder} is gone", "Make it again, or choose another place with -o."),
    errno.ENOTDIR: ("{folder} is no folder", "Choose another place with -o."),
    errno.EISDIR: ("a folder stands where the picture should go in {folder}", "Choose another name with -o."),
    errno.EEXIST: ("something that is no picture has that name in {folder}", "Choose another name with -o."),
    errno.ENAMETOOLONG: ("the file's name is too long for {folder}", "Choose a shorter name with -o."),
    errno.EIO: (
        "the disk under {folder} reports an error",
        "Check the disk, or choose another place with -o.",
    ),
}


def check_writable(path: Path, *, force: bool) -> None:
    """Find out, before anything is bought, whether a picture can be written to `path`. Changes nothing.

    Raises:
        InvalidInput: for the field `output`, saying what to do instead.
    """
    try:
        existing = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        existing = None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds a NUL"
        raise _problem(f"{path} cannot be used ({reason}): choose another name") from None
    if existing is not None:
        _check_replaceable(path, existing, force=force)
    folder = Path(os.path.realpath(path)).parent if existing is not None else path.absolute().parent
    ancestor = _nearest_existing(folder)
    if not ancestor.is_dir():
        raise _problem(f"{ancestor} is a file, not a folder: choose another place")
    if not os.access(ancestor, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        verb = "written to" if ancestor == folder else f"written to, so {folder} cannot be made"
        raise _problem(f"{ancestor} cannot be {verb}: change its permissions or choose another place")


def _check_replaceable(path: Path, existing: os.stat_result, *, force: bool) -> None:
    if path.is_dir():
        raise _problem(f"{path} is a folder: name a file, or end it with / for a default name in it")
    if not force:
        raise _problem(f"{path} exists already: use --force or another name")
    if path.exists() and not path.is_file():
        raise _problem(f"{path} is no ordinary file and is never replaced: choose another name")
    if stat.S_ISLNK(existing.st_mode) and not path.exists() and Path(os.path.realpath(path)).is_symlink():
        raise _problem(f"{path} is a link that leads in a circle: choose another name")


def _nearest_existing(folder: Path) -> Path:
    while True:
        try:
            folder.stat()
        except PermissionError:
            return folder.parent
        except OSError:
            if folder == folder.parent:
                return folder
            folder = folder.parent
        else:
            return folder


class Landing:
    """A picture on its way to its name. Blocks: use it in a worker thread.

        with Landing(path, force=False) as landing:
            for chunk in chunks:
                landing.write(chunk)
            place = landing.commit()

    Leaving without `commit`, by an error or on purpose, removes the part file. Missing folders are made.

    Args:
        path: where the picture should go.
        force: replace the file that is there. A link stays: what it points to is replaced.

    Attributes:
        part: the unfinished file, for looking into it before `commit`.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self._path = path
        self._force = force
        self._target = Path(os.path.realpath(path)) if force else path
        self._descriptor = -1
        self.part = _part_path(self._target)

    def __enter__(self) -> Self:
        with self._explained():
            self._make_folder()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.part, flags, 0o666)  # the umask applies
            if self._force:
                self._keep_mode()
        return self

    def _make_folder(self) -> None:
        """Make the folder, with those above it.

        Raises:
            DeliveryError: a folder that is there, such as one of the kernel's, has none made in it.
        """
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            nearest = _nearest_existing(self._target.parent)
            raise DeliveryError(
                f"The picture could not be written: no folder can be made in {nearest}.",
                hint="Choose another place with -o.",
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self.part.unlink()  # after commit it is gone already

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`.

        Raises:
            DeliveryError: no space, no permission, and the like.
        """
        rest = memoryview(data).cast("B")
        with self._explained():
            while rest:
                rest = rest[os.write(self._descriptor, rest[:_CHUNK]) :]

    def commit(self) -> Path:
        """Make it durable and give it its name.

        Returns:
            The path that it has: the one asked for, or without `force` the next free one beside it.

        Raises:
            DeliveryError: it could not be placed. Nothing is left behind.
        """
        with self._explained():
            os.fsync(self._descriptor)
            self._close()  # network file systems report a full disk only here
            if self._force:
                _refuse_special(self._target)
                self.part.replace(self._target)
                place = self._path
            else:
                place = next(name for name in _names_beside(self._path) if self._take(name))
            sync_folder(self._target.parent)
        return place

    def _take(self, place: Path) -> bool:
        """Put the part file at `place` unless a file is there."""
        try:
            os.link(self.part, place)
        except FileExistsError:
            return False
        except OSError:  # exFAT, some network and container file systems know no hard links
            return self._claim(place)
        self.part.unlink()
        return True

    def _claim(self, place: Path) -> bool:
        """Like `_take` without hard links: an empty file holds the name until the picture replaces it."""
        try:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        try:
            self.part.replace(place)
        except OSError:
            place.unlink(missing_ok=True)
            raise
        return True

    def _keep_mode(self) -> None:
        """A replaced picture that was private stays private."""
        with contextlib.suppress(OSError):
            os.chmod(self.part, stat.S_IMODE(self._target.stat().st_mode))  # noqa: PTH101  twin of os.open above

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fallback = (
                f"{{folder}} could not be written to ({error.strerror or error})",
                "Choose another with -o.",
            )
            sentence, hint = _SENTENCES.get(error.errno or 0, fallback)
            detail = sentence.format(folder=self._target.parent)
            raise DeliveryError(f"The picture could not be written: {detail}.", hint=hint) from error


def land(data: bytes, path: Path, *, force: bool = False) -> Path:
    """Write a whole picture to `path` as `Landing` does, and return the path that it has.

    Raises:
        DeliveryError: it could not be written. Nothing is left behind.
    """
    with Landing(path, force=force) as landing:
        landing.write(data)
        return landing.commit()


def is_part(path: Path) -> bool:
    """Whether the name is that of an unfinished picture."""
    return path.name.startswith(".") and path.name.endswith(PART_SUFFIX)


def _refuse_special(target: Path) -> None:
    """A rename would replace a device or pipe with a file as gladly as it replaces a picture."""
    if target.exists() and not target.is_file() and not target.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _part_path(target: Path) -> Path:
    ending = f".{secrets.token_hex(4)}{PART_SUFFIX}"
    return target.with_name("." + _clip(target.name, _MAX_NAME_BYTES - 1 - len(ending)) + ending)


def _names_beside(path: Path) -> Iterator[Path]:
    yield path
    stem, suffix = path.stem, path.suffix
    for number in count(2):
        ending = f"-{number}{suffix}"
        yield path.with_name(_clip(stem, _MAX_NAME_BYTES - len(os.fsencode(ending))) + ending)


def _clip(name: str, limit: int) -> str:
    while len(os.fsencode(name)) > limit:
        name = name[:-1]
    return name


def sync_folder(folder: Path) -> None:
    """Make the new name durable where the system can: some file systems cannot sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _problem(message: str) -> InvalidInput:
    return InvalidInput([Problem("output", message)])
