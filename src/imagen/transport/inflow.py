"""The body of an answer on its way from a connection to whoever reads it: as much as fits into a bounded buffer."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from imagen.errors import ExchangeFailed, TransportError

MOST_BYTES = 512 * 1024
"""What waits here before the server has to wait; a piece more may come after that."""
_UNPACKED = 256 * 1024
_BITS = {"gzip": 31, "deflate": zlib.MAX_WBITS}


class Source(Protocol):
    """Where the pieces come from."""

    def pause(self) -> None:
        """Send no more for now."""

    def go_on(self) -> None:
        """Send again."""

    def stop(self) -> None:
        """Nobody reads the rest."""


class Inflow:
    """Pieces in the order in which they came, and how they ended.

    Attributes:
        paused: whether the source has been told to wait.
    """

    def __init__(self) -> None:
        self.paused = False
        self._source: Source | None = None
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._error: TransportError | None = None
        self._ended = False
        self._reader: asyncio.Future[None] | None = None

    # --- the source's side ---

    def begin(self, source: Source) -> None:
        """From here the pieces come; from another source nothing had come."""
        self._source, self._ended, self._error = source, False, None

    def feed(self, piece: bytes) -> None:
        """A piece more."""
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes >= MOST_BYTES and not self.paused and self._source is not None:
            self.paused = True
            self._source.pause()
        self._wake()

    def end(self, error: TransportError | None = None) -> None:
        """There will be no more: it is whole, unless it ended by an error."""
        if not self._ended:
            self._ended, self._error, self._source = True, error, None
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- the reader's side ---

    async def read(self) -> AsyncIterator[bytes]:
        """Piece by piece until the end.

        Raises:
            TransportError: it broke off.
        """
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._bytes -= len(piece)
                yield piece
            if self._ended:
                break
            if self.paused and self._source is not None:
                self.paused = False
                self._source.go_on()
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Read no more of it."""
        self._pieces.clear()
        if (source := self._source) is not None:
            source.stop()


async def unpacked(pieces: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """A body as it was before a server packed it that nobody had asked to, a bounded part at a time.

    Raises:
        ExchangeFailed: it is not whole, or no such thing.
    """
    unpacker = zlib.decompressobj(_BITS[coding])
    try:
        async for piece in pieces:
            left = piece
            while left and not unpacker.eof:
                if part := unpacker.decompress(left, _UNPACKED):
                    yield part
                left = unpacker.unconsumed_tail
    except zlib.error as error:
        raise ExchangeFailed("the answer is packed in a way that nobody understands") from error
    if not unpacker.eof:
        raise ExchangeFailed("the answer broke off before its end")


def is_packed(coding: str) -> bool:
    """Whether `unpacked` knows that coding."""
    return coding in _BITS
