"""From a request that was understood to its pictures, by the way of all others: checked, quoted, bought once, followed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from imagen.domain.batch import Batch, Idempotency
from imagen.domain.money import Usd, to_dollars
from imagen.errors import DeliveryError, Draining, ImagenError, OutputDefective, WaitTimeout
from imagen.server.access import scope_of
from imagen.server.batch_shapes import error_of
from imagen.server.context import Context, Gone
from imagen.server.durable import accept_one, all_items, ended, known
from imagen.server.headers import PREDICTION_ID
from imagen.server.idempotency import REPLAYED, fingerprint
from imagen.server.left_runs import Run, Work, patience_with
from imagen.server.openai.errors import RETRY, error_object, in_callers_words
from imagen.server.openai.job import Job, order_of
from imagen.server.openai.pictures import Shot, Whole, fetch_all, shots_of
from imagen.server.results import HANDED_OVER, Turn, cache_header, cost_header
from imagen.server.wishes import (
    as_told,
    keeps,
)
from imagen.service.finish import Outcome

_FETCH_IT = "They were charged: fetch them within the hour from the `urls` in `imagen.failures`, and do not ask again."


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction without a picture that can be shown, and why."""

    error: ImagenError
    prediction_id: str
    urls: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """As answers tell it."""
        told = error_object(self.error)
        shown = {"prediction_id": self.prediction_id, "message": told["message"], "code": told["code"]}
        return shown | ({"urls": list(self.urls)} if self.urls else {})


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job.

    Attributes:
        shots: the pictures, in order.
        failures: the predictions that made none.
        outcomes: all of them.
        headers: of the answer.
        lost: of the pictures, how many could not be fetched.
        left: remembers it for the same request, when the caller leaves before the answer; None where it is durable.
    """

    shots: list[Shot]
    failures: list[Failure]
    outcomes: Sequence[Outcome]
    headers: dict[str, str]
    lost: int = 0
    left: Callable[[], Awaitable[None]] | None = None

    @property
    def prediction_ids(self) -> list[str]:
        """The ids of all predictions."""
        return [outcome.prediction.id for outcome in self.outcomes]

    @property
    def cost(self) -> Usd | None:
        """What all of it cost; None where nobody can tell."""
        return Usd.total_or_none([outcome.prediction.spent for outcome in self.outcomes])


class FailedError(Exception):
    """There is no picture at all.

    Attributes:
        error: why.
        cost: what was paid all the same; None where nobody can tell.
        headers: of the answer.
        prediction_ids, failures: what was begun all the same, and what became of it.
    """

    def __init__(
        self,
        error: ImagenError,
        *,
        cost: Usd | None,
        headers: dict[str, str],
        prediction_ids: Sequence[str] = (),
        failures: Sequence[Failure] = (),
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.cost = cost
        self.headers = headers
        self.prediction_ids = prediction_ids
        self.failures = failures

    def besides(self) -> dict[str, Any]:
        """What the answer tells of it besides the error."""
        told: dict[str, Any] = {"cost_usd": to_dollars(self.cost)}
        if self.prediction_ids:
            told["prediction_ids"] = list(self.prediction_ids)
        if self.failures:
            told["failures"] = [failure.shown() for failure in self.failures]
        return told


# --- buying -------------------------------------------------------------------------------------------------

Making = Callable[[Turn], Awaitable[Made]]
"""Carries an order out, told about by an observer."""


async def order_for(context: Context, request: Request, job: Job) -> Making:
    """Check everything that can be checked; what comes back carries it out, once.

    Raises:
        ImagenError: it cannot be carried out; nothing was bought.
    """
    if job.mark is not None:
        return await _once(context, request, job, job.mark)
    left = await _left_before(context, request, job)
    if left is not None:
        return _made_by(context, request, job, left, None)
    order = await order_of(context, request, job)
    run = Run(goes_on=keeps(context, job.ours))
    return _made_by(context, request, job, run, lambda: context.app.gateway.carry_out(order, observer=run))


async def _left_before(context: Context, request: Request, job: Job) -> Run | None:
    """What the very same request has begun, whose caller went away before the answer."""
    if not context.left_runs:
        return None
    asked = await _fingerprint(request, job)
    return context.left_runs.take(scope=scope_of(job.visitor), fingerprint=asked)


async def _fingerprint(request: Request, job: Job) -> str:
    return await asyncio.to_thread(fingerprint, request, await job.asked.content())


def _made_by(context: Context, request: Request, job: Job, run: Run, work: Work | None) -> Making:
    """What comes of a run, which is there for the same request when the caller leaves before the answer.

    Args:
        context: of the server.
        request: of the caller.
        job: what they want.
        run: what makes it.
        work: begins it; None where it was left before, and is under way.
    """

    async def left() -> None:
        if run.leave(patience_with(request)):
            asked = await _fingerprint(request, job)
            context.left_runs.add(run, scope=scope_of(job.visitor), fingerprint=asked)

    async def make(turn: Turn) -> Made:
        try:
            outcomes = await run.outcomes(context, request, turn, work=work)
        except Gone:
            await left()
            raise
        except Draining as error:
            if turn.prediction_id is None:
                raise
            raise _handed_over(error, turn.prediction_id, None, turn.headers()) from error
        headers = turn.headers() | (dict(REPLAYED) if work is None else {})
        made = await _made(context, request, job, outcomes, headers=headers)
        return msgspec.structs.replace(made, left=left)

    return make


async def _once(context: Context, request: Request, job: Job, mark: Idempotency) -> Making:
    """The same for a request that may come again: taken on durably, and answered from what was written down."""
    batch = await known(context, job.visitor, mark)
    replayed = batch is not None
    if batch is None:
        order = await order_of(context, request, job)
        batch = await accept_one(context, request, job.visitor, job.ours, order, mark=mark, outlives=False)
    taken: Batch = batch

    async def make(turn: Turn) -> Made:  # noqa: ARG001 - others work on it, and tell nobody here
        headers = dict(REPLAYED) if replayed else {}
        try:
            await ended(context, request, job.visitor, taken, seconds=taken.remembered.deadline_seconds)
        except (Draining, WaitTimeout) as error:
            # It goes on, and whoever asks with the same key again gets it.
            raise FailedError(error, cost=None, headers=headers | {RETRY: "true"}) from error
        except ImagenError as error:
            raise FailedError(error, cost=None, headers=headers) from error
        (item,) = await all_items(context, taken.id)
        outcomes = await context.app.batches.outcomes(item)
        if all(outcome.error is not None for outcome in outcomes):
            # What was refused before it ran is known by the item alone.
            told = in_callers_words(as_told(error_of(item), job.visitor), job.words.origins)
            ids = ", ".join(outcome.prediction.id for outcome in outcomes)
            known_ids = {PREDICTION_ID: ids} if ids else {}
            raise FailedError(told, cost=item.cost, headers=headers | job.headers() | known_ids)
        return await _made(context, request, job, outcomes, headers=headers)

    return make


async def _made(
    context: Context, request: Request, job: Job, outcomes: Sequence[Outcome], *, headers: dict[str, str]
) -> Made:
    """The pictures of all predictions.

    Raises:
        FailedError: there is none.
    """
    shots: list[Shot] = []
    failures: list[Failure] = []
    for outcome in outcomes:
        if outcome.error is None:
            shots += await shots_of(context, request, job.visitor.backend, outcome)
            continue
        told = in_callers_words(as_told(outcome.error, job.visitor), job.words.origins)
        failures.append(
            Failure(error=told, prediction_id=outcome.prediction.id, urls=outcome.prediction.output)
        )
    ids = ", ".join(outcome.prediction.id for outcome in outcomes)
    made = Made(shots=shots, failures=failures, outcomes=outcomes, headers=headers)
    told_headers = headers | job.headers() | {PREDICTION_ID: ids}
    if not shots:
        raise FailedError(
            failures[0].error,
            cost=made.cost,
            headers=told_headers,
            prediction_ids=made.prediction_ids,
            failures=failures,
        )
    cached = next((found for outcome in outcomes if (found := cache_header(outcome))), {})
    return msgspec.structs.replace(made, headers=told_headers | cost_header(made.cost) | cached)


async def fetch_pictures(
    context: Context, request: Request, job: Job, made: Made
) -> tuple[Made, list[Whole]]:
    """The pictures themselves; of those that could not be had their addresses are told among the failures.

    Raises:
        FailedError: none could be had.
    """
    try:
        found = await context.stay(
            request, fetch_all(context, job.visitor.backend, made.shots), goes_on=False
        )
    except Gone:
        if made.left is not None:
            await made.left()
        raise
    except Draining as error:
        raise _handed_over(error, made.shots[0].prediction_id, made.cost, made.headers) from error
    pictures = [one for one in found if isinstance(one, Whole)]
    lost = [
        Failure(error=error, prediction_id=shot.prediction_id, urls=(shot.address,))
        for shot, error in zip(made.shots, found, strict=True)
        if isinstance(error, ImagenError)
    ]
    if not pictures:
        raise FailedError(
            _undelivered(lost),
            cost=made.cost,
            headers=made.headers,
            prediction_ids=made.prediction_ids,
            failures=[*made.failures, *lost],
        )
    return msgspec.structs.replace(made, failures=[*made.failures, *lost], lost=len(lost)), pictures


def _undelivered(lost: Sequence[Failure]) -> ImagenError:
    """That there are pictures, and none of them came here."""
    first = lost[0].error
    if isinstance(first, OutputDefective):
        return first
    return DeliveryError(
        f"the pictures were made, and could not be fetched: {first.detail}",
        prediction_id=lost[0].prediction_id,
        hint=_FETCH_IT,
    )


def _handed_over(
    error: Draining, prediction_id: str, cost: Usd | None, headers: dict[str, str]
) -> FailedError:
    """What was bought, and the process ended before it could be answered."""
    lost = WaitTimeout(error.detail, prediction_id=prediction_id, hint=HANDED_OVER)
    return FailedError(lost, cost=cost, headers=headers)
