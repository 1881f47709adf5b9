"""Outputs inside answers, kept for a while."""

from __future__ import annotations

import msgspec

from fakes.make import make_prediction
from imagen.domain.events import Ended
from imagen.service.fresh import FreshOutputs


def ended(name: str, *output: str) -> Ended:
    return Ended(msgspec.structs.replace(make_prediction(), id=name, output=output))


def test_what_came_inside_an_answer_is_found_and_addresses_are_not_kept() -> None:
    fresh = FreshOutputs()
    fresh.notify(ended("pred_1", "data:image/png;base64,AAAA"))
    fresh.notify(ended("pred_2", "https://replicate.delivery/a.png"))
    assert fresh.find("pred_1") == ("data:image/png;base64,AAAA",)
    assert fresh.find("pred_2") is None


def test_what_was_read_from_the_database_takes_nothing_away() -> None:
    fresh = FreshOutputs()
    fresh.notify(ended("pred_1", "data:image/png;base64,AAAA"))
    fresh.notify(ended("pred_1", "data:"))
    assert fresh.find("pred_1") == ("data:image/png;base64,AAAA",)


def test_the_oldest_go_when_there_is_too_much() -> None:
    fresh = FreshOutputs(most_bytes=100)
    for number in range(4):
        fresh.notify(ended(f"pred_{number}", "data:" + "x" * 35))
    assert [fresh.find(f"pred_{number}") is not None for number in range(4)] == [False, False, True, True]
    fresh.notify(ended("pred_2", "data:" + "y" * 35))
    assert fresh.find("pred_3") is not None
    fresh.notify(ended("pred_large", "data:" + "x" * 200))
    assert fresh.find("pred_large") is None
    assert fresh.find("pred_2") is not None  # the others stay
