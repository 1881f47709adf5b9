"""Reading what a caller sends: bounded, and with errors that name the field."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from imagen.errors import InvalidInput, InvalidRequest, Problem

T = TypeVar("T")
MOST_BYTES = 64 * 1024 * 1024
"""Room for a batch of ten thousand tasks, or for pictures inside a request."""


async def read_body(request: Request, *, limit_bytes: int = MOST_BYTES) -> bytes:
    """The whole body.

    Raises:
        InvalidRequest: it is larger than `limit_bytes`, or the caller left before its end.
    """
    told = request.headers.get("content-length", "")
    if told.isdigit() and (len(told) > 12 or int(told) > limit_bytes):
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
    except ClientDisconnect:
        raise InvalidRequest("the request broke off before its end") from None
    return bytes(body)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        InvalidRequest: it is none.
    """
    body = await read_body(request)
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the body is not valid JSON", hint="Send a JSON object with Content-Type: application/json."
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


async def read_json(request: Request, kind: type[T]) -> T:
    """The body as a value of `kind`; an empty body is an empty object.

    Raises:
        InvalidInput: a field is missing, unknown or of the wrong type.
    """
    body = await read_body(request, limit_bytes=1024 * 1024)
    return to_value(_object(body), kind)


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
        raise InvalidInput([Problem(field, text[:1].lower() + text[1:])]) from None


def _object(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body or b"{}")
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the body is not valid JSON", hint="Send a JSON object with Content-Type: application/json."
        ) from None


def _too_large(limit_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"the body is larger than {limit_bytes >> 20} MiB")
