"""What goes back: JSON, and errors in the documented shape with the status that fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from imagen.decoding import convert
from imagen.errors import (
    BackendError,
    BackendRateLimited,
    BackendRejected,
    BackendUnauthenticated,
    BudgetExceeded,
    ConfigError,
    DeliveryError,
    Draining,
    IdempotencyConflict,
    ImagenError,
    InputRejected,
    InvalidModelRef,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    PaymentRequired,
    PermissionDenied,
    PredictionAborted,
    PredictionCanceled,
    PredictionError,
    PredictionFailed,
    Problem,
    QueueFull,
    RateLimited,
    Refused,
    SinkError,
    StoreError,
    Unauthenticated,
    WaitTimeout,
    WebhookRejected,
    money_facts,
)

HTTP_STATUS: tuple[tuple[type[ImagenError], int], ...] = (
    (NotFound, 404),
    (IdempotencyConflict, 409),
    (InvalidRequest, 400),
    (Unauthenticated, 401),
    (PermissionDenied, 403),
    (QueueFull, 429),
    (RateLimited, 429),
    (BudgetExceeded, 402),
    (Draining, 503),
    (Refused, 403),
    (InputRejected, 400),
    (ModelNotFound, 404),
    (PaymentRequired, 402),
    (BackendRateLimited, 429),
    (BackendUnauthenticated, 502),
    (BackendRejected, 502),
    (BackendError, 502),
    (PredictionFailed, 502),
    (PredictionCanceled, 504),
    (PredictionAborted, 504),
    (PredictionError, 502),
    (WaitTimeout, 504),
    (WebhookRejected, 400),
    (StoreError, 503),
    (SinkError, 503),
    (DeliveryError, 500),
    (ConfigError, 500),
)
"""First match wins. A test checks that every branch of the tree is here. A refused content is the caller's: 422."""

_SAFETY = 422


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong: `error` is the sentence for people, `code` is stable, `hint` says what to do next.

    Attributes:
        cost_usd: what was paid all the same, where pictures were asked for; null where nobody can tell.
        budget: the budget that has no room for it; null where the caller's own `max_cost` was passed.
        quote_usd: the most that it would have cost; null when nobody knows.
        quote: the same.
        renews_at: when that budget renews; null where it does not.
    """

    error: str
    code: str = "error"
    hint: str | None = None
    problems: list[dict[str, str]] | None = None
    retry_after: float | None = None
    prediction_id: str | None = None
    charged: bool | None = None
    supported_models: list[str] | None = None
    cost_usd: float | UnsetType | None = UNSET
    budget: str | UnsetType | None = UNSET
    quote_usd: float | UnsetType | None = UNSET
    quote: float | UnsetType | None = UNSET
    renews_at: datetime | UnsetType | None = UNSET


class ModelNotSupported(InvalidModelRef):
    """A model by a name that nobody knows.

    Attributes:
        supported_models: the names that the documented face lists.
    """

    def __init__(self, name: str, *, hint: str | None = None) -> None:
        super().__init__(f"Model '{name[:100]}' not supported", hint=hint)
        self.supported_models = list(DOCUMENTED_MODELS)


DOCUMENTED_MODELS = ("flux-dev", "flux-kontext-max", "qwen-image")
"""The names that the documented face lists; the catalog has many more."""


def _and_below(kind: type[ImagenError]) -> Iterator[type[ImagenError]]:
    for below in kind.__subclasses__():
        if below.__module__ == ImagenError.__module__:
            yield below
        yield from _and_below(below)


_KINDS: Mapping[str, type[ImagenError]] = {kind.code: kind for kind in _and_below(ImagenError)}
"""The classes by the code that answers tell."""


def http_status(error: ImagenError) -> int:
    """The status for an error; 500 for one without a branch of its own."""
    if isinstance(error, PredictionFailed) and error.category == "safety":
        return _SAFETY
    return next((status for kind, status in HTTP_STATUS if isinstance(error, kind)), 500)


def error_body(error: ImagenError) -> ErrorBody:
    """An error as the body of an answer."""
    problems = getattr(error, "problems", ())
    return ErrorBody(
        error=error.detail,
        code=error.code,
        hint=error.hint,
        problems=[msgspec.to_builtins(problem) for problem in problems] or None,
        retry_after=error.retry_after,
        prediction_id=getattr(error, "prediction_id", None),
        charged=getattr(error, "charged", None),
        supported_models=getattr(error, "supported_models", None),
        **over_budget(error),
    )


def over_budget(error: ImagenError | None) -> dict[str, Any]:
    """What an answer tells besides when there is no money for it: `money_facts`, and the quote under its first name too."""
    facts = money_facts(error)
    return {**facts, "quote": facts["quote_usd"]} if facts else {}


def stored_error(
    code: str,
    detail: str,
    *,
    hint: str | None = None,
    charged: bool | None = None,
    facts: Mapping[str, Any] | None = None,
) -> ImagenError:
    """An error as it was before it was written down, as far as answers show it.

    Args:
        code: by which its class is found; one that is not known makes a plain `ImagenError`.
        detail: its sentence.
        hint: what to do next.
        charged: whether it is billed all the same; of errors of predictions.
        facts: what else it knew: `prediction_id`, `category`, `reason`, `problems`, and what a refused budget tells.
    """
    kind = _KINDS.get(code, ImagenError)
    error = kind.__new__(kind)
    ImagenError.__init__(error, detail, hint=hint)
    if isinstance(error, BudgetExceeded):
        BudgetExceeded.__init__(error, detail, hint=hint)
    for name, value in (facts or {}).items():
        setattr(error, name, value)
    if "problems" in (facts or {}):
        error.problems = convert(error.problems, tuple[Problem, ...])  # type: ignore[attr-defined]
    if isinstance(error, BudgetExceeded) and isinstance(error.renews_at, str):
        error.renews_at = datetime.fromisoformat(error.renews_at)
    if issubclass(kind, PredictionError):
        error.charged = charged  # type: ignore[attr-defined]
    return error


def error_answer(error: ImagenError, *, besides: Mapping[str, Any] = MappingProxyType({})) -> Response:
    """An error as an answer, with `Retry-After` where a wait is known or sensible.

    Args:
        error: what went wrong.
        besides: further fields of the body.
    """
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    body = {"success": False, **msgspec.to_builtins(error_body(error)), **besides}
    return json_answer(body, status=http_status(error), headers=headers)


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, dict(headers or {}), "application/json")
