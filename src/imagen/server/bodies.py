"""Reading what a caller sends: bounded, and with errors that name the field."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from imagen.errors import InvalidInput, InvalidRequest, Problem

T = TypeVar("T")
MOST_BYTES = 64 * 1024 * 1024
"""Room for a batch of ten thousand tasks, or for pictures inside a request."""
MOST_BYTES_OF_STRANGERS = 16 * 1024 * 1024
"""Of those who have shown nothing yet."""
SILENCE_SECONDS = 30.0
"""Who sends nothing for so long in the middle of a body is not waited for."""
MOST_GROUPS, MOST_VALUES = 500_000, 2_000_000
"""Objects and lists, and commas: read into memory, some bytes of JSON become a hundred."""
_LONGEST_SHOWN = 200


async def read_body(request: Request, *, limit_bytes: int = MOST_BYTES) -> bytes:
    """The whole body.

    Raises:
        InvalidRequest: it is larger than `limit_bytes`, or its end did not come.
    """
    told = request.headers.get("content-length", "")
    if told.isdigit() and (len(told) > 12 or int(told) > limit_bytes):
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as patience:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
                patience.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)
    except ClientDisconnect:
        raise InvalidRequest("the request broke off before its end") from None
    except TimeoutError:
        raise InvalidRequest(f"nothing more of the body came for {SILENCE_SECONDS:g} seconds") from None
    return bytes(body)


async def read_object(request: Request, *, limit_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidRequest: it is none.
        InvalidInput: a name stands in it twice.
    """
    value = _decoded(await read_body(request, limit_bytes=limit_bytes))
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


async def read_json(request: Request, kind: type[T]) -> T:
    """The body as a value of `kind`; an empty body is an empty object.

    Raises:
        InvalidInput: a field is missing, unknown, told twice or of the wrong type.
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


def _decoded(body: bytes) -> Any:
    """JSON in which every name stands once: of two, nobody could say which one the caller meant.

    Raises:
        InvalidRequest: it is no JSON, or of too many parts.
        InvalidInput: a name stands twice.
    """
    if body.count(b"{") + body.count(b"[") > MOST_GROUPS or body.count(b",") > MOST_VALUES:
        raise InvalidRequest(
            f"the body has more than {MOST_GROUPS:,} objects and lists, or {MOST_VALUES:,} values"
        )
    try:
        value = msgspec.json.decode(body)
        # This reader is lenient and slow, the one above does not tell names that come twice.
        json.loads(body, object_pairs_hook=_each_once, parse_int=_nothing, parse_float=_nothing)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the body is not valid JSON", hint="Send a JSON object with Content-Type: application/json."
        ) from None
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise InvalidInput([Problem(name[:_LONGEST_SHOWN], "it is told twice")])
        names.add(name)


def _nothing(_: str) -> None:
    """A number that is not looked at."""


def _too_large(limit_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"the body is larger than {limit_bytes >> 20} MiB")
