"""One prediction, taken on durably: asked for now, looked at later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.batch import Batch, Item, promised_id
from imagen.domain.key import check_route
from imagen.domain.money import Usd, to_dollars
from imagen.domain.prediction import Prediction, Tier
from imagen.errors import InvalidRequest, Unauthenticated
from imagen.server.access import Visitor, scope_of, sight_of
from imagen.server.answers import json_answer
from imagen.server.batch_shapes import TroubleState, item_state, remembered, trouble_state
from imagen.server.context import Context
from imagen.server.durable import accept_single, known, read_webhook
from imagen.server.generate import GenerateBody
from imagen.server.idempotency import PARAMETER, REPLAYED, read_mark
from imagen.server.lineage import lineage_of
from imagen.server.operation import Handler, Operation, Parameter
from imagen.server.replicate import creating, finding
from imagen.server.replicate.predictions import in_words
from imagen.server.replicate.problems import problem_answer
from imagen.server.results import GeneratedFile, cost_header, tells_cost
from imagen.service.batches import View
from imagen.service.notices import COMPLETED, START

EVENTS = (START, COMPLETED)
"""Of which a caller may be told at an address of theirs."""
_OPTIONS = frozenset({"webhook", "webhook_events_filter"})
_NOT_FOUND = 404

Standing = Literal["queued", "starting", "processing", "succeeded", "failed", "canceled", "expired"]


class PredictionBody(GenerateBody, frozen=True, kw_only=True):
    """A wish that is made whatever becomes of the caller: the body of `/generate`, and these fields.

    Attributes:
        store: keep the pictures, so that they outlive the hour.
        webhook: an https address to which events are delivered.
        webhook_events_filter: `start`, `completed`; `completed` when left out.
    """

    store: bool = True
    webhook: str | None = None
    webhook_events_filter: list[str] | None = None


class PredictionUrls(msgspec.Struct, kw_only=True):
    """Where more is told of a prediction.

    Attributes:
        get: how it stands; cancel: stops it, asked with POST.
    """

    get: str
    cancel: str


class PredictionState(msgspec.Struct, kw_only=True):
    """How a prediction stands.

    Attributes:
        id: `pred_…`, good for `imagen predictions show`.
        status: `queued`, `starting` and `processing` can change; the others are ends. `expired`: it was made and paid
            for, but its pictures were gone before they were fetched.
        model_name: as it was asked for; model: as it is run, with a version where one was pinned.
        prompt: what the picture shall show.
        output_filename: as it was asked for, or as it was chosen.
        files: its pictures, in order.
        error: what went wrong, a sentence for people; code: the stable name of the error; hint: what to do next.
        reason: why it was stopped until somebody mends that.
        trouble: what it waits for just now.
        replicate_id: Replicate's id, once it is known.
        seed: with which the same picture can be made again.
        cost_usd: what it cost; null while that is open, and where the price is not known.
        quoted_usd: what it was likely to cost, told before; null where the price is not known.
        budget: the budget that had no room for it; quote_usd: the most that it would have cost; quote: the same; renews_at:
            when that budget renews. Of other errors there are none of these.
        charged: whether it is billed; null while that is open, or when nobody can tell.
        attempts: how often it was begun.
        created_at: when it was accepted; ended_at: when it ended.
        webhook: where its events are delivered; webhook_events_filter: which.
        batch_id: the batch that it is part of; null when it was asked for by itself.
        urls: where it is looked at.
        preset: the named set of inputs that was laid under the wish.
        left_out: what the preset offered, or was taken over from another picture, and this model does not take.
        tier: `preview`, or `final` of one; null for all others.
        parent: of a final, the prediction that it was made of.
        draft: what the previews of one wish, and the finals made of them, have in common.
        saved_usd: of a final, what as many finals as there were previews would have cost more; null where a price is not
            known.
    """

    id: str
    status: Standing
    model_name: str
    model: str
    prompt: str
    output_filename: str
    files: list[GeneratedFile]
    error: str | None
    code: str | None
    hint: str | None
    reason: str | None
    trouble: TroubleState | None
    replicate_id: str | None
    seed: int | None
    cost_usd: float | None
    quoted_usd: float | None
    charged: bool | None
    attempts: int
    created_at: datetime
    ended_at: datetime | None
    webhook: str | None
    webhook_events_filter: list[str]
    batch_id: str | None
    urls: PredictionUrls
    budget: str | UnsetType | None = UNSET
    quote_usd: float | UnsetType | None = UNSET
    quote: float | UnsetType | None = UNSET
    renews_at: datetime | UnsetType | None = UNSET
    saved_usd: float | None = None
    preset: str | None = None
    left_out: list[str] = []
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None


def _by_either_face(handler: Handler) -> Handler:
    """Who is not let in is told so in Replicate's words where they have shown a bearer, as its clients do."""

    @wraps(handler)
    async def told(context: Context, request: Request) -> Response:
        try:
            return await handler(context, request)
        except Unauthenticated as error:
            if "imagen.caller" in request.scope or "authorization" not in request.headers:
                raise
            return problem_answer(error)

    return told


@tells_cost
@_by_either_face
async def create_prediction(context: Context, request: Request) -> Response:
    """Take one on, in our words or in Replicate's. When the answer is sent it is going to be made."""
    visitor, fields = await context.arrive(request, any_key=True)
    if creating.is_call(fields):
        return await in_words(context, request, visitor, partial(creating.create, fields=fields))
    check_route(visitor.routes, request.scope["imagen.route"])
    webhook = read_webhook(
        context,
        fields.get("webhook"),
        fields.get("webhook_events_filter"),
        allowed=EVENTS,
        default=(COMPLETED,),
    )
    mark = read_mark(request, fields, scope=scope_of(visitor), now=context.app.clock.now())
    batch = await known(context, visitor, mark)
    headers = {} if batch is None else dict(REPLAYED)
    if batch is None:
        given = {name: value for name, value in fields.items() if name not in _OPTIONS}
        kept = given if given.get("store") is not None else given | {"store": True}
        batch = await accept_single(context, request, visitor, kept, mark=mark, webhook=webhook)
    return await accepted(context, request, batch, headers=headers)


async def accepted(
    context: Context, request: Request, batch: Batch, *, headers: Mapping[str, str]
) -> Response:
    """The answer when one prediction was taken on as `batch`."""
    (item,) = await context.app.batches.items(batch.id, limit=1)
    state = _accepted(context, request, batch, item)
    told = {**headers, **cost_header(None), "location": state.urls.get}
    return json_answer(state, status=202, headers=told)


@_by_either_face
async def show_prediction(context: Context, request: Request) -> Response:
    """How it stands."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    if (told := await _in_their_words(context, request, visitor, finding.shown)) is not None:
        return told
    check_route(visitor.routes, request.scope["imagen.route"])
    return await _found(context, request, visitor)


@_by_either_face
async def cancel_prediction(context: Context, request: Request) -> Response:
    """Stop it, upstream too. One that has ended stays as it is."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    if (told := await _in_their_words(context, request, visitor, finding.canceled)) is not None:
        return told
    check_route(visitor.routes, request.scope["imagen.route"])
    view, _, prediction = await context.app.batches.of_prediction(
        request.path_params["prediction_id"], scope=sight_of(visitor)
    )
    if view.batch.total == 1:
        await context.app.batches.cancel(view.batch.id)
    elif prediction is None:
        raise InvalidRequest(
            "it has not been begun, and is part of a batch",
            hint=f"Cancel {view.batch.id}, or wait until it runs.",
        )
    else:
        await context.app.gateway.cancel(prediction.id)
    return await _found(context, request, visitor)


async def _in_their_words(
    context: Context,
    request: Request,
    visitor: Visitor,
    handler: Callable[[Context, Request, Visitor], Awaitable[Response]],
) -> Response | None:
    """What Replicate's face answers; None for what is told in our words, as is also that nobody knows of it."""
    if not await finding.is_theirs(context, visitor, request.path_params["prediction_id"]):
        return None
    answer = await in_words(context, request, visitor, handler)
    return None if answer.status_code == _NOT_FOUND else answer


async def _found(context: Context, request: Request, visitor: Visitor) -> Response:
    """The prediction that a path names, if the caller may see it, as an answer with what it cost.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    view, item, prediction = await context.app.batches.of_prediction(
        request.path_params["prediction_id"], scope=sight_of(visitor)
    )
    state = _state(context, request, view, item, prediction)
    if prediction is not None and prediction.tier == "final" and prediction.status.terminal:
        spent = await context.app.drafts.spent(prediction)
        state.saved_usd = None if spent is None else to_dollars(spent.saved)
    return json_answer(state, headers=cost_header(_cost(item, prediction)))


def _cost(item: Item, prediction: Prediction | None) -> Usd | None:
    """What it has cost, all attempts together; None while that is open, or nobody knows the price."""
    if item.status.terminal:
        return item.cost
    return None if prediction is None else Usd.total_or_none([item.cost, prediction.spent])


def _state(
    context: Context, request: Request, view: View, item: Item, prediction: Prediction | None
) -> PredictionState:
    told = item_state(context, request, item)
    batch = view.batch
    return PredictionState(
        id=promised_id(batch, item),
        status=_standing(item, prediction),
        model_name=remembered(item).model_name,
        model=told.model,
        prompt=told.prompt,
        output_filename=told.output_filename,
        files=told.files,
        error=told.error,
        code=told.code,
        hint=told.hint,
        reason=batch.reason,
        trouble=None if view.trouble is None else trouble_state(view.trouble),
        replicate_id=None if prediction is None else prediction.upstream_id,
        seed=told.seed,
        cost_usd=to_dollars(_cost(item, prediction)),
        quoted_usd=told.quoted_usd,
        charged=told.charged,
        attempts=told.attempts,
        created_at=batch.created_at,
        ended_at=told.ended_at,
        webhook=batch.webhook,
        webhook_events_filter=list(batch.webhook_events),
        batch_id=None if batch.kind == "single" else batch.id,
        urls=_urls(context, request, promised_id(batch, item)),
        budget=told.budget,
        quote_usd=told.quote_usd,
        quote=told.quote,
        renews_at=told.renews_at,
        saved_usd=_likely_saving(item),
        **lineage_of(told, told.left_out),
    )


def _accepted(context: Context, request: Request, batch: Batch, item: Item) -> PredictionState:
    """As it stood when it was accepted, whenever that is asked for: repeats get the same answer."""
    told = item_state(context, request, item)
    return PredictionState(
        id=promised_id(batch, item),
        status="queued",
        model_name=remembered(item).model_name,
        model=told.model,
        prompt=told.prompt,
        output_filename=told.output_filename,
        files=[],
        error=None,
        code=None,
        hint=None,
        reason=None,
        trouble=None,
        replicate_id=None,
        seed=None,
        cost_usd=None,
        quoted_usd=told.quoted_usd,
        charged=None,
        attempts=1,
        created_at=batch.created_at,
        ended_at=None,
        webhook=batch.webhook,
        webhook_events_filter=list(batch.webhook_events),
        batch_id=None,
        urls=_urls(context, request, promised_id(batch, item)),
        saved_usd=_likely_saving(item),
        **lineage_of(told, told.left_out),
    )


def _likely_saving(item: Item) -> float | None:
    """Of a final, what choosing was likely to save, as it was reckoned when it was accepted."""
    saved = remembered(item).saved_micros
    return None if saved is None else to_dollars(Usd(saved))


def _standing(item: Item, prediction: Prediction | None) -> Standing:
    if item.status.terminal:
        ended: Mapping[str, Standing] = {
            "succeeded": "succeeded",
            "failed": "failed",
            "canceled": "canceled",
            "expired": "expired",
        }
        return ended[item.status]
    if prediction is None or prediction.sent_at is None:
        return "queued"
    # One that has ended at the service goes on here until its pictures are fetched.
    return "starting" if prediction.status in {"queued", "starting"} else "processing"


def _urls(context: Context, request: Request, prediction_id: str) -> PredictionUrls:
    base = context.url_of(request, f"/predictions/{prediction_id}")
    return PredictionUrls(get=base, cancel=f"{base}/cancel")


_TAG = "predictions"
_ID = Parameter(name="prediction_id", place="path", description="The `id` of the prediction.")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/predictions",
        handler=create_prediction,
        summary="Take on one prediction, to be made whatever becomes of the caller",
        description=(
            "The fields are those of `/generate`. The answer comes at once; how it goes is told at `urls.get`, and to "
            "`webhook`. What was accepted outlives restarts."
        ),
        tag=_TAG,
        access="caller",
        any_query=True,  # as Replicate's clients may ask it too
        body=PredictionBody,
        answers={202: PredictionState},
        errors=(401, 402, 403, 404, 409, 429, 502, 503),
        parameters=(PARAMETER,),
        example={
            "model_name": "flux-dev",
            "prompt": "A serene mountain landscape at sunset",
            "aspect_ratio": "16:9",
            "webhook": "https://shop.example/hooks/imagen",
        },
    ),
    Operation(
        method="GET",
        path="/predictions/{prediction_id}",
        handler=show_prediction,
        summary="Tell how a prediction stands",
        description="One that was asked for here, or with an `Idempotency-Key`, or as a task of a batch.",
        tag=_TAG,
        access="caller",
        any_query=True,  # as Replicate's clients may ask it too
        answers={200: PredictionState},
        parameters=(_ID,),
        errors=(404, 503),
    ),
    Operation(
        method="POST",
        path="/predictions/{prediction_id}/cancel",
        handler=cancel_prediction,
        summary="Cancel a prediction",
        description="It is stopped at the service too, or never bought. What has ended stays as it is.",
        tag=_TAG,
        access="caller",
        any_query=True,  # as Replicate's clients may ask it too
        answers={200: PredictionState},
        parameters=(_ID,),
        errors=(404, 502, 503),
    ),
)
