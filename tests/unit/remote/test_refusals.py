"""An error of the gateway is the same error for whoever asked it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen import errors
from imagen.cli.exit_status import exit_status
from imagen.errors import (
    BackendBroken,
    BackendRejected,
    BudgetExceeded,
    Draining,
    ImagenError,
    InputRejected,
    InvalidInput,
    InvalidModelRef,
    InvalidRequest,
    InvalidResponse,
    PredictionFailed,
    Problem,
    RateLimited,
    Unauthenticated,
)
from imagen.remote.refusals import BY_CODE, read_refusal
from imagen.server.answers import ModelNotSupported, error_answer, error_body, http_status
from imagen.transport.message import HttpResponse

URL = "https://pictures.example"
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ImagenError)]


def over_http(error: ImagenError) -> ImagenError:
    """What becomes of an error on its way through a gateway."""
    answer = error_answer(error)
    return read_refusal(HttpResponse(answer.status_code, {}, bytes(answer.body)), url=URL)


def answered(body: Any, status: int = 400) -> ImagenError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_refusal(HttpResponse(status, {}, content), url=URL)


def make(kind: type[ImagenError]) -> ImagenError:
    problems = [Problem("steps", "99 is not allowed"), Problem("seed", "it is required")]
    made = (
        InvalidInput(problems, subject="acme/fox", hint="Look there.")
        if kind is InvalidInput
        else kind("what happened", hint="Look there.")
    )
    made.retry_after = 2.5
    for name, value in (("prediction_id", "pred_1"), ("charged", True), ("problems", tuple(problems))):
        if hasattr(made, name):
            setattr(made, name, value)
    return made


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_comes_through_a_gateway_as_it_was(kind: type[ImagenError]) -> None:
    before = make(kind)
    after = over_http(before)
    assert type(after) is kind
    assert str(after) == str(before)
    assert error_body(after) == error_body(before)
    assert exit_status(after) == exit_status(before)
    assert http_status(after) == http_status(before)


def test_the_table_has_every_error() -> None:
    assert set(BY_CODE.values()) == set(KINDS)
    assert all(BY_CODE[kind.code] is kind for kind in KINDS)


def test_an_error_that_only_a_gateway_has_is_the_one_that_it_refines() -> None:
    after = over_http(ModelNotSupported("flux-shnell", hint="Did you mean flux-schnell?"))
    assert type(after) is InvalidModelRef
    assert str(after) == "Model 'flux-shnell' not supported. Did you mean flux-schnell?"


def test_what_was_wrong_with_each_field_is_kept() -> None:
    after = over_http(make(InvalidInput))
    assert isinstance(after, InvalidInput)
    assert [problem.field for problem in after.problems] == ["steps", "seed"]
    rejected = over_http(make(InputRejected))
    assert isinstance(rejected, InputRejected)
    assert [problem.field for problem in rejected.problems] == ["steps", "seed"]


@pytest.mark.parametrize(
    "money",
    [
        {"budget": "shop", "quote_micros": 3000, "renews_at": datetime(2026, 12, 1, tzinfo=UTC)},
        {"budget": "shop", "quote_micros": None, "renews_at": None},
        {"budget": None, "quote_micros": 123_456_789, "renews_at": None},
    ],
)
def test_a_refusal_for_want_of_money_keeps_budget_quote_and_renewal(money: dict[str, Any]) -> None:
    after = over_http(BudgetExceeded("too dear", hint="Wait.", **money))
    assert isinstance(after, BudgetExceeded)
    assert {name: getattr(after, name) for name in money} == money
    assert str(after) == "too dear. Wait."


def test_nobody_but_such_a_refusal_tells_of_money() -> None:
    told = json.loads(bytes(error_answer(InvalidInput([])).body))
    assert not {"budget", "quote", "quote_usd", "renews_at"} & told.keys()
    told = json.loads(bytes(error_answer(BudgetExceeded("too dear")).body))
    assert (told["budget"], told["quote_usd"], told["quote"], told["renews_at"]) == (None, None, None, None)


def test_refused_content_is_told_from_a_model_that_failed() -> None:
    for category in ("safety", "model"):
        after = over_http(PredictionFailed("it failed", category=category))
        assert isinstance(after, PredictionFailed)
        assert after.category == category


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest), (401, Unauthenticated), (429, RateLimited), (503, Draining),
        (418, BackendRejected), (500, BackendBroken), (599, BackendBroken),
    ],
)  # fmt: skip
def test_a_code_of_a_newer_gateway_is_judged_by_its_status(status: int, kind: type[ImagenError]) -> None:
    after = answered({"error": "not today", "code": "of_tomorrow", "hint": "Wait."}, status)
    assert type(after) is kind
    assert str(after) == "not today. Wait."


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, InvalidResponse), (308, InvalidResponse), (403, BackendRejected), (404, BackendRejected),
        (502, BackendBroken), (504, BackendBroken),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>nothing for you</html>",
        b"[" * 100_000,
        {"error": {"message": "another service"}},
        {"detail": "another service"},
        ["error"],
        {"error": "not found"},
        {"error": "x", "retry_after": -1},
        {"error": "x", "problems": [{"field": 1}]},
    ],
    ids=lambda body: repr(body)[:20],
)
def test_what_is_no_gateway_is_said_to_be_none(status: int, kind: type[ImagenError], body: Any) -> None:
    after = answered(body, status)
    assert type(after) is kind
    assert URL in after.detail
    assert str(status) in after.detail
    assert after.hint
    assert exit_status(after) == 4


def test_nothing_of_a_gateway_reaches_a_terminal_unprintable_or_without_end() -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e" + "x" * 100_000
    body = {
        "error": evil,
        "code": "invalid_input",
        "hint": evil,
        "prediction_id": evil,
        "problems": [{"field": evil, "message": evil}] * 1000,
    }
    after = answered(body)
    assert isinstance(after, InvalidInput)
    assert len(after.problems) == 100
    for text in (str(after), *(str(problem) for problem in after.problems)):
        assert text.isprintable()
        assert len(text) < 5000


@given(st.integers(300, 599), st.binary(max_size=200) | st.text().map(str.encode))
def test_any_answer_is_some_error_of_ours(status: int, body: bytes) -> None:
    assert answered(body, status).detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("error", "code", "hint", "problems", "retry_after", "prediction_id", "charged")


@given(st.integers(300, 599), st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from([*BY_CODE])))
def test_any_json_is_some_error_of_ours(status: int, body: dict[str, Any]) -> None:
    after = answered(body, status)
    assert str(after).isprintable()
    assert exit_status(after) in {2, 3, 4, 5, 70}
