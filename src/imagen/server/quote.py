"""`POST /quote`: what a wish would cost, and when it would be ready. Nothing is bought."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.limits import Lane
from imagen.domain.request import MAX_COUNT
from imagen.errors import InvalidInput, Problem
from imagen.server.answers import json_answer
from imagen.server.bodies import to_value
from imagen.server.context import Context
from imagen.server.generate import GenerateBody
from imagen.server.operation import Operation
from imagen.server.wishes import prepare_order, read_wish
from imagen.service.choice_shapes import QuoteAnswer

_RUNS = "runs"
_Runs = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_COUNT})]


class QuoteBody(GenerateBody, frozen=True, kw_only=True):
    """The body of `/generate`, and one field more.

    Attributes:
        runs: how many such wishes come at once, 1 to 100.
    """

    runs: _Runs = 1


class _RunsAlone(msgspec.Struct, frozen=True):
    runs: int = 1


async def quote(context: Context, request: Request) -> Response:
    """Check a wish as `/generate` does, and tell what would become of it."""
    visitor, fields = await context.arrive(request, any_key=True)
    runs = _read_runs(fields.pop(_RUNS, None))
    wish, options = read_wish(fields, context.app.settings.presets)
    order = await prepare_order(context, visitor, wish, options, lane=Lane.INTERACTIVE)
    return json_answer(await context.app.estimator.weigh(order, times=runs, models=visitor.models))


def _read_runs(told: object) -> int:
    runs = 1 if told is None else to_value({_RUNS: told}, _RunsAlone).runs
    if not 1 <= runs <= MAX_COUNT:
        raise InvalidInput([Problem(_RUNS, f"{runs} is not allowed; it must be from 1 to {MAX_COUNT}")])
    return runs


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/quote",
        handler=quote,
        summary="Tell what a wish would cost, and when it would be ready",
        description=(
            "The body is that of `/generate`, checked in the same way: what would be refused there is refused here. Nothing "
            "is bought or reserved, and nobody stands in line for it. Every key may ask, whatever paths it is good for."
        ),
        tag="choice",
        access="caller",
        body=QuoteBody,
        answers={200: QuoteAnswer},
        errors=(401, 402, 403, 404, 422, 429, 502, 503),
        example={"model_name": "flux-dev", "prompt": "A serene mountain landscape at sunset", "runs": 4},
    ),
)
