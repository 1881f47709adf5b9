"""What goes back: JSON, and errors in the documented shape with the status that fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

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
    QueueFull,
    RateLimited,
    Refused,
    StoreError,
    Unauthenticated,
    WaitTimeout,
    WebhookRejected,
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
    (DeliveryError, 500),
    (ConfigError, 500),
)
"""First match wins. A test checks that every branch of the tree is here. A refused content is the caller's: 422."""

_SAFETY = 422


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong: `error` is the sentence for people, `code` is stable, `hint` says what to do next."""

    error: str
    code: str = "error"
    hint: str | None = None
    problems: list[dict[str, str]] | None = None
    retry_after: float | None = None
    prediction_id: str | None = None
    charged: bool | None = None
    supported_models: list[str] | None = None


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
    )


def error_answer(error: ImagenError) -> Response:
    """An error as an answer, with `Retry-After` where a wait is known or sensible."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    body = {"success": False, **msgspec.to_builtins(error_body(error))}
    return json_answer(body, status=http_status(error), headers=headers)


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, dict(headers or {}), "application/json")
