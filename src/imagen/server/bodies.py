"""Reading what a caller sends: bounded, and with errors that name the field."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from imagen.errors import InvalidInput, InvalidRequest, Problem, QueueFull

T = TypeVar("T")
MOST_BYTES = 64 * 1024 * 1024
"""Room for a batch of ten thousand tasks, or for pictures inside a request."""
MOST_BYTES_OF_STRANGERS = 16 * 1024 * 1024
"""Of one of those who have shown nothing yet."""
MOST_BYTES_OF_ALL_STRANGERS = 128 * 1024 * 1024
STRANGERS_SECONDS = 60.0
"""For the whole body of one of them."""
_LONGEST_SECONDS = 3600.0
SILENCE_SECONDS = 30.0
"""Who sends nothing for so long in the middle of a body is not waited for."""
MOST_GROUPS, MOST_VALUES = 200_000, 2_000_000
"""Objects and lists, and commas: read into memory, some bytes of JSON become a hundred."""
_LONGEST_SHOWN = 200


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
    told = request.headers.get("content-length", "")
    if told.isdigit() and (len(told) > 12 or int(told) > limit_bytes):
        raise _too_large(limit_bytes)
    body = bytearray()
    loop = asyncio.get_running_loop()
    ends = loop.time() + (seconds or _LONGEST_SECONDS)
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as patience:
            async for chunk in request.stream():
                if room is not None:
                    room.take(len(chunk))
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
                patience.reschedule(min(loop.time() + SILENCE_SECONDS, ends))
    except ClientDisconnect:
        raise InvalidRequest("the request broke off before its end") from None
    except TimeoutError:
        raise InvalidRequest("the rest of the body did not come in time") from None
    finally:
        if room is not None:
            room.give_back(len(body))
    return bytes(body)


async def read_object(
    request: Request, *, limit_bytes: int = MOST_BYTES, room: Room | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidRequest: it is none.
    """
    value = _decoded(await read_body(request, limit_bytes=limit_bytes, room=room, seconds=seconds))
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
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$.") or "body"
        raise InvalidInput([Problem(field, text[:1].lower() + text[1:_LONGEST_SHOWN])]) from None


def check_parts(body: bytes) -> None:
    """Refuse JSON, in one piece or in lines, that would take far more memory than its bytes.

    Raises:
        InvalidRequest: it is of too many parts.
    """
    if body.count(b"{") + body.count(b"[") > MOST_GROUPS or body.count(b",") > MOST_VALUES:
        raise InvalidRequest(
            f"the body has more than {MOST_GROUPS:,} objects and lists, or {MOST_VALUES:,} values"
        )


def _decoded(body: bytes) -> Any:
    """JSON.

    Raises:
        InvalidRequest: it is none, or of too many parts.
    """
    check_parts(body)
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the body is not valid JSON", hint="Send a JSON object with Content-Type: application/json."
        ) from None


def _too_large(limit_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"the body is larger than {limit_bytes >> 20} MiB")
