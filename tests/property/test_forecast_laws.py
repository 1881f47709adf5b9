"""When a batch will have ended is told by how fast it goes, however long it waited or was paused before."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import pairwise

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from fakes.batches import make_batch
from imagen.domain.batch import Remembered, Tally
from imagen.service.batches import forecast, let_run_at, measured, measured_since

BATCH = make_batch(total=1, owner="me")
MANY = 1_000_000.0
"""Creates a minute: the pace is that of the runs."""
NUMBERS = st.integers(0, 20_000)


def after(seconds: float) -> datetime:
    return BATCH.created_at + timedelta(seconds=seconds)


class Course(msgspec.Struct, frozen=True):
    """How a batch goes: places of the same length of run, begun after a wait, and paused for a while once.

    What runs when it is paused goes on to its end.
    """

    total: int
    places: int
    run_seconds: float
    waits: float
    pauses_after: int
    pause_seconds: float

    def runs(self) -> list[tuple[float, float]]:
        """When each item is begun and ends, from acceptance on."""
        found = []
        for index in range(self.total):
            turn = index // self.places
            paused = self.pause_seconds if turn >= self.pauses_after else 0.0
            began = self.waits + turn * self.run_seconds + paused
            found.append((began, began + self.run_seconds))
        return found

    @property
    def resumed_at(self) -> float:
        return self.waits + self.pauses_after * self.run_seconds + self.pause_seconds


COURSES = st.builds(
    Course,
    total=st.integers(2, 400),
    places=st.integers(1, 40),
    run_seconds=st.floats(1.0, 25.0),
    waits=st.floats(0.0, 7200.0),
    pauses_after=st.integers(1, 20),
    pause_seconds=st.one_of(st.just(0.0), st.floats(1.0, 3600.0)),
)


def forecast_at(course: Course, seconds: float) -> tuple[float | None, float, int]:
    """What is told then, what is true, and how many ends that is measured by."""
    runs, now = course.runs(), after(seconds)
    resumed = course.pause_seconds > 0 and seconds >= course.resumed_at
    noted = Remembered(resumed_at=after(course.resumed_at) if resumed else None)
    batch = msgspec.structs.replace(BATCH, details=noted.to_details())
    since = measured_since(batch, now)
    over = [run for run in runs if run[1] <= seconds]
    recent = [run for run in over if after(run[1]) >= since]
    running = sum(began <= seconds < end for began, end in runs)
    counted = Tally(
        succeeded=len(over),
        running=running,
        queued=len(runs) - len(over) - running,
        recent=len(recent),
        recent_from=min((after(began) for began, _ in recent), default=None),
    )
    told = forecast(
        measured(counted, since=since, let_run=let_run_at(batch), now=now), creates_per_minute=MANY
    )
    return told, runs[-1][1] - seconds, len(recent)


@given(COURSES, st.floats(0.0, 1.0))
@example(Course(60, 2, 1.0, 600.0, 20, 0.0), 0.1)  # begun late
@example(Course(40, 4, 300.0, 0.0, 1, 0.0), 0.101)  # runs of minutes, of which the first have just ended
@example(Course(60, 2, 1.0, 0.0, 10, 50.0), 0.5)  # paused for most of the minute
@example(Course(40, 40, 25.0, 0.0, 1, 0.0), 1.0)  # all ends in one moment, which is the last
def test_it_is_told_as_long_as_it_takes_after_a_wait_and_after_a_pause(course: Course, share: float) -> None:
    began, end = course.runs()[0][0], course.runs()[-1][1]
    seconds = began + share * (end - began)
    told, true, ends = forecast_at(course, seconds)
    pausing = course.resumed_at - course.pause_seconds <= seconds < course.resumed_at
    if ends < course.places or pausing:
        return  # nothing tells how fast it goes before as much has ended as goes on at once
    assert told is not None
    if seconds < course.resumed_at and course.pauses_after * course.places < course.total:
        true -= course.pause_seconds  # nobody knows that it will be paused
    assert true / 2 - course.run_seconds <= told <= 2 * (true + course.run_seconds)


@given(COURSES)
def test_from_one_second_to_the_next_it_does_not_jump(course: Course) -> None:
    """In the time between two ends that are measured it grows by what has passed, and falls with each end."""
    began = course.runs()[0][0] + course.run_seconds
    told = [forecast_at(course, began + step * course.run_seconds / 4) for step in range(4)]
    for (one, _, ends), (other, _, later) in pairwise(told):
        if one is None or other is None or ends != later or ends < course.places:
            continue
        assert one <= other <= 2 * one + course.total


@given(
    st.builds(Tally, queued=NUMBERS, running=NUMBERS, succeeded=NUMBERS, recent=NUMBERS),
    st.one_of(st.none(), st.floats(-1e9, 1e9)),
    st.floats(0.0, 1e9),
    st.floats(0.1, 1e6),
)
def test_whatever_was_counted_it_is_a_time_or_none(
    tally: Tally, recent_from: float | None, seconds: float, creates_per_minute: float
) -> None:
    """Also where clocks of processes do not agree, and where everything ended in one instant."""
    now = after(seconds)
    given = msgspec.structs.replace(tally, recent_from=None if recent_from is None else after(recent_from))
    told = forecast(
        measured(given, since=measured_since(BATCH, now), let_run=let_run_at(BATCH), now=now),
        creates_per_minute=creates_per_minute,
    )
    if told is None:
        assert tally.recent == 0
    else:
        assert math.isfinite(told)
        assert told >= tally.queued * 60 / creates_per_minute
