"""Work that one process of a data folder does for all of them: whoever holds the lock."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from imagen.errors import StoreError


class FileTurn:
    """One such work. The system gives the lock back however the process ends.

    Args:
        path: the lock file; its folder is made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def mine(self) -> bool:
        """Whether this process is the one; it becomes it when nobody is.

        Raises:
            StoreError: the lock file cannot be used.
        """
        if self._file is not None:
            return True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self._path.open("a")
        except OSError as error:
            raise StoreError(
                f"the file {self._path} cannot be used: {error.strerror}",
                hint="Set IMAGEN_DATA_DIR to a folder that can be written.",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def close(self) -> None:
        """Let another process be the one."""
        if self._file is not None:
            self._file.close()
            self._file = None
