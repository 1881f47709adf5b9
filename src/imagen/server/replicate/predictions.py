"""Predictions in the words of Replicate: what can be asked, and what their webhooks are signed with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.key import check_route
from imagen.errors import (
    ImagenError,
)
from imagen.server.access import Visitor, scope_of
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.operation import Handler, Operation
from imagen.server.replicate.creating import (
    ACCEPTED,
    CREATED,
    create_by_deployment,
    create_by_model,
    create_by_version,
)
from imagen.server.replicate.finding import cancel, show
from imagen.server.replicate.listing import show_list
from imagen.server.replicate.problems import problem_answer
from imagen.server.replicate.relay import PREFIX, TAG


async def show_secret(context: Context, request: Request) -> Response:
    """`GET /webhooks/default/secret`: what signs the webhooks of whoever asks."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    newest = (await context.app.signing.of(scope_of(visitor)))[0]
    # No proxy or browser on the way keeps the answer.
    return json_answer({"key": newest.secret.reveal()}, headers={"cache-control": "no-store"})


async def in_words(
    context: Context,
    request: Request,
    visitor: Visitor,
    handler: Callable[[Context, Request, Visitor], Awaitable[Response]],
) -> Response:
    """The answer of a handler of this face on a path that is ours too, as it is below `/v1`."""
    request.scope["imagen.route"] = route = f"{PREFIX}{request.scope['imagen.route']}"
    try:
        check_route(visitor.routes, route)
        return await handler(context, request, visitor)
    except ImagenError as error:
        return problem_answer(error)


def _operation(
    method: Literal["GET", "POST"],
    path: str,
    handler: Handler,
    summary: str,
    *,
    answers: Sequence[int] = (200,),
    at_root: bool = True,
) -> Operation:
    return Operation(
        method=method,
        path=f"{PREFIX}{path}",
        handler=handler,
        summary=summary,
        tag=TAG,
        access="caller",
        answers=dict.fromkeys(answers, dict[str, Any]),
        aliases=(path,) if at_root else (),
        documented=False,
        tells=problem_answer,
    )


_MADE = (CREATED, ACCEPTED)
OPERATIONS: tuple[Operation, ...] = (
    # At the root these three paths are ours too: `server.predictions` passes on what is in Replicate's words.
    _operation(
        "POST", "/predictions", create_by_version, "Create a prediction", answers=_MADE, at_root=False
    ),
    _operation("GET", "/predictions/{prediction_id}", show, "Get a prediction", at_root=False),
    _operation("POST", "/predictions/{prediction_id}/cancel", cancel, "Cancel a prediction", at_root=False),
    _operation("GET", "/predictions", show_list, "List predictions"),
    _operation(
        "POST",
        "/models/{owner}/{name}/predictions",
        create_by_model,
        "Create a prediction with a model",
        answers=_MADE,
    ),
    _operation(
        "POST",
        "/deployments/{owner}/{name}/predictions",
        create_by_deployment,
        "Create a prediction with a deployment",
        answers=_MADE,
    ),
    _operation("GET", "/webhooks/default/secret", show_secret, "What webhooks are signed with"),
)
