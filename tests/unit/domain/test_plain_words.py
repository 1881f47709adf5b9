"""Refusals say what is allowed, wherever in the body the value stands."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from imagen.domain.plain_words import place_of, what_is_allowed


class Inner(msgspec.Struct):
    tier: Literal["preview", "final"] | None = None
    rank: Annotated[int, msgspec.Meta(ge=1, le=5)] | None = None


class Outer(msgspec.Struct):
    inner: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    verdict: Annotated[Literal["keep", "reject"], msgspec.Meta(description="what is thought")] = "keep"
    amount: float | int | str = 0


@pytest.mark.parametrize(
    ("told", "place", "words"),
    [
        ({"verdict": "love"}, "verdict", "'love' must be one of keep, reject"),
        ({"inner": {"tier": "x"}}, "inner.tier", "'x' must be one of final, preview"),
        ({"many": [{}, {"tier": "x"}]}, "many[1].tier", "'x' must be one of final, preview"),
        ({"named": {"a": {"tier": "x"}}}, "named[...].tier", "'x' must be one of final, preview"),
        ({"inner": {"rank": 9}}, "inner.rank", "it must be a whole number from 1 to 5"),
        ({"inner": {"rank": "1"}}, "inner.rank", "it must be a whole number"),
        ({"amount": True}, "amount", "it must be a number or text"),
        ([], "", "it must be an object"),
    ],
)
def test_the_place_and_what_is_allowed_there(told: object, place: str, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(told, Outer)
    assert place_of(caught.value) == place
    assert what_is_allowed(caught.value, Outer) == words
