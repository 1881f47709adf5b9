"""`POST /predictions/{prediction_id}/promote`: the final of a preview, on a better model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.key import check_scope
from imagen.domain.limits import Lane
from imagen.domain.money import Usd, read_dollars, to_dollars
from imagen.domain.prediction import Prediction, Tier
from imagen.domain.preset import with_preset
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput, InvalidRequest, NotFound, Problem
from imagen.server.access import Visitor, owns, scope_of, sight_of
from imagen.server.answers import ModelNotSupported, json_answer
from imagen.server.bodies import to_value
from imagen.server.context import Context
from imagen.server.durable import accept_one, known, read_webhook
from imagen.server.generate import GenerateAnswer, when_ended
from imagen.server.idempotency import PARAMETER, REPLAYED, read_mark
from imagen.server.lineage import lineage_of
from imagen.server.operation import Operation, Parameter
from imagen.server.predictions import EVENTS, PredictionState, accepted
from imagen.server.results import cost_header, tells_cost
from imagen.server.wishes import (
    Credentials,
    FileName,
    Seconds,
    Text,
    Wish,
    check_credentials,
    check_name,
    check_options,
    prepare_request,
)
from imagen.service.choice_shapes import QuoteRange, quote_range
from imagen.service.drafts import check_picked, final_of
from imagen.service.notices import COMPLETED
from imagen.service.prepare import Order


class PromoteBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is said anew about a final; a parameter of its model stands beside these fields. All of it may be left out.

    Attributes:
        model_name: makes the final, in place of the one that the preview was asked for.
        prompt: in place of the preview's.
        preset: a named set of inputs, in place of the preview's.
        output_filename: how the caller names it.
        external_semaphore_id: a named limit to wait for.
        store: keep the pictures, so that they outlive the hour.
        timeout: seconds until the prediction must have ended.
        max_cost: US dollars; refuse before buying when it would cost more.
        cache: as of `/generate`.
        webhook: an https address to which events are delivered.
        webhook_events_filter: `start`, `completed`; `completed` when left out.
        wait: answer as `/generate` does, when the picture is ready; else at once, as `/predictions` does.
        dry_run: tell what the final would be and cost, and buy nothing.
        credentials: a Replicate account of the caller's own, instead of a key.
    """

    model_name: str | None = None
    prompt: Text | None = None
    preset: str | None = None
    output_filename: FileName | None = None
    external_semaphore_id: str | None = None
    store: bool = True
    timeout: Seconds | None = None
    max_cost: float | str | None = None
    cache: bool | None = None
    webhook: str | None = None
    webhook_events_filter: list[str] | None = None
    wait: bool = False
    dry_run: bool = False
    credentials: Credentials | None = None


class PromotionQuote(msgspec.Struct, kw_only=True):
    """What a final would be; nothing was bought.

    Attributes:
        model: as it would be run.
        prompt: what the picture would show.
        seed: that of the preview, or another one where the model does not take that; null for models without one.
        input: the model's whole input.
        images: how many pictures it gives.
        quote: what it would cost.
        saved_usd: what as many finals as there were previews would have cost more; null where a price is not known.
        preset: the named set of inputs that was laid under the wish.
        left_out: what the preset offered, or was taken over from the preview, and this model does not take.
        tier: `final`.
        parent: the preview.
        draft: what the previews of one wish, and the finals made of them, have in common.
    """

    model: str
    prompt: str
    seed: int | None
    input: dict[str, Any]
    images: int
    quote: QuoteRange
    saved_usd: float | None
    preset: str | None = None
    left_out: list[str] = []
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None


_KNOWN = frozenset(PromoteBody.__struct_fields__)


@tells_cost
async def promote(context: Context, request: Request) -> Response:
    """Take on the final of a preview: the same words, the same shape and the same seed, on a better model."""
    visitor, fields = await context.arrive(request)
    check_credentials(fields)
    body = to_value({name: value for name, value in fields.items() if name in _KNOWN}, PromoteBody)
    webhook = read_webhook(
        context, body.webhook, body.webhook_events_filter, allowed=EVENTS, default=(COMPLETED,)
    )
    mark = read_mark(request, fields, scope=scope_of(visitor), now=context.app.clock.now())
    batch = None if body.dry_run else await known(context, visitor, mark)
    headers = {} if batch is None else dict(REPLAYED)
    if batch is None:
        preview = await _picked(context, visitor, request.path_params["prediction_id"])
        options = {name: value for name, value in fields.items() if name not in _KNOWN and value is not None}
        order = await _prepare(context, visitor, preview, body, options)
        expected = await context.app.drafts.expected(preview, order.quote, order.images)
        saved = None if expected is None else expected.saved
        if body.dry_run:
            told = _quoted(order, saved=to_dollars(saved))
            return json_answer(told, headers=cost_header(Usd(0)))
        wish = Wish(
            model_name=body.model_name or order.intents[0][0].model,
            prompt=order.request.prompt,
            output_filename=body.output_filename,
            external_semaphore_id=body.external_semaphore_id,
        )
        batch = await accept_one(
            context, request, visitor, wish, order, mark=mark, webhook=webhook, outlives=not body.wait, saved=saved
        )  # fmt: skip
    if body.wait:
        return await when_ended(context, request, visitor, batch, headers=headers)
    return await accepted(context, request, batch, headers=headers)


async def _picked(context: Context, visitor: Visitor, prediction_id: str) -> Prediction:
    """The prediction that a path names, which has a picture and belongs to the caller.

    Raises:
        NotFound: there is none, or it is somebody else's.
        InvalidRequest: it has no picture.
    """
    try:
        found = await context.app.store.get(prediction_id)
    except NotFound:
        # Taken on, and not begun.
        await context.app.batches.of_prediction(prediction_id, scope=sight_of(visitor))
        raise InvalidRequest(
            f"{prediction_id[:80]} has not been begun, so there is nothing to make a final of",
            hint="Wait until it has succeeded.",
        ) from None
    if found.id != prediction_id or not owns(visitor, found):
        raise NotFound(f"no prediction here is called {prediction_id[:80]!r}")
    check_picked(found)
    return found


async def _prepare(
    context: Context, visitor: Visitor, preview: Prediction, body: PromoteBody, options: Mapping[str, Any]
) -> Order:
    """The final, checked.

    Raises:
        InvalidRequest, Refused: it cannot be carried out.
    """
    app = context.app
    check_options(options)
    if body.output_filename is not None:
        check_name(body.output_filename)
    try:
        model = None if body.model_name is None else app.catalog.resolve(body.model_name)
    except NotFound as error:
        raise ModelNotSupported(body.model_name or "", hint=error.hint) from error
    said = GenerationRequest(
        prompt=body.prompt or "",
        model=model,
        options=options,
        max_cost=None if body.max_cost is None else read_dollars(body.max_cost, field="max_cost"),
        deadline_seconds=body.timeout,
        semaphore=body.external_semaphore_id,
        cache=body.cache,
        resume=False,
        plain=True,
    )
    said = with_preset(said, body.preset, app.settings.presets, resolve=app.catalog.resolve)
    request = final_of(preview, said)
    if request.model is not None:
        check_scope(visitor.models, request.model)
    if isinstance(request.input_image, Path):
        raise InvalidInput(
            [Problem("input_image", "the preview was made from a file, which no gateway reads for anybody")],
            hint="Give its https address, or a data URI, under the model's own name for it.",
        )
    return await prepare_request(
        context, visitor, request, lane=Lane.INTERACTIVE, keep=body.store or app.settings.pictures.keep
    )


def _quoted(order: Order, *, saved: float | None) -> PromotionQuote:
    intent, _ = order.intents[0]
    return PromotionQuote(
        model=intent.model,
        prompt=intent.prompt,
        seed=intent.seed,
        input=intent.input,
        images=order.images,
        quote=quote_range(order.quote),
        saved_usd=saved,
        **lineage_of(intent, order.left_out),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/predictions/{prediction_id}/promote",
        handler=promote,
        summary="Make the final of a preview",
        description=(
            "The prompt, the shape, the negative prompt and the seed of the preview are taken over, with whatever the "
            "wish said about its model; what that model does not take is told in `left_out`. Any other prediction with "
            "a picture can be promoted too, with a `model_name`. It is taken on durably; with `wait` the answer comes "
            "when it is ready."
        ),
        tag="predictions",
        access="caller",
        body=PromoteBody,
        answers={200: GenerateAnswer | PromotionQuote, 202: PredictionState},
        errors=(401, 402, 403, 404, 409, 422, 429, 502, 503, 504),
        parameters=(
            Parameter(name="prediction_id", place="path", description="The `prediction_id` of the preview."),
            PARAMETER,
        ),
        example={"wait": True, "model_name": "flux-1.1-pro"},
    ),
)
