"""Addresses that somebody writes for a picture: what leads to none is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.errors import InvalidInput
from imagen.pictures import check_address


@pytest.mark.parametrize(
    "told",
    [
        "https://example.com/fox.png?size=1",
        "http://127.0.0.1:5055/fox.png",
        "https://[::1]/fox",
        "data:image/png;base64,aGk=",
        "data:image/svg+xml;charset=utf-8;base64,aGk=",
    ],
)
def test_what_can_lead_to_a_picture_stays_as_it_is(told: str) -> None:
    assert check_address(told, field="image") == told


@pytest.mark.parametrize(
    "told",
    [
        "",
        "fox.png",
        "https:",
        "https:///fox.png",
        "https://[x",
        "https://example.com:port/",
        "https://example.com/a b",
        "ftp://example.com/fox.png",
        "data:,",
        "data:,hello",
        "data:image/png,hello",
        "data:image/png;base64,",
        "data:image/png;base64,!",
        "data:text/plain;base64,aGk=",
    ],
)
def test_what_leads_to_none_names_its_field(told: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_address(told, field="images[1]")
    assert [problem.field for problem in raised.value.problems] == ["images[1]"]


def test_only_schemes_that_are_wanted() -> None:
    with pytest.raises(InvalidInput):
        check_address("http://example.com/fox.png", field="image", schemes=("https",))


@given(st.text() | st.text().map("https://{}".format) | st.text().map("data:image/png;base64,{}".format))
def test_whatever_comes_is_taken_as_it_is_or_refused(told: str) -> None:
    with suppress(InvalidInput):
        assert check_address(told, field="image") == told
