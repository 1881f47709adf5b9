"""Reading what a caller sends: bounded, and with errors that name the field."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from imagen.decoding import convert
from imagen.domain.plain_words import place_of, what_is_allowed
from imagen.errors import InvalidInput, InvalidRequest, Problem, QueueFull

T = TypeVar("T")
MOST_BYTES = 64 * 1024 * 1024
"""Room for a batch of ten thousand tasks, or for pictures inside a request."""
MOST_BYTES_OF_STRANGERS = 16 * 1024 * 1024
"""Of one of those who have shown nothing yet."""
MOST_BYTES_OF_ALL_STRANGERS = 128 * 1024 * 1024
STRANGERS_SECONDS = 60.0
"""For the whole body of one of them."""
MOST_UNREAD_BYTES = 128 * 1024 * 1024
_UNREAD_SECONDS = 10.0
"""So much of a body, and for so long, is thrown away behind an answer: many clients look for none before they have sent all."""
_LONGEST_SECONDS = 3600.0
_MOST_DIGITS = 18
SILENCE_SECONDS = 30.0
"""Who sends nothing for so long in the middle of a body is not waited for."""
MOST_GROUPS, MOST_VALUES, MOST_NAMES = 200_000, 2_000_000, 500_000
"""Objects and lists, commas, and colons: read into memory, some bytes of JSON become a hundred, and names take longest."""
_FILES_TOO = "/batches"
_HINT = "Send a JSON object with Content-Type: application/json."
_FILES_HINT = "Send a JSON object with Content-Type: application/json, JSONL with application/x-ndjson, or CSV with text/csv."


class BodyTooLarge(InvalidRequest):
    """A body is larger than what is taken."""


class Room:
    """So many bytes that all those who have shown nothing yet may have sent and not been answered for, together."""

    def __init__(self, most_bytes: int = MOST_BYTES_OF_ALL_STRANGERS) -> None:
        self._left = most_bytes

    def take(self, count: int) -> None:
        """Have room for `count` more.

        Raises:
            QueueFull: there is none.
        """
        if count > self._left:
            raise QueueFull("too much is being sent without a key at the moment", retry_after=5.0)
        self._left -= count

    def give_back(self, count: int) -> None:
        """Those bytes are gone."""
        self._left += count


async def read_body(
    request: Request, *, limit_bytes: int = MOST_BYTES, room: Room | None = None, seconds: float | None = None
) -> bytes:
    """The whole body.

    Args:
        request: whose body.
        limit_bytes: how large it may be.
        room: that its bytes are taken from while they come.
        seconds: how long all of it may take.

    Raises:
        InvalidRequest: it is larger than `limit_bytes`, or its end did not come.
        QueueFull: there is no room.
    """
    if (told := told_length(request)) is not None and told > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async for chunk in read_pieces(request, seconds=seconds):
            if room is not None:
                room.take(len(chunk))
            body += chunk
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
    finally:
        if room is not None:
            room.give_back(len(body))
    return bytes(body)


def told_length(request: Request) -> int | None:
    """The bytes of a body by its header; None where that tells none."""
    return _length_in(request.headers.get("content-length", ""))


def _length_in(told: str) -> int | None:
    return int(told[:_MOST_DIGITS]) if told.isascii() and told.isdigit() else None


def not_for_ever(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """A connection that ends soon after an answer that came before the end of a body that may have none.

    The server would read what is left of it for as long as it comes, to find the next request behind it.

    Args:
        scope: of one request, as ASGI has it.
        receive: what comes with it.
        send: what goes back.
    """
    headers = dict(scope["headers"])
    length = _length_in(headers.get(b"content-length", b"").decode("latin-1"))
    if b"transfer-encoding" not in headers and (length or 0) <= MOST_UNREAD_BYTES:
        return receive, send
    ended = closes = False

    async def received() -> Message:
        nonlocal ended
        message = await receive()
        ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def answered(message: Message) -> None:
        nonlocal closes
        if message["type"] == "http.response.start" and not ended:
            closes = True
            others = [each for each in message["headers"] if each[0].lower() != b"connection"]
            message = {**message, "headers": [*others, (b"connection", b"close")]}
        elif closes and not message.get("more_body", False):
            await send({**message, "more_body": True})
            await throw_away()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    async def throw_away() -> None:
        left = MOST_UNREAD_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNREAD_SECONDS):
                while not ended and left > 0:
                    left -= len((await received()).get("body", b""))

    return received, answered


async def read_pieces(request: Request, *, seconds: float | None = None) -> AsyncIterator[bytes]:
    """The body as it comes.

    Args:
        request: whose body.
        seconds: how long all of it may take.

    Raises:
        InvalidRequest: its end did not come.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + (seconds or _LONGEST_SECONDS)
    pieces = request.stream()
    try:
        while True:
            async with asyncio.timeout_at(min(loop.time() + SILENCE_SECONDS, ends)):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece
    except ClientDisconnect:
        raise InvalidRequest("the request broke off before its end") from None
    except TimeoutError:
        raise InvalidRequest("the rest of the body did not come in time") from None


async def read_object(
    request: Request, *, limit_bytes: int = MOST_BYTES, room: Room | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidRequest: it is none.
    """
    body = await read_body(request, limit_bytes=limit_bytes, room=room, seconds=seconds)
    value = _decoded(body, files_too=request.url.path.endswith(_FILES_TOO))
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


async def read_json(request: Request, kind: type[T]) -> T:
    """The body as a value of `kind`; an empty body is an empty object.

    Raises:
        InvalidInput: a field is missing, unknown or of the wrong type.
    """
    body = await read_body(request, limit_bytes=1024 * 1024)
    return to_value(_decoded(body or b"{}"), kind)


def to_value(found: Any, kind: type[T]) -> T:
    """JSON as a value of `kind`.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    try:
        return convert(found, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput([Problem(place_of(error) or "body", what_is_allowed(error, kind))]) from None


def check_parts(body: bytes) -> None:
    """Refuse JSON, in one piece or in lines, that would take far more memory than its bytes.

    Raises:
        InvalidRequest: it is of too many parts.
    """
    groups, values, names = body.count(b"{") + body.count(b"["), body.count(b","), body.count(b":")
    if groups > MOST_GROUPS or values > MOST_VALUES or names > MOST_NAMES:
        raise InvalidRequest(
            f"the body has more than {MOST_GROUPS:,} objects and lists, {MOST_VALUES:,} values or {MOST_NAMES:,} names",
            hint="Send it as several smaller ones.",
        )


def _decoded(body: bytes, *, files_too: bool = False) -> Any:
    """JSON. `files_too`: what is none may be a file whose type was not told.

    Raises:
        InvalidRequest: it is none, or of too many parts.
    """
    check_parts(body)
    try:
        with _uncollected():
            return msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        if "out of range" in str(error):
            raise InvalidRequest("the body has a number that is too large") from None
        if "surrogate" in str(error):
            raise InvalidRequest(
                "the body has half of a character (\\ud800 to \\udfff without the other half), which is no text"
            ) from None
        raise InvalidRequest("the body is not valid JSON", hint=_FILES_HINT if files_too else _HINT) from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for meanwhile.

    Reading makes many objects and no garbage. To look through all that the process holds again and again while they are
    made takes ten times as long as making them, and nobody else is served meanwhile.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _too_large(limit_bytes: int) -> InvalidRequest:
    return BodyTooLarge(f"the body is larger than {limit_bytes >> 20} MiB")
