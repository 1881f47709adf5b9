"""What is learned of how long models run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import ManualClock
from imagen.errors import StoreError
from imagen.service.pace import RunTime, RunTimeBook

MODEL = "black-forest-labs/flux-schnell"
seconds = st.floats(min_value=0.06, max_value=80_000, allow_nan=False)


class MemoryRunTimes:
    """`ports.RunTimes` that can fail."""

    def __init__(self, kept: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.kept = dict(kept or {})
        self.broken = False

    async def recall(self) -> Mapping[str, Mapping[str, float]]:
        if self.broken:
            raise StoreError("the disk is gone")
        return self.kept

    async def remember(self, learned: Mapping[str, Mapping[str, float]]) -> None:
        if self.broken:
            raise StoreError("the disk is gone")
        self.kept |= learned


def learned(*took: float) -> RunTime:
    times = RunTime()
    for each in took:
        times.add(each)
    return times


@given(st.lists(seconds, min_size=5, max_size=60))
def test_the_three_marks_stand_in_order_and_among_what_was_seen(took: list[float]) -> None:
    times = learned(*took)
    assert times.known
    assert times.early <= times.median <= times.late
    assert min(took) / 1.09 <= times.early
    assert times.late <= max(took) * 1.09


@given(st.lists(seconds, min_size=5, max_size=60))
def test_what_is_kept_tells_the_same(took: list[float]) -> None:
    times = learned(*took)
    again = RunTime(times.weights())
    assert again.known
    assert again.weights() == times.weights()
    again.add(1.0)
    times.add(1.0)
    assert again.weights() == pytest.approx(times.weights(), abs=2e-4)


def test_four_runs_are_not_enough_to_go_by() -> None:
    assert not learned(1, 1, 1, 1).known
    assert learned(1, 1, 1, 1, 1).known


def test_a_model_that_has_become_faster_is_noticed() -> None:
    times = learned(*[60.0] * 500)
    for _ in range(20):
        times.add(5.0)
    assert times.early == pytest.approx(5, rel=0.1), "the first look comes in time again"
    assert times.median == pytest.approx(60, rel=0.1)
    for _ in range(3000):
        times.add(5.0)
    assert times.median == pytest.approx(5, rel=0.1)


def test_a_million_runs_take_no_more_room_than_a_few() -> None:
    times = learned(*(float(1 + number % 50) for number in range(100_000)))
    assert len(times.weights()) <= 60
    assert times.median == pytest.approx(25, rel=0.2)


def test_rubbish_that_was_kept_is_left_out() -> None:
    times = RunTime({"a": 1.0, "1e9": 3, "7": -1.0, "9": float("nan"), "11": float("inf"), "48": 6.0})
    assert times.weights() == {"48": 6.0}


@pytest.mark.anyio
async def test_what_one_process_has_learned_the_next_one_knows(clock: ManualClock) -> None:
    store = MemoryRunTimes()
    first = RunTimeBook(store, clock)
    for _ in range(6):
        first.learn(MODEL, 8.0, practice=False)
        first.learn(f"{MODEL}:{'a' * 64}", 8.0, practice=False)
        first.learn("practised/model", 8.0, practice=True)
    await first.aclose()
    assert list(store.kept) == [MODEL], "versions count as one model, and practice is not kept"
    second = RunTimeBook(store, clock)
    assert second.of(MODEL, practice=False) is None, "nobody waits for what is being read"
    for _ in range(10):
        await asyncio.sleep(0)
    known = second.of(MODEL, practice=False)
    assert known is not None
    assert known.median == pytest.approx(8, rel=0.1)
    assert second.of(MODEL, practice=True) is None
    await second.aclose()


@pytest.mark.anyio
async def test_what_was_learned_before_the_rest_was_read_is_not_lost(clock: ManualClock) -> None:
    store = MemoryRunTimes({MODEL: learned(*[8.0] * 10).weights()})
    book = RunTimeBook(store, clock)
    book.learn(MODEL, 90.0, practice=False)
    await book.aclose()
    assert sum(store.kept[MODEL].values()) == pytest.approx(11, rel=0.02)


@pytest.mark.anyio
async def test_a_store_that_fails_harms_nobody(clock: ManualClock) -> None:
    store = MemoryRunTimes()
    store.broken = True
    book = RunTimeBook(store, clock)
    for _ in range(6):
        book.learn(MODEL, 3.0, practice=False)
    known = book.of(MODEL, practice=False)
    assert known is not None
    assert known.median == pytest.approx(3, rel=0.1)
    await book.aclose()
    assert store.kept == {}


@pytest.mark.anyio
async def test_the_models_that_are_remembered_are_bounded(clock: ManualClock) -> None:
    store = MemoryRunTimes()
    book = RunTimeBook(store, clock)
    for number in range(2000):
        book.learn(f"somebody/model-{number}", 3.0, practice=False)
    await book.aclose()
    assert len(store.kept) == 500
    assert "somebody/model-1999" in store.kept
