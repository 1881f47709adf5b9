"""What is watched in one account: whose turn it is, and by which call.

A call is a look at one prediction, or a page of the account's list, which tells of a hundred. Whoever waits the longest
beyond its time decides where to look next; around it, in the order in which they were created, as many as a page holds are
counted, and where more than a few of them are due as well, one page is read in place of many looks. Whatever shows up on a
page counts as looked at, due or not. What should have been on it and was not is looked at by itself: lists lag behind.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from bisect import bisect_left, insort
from contextvars import Context
from datetime import UTC, datetime
from operator import attrgetter

from imagen.domain.prediction import Sighting, Status
from imagen.errors import BackendError, BackendRateLimited
from imagen.ports import Clock, Glance
from imagen.service.pace import Pace, RunTimeBook
from imagen.service.watched import Watch

MOST_AT_ONCE = 8
"""Calls of one account that are under way at the same time."""
LAST_LOOK_SECONDS = 5.0
"""The least time that a look gets, however near the deadline is."""
LATE_SECONDS = 30.0
"""The least pause between two looks of ours at what a webhook should tell of."""

_FEW = 4
"""So many that are due together are looked at one by one."""
_BURST = 10.0
_PAGE = 100
_SHARE_OF_AGE = 0.05
"""Whoever has waited for 40 seconds does not mind two more."""
_SHORTEST, _LONGEST, _LONGEST_QUIET = 0.5, 5.0, 30.0
_UNSURE_SECONDS, _DEVIATIONS = 2.0, 3.0
_BELIEVED_SECONDS = 86_400.0
"""A creation that is told further away from its sending is a mistake."""
_JUST_AFTER_SECONDS = 0.02
_PAGE_SECONDS = 15.0
_UNLISTED_SECONDS = 10.0
"""So long what was not on its page is looked at by itself."""
_LONGEST_WITHOUT_LIST = 60.0
_FALLING_BEHIND, _KEEPING_UP = 1.0, 0.25
_STRETCHES, _MOST_STRETCHED = 0.3, 3.0
_SMOOTH = 0.3
_MOSTLY_WATCHED = 1.1

_PACE = Pace()
_age = attrgetter("created")
_log = logging.getLogger(__name__)


class AccountWatch:
    """Watches the predictions of one account: nothing runs while nothing is due.

    Args:
        times: what is known of how long models run.
        clock: tells the time.
        per_second: calls that may be made for it, at most.
    """

    def __init__(self, *, times: RunTimeBook, clock: Clock, per_second: float) -> None:
        self._times = times
        self._clock = clock
        self._per_second = per_second
        self._watches: dict[str, tuple[Watch, ...]] = {}
        self._known: dict[str, Status | None] = {}
        self._by_age: list[Watch] = []
        self._queue: list[tuple[float, int, Watch]] = []
        self._ends: list[tuple[float, int, Watch]] = []
        self._ends_timer: asyncio.TimerHandle | None = None
        self._count = 0
        self._leave = self.remove  # one for all: each bound method is an object
        self._looks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._level, self._level_at = _BURST, clock.monotonic()
        self._quiet_until = 0.0
        self._lists_from = 0.0
        self._list_failures = 0
        self._span: float | None = None  # seconds of creates that a page covers
        self._offset: float | None = None  # their clock at the create, less ours when it was sent
        self._deviation = _UNSURE_SECONDS / _DEVIATIONS
        self._stretch = 1.0
        self._adapted_at = clock.monotonic()

    @property
    def _unsure(self) -> float:
        """Seconds by which the instant may be off at which something was created, while only its sending is known."""
        return min(_JUST_AFTER_SECONDS + _DEVIATIONS * self._deviation, _UNSURE_SECONDS)

    @property
    def watching(self) -> int:
        """How many predictions are watched."""
        return len(self._by_age)

    @property
    def looking(self) -> int:
        """How many calls are under way."""
        return len(self._looks)

    def add(self, watch: Watch, *, created: float | None = None) -> None:
        """Watch one more; `created` is the instant of their clock at which it was created, where that is known."""
        self._watches[watch.upstream_id] = (*self._watches.get(watch.upstream_id, ()), watch)
        self._know(watch)
        watch.created = watch.sent + (self._offset or 0.0)
        insort(self._by_age, watch, key=_age)
        if created is not None:
            self._date(watch, created)
        self._count += 1
        watch.begin(self._count, self._leave)
        self._await_end(watch)
        self._schedule(watch)
        self._enqueue(watch)
        if self._queue[0][2] is watch:
            self._plan()

    def remove(self, watch: Watch) -> None:
        """Watch it no longer."""
        watch.watched = False
        # What stands in a queue stays there until its turn; the rest of it is not needed.
        del watch.prediction
        del self._by_age[self._place(watch)]
        same = tuple(one for one in self._watches[watch.upstream_id] if one is not watch)
        if same:
            self._watches[watch.upstream_id] = same
        else:
            del self._watches[watch.upstream_id]
            del self._known[watch.upstream_id]
        if not self._watches:
            self._queue.clear()
            self._ends.clear()
            self._plan()
            self._tell_overdue()

    def wake(self, upstream_id: str) -> bool:
        """Let a prediction be due now; False when it is not watched here."""
        found = self._watches.get(upstream_id, ())
        now = self._clock.monotonic()
        for watch in found:
            watch.due = watch.woken = now
            if not watch.busy:
                self._enqueue(watch)
        if found:
            self._plan()
        return bool(found)

    async def aclose(self) -> None:
        """End what is under way."""
        self._closed = True
        self._plan()
        self._ends.clear()
        self._tell_overdue()
        for look in tuple(self._looks):
            look.cancel()
        if self._looks:
            await asyncio.wait(self._looks)

    # --- whose turn it is --------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Begin the calls whose time has come, and come back when it is time for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self._closed and len(self._looks) < MOST_AT_ONCE:
            now = self._clock.monotonic()
            first = self._first(now)
            if first is None:
                if self._queue:
                    self._ring_at(self._queue[0][0], now)
                return
            wait = max(self._quiet_until - now, self._fill(now))
            if wait > 0:
                self._enqueue(first)
                self._ring_at(now + wait, now)
                return
            self._level -= 1
            self._adapt(now, now - first.due)
            self._begin(first, now)

    def _ring_at(self, instant: float, now: float) -> None:
        delay = max(instant - now, 0.001)
        self._timer = asyncio.get_running_loop().call_later(delay, self._plan, context=Context())

    def _first(self, now: float) -> Watch | None:
        """The one that is due for the longest time; None when the first of the queue, if any, is not due yet."""
        while self._queue:
            due, _, watch = self._queue[0]
            if due > now:
                return None
            heapq.heappop(self._queue)
            if not watch.watched or due != watch.queued:
                continue  # it is gone, or stands elsewhere in the queue
            watch.queued = -1.0
            if watch.busy:
                continue  # it comes back when its look is over
            if watch.due <= now:
                return watch
            self._enqueue(watch)
        return None

    def _enqueue(self, watch: Watch) -> None:
        if 0 <= watch.queued <= watch.due:
            return  # it comes up before that, and is put back then
        watch.queued = watch.due
        heapq.heappush(self._queue, (watch.due, watch.number, watch))

    def _fill(self, now: float) -> float:
        """Seconds until one more call may be made."""
        burst = max(min(_BURST, self._per_second * 2), 1.0)
        self._level = min(burst, self._level + (now - self._level_at) * self._per_second)
        self._level_at = now
        return 0.0 if self._level >= 1 else (1 - self._level) / self._per_second

    def _adapt(self, now: float, late: float) -> None:
        """Longer pauses for all while the calls do not suffice, so that none is left out."""
        passed, self._adapted_at = min(now - self._adapted_at, 1.0), now
        if late > _FALLING_BEHIND:
            self._stretch = min(self._stretch * (1 + _STRETCHES * passed), _MOST_STRETCHED)
        elif late < _KEEPING_UP:
            self._stretch = max(self._stretch * (1 - _STRETCHES * passed), 1.0)

    def _schedule(self, watch: Watch) -> None:
        """When it is looked at next, after it was looked at now."""
        now = self._clock.monotonic()
        age = now - watch.began
        known = self._times.of(watch.model, practice=watch.backend.practice)
        if watch.expects_webhook:
            pause = max(LATE_SECONDS, (known.late if known else 0.0) - age)
        elif watch.closely:
            pause = watch.next_pause()
        elif known is None:
            pause = min(watch.next_pause() * self._stretch, 2 * _LONGEST)
        elif age < known.early:
            pause = max(known.early - age, _SHORTEST)
        else:
            pause = min(max(age * _SHARE_OF_AGE, _SHORTEST), _LONGEST) * self._stretch
        watch.pause = pause
        watch.due = now + pause
        if watch.ends_at < watch.due:
            watch.due = max(watch.ends_at, now + _SHORTEST)

    # One timer for all of them: each in a timeout of its own would cost a kilobyte.

    def _await_end(self, watch: Watch) -> None:
        """Remember until when it waits for its last look at the latest."""
        if len(self._ends) > _MOSTLY_WATCHED * self.watching + _PAGE:
            self._ends = [entry for entry in self._ends if entry[2].watched]
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (watch.ends_at, watch.number, watch))
        if self._ends[0][2] is watch:
            self._tell_overdue()

    def _tell_overdue(self) -> None:
        now = self._clock.monotonic()
        overdue = now - LAST_LOOK_SECONDS
        while self._ends and (self._ends[0][0] <= overdue or not self._ends[0][2].watched):
            watch = heapq.heappop(self._ends)[2]
            if watch.watched:
                watch.tell(TimeoutError("its last look is overdue"))
        if self._ends_timer is not None:
            self._ends_timer.cancel()
            self._ends_timer = None
        if self._ends:
            delay = max(self._ends[0][0] - overdue, _SHORTEST)
            self._ends_timer = asyncio.get_running_loop().call_later(
                delay, self._tell_overdue, context=Context()
            )

    # --- by which call -----------------------------------------------------------------------------------

    def _begin(self, first: Watch, now: float) -> None:
        together = [first] if self._looks_alone(first, now) else self._around(first, now)
        few = _FEW if self._stretch == 1 else 1
        if len(together) <= few:
            together = [first]
        for watch in together:
            watch.busy = True
        call = self._look(first) if len(together) <= few else self._glance(first, together)
        # A context of its own: what it logs belongs to nobody's request.
        look = asyncio.get_running_loop().create_task(call, context=Context())
        self._looks.add(look)
        look.add_done_callback(self._over)

    def _over(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        self._plan()

    def _looks_alone(self, watch: Watch, now: float) -> bool:
        return now < self._lists_from or now < watch.unlisted_until

    def _around(self, first: Watch, now: float) -> list[Watch]:
        """Those that are due about now and may be on one page with `first`, the newest first."""
        span = float("inf") if self._span is None else self._span
        place = self._place(first)
        newer = self._eligible(
            range(place + 1, len(self._by_age)), now, until=first.created + span / 2, most=_PAGE // 2
        )
        newest = newer[-1] if newer else first
        older = self._eligible(
            range(place - 1, -1, -1), now, until=newest.created - span, most=_PAGE - 1 - len(newer)
        )
        return [*reversed(newer), first, *older]

    def _eligible(self, places: range, now: float, *, until: float, most: int) -> list[Watch]:
        """Those in a stretch of creation times whose look is due, or nearly."""
        found: list[Watch] = []
        for place in places:
            watch = self._by_age[place]
            if (watch.created > until) if places.step > 0 else (watch.created < until):
                break
            nearly = now + min(watch.pause, _LONGEST) / 2
            if not watch.busy and watch.due <= nearly and not self._looks_alone(watch, now):
                found.append(watch)
                if len(found) >= most:
                    break
        return found

    async def _look(self, watch: Watch) -> None:
        """One prediction by itself."""
        if not watch.watched:
            return
        since = self._clock.monotonic()
        try:
            async with asyncio.timeout(max(watch.ends_at - since, LAST_LOOK_SECONDS)):
                sighting = await watch.backend.look(watch.prediction)
        except TimeoutError:
            self._again(watch, 0.0)
        except BackendError as error:
            if isinstance(error, BackendRateLimited):
                self._quiet(error)
            self._again(watch, error.retry_after or 0.0)
            watch.tell(error)
        except Exception as error:  # noqa: BLE001 - told to the one whom it concerns
            self._again(watch, 0.0)
            watch.tell(error)
        else:
            self._seen(watch, sighting.created_at, sighting, since=since)
            watch.tell(sighting)
        finally:
            self._free((watch,))

    async def _glance(self, first: Watch, together: list[Watch]) -> None:
        """One page, for those of `together` and whoever else is on it."""
        since = self._clock.monotonic()
        try:
            async with asyncio.timeout(_PAGE_SECONDS):
                glance = await first.backend.look_many(self._known, before=self._before(together[0]))
        except (BackendError, TimeoutError) as error:
            self._without_lists(error)
        except Exception as error:  # noqa: BLE001 - they are looked at by themselves then
            _log.error(
                "reading the list of predictions ended in an unexpected fault: %s", type(error).__name__
            )
            _log.debug("the fault of the list", exc_info=error)
            self._without_lists(error)
        else:
            self._list_failures = 0
            self._read(glance, first, together, since=since)
        finally:
            self._free(together)

    def _before(self, newest: Watch) -> datetime | None:
        """The instant of their clock just after one was created; None for the newest of all."""
        if not newest.exact and (self._offset is None or newest is self._by_age[-1]):
            return None
        margin = _JUST_AFTER_SECONDS if newest.exact else self._unsure
        return datetime.fromtimestamp(newest.created + margin, UTC)

    def _read(self, glance: Glance, first: Watch, together: list[Watch], *, since: float) -> None:
        """What a page says of those that are watched, and of those that should have been on it."""
        now = self._clock.monotonic()
        for upstream_id, created in glance.shown.items():
            sighting = glance.moved.get(upstream_id)
            for watch in self._watches.get(upstream_id, ()):
                news = sighting is not None and (watch.closely or sighting.status is not watch.status)
                self._seen(watch, created, sighting, since=since)
                if sighting is not None and news:
                    watch.tell(sighting)
        if glance.newest is not None and glance.oldest is not None and not glance.last:
            span = max((glance.newest - glance.oldest).total_seconds(), 0.01)
            self._span = span if self._span is None else self._span + _SMOOTH * (span - self._span)
        oldest = float("inf") if glance.oldest is None else glance.oldest.timestamp()
        for watch in together:
            if watch.upstream_id in glance.shown:
                continue
            # Of the others nobody knows whether they should have been on it.
            covered = watch.exact and (glance.last or watch.created > oldest)
            if covered or watch is first:
                watch.unlisted_until = now + _UNLISTED_SECONDS

    # --- after a look ------------------------------------------------------------------------------------

    def _seen(
        self, watch: Watch, created: datetime | None, sighting: Sighting | None, *, since: float
    ) -> None:
        """It was looked at, by a call that began at `since`."""
        if not watch.watched:
            return
        if created is not None and not watch.exact:
            self._date(watch, created.timestamp())
        if sighting is not None:
            if sighting.status is Status.SUCCEEDED and watch.status is not Status.SUCCEEDED:
                self._learn(watch, sighting)
            watch.status = sighting.status
            self._know(watch)
        if watch.woken < since:  # else there is something newer to see
            self._schedule(watch)

    def _learn(self, watch: Watch, sighting: Sighting) -> None:
        if sighting.created_at is not None and sighting.completed_at is not None:
            seconds = (sighting.completed_at - sighting.created_at).total_seconds()
        else:
            seconds = self._clock.monotonic() - watch.began
        self._times.learn(watch.model, seconds, practice=watch.backend.practice)

    def _date(self, watch: Watch, created: float) -> None:
        """Now it is known when it was created, and what lies between their clock and ours."""
        offset = created - watch.sent
        if abs(offset) > _BELIEVED_SECONDS:
            return
        del self._by_age[self._place(watch)]
        watch.created, watch.exact = created, True
        insort(self._by_age, watch, key=_age)
        if self._offset is None:
            self._offset = offset
            return
        off = abs(offset - self._offset)
        self._deviation += _SMOOTH * (off - self._deviation)
        self._offset += _SMOOTH * (offset - self._offset)

    def _know(self, watch: Watch) -> None:
        closely = any(one.closely for one in self._watches[watch.upstream_id])
        self._known[watch.upstream_id] = None if closely else watch.status

    def _again(self, watch: Watch, wait: float) -> None:
        """Its look has failed."""
        watch.pause = max(watch.next_pause(), wait)
        now = self._clock.monotonic()
        watch.due = now + watch.pause
        if watch.ends_at < watch.due:
            watch.due = max(watch.ends_at, now + _SHORTEST)

    def _free(self, watches: list[Watch] | tuple[Watch, ...]) -> None:
        for watch in watches:
            watch.busy = False
            if watch.watched:
                self._enqueue(watch)

    def _quiet(self, error: BackendRateLimited) -> None:
        wait = _PACE.cap_seconds if error.retry_after is None else error.retry_after
        self._quiet_until = max(self._quiet_until, self._clock.monotonic() + min(wait, _LONGEST_QUIET))

    def _without_lists(self, error: Exception) -> None:
        """The list could not be read: for a while everybody is looked at alone."""
        if isinstance(error, BackendRateLimited):
            self._quiet(error)
            return
        self._list_failures += 1
        wait = min(float(2 ** min(self._list_failures - 1, 10)), _LONGEST_WITHOUT_LIST)
        self._lists_from = self._clock.monotonic() + wait

    def _place(self, watch: Watch) -> int:
        place = bisect_left(self._by_age, watch.created, key=_age)
        while self._by_age[place] is not watch:
            place += 1
        return place
