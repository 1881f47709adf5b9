"""Events for analytics: with the agreed names and fields, once each, and without the prompt."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from fakes.make import FLUX, make_prediction
from imagen.domain.events import Ended, InLine, Submitted
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.instrumentation.analytics import Analytics, Once
from imagen.instrumentation.logs import JsonFormatter

PROMPT = "a secret fox that nobody may read of"


@pytest.fixture
def lines() -> Iterator[Any]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("imagen.analytics")
    before, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.removeHandler(handler)
    log.setLevel(before)
    log.propagate = propagates


def ended(number: int = 1, **facts: Any) -> Prediction:
    given: dict[str, Any] = {"status": Status.SUCCEEDED, "charged": True, "cost": Usd(3000), "prompt": PROMPT}
    begun = make_prediction(number)
    assert begun.sent_at is not None
    return make_prediction(number, **{"ended_at": begun.sent_at + timedelta(seconds=4)} | given | facts)


def test_a_generation_is_told_with_the_agreed_fields(lines: Any):
    prediction = ended(predict_seconds=1.25)
    Analytics().notify(Ended(prediction))
    completed, replicate = lines()
    shared = {"at", "level", "logger", "message"}
    assert {name: value for name, value in completed.items() if name not in shared} == {
        "event": "generation_completed",
        "user_id": "kai",
        "model": FLUX,
        "cost": 0.003,
        "successful": True,
    }
    assert prediction.ended_at is not None
    assert {name: value for name, value in replicate.items() if name not in shared} == {
        "event": "replicate_generation",
        "model": FLUX,
        "cost_usd": 0.003,
        "processing_time_ms": 1250,
        "successful": True,
        "timestamp": prediction.ended_at.isoformat(),
    }
    assert completed["level"] == replicate["level"] == "info"


@pytest.mark.parametrize(
    ("facts", "cost", "successful", "took"),
    [
        ({"cost": None}, None, True, 4000),
        ({"status": Status.FAILED, "charged": False, "cost": Usd(7)}, 0.0, False, 4000),
        ({"status": Status.CANCELED, "cost": Usd(7)}, 7e-6, False, 4000),
        ({"status": Status.UNKNOWN, "charged": None, "cost": None, "ended_at": None}, None, False, None),
    ],
)
def test_what_is_not_known_is_null_and_what_is_free_is_zero(
    lines: Any, facts: dict[str, Any], cost: float | None, successful: bool, took: int | None
):
    Analytics().notify(Ended(ended(**facts)))
    completed, replicate = lines()
    assert (completed["cost"], completed["successful"]) == (cost, successful)
    assert (replicate["cost_usd"], replicate["processing_time_ms"]) == (cost, took)


def test_nothing_of_the_prompt_is_told(lines: Any):
    Analytics().notify(Ended(ended()))
    assert len(lines()) == 2
    assert "fox" not in json.dumps(lines())


def test_an_end_is_told_once_and_nothing_else_is(lines: Any):
    analytics = Analytics()
    for event in (Submitted(ended()), InLine("account", 1), Ended(make_prediction(status=Status.PROCESSING))):
        analytics.notify(event)
    assert lines() == []
    for _ in range(3):
        analytics.notify(Ended(ended()))
    assert [line["event"] for line in lines()] == ["generation_completed", "replicate_generation"]


def test_practice_is_no_generation_of_replicates(lines: Any):
    Analytics().notify(Ended(ended(backend_type="emulator")))
    assert [line["event"] for line in lines()] == ["generation_completed"]


def test_what_is_remembered_of_predictions_is_bounded():
    once = Once(most=10)
    assert all(once.is_new(ended(number)) for number in range(100))
    assert not once.is_new(ended(99))
    assert len(once._told) == 10
    assert once.is_new(ended(0))
