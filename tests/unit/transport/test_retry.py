"""When a failed call is made again: the table, row by row."""

from __future__ import annotations

import itertools

import pytest

from fakes.clock import ManualClock
from imagen.errors import (
    BackendBroken,
    BackendError,
    BackendRateLimited,
    BackendRejected,
    BackendUnauthenticated,
    ConnectFailed,
    ExchangeFailed,
    GarbledResponse,
    InputRejected,
    InvalidResponse,
    ModelNotFound,
    PaymentRequired,
)
from imagen.transport.retry import Attempts, RetryPolicy, call_with_retry, decide

POLICY = RetryPolicy()
NEVER = (
    BackendRejected,
    BackendUnauthenticated,
    PaymentRequired,
    ModelNotFound,
    InputRejected,
    InvalidResponse,
)
CREATE_WAITS = {
    BackendBroken: [],
    ExchangeFailed: [],
    GarbledResponse: [],
    ConnectFailed: [1, 2],
    BackendRateLimited: [1, 2, 4],
}
OTHER_WAITS = {
    BackendBroken: [0.5, 1, 2, 4, 8],
    ExchangeFailed: [0.5, 1, 2, 4, 8],
    GarbledResponse: [0.5, 1, 2, 4, 8],
    ConnectFailed: [0.5, 1, 2, 4, 8],
    BackendRateLimited: [1, 2, 4],
}


def waits(error: BackendError, *, repeatable: bool, policy: RetryPolicy = POLICY) -> list[float]:
    """All the waits until the answer is no."""
    attempts, waited = Attempts(), []
    while (wait := decide(error, attempts, repeatable=repeatable, policy=policy)) is not None:
        waited.append(wait)
        attempts = attempts.after(error)
        assert len(waited) < 50
    return waited


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("kind", NEVER)
def test_what_another_try_cannot_mend_is_never_tried_again(kind: type[BackendError], repeatable: bool):
    assert waits(kind("no"), repeatable=repeatable) == []


@pytest.mark.parametrize(("kind", "expected"), CREATE_WAITS.items())
def test_a_create_is_repeated_only_when_it_surely_was_not_bought(
    kind: type[BackendError], expected: list[float]
):
    assert waits(kind("x"), repeatable=False) == expected


@pytest.mark.parametrize(("kind", "expected"), OTHER_WAITS.items())
def test_anything_else_is_repeated_with_growing_pauses(kind: type[BackendError], expected: list[float]):
    assert waits(kind("x"), repeatable=True) == expected


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize(
    ("told", "expected"),
    [(0, [0, 0, 0]), (7.5, [7.5] * 3), (30, [30] * 3), (30.1, []), (3600, []), (float("inf"), [])],
)
def test_a_wait_that_was_told_is_kept_up_to_the_cap(told: float, expected: list[float], repeatable: bool):
    assert waits(BackendRateLimited("x", retry_after=told), repeatable=repeatable) == expected


@pytest.mark.parametrize("kind", [BackendBroken, ExchangeFailed, ConnectFailed])
def test_pauses_grow_no_longer_than_the_cap(kind: type[BackendError]):
    policy = RetryPolicy(repeatable=9)
    assert waits(kind("x"), repeatable=True, policy=policy) == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_throttling_and_faults_are_counted_apart():
    after = Attempts().after(BackendRateLimited("x")).after(BackendBroken("x")).after(ConnectFailed("x"))
    assert after == Attempts(rate_limited=1, failed=2)


def test_every_case_is_decided():
    kinds = (*NEVER, *OTHER_WAITS)
    for kind, repeatable, throttled, failed in itertools.product(kinds, (False, True), range(5), range(7)):
        error = kind("x")
        wait = decide(error, Attempts(throttled, failed), repeatable=repeatable, policy=POLICY)
        if wait is None:
            continue
        assert 0 <= wait <= POLICY.cap_seconds
        assert error.retryable
        if not repeatable:
            assert error.delivered == "no", "a create that may have arrived is never sent again"


# --- the loop ---


class Calls:
    """Fails as told, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


@pytest.mark.anyio
async def test_the_loop_waits_and_succeeds(clock: ManualClock):
    calls = Calls(BackendRateLimited("x", retry_after=5), BackendBroken("y"), ConnectFailed("z"))
    noted: list[tuple[str, float]] = []
    result = await call_with_retry(
        calls,
        repeatable=True,
        policy=POLICY,
        clock=clock,
        on_wait=lambda error, seconds: noted.append((error.detail, seconds)),
    )
    assert (result, calls.made) == ("done", 4)
    assert clock.slept == [5, 0.5, 1]
    assert noted == [("x", 5), ("y", 0.5), ("z", 1)]


@pytest.mark.anyio
async def test_what_succeeds_at_once_does_not_wait(clock: ManualClock):
    assert await call_with_retry(Calls(), repeatable=False, policy=POLICY, clock=clock) == "done"
    assert clock.slept == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "repeatable", "made", "text"),
    [
        (BackendBroken, True, 6, "x (after 6 attempts)"),
        (ConnectFailed, False, 3, "x (after 3 attempts)"),
        (BackendRateLimited, False, 4, "x (429 after 3 retries)"),
        (ExchangeFailed, False, 1, "x"),
        (PaymentRequired, True, 1, "x"),
    ],
)
async def test_the_last_error_tells_the_attempts(
    clock: ManualClock, kind: type[BackendError], repeatable: bool, made: int, text: str
):
    cause = OSError("down below")
    errors = [kind("x") for _ in range(10)]
    for error in errors:
        error.__cause__ = cause
    calls = Calls(*errors)
    with pytest.raises(kind) as told:
        await call_with_retry(calls, repeatable=repeatable, policy=POLICY, clock=clock)
    assert (calls.made, told.value.detail) == (made, text)
    assert told.value.__cause__ is cause


@pytest.mark.anyio
async def test_a_wait_that_is_too_long_is_told(clock: ManualClock):
    with pytest.raises(BackendRateLimited, match=r"asks to wait 90 s, longer than the 30 s") as told:
        await call_with_retry(
            Calls(BackendRateLimited("x", retry_after=90)), repeatable=False, policy=POLICY, clock=clock
        )
    assert told.value.retry_after == 90
    assert clock.slept == []


@pytest.mark.anyio
async def test_what_is_no_backends_error_passes_at_once(clock: ManualClock):
    with pytest.raises(ZeroDivisionError):
        await call_with_retry(Calls(ZeroDivisionError()), repeatable=True, policy=POLICY, clock=clock)
    assert clock.slept == []
