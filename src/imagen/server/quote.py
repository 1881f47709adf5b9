"""`POST /quote`: what a wish would cost, and when it would be ready. Nothing is bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

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

_BESIDES = ("runs", "final")
_Runs = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_COUNT})]


class QuoteBody(GenerateBody, frozen=True, kw_only=True):
    """The body of `/generate`, and two fields more.

    Attributes:
        runs: how many such wishes come at once, 1 to 100.
        final: with `tier: preview`, quote the final of one of them too, and look for room for all of it in the budgets.
    """

    runs: _Runs = 1
    final: bool = False


class _Besides(msgspec.Struct, frozen=True):
    runs: int = 1
    final: bool = False


async def quote(context: Context, request: Request) -> Response:
    """Check a wish as `/generate` does, and tell what would become of it."""
    visitor, fields = await context.arrive(request, any_key=True)
    besides = _read_besides(
        {name: value for name in _BESIDES if (value := fields.pop(name, None)) is not None}
    )
    wish, options = read_wish(fields, context.app.settings.presets)
    if besides.final and wish.tier is None:
        raise InvalidInput([Problem("final", "it belongs to tier: preview")])
    order = await prepare_order(context, visitor, wish, options, lane=Lane.INTERACTIVE)
    final = None
    if besides.final:
        whole = msgspec.structs.replace(wish, tier=None, draft=None, max_cost=None)
        # The seed is the previews'; a final takes over that of the one that is picked.
        given = {name: value for name, value in options.items() if name != "seed"}
        final = await prepare_order(context, visitor, whole, given, lane=Lane.INTERACTIVE)
    told = await context.app.estimator.weigh(order, times=besides.runs, models=visitor.models, final=final)
    return json_answer(told)


def _read_besides(told: Mapping[str, Any]) -> _Besides:
    besides = to_value(told, _Besides)
    if not 1 <= besides.runs <= MAX_COUNT:
        raise InvalidInput(
            [Problem("runs", f"{besides.runs} is not allowed; it must be from 1 to {MAX_COUNT}")]
        )
    return besides


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
