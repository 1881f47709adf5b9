"""Each refusal of Replicate becomes its own error, with the next step in its text."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from imagen.backends.replicate.refusals import categorize_failure, parse_refusal, retry_after, without_quotes
from imagen.errors import (
    BackendBroken,
    BackendError,
    BackendRateLimited,
    BackendRejected,
    BackendUnauthenticated,
    InputRejected,
    InvalidResponse,
    ModelNotFound,
    PaymentRequired,
    Problem,
)
from imagen.transport.message import HttpResponse

MODEL = "black-forest-labs/flux-schnell"
ENV = "MY_REPLICATE_TOKEN"


def refusal(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> BackendError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_refusal(HttpResponse(status, headers or {}, raw), subject=MODEL, token_env=ENV)


BODIES = [
    b"",
    b"<html><head><title>502 Bad Gateway</title></head></html>",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"detail": "something was said", "status": 400}',
    b'{"title": "only a title"}',
    b'{"error": {"code": 5}}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
@pytest.mark.parametrize(
    ("status", "kind", "delivered", "retryable"),
    [
        (301, InvalidResponse, "unknown", False),
        (308, InvalidResponse, "unknown", False),
        (400, BackendRejected, "no", False),
        (401, BackendUnauthenticated, "no", False),
        (402, PaymentRequired, "no", False),
        (403, BackendUnauthenticated, "no", False),
        (404, ModelNotFound, "no", False),
        (405, BackendRejected, "no", False),
        (413, BackendRejected, "no", False),
        (418, BackendRejected, "no", False),
        (422, InputRejected, "no", False),
        (429, BackendRateLimited, "no", True),
        (499, BackendRejected, "no", False),
        (500, BackendBroken, "unknown", True),
        (502, BackendBroken, "unknown", True),
        (503, BackendBroken, "unknown", True),
        (504, BackendBroken, "unknown", True),
        (599, BackendBroken, "unknown", True),
    ],
)
def test_the_status_decides_the_error_whatever_the_body_is(
    status: int, kind: type[BackendError], delivered: str, retryable: bool, body: bytes
):
    error = refusal(status, body)
    assert type(error) is kind
    assert (error.delivered, error.retryable, error.status) == (delivered, retryable, status)
    assert str(status) in error.detail
    assert MODEL in error.detail or status in {401, 403, 429}
    assert "<html" not in str(error)
    assert "None" not in str(error)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    "detail", ["You did not pass an authentication token", "Invalid or expired API token."]
)
def test_a_wrong_token_names_the_variable_and_the_command(status: int, detail: str):
    text = str(refusal(status, {"title": "Unauthenticated", "detail": detail, "status": status}))
    assert ENV in text
    assert "`imagen auth login`" in text
    assert detail in text


def test_no_credit_says_to_add_some():
    detail = "You have insufficient credit to run this model. Go to https://replicate.com/account/billing."
    text = str(refusal(402, {"title": "Insufficient credit", "detail": detail, "status": 402}))
    assert detail in text
    assert "Add credit at replicate.com/account/billing, wait a few minutes" in text


def test_an_unknown_model_is_named_with_what_community_models_need():
    text = str(refusal(404, {"detail": "The requested resource could not be found.", "status": 404}))
    assert f"{MODEL} was not found" in text
    assert "owner/name:version" in text


INVALID = {
    "title": "Input validation failed",
    "detail": '- input.output_format: output_format must be one of the following: "webp", "jpg", "png"\n',
    "status": 422,
    "invalid_fields": [
        {"type": "enum", "field": "input.output_format", "description": 'must be one of "webp", "jpg"'},
        {
            "type": "number_lte",
            "field": "input.num_outputs",
            "description": "Must be less than or equal to 4",
        },
        {"type": "additional_property_not_allowed", "field": "stepz"},
        "nonsense",
        {"field": None},
    ],
}


def test_a_refused_input_names_the_model_and_every_field():
    error = refusal(422, INVALID)
    assert isinstance(error, InputRejected)
    assert error.problems[:3] == (
        Problem("output_format", 'must be one of "webp", "jpg"'),
        Problem("num_outputs", "Must be less than or equal to 4"),
        Problem("stepz", "additional_property_not_allowed"),
    )
    for word in (MODEL, "output_format", "num_outputs", "stepz"):
        assert word in str(error)


def test_a_refused_input_without_fields_tells_what_was_said():
    detail = INVALID["detail"]
    error = refusal(422, {"title": "Input validation failed", "detail": detail})
    assert isinstance(error, InputRejected)
    assert error.problems == ()
    assert "input.output_format: output_format must be one of" in str(error)


def test_an_unknown_version_is_a_model_that_was_not_found():
    error = refusal(
        422,
        {
            "title": "Invalid version or not permitted",
            "detail": "The specified version does not exist (or perhaps you don't have permission to use it?)",
        },
    )
    assert isinstance(error, ModelNotFound)
    assert "version" in str(error)
    assert MODEL in str(error)


THROTTLED = (
    "Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per minute with a "
    "burst of 1 requests while you have less than $5.0 in credit. Your rate limit resets in ~{}s."
)


@pytest.mark.parametrize(
    ("body", "headers", "seconds"),
    [
        ({"detail": THROTTLED.format(7), "retry_after": 5}, {"retry-after": "6"}, 5.0),
        ({"detail": THROTTLED.format(7), "retry_after": 0}, {}, 0.0),
        ({"detail": THROTTLED.format(7), "retry_after": 0.5}, {}, 0.5),
        ({"detail": THROTTLED.format(7)}, {"retry-after": "6"}, 6.0),
        ({"detail": THROTTLED.format(7), "retry_after": None}, {"retry-after": "1.5"}, 1.5),
        ({"detail": THROTTLED.format(7), "retry_after": "5"}, {}, 7.0),
        ({"detail": THROTTLED.format(7), "retry_after": True}, {}, 7.0),
        ({"detail": THROTTLED.format(7), "retry_after": -1}, {}, 7.0),
        ({"detail": THROTTLED.format(7), "retry_after": 10**40}, {}, 7.0),
        ({"detail": THROTTLED.format(30)}, {"retry-after": "soon"}, 30.0),
        ({"detail": "Expected available in 1 second."}, {}, 1.0),
        ({"detail": "Expected available in 12 seconds."}, {}, 12.0),
        ({"detail": "Request was throttled."}, {}, None),
        (b"<html>429</html>", {"retry-after": "3"}, 3.0),
        (b"<html>429</html>", {}, None),
        (b"", {}, None),
    ],
)
def test_the_wait_is_told_by_body_then_header_then_text(
    body: Any, headers: dict[str, str], seconds: float | None
):
    error = refusal(429, body, headers)
    assert isinstance(error, BackendRateLimited)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("at", "date", "seconds"),
    [
        ("Sun, 01 Nov 2026 12:00:10 GMT", None, 10.0),
        ("Sun, 01 Nov 2026 11:00:00 GMT", None, 0.0),
        ("Sun, 01 Nov 2026 12:00:10 -0000", None, None),
        # where the answer tells its own time, that is what counts: our clock may be wrong
        ("Mon, 02 Nov 2026 20:00:05 GMT", "Mon, 02 Nov 2026 20:00:00 GMT", 5.0),
    ],
)
def test_a_wait_may_be_told_as_an_instant(at: str, date: str | None, seconds: float | None):
    headers = {"retry-after": at, **({"date": date} if date else {})}
    response = HttpResponse(429, headers, b"")
    assert retry_after(response, {}, now=datetime(2026, 11, 1, 12, 0, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("reason", "category"),
    [
        (
            "The input or output was flagged as sensitive. Please try again with different inputs. (E005) (abc)",
            "safety",
        ),
        ("NSFW content detected. Try running it again, or try a different prompt.", "safety"),
        ("Error: content policy violation", "safety"),
        ("blocked by moderation", "safety"),
        ("Prediction interrupted; please retry (code: PA)", "infrastructure"),
        ("E1001: out of memory", "infrastructure"),
        ("CUDA out of memory", "infrastructure"),
        ("E6716 timeout starting prediction", "infrastructure"),
        ("Director: unexpected error handling prediction (E1000)", "infrastructure"),
        ("Request timed out", "infrastructure"),
        ("list index out of range", "model"),
        ("height must be divisible by 8", "model"),
        ("", "model"),
    ],
)
def test_a_failure_is_sorted_by_the_models_own_words(reason: str, category: str):
    assert categorize_failure(reason) == category


def test_what_was_said_is_shortened_and_made_printable():
    error = refusal(400, {"detail": "a\0b\x1b[31m\r\n" + "x" * 5000})
    assert str(error).isprintable()
    assert len(str(error)) < 450


@pytest.mark.parametrize(("header", "value"), [("x-request-id", "req-1"), ("cf-ray", "ray-1")])
def test_the_services_own_id_for_the_exchange_is_kept(header: str, value: str):
    assert refusal(500, b"", {header: value}).request_id == value
    assert refusal(500).request_id is None


LONG = 'A "quoted" größer fox\nin the\tsnow, seen from above at dawn'


def unquoted(text: str, prompt: str, *secrets: str, status: int = 422) -> str:
    response = HttpResponse(status, {"date": "x"}, text.encode())
    seen = without_quotes(response, prompt, secrets=secrets)
    assert (seen.status, seen.headers) == (status, response.headers)
    return seen.body.decode()


@pytest.mark.parametrize(
    "quoted",
    [
        LONG,
        " ".join(LONG.split()),
        json.dumps(LONG)[1:-1],
        json.dumps(LONG, ensure_ascii=False)[1:-1],
        LONG[:20],
        json.dumps(LONG)[1:40],
        LONG[:16],
    ],
)
def test_a_quoted_prompt_is_hidden_whole_escaped_or_cut_short(quoted: str):
    assert (
        unquoted(f"the prompt '{quoted}'… or {quoted}", LONG) == "the prompt '[the prompt]'… or [the prompt]"
    )


@pytest.mark.parametrize(
    "body", [{"detail": f"'{LONG}' is not nice"}, {"invalid_fields": [{"description": LONG}]}]
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_what_is_hidden_leaves_a_body_that_can_be_read(body: dict[str, Any], ascii_only: bool):
    seen = unquoted(json.dumps(body, ensure_ascii=ascii_only), LONG)
    assert "fox" not in seen
    assert "[the prompt]" in seen
    assert json.loads(seen).keys() == body.keys()


def test_the_rest_of_a_refusal_stays():
    text = '{"detail": "a red fence is no fox", "status": 422}'
    assert unquoted(text, "a red fox in the snow") == text
    assert unquoted(text, "is") == text, "so short a prompt is in every sentence"
    assert unquoted(text, "  ") == text


@pytest.mark.parametrize("status", [200, 201, 299])
def test_what_is_no_refusal_is_left_as_it_is(status: int):
    assert unquoted(LONG, LONG, 'A "quoted"', status=status) == LONG


@pytest.mark.parametrize("prompt", ["prompt", "the prompt", "[the prompt]", "prom", "the "])
def test_a_prompt_that_looks_like_what_it_is_hidden_by(prompt: str):
    assert unquoted(f"x {prompt.strip()} y", prompt).count("prompt") <= 2


def test_secrets_are_hidden_like_the_prompt():
    seen = unquoted(
        '{"detail": "a fox, sk-0123456789abcdef0123, sk-0123456789abcdef… hid"}',
        "a fox",
        "sk-0123456789abcdef0123",
        "hid",
    )
    assert seen == '{"detail": "[the prompt], [hidden], [hidden]… hid"}'


@pytest.mark.parametrize("body", [b"\xff\xfe a red fox", b""])
def test_a_body_that_is_no_text_can_be_hidden_in_too(body: bytes):
    assert b"fox" not in without_quotes(HttpResponse(500, {}, body), "a red fox").body
