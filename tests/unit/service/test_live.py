"""The last look at predictions that run."""

from __future__ import annotations

import msgspec
import pytest

from fakes.make import make_prediction
from imagen.domain.events import Ended, Progressed
from imagen.domain.prediction import Prediction, Status
from imagen.service.live import LiveSights


def looked_at(number: int, logs: str) -> Prediction:
    return msgspec.structs.replace(make_prediction(number), status=Status.PROCESSING, logs=logs)


def look(number: int, logs: str = "seen") -> Progressed:
    return Progressed(looked_at(number, logs), fraction=None)


def test_the_last_look_is_told_until_the_end() -> None:
    live = LiveSights()
    live.notify(look(1, "first"))
    live.notify(look(1, "second"))
    assert live.newer(make_prediction(1)) == looked_at(1, "second")
    assert live.newer(make_prediction(2)) == make_prediction(2)
    live.notify(Ended(looked_at(1, "third")))
    assert live.newer(make_prediction(1)) == make_prediction(1)


def test_the_one_that_was_looked_at_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen.service.live.MOST", 2)
    live = LiveSights()
    for number in (1, 2, 1):
        live.notify(look(number))
    live.newer(make_prediction(2))  # being asked for keeps nothing
    live.notify(look(3))
    known = [live.newer(make_prediction(number)) != make_prediction(number) for number in (1, 2, 3)]
    assert known == [True, False, True]
