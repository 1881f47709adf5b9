"""The laws of the gate, for whatever is sent, refused and told."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from itertools import pairwise

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagen.limits.gate import Gate

T0 = 1_800_000_000.0
Story = list[tuple[float, tuple[str, float | None]]]
"""Seconds that pass, what happens then, and its number."""
rates = st.one_of(st.integers(1, 3000), st.floats(1, 1e6))
steps = st.lists(
    st.tuples(
        st.floats(0, 90),
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 40)),
            st.tuples(st.just("refuse"), st.one_of(st.none(), st.floats(0.1, 70))),
            st.tuples(st.just("tell"), st.integers(0, 700)),
            st.tuples(st.just("configure"), st.integers(1, 2000)),
        ),
    ),
    max_size=40,
)
LOW = "reduced to 6 requests per minute with a burst of 1 requests while you have less than $5.0 in credit"


def lived(per_minute: float, story: Story, words: str = "") -> tuple[Gate, float]:
    """A gate to which all that has happened, and the present."""
    gate, now = Gate.opened(per_minute), T0
    for passed, (what, value) in story:
        now += passed
        if what == "send":
            for _ in range(int(value or 0)):
                now = gate.ready_at(now)
                gate.sent(now)
        elif what == "refuse":
            gate.refused(now, retry_after=value, detail=words, sequence=gate.sequence)
        elif what == "tell":
            gate.note_allowance(now, remaining=int(value or 0), sequence=gate.sequence, age=0.1)
        else:
            gate.configure(float(value or 1))
    return gate, now


def most_within(sent: list[float], seconds: float) -> int:
    return max((bisect_left(sent, at + seconds) - number for number, at in enumerate(sent)), default=0)


@given(st.integers(1, 400), st.lists(st.floats(0, 30), max_size=150), st.floats(1, 200))
def test_never_more_than_a_burst_and_the_rate(per_minute: int, pauses: list[float], span: float):
    gate, now, sent = Gate.opened(per_minute), T0, []
    for pause in pauses:
        now += pause
        for _ in range(8):
            now = gate.ready_at(now)
            gate.sent(now)
            sent.append(now)
    assert most_within(sent, span) <= per_minute + per_minute * span / 60.3 + 1


COLD_SECONDS, COLD_WAY_SECONDS, WARM_WAY_SECONDS = 5.0, 0.25, 0.02
"""After so long without a call a connection is opened; so long a call is on its way at most, then and else."""


def ways_of(sent: list[float], luck: random.Random | None) -> list[float]:
    """How long each call is on its way; without luck those after a pause take longest and the others no time."""
    last, ways = -math.inf, []
    for at in sent:
        cold = at - last >= COLD_SECONDS
        most = COLD_WAY_SECONDS if cold else WARM_WAY_SECONDS
        ways.append(luck.choice([0.0, luck.uniform(0, most), most]) if luck else most if cold else 0.0)
        last = at
    return ways


def passed_by(arrivals: list[float], per_minute: float) -> float:
    """By how many calls a bucket that holds a minute's allowance is overdrawn at most."""
    most = max(1.0, per_minute)
    level, last, worst = most, -math.inf, 0.0
    for at in sorted(arrivals):
        level = min(most, level + (at - last) * per_minute / 60) - 1
        last, worst = at, max(worst, -level)
    return worst


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.integers(1, 30), st.floats(1, 120), st.integers(1, 6000)),
    st.lists(
        st.tuples(st.one_of(st.floats(0, 200), st.floats(55, 66)), st.sampled_from([0, 1, 7]), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.one_of(st.none(), st.randoms(use_true_random=False)),
)
@example(60, [(0.0, 0, True), (61.0, 30, True)], None)
@example(60, [(0.0, 0, True), (59.9, 30, True)], None)
@example(60, [(0.0, 1, False), (3.0, 30, True)], random.Random(2))
@example(1.05, [(0.0, 1, True), (0.0, 3, False)], None)
@example(6000, [(0.0, 40, True), (60.4, 40, True)], None)
def test_a_full_bucket_is_never_overdrawn_however_long_calls_are_on_their_way(
    per_minute: float, story: list[tuple[float, int, bool]], luck: random.Random | None
):
    """After each pause come some calls as soon as the gate lets them, or a minute's allowance of them and some more."""
    gate, now, sent = Gate.opened(per_minute), T0, []
    for pause, count, whole in story:
        now += pause
        for _ in range(count + (int(per_minute) if whole else 0)):
            now = gate.ready_at(now)
            gate.sent(now)
            sent.append(now)
    seed = None if luck is None else random.Random(luck.random())  # quicker than one that shrinks
    arrivals = [at + way for at, way in zip(sent, ways_of(sent, seed), strict=True)]
    assert passed_by(arrivals, per_minute) <= 1e-6 * per_minute


@given(
    st.one_of(st.integers(1, 30), st.floats(1, 120), st.integers(1, 6000)),
    st.floats(0, 1),
    st.floats(0, 0.015),
    st.floats(0, 200),
)
@example(6, 0.0, 0.0, 60.0)
@example(60, 0.0, 0.01, 60.0)
@example(6000, 0.0, 0.0, 0.0)
def test_whoever_sends_all_the_time_loses_nothing_to_the_way_there(
    per_minute: float, size: float, late: float, pause: float
):
    """A bucket of one is full at each call; nobody is told of a turn in time to the millisecond."""
    gate = Gate.opened(per_minute)
    gate.kind, gate.burst = "bucket", 1 + size * (max(1.0, per_minute) - 1)
    gate.sent(T0)
    now, sent = T0 + pause, []
    for _ in range(200):
        now = gate.ready_at(now) + late
        gate.sent(now)
        sent.append(now)
    each = 60.3 / per_minute + late
    after_first = sent[1:]
    assert after_first[-1] - after_first[0] <= (len(after_first) - 1) * each * 1.0001
    assert all(later - sooner <= each + 0.251 for sooner, later in pairwise(sent))


@given(st.integers(2, 300), st.lists(st.floats(0, 20), max_size=100))
def test_a_known_sliding_window_is_never_overrun(per_minute: int, pauses: list[float]):
    gate, now, sent = Gate.opened(per_minute), T0, []
    gate.kind = "window"
    for pause in pauses:
        now += pause
        for _ in range(10):
            now = gate.ready_at(now)
            gate.sent(now)
            sent.append(now)
    assert most_within(sent, 60.0) <= per_minute


@given(rates, steps, st.sampled_from(["", LOW]))
def test_a_gate_that_was_written_down_and_read_is_the_same(per_minute: float, story: Story, words: str):
    gate, now = lived(per_minute, story, words)
    again = msgspec.json.decode(msgspec.json.encode(gate), type=Gate)
    assert again == gate
    assert again.ready_at(now) == gate.ready_at(now)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(gate), type=Gate) == gate


@given(rates, steps, st.sampled_from(["", LOW]), st.floats(-4000, 4000), st.floats(0, 4000))
def test_ready_at_is_no_earlier_than_now_nor_than_it_was_before(
    per_minute: float, story: Story, words: str, ahead: float, later: float
):
    gate, now = lived(per_minute, story, words)
    now += ahead
    before = msgspec.json.encode(gate)
    ready = gate.ready_at(now)
    assert now <= ready <= gate.ready_at(now + later)
    if ahead >= 0:  # else the clock was set back, and more is forgotten the further
        assert gate.ready_at(ready) <= ready + 1e-3
    assert msgspec.json.encode(gate) == before, "asking changes nothing"


@given(rates, steps, st.sampled_from(["", LOW]))
def test_the_sums_that_are_kept_are_those_of_the_slots(per_minute: float, story: Story, words: str):
    gate, _ = lived(per_minute, story, words)
    assert gate.held == sum(gate.calls[1::2])
    assert gate.left_calls == sum(gate.calls[1 : 2 * gate.left : 2])


@given(rates, steps, st.sampled_from(["", LOW]))
def test_nobody_waits_for_ever(per_minute: float, story: Story, words: str):
    gate, now = lived(per_minute, story, words)
    assert gate.ready_at(now) <= now + 400
    ready = gate.ready_at(now)
    gate.sent(ready)
    assert gate.ready_at(ready) <= ready + 400


@given(
    rates,
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(), st.integers()), st.text(), st.integers(0, 9)), max_size=20
    ),
)
def test_whatever_a_429_says_the_gate_opens_within_an_hour(
    per_minute: float, refusals: list[tuple[float | None, str, int]]
):
    gate, now = Gate.opened(per_minute), T0
    for retry_after, detail, sequence in refusals:
        now = gate.ready_at(now)
        gate.sent(now)
        gate.refused(now, retry_after=retry_after, detail=detail, sequence=sequence)
        ready = gate.ready_at(now)
        assert now < ready <= now + 3600.1
        assert msgspec.json.decode(msgspec.json.encode(gate), type=Gate) == gate
        assert math.isfinite(gate.summary(now)["rate_per_minute"])


@given(
    st.from_regex(
        r"reduced to \d{1,9}(\.\d{1,4})? requests per (second|minute|hour) with a burst of \d{1,9} ",
        fullmatch=True,
    )
)
def test_whatever_low_credit_allows_the_gate_opens_again(detail: str):
    gate = Gate.opened(600)
    gate.refused(T0, retry_after=5, detail=detail)
    assert gate.ready_at(T0) == T0 + 5
    gate.sent(T0 + 5)
    assert gate.ready_at(T0 + 5) <= T0 + 3 * 3600


@given(rates, steps, st.integers(-5, 10**6), st.integers(-5, 2000), st.floats())
def test_an_answer_changes_as_much_as_is_told(
    per_minute: float, story: Story, remaining: int, sequence: int, age: float
):
    gate, now = lived(per_minute, story)
    before = msgspec.json.encode(gate)
    changed = gate.note_allowance(now, remaining=remaining, sequence=sequence, age=age)
    assert (msgspec.json.encode(gate) != before) == changed
    assert gate.ready_at(now) >= now


@given(rates, steps, st.one_of(st.floats(), st.integers(-(10**12), 10**12)))
def test_asking_never_raises(per_minute: float, story: Story, now: float):
    gate, _ = lived(per_minute, story)
    gate.ready_at(now)
