"""What everything cost, and what may be spent: budgets, the ledger, and other places that have its entries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from imagen.domain.budget import Balance, Budget, Charge, Shortage
from imagen.domain.usage import UsageEntry, UsageQuery, UsageSummary


class Budgets(Protocol):
    """Limits on spending, with how each of them stands. What is reserved and settled goes through `Limits` and `PredictionStore`.

    Raises:
        StoreError: the store could not be read or written; nothing changed.
    """

    async def set(self, budget: Budget, *, now: datetime) -> None:
        """Make one, or change it. What was spent before in its present period counts; what is reserved stays so.

        Raises:
            InvalidInput: there are too many.
        """

    async def remove(self, name: str) -> None:
        """Remove one.

        Raises:
            NotFound: none is called so.
        """

    async def list(self, *, now: datetime) -> Sequence[Balance]:
        """How each stands in its present period, by name; of `*` one for each subject that has spent anything.

        Where nobody has, one with the subject `*` itself.
        """

    async def heal(self, *, now: datetime) -> int:
        """Close what is reserved for purchases that have ended already, as a process of an older release does not; how many.

        What stands in the ledger is settled, what ended free of charge or was deleted is voided.
        """

    async def shortage(self, charges: Sequence[Charge], *, now: datetime) -> Shortage | None:
        """The first hard budget that has no room now for all of these together. Reserves nothing."""


class Ledger(Protocol):
    """Holds what everything cost. Writing an entry twice is the same as writing it once.

    Raises:
        StoreError: it could not be written; the caller keeps the entry and tries again.
    """

    async def record(self, entries: Sequence[UsageEntry]) -> None:
        """Write entries; mark their predictions as settled."""

    async def entries(
        self, *, since: datetime | None = None, limit: int | None = None
    ) -> Sequence[UsageEntry]:
        """Entries, newest first, with what their callers thought of the pictures."""

    async def page(self, query: UsageQuery, *, before: str | None = None, limit: int) -> Sequence[UsageEntry]:
        """Some of the entries that a query takes, newest first, with what their callers thought of the pictures.

        Args:
            query: which; how they are added up means nothing here.
            before: the id of the last one of the page before; None begins with the newest.
            limit: so many at most.

        Raises:
            NotFound: there is no entry `before`.
        """

    async def summary(self, query: UsageQuery) -> UsageSummary:
        """The entries that a query takes, added up as `domain.usage.summarize` does, without holding them in memory."""

    async def unsunk(self, sink: str, *, limit: int) -> Sequence[UsageEntry]:
        """Entries that a sink does not have yet, the oldest first; then those that only another sink has.

        Without those that it refused.
        """

    async def count_unsunk(self, sink: str) -> int:
        """How many entries a sink does not have yet, with those that it refused."""

    async def sunk(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        """It has these now."""

    async def refused(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        """It refuses these: they are passed over until they are offered again."""

    async def count_refused(self, sink: str) -> int:
        """How many entries a sink refused."""

    async def offer_again(self, sink: str) -> None:
        """Pass over nothing any more that a sink refused."""


class UsageSink(Protocol):
    """Another place that has the ledger's entries besides our own database. Writing the same twice changes nothing.

    Attributes:
        name: the same for the same place: the kind and a fingerprint of where it is, without secrets.

    Raises:
        SinkError: it refused, broke, or could not be reached.
    """

    name: str

    async def write(self, entries: Sequence[UsageEntry]) -> None:
        """Write entries, some hundreds at most; those that are there stay as they are. All of them, or an error."""

    async def read(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[UsageEntry]:
        """Entries since an instant, the newest first. None has `kept`, which is told later and stays with us."""

    async def migrate(self) -> None:
        """Make the table, or add what an older one lacks. Doing it again changes nothing."""

    async def aclose(self) -> None:
        """Give back connections."""
