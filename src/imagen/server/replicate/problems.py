"""Our errors in the words of Replicate's API: problem details, with the statuses and titles that its clients know."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.responses import Response

from imagen.errors import (
    BudgetExceeded,
    ImagenError,
    InputRejected,
    InvalidInput,
    InvalidModelRef,
    NotFound,
    PaymentRequired,
    Problem,
    RateLimited,
    Unauthenticated,
)
from imagen.server.answers import error_body, http_status
from imagen.server.bodies import BodyTooLarge

MEDIA_TYPE = "application/problem+json"
_UNPROCESSABLE, _TOO_LARGE, _NOT_SUPPORTED = 422, 413, 405
_TITLES: tuple[tuple[type[ImagenError], str], ...] = (
    (InvalidInput, "Input validation failed"),
    (InputRejected, "Input validation failed"),
    (InvalidModelRef, "Invalid version or not permitted"),
    (Unauthenticated, "Unauthenticated"),
    (BudgetExceeded, "Insufficient credit"),
    (PaymentRequired, "Insufficient credit"),
    (RateLimited, "Too many requests"),
)
"""First match wins. Source: recorded answers of the service; where none was recorded, there is no title."""
_KINDS = (
    ("is required", "required"),
    ("no such parameter", "additional_property_not_allowed"),
    ("must be one of", "enum"),
    ("is not a", "invalid_type"),
)
"""What of our sentences means which of the service's words; anything else is `invalid`."""
NOT_FOUND = "The requested resource could not be found."


class Complaint(Problem, frozen=True):
    """A problem with the service's own word for it, such as `required`. Of the body itself `field` is empty."""

    kind: str = "invalid"


class InvalidVersion(InvalidModelRef):
    """There is no such version, or the model of that name runs by version only."""

    def __init__(self) -> None:
        super().__init__(
            "The specified version does not exist (or perhaps you don't have permission to use it?)"
        )


class NotSupported(NotFound):
    """There is such a path, and it is not asked in that way."""


def problem_answer(error: ImagenError, *, for_openai: bool = False) -> Response:
    """An error as Replicate's clients read it: `title`, `detail`, `status`, and what our own answers tell besides.

    Args:
        error: what went wrong.
        for_openai: clients of OpenAI's ask on the same path. They show `message`, and nothing else.
    """
    told = error_body(error)
    status = problem_status(error)
    body: dict[str, Any] = {}
    title = next((title for kind, title in _TITLES if isinstance(error, kind)), None)
    if title is not None:
        body["title"] = title
    body |= {"detail": (detail := _detail(error)), "status": status}
    if for_openai:
        body["message"] = detail
    problems = getattr(error, "problems", ())
    if problems:
        body["invalid_fields"] = [
            {"type": _kind_of(problem), "field": problem.field, "description": problem.message}
            for problem in problems
        ]
    beside = msgspec.to_builtins(told)
    body |= {name: value for name, value in beside.items() if name not in {"error", "problems"}}
    headers = {}
    if error.retry_after is not None:
        body["retry_after"] = wait = max(1, math.ceil(error.retry_after))
        headers["retry-after"] = str(wait)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)


def problem_for_both(error: ImagenError) -> Response:
    """An error on a path on which clients of OpenAI's ask too."""
    return problem_answer(error, for_openai=True)


def problem_status(error: ImagenError) -> int:
    """The status for an error: 422 for an input that does not fit, 413 for a large body, 405 for a wrong method, else as in our own answers."""
    if isinstance(error, BodyTooLarge):
        return _TOO_LARGE
    if isinstance(error, NotSupported):
        return _NOT_SUPPORTED
    wrong_input = isinstance(error, InvalidInput | InputRejected | InvalidModelRef)
    return _UNPROCESSABLE if wrong_input else http_status(error)


def _detail(error: ImagenError) -> str:
    """The sentence; of an input that does not fit one line for each field, as the service has it."""
    problems = getattr(error, "problems", ())
    if not problems:
        return error.detail if error.hint is None else f"{error.detail.rstrip('.')}. {error.hint}"
    return "".join(
        f"- {problem.field}: {problem.message}\n" if problem.field else f"- {problem.message}\n"
        for problem in problems
    )


def _kind_of(problem: Problem) -> str:
    """The service's word for a problem."""
    if isinstance(problem, Complaint):
        return problem.kind
    return next((kind for words, kind in _KINDS if words in problem.message), "invalid")
