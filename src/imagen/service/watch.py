"""Watching predictions until they end: together where many are due, one by one where few are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cachetools import FIFOCache

from imagen.domain.limits import Lane
from imagen.domain.prediction import Prediction, Sighting, Status
from imagen.ports import Backend, Clock
from imagen.service.pace import RunTimeBook
from imagen.service.watch_account import AccountWatch
from imagen.service.watched import Watch

_SPARED = 0.1
"""The share of what may be held open that batches leave to those who wait."""
_MOST_EARLY_CALLS = 1000
_MOST_EXPECTED = 10_000
_MOST_ACCOUNTS = 100
"""So many are remembered; those of which nothing is watched are forgotten then."""


class Watcher:
    """Everything of this process that runs at a service and is not held open, by account.

    Args:
        times: what is known of how long models run.
        clock: tells the time.
        calls_per_minute: an account's allowance for calls that are not creates; half of it may be used for watching.
    """

    def __init__(self, *, times: RunTimeBook, clock: Clock, calls_per_minute: int) -> None:
        self._times = times
        self._clock = clock
        self._per_second = calls_per_minute / 60 / 2
        self._accounts: dict[str, AccountWatch] = {}
        self._early: FIFOCache[str, None] = FIFOCache(_MOST_EARLY_CALLS)
        self._expected: FIFOCache[str, float] = FIFOCache(_MOST_EXPECTED)

    @property
    def watching(self) -> int:
        """How many predictions are watched now."""
        return sum(account.watching for account in self._accounts.values())

    def watch(
        self,
        backend: Backend,
        prediction: Prediction,
        *,
        ends_at: float,
        closely: bool = False,
        expects_webhook: bool = False,
    ) -> Watch:
        """Watch a prediction while a block runs: `with watcher.watch(…) as watch: await watch.news()`, while it takes.

        Args:
            backend: the one it belongs to.
            prediction: with its upstream id, not ended.
            ends_at: the monotonic instant at which it is looked at for the last time.
            closely: somebody looks at its progress: every look is news, and there are many.
            expects_webhook: `wake` is called when there is something to see; looks by ourselves come late.

        Raises:
            ValueError: it has no upstream id.
        """
        if prediction.upstream_id is None:
            raise ValueError(f"{prediction.id} has no upstream id yet")
        gone = (self._clock.now() - (prediction.sent_at or prediction.created_at)).total_seconds()
        allowed = max(prediction.deadline_seconds, 0.0)
        watch = Watch(
            backend,
            prediction,
            began=self._clock.monotonic() - min(max(gone, 0.0), allowed),
            ends_at=ends_at,
            closely=closely,
            expects_webhook=expects_webhook,
        )
        account = self._accounts.get(prediction.account)
        if account is None:
            self._forget_idle()
            account = self._accounts[prediction.account] = AccountWatch(
                times=self._times, clock=self._clock, per_second=self._per_second
            )
        account.add(watch, created=self._expected.pop(watch.upstream_id, None))
        if self._early.pop(watch.upstream_id, watch) is None:
            account.wake(watch.upstream_id)
        return watch

    def expect(self, sighting: Sighting) -> None:
        """One that is about to be watched was seen: it is found on a page by when it was created."""
        if sighting.created_at is None or sighting.status.terminal:
            return
        self._expected[sighting.upstream_id] = sighting.created_at.timestamp()

    def wake(self, upstream_id: str) -> None:
        """Look at a prediction at once: somebody said that there is something to see. Any text may be said.

        One that is not watched yet may be in a moment: then it is looked at at once.
        """
        found = [account for account in self._accounts.values() if account.wake(upstream_id)]
        if found:
            return
        self._early.setdefault(upstream_id, None)  # told again, it keeps its place

    def learn(self, backend: Backend, prediction: Prediction) -> None:
        """Take note of how long one has taken whose create was held open until its end."""
        taken = prediction.latency_ms
        if prediction.status is Status.SUCCEEDED and taken is not None:
            self._times.learn(prediction.model, taken / 1000, practice=backend.practice)

    def typical_seconds(self, backend: Backend, model: str) -> float | None:
        """How long half of a model's runs take at most, from the create to the end; None while little is known."""
        known = self._times.of(model, practice=backend.practice)
        return None if known is None else known.median

    async def recall(self) -> None:
        """Wait until what was learned before is read; without that, it is read while others go on."""
        await self._times.recall()

    def _forget_idle(self) -> None:
        if len(self._accounts) < _MOST_ACCOUNTS:
            return
        for name, account in list(self._accounts.items()):
            if not account.watching and not account.looking:
                del self._accounts[name]

    async def aclose(self) -> None:
        """Stop looking, and write down what was learned."""
        for account in self._accounts.values():
            await account.aclose()
        self._accounts.clear()
        await self._times.aclose()


class HeldOpen:
    """How many creates of this process may be held open at once until their runs have ended.

    Args:
        budget: so many; each of them is a connection.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._for_batches = budget - int(budget * _SPARED)
        self.held = 0

    @contextmanager
    def hold(self, seconds: float, *, lane: Lane) -> Iterator[float]:
        """How long a create may be held open, for one that is under way while the block runs.

        Args:
            seconds: as long as it would be held if there were room.
            lane: batches leave a tenth to those who wait.

        Yields:
            `seconds`, or 0 where there is no room.
        """
        if seconds <= 0 or self.held >= (self._for_batches if lane is Lane.BATCH else self._budget):
            yield 0.0
            return
        self.held += 1
        try:
            yield seconds
        finally:
            self.held -= 1
