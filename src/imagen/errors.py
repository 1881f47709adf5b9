"""Every error that imagen raises on purpose. Who is at fault decides the branch.

ImagenError                     code, detail, hint, retryable, retry_after
├── InvalidRequest              the caller's mistake: nothing was sent, nothing was charged
│   ├── InvalidModelRef
│   ├── InvalidInput            .problems, one a field
│   ├── NotFound
│   ├── StillFollowed           a living process follows it
│   └── IdempotencyConflict
├── Refused                     we said no; nothing was bought
│   ├── Unauthenticated
│   ├── PermissionDenied
│   ├── QueueFull
│   ├── RateLimited
│   ├── BudgetExceeded
│   ├── Draining
│   └── Paused
├── BackendError                .backend .request_id: the service that makes the pictures said no or broke
│   ├── TransportError          .delivered: did the request arrive?
│   │   ├── ConnectFailed       it did not
│   │   ├── ExchangeFailed      nobody knows: look for what it bought, never repeat it
│   │   └── InvalidResponse     it did, and the answer cannot be used
│   │       └── GarbledResponse  it did, and what came is no answer: asking again may bring one
│   ├── BackendRejected         4xx
│   │   ├── BackendUnauthenticated
│   │   ├── PaymentRequired
│   │   ├── ModelNotFound
│   │   ├── InputRejected       .problems
│   │   └── BackendRateLimited  .retry_after
│   └── BackendBroken           5xx
├── PredictionError             .prediction_id: it ran (or may have run) and gave no good picture
│   ├── PredictionFailed        .reason .category
│   ├── PredictionCanceled
│   ├── PredictionAborted       its deadline passed before it began
│   ├── OutputDefective         succeeded and charged, but no whole picture came of it
│   └── OutcomeUnknown          its answer was lost and can no longer be looked up
├── WaitTimeout                 our waiting ended; the prediction goes on
├── WebhookRejected             .reason
├── StoreError                  our own database
│   ├── StoreBusy               retryable
│   ├── UpstreamTaken           another prediction of ours has that upstream id
│   └── SchemaMismatch
├── SinkError                   the ledger's other place could not be written or read; nothing is lost
├── DeliveryError               the picture is safe upstream, but could not be written here
└── ConfigError                 .setting .source
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Literal

import msgspec

Delivered = Literal["no", "unknown", "yes"]
"""Whether a request reached the other side: the one question that decides if it may be sent again."""

FailureCategory = Literal["safety", "infrastructure", "model"]
"""Why a run failed: its content was refused, the service interrupted it, or the model itself raised."""


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with one field of an input."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class ImagenError(Exception):
    """Base of all errors of imagen.

    Args:
        detail: one sentence saying what happened, safe to show to anyone (no secret, no prompt).
        hint: one sentence saying what to do next.
        retry_after: seconds after which the same request may succeed.
    """

    code: ClassVar[str] = "error"
    retryable: bool = False

    def __init__(self, detail: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.retry_after = retry_after

    def __str__(self) -> str:
        if not self.hint:
            return self.detail
        return f"{self.detail}{'' if self.detail.endswith(('.', '!', '?', '…')) else '.'} {self.hint}"


# --- the caller's mistakes -------------------------------------------------------------------------------


class InvalidRequest(ImagenError):
    """The request makes no sense. Nothing was sent, nothing was charged."""

    code = "invalid_request"


class InvalidModelRef(InvalidRequest):
    """A model was named in a form that is not `owner/name` or `owner/name:version`."""

    code = "invalid_model_ref"


class InvalidInput(InvalidRequest):
    """One or more input fields are unknown, missing or out of range."""

    code = "invalid_input"

    def __init__(
        self, problems: Sequence[Problem], *, subject: str = "the request", hint: str | None = None
    ) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{subject}: " + "; ".join(map(str, self.problems)), hint=hint)


class NotFound(InvalidRequest):
    """The thing that was asked for does not exist here."""

    code = "not_found"


class StillFollowed(InvalidRequest):
    """A living process follows that prediction; nobody else may."""

    code = "still_followed"
    retryable = True


class IdempotencyConflict(InvalidRequest):
    """The same idempotency key came with another body."""

    code = "idempotency_conflict"


# --- our own refusals ------------------------------------------------------------------------------------


class Refused(ImagenError):
    """We said no before anything was bought."""

    code = "refused"


class Unauthenticated(Refused):
    """No credentials, or wrong ones, were shown to us, or none are configured for the backend."""

    code = "unauthenticated"


class PermissionDenied(Refused):
    """The credentials are right but do not cover this."""

    code = "permission_denied"


class QueueFull(Refused):
    """Too many are waiting already."""

    code = "queue_full"
    retryable = True


class RateLimited(Refused):
    """The wait until the next permit is longer than we are willing to stay."""

    code = "rate_limited"
    retryable = True


class BudgetExceeded(Refused):
    """The quote does not fit the money that is left.

    Attributes:
        budget: the name of the budget that is used up; None where the caller's own `max_cost` was passed.
        quote_micros: the most that it would have cost, in micro-dollars; None when nobody knows.
        renews_at: when that budget renews, aware, UTC; None where it does not.
        lasting: it would not fit that budget either if nothing were spent, so that it does not help to wait.
    """

    code = "budget_exceeded"

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        budget: str | None = None,
        quote_micros: int | None = None,
        renews_at: datetime | None = None,
        lasting: bool = False,
    ) -> None:
        super().__init__(detail, hint=hint)
        self.lasting = lasting
        self.budget = budget
        self.quote_micros = quote_micros
        self.renews_at = renews_at

    @property
    def quote_usd(self) -> float | None:
        """The quote in dollars, only for showing."""
        return None if self.quote_micros is None else self.quote_micros / 1_000_000


def money_facts(error: ImagenError | None) -> dict[str, object]:
    """What a refusal for want of money tells besides, in JSON; of other errors nothing."""
    if not isinstance(error, BudgetExceeded):
        return {}
    return {"budget": error.budget, "quote_usd": error.quote_usd, "renews_at": error.renews_at}


class Draining(Refused):
    """The process is shutting down and takes no new work."""

    code = "draining"
    retryable = True


class Paused(Refused):
    """The batch is paused: nothing more of it is bought until it is resumed."""

    code = "paused"
    retryable = True


# --- the service that makes the pictures -----------------------------------------------------------------


class BackendError(ImagenError):
    """The backend refused, broke, or could not be reached.

    Attributes:
        backend: name of the configured backend, filled in by the backend itself.
        request_id: the service's own id for the exchange, when it told one.
        status: the HTTP status of the answer, when there was one.
        delivered: whether the request may have taken effect over there.
    """

    code = "backend_error"
    delivered: Delivered = "yes"

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        retry_after: float | None = None,
        backend: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail, hint=hint, retry_after=retry_after)
        self.backend = backend
        self.request_id = request_id
        self.status: int | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return f"{self.backend}: {text}" if self.backend else text


class TransportError(BackendError):
    """The exchange itself went wrong."""

    code = "transport_error"


class ConnectFailed(TransportError):
    """No connection could be made: the request was surely not received."""

    code = "connect_failed"
    retryable = True
    delivered: Delivered = "no"


class ExchangeFailed(TransportError):
    """The line dropped or timed out after sending began: the request may have been received."""

    code = "exchange_failed"
    retryable = True
    delivered: Delivered = "unknown"


class InvalidResponse(TransportError):
    """An answer came that cannot be used: far too large, or one that leads where we do not go."""

    code = "invalid_response"
    delivered: Delivered = "unknown"


class GarbledResponse(InvalidResponse):
    """An answer came that is no answer: not JSON, or without its essential fields."""

    code = "garbled_response"
    retryable = True


class BackendRejected(BackendError):
    """The service understood and said no (4xx). Nothing was made."""

    code = "backend_rejected"
    delivered: Delivered = "no"


class BackendUnauthenticated(BackendRejected):
    """The token is missing, wrong or expired (401, 403)."""

    code = "backend_unauthenticated"


class PaymentRequired(BackendRejected):
    """The account has no credit left (402)."""

    code = "payment_required"


class ModelNotFound(BackendRejected):
    """The model, version, deployment or prediction does not exist for this account (404, or 422 for versions)."""

    code = "model_not_found"


class InputRejected(BackendRejected):
    """The model's schema refused the input (422)."""

    code = "input_rejected"

    def __init__(
        self,
        detail: str,
        *,
        problems: Sequence[Problem] = (),
        hint: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(detail, hint=hint, backend=backend)
        self.problems = tuple(problems)


class BackendRateLimited(BackendRejected):
    """The account is throttled (429); `retry_after` holds the seconds when the service told them."""

    code = "backend_rate_limited"
    retryable = True


class BackendBroken(BackendError):
    """The service failed (5xx). Whether it acted before it failed is unknown."""

    code = "backend_broken"
    retryable = True
    delivered: Delivered = "unknown"


# --- predictions that ended badly ------------------------------------------------------------------------


class PredictionError(ImagenError):
    """The prediction ended, or may have ended, without a good picture.

    Attributes:
        prediction_id: our id, good for `imagen predictions show`.
        charged: whether Replicate bills it; None when nobody can tell.
    """

    code = "prediction_error"

    def __init__(
        self,
        detail: str,
        *,
        prediction_id: str | None = None,
        charged: bool | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(detail, hint=hint)
        self.prediction_id = prediction_id
        self.charged = charged


class PredictionFailed(PredictionError):
    """The run failed; `reason` is the model's own text, `category` sorts it."""

    code = "prediction_failed"

    def __init__(
        self,
        detail: str,
        *,
        reason: str = "",
        category: FailureCategory = "model",
        prediction_id: str | None = None,
        charged: bool | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(detail, prediction_id=prediction_id, charged=charged, hint=hint)
        self.reason = reason
        self.category = category


class PredictionCanceled(PredictionError):
    """Somebody canceled the run, or its deadline passed while it ran."""

    code = "prediction_canceled"


class PredictionAborted(PredictionError):
    """Its deadline passed before it began. Not charged."""

    code = "prediction_aborted"


class OutputDefective(PredictionError):
    """It succeeded upstream and is charged, but its output is empty, broken, too large or no picture.

    Attributes:
        expired: there was a picture, but the service has removed it since.
    """

    code = "output_defective"

    def __init__(
        self,
        detail: str,
        *,
        prediction_id: str | None = None,
        charged: bool | None = True,
        hint: str | None = None,
        expired: bool = False,
    ) -> None:
        super().__init__(detail, prediction_id=prediction_id, charged=charged, hint=hint)
        self.expired = expired


class OutcomeUnknown(PredictionError):
    """The answer to its creation was lost and it can no longer be looked up. It may have been charged."""

    code = "outcome_unknown"


class WaitTimeout(ImagenError):
    """Our waiting ended. The prediction goes on and can be adopted later."""

    code = "wait_timeout"

    def __init__(self, detail: str, *, prediction_id: str | None = None, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.prediction_id = prediction_id


class WebhookRejected(ImagenError):
    """A webhook was forged, stale or malformed."""

    code = "webhook_rejected"

    def __init__(
        self,
        detail: str,
        *,
        reason: Literal["forged", "stale", "malformed"] = "forged",
        hint: str | None = None,
    ) -> None:
        super().__init__(detail, hint=hint)
        self.reason = reason


# --- our own house ---------------------------------------------------------------------------------------


class StoreError(ImagenError):
    """The database could not be read or written.

    Attributes:
        of_one_row: one row is damaged, and nothing is wrong with the rest.
    """

    code = "store_error"
    of_one_row: bool = False


class StoreBusy(StoreError):
    """Somebody else holds the database; try again."""

    code = "store_busy"
    retryable = True


class UpstreamTaken(StoreError):
    """The upstream id belongs to another of our predictions already."""

    code = "upstream_taken"


class SchemaMismatch(StoreError):
    """The database was written by a newer imagen."""

    code = "schema_mismatch"


def for_elsewhere(error: ImagenError) -> ImagenError:
    """The same error as it is told on another machine: what a database says of itself names our files."""
    if not isinstance(error, StoreError) or error.of_one_row:
        return error
    why = "is held by another process" if isinstance(error, StoreBusy) else "cannot be read or written"
    return type(error)(f"the database here {why}", retry_after=error.retry_after)


class SinkError(ImagenError):
    """The other place of the ledger refused, broke or could not be reached. Its entries wait in our own database.

    Attributes:
        unfit: the place is well and refuses what an entry says: the same entry will not fit in it another time.
    """

    code = "sink_error"
    retryable = True

    def __init__(self, detail: str, *, hint: str | None = None, unfit: bool = False) -> None:
        super().__init__(detail, hint=hint)
        self.unfit = unfit


class DeliveryError(ImagenError):
    """The picture exists upstream but could not be written to where it should go."""

    code = "delivery_error"

    def __init__(self, detail: str, *, prediction_id: str | None = None, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.prediction_id = prediction_id


class ConfigError(ImagenError):
    """A setting is unknown or has a value that is not allowed.

    Attributes:
        setting: dotted name, e.g. `backends.fast.model`.
        source: where the value came from, e.g. `imagen.yaml:12` or `environment variable IMAGEN_TIMEOUT`.
    """

    code = "config_error"

    def __init__(
        self, detail: str, *, setting: str | None = None, source: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(detail, hint=hint)
        self.setting = setting
        self.source = source
