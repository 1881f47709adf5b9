"""Admission: what a prediction, or another service, holds while it works."""

from __future__ import annotations

import asyncio
import logging
from typing import Self

from msgspec.structs import replace

from imagen.domain.caller import Caller
from imagen.domain.events import BudgetPassed, InLine, LetIn, Throttled
from imagen.domain.identifiers import new_secret
from imagen.domain.limits import Admitted, Need, Patience, Refusal
from imagen.domain.prediction import Allowance, Prediction
from imagen.domain.semaphore import Lease, check_lease
from imagen.errors import BackendRateLimited, NotFound, StoreError
from imagen.limits.line import Line, TellsPlace
from imagen.ports import Clock, Limits, Notify

_TOLD_EVERY_SECONDS = 0.5
_NEARLY_NOTHING = 0.25
"""With so small a share of a minute's creates left, each answer that says so counts."""
_MOST_ACCOUNTS = 1000

_log = logging.getLogger(__name__)


class Place:
    """What an admitted prediction holds while a block runs. Ten thousand of them are in memory at once.

    Attributes:
        lease: under which its places are held.
        gives_back: whether what is held is still ours to give back when the work is over.
    """

    __slots__ = (
        "_admission",
        "_intent",
        "_need",
        "_notify",
        "_patience",
        "_sequence",
        "_since",
        "gives_back",
        "lease",
    )

    def __init__(self, admission: Admission, need: Need, patience: Patience, notify: Notify) -> None:
        self.lease = need.lease
        self._intent: Prediction | None = None
        self.gives_back = True
        self._admission = admission
        self._need = need
        self._patience = patience
        self._notify = notify
        self._sequence = 0
        self._since = 0.0

    async def __aenter__(self) -> Self:
        self._since = self._admission.now()
        admitted, need = await self._admission.let_in(self._need, self._patience, self._notify)
        self._sequence, self._intent = admitted.sequence, admitted.intent
        self._need = replace(need, intent=None, charge=None)  # the money for it is reserved
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.gives_back:
                await self._admission.give_back(self.lease)
        finally:
            self._admission.line.look_again()

    def take_intent(self) -> Prediction | None:
        """The intent as it was written down when it was let in; None where nothing was, and when it was taken."""
        intent, self._intent = self._intent, None
        return intent

    def ended(self, prediction: Prediction) -> None:
        """How it stands when the work is over.

        What ended upstream is freed with its end; what nobody saw end may go on there, so its place ends with its lease.
        """
        self.gives_back = prediction.status.terminal and prediction.settled_at is None

    async def refused(self, error: BackendRateLimited) -> None:
        """The service said 429: the gate is closed for everybody, and what this one holds is given back."""
        await self._admission.refused(self._need, error, sequence=self._sequence, notify=self._notify)

    @property
    def of_stranger(self) -> bool:
        """Whether it is somebody's who brought an account of their own."""
        return self._need.caller.stranger

    async def renew(self) -> None:
        """Let what is held last as long again from now."""
        await self._admission.hold(replace(self._need, running=True))

    async def withdraw(self) -> None:
        """Forget it: nothing of it was bought, and it gives everything back."""
        await self._admission.withdraw(self._need)
        self.gives_back = False

    async def again(self) -> None:
        """Wait for another turn, at the head of the line.

        Raises:
            RateLimited: its patience is over before its turn comes.
            Draining: the process is shutting down.
        """
        left = self._since + self._patience.line_seconds - self._admission.now()
        admitted, self._need = await self._admission.in_line(self._need, wait_seconds=left, since=self._since)
        self._sequence = admitted.sequence

    def bought(self) -> None:
        """It takes no other turn, and what that would need is let go of."""
        del self._need

    async def note_allowance(self, allowance: Allowance | None, *, sent_at: float) -> None:
        """What the create's answer said about the rest of the allowance."""
        if allowance is not None and self._need.account is not None:
            await self._admission.note_allowance(
                self._need.account, allowance, sequence=self._sequence, sent_at=sent_at
            )


class Admission:
    """Admits predictions and other services; what is taken is held by a context manager or ends by itself.

    Args:
        limits: has the places and rates.
        line: where everybody waits.
        clock: tells the time.
        creates_per_minute: an account's allowance, by which news of what is left is weighed.
    """

    def __init__(self, *, limits: Limits, line: Line, clock: Clock, creates_per_minute: int) -> None:
        self.line = line
        self._few = creates_per_minute * _NEARLY_NOTHING
        self._limits = limits
        self._clock = clock
        self._told_at: dict[str, float] = {}

    def now(self) -> float:
        """Epoch seconds."""
        return self._clock.now().timestamp()

    def admit(self, need: Need, *, patience: Patience, notify: Notify) -> Place:
        """Hold all that a prediction needs while the block runs.

        Its places last until its run must have ended upstream: a process that dies gives them back neither too early
        nor never. A block that breaks off leaves them to that, unless the prediction's end was written down.

        Args:
            need: what it needs; with its intent when it is new.
            patience: how long it waits.
            notify: told while it waits.

        Raises:
            NotFound: no such semaphore.
            QueueFull: too many wait already.
            RateLimited: its turn did not come in time.
            BudgetExceeded: a budget has no room for it, or had none in time.
            Draining: the process is shutting down.
        """
        return Place(self, need, patience, notify)

    async def lease(
        self, semaphore: str, *, holder: str, ttl_seconds: float, wait_seconds: float, turn: str
    ) -> Lease:
        """A place in a semaphore for somebody else's work; it ends by itself after `ttl_seconds`.

        Args:
            semaphore: its name.
            holder: whom others see.
            ttl_seconds: until it ends or is renewed.
            wait_seconds: how long to wait for a place; 0 tries once.
            turn: those who ask under the same name take one turn together.

        Raises:
            InvalidInput: holder or ttl make no sense.
            NotFound: no such semaphore.
            QueueFull, RateLimited, Draining: as `admit`.
        """
        check_lease(holder, ttl_seconds)
        need = Need(
            lease=new_secret("lease"),
            holder=holder,
            lasts_seconds=ttl_seconds,
            semaphore=semaphore,
            caller=Caller(name=turn),
        )
        await self.line.enter(need, wait_seconds=wait_seconds)
        return Lease(id=need.lease, semaphore=semaphore, holder=holder, expires_at=self.now() + ttl_seconds)

    async def hold(self, need: Need) -> None:
        """Hold what runs already, or longer than was thought; whatever the limits say."""
        await self._limits.take([need], now=self.now(), line="", waiting={})

    async def withdraw(self, need: Need) -> None:
        """Give everything back, and forget the intent."""
        await self._limits.give_back(need.lease, unsent=True)

    async def refused(self, need: Need, error: BackendRateLimited, *, sequence: int, notify: Notify) -> None:
        """A create met a 429: nobody of the account goes until its reset, and what this one holds is given back."""
        if need.account is None:
            return
        refusal = Refusal(creates=True, retry_after=error.retry_after, detail=error.detail, sequence=sequence)
        await self._limits.refused(need.account, refusal, now=self.now())
        await self._limits.give_back(need.lease)
        notify(Throttled(error.detail, error.retry_after or 0.0))

    async def note_allowance(
        self, account: str, allowance: Allowance, *, sequence: int, sent_at: float
    ) -> None:
        """Pass on what an answer told, now and then: each of them would cost a write."""
        now = self.now()
        recent = now - self._told_at.get(account, 0.0) < _TOLD_EVERY_SECONDS
        if recent and allowance.remaining > self._few:
            return
        if len(self._told_at) >= _MOST_ACCOUNTS:
            self._told_at.clear()
        self._told_at[account] = now
        try:
            await self._limits.note_allowance(
                account, allowance, sequence=sequence, age=now - sent_at, now=now
            )
        except StoreError as error:
            _log.debug("what an answer told about the limit was not written down: %s", error)

    async def let_in(self, need: Need, patience: Patience, notify: Notify) -> tuple[Admitted, Need]:
        """Wait for all that it needs; see `admit`. Also the need as it was met."""
        since = self.now()
        if need.running:
            await self.hold(need)
            admitted = Admitted()
        else:

            def tell_place(limit: str, position: int) -> None:
                notify(InLine(limit, position))

            admitted, need = await self.in_line(
                need, wait_seconds=patience.line_seconds, tell_place=tell_place
            )
            for shortage in admitted.passed:
                notify(BudgetPassed(shortage))
        notify(LetIn(self.now() - since))
        return admitted, need

    async def in_line(
        self,
        need: Need,
        *,
        wait_seconds: float,
        tell_place: TellsPlace | None = None,
        since: float | None = None,
    ) -> tuple[Admitted, Need]:
        """Wait in line; the need as it was met. What was begun before its semaphore was removed goes on without it.

        The rest is as of `Line.enter`, which says what it raises.
        """
        try:
            return await self.line.enter(
                need, wait_seconds=wait_seconds, tell_place=tell_place, since=since
            ), need
        except NotFound:
            if need.intent is not None:
                raise
        need = replace(need, semaphore=None)
        return await self.line.enter(
            need, wait_seconds=wait_seconds, tell_place=tell_place, since=since
        ), need

    async def give_back(self, lease: str) -> None:
        """A place that cannot be given back now ends by itself; the picture is there all the same."""
        try:
            await asyncio.shield(self._limits.give_back(lease))
        except StoreError as error:
            _log.warning("the places of %s are held until they end by themselves: %s", lease, error)
