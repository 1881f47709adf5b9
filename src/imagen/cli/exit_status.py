"""Whose fault it was, as an exit status."""

from __future__ import annotations

from imagen import errors
from imagen.errors import (
    BackendError,
    ConfigError,
    DeliveryError,
    ImagenError,
    InvalidRequest,
    PredictionError,
    Refused,
    SinkError,
    StoreError,
    WaitTimeout,
    WebhookRejected,
)

USAGE, REFUSED, BACKEND, PREDICTION, INTERNAL, INTERRUPTED = 2, 3, 4, 5, 70, 130

EXIT_STATUS: tuple[tuple[type[ImagenError], int], ...] = (
    (InvalidRequest, USAGE),
    (ConfigError, USAGE),
    (Refused, REFUSED),
    (WebhookRejected, REFUSED),
    (BackendError, BACKEND),
    (PredictionError, PREDICTION),
    (WaitTimeout, PREDICTION),
    (DeliveryError, INTERNAL),
    (SinkError, BACKEND),
    (StoreError, INTERNAL),
)
"""First match wins. A test checks that every branch of the tree is here."""


def exit_status(error: BaseException) -> int:
    """The status for an error; 70 for one that is not ours."""
    return next((status for kind, status in EXIT_STATUS if isinstance(error, kind)), INTERNAL)


def status_of_code(code: str | None) -> int:
    """The status for an error of which only the code is kept; that of a prediction for one that nobody knows."""
    kinds = (
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ImagenError)
    )
    found = next((kind for kind in kinds if kind.code == code), None)
    if found is None:
        return PREDICTION
    return next((status for kind, status in EXIT_STATUS if issubclass(found, kind)), INTERNAL)
