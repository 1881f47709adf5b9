"""What the outcomes of an item's predictions mean for the item: tried again, bought again, or how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from imagen.domain.batch import Item, ItemStatus
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status, any_charged
from imagen.errors import (
    BackendError,
    BackendUnauthenticated,
    BudgetExceeded,
    ConfigError,
    DeliveryError,
    ImagenError,
    ModelNotFound,
    OutputDefective,
    PaymentRequired,
    PredictionCanceled,
    PredictionFailed,
    Refused,
    StillFollowed,
    StoreError,
    Unauthenticated,
    WaitTimeout,
)
from imagen.service.finish import Outcome
from imagen.service.orders import prediction_ids


def passing(outcomes: Sequence[Outcome]) -> ImagenError | None:
    """The error after which the item is tried again, as it is no fault of its own."""
    for outcome in outcomes:
        error = outcome.error
        if error is None:
            continue
        if isinstance(error, StoreError) and error.of_one_row:
            continue
        if isinstance(error, StoreError | StillFollowed | WaitTimeout | DeliveryError):
            return error
        if isinstance(error, Refused) and error.retryable:
            return error
        if isinstance(error, PaymentRequired | BackendUnauthenticated | Unauthenticated | ConfigError):
            return error
        if isinstance(error, ModelNotFound) and outcome.prediction.upstream_id is not None:
            return error  # it was there, and within its hour it should be there again
        if isinstance(error, BackendError) and (error.retryable or not outcome.prediction.status.terminal):
            return error
    return None


def unpaid(outcomes: Sequence[Outcome]) -> BudgetExceeded | None:
    """The error of a budget that has no room for one of them, so that it was not bought; one that lasts before others."""
    errors = [each.error for each in outcomes if isinstance(each.error, BudgetExceeded)]
    of_budgets = (error for error in errors if error.budget is not None)
    return max(of_budgets, key=lambda error: error.lasting, default=None)


def keeps_places(outcomes: Sequence[Outcome], trouble: ImagenError) -> bool:
    """Whether something of it may run at the service, which is away or could not be heard, so that it holds its places."""
    waits = isinstance(trouble, StoreError | BackendError) and not isinstance(
        trouble, PaymentRequired | BackendUnauthenticated
    )
    return waits and any(
        each.prediction.sent_at is not None and not each.prediction.status.terminal for each in outcomes
    )


def interrupted(outcomes: Sequence[Outcome]) -> bool:
    """Whether the service itself broke a run off, for which it charges nothing."""
    return any(
        isinstance(each.error, PredictionFailed)
        and each.error.category == "infrastructure"
        and each.prediction.charged is False
        for each in outcomes
    )


def is_free(outcome: Outcome) -> bool:
    """Whether a prediction ended without a picture, and costs nothing."""
    prediction = outcome.prediction
    ended = prediction.status in {Status.FAILED, Status.CANCELED, Status.ABORTED}
    return ended and prediction.charged is False


def was_refused(outcome: Outcome) -> bool:
    """Whether its create was refused: then it never ran, and its id is spent."""
    return is_free(outcome) and outcome.prediction.upstream_id is None


def was_refused_before(outcome: Outcome) -> bool:
    """Whether its create was refused while another process had it, which ended before it could say what follows of that."""
    before = isinstance(outcome.error, PredictionFailed)  # whoever is refused now is told by whom
    return before and was_refused(outcome) and outcome.prediction.settled_at is None


def queued_again(item: Item, order: bytes) -> Item:
    """The item as it waits again, with this order."""
    # Of the order that it has it has the ids already, and it may be one that cannot be read.
    ids = item.predictions if order == item.order and item.predictions else prediction_ids(order)
    return msgspec.structs.replace(item, status=ItemStatus.QUEUED, order=order, predictions=ids)


def another_attempt(item: Item, order: bytes) -> Item:
    """The item as it waits for its next attempt, with this order."""
    return msgspec.structs.replace(queued_again(item, order), attempt=item.attempt + 1)


def ended(item: Item, outcomes: Sequence[Outcome]) -> Item:
    """The item as its predictions have ended."""
    error = next((each.error for each in outcomes if each.error is not None), None)
    predictions = [each.prediction for each in outcomes]
    return msgspec.structs.replace(
        item,
        status=_status_of(error, predictions),
        predictions=tuple(each.id for each in predictions),
        error=None if error is None else error.detail,
        code=None if error is None else error.code,
        hint=None if error is None else error.hint,
        problem={} if error is None else _problem_of(error),
        charged=any_charged(each.charged for each in predictions),
        cost=Usd.total_or_none([item.cost, *(each.spent for each in predictions)]),
        files=tuple(name for each in outcomes for name in _files_of(each)),
        urls=tuple(url for each in predictions for url in each.output),
        seed=predictions[0].seed if predictions else None,
        images=sum(len(each.output) for each in predictions if each.status is Status.SUCCEEDED),
    )


def canceled(item: Item, outcomes: Sequence[Outcome]) -> Item:
    """The item as it ends when its batch is canceled: with what was made of it and paid for all the same."""
    return msgspec.structs.replace(
        ended(item, outcomes),
        status=ItemStatus.CANCELED,
        predictions=item.predictions,
        code=PredictionCanceled.code,
        error="it was canceled with its batch",
        hint=None,
        problem={},
    )


def fault_of(outcomes: Sequence[Outcome]) -> ImagenError | None:
    """The error that is a fault of ours, which neither passes by itself nor is the item's own."""
    return next(
        (
            each.error
            for each in outcomes
            if each.error is not None
            and (each.fault or (isinstance(each.error, StoreError) and each.error.of_one_row))
        ),
        None,
    )


def heard_since(outcomes: Sequence[Outcome], began: datetime) -> bool:
    """Whether the service told the end of one of them since then, so that it works."""
    ends = [each.prediction for each in outcomes if each.prediction.upstream_id is not None]
    return any(each.ended_at is not None and each.ended_at >= began for each in ends)


def _status_of(error: ImagenError | None, predictions: Sequence[Prediction]) -> ItemStatus:
    if error is None:
        return ItemStatus.SUCCEEDED
    if isinstance(error, OutputDefective) and error.expired:
        return ItemStatus.EXPIRED
    stopped = isinstance(error, PredictionCanceled) and not any(map(_took_too_long, predictions))
    return ItemStatus.CANCELED if stopped else ItemStatus.FAILED


def _took_too_long(prediction: Prediction) -> bool:
    return (prediction.latency_ms or 0) / 1000 >= prediction.deadline_seconds


def _problem_of(error: ImagenError) -> dict[str, Any]:
    """What an error knows besides its sentence, so that faces show it later as they would now."""
    found: dict[str, Any] = {
        name: msgspec.to_builtins(value)
        for name in ("prediction_id", "category", "reason", "budget", "quote_micros", "renews_at")
        if (value := getattr(error, name, None)) is not None
    }
    if problems := getattr(error, "problems", ()):
        found["problems"] = msgspec.to_builtins(list(problems))
    return found


def _files_of(outcome: Outcome) -> Sequence[str]:
    """Where the pictures of a prediction are, as an item tells it."""
    shelved = {str(each.path): each.shelf_id for each in outcome.pictures if each.shelf_id is not None}
    return [f"shelf:{shelved[name]}" if name in shelved else name for name in outcome.prediction.files]
