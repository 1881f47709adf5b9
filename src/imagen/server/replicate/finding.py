"""Predictions by their ids, in the words of Replicate: find, show and cancel them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.batch import Batch, Item
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction
from imagen.errors import (
    InvalidRequest,
    NotFound,
)
from imagen.server.access import Visitor, owns, sight_of
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.headers import PREDICTION_ID, adapted, wants_exact
from imagen.server.replicate.problems import NOT_FOUND
from imagen.server.replicate.relay import pass_on
from imagen.server.results import cost_header
from imagen.service.batches import ItemEnded
from imagen.service.replicate_shapes import (
    Known,
    Shaped,
    is_of_face,
    shape,
    standing,
)

_OUR_ID = re.compile(r"pred_[0-9a-z]{26}")
_THEIR_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CANCEL_SECONDS = 5.0
"""How long an answer waits for what was canceled to have ended."""


async def show(context: Context, request: Request) -> Response:
    """`GET /predictions/{prediction_id}`."""
    visitor = await context.enter(request, leaving=True)
    return await shown(context, request, visitor)


async def shown(context: Context, request: Request, visitor: Visitor) -> Response:
    """How a prediction stands; one that is none of ours is asked for at the service, on its whole account."""
    wanted = request.path_params["prediction_id"]
    found = await find(context, visitor, wanted)
    if found is None:
        return await _elsewhere(context, request, visitor, wanted)
    return await answered(context, request, visitor, found)


async def cancel(context: Context, request: Request) -> Response:
    """`POST /predictions/{prediction_id}/cancel`."""
    visitor = await context.enter(request, leaving=True)
    return await canceled(context, request, visitor)


async def canceled(context: Context, request: Request, visitor: Visitor) -> Response:
    """Stop a prediction, upstream too. What has ended is answered as it is."""
    wanted = request.path_params["prediction_id"]
    found = await find(context, visitor, wanted)
    if found is None:
        return await _elsewhere(context, request, visitor, wanted, what="/cancel")
    if not standing(found).terminal:
        await _stop(context, visitor, found)
        found = await find(context, visitor, wanted) or found
    return await answered(context, request, visitor, found)


async def _stop(context: Context, visitor: Visitor, found: Known) -> None:
    """Cancel it, and wait a moment for its end."""
    batch, prediction = found.batch, found.prediction
    if batch is not None and batch.total == 1 and batch.ended_at is None:
        await context.app.batches.cancel(batch.id)
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                await _ended(context, batch)
        except TimeoutError:
            return
        return
    if prediction is None:
        raise InvalidRequest(
            "it has not been begun, and is part of a batch",
            hint="Cancel the batch, or wait until it runs.",
        )
    backend = visitor.backend if visitor.own_token else None
    await context.app.gateway.cancel(prediction.id, backend=backend)


async def _ended(context: Context, batch: Batch) -> None:
    async for news in context.app.batches.events(batch.id):
        if isinstance(news, ItemEnded):
            return


async def find(context: Context, visitor: Visitor | None, wanted: str) -> Known | None:
    """A prediction of whichever face.

    Args:
        context: of the server.
        visitor: who may see it or not; None for somebody who may.
        wanted: our id, or the service's.

    Returns:
        What is known of it; None when there is none, or it is somebody else's.
    """
    row = await row_of(context, wanted)
    called = wanted if row is None else row.id
    place = (await context.app.batches.places([called])).get(called)
    if place is None:
        if row is None or (visitor is not None and not owns(visitor, row)):
            return None
        return Known(prediction=context.app.live.newer(row))
    batch, item = place
    if visitor is not None and not sees(visitor, batch):
        return None
    if visitor is not None and visitor.token is not None and not context.app.batches.has_token(batch):
        # The process that had it has ended: whoever brings it again lets the work go on.
        await context.app.batches.lend_token(batch, visitor.token)
    return await _in_place(context, batch, item, called, row)


def sees(visitor: Visitor, batch: Batch) -> bool:
    """Whether durable work is a visitor's to look at."""
    return sight_of(visitor) in {None, batch.scope}


async def is_theirs(context: Context, visitor: Visitor, wanted: str) -> bool:
    """Whether a prediction whose path is ours too is told in the words of Replicate.

    It is where it was asked for in them, and where its id is the service's, of which our own words know nothing.
    """
    found = await find(context, visitor, wanted)
    if found is not None and found.batch is not None:
        return is_of_face(found.batch) or not _OUR_ID.fullmatch(wanted)
    return not _OUR_ID.fullmatch(wanted) and (found is not None or visitor.owns_account)


async def _in_place(context: Context, batch: Batch, item: Item, called: str, row: Prediction | None) -> Known:
    """What is known of a prediction of durable work: of an earlier attempt, how it stands with the present one."""
    if called not in item.predictions:
        row, called = await row_of(context, item.predictions[0]), item.predictions[0]
    elif item.status.terminal and not (row and row.status.terminal):
        row = await row_of(context, called)  # it has ended between the two looks
    newest = None if row is None else context.app.live.newer(row)
    return Known(batch=batch, item=item, prediction=newest, called=called)


async def row_of(context: Context, wanted: str) -> Prediction | None:
    """What is written down under exactly that id."""
    if not _THEIR_ID.fullmatch(wanted):
        return None
    try:
        found = await context.app.store.get(wanted)
    except NotFound:
        return None
    return found if wanted in {found.id, found.upstream_id} else None


async def _elsewhere(
    context: Context, request: Request, visitor: Visitor, wanted: str, *, what: str = ""
) -> Response:
    """A prediction that we did not make: the service knows it, where the visitor may see the whole account.

    Raises:
        NotFound: for whoever may see only their own, and for what is an id of ours.
    """
    if not visitor.owns_account or _OUR_ID.fullmatch(wanted) or not _THEIR_ID.fullmatch(wanted):
        raise NotFound(NOT_FOUND)
    path = f"/predictions/{quote(wanted, safe='')}{what}"
    return await pass_on(context, request, visitor, path=path)


async def answered(
    context: Context,
    request: Request,
    visitor: Visitor,
    found: Known,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    held: bool = False,
) -> Response:
    """A prediction as an answer, perhaps one that was held open."""
    shaped = await shaped_for(context, request, visitor, found, looks=True, held=held)
    told = {
        **(headers or {}),
        **await context.rates.headers(visitor.backend.account, creates=status != 200),
        **cost_header(_cost(found)),
        PREDICTION_ID: found.id,
        **adapted(shaped.adapted),
    }
    if status != 200:
        told["location"] = shaped.body["urls"]["get"]
    return json_answer(shaped.body, status=status, headers=told)


async def shaped_for(
    context: Context, request: Request, visitor: Visitor, found: Known, *, looks: bool, held: bool = False
) -> Shaped:
    """The object that shows a prediction.

    Args:
        context: of the server.
        request: of the reader.
        visitor: who that is.
        found: what is known of it.
        looks: whether the service is asked for an output that is not here.
        held: it answers a create that was held open.
    """
    base = context.url_of(request, "")
    backend = visitor.backend if visitor.own_token else None
    output = await context.app.outputs.find(found, base=base, looks=looks, backend=backend)
    now, exact = context.app.clock.now(), wants_exact(request)
    return shape(found, output, base=base, now=now, exact=exact, held=held)


def _cost(found: Known) -> Usd | None:
    """What it has cost; None while that is open, or nobody knows the price."""
    if found.item is not None and found.item.status.terminal:
        return found.item.cost
    return None if found.prediction is None else found.prediction.spent
