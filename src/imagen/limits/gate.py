"""The gate: when the next call of one account may be sent, learned from what the service refuses and tells.

Nobody publishes which kind of limit stands behind "600 a minute", so the gate finds out. It begins hopeful: a whole
minute's allowance at once, after that the allowance's rate. What happens at the first 429 says the rest:

- A **bucket** names a short reset, because the next call is only one drop away. The credit that was left is dropped,
  calls go out smoothly at the rate, and how much was taken before the refusal is remembered as the bucket's size.
- A **window** names a long one: nothing more until old calls leave it. If the reset is when the account's own oldest
  call turns a minute old, the window slides; else it begins anew at fixed instants. From then on the gate counts its
  own calls as the service does and draws no further 429. A window that refuses early is smaller than configured.
- **Low credit** is told in words and is a limit of its own, in force beside the others.

The allowance is used at 99.5 % (a minute of 60.3 s): calls sent exactly a minute apart may arrive a little less than
a minute apart. The gate does no I/O and knows no clock: instants are arguments, in seconds since the epoch. It is one
row of a database between calls, so a call more that nobody wrote down is worse than a comparison more.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import msgspec

_MINUTE_SECONDS = 60.3
"""A minute, and what the way there may take off it."""
_PACE = 20.0
"""How many times its rate the gate sends at most: a refusal is heard of before dozens more are on their way."""
_CAREFUL_PACE, _CAREFUL_CALLS = 4.0, 8
"""The pace, and for how many calls, where a refusal is likely: after one, and over the configured allowance."""
_SHORTEST_GAP_SECONDS = 0.0002
"""Below it no pace is kept: nobody sleeps that precisely, and oversleeping would cost more than a 429."""
_LONG_SECONDS = 2.0
"""A reset above it is not that of a bucket, unless one call takes the bucket that long."""
_LONGEST_IN_A_MINUTE_SECONDS = 61.5
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 3600.0
"""Between them every reset is believed."""
_SAME_BURST_SECONDS = 0.5
_BACK_OFF_SECONDS = (1.0, 30.0)
_JUMP_SECONDS = 120.0
"""An instant that lies so much further ahead than it can was written by a clock that has jumped back since."""
_LOWERED, _REGAINED_PER_SECOND, _WINDOW_REGAINED_PER_SECOND = 0.97, 0.01, 0.002
_BUCKET_HOLDS_SECONDS, _WINDOW_HOLDS_SECONDS = 60.0, 120.0
"""How long what a refusal taught stays as it is; trying for more at once would draw the same refusal again."""
_IDLE_SECONDS = 30.0
"""As much of an idle time counts for taking back what was lowered."""
_COLD_SECONDS = 5.0
"""After so long without a call the next may have to open its connection first."""
_COLD_WAY_SECONDS, _WARM_WAY_SECONDS = 0.25, 0.02
"""How much longer than the next a call may be on its way, where it opens a connection and where one is open. A bucket
that is full takes in nothing before the call has arrived, so nothing is counted on for that long."""
_FRESH_SECONDS = 2.0
"""An older answer says too little about a window; calls are kept that much longer than they count."""
_LOW_CREDIT_SECONDS = 600.0
_EARLY_SECONDS = 1.1
"""Resets are told in whole seconds, rounded up: a fixed window may begin this much before we think."""
_SLOT_MS, _SLOT_SHARE = 450, 0.01
"""Calls are counted together by slots of so many milliseconds and so much of the allowance, which keeps the row under
two kilobytes. A slot leaves as a whole, with its last call: the fewer calls in it, the less of the window is lost."""
_REBASE_MS = 10_000_000

_REDUCED = re.compile(
    r"reduced to (\d+(?:\.\d+)?) requests? per (second|minute|hour)(?: with a burst of (\d+(?:\.\d+)?))?",
    re.IGNORECASE,
)
_LEAST_PER_MINUTE = 1 / 60
_PER_MINUTE = {"second": 60.0, "minute": 1.0, "hour": 1 / 60}
_DETAIL_LENGTH = 300


class LowCredit(msgspec.Struct, frozen=True, kw_only=True):
    """The service lets the account do less because its credit runs out.

    Attributes:
        per_minute: calls a minute, as told.
        burst: calls at once, as told.
        since: when it was told first, seconds since the epoch.
        detail: in the service's words, shortened.
    """

    per_minute: float
    burst: float
    since: float
    detail: str


class Gate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known about one limit of one account; all instants are seconds since the epoch.

    Ask `ready_at`, send, note it by `sent`, and report by `refused` and `note_allowance` what came of it. Make one with
    `Gate.opened`. Every field has a default, so rows of older versions can be read.

    Attributes:
        per_minute: calls a minute, as configured.
        kind: what the service's limit has turned out to be.
        rate: calls a second that a bucket is thought to give.
        burst: calls that a bucket is thought to hold when full.
        empty_until: when all calls sent so far are paid off at that rate (GCRA's theoretical arrival time).
        sequence: calls sent so far, which is the number of the last one.
        last_sent: when it was sent.
        limit: calls that a window is thought to let through each minute.
        lowered_at: when `limit` or `rate` was lowered last.
        anchor: an instant at which a fixed window begins; 0 where it slides.
        base: what the times in `calls` count from.
        calls: milliseconds since `base` and number of calls in turn: when a slot's last call was sent, and how many
            it has.
        held: the sum of those numbers.
        left: slots at the beginning of `calls` that counted no longer when something was sent last.
        left_calls: how many calls these have.
        closed: until when a 429 keeps everybody out.
        closed_for: how long that was to be when it was said, in seconds.
        back_off: the last pause that the service did not name, in seconds.
        refusals: 429s so far.
        refused_at: when something was learned from one last.
        refused_sequence: the last call that had been sent by then.
        low: what low credit allows.
        low_told_at: when that was said last.
        low_empty_until: `empty_until` of low credit.
    """

    per_minute: float = 600.0
    kind: Literal["unknown", "bucket", "window"] = "unknown"
    rate: float = 0.0
    burst: float = 0.0
    empty_until: float = 0.0
    sequence: int = 0
    last_sent: float = 0.0
    limit: float = 0.0
    lowered_at: float = 0.0
    anchor: float = 0.0
    base: float = 0.0
    calls: list[int] = msgspec.field(default_factory=list)
    held: int = 0
    left: int = 0
    left_calls: int = 0
    closed: float = 0.0
    closed_for: float = 0.0
    back_off: float = 0.0
    refusals: int = 0
    refused_at: float = 0.0
    refused_sequence: int = 0
    low: LowCredit | None = None
    low_told_at: float = 0.0
    low_empty_until: float = 0.0

    def __post_init__(self) -> None:
        """Fill in what an older row does not say."""
        self.rate = self.rate or self.per_minute / _MINUTE_SECONDS
        self.burst = self.burst or max(1.0, self.per_minute)
        self.limit = self.limit or max(1.0, self.per_minute)

    @classmethod
    def opened(cls, per_minute: float) -> Gate:
        """A gate that knows nothing yet and lets a minute's allowance through.

        Args:
            per_minute: calls a minute that the service is thought to allow.

        Raises:
            ValueError: that is no positive number.
        """
        return cls(per_minute=_allowance(per_minute))

    def configure(self, per_minute: float) -> None:
        """Take over another allowance; what was learned stays where it says less than the new one.

        Raises:
            ValueError: `per_minute` is no positive number.
        """
        new, old = _allowance(per_minute), self.per_minute
        if new == old:
            return
        self.per_minute = new
        full, most = new / _MINUTE_SECONDS, max(1.0, new)
        was_full, was_most = old / _MINUTE_SECONDS, max(1.0, old)
        # Nothing below the old allowance was learned where all of it was in force.
        credit = self._credit(self.last_sent)
        self.rate = full if self.rate >= was_full else min(self.rate, full)
        burst = most if self.kind == "unknown" or self.burst >= was_most else min(self.burst, most)
        self.limit = most if self.limit >= was_most else min(self.limit, most)
        credit = min(burst, max(0.0, credit + burst - self.burst))
        self.burst = burst
        if self.empty_until > self.last_sent:
            self.empty_until = max(self.closed, self.last_sent) + (burst - credit) / self.rate

    # -- asked before each call ------------------------------------------------------------------------------------

    def ready_at(self, now: float, count: int = 1) -> float:
        """When the next call may be sent, never before `now`. Changes nothing and never raises.

        Args:
            now: the present.
            count: calls that are to be sent together; more than the limit ever lets through count as that many.
        """
        return self._fits_at(now, self._paced_at(now), count)

    def _paced_at(self, now: float) -> float:
        """When it is the next call's turn, however many the limit would let through at once."""
        gap = _MINUTE_SECONDS / (_PACE * self.per_minute)
        if gap < _SHORTEST_GAP_SECONDS:
            return now
        if self._is_careful():
            gap *= _PACE / _CAREFUL_PACE
        turn = self.last_sent + gap
        return turn if now < turn <= now + 2 * gap else now

    def _fits_at(self, now: float, at: float, count: int) -> float:
        """When so many calls fit into the limit, at an instant or later."""
        if at < self.closed <= now + self.closed_for + _JUMP_SECONDS:
            at = self.closed
        if self.kind == "window":
            at = self._room_at(at, count)
        else:
            due = self.empty_until - (self.burst - min(count, self.burst)) / self.rate
            if at < due <= self._horizon(now):
                at = due
        low = None if self.low is None else self._low_at(now)
        if low is not None:
            each = _MINUTE_SECONDS / low.per_minute
            due = self.low_empty_until - (low.burst - min(count, low.burst)) * each
            if at < due <= now + self.closed_for + each + _JUMP_SECONDS:
                at = due
        return at

    def spare(self, now: float) -> int:
        """How many calls the limit would let through now, whose turn may be apart by some milliseconds.

        Changes nothing and never raises.
        """
        low = None if self.low is None else self._low_at(now)
        most = math.floor(min(self.per_minute, self.limit if self.kind == "window" else self.burst))
        if low is not None:
            most = min(most, math.floor(low.burst))
        least = 0
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if self._fits_at(now, now, middle) <= now else (least, middle - 1)
        return least

    def closed_until(self, now: float) -> float | None:
        """Until when a 429 keeps the gate closed for everybody; None where none does."""
        return self.closed if now < self.closed <= now + self.closed_for + _JUMP_SECONDS else None

    def summary(self, now: float) -> dict[str, Any]:
        """What `/health` shows: kind, rate in force, how long closed, low credit and the number of refusals."""
        in_force = self.limit / _MINUTE_SECONDS if self.kind == "window" else self.rate
        low = self._low_at(now)
        if low is not None:
            in_force = min(in_force, low.per_minute / _MINUTE_SECONDS)
        return {
            "kind": self.kind,
            "rate_per_minute": round(in_force * 60, 3),
            "closed_for_seconds": round((self.closed_until(now) or now) - now, 3),
            "low_credit": None if low is None else msgspec.to_builtins(low),
            "refusals": self.refusals,
        }

    # -- noted after each call -------------------------------------------------------------------------------------

    def sent(self, now: float, count: int = 1) -> int:
        """Note that calls were sent.

        Args:
            now: when.
            count: how many.

        Returns:
            The number of the last of them, by which `refused` and `note_allowance` know it again.
        """
        if count < 1:
            return self.sequence
        self.sequence += count
        if self.lowered_at:
            self._regain(now)
        way = _WARM_WAY_SECONDS if 0 <= now - self.last_sent < _COLD_SECONDS else _COLD_WAY_SECONDS
        horizon = self._horizon(now) + self.burst / self.rate
        owed = self.empty_until if self.empty_until <= horizon else 0.0
        self.empty_until = _paid_off(owed, now, way, (self.burst - 1) / self.rate) + count / self.rate
        self.last_sent = now
        self._count(now, count)
        if self.kind == "window":
            self._see_off(now)
        if self.low is not None:
            self.low = self._low_at(now)
        if self.low is not None:
            each = _MINUTE_SECONDS / self.low.per_minute
            horizon = now + self.closed_for + self.low.burst * each + _JUMP_SECONDS
            owed = self.low_empty_until if self.low_empty_until <= horizon else 0.0
            self.low_empty_until = _paid_off(owed, now, way, (self.low.burst - 1) * each) + count * each
        return self.sequence

    def refused(self, now: float, *, retry_after: float | None, detail: str, sequence: int = 0) -> None:
        """Note a 429: nobody sends until its reset, and the limit is known better.

        Several refusals of calls that were on their way together teach as much as one, but each may name a later
        reset. The refused call itself did not count at the service and is credited back.

        Args:
            now: when it came.
            retry_after: seconds until the reset, as told; anything that is not a positive number is as good as None,
                and the gate backs off by itself: 1, 2, 4 … 30 s.
            detail: what the service said; low credit is recognised by it.
            sequence: the call's number from `sent`; 0 where it is not known.
        """
        self.refusals += 1
        same_burst = bool(self.refused_at) and (
            0 <= now - self.refused_at < _SAME_BURST_SECONDS or 0 < sequence <= self.refused_sequence
        )
        told = retry_after is not None and retry_after > 0
        wait = (
            min(max(retry_after or 0.0, _SHORTEST_SECONDS), _LONGEST_SECONDS)
            if told
            else self._own_pause(now, same_burst=same_burst)
        )
        if told:
            self.back_off = 0.0
        self._close(now, wait)
        self._credit_back(drained=same_burst and self.kind == "bucket")
        if self._hears_low_credit(now, detail):
            self.refused_at, self.refused_sequence = now, self.sequence
            return
        if same_burst:
            # It still seemed to fit when the first of them taught how much does.
            if self.lowered_at == self.refused_at and self.kind == "window":
                self.limit = max(1.0, min(self.limit, sum(self._own(now)) / 2))
            return
        if self.kind == "window" or wait > max(_LONG_SECONDS, 2 / self.rate + 1):
            self._learn_window(now, wait, told=told)
        else:
            self._learn_bucket(now, wait)
        self.refused_at, self.refused_sequence = now, self.sequence

    def note_allowance(self, now: float, *, remaining: int, sequence: int, age: float) -> bool:
        """Note `ratelimit-remaining` of an answer; `ratelimit-reset` says 1 s whatever the limit is.

        Small differences are left alone: then nothing changes, and the row need not be written.

        Args:
            now: when the answer came.
            remaining: calls left, as the service saw it when the call arrived.
            sequence: the call's number from `sent`.
            age: how long ago it was sent, in seconds.

        Returns:
            Whether something changed that is worth writing down.
        """
        news = self._news(now, remaining, sequence, age)
        if news is None:
            return False
        what, value = news
        if what == "credit restored":
            self.low = None
        elif what == "limit":
            self.limit = value
            self.lowered_at = now
        else:
            self.empty_until = value
        return True

    # -- low credit ------------------------------------------------------------------------------------------------

    def _low_at(self, now: float) -> LowCredit | None:
        told = self.low_told_at
        return self.low if told - _JUMP_SECONDS <= now < told + _LOW_CREDIT_SECONDS else None

    def _hears_low_credit(self, now: float, detail: str) -> bool:
        found = _REDUCED.search(detail)
        if found is None:
            return False
        per_minute = float(found[1]) * _PER_MINUTE[found[2].lower()]
        if not 0 < per_minute < math.inf:
            return False
        known = self._low_at(now)
        self.low = LowCredit(
            per_minute=max(_LEAST_PER_MINUTE, per_minute),
            burst=min(max(1.0, float(found[3] or 1)), max(1.0, self.per_minute)),
            since=now if known is None else known.since,
            detail=detail[:_DETAIL_LENGTH],
        )
        self.low_told_at = now
        # One call is there at the reset, whatever was thought to be there.
        self.low_empty_until = self.closed + (self.low.burst - 1) * _MINUTE_SECONDS / self.low.per_minute
        return True

    # -- a 429 -----------------------------------------------------------------------------------------------------

    def _own_pause(self, now: float, *, same_burst: bool) -> float:
        first, most = _BACK_OFF_SECONDS
        if same_burst and self.back_off:
            return max(first, self.closed - now)
        in_a_row = self.back_off and 0 <= now - self.refused_at < 2 * self.back_off + 5
        self.back_off = min(most, 2 * self.back_off) if in_a_row else first
        return self.back_off

    def _close(self, now: float, wait: float) -> None:
        if self.closed_until(now) is None or now + wait > self.closed:
            self.closed, self.closed_for = now + wait, wait

    def _credit_back(self, *, drained: bool) -> None:
        if not drained:
            self.empty_until -= 1 / self.rate
        if self.low is not None:
            self.low_empty_until -= _MINUTE_SECONDS / self.low.per_minute
        if self.calls and self.held > 0:
            # Which slot it was in matters little; the newest is where it most likely was.
            self.held -= 1
            self.calls[-1] -= 1
            if self.calls[-1] < 1:
                del self.calls[-2:]
            # Walked anew: the slot, or after what is learned next the kind of window, may be another.
            self.left = self.left_calls = 0

    def _learn_bucket(self, now: float, wait: float) -> None:
        taken = (self.empty_until - now) * self.rate
        if self.kind == "unknown":
            # Full before, empty now: that is its size, less what may still be on its way or was already missing.
            self.kind = "bucket"
            self.burst = min(max(1.0, 0.9 * taken - 2), max(1.0, self.per_minute))
        else:
            if taken < self.burst - 1:
                self.burst = max(1.0, 0.9 * taken)
            self._lower_rate(now)
        # What drips in before the reset may be used, most of it.
        credit = min(self.burst, max(1.0, 0.75 * self.rate * wait))
        self.empty_until = self.closed + (self.burst - credit) / self.rate

    def _lower_rate(self, now: float) -> None:
        """Between two refusals a bucket gave what it gives: believe it where it was asked for most of it."""
        passed = now - self.refused_at
        least = self.per_minute / _MINUTE_SECONDS / 100
        lowered = self.rate * _LOWERED
        if passed >= _LONG_SECONDS:
            given = (self.sequence - self.refused_sequence - 1) / passed
            if given >= 0.3 * self.rate:
                lowered = min(lowered, given)
        self.rate = max(least, lowered)
        self.lowered_at = now

    def _learn_window(self, now: float, wait: float, *, told: bool) -> None:
        reset = now + wait
        if self.kind != "window":
            self.kind = "window"
            self.anchor = reset if told and not self._slides(now, reset) else 0.0
        elif self.anchor:
            off = (reset - self.anchor + 30) % 60 - 30
            self.anchor = reset if told and abs(off) <= 1.5 else 0.0
        if wait > _LONGEST_IN_A_MINUTE_SECONDS:
            # Not what a minute's window says; how many calls fit into one is not learned from it.
            self.anchor = 0.0
            return
        own = sum(self._own(now)) / 2
        # Just after a fixed window began nothing is learned: its beginning was told a little too early.
        if not self.anchor or wait > _LONG_SECONDS or own >= self.limit / 2:
            self.limit = max(1.0, min(self.limit, own))
            self.lowered_at = now

    def _slides(self, now: float, reset: float) -> bool:
        """Whether the reset is when our own oldest call leaves a sliding window."""
        own = 0
        oldest = None
        for sent_ms, count in zip(self.calls[::2], self.calls[1::2], strict=False):
            sent = self.base + sent_ms / 1000
            if sent + 60 > now:
                oldest = sent if oldest is None else oldest
                own += count
        return (
            oldest is not None
            and oldest + 60 - _SAME_BURST_SECONDS <= reset <= oldest + 61.3
            and own <= 1.02 * self.per_minute + 5
        )

    def _regain(self, now: float) -> None:
        """Take back what was lowered, slowly, once it has stayed lowered for a while."""
        if self.lowered_at > now + _JUMP_SECONDS:
            self.lowered_at = now
        passed = min(_IDLE_SECONDS, max(0.0, now - self.last_sent))
        full, most = self.per_minute / _MINUTE_SECONDS, max(1.0, self.per_minute)
        if self.kind == "window":
            if now > self.lowered_at + _WINDOW_HOLDS_SECONDS:
                self.limit = min(most, self.limit + most * passed * _WINDOW_REGAINED_PER_SECOND)
        elif now > self.lowered_at + _BUCKET_HOLDS_SECONDS:
            self.rate = min(full, self.rate * (1 + passed * _REGAINED_PER_SECOND))
        if self.rate >= full and self.limit >= most:
            self.lowered_at = 0.0

    def _is_careful(self) -> bool:
        """Whether the next call may well be refused, so that few should be on their way when it is.

        Not in a window: it is known by then how much fits, and where others share it they would take the rest.
        """
        if self.kind == "unknown" and 0 <= self.held - self.per_minute < _CAREFUL_CALLS:
            return True
        return (
            self.kind != "window"
            and self.refusals > 0
            and self.sequence - self.refused_sequence < _CAREFUL_CALLS
        )

    # -- credit of a bucket ----------------------------------------------------------------------------------------

    def _horizon(self, now: float) -> float:
        return now + self.closed_for + 2 / self.rate + _JUMP_SECONDS

    def _credit(self, now: float) -> float:
        return min(self.burst, self.burst - (self.empty_until - now) * self.rate)

    # -- calls in a window -----------------------------------------------------------------------------------------

    def _count(self, now: float, count: int) -> None:
        calls = self.calls
        ms = int((now - self.base) * 1000) + 1
        if calls:
            last = calls[-2]
            if ms < last:
                self.left = self.left_calls = 0
            if ms < last - _JUMP_SECONDS * 1000:
                calls.clear()
            elif ms <= last or (
                ms // _SLOT_MS == last // _SLOT_MS and calls[-1] + count <= self.per_minute * _SLOT_SHARE
            ):
                calls[-2] = max(ms, last)
                calls[-1] += count
                self.held += count
                return
        if not calls:
            self.base, ms, self.held, self.left, self.left_calls = now, 1, 0, 0, 0
        gone = 0
        while gone < len(calls) and self._leaves(calls[gone]) + _FRESH_SECONDS <= now:
            self.held -= calls[gone + 1]
            if 2 * self.left > gone:
                self.left_calls -= calls[gone + 1]
            gone += 2
        if gone:
            del calls[:gone]
            self.left = max(0, self.left - gone // 2)
        if ms > _REBASE_MS and calls:
            by = calls[0] - 1
            calls[::2] = [each - by for each in calls[::2]]
            self.base += by / 1000
            ms -= by
        calls += (ms, count)
        self.held += count

    def _leaves(self, sent_ms: int) -> float:
        """When a slot's calls no longer count."""
        sent = self.base + sent_ms / 1000
        if not self.anchor:
            return sent + _MINUTE_SECONDS
        return self.anchor + 60.0 * (math.floor((sent + _EARLY_SECONDS - self.anchor) / 60.0) + 1)

    def _see_off(self, now: float) -> None:
        """Step over the slots that count no longer, so that asking need not."""
        calls = self.calls
        while 2 * self.left < len(calls) and self._leaves(calls[2 * self.left]) <= now:
            self.left_calls += calls[2 * self.left + 1]
            self.left += 1

    def _room_at(self, at: float, count: int) -> float:
        calls = self.calls
        room = math.floor(self.limit)
        held = self.held - self.left_calls + min(count, room)
        if held <= room or not calls or self.base + calls[-2] / 1000 > at + _JUMP_SECONDS:
            return at
        slot = 2 * self.left
        while held > room and slot < len(calls):
            at = max(at, self._leaves(calls[slot]))
            held -= calls[slot + 1]
            slot += 2
        return at

    def _own(self, at: float, since: int = 0) -> tuple[float, float]:
        """How many of our calls the service's window held at an instant, at least and at most.

        The last `since` calls were sent later and are left out. A slot that is leaving just then counts for the upper
        bound only.
        """
        most = self.held - since
        calls = self.calls
        slot = 0
        while slot < len(calls):
            sent = self.base + calls[slot] / 1000
            if (self._leaves(calls[slot]) if self.anchor else sent + 60) > at:
                break
            most -= calls[slot + 1]
            slot += 2
        least = most
        if slot and slot < len(calls) and not self.anchor:
            before = self.base + max(calls[slot - 2], calls[slot] // _SLOT_MS * _SLOT_MS) / 1000
            least -= calls[slot + 1] if before + 60 < at else 0
        while self.anchor and slot < len(calls):
            if self.base + calls[slot] / 1000 >= self._leaves(calls[slot]) - 60:
                break
            least -= calls[slot + 1]
            slot += 2
        return max(0.0, least), max(0.0, most)

    # -- what answers tell -----------------------------------------------------------------------------------------

    def _news(self, now: float, remaining: int, sequence: int, age: float) -> tuple[str, float] | None:
        """What an answer changes, and the new value; None where nothing worth it."""
        if not 0 < sequence <= self.sequence or remaining < 0 or not age < _LONGEST_SECONDS:
            return None
        age = max(0.0, age)
        low = self._low_at(now)
        if low is not None:
            restored = remaining > 10 * low.burst + 5 and now - age > self.low_told_at
            # What is left of the little that low credit allows says nothing about the usual limit.
            return ("credit restored", 0.0) if restored else None
        since = self.sequence - sequence
        most = max(1.0, self.per_minute)
        few = 0.02 * most
        if self.kind == "window":
            if age >= _FRESH_SECONDS:
                return None
            least, own = self._own(now - age, since)
            fits = max(1.0, own + remaining)
            little = max(1.0, few / 4) if remaining < few else max(2.0, few)
            if fits < self.limit and self.limit >= min(most, own + remaining) + little:
                return ("limit", fits)
            raised = min(most, least + remaining)
            return ("limit", raised) if self.limit <= raised - max(1.0, few / 4) else None
        credit = max(0.0, min(remaining, most) - since + age * self.rate)
        own = self._credit(now)
        if own - credit < (1.0 if credit < few else max(1.0, few)):
            return None
        return ("credit", now + (self.burst - credit) / self.rate)


def _paid_off(owed: float, now: float, way: float, more: float) -> float:
    """When a bucket will be full again, but for the call that is sent now.

    Args:
        owed: when it would be without that call.
        now: when the call is sent.
        way: how much longer it may be on its way than the next one, in seconds.
        more: the seconds in which a bucket that one call would empty becomes full.
    """
    # A call that goes as soon as the limit lets it comes after one that went just so: their ways cancel out. To count
    # them each time would make a bucket of one slower than it is.
    waited_for_limit = now <= owed - more + way
    return max(owed, now if waited_for_limit else now + way)


def _allowance(per_minute: float) -> float:
    if not 0 < per_minute < math.inf:
        raise ValueError(f"{per_minute} is no number of calls a minute")
    return float(per_minute)
