"""Who may go now: places, rates, and calls that are not creates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from imagen.domain.limits import AccountState, LineReport, Need, Refusal, Verdict
from imagen.domain.outlook import LimitStanding
from imagen.domain.prediction import Allowance
from imagen.domain.semaphore import Holder, Lease, Semaphore


class Limits(Protocol):
    """Who may go now: places and rates, counted exactly for all processes of one store.

    Instants are epoch seconds. A place that a prediction holds is given back by the store itself in the moment in which
    its end is written down, or when its lease ends; `give_back` is for everything else.

    Raises:
        StoreError: the store could not be read or written; nothing changed.
    """

    async def take(
        self, needs: Sequence[Need], *, now: float, line: str, waiting: Mapping[str, LineReport]
    ) -> Sequence[Verdict]:
        """Give each need all it asks for or nothing, in this order, in one transaction.

        Args:
            needs: those whose turn it is, the first first.
            now: the instant.
            line: the name of the line that asks; lines of all processes are served first come, first served.
            waiting: who else stands in that line, by limit.
        """

    async def give_back(self, lease: str, *, unsent: bool = False) -> None:
        """Free every place of a lease; with `unsent` also forget its intent, of which nothing was sent."""

    async def leave(self, line: str) -> None:
        """Nobody stands in that line any more."""

    async def refused(self, account: str, refusal: Refusal, *, now: float) -> None:
        """The service said 429: the account's gate is closed for everybody until its reset."""

    async def note_allowance(
        self, account: str, allowance: Allowance, *, sequence: int, age: float, now: float
    ) -> None:
        """The answer to the create `sequence`, sent `age` seconds ago, told what is left."""

    async def take_calls(self, account: str, count: int, *, now: float) -> float:
        """Take `count` calls that are not creates; seconds to wait when there are none now (then nothing is taken)."""

    async def show(self, account: str, *, now: float) -> AccountState:
        """How an account stands."""

    async def standing(
        self, need: Need, *, count: int, now: float, line: str, waiting: Mapping[str, int]
    ) -> Sequence[LimitStanding]:
        """How each limit stands that a need asks for, if it came now. Nothing is taken, nobody stands in line for it.

        Args:
            need: what would be asked for.
            count: so many times at once.
            now: the instant.
            line: the name of the line that it would stand in.
            waiting: how many stand in that line before it, by limit; those of other lines are known here.
        """

    async def sweep(self, *, now: float) -> None:
        """Forget what has no meaning any more: ended leases, lines of the dead, rates that nobody used for a day."""


class Semaphores(Protocol):
    """Named limits, shared by everything on one store. Their places are given by `Limits`.

    Raises:
        NotFound: no semaphore is called so.
        StoreError: the store could not be read or written.
    """

    async def register(self, name: str, limit: int) -> None:
        """Make one, or change its limit; places that are held stay held."""

    async def remove(self, name: str) -> None:
        """Remove one, with its leases."""

    async def list(self, *, now: float) -> Sequence[Semaphore]:
        """All of them by name, with the places that are held now and those who wait."""

    async def show(self, name: str, *, now: float) -> tuple[Semaphore, Sequence[Holder]]:
        """One of them with its holders, the oldest first."""

    async def renew(self, name: str, lease: str, *, now: float, lasts_seconds: float) -> Lease:
        """Let a lease that has not ended last longer.

        Raises:
            NotFound: there is none of that id, or it has ended.
        """

    async def release(self, name: str, lease: str) -> None:
        """Give a place back; one that has ended already is no mistake."""


class CallBudget(Protocol):
    """Paces the calls of an account that are not creates. Shared between tasks."""

    async def enter(self, account: str) -> None:
        """Wait until one more call may be made."""

    async def refused(self, account: str, *, retry_after: float | None, detail: str) -> None:
        """The service said 429 to such a call."""
