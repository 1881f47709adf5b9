"""`POST /recommend`: which model to take for a budget, a prompt and what is needed."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.choice import ABILITIES, MOST_ITERATIONS, MOST_SECONDS
from imagen.domain.money import read_dollars
from imagen.domain.request import MAX_PROMPT_CHARACTERS
from imagen.server.answers import json_answer
from imagen.server.bodies import to_value
from imagen.server.context import Context
from imagen.server.operation import Operation
from imagen.server.wishes import Credentials, check_credentials
from imagen.service.choice_shapes import RecommendAnswer

# For readers of the document alone: the domain refuses with sentences of its own.
_Dollars = Annotated[
    float | str,
    msgspec.Meta(
        extra_json_schema={"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}
    ),
]
_Iterations = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MOST_ITERATIONS})]
_Prompt = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS})]
_Need = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ABILITIES)})]
_Seconds = Annotated[float, msgspec.Meta(extra_json_schema={"exclusiveMinimum": 0, "maximum": MOST_SECONDS})]


class RecommendBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model is wanted for.

    Attributes:
        budget: US dollars for all of it.
        iterations: how many pictures that is to pay for, 1 to 1000000.
        quality: `high` where the best picture is wanted that the budget pays for.
        prompt: what the pictures are to show, where that is known. It is kept nowhere.
        needs: what the model must be able to do.
        within: seconds that a picture may take.
        credentials: a Replicate account of the caller's own, instead of a key.
    """

    budget: _Dollars
    iterations: _Iterations
    quality: Literal["standard", "high"] = "standard"
    prompt: _Prompt | None = None
    needs: list[_Need] = []
    within: _Seconds | None = None
    credentials: Credentials | None = None


async def recommend(context: Context, request: Request) -> Response:
    """Recommend a model, and say why."""
    visitor, fields = await context.arrive(request, any_key=True)
    check_credentials(fields)
    asked = to_value(fields, RecommendBody)
    answer = await context.app.recommender.recommend(
        budget=read_dollars(asked.budget, field="budget"),
        iterations=asked.iterations,
        high=asked.quality == "high",
        prompt=asked.prompt,
        needs=frozenset(asked.needs),
        within_seconds=asked.within,
        caller=visitor.caller,
        models=visitor.models,
    )
    return json_answer(answer)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/recommend",
        handler=recommend,
        summary="Recommend a model",
        description=(
            "By what the budget leaves for each iteration, then by the prompt, by what is needed, by price and time, and by "
            "what this caller kept. `sentence` says why; every point is told. Every key may ask; it is recommended nothing "
            "that it may not use."
        ),
        tag="choice",
        access="caller",
        body=RecommendBody,
        answers={200: RecommendAnswer},
        errors=(401, 403, 404, 429, 503),
        example={"budget": 5, "iterations": 40, "quality": "high"},
    ),
)
