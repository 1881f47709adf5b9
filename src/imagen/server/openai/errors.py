"""Our errors in OpenAI's shape, with the statuses that its clients make their own errors of.

A client of OpenAI's sends a request again by itself after 408, 409, 429 and everything from 500 on, as a new one. What
another try cannot mend, or would buy a second time, therefore says `x-should-retry: false`, which those clients obey.

No money is 429 with the code `insufficient_quota`, as at OpenAI: its clients have an error for that and none for 402.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response

from imagen.domain.money import Usd, to_dollars
from imagen.errors import (
    BackendRateLimited,
    BackendUnauthenticated,
    BudgetExceeded,
    IdempotencyConflict,
    ImagenError,
    InputRejected,
    InvalidInput,
    InvalidModelRef,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    PaymentRequired,
    PermissionDenied,
    PredictionError,
    PredictionFailed,
    Problem,
    QueueFull,
    RateLimited,
    Unauthenticated,
    WaitTimeout,
)
from imagen.server.answers import error_body, http_status
from imagen.server.results import cost_header

RETRY = "x-should-retry"
"""Read by OpenAI's clients: whether they send a request again by themselves."""
_INVALID = "invalid_request_error"
_SERVER = "server_error"
_FIRST_FAULT = 500


class UnknownModel(InvalidModelRef):
    """A model by a name that nobody knows."""


class _Kind(NamedTuple):
    status: int | None
    type: str
    code: str | None


_KINDS: tuple[tuple[type[ImagenError], _Kind], ...] = (
    (InvalidModelRef, _Kind(404, _INVALID, "model_not_found")),
    (ModelNotFound, _Kind(404, _INVALID, "model_not_found")),
    (IdempotencyConflict, _Kind(409, _INVALID, None)),
    (NotFound, _Kind(404, _INVALID, None)),
    (InvalidInput, _Kind(400, _INVALID, "invalid_value")),
    (InputRejected, _Kind(400, _INVALID, "invalid_value")),
    (InvalidRequest, _Kind(400, _INVALID, None)),
    (Unauthenticated, _Kind(401, _INVALID, "invalid_api_key")),
    (PermissionDenied, _Kind(403, "permission_error", None)),
    (BudgetExceeded, _Kind(429, "insufficient_quota", "insufficient_quota")),
    (PaymentRequired, _Kind(429, "insufficient_quota", "insufficient_quota")),
    (QueueFull, _Kind(429, "rate_limit_error", "rate_limit_exceeded")),
    (RateLimited, _Kind(429, "rate_limit_error", "rate_limit_exceeded")),
    (BackendRateLimited, _Kind(429, "rate_limit_error", "rate_limit_exceeded")),
)
"""First match wins; None leaves the status, or the code, to our own answers."""
_REFUSED_CONTENT = _Kind(400, "image_generation_user_error", "moderation_blocked")
_OWN_LIMIT = _Kind(400, _INVALID, "budget_exceeded")
"""The caller's own `max_cost` was passed, not a budget."""
_DETAILS = ("hint", "prediction_id", "charged", "retry_after", "budget", "quote_usd", "renews_at", "problems")


def openai_error(error: ImagenError) -> Response:
    """An error as an answer, of a request that has bought nothing so far as we know."""
    return refusal(error)


def refusal(
    error: ImagenError,
    *,
    cost: Usd | None = None,
    told: bool = False,
    headers: Mapping[str, str] = MappingProxyType({}),
    besides: Mapping[str, Any] = MappingProxyType({}),
) -> Response:
    """An error as an answer.

    Args:
        error: what went wrong.
        cost: what was paid all the same; None where nobody can tell.
        told: whether that is told at all.
        headers: of the answer, besides.
        besides: what is told under `imagen` besides.
    """
    body = error_object(error)
    status = kind_of(error).status or http_status(error)
    given = dict(headers)
    if error.retry_after is not None:
        given["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthenticated):
        given["www-authenticate"] = "Bearer"
    if not _may_come_again(error) or (told and cost != Usd(0)):
        given.setdefault(RETRY, "false")
    if told:
        given |= cost_header(cost)
        body["imagen"] |= {"cost_usd": to_dollars(cost), **besides}
    return Response(msgspec.json.encode({"error": body}), status, given, "application/json")


def error_object(error: ImagenError) -> dict[str, Any]:
    """An error as the value of `error`; what OpenAI has no field for is under `imagen`."""
    kind = kind_of(error)
    ours = msgspec.to_builtins(error_body(error))
    message = error.reason if isinstance(error, PredictionFailed) and error.reason else error.detail
    hint = error.hint
    return {
        "message": message if hint is None else f"{message.rstrip('.')}. {hint}",
        "type": kind.type,
        "param": _param(error),
        "code": kind.code or error.code,
        "imagen": {"code": error.code}
        | {name: ours[name] for name in _DETAILS if ours.get(name) is not None},
    }


def kind_of(error: ImagenError) -> _Kind:
    """Status, type and code of an error."""
    if isinstance(error, PredictionFailed) and error.category == "safety":
        return _REFUSED_CONTENT
    if isinstance(error, BudgetExceeded) and error.budget is None:
        return _OWN_LIMIT
    found = next((kind for cls, kind in _KINDS if isinstance(error, cls)), None)
    if found is not None:
        return found
    status = http_status(error)
    return _Kind(status, _SERVER if status >= _FIRST_FAULT else _INVALID, None)


def in_callers_words(error: ImagenError, origins: Mapping[str, str]) -> ImagenError:
    """The error with OpenAI's fields in the place of the model's parameters that they became."""
    problems = getattr(error, "problems", ())
    if not isinstance(error, InvalidInput | InputRejected) or not problems:
        return error
    renamed = [_renamed(problem, origins) for problem in problems]
    if isinstance(error, InvalidInput):
        subject = error.detail.partition(": ")[0]
        return InvalidInput(renamed, subject=subject, hint=error.hint)
    error.problems = tuple(renamed)
    return error


def _renamed(problem: Problem, origins: Mapping[str, str]) -> Problem:
    name, bracket, rest = problem.field.removeprefix("input.").partition("[")
    origin = origins.get(name)
    if origin is None or origin == name:
        return problem
    return Problem(f"{origin}{bracket}{rest}", f"{problem.message} ({name} of the model)")


def _param(error: ImagenError) -> str | None:
    problems = getattr(error, "problems", ())
    if problems:
        return str(problems[0].field)
    if isinstance(error, BudgetExceeded) and error.budget is None:
        return "max_cost"
    return "model" if kind_of(error).code == "model_not_found" else None


def _may_come_again(error: ImagenError) -> bool:
    """Whether the same request may be sent again at once by a program: it may succeed, and buys nothing twice."""
    if isinstance(error, PredictionFailed):
        return error.category == "infrastructure" and error.charged is False
    if isinstance(error, PredictionError | WaitTimeout | BudgetExceeded | PaymentRequired):
        return False
    if isinstance(error, BackendUnauthenticated):
        return False
    return error.retryable
