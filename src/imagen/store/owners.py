"""Which processes live. Each holds a lock on a file of its own; the system lets go of it whichever way it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import IO

from imagen.errors import StoreError

_NAME = re.compile(r"[0-9]+-[0-9a-f]{16}")


class FileOwners:
    """`ports.Owners` for one machine.

    Args:
        folder: where the lock files are; shared by all processes of one data folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._file: IO[str] | None = None

    @property
    def me(self) -> str:
        """See the port. The lock is taken when the name is first asked for."""
        if self._file is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = (self._folder / self._name).open("w")
            except OSError as error:
                raise StoreError(
                    f"the folder {self._folder} cannot be used: {error.strerror}",
                    hint="Set IMAGEN_DATA_DIR to a folder that can be written.",
                ) from error
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
        return self._name

    def alive(self, owner: str) -> bool:
        """See the port."""
        if self._file is not None and owner == self._name:
            return True
        return _NAME.fullmatch(owner) is not None and _is_locked(self._folder / owner)

    def close(self) -> None:
        """Let go."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                (self._folder / self._name).unlink()
            self._file.close()
            self._file = None

    def _sweep(self) -> None:
        """Remove the files of the dead. A file between its making and its locking looks dead: leave fresh ones."""
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                old = path.stat().st_mtime < (self._folder / self._name).stat().st_mtime - 60
                if old and path.name != self._name and not _is_locked(path):
                    path.unlink()


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # locked, or not to be told: then it is safer to think that it lives
    return False
