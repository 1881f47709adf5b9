"""Addresses in answers lead back to the gateway, and nothing else in them changes; what is kept stays within its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import ManualClock
from imagen.server.kept import LARGEST_BYTES, MOST_ANSWERS, KeptAnswer, KeptAnswers, Question
from imagen.server.replicate.relay import own_address, point_back

BASE = "https://gateway.example:8443"
API = "https://api.replicate.com/v1"
_ADDRESSES = st.sampled_from(
    [f"{API}/predictions/x", f"{API}/files/y?z=1", "https://replicate.delivery/v1/a.png", "text"]
)
_NAMES = st.sampled_from(["input", "output", "logs", "url", "get", "metrics", "latest_version", "web", "id"])
_JSON = st.recursive(
    st.none() | st.integers() | _ADDRESSES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=10,
)


@given(_JSON)
def test_what_is_no_place_of_an_address_is_left_alone(value: Any) -> None:
    assert point_back(value, BASE) == value


@given(st.dictionaries(_NAMES, _JSON, max_size=4))
def test_the_places_of_addresses_are_found_however_deep(rest: dict[str, Any]) -> None:
    urls = {
        "get": f"{API}/predictions/x",
        "cancel": f"{API}/predictions/x/cancel",
        "stream": "https://stream.replicate.com/v1/files/abc",
        "web": "https://replicate.com/p/x",
    }
    one = {**rest, "urls": urls}
    mine = {
        **rest,
        "urls": {
            **urls,
            "get": f"{BASE}/v1/predictions/x",
            "cancel": f"{BASE}/v1/predictions/x/cancel",
        },
    }
    page = {
        "next": f"{API}/trainings?cursor=a%3D",
        "previous": None,
        "results": [one, {"default_example": one}],
    }
    assert point_back(page, BASE) == {
        "next": f"{BASE}/v1/trainings?cursor=a%3D",
        "previous": None,
        "results": [mine, {"default_example": mine}],
    }
    assert point_back(point_back(page, BASE), BASE) == point_back(page, BASE)


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        (f"{API}/models?cursor=x", f"{BASE}/v1/models?cursor=x"),
        ("https://proxy.example/replicate/v1/models", f"{BASE}/v1/models"),
        ("/v1/files/x", f"{BASE}/v1/files/x"),
        ("https://replicate.com/p/x", None),
        ("https://[/v1/x", None),
        ("javascript:/v1/x", None),
    ],
)
def test_an_address_of_the_api_has_one_here(url: str, ours: str | None) -> None:
    assert own_address(url, BASE) == ours


def question(path: str = "/models", account: str = "a") -> Question:
    return Question(account, BASE, "GET", path, b"", "")


def told(size: int = 10) -> KeptAnswer:
    return KeptAnswer(200, {"content-type": "application/json"}, b"x" * size)


def test_an_answer_is_given_until_its_time_is_over_and_tells_its_age() -> None:
    clock = ManualClock()
    kept = KeptAnswers(clock)
    kept.keep(question(), told(), seconds=60)
    clock.advance(59)
    assert kept.find(question()) == (told(), 59)
    assert kept.find(question(account="b")) is None
    clock.advance(1)
    assert kept.find(question()) is None


def test_a_change_of_an_account_forgets_its_answers_alone() -> None:
    kept = KeptAnswers(ManualClock())
    for account in ("a", "b"):
        kept.keep(question(account=account), told(), seconds=60)
    kept.forget("a")
    assert kept.find(question(account="a")) is None
    assert kept.find(question(account="b")) is not None


def test_what_nobody_asked_for_longest_goes_first() -> None:
    kept = KeptAnswers(ManualClock(), most_bytes=350)
    for path in ("/1", "/2", "/3"):
        kept.keep(question(path), told(100), seconds=60)
    assert kept.find(question("/1")) is not None
    kept.keep(question("/4"), told(100), seconds=60)
    found = [path for path in ("/1", "/2", "/3", "/4") if kept.find(question(path)) is not None]
    assert found == ["/1", "/3", "/4"]


def test_neither_many_nor_large_ones_fill_the_memory() -> None:
    kept = KeptAnswers(ManualClock())
    kept.keep(question("/large"), told(LARGEST_BYTES), seconds=60)
    assert kept.find(question("/large")) is None
    for number in range(MOST_ANSWERS + 1):
        kept.keep(question(f"/{number}"), told(), seconds=60)
    assert kept.find(question("/0")) is None
    assert kept.find(question("/1")) is not None
