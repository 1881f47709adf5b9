"""Pictures in base64, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen import errors
from imagen.domain.money import Usd
from imagen.errors import ImagenError, InvalidInput, Problem
from imagen.server.answers import HTTP_STATUS
from imagen.server.openai import pictures
from imagen.server.openai.errors import in_callers_words, openai_error, refusal
from imagen.server.openai.pictures import Whole, length_of, sent


@settings(deadline=None, max_examples=60)
@given(
    contents=st.lists(st.binary(max_size=200), max_size=4), piece=st.sampled_from([3, 9, 60, 3 * 256 * 1024])
)
def test_pieces_of_base64_are_the_whole_of_it_and_their_length_is_known(
    contents: list[bytes], piece: int
) -> None:
    async def joined(parts: list[bytes | Whole]) -> bytes:
        return b"".join([each async for each in sent(parts)])

    parts: list[bytes | Whole] = []
    wanted = b""
    for content in contents:
        parts += [b"<", Whole(io.BytesIO(content)), b">"]
        wanted += b"<" + base64.b64encode(content) + b">"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_PIECE", piece)
        assert asyncio.run(joined(parts)) == wanted
    assert length_of(parts) == len(wanted)


def made(kind: type[ImagenError]) -> ImagenError:
    error = kind.__new__(kind)
    ImagenError.__init__(error, "it went wrong", hint="Mend it.")
    for name, value in {
        "problems": (),
        "category": "model",
        "reason": "",
        "charged": None,
        "budget": None,
    }.items():
        if not hasattr(error, name):
            setattr(error, name, value)
    for name in ("quote_micros", "renews_at", "lasting", "prediction_id"):
        if not hasattr(error, name):
            setattr(error, name, None)
    return error


@pytest.mark.parametrize("kind", [kind for kind, _ in HTTP_STATUS], ids=lambda kind: kind.__name__)
def test_every_error_has_openais_shape_and_a_status_that_its_clients_know(kind: type[ImagenError]) -> None:
    answer = openai_error(made(kind))
    told = json.loads(answer.body)["error"]
    assert set(told) == {"message", "type", "param", "code", "imagen"}
    assert told["message"].startswith("it went wrong")
    assert told["code"]
    assert told["imagen"]["code"] == kind.code
    assert answer.status_code in {400, 401, 403, 404, 409, 429, 500, 502, 503, 504}
    assert (told["type"] == "server_error") == (answer.status_code >= 500)


def test_what_may_have_cost_something_is_not_to_be_sent_again_by_a_program() -> None:
    broken = errors.BackendBroken("500: it failed")
    assert "x-should-retry" not in openai_error(broken).headers
    assert "x-should-retry" not in refusal(broken, cost=Usd(0), told=True).headers
    assert refusal(broken, cost=None, told=True).headers["x-should-retry"] == "false"
    assert refusal(broken, cost=Usd(3000), told=True).headers["x-should-retry"] == "false"
    assert refusal(broken, cost=Usd(3000), told=True).headers["x-imagen-cost-usd"] == "0.003"
    busy = errors.QueueFull("too many", retry_after=1.2)
    assert openai_error(busy).headers["retry-after"] == "2"
    assert "x-should-retry" not in openai_error(busy).headers


def test_a_budget_is_told_as_quota_and_the_callers_own_limit_as_his_mistake() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    of_budget = openai_error(
        errors.BudgetExceeded("no money", budget="small", quote_micros=3000, renews_at=at)
    )
    told = json.loads(of_budget.body)["error"]
    assert (of_budget.status_code, told["code"], told["type"]) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )
    assert (told["imagen"]["budget"], told["imagen"]["quote_usd"]) == ("small", 0.003)
    own = openai_error(errors.BudgetExceeded("too dear", quote_micros=3000))
    assert (own.status_code, json.loads(own.body)["error"]["param"]) == (400, "max_cost")


def test_problems_are_named_as_the_caller_named_the_field() -> None:
    error = InvalidInput(
        [Problem("input_images[1]", "no address"), Problem("seed", "too large")], subject="m"
    )
    told = in_callers_words(error, {"input_images": "image"})
    assert isinstance(told, InvalidInput)
    assert [problem.field for problem in told.problems] == ["image[1]", "seed"]
    assert told.detail.startswith("m: image[1]: no address")
