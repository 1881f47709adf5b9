"""Ledger entries that the database would not take, kept in a plain file until it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from imagen.decoding import decode
from imagen.domain.usage import UsageEntry


class KeptEntries:
    """One line of JSON an entry. Entries carry their ids, so that writing one twice does no harm.

    Args:
        path: the file; empty while nothing is kept. It is never removed, because somebody may be about to add to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, entry: UsageEntry) -> None:
        """Keep one, durably.

        Raises:
            OSError: not even the file can be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The line before may have been cut short by a crash: it must not swallow this one.
            file.write(b"\n" + msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Sequence[UsageEntry]:
        """All that is kept; a line that was cut short by a crash is left out."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                entries.append(decode(line, UsageEntry))
        return entries

    def forget(self, entries: Sequence[UsageEntry]) -> None:
        """Drop those that were written meanwhile; what others added since stays."""
        written = {entry.id for entry in entries}
        with contextlib.suppress(OSError), self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            left = [entry for entry in self.read() if entry.id not in written]
            # Written before the rest is cut off, so that a crash in between only repeats entries.
            file.seek(0)
            file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in left))
            file.truncate()
