"""`POST /generate`: one wish, its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.batch import Batch, Idempotency, ItemStatus
from imagen.domain.limits import Lane
from imagen.domain.money import Usd, to_dollars
from imagen.domain.prediction import Prediction, Tier
from imagen.errors import Draining, ImagenError, WaitTimeout
from imagen.server.access import Visitor, scope_of
from imagen.server.answers import json_answer
from imagen.server.batch_shapes import Remembered, error_of, item_files, remembered
from imagen.server.context import Context
from imagen.server.durable import accept_single, all_items, ended, known
from imagen.server.headers import PREDICTION_ID
from imagen.server.idempotency import PARAMETER, REPLAYED, read_mark
from imagen.server.lineage import lineage_of
from imagen.server.operation import Operation
from imagen.server.results import (
    HANDED_OVER,
    GeneratedFile,
    Turn,
    cache_header,
    cost_header,
    generated_files,
    refusal,
    tells_cost,
)
from imagen.server.wishes import Credentials, Wish, as_told, keeps, name_for, prepare_order, read_wish

_LOST = "It was sent and may be paid for: do not ask for it again; `imagen predictions show` tells what became of it."


class GenerateBody(Wish, frozen=True, kw_only=True):
    """A wish, with the model's own parameters beside these fields.

    Attributes:
        model_name: a name of the catalog such as `flux-dev`, or `owner/name[:version]`.
        prompt: what the picture shall show.
        output_filename: how the caller names it; an extension is kept, else it gets `.jpg`, and several get `_1`, `_2`, ….
        external_semaphore_id: a named limit to wait for.
        store: keep the pictures, so that they outlive the hour.
        timeout: seconds until the prediction must have ended.
        max_cost: US dollars; refuse before buying when it would cost more.
        cache: with a seed, or for a model without one, take pictures that were made before, and keep these; by default
            as the gateway is set.
        preset: a named set of inputs that holds where nothing is said here; it may name the model too.
        tier: `preview` has a cheap model make it, and keeps the wish for `POST /predictions/{prediction_id}/promote`.
        draft: a name for what the previews of one wish have in common, so that what choosing saves can be told; the
            answer tells the one that was chosen when none is given.
        credentials: a Replicate account of the caller's own, instead of a key.
    """

    credentials: Credentials | None = None


class GenerateAnswer(msgspec.Struct, kw_only=True):
    """The pictures of a wish.

    Attributes:
        output_filename: as it was given, or as it was chosen.
        generated_files: one for each picture, in order.
        external_semaphore_used: whether a named limit was waited for; `semaphore_id` says which.
        prediction_id: ours, good for `imagen predictions show`; replicate_id: Replicate's.
        seed: with which the same picture can be made again; null for models without one.
        cost_usd: what it cost; quoted_usd: what it was likely to cost, told before. Null where the price is not known.
        seconds: from sending it to seeing its end; predict_seconds: of those the model ran, as far as it is told.
        practice: true where the emulator painted it and no model was run.
        cached: true where the pictures are those of an equal request and nothing was bought; they cost nothing, and the
            seconds are those that it took to bring them.
        preset: the named set of inputs that was laid under the wish.
        left_out: what the preset offered, or was taken over from another picture, and this model does not take.
        tier: `preview`, or `final` of one; null for all others.
        parent: of a final, the prediction that it was made of.
        draft: what the previews of one wish, and the finals made of them, have in common.
        saved_usd: of a final, what as many finals as there were previews would have cost more; null where a price is not
            known.
    """

    success: bool
    model_name: str
    prompt: str
    output_filename: str
    generated_files: list[GeneratedFile]
    count: int
    external_semaphore_used: bool
    semaphore_id: str | None
    prediction_id: str
    replicate_id: str | None
    model: str
    version: str | None
    seed: int | None
    cost_usd: float | None
    quoted_usd: float | None
    seconds: float
    predict_seconds: float | None
    cached: bool = False
    saved_usd: float | None = None
    preset: str | None = None
    left_out: list[str] = []
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None
    practice: bool


@tells_cost
async def generate(context: Context, request: Request) -> Response:
    """Make the pictures of one wish; the answer comes when they are ready."""
    visitor, fields = await context.arrive(request)
    mark = read_mark(request, fields, scope=scope_of(visitor), now=context.app.clock.now())
    if mark is not None:
        return await _generate_once(context, request, visitor, fields, mark)
    wish, options = read_wish(fields, context.app.settings.presets)
    order = await prepare_order(context, visitor, wish, options, lane=Lane.INTERACTIVE)
    turn = Turn()
    try:
        (outcome,) = await context.stay(
            request, context.app.gateway.carry_out(order, observer=turn), goes_on=keeps(context, wish)
        )
    except Draining as error:
        if turn.prediction_id is None:
            raise
        lost = WaitTimeout(error.detail, prediction_id=turn.prediction_id, hint=HANDED_OVER)
        return refusal(lost, cost=None, headers=turn.headers())
    if outcome.error is not None:
        return _came_to_nothing(outcome.prediction, as_told(outcome.error, visitor), turn.headers())
    name = name_for(wish, context)
    files = generated_files(context, request, wish, outcome, name=name)
    note = Remembered(
        model_name=wish.model_name,
        output_filename=name,
        semaphore=wish.external_semaphore_id,
        left_out=order.left_out,
    )
    headers = turn.headers() | cache_header(outcome)
    return _answered(visitor, outcome.prediction, files, note, headers=headers)


async def _generate_once(
    context: Context, request: Request, visitor: Visitor, fields: dict[str, Any], mark: Idempotency
) -> Response:
    """The same for a request that may come again: taken on durably, and answered from what was written down."""
    batch = await known(context, visitor, mark)
    replayed = batch is not None
    if batch is None:
        batch = await accept_single(context, request, visitor, fields, mark=mark, outlives=False)
    return await when_ended(context, request, visitor, batch, headers=REPLAYED if replayed else {})


async def when_ended(
    context: Context, request: Request, visitor: Visitor, batch: Batch, *, headers: Mapping[str, str]
) -> Response:
    """The answer of a wish that was taken on durably, as soon as it has ended.

    Args:
        context: of the server.
        request: of the caller who waits.
        visitor: who that is.
        batch: with that one wish.
        headers: of the answer.
    """
    try:
        await ended(context, request, visitor, batch, seconds=batch.remembered.deadline_seconds)
    except ImagenError as error:
        return refusal(error, cost=None, headers=headers)  # it goes on, and may cost something
    (item,) = await all_items(context, batch.id)
    if item.status is not ItemStatus.SUCCEEDED:
        return refusal(as_told(error_of(item), visitor), cost=item.cost, headers=headers)
    note = remembered(item)
    files = item_files(context, request, item, name=note.output_filename)
    outcomes = await context.app.batches.outcomes(item)
    spent = await context.app.drafts.spent(outcomes[0].prediction)
    return _answered(
        visitor,
        outcomes[0].prediction,
        files,
        note,
        saved=None if spent is None else spent.saved,
        headers={**headers, **cache_header(outcomes[0])},
    )


def _came_to_nothing(prediction: Prediction, error: ImagenError, headers: Mapping[str, str]) -> Response:
    """What became of a prediction without a picture; or may become, where the answer to its create was lost."""
    if prediction.status.terminal or prediction.sent_at is None:  # what was never sent is found by no id
        return refusal(error, cost=prediction.spent, headers=headers)
    error.hint = " ".join(filter(None, (_LOST, error.hint)))
    return refusal(error, cost=prediction.spent, headers=headers, prediction_id=prediction.id)


def _answered(
    visitor: Visitor,
    prediction: Prediction,
    files: list[GeneratedFile],
    note: Remembered,
    *,
    saved: Usd | None = None,
    headers: Mapping[str, str],
) -> Response:
    """The pictures of a prediction that succeeded, as an answer."""
    answer = GenerateAnswer(
        success=True,
        model_name=note.model_name,
        prompt=prediction.prompt,
        output_filename=note.output_filename,
        generated_files=files,
        count=len(files),
        external_semaphore_used=note.semaphore is not None,
        semaphore_id=note.semaphore,
        prediction_id=prediction.id,
        replicate_id=prediction.upstream_id,
        model=prediction.model,
        version=prediction.version,
        seed=prediction.seed,
        cost_usd=to_dollars(prediction.spent),
        quoted_usd=to_dollars(prediction.quote.likely),
        seconds=(prediction.latency_ms or 0) / 1000,
        predict_seconds=prediction.predict_seconds,
        practice=visitor.backend.practice,
        cached=prediction.reused,
        saved_usd=to_dollars(saved) if prediction.tier == "final" else None,
        **lineage_of(prediction, note.left_out),
    )
    told = {PREDICTION_ID: prediction.id} | cost_header(prediction.spent)
    return json_answer(answer, headers=told | dict(headers))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/generate",
        handler=generate,
        summary="Make the pictures of one prompt",
        description=(
            "Whatever stands beside the fields below is a parameter of the model by its own name, checked against the "
            "model's schema before anything is bought. Without `store` the addresses live for an hour."
        ),
        tag="generate",
        access="caller",
        body=GenerateBody,
        answers={200: GenerateAnswer},
        errors=(401, 402, 403, 404, 409, 422, 429, 502, 503, 504),
        parameters=(PARAMETER,),
        example={
            "model_name": "flux-dev",
            "prompt": "A serene mountain landscape at sunset",
            "output_filename": "mountain_sunset",
            "aspect_ratio": "16:9",
        },
    ),
)
