"""What a create says of webhooks, and how the secret is read from the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imagen.backends.replicate.wire import Wire
from imagen.domain.model_ref import ModelRef
from imagen.domain.secret import Secret
from imagen.errors import BackendUnauthenticated, GarbledResponse
from imagen.transport.message import HttpResponse

WIRE = Wire(api_base="https://api.replicate.com", token=Secret("r8_test"), token_env="REPLICATE_API_TOKEN")
DOCUMENTED = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
"""The example of the service's own documentation."""


def body_of(webhook: str | None) -> dict[str, Any]:
    request = WIRE.build_create(
        ModelRef.parse("acme/fox"),
        {"prompt": "a fox"},
        hold_seconds=0,
        deadline_seconds=60,
        webhook=webhook,
    )
    found: dict[str, Any] = json.loads(request.body or b"")
    return found


def read(status: int, body: Any) -> Secret:
    response = HttpResponse(status, {}, json.dumps(body).encode())
    return WIRE.parse_webhook_secret(response, subject="the webhook secret")


def test_a_create_asks_to_be_told_of_the_end_alone() -> None:
    assert body_of("https://hooks.example/a") == {
        "input": {"prompt": "a fox"},
        "webhook": "https://hooks.example/a",
        "webhook_events_filter": ["completed"],
    }


def test_a_create_without_an_address_has_neither_key_as_the_service_refuses_a_filter_alone() -> None:
    assert body_of(None) == {"input": {"prompt": "a fox"}}


def test_the_secret_is_asked_for_with_the_token_and_may_be_asked_for_again() -> None:
    request = WIRE.build_webhook_secret()
    assert (request.method, request.url) == ("GET", "https://api.replicate.com/v1/webhooks/default/secret")
    assert request.bearer == Secret("r8_test")
    assert request.repeatable


@pytest.mark.parametrize("key", [DOCUMENTED, "whsec_" + "A" * 11, "whsec_" + "QUJD" * 8 + "QQ=="])
def test_the_secret_is_read_and_stays_hidden(key: str) -> None:
    found = read(200, {"key": key})
    assert found.reveal() == key
    assert key not in repr(found)


@pytest.mark.parametrize(
    "body",
    [{}, {"key": None}, {"key": 5}, {"key": ""}, {"key": "whsec_"}, {"key": "whsec_AAAA"}, [], "whsec_"]
    + [{"key": f"whsec_{'A' * count}"} for count in (9, 13, 600)]
    + [{"key": DOCUMENTED + "\n"}, {"key": DOCUMENTED.replace("+", "-")}, {"key": DOCUMENTED[6:]}],
)
def test_what_is_no_secret_is_not_taken_for_one(body: Any) -> None:
    with pytest.raises(GarbledResponse):
        read(200, body)


def test_a_refusal_is_told_as_one() -> None:
    with pytest.raises(BackendUnauthenticated):
        read(401, {"title": "Unauthenticated", "detail": "no", "status": 401})
