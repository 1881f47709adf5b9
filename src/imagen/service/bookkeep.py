"""Writing the ledger: at once where possible, else later; never in the way of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from imagen.domain.events import Event, LedgerDelayed
from imagen.domain.prediction import Prediction
from imagen.domain.usage import UsageEntry
from imagen.errors import StoreError
from imagen.ports import Budgets, Clock, Ledger, PredictionStore


class Keeper(Protocol):
    """Keeps entries while the ledger takes none. Raises OSError when it cannot either."""

    def add(self, entry: UsageEntry) -> None:
        """Keep one."""

    def read(self) -> Sequence[UsageEntry]:
        """All that is kept."""

    def forget(self, entries: Sequence[UsageEntry]) -> None:
        """Drop those that were written."""


class Bookkeeper:
    """Settles predictions that ended, exactly once each."""

    def __init__(
        self, *, ledger: Ledger, store: PredictionStore, budgets: Budgets, kept: Keeper, clock: Clock
    ) -> None:
        self._budgets = budgets
        self._ledger = ledger
        self._store = store
        self._kept = kept
        self._clock = clock
        self._caught_up = False

    async def settle(self, prediction: Prediction, *, notify: Callable[[Event], None]) -> Prediction:
        """Write an ended prediction into the ledger. A ledger that fails only delays the entry."""
        if prediction.upstream_id is None or prediction.settled_at is not None:
            return prediction
        entry = UsageEntry.from_prediction(prediction, at=prediction.ended_at or self._clock.now())
        try:
            await self._store.save(prediction)  # as its entry, its end may not be written down yet
            await self._ledger.record([entry])
        except StoreError as error:
            notify(LedgerDelayed(prediction.id, self._keep(entry, error)))
            return prediction
        return msgspec.structs.replace(prediction, settled_at=self._clock.now())

    async def catch_up_once(self) -> None:
        """Catch up at the first call of this process; later ones cost nothing."""
        if not self._caught_up:
            self._caught_up = True
            await self.catch_up()

    async def catch_up(self) -> int:
        """Write what earlier runs could not; how many entries that were. Never raises for a ledger that still fails.

        What other programs have ended without a word to the budgets is closed there as well.
        """
        kept = self._kept.read()
        try:
            ended = await self._store.unsettled()
            late = [UsageEntry.from_prediction(one, at=one.ended_at or self._clock.now()) for one in ended]
            await self._ledger.record([*kept, *late])
            await self._budgets.heal(now=self._clock.now())
        except StoreError:
            return 0
        if kept:
            self._kept.forget(kept)
        return len({entry.id for entry in [*kept, *late]})

    def kept(self) -> frozenset[str]:
        """The predictions whose entries were kept beside the ledger, as it could not be written."""
        return frozenset(entry.id for entry in self._kept.read())

    async def waiting(self) -> int:
        """How many entries the ledger does not have yet.

        Raises:
            StoreError: the database cannot be read.
        """
        return len(self.kept() | {one.id for one in await self._store.unsettled()})

    def _keep(self, entry: UsageEntry, reason: StoreError) -> str:
        try:
            self._kept.add(entry)
        except OSError as error:
            return f"{reason.detail}; the entry could not be kept beside it either ({error.strerror})"
        return reason.detail
