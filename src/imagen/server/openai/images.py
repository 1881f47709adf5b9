"""OpenAI's images API: generations and edits, for every model of the catalog and of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.money import Usd
from imagen.errors import InvalidRequest
from imagen.server.context import Context
from imagen.server.openai.answers import by_address, in_base64
from imagen.server.openai.errors import openai_error, refusal
from imagen.server.openai.job import Asked, understand
from imagen.server.openai.making import FailedError, fetch_pictures, order_for
from imagen.server.openai.stream import streamed
from imagen.server.openai.uploads import read_form, read_json
from imagen.server.openai.wish import read_texts, read_wish
from imagen.server.operation import Operation
from imagen.server.results import Turn, cost_told_by
from imagen.server.uploads import FORM_DATA, media_type

_CREDENTIALS = "credentials"
"""Belongs to this gateway, and is read where callers are let in."""


_tells_cost = cost_told_by(lambda error: refusal(error, cost=Usd(0), told=True))


@_tells_cost
async def generations(context: Context, request: Request) -> Response:
    """Make pictures of words."""
    visitor, fields = await context.arrive(request)
    said = {name: value for name, value in fields.items() if name != _CREDENTIALS}
    wish, extras = read_wish(said)
    return await _answer(context, request, Asked(visitor=visitor, wish=wish, extras=extras, said=said))


@_tells_cost
async def edits(context: Context, request: Request) -> Response:
    """Make pictures of words and pictures; both come as a form, or as JSON with addresses."""
    if media_type(request) != FORM_DATA:
        visitor, fields = await context.arrive(request)
        given = await asyncio.to_thread(read_json, fields)
        wish, extras = read_wish(given.rest)
        asked = Asked(visitor=visitor, wish=wish, extras=extras, given=given)
        return await _answer(context, request, asked)
    visitor = await context.enter(request)
    async with read_form(context, request, visitor) as given:
        wish, texts = read_texts(given.rest)
        asked = Asked(visitor=visitor, wish=wish, extras=dict(texts), as_text=True, given=given)
        return await _answer(context, request, asked)


async def variations(context: Context, request: Request) -> Response:
    """Nothing that is made here, or by OpenAI any more."""
    await context.enter(request)
    raise InvalidRequest(
        "variations are not made, as no model here makes them without a prompt",
        hint="Send the picture to /v1/images/edits with a prompt that says what shall vary.",
    )


async def _answer(context: Context, request: Request, asked: Asked) -> Response:
    """Have it made, and tell what came of it."""
    job = await understand(context, request, asked)
    making = await order_for(context, request, job)
    try:
        if asked.wish.stream:
            return await streamed(context, request, job, making)
        made = await making(Turn())
        if not job.in_base64:
            return by_address(job, made)
        told, pictures = await fetch_pictures(context, request, job, made)
    except FailedError as failed:
        return refusal(
            failed.error, cost=failed.cost, told=True, headers=failed.headers, besides=failed.besides()
        )
    return in_base64(job, told, pictures)


def _operation(
    name: str, handler: Callable[[Context, Request], Awaitable[Response]], summary: str
) -> Operation:
    path = f"/images/{name}"
    answers: dict[int, Any] = {200: None}
    return Operation(
        method="POST",
        path=f"/v1{path}",
        aliases=(path,),
        handler=handler,
        summary=summary,
        tag="openai",
        access="caller",
        answers=answers,
        documented=False,
        tells=openai_error,
    )


OPERATIONS: tuple[Operation, ...] = (
    _operation("generations", generations, "Make pictures of words, as OpenAI's clients ask for them"),
    _operation("edits", edits, "Make pictures of pictures, as OpenAI's clients ask for them"),
    _operation("variations", variations, "Refused: no model makes variations"),
)
