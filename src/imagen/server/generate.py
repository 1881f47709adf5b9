"""`POST /generate`: one wish, its pictures."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.limits import Lane
from imagen.errors import Draining, WaitTimeout
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.operation import Operation
from imagen.server.results import GeneratedFile, Turn, cost_header, dollars, generated_files
from imagen.server.wishes import Credentials, Wish, as_told, keeps, name_for, prepare_order, read_wish

_HANDED_OVER = "It is paid for: do not ask for it again; `imagen predictions show` tells what became of it."


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
        cost_usd: null where the price is not known.
        seconds: from sending it to seeing its end; predict_seconds: of those the model ran, as far as it is told.
        practice: true where the emulator painted it and no model was run.
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
    seconds: float
    predict_seconds: float | None
    practice: bool


async def generate(context: Context, request: Request) -> Response:
    """Make the pictures of one wish; the answer comes when they are ready."""
    visitor, fields = await context.arrive(request)
    wish, options = read_wish(fields)
    order = await prepare_order(context, visitor, wish, options, lane=Lane.INTERACTIVE)
    turn = Turn()
    try:
        (outcome,) = await context.stay(
            request, context.app.gateway.carry_out(order, observer=turn), goes_on=keeps(context, wish)
        )
    except Draining as error:
        if turn.prediction_id is None:
            raise
        raise WaitTimeout(error.detail, prediction_id=turn.prediction_id, hint=_HANDED_OVER) from None
    if outcome.error is not None:
        raise as_told(outcome.error, visitor)
    prediction, name = outcome.prediction, name_for(wish, context)
    files = generated_files(context, request, wish, outcome, name=name)
    answer = GenerateAnswer(
        success=True,
        model_name=wish.model_name,
        prompt=wish.prompt,
        output_filename=name,
        generated_files=files,
        count=len(files),
        external_semaphore_used=wish.external_semaphore_id is not None,
        semaphore_id=wish.external_semaphore_id,
        prediction_id=prediction.id,
        replicate_id=prediction.upstream_id,
        model=prediction.model,
        version=prediction.version,
        seed=prediction.seed,
        cost_usd=dollars(prediction.cost),
        seconds=(prediction.latency_ms or 0) / 1000,
        predict_seconds=prediction.predict_seconds,
        practice=visitor.backend.practice,
    )
    headers = {"x-imagen-prediction-id": prediction.id} | cost_header(prediction.cost) | turn.headers()
    return json_answer(answer, headers=headers)


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
        errors=(401, 402, 403, 404, 422, 429, 502, 503, 504),
        example={
            "model_name": "flux-dev",
            "prompt": "A serene mountain landscape at sunset",
            "output_filename": "mountain_sunset",
            "aspect_ratio": "16:9",
        },
    ),
)
