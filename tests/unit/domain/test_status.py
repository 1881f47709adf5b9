"""The table by which a status moves, what a sighting changes, and what is charged."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from fakes.clock import BEGINNING
from fakes.make import make_prediction, make_sighting
from imagen.domain.prediction import TERMINAL, Status, hash_prompt, is_charged, next_status, request_key

Q, S, P, OK, F, C, A, U = Status
FOLLOWING = {
    Q: {S, P, OK, F, C, A, U},
    S: {P, OK, F, C, A},
    P: {OK, F, C, A},
    OK: set(),
    F: set(),
    C: set(),
    A: set(),
    U: set(),
}
PAIRS = [(current, seen) for current in Status for seen in Status]


@pytest.mark.parametrize(("current", "seen"), PAIRS, ids=lambda status: status.value)
def test_a_status_moves_only_along_the_table(current: Status, seen: Status):
    assert next_status(current, seen) is (seen if seen in FOLLOWING[current] else current)


def test_terminal_is_defined_once():
    assert {OK, F, C, A, U} == TERMINAL
    assert {status for status in Status if status.terminal} == TERMINAL


@pytest.mark.parametrize(
    ("status", "started", "charged"),
    [
        (OK, True, True),
        (OK, False, True),
        (C, True, True),
        (C, False, False),
        (F, True, False),
        (F, False, False),
        (A, True, False),
        (A, False, False),
        (U, True, None),
        (U, False, None),
        (Q, False, None),
        (S, False, None),
        (P, True, None),
        (P, False, None),
        (Q, True, None),
        (S, True, None),
    ],
)
def test_what_is_billed(status: Status, started: bool, charged: bool | None):
    assert is_charged(status, started=started) is charged
    on_deployment = True if status is F else charged
    assert is_charged(status, started=started, deployment=True) is on_deployment


@pytest.mark.parametrize(("model", "charged"), [("deployments/acme/fast", True), ("acme/fast", False)])
def test_a_failed_run_is_billed_on_a_deployment_only(model: str, charged: bool):
    after = make_prediction(model=model).observe(make_sighting(F), now=BEGINNING)
    assert after.charged is charged


@pytest.mark.parametrize(
    ("before", "seen", "charged"),
    [
        ({}, {}, False),
        ({"status": S}, {}, False),
        ({}, {"started_at": BEGINNING}, True),
        ({"started_at": BEGINNING}, {}, True),
        ({"status": P}, {}, True),
        ({}, {"predict_seconds": 0.4}, True),
        ({}, {"predict_seconds": 0.0}, False),
    ],
)
def test_a_canceled_run_is_billed_if_anything_says_that_it_had_begun(
    before: dict[str, Any], seen: dict[str, Any], charged: bool
):
    after = make_prediction(**before).observe(make_sighting(C, **seen), now=BEGINNING)
    assert after.charged is charged


def test_facts_only_get_richer():
    rich = make_sighting(
        P,
        output=("https://a.b/1.png",),
        version="v1",
        logs="50%",
        predict_seconds=1.5,
        image_count=1,
        started_at=BEGINNING,
        error="e",
        category="model",
    )
    once = make_prediction().observe(rich, now=BEGINNING)
    twice = once.observe(make_sighting(P), now=BEGINNING)
    assert twice == once
    assert (once.output, once.version, once.logs, once.predict_seconds) == (rich.output, "v1", "50%", 1.5)


def test_a_late_answer_does_not_turn_time_back():
    running = make_prediction(status=P).observe(make_sighting(S, logs="late"), now=BEGINNING)
    assert running.status is P


@pytest.mark.parametrize("end", sorted(TERMINAL))
@pytest.mark.parametrize("seen", list(Status))
def test_an_ended_prediction_keeps_its_end_whatever_comes(end: Status, seen: Status):
    ended = make_prediction(status=end, ended_at=BEGINNING, error="first")
    later = BEGINNING + timedelta(hours=1)
    assert ended.observe(make_sighting(seen, error="late", output=("https://a.b/c",)), now=later) is ended


def test_latency_is_from_sending_to_its_end():
    sent = make_prediction(sent_at=BEGINNING, created_at=BEGINNING - timedelta(seconds=9))
    assert sent.latency_ms is None
    ended = sent.observe(make_sighting(OK), now=BEGINNING + timedelta(seconds=1.2345))
    assert ended.latency_ms == 1234


def test_the_same_wish_has_the_same_key_and_another_has_another():
    fields = {"prompt": "a fox", "steps": 4}
    key = request_key("account", "model", fields)
    assert key == request_key("account", "model", dict(reversed(fields.items())))
    assert len({
        key,
        request_key("other", "model", fields),
        request_key("account", "other", fields),
        request_key("account", "model", {**fields, "steps": 5}),
        request_key("account", "model", fields, index=1),
    }) == 5  # fmt: skip


def test_the_hash_of_a_prompt_is_its_sha256():
    assert hash_prompt("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_prompt("größer") == hash_prompt("größer") != hash_prompt("grösser")
