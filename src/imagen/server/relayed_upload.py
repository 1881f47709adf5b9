"""Files that come here and go on to the service: how much may come from whom, and what the service says to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from imagen.errors import BackendBroken, BackendUnauthenticated, GarbledResponse, InvalidInput, Problem
from imagen.ports import Reply
from imagen.server.access import Visitor
from imagen.server.bodies import MOST_BYTES_OF_STRANGERS, STRANGERS_SECONDS, BodyTooLarge
from imagen.server.context import Context
from imagen.server.durable import check_account

FIRST_REFUSAL = 300
_MOST_OF_AN_ANSWER = 1024 * 1024
_UNAUTHENTICATED, _FIRST_OF_CALLER, _FIRST_FAULT = 401, 400, 500
_PASSES = frozenset({408, 429})
"""Refusals that another try may mend."""


async def room_of(context: Context, visitor: Visitor, *, most: int) -> tuple[int, float | None]:
    """How many bytes a visitor may send, and in what time: less who has shown nothing.

    Raises:
        Unauthenticated: the caller's own token is none.
    """
    if visitor.own_token:
        await check_account(context, visitor)
    elif visitor.is_stranger:
        return MOST_BYTES_OF_STRANGERS, STRANGERS_SECONDS
    return most, None


async def up_to(
    most: int, pieces: AsyncIterator[bytes], *, hint: str | None = None
) -> AsyncGenerator[bytes, None]:
    """The pieces of a body, while there is room for them.

    Raises:
        BodyTooLarge: there is none any more.
    """
    count = 0
    async for piece in pieces:
        count += len(piece)
        if count > most:
            raise too_large(most, hint=hint)
        yield piece


def too_large(most: int, *, hint: str | None = None) -> BodyTooLarge:
    """The error for more than `most` bytes."""
    return BodyTooLarge(f"the body is larger than {most >> 20} MiB", hint=hint)


async def read_reply(reply: Reply) -> bytes:
    """The answer of the service to an upload, which is closed in any case.

    Raises:
        GarbledResponse: it is longer than any.
    """
    content = bytearray()
    try:
        async for piece in reply.pieces:
            content += piece
            if len(content) > _MOST_OF_AN_ANSWER:
                raise GarbledResponse("the service answered an upload with more than a file")
    finally:
        await reply.close()
    return bytes(content)


def read_file(content: bytes) -> dict[str, Any]:
    """The file that an answer tells of.

    Raises:
        GarbledResponse: it tells of none.
    """
    try:
        file = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        file = None
    if not isinstance(file, dict) or not isinstance(file.get("id"), str):
        raise GarbledResponse("the service answered an upload with something that is no file")
    return file


def check_taken(status: int, field: str) -> None:
    """Refuse, as what it is, what the service did not take.

    Args:
        status: of its answer.
        field: in which the file was given.

    Raises:
        BackendUnauthenticated: the token is not good.
        InvalidInput: the file is not, for example as it is too large.
        BackendBroken: another try may do.
    """
    if status < FIRST_REFUSAL:
        return
    if status == _UNAUTHENTICATED:
        raise BackendUnauthenticated("401: the Replicate API token is missing or wrong")
    if _FIRST_OF_CALLER <= status < _FIRST_FAULT and status not in _PASSES:
        raise InvalidInput([Problem(field, f"the service did not take the file ({status})")])
    raise BackendBroken(f"{status}: the service did not take {field}")
