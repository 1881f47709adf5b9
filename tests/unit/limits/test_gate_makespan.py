"""A batch behind each kind of limit: about as quick as if the service's counter were seen, and hardly a 429.

1,000 calls whose predictions take about 1.5 s, 60 at once, 20 ms and more each way; `bench/limits.py` measures more.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable

import pytest

from imagen.limits.gate import Gate

CALLS, AT_ONCE, SECONDS = 1000, 60, 1.5
EPOCH = 1_800_000_000.0
PHASE = 17.0
Limit = Callable[[float], tuple[float, int]]
"""Asked at an instant: seconds to wait (0 for let through) and how many calls are left."""


def bucket(rate: float, size: float) -> Limit:
    level, at = size, 0.0

    def take(now: float) -> tuple[float, int]:
        nonlocal level, at
        level, at = min(size, level + (now - at) * rate), now
        if level < 1 - 1e-9:
            return max(1e-6, (1 - level) / rate), 0
        level -= 1
        return 0.0, int(level)

    return take


def sliding(most: int) -> Limit:
    calls: deque[float] = deque()

    def take(now: float) -> tuple[float, int]:
        while calls and calls[0] <= now - 60:
            calls.popleft()
        if len(calls) >= most:
            return max(1e-6, calls[0] + 60 - now), 0
        calls.append(now)
        return 0.0, most - len(calls)

    return take


def calendar(most: int) -> Limit:
    counted: dict[int, int] = {}

    def take(now: float) -> tuple[float, int]:
        minute = math.floor((now + PHASE) / 60)
        if counted.get(minute, 0) >= most:
            return max(1e-6, (minute + 1) * 60 - PHASE - now), 0
        counted[minute] = counted.get(minute, 0) + 1
        return 0.0, most - counted[minute]

    return take


LIMITS = {
    "bucket of 60": (lambda: bucket(10, 60), 0.0),
    "bucket of 600": (lambda: bucket(10, 600), 0.0),
    "sliding minute": (lambda: sliding(600), 0.0),
    "calendar minute": (lambda: calendar(600), 0.0),
    "half of what is configured": (lambda: sliding(300), 0.0),
    "shared with others": (lambda: sliding(600), 5.0),
}


def batch(  # noqa: C901, PLR0912, PLR0915 - a loop over events reads best as a whole
    limit: Limit,
    *,
    seed: int,
    gate: Gate | None,
    others: float = 0,
    headers: bool = False,
    begins: float = EPOCH,
) -> tuple[float, int]:
    """Seconds that it takes, and 429s; without a gate, of one who knows when the next call is let through."""
    luck, lengths = random.Random(seed), random.Random(seed + 100)
    waiting = deque(SECONDS * lengths.lognormvariate(-0.03, 0.25) for _ in range(CALLS))
    events: list[tuple[float, int, str, tuple[float, ...]]] = []
    free, left, ties, refusals, now, wakes_at = AT_ONCE, CALLS, 0, 0, 0.0, math.inf

    def later(at: float, what: str, *about: float) -> None:
        nonlocal ties
        ties += 1
        heapq.heappush(events, (at, ties, what, about))

    def way() -> float:
        return 0.02 + luck.expovariate(100)

    later(0.0, "send")
    if others:
        later(luck.expovariate(others), "other")
    while left:
        now, _, what, about = heapq.heappop(events)
        if what == "arrive":
            wait, remaining = limit(now)
            lasts, sequence, sent = about
            if not wait:
                later(now + way(), "answer", remaining, sequence, sent)
                later(now + lasts + way(), "done")
            elif gate is None:
                later(now + wait, "arrive", *about)
            else:
                later(now + way(), "429", math.ceil(wait), *about)
        elif what == "answer" and gate is not None and headers:
            remaining, sequence, sent = about
            gate.note_allowance(
                begins + now, remaining=int(remaining), sequence=int(sequence), age=now - sent
            )
        elif what == "429" and gate is not None:
            wait, lasts, sequence, _sent = about
            gate.refused(begins + now, retry_after=wait, detail="", sequence=int(sequence))
            refusals += 1
            free += 1
            waiting.appendleft(lasts)
        elif what == "done":
            left -= 1
            free += 1
        elif what == "other":
            limit(now)
            later(now + luck.expovariate(others), "other")
        elif what == "send":
            wakes_at = math.inf
        while free and waiting and what != "other":
            ready = now if gate is None else gate.ready_at(begins + now) - begins
            if ready > now + 1e-6:
                if ready < wakes_at:
                    wakes_at = ready
                    later(ready, "send")
                break
            free -= 1
            later(
                now + way(), "arrive", waiting.popleft(), 0 if gate is None else gate.sent(begins + now), now
            )
    return now, refusals


@pytest.mark.parametrize("headers", [False, True], ids=["untold", "told what remains"])
@pytest.mark.parametrize("name", LIMITS)
def test_a_batch_takes_hardly_longer_than_it_must(name: str, headers: bool):
    make, others = LIMITS[name]
    for seed in (1, 2):
        bound, _ = batch(make(), seed=seed, gate=None, others=others)
        took, refusals = batch(make(), seed=seed, gate=Gate.opened(600), others=others, headers=headers)
        assert took / bound <= 1.05
        assert refusals <= (5 if headers else 12)


@pytest.mark.parametrize("name", ["bucket of 60", "bucket of 600", "sliding minute", "calendar minute"])
def test_a_later_batch_behind_a_known_limit_draws_no_429(name: str):
    make, _ = LIMITS[name]
    gate = Gate.opened(600)
    batch(make(), seed=1, gate=gate)
    before = gate.refusals
    bound, _ = batch(make(), seed=2, gate=None)
    took, _ = batch(make(), seed=2, gate=gate, begins=EPOCH + 6000)
    assert gate.refusals == before
    assert took / bound <= 1.05
