"""The laws of the gate, for whatever is sent, refused and told."""

from __future__ import annotations

import math
from bisect import bisect_left

import msgspec
from hypothesis import given
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
            gate.told(now, remaining=int(value or 0), reset=1, sequence=gate.sequence, age=0.1)
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
    changed = gate.told(now, remaining=remaining, reset=None, sequence=sequence, age=age)
    assert (msgspec.json.encode(gate) != before) == changed
    assert gate.ready_at(now) >= now


@given(rates, steps, st.one_of(st.floats(), st.integers(-(10**12), 10**12)))
def test_asking_never_raises(per_minute: float, story: Story, now: float):
    gate, _ = lived(per_minute, story)
    gate.ready_at(now)
