"""The line before the limits: who waits holds nothing, and one dispatcher lets in those whose turn it is.

Turns: interactive work before batches; within a lane callers take turns; of one caller the first to come goes first.
Whoever waits for something of its own, a full semaphore, its key's limit or room in a budget, keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from imagen.domain.budget import Shortage
from imagen.domain.caller import Caller
from imagen.domain.limits import (
    Admitted,
    Blocked,
    Lane,
    LineReport,
    Missing,
    Need,
    Unaffordable,
    Verdict,
    key_limit,
)
from imagen.domain.outlook import LimitStanding
from imagen.domain.semaphore import unknown_semaphore
from imagen.errors import BudgetExceeded, Draining, ImagenError, QueueFull, RateLimited
from imagen.ports import Clock, Limits

LOOK_SECONDS = 1.0
"""So often a line that waits shows that it lives."""
_ROOM_OF_STRANGERS = 0.25
"""Of the whole line, for those who bring an account of their own: anybody can make up a token."""
MOST_AT_ONCE = 128
"""How many are asked for in one transaction."""
_TIDY_SECONDS = 0.1
"""So often all who wait are looked through for those whose time is over; those at the heads each time."""
_CLOSING_SECONDS = 5.0
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.02, 0.25
"""Places that another process gives back are only seen by looking."""

_log = logging.getLogger(__name__)
TellsPlace = Callable[[str, int], None]
"""Tells one who waits for which limit it waits, and its place in line, from 1."""
_Key = tuple[Lane, str, str | None, str | None, str | None]
"""Lane, whose turn, account, semaphore, and the model where it costs us something: budgets may count that one alone."""


class LineRules(msgspec.Struct, frozen=True, kw_only=True):
    """How many may wait in one process: of all callers together, and of one."""

    waiting: int = 20_000
    waiting_per_caller: int = 10_000


class _Waiter:
    """One need in line."""

    __slots__ = ("admitted", "asked", "is_told", "need", "tell_place", "told_limit", "turn", "until")

    def __init__(self, need: Need, until: float, tell_place: TellsPlace | None) -> None:
        self.need = need
        self.until = until
        self.tell_place = tell_place
        self.is_told = tell_place is None  # for what it waits, or nobody wants to know
        self.told_limit = ""
        self.asked = False
        self.turn = 0.0
        self.admitted: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()


class _Flow:
    """Those of one caller who need the same things: they go in the order in which they came."""

    __slots__ = ("blocked_by", "needs", "shortage", "waiters")

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs
        self.waiters: deque[_Waiter] = deque()
        self.blocked_by: str | None = None
        self.shortage: Shortage | None = None


class Line:
    """All who wait in this process. Safe to share between the tasks of one loop.

    Args:
        limits: asked for places and turns.
        clock: tells the time.
        rules: how many may wait.
    """

    def __init__(self, *, limits: Limits, clock: Clock, rules: LineRules | None = None) -> None:
        self._limits = limits
        self._clock = clock
        self._rules = rules or LineRules()
        self._name = secrets.token_hex(8)
        self._flows: dict[_Key, _Flow] = {}
        self._flows_of: dict[tuple[Lane, str], int] = {}
        self._turns: dict[tuple[Lane, str], float] = {}
        self._turn: dict[Lane, float] = dict.fromkeys(Lane, 0.0)
        self._waiting = 0
        self._strangers = 0
        self._of_caller: dict[str, int] = {}
        self._full: dict[str, float] = {}
        self._closed_until: dict[str, float] = {}
        self._short: dict[_Flow, float] = {}
        self._pause = _FIRST_LOOK_SECONDS
        self._wake = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._closed = False
        self._tidy_at = 0.0
        self._seen_at = 0.0

    @property
    def waiting(self) -> int:
        """How many wait here now."""
        return self._waiting

    def room_for(self, caller: Caller) -> int:
        """How many more of a caller may wait; all strangers together have a part of the room."""
        rules = self._rules
        room = [
            rules.waiting - self._waiting,
            rules.waiting_per_caller - self._of_caller.get(caller.turn, 0),
        ]
        if caller.stranger:
            room.append(int(rules.waiting * _ROOM_OF_STRANGERS) - self._strangers)
        return max(0, min(room))

    async def standing(self, need: Need, *, count: int = 1) -> Sequence[LimitStanding]:
        """How each limit stands that a need asks for, if it came now, `count` times at once. It does not stand in line.

        Raises:
            StoreError: the store could not be read.
        """
        waiting: dict[str, int] = {}
        for key, flow in self._flows.items():
            for limit in flow.needs if key[0] <= need.lane else ():
                waiting[limit] = waiting.get(limit, 0) + len(flow.waiters)
        now = self._clock.now().timestamp()
        return await self._limits.standing(need, count=count, now=now, line=self._name, waiting=waiting)

    def close(self) -> None:
        """Send all who wait away, and let nobody else in."""
        self._closed = True
        for flow in self._flows.values():
            for waiter in flow.waiters:
                if not waiter.admitted.done():
                    waiter.admitted.set_exception(draining())
        self.look_again()

    async def aclose(self) -> None:
        """Send all who wait away, and see the dispatcher end."""
        self.close()
        if self._dispatcher is not None:
            await asyncio.wait({self._dispatcher}, timeout=_CLOSING_SECONDS)

    def look_again(self) -> None:
        """Something was given back: those who wait for places ask at once."""
        self._full.clear()
        self._short.clear()
        self._pause = _FIRST_LOOK_SECONDS
        self._wake.set()

    async def enter(
        self,
        need: Need,
        *,
        wait_seconds: float,
        tell_place: TellsPlace | None = None,
        since: float | None = None,
    ) -> Admitted:
        """Wait until all of a need is held.

        Args:
            need: what must be held.
            wait_seconds: how long at most.
            tell_place: called when it has to wait: once, and once more where it then waits for money.
            since: epoch seconds at which it came first, for one that comes back to the head of the line.

        Raises:
            QueueFull: too many wait already.
            RateLimited: its turn did not come in time.
            BudgetExceeded: a budget has no room for it, or had none in time.
            NotFound: there is no such semaphore.
            Draining: the process is shutting down.
        """
        if self._closed:
            raise draining()
        returning = since is not None
        if not returning and self.room_for(need.caller) == 0:
            raise QueueFull(
                f"{self._waiting} are waiting already; nothing was bought",
                hint="Try again later, or send fewer at a time.",
                retry_after=10.0,
            )
        now = self._clock.now().timestamp()
        need = msgspec.structs.replace(need, since=now if since is None else since)
        waiter = _Waiter(need, now + wait_seconds, tell_place)
        self._join(waiter, first=returning)
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            self._wake.set()  # the dispatcher clears it away
            if waiter.admitted.done() and not waiter.admitted.cancelled() and not waiter.admitted.exception():
                await asyncio.shield(self._take_back(need))
            raise

    # --- who is where ------------------------------------------------------------------------------------

    def _join(self, waiter: _Waiter, *, first: bool) -> None:
        need = waiter.need
        key = _key(need)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(frozenset(_needed(need)))
            turn = key[:2]
            self._turns[turn] = max(self._turns.get(turn, 0.0), self._turn[need.lane])
            self._flows_of[turn] = self._flows_of.get(turn, 0) + 1
        if first:
            flow.waiters.appendleft(waiter)
        else:
            flow.waiters.append(waiter)
        self._count(waiter, 1)
        self._wake.set()
        if self._dispatcher is None:
            self._dispatcher = asyncio.get_running_loop().create_task(self._dispatch())

    def _count(self, waiter: _Waiter, by: int) -> None:
        self._waiting += by
        if waiter.need.caller.stranger:
            self._strangers += by
        turn = waiter.need.caller.turn
        left = self._of_caller.get(turn, 0) + by
        if left:
            self._of_caller[turn] = left
        else:
            self._of_caller.pop(turn, None)

    def _tidy(self, now: float) -> None:
        """Take out those who went away and those who have waited too long."""
        thorough = now >= self._tidy_at
        if thorough:
            self._tidy_at = now + _TIDY_SECONDS
        for key, flow in list(self._flows.items()):
            blocked = self._is_blocked(flow, now)
            while flow.waiters and self._is_over(flow.waiters[0], now, blocked=blocked):
                self._dismiss(flow.waiters.popleft(), flow)
            if thorough and any(self._is_over(waiter, now, blocked=blocked) for waiter in flow.waiters):
                waiters, flow.waiters = flow.waiters, deque()
                for waiter in waiters:
                    if self._is_over(waiter, now, blocked=blocked):
                        self._dismiss(waiter, flow)
                    else:
                        flow.waiters.append(waiter)
            if not flow.waiters:
                self._close_flow(key)

    def _close_flow(self, key: _Key) -> None:
        self._short.pop(self._flows.pop(key), None)
        turn = key[:2]
        self._flows_of[turn] -= 1
        if not self._flows_of[turn]:
            del self._flows_of[turn], self._turns[turn]

    def _is_over(self, waiter: _Waiter, now: float, *, blocked: bool) -> bool:
        """Whether it went away, or its time is over and it was its turn, or would be of no use, at least once."""
        return waiter.admitted.done() or (waiter.until < now and (waiter.asked or blocked))

    def _dismiss(self, waiter: _Waiter, flow: _Flow) -> None:
        self._count(waiter, -1)
        if not waiter.admitted.done():
            waiter.admitted.set_exception(_too_late(waiter.need, flow.shortage))

    def _next(self, now: float) -> list[_Waiter]:
        """Those whose turn it is, in order; they leave the line."""
        chosen: list[_Waiter] = []
        for lane in Lane:
            for each in self._turns:
                if each[0] is lane:  # whoever could not go for a while has saved up no turns
                    self._turns[each] = max(self._turns[each], self._turn[lane] - 1)
            heads = [
                (self._turns[lane, key[1]], flow.waiters[0].need.since, index, key, flow)
                for index, (key, flow) in enumerate(self._flows.items())
                if key[0] is lane and flow.waiters and not self._is_blocked(flow, now)
            ]
            heapq.heapify(heads)
            while heads and len(chosen) < MOST_AT_ONCE:
                turn, _, index, key, flow = heapq.heappop(heads)
                own = max(turn, self._turns[lane, key[1]])
                if own > turn:  # the caller has gone with another flow meanwhile
                    heapq.heappush(heads, (own, flow.waiters[0].need.since, index, key, flow))
                    continue
                waiter = flow.waiters.popleft()
                if waiter.admitted.done():
                    self._count(waiter, -1)
                else:
                    waiter.asked = True
                    chosen.append(waiter)
                    waiter.turn = own
                    self._turns[lane, key[1]] = own + 1
                if flow.waiters:
                    heapq.heappush(
                        heads, (self._turns[lane, key[1]], flow.waiters[0].need.since, index, key, flow)
                    )
        return chosen

    def _is_blocked(self, flow: _Flow, now: float) -> bool:
        return self._blocking(flow, now) is not None

    def _blocking(self, flow: _Flow, now: float) -> str | None:
        """The limit that keeps a flow waiting, as far as that is known. A budget keeps no other flow waiting."""
        if self._short.get(flow, now) > now:
            return flow.blocked_by
        for limit in flow.needs:
            if self._full.get(limit, now) > now or self._closed_until.get(limit, now) > now:
                return limit
        return None

    # --- letting in --------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        """Run while anybody waits."""
        try:
            while True:
                self._wake.clear()
                now = self._clock.now().timestamp()
                self._tidy(now)
                if not self._waiting:
                    await self._limits.leave(self._name)
                    if not self._waiting:
                        return
                    continue
                chosen = self._next(now)
                if chosen or now >= self._seen_at + LOOK_SECONDS:
                    self._seen_at = now
                    await self._ask(chosen, now)
                else:
                    self._tell()
                    await self._sleep(now)
        except Exception as error:  # noqa: BLE001 - those who wait must hear of it, whatever it is
            _log.exception("the line broke off")
            self._send_away(_broken_off(error))
        finally:
            self._dispatcher = None

    async def _ask(self, chosen: list[_Waiter], now: float) -> None:
        """Ask for those whose turn it is; with nobody chosen it only shows the other lines that this one lives."""
        try:
            verdicts = await self._limits.take(
                [waiter.need for waiter in chosen], now=now, line=self._name, waiting=self._reports(now)
            )
        except Exception as error:  # noqa: BLE001 - nothing was written, so nobody was let in, and they must hear of it
            await self._fail(chosen, now, error)
            return
        now = self._clock.now().timestamp()  # asking took its time, and a pause begins after it
        again: list[_Waiter] = []
        for waiter, verdict in zip(chosen, verdicts, strict=True):
            if not await self._answer(waiter, verdict, now):
                again.append(waiter)
        for waiter in reversed(again):
            self._back(waiter)
        if len(again) < len(chosen):
            self._pause = _FIRST_LOOK_SECONDS
        if self._waiting:
            self._tell()

    async def _fail(self, chosen: list[_Waiter], now: float, error: Exception) -> None:
        """Tell those who were asked for; a fault that one of them may have brought in hits no other."""
        if not isinstance(error, ImagenError):
            if len(chosen) > 1:
                for waiter in chosen:
                    await self._ask([waiter], now)
                return
            _log.error("asking for places ended in an unexpected fault: %s", type(error).__name__)
            error = _broken_off(error)
        for waiter in chosen:
            self._count(waiter, -1)
            if not waiter.admitted.done():
                waiter.admitted.set_exception(error)

    async def _answer(self, waiter: _Waiter, verdict: Verdict, now: float) -> bool:
        """Tell one how it stands; False when it has to wait on."""
        match verdict:
            case Blocked(limit, until, shortage):
                flow = self._flows[_key(waiter.need)]
                flow.blocked_by, flow.shortage = limit, shortage
                if shortage is not None:
                    self._short[flow] = now + self._pause
                    self._tell_of_money(waiter, limit)
                elif until is None:
                    self._full[limit] = now + self._pause
                else:
                    self._closed_until[limit] = until
                return False
            case Missing(semaphore):
                self._count(waiter, -1)
                if not waiter.admitted.done():
                    waiter.admitted.set_exception(unknown_semaphore(semaphore))
            case Unaffordable(shortage):
                self._count(waiter, -1)
                if not waiter.admitted.done():
                    waiter.admitted.set_exception(shortage.to_error())
            case Admitted():
                self._count(waiter, -1)
                lane = waiter.need.lane
                self._turn[lane] = max(self._turn[lane], waiter.turn)
                if waiter.admitted.done():
                    await self._take_back(waiter.need)
                else:
                    waiter.admitted.set_result(verdict)
        return True

    async def _take_back(self, need: Need) -> None:
        """It was let in when nobody wanted it any more: nothing was sent, so nothing stays."""
        try:
            await self._limits.give_back(need.lease, unsent=need.intent is not None)
        except ImagenError as error:
            _log.warning("the places of %s are held until they end by themselves: %s", need.lease, error)
        self.look_again()

    def _back(self, waiter: _Waiter) -> None:
        """Into the line again, at its head."""
        self._count(waiter, -1)
        if self._closed:
            if not waiter.admitted.done():
                waiter.admitted.set_exception(draining())
            return
        self._join(waiter, first=True)
        self._turns[waiter.need.lane, waiter.need.caller.turn] -= 1

    async def _sleep(self, now: float) -> None:
        """Until somebody comes, something is given back, a time has come, or somebody has waited too long."""
        self._full = {limit: at for limit, at in self._full.items() if at > now}
        self._closed_until = {limit: at for limit, at in self._closed_until.items() if at > now}
        self._short = {flow: at for flow, at in self._short.items() if at > now}
        due = [*self._full.values(), *self._closed_until.values(), *self._short.values()]
        ends = [flow.waiters[0].until for flow in self._flows.values() if flow.waiters]
        seconds = max(0.001, min([*due, *ends, now + LOOK_SECONDS]) - now)
        self._pause = min(self._pause * 1.5, _LAST_LOOK_SECONDS)
        woken = asyncio.ensure_future(self._wake.wait())
        slept = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            slept.cancel()

    def _reports(self, now: float) -> dict[str, LineReport]:
        """What the other lines may know of this one: who waits for each limit, and for nothing else."""
        reports: dict[str, LineReport] = {}
        for key, flow in self._flows.items():
            limit = self._blocking(flow, now) or flow.blocked_by
            if limit is None or not flow.waiters:
                continue
            lane, since, count = key[0], flow.waiters[0].need.since, len(flow.waiters)
            if (other := reports.get(limit)) is not None:
                lane, since = min((lane, since), (other.lane, other.since))
                count += other.count
            reports[limit] = LineReport(lane, since, count)
        return reports

    def _tell(self) -> None:
        """Let those who wait know, once, for what, and how many go before them."""
        unaware = [
            (key, flow) for key, flow in self._flows.items() if flow.waiters and not flow.waiters[-1].is_told
        ]
        if not unaware:
            return
        standing: dict[tuple[Lane, str | None], int] = {}
        for key, flow in self._flows.items():
            standing[key[0], key[2]] = standing.get((key[0], key[2]), 0) + len(flow.waiters)
        for key, flow in unaware:
            before = sum(standing.get((lane, key[2]), 0) for lane in Lane if lane <= key[0])
            for index, waiter in enumerate(reversed(flow.waiters)):
                if waiter.is_told:
                    break  # those before it were told before
                waiter.is_told, waiter.told_limit = True, self._reason(flow)
                if waiter.tell_place is not None:
                    waiter.tell_place(waiter.told_limit, before - index)

    def _tell_of_money(self, waiter: _Waiter, limit: str) -> None:
        """Let one know that was told of something else before, and now waits for money."""
        if waiter.is_told and waiter.tell_place is not None and waiter.told_limit != limit:
            waiter.told_limit = limit
            waiter.tell_place(limit, 1)

    def _reason(self, flow: _Flow) -> str:
        if flow in self._short and flow.blocked_by is not None:
            return flow.blocked_by
        return next((limit for limit in flow.needs if limit in self._full or limit in self._closed_until), "")

    def _send_away(self, error: Exception) -> None:
        for flow in self._flows.values():
            for waiter in flow.waiters:
                if not waiter.admitted.done():
                    waiter.admitted.set_exception(error)
        self._flows.clear()
        self._short.clear()
        self._flows_of.clear()
        self._turns.clear()
        self._of_caller.clear()
        self._waiting = self._strangers = 0


def _key(need: Need) -> _Key:
    model = None if need.charge is None else need.charge.model
    return need.lane, need.caller.turn, need.account, need.semaphore, model


def _broken_off(error: Exception) -> ImagenError:
    return ImagenError(f"the line broke off ({type(error).__name__}); nothing was bought")


def draining() -> Draining:
    """The error for work that comes while the process shuts down."""
    return Draining("this process is shutting down and takes no new work", retry_after=5.0)


def _needed(need: Need) -> Iterator[str]:
    """All limits that can keep a need waiting: places, and the rates of key and account, which go by the same names."""
    yield from need.limits()
    if need.account is not None and need.caller.key is not None and need.caller.concurrent is None:
        yield key_limit(need.caller.key)


def _too_late(need: Need, shortage: Shortage | None) -> BudgetExceeded | RateLimited:
    if shortage is not None and need.charge is not None:
        return msgspec.structs.replace(shortage, quote=need.charge.amount).to_error()
    if need.semaphore is not None:
        what, hint = (
            f"semaphore {need.semaphore!r}",
            f"`imagen semaphore show {need.semaphore}` shows who holds places.",
        )
    else:
        what, hint = "the limits of the account", "GET /health shows how the account stands."
    return RateLimited(
        f"no place became free in {what} in time; nothing was bought",
        hint=f"Try again later; {hint}",
        retry_after=10.0,
    )
