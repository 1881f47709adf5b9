"""What other clients get wrong under faults, column by column: the right outcome, and at most one purchase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from imagen.assembly import App
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import (
    BackendRateLimited,
    BackendUnauthenticated,
    DeliveryError,
    ImagenError,
    OutputDefective,
    PaymentRequired,
    PredictionFailed,
)
from imagen.service.deliver import Destination
from imagen.service.finish import Outcome

pytestmark = pytest.mark.anyio

CREATE, GET, LIST = "predictions.create", "predictions.get", "predictions.list"
Faults = list[tuple[str, dict[str, Any]]]

OK_CASES: dict[str, Faults] = {
    "nothing": [],
    "429 twice, the wait in a header": [
        ("rate_limit", {"operation": CREATE, "retry_after": 0, "where": "header", "times": 2})
    ],
    "429 twice, the wait in the body": [
        ("rate_limit", {"operation": CREATE, "retry_after": 0, "where": "body", "times": 2})
    ],
    "429 twice, the wait in the text": [
        ("rate_limit", {"operation": CREATE, "retry_after": 0, "where": "text", "times": 2})
    ],
    "429 three times": [("rate_limit", {"operation": CREATE, "retry_after": 0, "times": 3})],
    "one 500 before it was bought": [("status", {"operation": CREATE, "status": 500})],
    "one 500 after it was bought": [("status_after", {"operation": CREATE, "status": 500})],
    "one 502 after it was bought": [("status_after", {"operation": CREATE, "status": 502})],
    "one 503 before it was bought": [("status", {"operation": CREATE, "status": 503})],
    "dropped before it was accepted": [("drop", {"operation": CREATE})],
    "accepted, then dropped": [("drop_after", {"operation": CREATE})],
    "accepted, then cut in the middle": [("cut", {"operation": CREATE})],
    "accepted, then answered with garbage": [("garbage_after", {"operation": CREATE})],
    "accepted, dropped, and listed late": [
        ("drop_after", {"operation": CREATE}),
        ("hidden_from_list", {"seconds": 0.6}),
    ],
    "accepted, dropped, and the list fails twice": [
        ("drop_after", {"operation": CREATE}),
        ("status", {"operation": LIST, "status": 503, "times": 2}),
    ],
    "the wait ends with starting": [("hold_returns_starting", {"status": "starting"})],
    "the wait ends with processing": [("hold_returns_starting", {"status": "processing"})],
    "processing with its output filled": [("early_output", {"seconds": 0.3})],
    "answers looser than the spec": [("loose", {"times": None})],
    "polls that fail": [
        ("hold_returns_starting", {}),
        ("status", {"operation": GET, "status": 500, "times": 2}),
    ],
    "polls that are dropped and garbled": [
        ("hold_returns_starting", {}),
        ("drop", {"operation": GET, "times": 1}),
        ("cut", {"operation": GET, "times": 1, "skip": 1}),
    ],
    "polls that are throttled": [
        ("hold_returns_starting", {}),
        ("rate_limit", {"operation": GET, "retry_after": 0, "times": 2}),
    ],
    "polls that are answered with garbage": [
        ("hold_returns_starting", {}),
        ("garbage", {"operation": GET, "times": 2}),
    ],
    "polls that say 404 at first": [
        ("hold_returns_starting", {}),
        ("status", {"operation": GET, "status": 404, "times": 2}),
    ],
    "accepted, dropped, and the list is garbage once": [
        ("drop_after", {"operation": CREATE}),
        ("garbage", {"operation": LIST}),
    ],
    "the download says 404 once": [("status", {"operation": "delivery", "status": 404})],
    "the download is damaged once": [("broken_picture", {"operation": "delivery"})],
    "output as a data URI": [("data_uri_output", {})],
    "the download dropped once": [("drop", {"operation": "delivery"})],
    "the download cut once": [("cut", {"operation": "delivery"})],
    "the download answered 503 once": [("status", {"operation": "delivery", "status": 503})],
}

BAD_CASES: dict[str, tuple[Faults, type[ImagenError], str, int, bool | None]] = {
    "flagged as unsafe": ([("fail", {"preset": "nsfw"})], PredictionFailed, "NSFW", 1, False),
    "E005": ([("fail", {"preset": "E005"})], PredictionFailed, "E005", 1, False),
    "interrupted": ([("fail", {"preset": "interrupted"})], PredictionFailed, "interrupted", 1, False),
    "succeeded with []": ([("empty_output", {})], OutputDefective, "empty", 1, True),
    "succeeded with null": ([("null_output", {})], OutputDefective, "empty", 1, True),
    "a broken picture": ([("broken_picture", {})], OutputDefective, "charged", 1, True),
    "no picture at all": ([("not_a_picture", {})], OutputDefective, "charged", 1, True),
    "a picture of 200 MB": (
        [("huge", {"operation": "delivery", "size": 200 << 20, "times": None})],
        OutputDefective,
        "MiB",
        1,
        True,
    ),
    "the download always broken": (
        [("drop", {"operation": "delivery", "times": None})],
        DeliveryError,
        "adopt",
        1,
        None,
    ),
    "429 for ever": (
        [("rate_limit", {"operation": CREATE, "retry_after": 0, "times": None})],
        BackendRateLimited,
        "3 retries",
        0,
        None,
    ),
    "429 for longer than we wait": (
        [("rate_limit", {"operation": CREATE, "retry_after": 45})],
        BackendRateLimited,
        "45 s",
        0,
        None,
    ),
    "no credit": ([("payment_required", {"operation": CREATE})], PaymentRequired, "credit", 0, None),
    "token refused": (
        [("status", {"operation": CREATE, "status": 401})],
        BackendUnauthenticated,
        "REPLICATE_API_TOKEN",
        0,
        None,
    ),
}


async def make(app: App, prompt: str = "a red fox in the snow") -> Outcome:
    async with app:
        outcomes = await app.gateway.generate(GenerationRequest(prompt=prompt), destination=Destination())
    (outcome,) = outcomes
    return outcome


@pytest.mark.parametrize("name", OK_CASES)
async def test_the_picture_is_made_with_one_purchase(
    name: str, open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    for fault, attributes in OK_CASES[name]:
        replicate_emulator.add_fault(fault, **attributes)
    outcome = await make(open_app())
    assert outcome.error is None
    assert outcome.pictures[0].path.is_file()
    assert replicate_emulator.purchases == 1
    assert outcome.prediction.charged is True


@pytest.mark.parametrize("name", BAD_CASES)
async def test_the_error_is_clear_and_says_what_was_charged(
    name: str, open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    faults, kind, text, purchases, charged = BAD_CASES[name]
    for fault, attributes in faults:
        replicate_emulator.add_fault(fault, **attributes)
    outcome = await make(open_app())
    assert type(outcome.error) is kind
    assert text in str(outcome.error)
    assert replicate_emulator.purchases == purchases
    if charged is not None:
        assert outcome.prediction.charged is charged
    app = open_app()
    async with app:
        entries = await app.ledger.entries()
    assert [entry.outcome for entry in entries] == ([outcome.prediction.status.value] if purchases else [])


async def test_no_token_and_no_prompt_goes_where_it_does_not_belong(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    await make(open_app())
    delivery = replicate_emulator.journal.entries(server="delivery")
    assert delivery
    assert all(entry.authorization is None for entry in delivery)
