"""How long a batch takes behind a rate limit, and how many 429s it draws: the learning gate, and what others do.

    .venv/bin/python bench/limits.py [runs of each]

A simulation, so nothing is slow and no machine matters: 1,000 predictions, 60 at once, a way of 20 ms and more in each
direction, six kinds of limit. Each cell is the makespan over that of an oracle that sees the service's own counter,
and in brackets the 429s of one run; both are means over the runs. 1.000 cannot be beaten.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from imagen.limits.gate import Gate

CREATES, AT_ONCE, RUNS = 1000, 60, 3
SERVICE_SECONDS = (1.5, 8.0, 40.0)


class Limit(Protocol):
    """What the service holds calls against."""

    def take(self, now: float) -> float:
        """0 where the call is let through, else the seconds until one would be."""

    def left(self, now: float) -> int:
        """`ratelimit-remaining`."""


class Bucket:
    """Calls drip in at a rate, up to a size."""

    def __init__(self, rate: float, size: float) -> None:
        self.rate, self.size = rate, size
        self.level, self.at = size, 0.0

    def drip(self, now: float) -> None:
        """Let in what has come since."""
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now

    def take(self, now: float) -> float:
        """As `Limit` says."""
        self.drip(now)
        if self.level >= 1 - 1e-9:
            self.level -= 1
            return 0.0
        return max(1e-6, (1 - self.level) / self.rate)

    def left(self, now: float) -> int:
        """As `Limit` says."""
        self.drip(now)
        return int(self.level)


class Sliding:
    """Calls that were refused do not count."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: deque[float] = deque()

    def take(self, now: float) -> float:
        """As `Limit` says."""
        while self.calls and self.calls[0] <= now - 60:
            self.calls.popleft()
        if len(self.calls) < self.most:
            self.calls.append(now)
            return 0.0
        return max(1e-6, self.calls[0] + 60 - now)

    def left(self, now: float) -> int:  # noqa: ARG002 - a window's level only changes when it is asked
        """As `Limit` says."""
        return self.most - len(self.calls)


class Calendar:
    """So many in each minute of the clock; the client does not know when that begins."""

    def __init__(self, most: int, phase: float) -> None:
        self.most, self.phase = most, phase
        self.minute, self.calls = -1, 0

    def take(self, now: float) -> float:
        """As `Limit` says."""
        minute = math.floor((now + self.phase) / 60)
        if minute != self.minute:
            self.minute, self.calls = minute, 0
        if self.calls < self.most:
            self.calls += 1
            return 0.0
        return max(1e-6, (minute + 1) * 60 - self.phase - now)

    def left(self, now: float) -> int:  # noqa: ARG002 - as above
        """As `Limit` says."""
        return self.most - self.calls


LIMITS: dict[str, tuple[Callable[[float], Limit], float]] = {
    "bucket, burst 60": (lambda _: Bucket(10, 60), 0.0),
    "bucket, burst 600": (lambda _: Bucket(10, 600), 0.0),
    "sliding 600 a minute": (lambda _: Sliding(600), 0.0),
    "calendar minute, 600": (lambda phase: Calendar(600, phase), 0.0),
    "sliding, truly 300": (lambda _: Sliding(300), 0.0),
    "sliding 600, others take 5/s": (lambda _: Sliding(600), 5.0),
}
"""What makes the limit from a phase in seconds, and the calls a second of other clients."""


class Client:
    """One that keeps no order among its calls: a refused one tries again by itself after a while."""

    ordered = False

    def ready_at(self, now: float) -> float:
        """When the next call may be sent."""
        return now

    def sent(self, now: float) -> int:  # noqa: ARG002 - a peer that counts nothing
        """Note a call; its number."""
        return 0

    def answered(self, now: float, remaining: int, sequence: int, age: float) -> None:
        """Told of what is left."""

    def refused(self, now: float, retry_after: float, sequence: int) -> None:
        """Told of a 429."""

    def again(self, wait: float, tries: int, luck: random.Random) -> float:  # noqa: ARG002 - the oracle's need it
        """Seconds until a refused call is sent again by itself."""
        return min(30.0, 2.0 ** (tries - 1)) * luck.uniform(0.5, 1.0)


class Oracle(Client):
    """Knows to the instant when the next call is let through."""

    def again(self, wait: float, tries: int, luck: random.Random) -> float:  # noqa: ARG002 - it knows
        """Seconds until a refused call is sent again by itself."""
        return wait


class FixedBucket(Client):
    """A token bucket as libraries offer it: 10 a second, and a minute's burst that may or may not be granted."""

    ordered = True

    def __init__(self) -> None:
        self.owed = self.pause = 0.0

    def ready_at(self, now: float) -> float:
        """When the next call may be sent."""
        return max(now, self.pause, self.owed - 59.9)

    def sent(self, now: float) -> int:
        """Note a call; its number."""
        self.owed = max(self.owed, now) + 0.1
        return 0

    def refused(self, now: float, retry_after: float, sequence: int) -> None:  # noqa: ARG002 - a peer
        """A 429 comes; whole seconds, rounded up, as services say them."""
        self.owed -= 0.1
        self.pause = max(self.pause, now + retry_after)


class Learning(Client):
    """Ours."""

    ordered = True
    epoch = 1.8e9

    def __init__(self, *, headers: bool) -> None:
        self.gate, self.headers = Gate.opened(600), headers

    def ready_at(self, now: float) -> float:
        """When the next call may be sent."""
        return self.gate.ready_at(now + self.epoch) - self.epoch

    def sent(self, now: float) -> int:
        """Note a call; its number."""
        return self.gate.sent(now + self.epoch)

    def answered(self, now: float, remaining: int, sequence: int, age: float) -> None:
        """The answer comes, with what was left."""
        if self.headers:
            self.gate.note_allowance(now + self.epoch, remaining=remaining, sequence=sequence, age=age)

    def refused(self, now: float, retry_after: float, sequence: int) -> None:
        """A 429 comes; whole seconds, rounded up, as services say them."""
        self.gate.refused(now + self.epoch, retry_after=retry_after, detail="", sequence=sequence)


CLIENTS: dict[str, Callable[[], Client]] = {
    "back-off per task": Client,
    "fixed bucket 10/s, burst 600": FixedBucket,
    "learning gate": lambda: Learning(headers=False),
    "learning gate, told what remains": lambda: Learning(headers=True),
}


def way(luck: random.Random) -> float:
    """Seconds from here to the service."""
    return 0.02 + luck.expovariate(100)


class Batch:
    """One run. Events are (when, tie-breaker, what, about it)."""

    def __init__(
        self,
        limit: Limit,
        client: Client,
        *,
        luck: random.Random,
        runs: list[float],
        others: float,
        width: int,
    ) -> None:
        self.limit, self.client, self.luck, self.runs, self.others = limit, client, luck, runs, others
        self.events: list[tuple[float, int, Callable[..., None], tuple[float, ...]]] = []
        self.ties = 0
        self.waiting = deque(range(len(runs)))
        self.tries = [0] * len(runs)
        self.free, self.left = width, len(runs)
        self.wakes_at = math.inf
        self.ended = 0.0
        self.refusals = 0

    def later(self, at: float, what: Callable[..., None], *about: float) -> None:
        """Plan an event."""
        self.ties += 1
        heapq.heappush(self.events, (at, self.ties, what, about))

    def run(self) -> tuple[float, int]:
        """Makespan in seconds, and 429s."""
        if self.others:
            self.later(self.luck.expovariate(self.others), self.other)
        self.send(0.0)
        while self.left:
            at, _, what, about = heapq.heappop(self.events)
            what(at, *about)
        return self.ended, self.refusals

    def send(self, now: float) -> None:
        """Send what may be sent."""
        while self.free and self.waiting:
            at = self.client.ready_at(now)
            if at > now + 1e-6:
                if at < self.wakes_at:
                    self.wakes_at = at
                    self.later(at, self.wake)
                return
            self.free -= 1
            sequence = self.client.sent(now)
            self.later(now + way(self.luck), self.arrive, self.waiting.popleft(), sequence, now)

    def wake(self, now: float) -> None:
        """The client said that it may send by now."""
        self.wakes_at = math.inf
        self.send(now)

    def arrive(self, now: float, task: int, sequence: int, sent: float) -> None:
        """A call comes to the service."""
        wait = self.limit.take(now)
        if not wait:
            self.later(now + way(self.luck), self.answered, self.limit.left(now), sequence, sent)
            self.later(now + self.runs[task] + way(self.luck), self.done)
        elif isinstance(self.client, Oracle):
            self.later(now + wait, self.arrive, task, sequence, sent)
        else:
            self.refusals += 1
            self.later(now + way(self.luck), self.refused, task, math.ceil(wait), sequence)

    def answered(self, now: float, remaining: int, sequence: int, sent: float) -> None:
        """The answer comes, with what was left."""
        self.client.answered(now, remaining, sequence, now - sent)

    def refused(self, now: float, task: int, wait: int, sequence: int) -> None:
        """A 429 comes; whole seconds, rounded up, as services say them."""
        self.tries[task] += 1
        if not self.client.ordered:
            pause = self.client.again(wait, self.tries[task], self.luck)
            self.later(now + pause, self.arrive, task, sequence, now + pause)
            return
        self.client.refused(now, wait, sequence)
        self.waiting.appendleft(task)
        self.free += 1
        self.send(now)

    def done(self, now: float) -> None:
        """A prediction has ended."""
        self.left -= 1
        self.ended = now
        self.free += 1
        self.send(now)

    def other(self, now: float) -> None:
        """Another client's call comes to the service."""
        self.limit.take(now)
        self.later(now + self.luck.expovariate(self.others), self.other)


def outcomes(
    make: Callable[[], Client], name: str, seconds: float, runs: int, width: int
) -> Iterator[tuple[float, int]]:
    make_limit, others = LIMITS[name]
    for seed in range(runs):
        times = random.Random(seed)  # noqa: S311 - the same for everybody, no secret
        lasts = [seconds * times.lognormvariate(-0.03125, 0.25) for _ in range(CREATES)]
        luck = random.Random(1000 + seed)  # noqa: S311 - as above
        yield Batch(make_limit(17.0 + seed), make(), luck=luck, runs=lasts, others=others, width=width).run()


def table(seconds: float, runs: int, width: int) -> None:
    print(f"\n### {CREATES:,} creates of about {seconds:g} s, {width} at once\n")
    print("| | " + " | ".join(LIMITS) + " |\n|---" + "|---" * len(LIMITS) + "|")
    best = {name: [took for took, _ in outcomes(Oracle, name, seconds, runs, width)] for name in LIMITS}
    print(
        "| oracle, seconds | " + " | ".join(f"{statistics.mean(took):.1f}" for took in best.values()) + " |"
    )
    for client, make in CLIENTS.items():
        cells = []
        for name in LIMITS:
            got = list(outcomes(make, name, seconds, runs, width))
            ratio = statistics.mean(took / bound for (took, _), bound in zip(got, best[name], strict=True))
            cells.append(f"{ratio:.3f} ({statistics.mean(refusals for _, refusals in got):.1f})")
        print(f"| {client} | " + " | ".join(cells) + " |", flush=True)


def cost() -> None:
    """What one call costs the process itself."""
    gate, rounds, now = Gate.opened(1_000_000), 200_000, 1.8e9
    began = time.perf_counter()
    for _ in range(rounds):
        gate.ready_at(now)
        gate.sent(now)
        now += 0.0001
    each = (time.perf_counter() - began) / rounds
    print(f"\n`ready_at` and `sent` together: {each * 1e6:.2f} µs")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    for seconds in SERVICE_SECONDS:
        table(seconds, runs, AT_ONCE)
    cost()


if __name__ == "__main__":
    main()
