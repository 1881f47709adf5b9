"""What callers keep and reject, and what was learned of them."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.caller import LONGEST_CALLER
from imagen.domain.prediction import Prediction
from imagen.errors import NotFound, PermissionDenied
from imagen.server.access import Visitor, owns
from imagen.server.answers import json_answer
from imagen.server.bodies import read_json
from imagen.server.context import Context
from imagen.server.operation import Operation, Parameter
from imagen.service.choice_shapes import Erased, FeedbackState, PreferenceList, Verdict

_PREFERENCES = "/preferences"


class FeedbackBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is thought of the pictures of a prediction.

    Attributes:
        verdict: `keep` or `reject`; the last one counts.
        dry_run: check it, and write nothing down.
    """

    verdict: Verdict
    dry_run: bool = False


async def give_feedback(context: Context, request: Request) -> Response:
    """Note that pictures were kept or rejected."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    given = await read_json(request, FeedbackBody)
    tastes = context.app.tastes
    tastes.check_learns()
    prediction = await _find(context, request, visitor)
    said = await tastes.note(prediction, kept=given.verdict == "keep", dry_run=given.dry_run)
    return json_answer(said)


async def show_preferences(context: Context, request: Request) -> Response:
    """What was learned of a caller."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    return json_answer(await context.app.tastes.show(_whose(request, visitor)))


async def erase_preferences(context: Context, request: Request) -> Response:
    """Forget what a caller said."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    return json_answer(await context.app.tastes.erase(_whose(request, visitor)))


async def _find(context: Context, request: Request, visitor: Visitor) -> Prediction:
    """The prediction that a path names in full, if it is the caller's own.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    wanted = str(request.path_params["prediction_id"])
    missing = NotFound(
        f"no prediction of yours has the id {wanted[:100]!r}",
        hint="It is told in the answer that made the pictures.",
    )
    try:
        found = await context.app.store.get(wanted)
    except NotFound:
        raise missing from None
    if found.id != wanted or not owns(visitor, found):
        raise missing
    return found


def _whose(request: Request, visitor: Visitor) -> str:
    """Whose preferences are asked for: the caller's own; the admin may name anybody.

    Raises:
        PermissionDenied: somebody else's, and it is not the admin who asks.
    """
    named = request.query_params.get("caller")
    if named is None or named == visitor.caller.name:
        return visitor.caller.name
    if not visitor.admin:
        raise PermissionDenied(
            "you may see and erase your own preferences only",
            hint="Leave `caller` away, or show the admin key.",
        )
    return named[:LONGEST_CALLER]


_TAG = "choice"
_CALLER = Parameter(
    name="caller",
    place="query",
    description="Whose, by the name in the ledger; for the admin. By default one's own.",
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/predictions/{prediction_id}/feedback",
        handler=give_feedback,
        summary="Keep or reject the pictures of a prediction",
        description=(
            "For whoever asked for the prediction, and for the admin. It shapes what is recommended to whom the pictures "
            "were made for. Saying the same again changes nothing; the last word counts. 403 where learning is switched off."
        ),
        tag=_TAG,
        access="caller",
        body=FeedbackBody,
        answers={200: FeedbackState},
        errors=(401, 403, 404, 503),
        parameters=(
            Parameter(
                name="prediction_id",
                place="path",
                description="The whole `id` of the prediction.",
                required=True,
            ),
        ),
        example={"verdict": "keep"},
    ),
    Operation(
        method="GET",
        path=_PREFERENCES,
        handler=show_preferences,
        summary="Show what was learned of a caller",
        description="All of it: what was concluded, and every judgement behind it.",
        tag=_TAG,
        access="caller",
        answers={200: PreferenceList},
        errors=(401, 403, 503),
        parameters=(_CALLER,),
    ),
    Operation(
        method="DELETE",
        path=_PREFERENCES,
        handler=erase_preferences,
        summary="Forget what was learned of a caller",
        tag=_TAG,
        access="caller",
        answers={200: Erased},
        errors=(401, 403, 503),
        parameters=(_CALLER,),
    ),
)
