"""Progress as the protocol wants it: every message with a higher number than the one before, never beyond the total."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imagen.agents.progress import TOTAL, Progress
from imagen.domain.events import (
    AnswerLost,
    Called,
    Ended,
    Event,
    Fetching,
    InLine,
    Progressed,
    Saved,
    Submitted,
    Throttled,
)
from imagen.domain.prediction import Prediction


def prediction(number: int) -> Prediction:
    return Prediction(
        id=f"pred_{number}", backend="b", backend_type="replicate", account="a", model="o/n", prompt="a fox",
        input={}, request_key="k", caller="c", created_at=datetime(2026, 11, 1, tzinfo=UTC), deadline_seconds=60,
    )  # fmt: skip


PREDICTIONS = st.integers(0, 3).map(prediction)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Submitted, PREDICTIONS),
    st.builds(Progressed, PREDICTIONS, st.none() | st.floats(0, 1)),
    st.builds(InLine, st.sampled_from(["account", "semaphore:gpu"]), st.integers(1, 99)),
    st.builds(Fetching, PREDICTIONS, st.integers(1, 4), st.just(4)),
    st.builds(Saved, PREDICTIONS, st.just(Path("fox.png"))),
    st.builds(Throttled, st.just("429"), st.floats(0, 60)),
    st.builds(AnswerLost, PREDICTIONS, st.just(30.0)),
    st.builds(Ended, PREDICTIONS),
    st.just(Called("create", 200)),
)


@given(st.lists(EVENTS, max_size=60), st.integers(1, 4))
def test_it_only_rises(events: list[Event], runs: int) -> None:
    progress = Progress(runs)
    for event in events:
        before, said = progress.value, progress.message
        progress.notify(event)
        if progress.message != said:
            assert progress.value > before
        assert before <= progress.value < TOTAL


def test_a_run_is_as_far_as_the_model_says() -> None:
    progress = Progress(2)
    progress.notify(Submitted(prediction(0)))
    progress.notify(Progressed(prediction(0), 0.5))
    assert 20 < progress.value < 30
    assert progress.message == "the model runs: 50%"
    progress.notify(Saved(prediction(0), Path("fox.png")))
    assert 45 < progress.value < 50
    progress.notify(InLine("account", 3))
    assert progress.message == "number 3 in line for the limits"
    progress.notify(Saved(prediction(1), Path("fox.png")))
    assert progress.value >= 95
