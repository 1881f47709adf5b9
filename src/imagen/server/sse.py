"""Server-sent events: an answer that goes on for as long as something happens.

What comes is sent as fast as the reader takes it: the next event is asked for when the last one has left, so that a slow
reader costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from imagen.errors import ImagenError, InvalidInput, Problem, QueueFull
from imagen.server.answers import error_body
from imagen.server.context import Context
from imagen.server.operation import Parameter

HEARTBEAT_SECONDS = 15.0
"""Silence after which a comment is sent: proxies close what is silent, and who has left is noticed."""
MEDIA_TYPE = "text/event-stream"
MOST_STREAMS = 1000
"""At a time, of one process."""
HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""The last one is for proxies that would collect an answer before they pass it on."""
STILL_HERE = b": still here\n\n"
_RETRY_MS = 2000
_LINE_BREAK = re.compile(rb"\r\n|\r|\n")
_MOST_DIGITS = 18

LAST_EVENT_ID = Parameter(
    name="Last-Event-ID",
    place="header",
    description=(
        "The last `id` that was received; what came after it is sent, and everything where no event had that id. "
        "Browsers send it by themselves."
    ),
    schema={"type": "integer", "minimum": 0, "maximum": 10**_MOST_DIGITS - 1},
)


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """One event.

    Attributes:
        event: its name.
        data: anything that JSON has.
        id: from where to go on after it; None leaves that as it was.
        plain: the data is text, and is sent as it is.
    """

    event: str
    data: Any
    id: int | None = None
    plain: bool = False


def encode(sent: Sent) -> bytes:
    """An event as it is sent. JSON has no line breaks outside of its texts, and escapes those inside; plain text may."""
    told = b"" if sent.id is None else b"id: %d\n" % sent.id
    lines = _LINE_BREAK.split(sent.data.encode()) if sent.plain else [msgspec.json.encode(sent.data)]
    data = b"\n".join(b"data: %s" % line for line in lines)
    return b"%sevent: %s\n%s\n\n" % (told, sent.event.encode(), data)


def read_last_event_id(request: Request) -> int:
    """From where a reader goes on; 0 for one that begins.

    Raises:
        InvalidInput: it is no id of ours.
    """
    told = request.headers.get("last-event-id", "").strip()
    if not told:
        return 0
    if len(told) > _MOST_DIGITS or not (told.isascii() and told.isdigit()):
        raise InvalidInput([Problem("Last-Event-ID", "it must be the id of an event of this stream")])
    return int(told)


def check_room(context: Context) -> None:
    """Refuse one more stream than there may be.

    Raises:
        QueueFull: that many are open.
    """
    if context.streams >= MOST_STREAMS:
        raise QueueFull("too many streams of events are open", retry_after=10.0)


@contextlib.contextmanager
def counted(context: Context) -> Iterator[None]:
    """One stream is open while the block runs."""
    context.streams += 1
    try:
        yield
    finally:
        context.streams -= 1


class EventStream(StreamingResponse):
    """Events until there are no more, the reader leaves, or the process shuts down; a reader may then ask another one.

    Args:
        context: of the server.
        events: is closed in any case.
        heartbeat_seconds: silence after which a comment is sent.

    Raises:
        QueueFull: too many are being read already.
    """

    def __init__(
        self, context: Context, events: AsyncIterator[Sent], *, heartbeat_seconds: float = HEARTBEAT_SECONDS
    ) -> None:
        check_room(context)
        self._context = context
        self._lines = _lines(context, events, heartbeat_seconds)
        super().__init__(self._lines, media_type=MEDIA_TYPE, headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer, as ASGI has it."""
        try:
            with counted(self._context):
                await super().__call__(scope, receive, send)
        finally:
            await self._lines.aclose()


async def _lines(
    context: Context, events: AsyncIterator[Sent], heartbeat_seconds: float
) -> AsyncGenerator[bytes, None]:
    closing: asyncio.Future[Any] = asyncio.ensure_future(context.draining.wait())
    coming: asyncio.Future[Any] | None = None
    try:
        yield b"retry: %d\n\n" % _RETRY_MS
        while not closing.done():
            coming = coming or asyncio.ensure_future(anext(events, None))
            await asyncio.wait(
                {coming, closing}, timeout=heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not coming.done():
                if not closing.done():
                    yield STILL_HERE
                continue
            sent: Sent | None = await coming
            coming = None
            if sent is None:
                return
            yield encode(sent)
        yield b": this process is shutting down\n\n"
    except ImagenError as error:
        # The answer has begun: an error can only be told inside of it.
        yield encode(Sent(event="error", data=msgspec.to_builtins(error_body(error))))
    finally:
        for task in (closing, coming):
            if task is not None:
                task.cancel()
        if coming is not None:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await coming
        if (close := getattr(events, "aclose", None)) is not None:
            await close()
