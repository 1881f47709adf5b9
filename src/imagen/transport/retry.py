"""When a failed call is made again: one pure decision, and the loop that obeys it.

answer                                      create (bought at most once)      anything repeatable
429 with a wait up to the cap               up to 3 times                      up to 3 times
429 with a longer wait                      never: the wait is told            never: the wait is told
5xx                                         never: look for it first           up to 5 times
no connection: it surely did not arrive     up to 2 times                      up to 5 times
line dropped: it may have arrived           never: look for it first           up to 5 times
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from imagen.errors import BackendError, BackendRateLimited
from imagen.ports import Clock

T = TypeVar("T")


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long. Seconds."""

    rate_limited: int = 3
    unconnected: int = 2
    repeatable: int = 5
    base_seconds: float = 1.0
    quick_seconds: float = 0.5
    cap_seconds: float = 30.0
    longest_refusal_seconds: float = 30.0


class Attempts(msgspec.Struct, frozen=True):
    """How often each kind of fault has happened to this call."""

    rate_limited: int = 0
    failed: int = 0

    def after(self, error: BackendError) -> Attempts:
        """The count with one more fault."""
        if isinstance(error, BackendRateLimited):
            return Attempts(self.rate_limited + 1, self.failed)
        return Attempts(self.rate_limited, self.failed + 1)


def decide(error: BackendError, attempts: Attempts, *, repeatable: bool, policy: RetryPolicy) -> float | None:
    """Seconds to wait before the call is made again, or None when it must not be.

    Args:
        error: what just happened.
        attempts: the faults before this one.
        repeatable: whether doing it twice is the same as doing it once.
        policy: how often, how long.
    """
    if not error.retryable:
        return None
    if isinstance(error, BackendRateLimited):
        if attempts.rate_limited >= policy.rate_limited:
            return None
        told = error.retry_after
        wait = (
            min(policy.base_seconds * 2 ** min(attempts.rate_limited, 10), policy.cap_seconds)
            if told is None
            else told
        )
        return wait if wait <= policy.longest_refusal_seconds else None
    allowed = policy.repeatable if repeatable else policy.unconnected
    if attempts.failed >= allowed or not (repeatable or error.delivered == "no"):
        return None
    return float(
        min(
            (policy.quick_seconds if repeatable else policy.base_seconds) * 2**attempts.failed,
            policy.cap_seconds,
        )
    )


async def call_with_retry(
    call: Callable[[], Awaitable[T]],
    *,
    repeatable: bool,
    policy: RetryPolicy,
    clock: Clock,
    on_wait: Callable[[BackendError, float], None] = lambda _error, _seconds: None,
) -> T:
    """Make the call until it succeeds or `decide` says no; then the last error is raised, telling the attempts."""
    attempts = Attempts()
    while True:
        try:
            return await call()
        except BackendError as error:
            wait = decide(error, attempts, repeatable=repeatable, policy=policy)
            if wait is None:
                raise with_attempts(error, attempts, policy) from error.__cause__
            attempts = attempts.after(error)
            on_wait(error, wait)
            await clock.sleep(wait)


def with_attempts(error: BackendError, attempts: Attempts, policy: RetryPolicy) -> BackendError:
    """The error with what was tried, and with the wait that was too long."""
    if isinstance(error, BackendRateLimited):
        if error.retry_after is not None and error.retry_after > policy.longest_refusal_seconds:
            error.hint = f"It asks to wait {error.retry_after:g} s, longer than the {policy.longest_refusal_seconds:g} s that we wait by ourselves. Try again then."
        elif attempts.rate_limited:
            error.detail += f" (429 after {attempts.rate_limited} retries)"
    elif attempts.failed:
        error.detail += f" (after {attempts.failed + 1} attempts)"
    return error
