"""What this machine remembers of a batch that a gateway makes: where each picture goes, and which have come."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from imagen.decoding import decode
from imagen.errors import StoreError

_OLD_SECONDS = 30 * 86_400
_ENDING = ".jsonl"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task of the gateway's batch.

    Attributes:
        row: which row of ours it belongs to, from 0; note: what the command remembers of that.
        prompt, model, seed: as they were asked for.
        place: where its pictures go, as `service.deliver.to_stored` makes it.
    """

    row: int
    prompt: str
    model: str
    place: dict[str, Any]
    seed: int | None = None
    note: dict[str, Any] = {}


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of the file."""

    url: str
    details: dict[str, Any]
    tasks: list[Task]


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures of one task, as they lie here."""

    task: int
    files: list[str]


class Memory:
    """One batch. Lines are added and never changed, so that a crash loses nothing of what was written.

    Args:
        path: of its file.

    Attributes:
        url: of the gateway; details: what the command remembers; tasks: in order.
        fetched: the files of tasks whose pictures have come.
    """

    def __init__(self, path: Path, begun: _Begun, fetched: Mapping[int, list[str]]) -> None:
        self._path = path
        self.url = begun.url
        self.details = begun.details
        self.tasks = begun.tasks
        self.fetched = dict(fetched)

    def add(self, task: int, files: Sequence[str]) -> None:
        """Write down that pictures have come.

        Raises:
            StoreError: it could not be written.
        """
        line = msgspec.json.encode(Fetched(task=task, files=list(files))) + b"\n"
        with _explained(self._path), self._path.open("ab") as file:
            file.write(line)
        self.fetched[task] = list(files)


class Memories:
    """All of this machine.

    Args:
        folder: holds a file for each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, batch_id: str, *, url: str, details: dict[str, Any], tasks: list[Task]) -> Memory:
        """Remember a batch.

        Raises:
            StoreError: it could not be written.
        """
        path = self._path(batch_id)
        begun = _Begun(url=url, details=details, tasks=tasks)
        with _explained(path):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                file.write(msgspec.json.encode(begun) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        self._forget_old()
        return Memory(path, begun, {})

    def find(self, batch_id: str) -> Memory | None:
        """What is remembered of a batch, None for nothing.

        Raises:
            StoreError: it cannot be read.
        """
        path = self._path(batch_id)
        if not path.is_file():
            return None
        with _explained(path):
            lines = path.read_bytes().split(b"\n")
        try:
            begun = decode(lines[0], _Begun)
        except msgspec.DecodeError:
            raise StoreError(f"{path} is damaged") from None
        fetched: dict[int, list[str]] = {}
        for line in lines[1:]:
            with contextlib.suppress(msgspec.DecodeError):  # a crash cut the last one off
                one = decode(line, Fetched)
                fetched[one.task] = one.files
        return Memory(path, begun, fetched)

    def of_wish(self, url: str, fingerprint: str) -> Iterator[str]:
        """The ids of batches of the same wish at that gateway, the newest first."""
        for path in sorted(self._folder.glob(f"*{_ENDING}"), reverse=True):
            found = None
            with contextlib.suppress(StoreError):
                found = self.find(path.stem)
            if found is not None and found.url == url and found.details.get("fingerprint") == fingerprint:
                yield path.stem

    def _path(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}{_ENDING}"

    def _forget_old(self) -> None:
        """A gateway's pictures are not looked for after a month."""
        old = time.time() - _OLD_SECONDS
        for path in self._folder.glob(f"*{_ENDING}"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < old:
                    path.unlink()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be read or written: {error.strerror}") from error
