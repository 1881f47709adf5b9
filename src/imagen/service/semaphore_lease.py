"""Places in named semaphores for work that imagen does not do itself: another service's, a command's, a block of code's."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from imagen.domain.semaphore import Lease, check_lease
from imagen.errors import ImagenError, InvalidInput, NotFound, Problem, RateLimited
from imagen.limits.admission import Admission
from imagen.ports import Clock, Semaphores

MAX_WAIT_SECONDS = 86_400.0
"""The longest wait in line; whoever has more patience asks again."""
_RETRY_SECONDS = 5.0
_ASKED_SECONDS = 0.25
"""Who does not wait stands in line for this long all the same: long enough to be asked for once."""
_SLACK_SECONDS = 1.0
"""The line sends away those at its head; those behind longer waits are sent away so much later, by us."""
_RENEWALS = 3
"""Renewed so often while a lease lasts, two of them may fail."""
_RENEWALS_AFTER_FAULT = 10

_log = logging.getLogger(__name__)


class Leases(ABC):
    """Takes places, renews them and gives them back. Safe to share between the tasks of one loop.

    Args:
        semaphores: knows the leases.
        clock: tells the time.
    """

    def __init__(self, *, semaphores: Semaphores, clock: Clock) -> None:
        self._semaphores = semaphores
        self._clock = clock
        self._held: set[HeldSemaphore] = set()

    def now(self) -> float:
        """Epoch seconds, by the clock in which leases tell their end."""
        return self._clock.now().timestamp()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._clock.sleep(seconds)

    @abstractmethod
    async def take(
        self, semaphore: str, *, holder: str, ttl_seconds: float, wait_seconds: float, turn: str
    ) -> Lease:
        """A place that ends by itself after `ttl_seconds`, unless it is renewed. Canceled, it leaves nothing held.

        Args:
            semaphore: its name.
            holder: whom others see, 1 to 100 printable characters.
            ttl_seconds: 1 to 86400.
            wait_seconds: how long to stand in line, 0 to `MAX_WAIT_SECONDS`; 0 takes what is free now.
            turn: those who ask under the same name share a turn.

        Raises:
            InvalidInput: holder, ttl or wait make no sense.
            NotFound: no such semaphore.
            RateLimited: no place became free in time.
            QueueFull: too many wait already.
            Draining: the process is shutting down.
        """

    async def renew(self, semaphore: str, lease: str, *, ttl_seconds: float) -> Lease:
        """Let a lease last `ttl_seconds` from now.

        Raises:
            InvalidInput: ttl makes no sense.
            NotFound: there is none of that id, or it has ended.
        """
        check_lease("-", ttl_seconds)
        return await self._semaphores.renew(semaphore, lease, now=self.now(), lasts_seconds=ttl_seconds)

    async def give_back(self, semaphore: str, lease: str) -> None:
        """Free a place. One that has ended already is no mistake."""
        await self._semaphores.release(semaphore, lease)

    def hold(
        self, semaphore: str, *, holder: str, ttl_seconds: float, wait_seconds: float, turn: str
    ) -> HeldSemaphore:
        """A place for as long as a block runs; arguments as of `take`."""
        return HeldSemaphore(
            self,
            self._held,
            semaphore,
            holder=holder,
            ttl_seconds=ttl_seconds,
            wait_seconds=wait_seconds,
            turn=turn,
        )

    async def aclose(self) -> None:
        """Give back what is held still."""
        for held in list(self._held):
            await held.give_back()


class SemaphoreLeases(Leases):
    """Places in the semaphores of our own store.

    Args:
        admission: lets in, first come, first served.
        semaphores: knows the leases.
        clock: tells the time.
    """

    def __init__(self, *, admission: Admission, semaphores: Semaphores, clock: Clock) -> None:
        super().__init__(semaphores=semaphores, clock=clock)
        self._admission = admission

    async def take(
        self,
        semaphore: str,
        *,
        holder: str,
        ttl_seconds: float,
        wait_seconds: float,
        turn: str,
        longest_wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> Lease:
        """See `Leases.take`; `longest_wait_seconds` is what may be asked for."""
        check_wait(wait_seconds, longest_seconds=longest_wait_seconds)
        check_lease(holder, ttl_seconds)
        in_line = max(wait_seconds, _ASKED_SECONDS)
        try:
            async with asyncio.timeout(in_line + _SLACK_SECONDS):
                return await self._admission.lease(
                    semaphore, holder=holder, ttl_seconds=ttl_seconds, wait_seconds=in_line, turn=turn
                )
        except (TimeoutError, RateLimited):
            when = f"became free in {wait_seconds:g} s" if wait_seconds else "is free now"
            raise RateLimited(
                f"no place in semaphore {semaphore[:100]!r} {when}",
                hint="Wait longer or try again; `imagen semaphore show NAME` tells who holds places.",
                retry_after=_RETRY_SECONDS,
            ) from None

    async def give_back(self, semaphore: str, lease: str) -> None:
        """See `Leases.give_back`; whoever waits for the place here goes at once."""
        await super().give_back(semaphore, lease)
        self.look_again()

    def look_again(self) -> None:
        """A semaphore has changed: those who wait ask at once."""
        self._admission.line.look_again()


class HeldSemaphore:
    """A place that is held while a block runs: taken at its beginning, renewed meanwhile, given back at its end.

        async with leases.hold("gpu", …) as held:
            …
            held.check()

    A process that dies frees its place when the lease ends. A place may be lost while the block runs: somebody removed
    the semaphore, or nothing could be renewed for a whole ttl, because the machine slept, the loop was blocked or the
    store did not answer. Then others may have it. `lost` and `check` tell of it at any time, `until_lost` waits for it,
    and a block that ends well is followed by the error.
    """

    def __init__(
        self,
        leases: Leases,
        held: set[HeldSemaphore],
        semaphore: str,
        *,
        holder: str,
        ttl_seconds: float,
        wait_seconds: float,
        turn: str,
    ) -> None:
        self.semaphore = semaphore
        self.lost: NotFound | None = None
        self._leases = leases
        self._all_held = held
        self._holder = holder
        self._ttl = ttl_seconds
        self._wait = wait_seconds
        self._turn = turn
        self._lease: Lease | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._was_lost = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether there is anything to give back."""
        return self._lease is not None

    async def take(self) -> None:
        """Wait for a place and hold it from now on.

        Raises:
            RuntimeError: it holds one already.
            InvalidInput, NotFound, RateLimited, QueueFull, Draining: as `Leases.take`.
        """
        if self._lease is not None:
            raise RuntimeError(f"a place in semaphore {self.semaphore!r} is held already")
        self.lost, self._was_lost = None, asyncio.Event()
        self._lease = await self._leases.take(
            self.semaphore,
            holder=self._holder,
            ttl_seconds=self._ttl,
            wait_seconds=self._wait,
            turn=self._turn,
        )
        self._all_held.add(self)
        self._renewing = asyncio.get_running_loop().create_task(self._renew(self._lease))

    async def give_back(self) -> None:
        """Hold nothing any more. Does nothing when nothing is held; what cannot be given back ends by itself."""
        lease, renewing = self._lease, self._renewing
        self._lease = self._renewing = None
        self._all_held.discard(self)
        if renewing is not None:
            renewing.cancel()
        if lease is None:
            return
        try:
            await asyncio.shield(self._leases.give_back(lease.semaphore, lease.id))
        except ImagenError as error:
            _log.warning(
                "the place in semaphore %s is held until it ends by itself: %s", lease.semaphore, error
            )

    def check(self) -> None:
        """Make sure that the place is ours still.

        Raises:
            NotFound: it was lost.
        """
        if self.lost is not None:
            raise self.lost

    async def until_lost(self) -> None:
        """Wait until the place is lost; for ever when it is not."""
        await self._was_lost.wait()

    async def __aenter__(self) -> Self:
        await self.take()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.give_back()
        if error is None:
            self.check()

    async def _renew(self, lease: Lease) -> None:
        """Until the place is lost."""
        ends_at, pause = lease.expires_at, self._ttl / _RENEWALS
        while True:
            await self._leases.sleep(min(pause, max(ends_at - self._leases.now(), 0.0)))
            left = ends_at - self._leases.now()
            if left <= 0:
                self._lose(f"it could not be renewed for {self._ttl:g} s", None)
                return
            try:
                async with asyncio.timeout(left):
                    renewed = await self._leases.renew(lease.semaphore, lease.id, ttl_seconds=self._ttl)
            except NotFound as error:
                self._lose("its lease ended, or somebody removed the semaphore", error)
                return
            except (ImagenError, TimeoutError) as error:
                _log.warning("semaphore %s: its place could not be renewed: %s", lease.semaphore, error)
                pause = self._ttl / _RENEWALS_AFTER_FAULT
            else:
                ends_at, pause = renewed.expires_at, self._ttl / _RENEWALS

    def _lose(self, reason: str, cause: ImagenError | None) -> None:
        self.lost = NotFound(
            f"the place in semaphore {self.semaphore[:100]!r} was lost: {reason}",
            hint="Others may have worked at the same time. Take a longer ttl where the machine or the store may pause.",
        )
        self.lost.__cause__ = cause
        self._was_lost.set()
        _log.warning("%s", self.lost.detail)


def check_wait(seconds: float, *, longest_seconds: float) -> None:
    """Refuse a wait that makes no sense.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    if not 0 <= seconds <= longest_seconds:
        raise InvalidInput(
            [Problem("wait", f"{seconds:g} is not allowed; it must be from 0 to {longest_seconds:g} seconds")]
        )
