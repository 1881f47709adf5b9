"""Whatever upstream says, and in whatever order."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import BEGINNING
from fakes.make import make_prediction
from imagen.domain.prediction import TERMINAL, Sighting, Status, next_status

instants = st.none() | st.integers(0, 10_000).map(lambda seconds: BEGINNING + timedelta(seconds=seconds))
sightings = st.builds(
    Sighting,
    upstream_id=st.just("up-1"),
    status=st.sampled_from(Status),
    output=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    error=st.none() | st.text(max_size=5),
    logs=st.text(max_size=5),
    predict_seconds=st.none() | st.floats(0, 100),
    image_count=st.none() | st.integers(0, 4),
    started_at=instants,
)


@given(st.sampled_from(Status), st.lists(sightings, max_size=12))
def test_a_prediction_ends_at_most_once_and_stays_as_it_ended(start: Status, seen: list[Sighting]):
    ended_at = BEGINNING if start in TERMINAL else None
    prediction = make_prediction(status=start, ended_at=ended_at)
    endings = 0
    for number, sighting in enumerate(seen):
        before, prediction = (
            prediction,
            prediction.observe(sighting, now=BEGINNING + timedelta(seconds=number)),
        )
        assert prediction.status is next_status(before.status, sighting.status)
        if before.status in TERMINAL:
            assert prediction is before
        elif prediction.status in TERMINAL:
            endings += 1
            assert prediction.ended_at == BEGINNING + timedelta(seconds=number)
        assert (prediction.ended_at is not None) == (prediction.status in TERMINAL)
        assert len(prediction.output) >= min(1, len(before.output))
    assert endings <= 1
    if start not in TERMINAL:
        assert (prediction.charged is None) == (
            prediction.status not in TERMINAL or prediction.status is Status.UNKNOWN
        )


@given(st.lists(st.sampled_from(Status), min_size=1))
def test_the_first_ending_wins(words: list[Status]):
    status = Status.QUEUED
    for word in words:
        status = next_status(status, word)
    endings = [word for word in words if word in TERMINAL]
    reachable = [word for word in endings if word is not Status.UNKNOWN or words[0] is Status.UNKNOWN]
    if not endings:
        assert status not in TERMINAL
    elif reachable and endings[0] is not Status.UNKNOWN:
        assert status is endings[0]
