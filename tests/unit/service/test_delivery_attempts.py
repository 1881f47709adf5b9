"""When a delivery is sent again, and when no more."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import BEGINNING
from imagen.domain.delivery import Delivery
from imagen.service.deliveries import (
    DAY_SECONDS,
    LONGEST_PAUSE_SECONDS,
    after_attempt,
    derived_secret,
    pause_after,
    retry_after,
)

FRESH = Delivery(
    id="msg_1",
    subject="pred_1",
    url="https://a.example/",
    scope="admin",
    event="prediction.completed",
    body={},
    created_at=BEGINNING,
    due_at=BEGINNING,
)


def course(*, status: int | None, asked_seconds: float | None = None, chance: float = 0.0) -> list[Delivery]:
    """The states after each attempt, as long as there is another one."""
    found, now = [FRESH], BEGINNING
    while found[-1].due_at is not None:
        now = max(now, found[-1].due_at)
        found.append(
            after_attempt(
                found[-1],
                began=now,
                now=now,
                status=status,
                told="told",
                asked_seconds=asked_seconds,
                chance=chance,
            )
        )
    return found[1:]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_takes_it(status: int):
    (end,) = course(status=status)
    assert (end.status, end.delivered_at, end.attempts) == ("taken", BEGINNING, 1)


def test_410_gives_it_up_at_once():
    (end,) = course(status=410)
    assert (end.status, end.given_up_at) == ("given_up", BEGINNING)


@pytest.mark.parametrize("status", [None, 301, 302, 307, 308, 400, 401, 404, 429, 500, 503, 199, 101])
def test_anything_else_is_tried_for_exactly_a_day_after_growing_pauses(status: int | None):
    states = course(status=status)
    pauses = [
        (after.due_at - before.due_at).total_seconds()
        for before, after in pairwise([FRESH, *states[:-1]])
        if after.due_at is not None and before.due_at is not None
    ]
    assert pauses[:8] == [5, 15, 45, 135, 405, 1215, 3645, 10935]
    assert max(pauses) == LONGEST_PAUSE_SECONDS
    assert states[-1].status == "given_up"
    assert states[-1].given_up_at == BEGINNING + timedelta(seconds=DAY_SECONDS)
    assert all(state.tried_since == BEGINNING for state in states)


@given(attempts=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_a_pause_is_never_longer_than_four_hours_nor_much_shorter_than_it_should_be(
    attempts: int, chance: float
):
    plain = pause_after(attempts, chance=0)
    assert plain * 0.8 <= pause_after(attempts, chance=chance) <= plain <= LONGEST_PAUSE_SECONDS


def test_the_receiver_may_ask_for_a_longer_pause_within_the_longest():
    assert course(status=503, asked_seconds=100)[0].due_at == BEGINNING + timedelta(seconds=100)
    assert course(status=503, asked_seconds=1)[0].due_at == BEGINNING + timedelta(seconds=5)
    assert course(status=429, asked_seconds=10**9)[0].due_at == BEGINNING + timedelta(
        seconds=LONGEST_PAUSE_SECONDS
    )


def test_one_that_waited_a_week_for_its_turn_gets_one_attempt():
    now = BEGINNING + timedelta(days=8)
    facts = {"began": now, "now": now, "told": "told", "asked_seconds": None, "chance": 0.0}
    assert after_attempt(FRESH, status=500, **facts).status == "given_up"
    assert after_attempt(FRESH, status=200, **facts).status == "taken"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sun, 01 Nov 2026 12:02:00 GMT", 120.0),
        ("Sun, 01 Nov 2026 11:00:00 GMT", 0.0),
        ("9" * 60, float("9" * 12)),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("x" * 1000, None),
        ("٣", None),
        ("Mon, 99 Nov 99999999999 12:00:00 GMT", None),
    ],
)
def test_retry_after_has_seconds_or_a_date(header: str | None, seconds: float | None):
    assert retry_after(header, now=BEGINNING) == seconds


def test_callers_have_secrets_of_their_own():
    master = b"m" * 32
    admin, key = derived_secret(master, "admin"), derived_secret(master, "key:a")
    assert admin != key
    assert admin == derived_secret(master, "admin")
    assert derived_secret(b"n" * 32, "admin") != admin
    assert admin.reveal().startswith("whsec_")
    assert len(admin.reveal()) == len("whsec_") + 44
