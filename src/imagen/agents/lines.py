"""Messages over standard input and output, one a line. It imports the SDK, which is large."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, cast

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

_CHUNK = 1 << 16
_STDIN, _STDOUT, _STDERR = 0, 1, 2


async def serve_lines(server: Server[Any]) -> None:
    """Serve whoever started this process until they close our input, go away, or a signal comes.

    Meanwhile nothing but messages reaches their side: whatever else is printed goes to standard error, and whoever reads
    standard input finds it empty. What is under way in the end is canceled, and has the time that this takes.
    """
    loop = asyncio.get_running_loop()
    with _wire() as (source, sink):
        incoming = _Incoming(source, loop)
        outgoing = _Outgoing(sink, gone=incoming.end)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, incoming.end)
        try:
            streams = cast("anyio.AsyncFile[str]", incoming), cast("anyio.AsyncFile[str]", outgoing)
            async with stdio_server(*streams) as (read, write):
                await server.run(read, write, server.create_initialization_options())
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            outgoing.close()


@contextlib.contextmanager
def _wire() -> Iterator[tuple[int, int]]:
    """Our side of the connection as two descriptors of its own, with the standard ones led elsewhere.

    They are not closed again: a thread may still wait for one, and it must not become another file's under it.
    """
    source, sink = os.dup(_STDIN), os.dup(_STDOUT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, _STDIN)
    os.close(nothing)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield source, sink
    finally:
        os.dup2(source, _STDIN)
        os.dup2(sink, _STDOUT)


class _Incoming:
    """Lines, read by a thread that nobody waits for: a read cannot be broken off, and the process may have to end.

    It reads the descriptor itself, as the interpreter cannot end while a thread holds the lock of `sys.stdin`.
    """

    def __init__(self, descriptor: int, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = descriptor
        self._loop = loop
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._ended = False
        threading.Thread(target=self._read, name="imagen-mcp-in", daemon=True).start()

    def end(self) -> None:
        """As if the other side had closed it."""
        self._lines.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = None if self._ended else await self._lines.get()
        if line is None:
            self._ended = True
            raise StopAsyncIteration
        return line

    def _read(self) -> None:
        rest = bytearray()
        with contextlib.suppress(OSError):
            while chunk := os.read(self._descriptor, _CHUNK):
                whole, newline, begun = chunk.rpartition(b"\n")
                if newline:
                    self._hand_over(bytes(rest + whole))
                    rest.clear()
                rest += begun
        if rest:
            self._hand_over(bytes(rest))
        self._call(self.end)

    def _hand_over(self, whole: bytes) -> None:
        for line in whole.split(b"\n"):
            if line.strip():
                self._call(self._lines.put_nowait, line.decode("utf-8", "replace"))

    def _call(self, what: Callable[..., Any], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is there to be told
            self._loop.call_soon_threadsafe(what, *args)


class _Outgoing:
    """Lines, written by a thread that nobody waits for: whoever should read them may have stopped doing so."""

    def __init__(self, descriptor: int, *, gone: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._texts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="imagen-mcp-out", daemon=True)
        self._thread.start()

    async def write(self, text: str) -> None:
        """Have it written."""
        self._texts.put(text.encode())

    async def flush(self) -> None:
        """It is on its way already."""

    def close(self) -> None:
        """Write what is left, as far as somebody reads it."""
        self._texts.put(None)
        self._thread.join(timeout=1.0)

    def _write(self) -> None:
        try:
            while (data := self._texts.get()) is not None:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
        except OSError:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._gone)
