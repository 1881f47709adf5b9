"""Who is let in, what is refused, how fast one may ask."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import pytest

from imagen.emulator import Emulator

if TYPE_CHECKING:
    from conftest import Caller


pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"


async def test_without_a_token_the_recorded_401(call: Caller):
    reply = await call("GET", "/v1/account", token=None)
    assert reply.status == 401
    assert reply.kind == "application/problem+json"
    assert reply.json == {
        "title": "Unauthenticated",
        "detail": "You did not pass an authentication token",
        "status": 401,
    }


@pytest.mark.parametrize(
    "header", ["Bearer r8_invalid", "Bearer", "Bearer ", "Basic abc", "r8_abc", "Token invalid"]
)
async def test_a_bad_token_gets_the_other_401(call: Caller, header: str | None):
    reply = await call("GET", "/v1/account", token=None, headers={"Authorization": header})
    assert reply.status == 401
    assert reply.json["detail"] == "You did not pass a valid authentication token"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token"])
async def test_both_schemes_are_read(call: Caller, scheme: str):
    reply = await call("GET", "/v1/account", token=None, headers={"Authorization": f"{scheme} r8_abc"})
    assert reply.status == 200


async def test_only_accepted_tokens_are_let_in_when_they_are_named(call: Caller):
    async with Emulator(accepted_tokens=["r8_one"]) as strict:
        assert (await call("GET", f"{strict.url}/v1/account", token="r8_one")).status == 200
        assert (await call("GET", f"{strict.url}/v1/account", token="r8_two")).status == 401


async def test_accounts_do_not_see_each_other(call: Caller):
    mine = (await call.create(token="r8_mine")).json
    for method, path in [("GET", mine["urls"]["get"]), ("POST", mine["urls"]["cancel"])]:
        assert (await call(method, path, token="r8_other")).status == 404
    assert (await call("GET", "/v1/predictions", token="r8_other")).json["results"] == []
    assert (await call("GET", "/v1/account", token="r8_other")).json["username"] != (
        await call("GET", "/v1/account", token="r8_mine")
    ).json["username"]


async def test_the_recorded_422_body_word_for_word(call: Caller, emulator: Emulator):
    reply = await call("POST", "/v1/predictions", {"version": SCHNELL, "input": {"num_inference_steps": 28}})
    assert reply.status == 422
    assert reply.kind == "application/problem+json"
    assert reply.json == {
        "detail": "- input: prompt is required\n"
        "- input.num_inference_steps: Must be less than or equal to 4\n",
        "status": 422,
        "title": "Input validation failed",
        "invalid_fields": [
            {"type": "required", "field": "input", "description": "prompt is required"},
            {
                "type": "number_lte",
                "field": "input.num_inference_steps",
                "description": "Must be less than or equal to 4",
            },
        ],
    }
    assert emulator.purchases == 0


@pytest.mark.parametrize(
    ("model", "inputs", "kind", "field", "description"),
    [
        (
            "black-forest-labs/flux-kontext-pro",
            {"output_format": "webp"},
            "enum",
            "input.output_format",
            'output_format must be one of the following: "jpg", "png"',
        ),
        (
            SCHNELL,
            {"num_outputs": 0},
            "number_gte",
            "input.num_outputs",
            "Must be greater than or equal to 1",
        ),
        (
            SCHNELL,
            {"sead": 1},
            "additional_property_not_allowed",
            "input",
            "Additional property sead is not allowed",
        ),
        (
            SCHNELL,
            {"seed": "7"},
            "invalid_type",
            "input.seed",
            "Invalid type. Expected: integer, given: string",
        ),
        (
            SCHNELL,
            {"seed": 7.5},
            "invalid_type",
            "input.seed",
            "Invalid type. Expected: integer, given: number",
        ),
        (
            SCHNELL,
            {"seed": True},
            "invalid_type",
            "input.seed",
            "Invalid type. Expected: integer, given: boolean",
        ),
        (
            SCHNELL,
            {"seed": None},
            "invalid_type",
            "input.seed",
            "Invalid type. Expected: integer, given: null",
        ),
        (
            SCHNELL,
            {"go_fast": 1},
            "invalid_type",
            "input.go_fast",
            "Invalid type. Expected: boolean, given: integer",
        ),
        ("google/nano-banana", {"seed": 7}, "additional_property_not_allowed", "input", None),
        ("google/nano-banana", {"image_input": ["no uri"]}, "format", "input.image_input.0", None),
        ("black-forest-labs/flux-dev", {"image": "fox.png"}, "format", "input.image", None),
        ("black-forest-labs/flux-dev", {"guidance": 11}, "number_lte", "input.guidance", None),
    ],
)
async def test_each_kind_of_wrong_input(
    call: Caller, *, model: str, inputs: dict[str, Any], kind: str, field: str, description: str | None
):
    reply = await call.create(model=model, **inputs)
    assert reply.status == 422
    (complaint,) = reply.json["invalid_fields"]
    assert (complaint["type"], complaint["field"]) == (kind, field)
    assert description in {None, complaint["description"]}
    assert reply.json["detail"] == f"- {field}: {complaint['description']}\n"


async def test_null_is_fine_where_the_schema_says_so(call: Caller):
    assert (await call.create(model="black-forest-labs/flux-dev", seed=None)).status == 201


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            {"model": SCHNELL},
            "- version is required\n- input is required\n- Additional property model is not allowed\n",
        ),
        ({"version": SCHNELL, "input": []}, "- input: Invalid type. Expected: object, given: array\n"),
        ({"version": 5, "input": {}}, "- version: Invalid type. Expected: string, given: integer\n"),
        ([], "- (root): Invalid type. Expected: object, given: array\n"),
        (
            {"version": SCHNELL, "input": {"prompt": "x"}, "webhook": "http://x.example/"},
            "- webhook: Does not match format 'https'\n",
        ),
        (
            {"version": SCHNELL, "input": {"prompt": "x"}, "webhook_events_filter": ["start"]},
            "- webhook_events_filter cannot be provided without webhook\n",
        ),
    ],
)
async def test_a_wrong_body_is_refused(call: Caller, emulator: Emulator, body: Any, complaint: str):
    reply = await call("POST", "/v1/predictions", body)
    assert reply.status == 422
    assert reply.json["detail"] == complaint
    assert emulator.purchases == 0


async def test_version_is_unknown_to_the_model_path(call: Caller):
    reply = await call(
        "POST", f"/v1/models/{SCHNELL}/predictions", {"version": SCHNELL, "input": {"prompt": "x"}}
    )
    assert reply.status == 422


async def test_a_webhook_is_accepted_and_remembered(call: Caller, emulator: Emulator):
    body = {
        "version": SCHNELL,
        "input": {"prompt": "x"},
        "webhook": "https://hooks.example/a",
        "webhook_events_filter": ["completed"],
    }
    created = (await call("POST", "/v1/predictions", body)).json
    prediction = emulator.world.state.predictions[created["id"]]
    assert (prediction.webhook, prediction.webhook_events) == ("https://hooks.example/a", ("completed",))


@pytest.mark.parametrize("raw", [b"{", b"nonsense", b'{"a": NaN}', b"\xff\xfe", b'"\\ud800"'])
async def test_what_is_not_json_is_refused(call: Caller, raw: bytes):
    reply = await call("POST", "/v1/predictions", data=raw)
    assert reply.status == 400
    assert reply.kind == "application/problem+json"


async def test_more_than_20_mib_of_json_is_too_large(call: Caller):
    reply = await call("POST", "/v1/predictions", data=io.BytesIO(b" " * (20 * 1024 * 1024 + 1)))
    assert reply.status == 413
    assert reply.kind == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/", "/predictions", "/v1", "/v1/", "/v1/v1/predictions", "/v1/avatars", "/v1/x"]
)
@pytest.mark.parametrize("token", [None, "r8_x"])
async def test_other_paths_are_not_found(call: Caller, path: str, token: str | None):
    reply = await call("GET", path, token=token)
    assert reply.status == 404
    assert reply.kind == "application/problem+json"
    assert reply.json["status"] == 404


async def test_a_known_path_with_another_method_is_not_allowed(call: Caller):
    reply = await call("DELETE", "/v1/predictions")
    assert reply.status == 405
    assert set(reply.headers["allow"].split(", ")) >= {"GET", "POST"}


async def test_ordinary_answers_carry_what_is_left(call: Caller):
    created = await call.create()
    assert (created.headers["ratelimit-remaining"], created.headers["ratelimit-reset"]) == ("599", "1")
    listed = await call("GET", "/v1/predictions")
    assert listed.headers["ratelimit-remaining"] == "2999"


async def test_creates_are_limited_with_bursts_and_recover_with_time(call: Caller, emulator: Emulator):
    emulator.set_mode(creates_per_minute=60, creates_burst=3)
    assert [(await call.create()).status for _ in range(4)] == [201, 201, 201, 429]
    refused = await call.create()
    assert refused.json == {
        "detail": "Request was throttled. Your rate limit resets in ~1s.",
        "status": 429,
        "retry_after": 1,
    }
    assert "retry-after" not in refused.headers
    assert emulator.purchases == 3
    emulator.clock.advance(1)
    assert (await call.create()).status == 201
    assert (await call.create(token="r8_another")).status == 201


async def test_other_calls_have_their_own_limit(call: Caller, emulator: Emulator):
    emulator.set_mode(others_per_minute=60, others_burst=2)
    assert [(await call("GET", "/v1/account")).status for _ in range(3)] == [200, 200, 429]
    assert (await call.create()).status == 201


async def test_low_credit_means_six_a_minute_one_at_a_time(call: Caller, emulator: Emulator):
    emulator.set_mode(low_credit=True)
    assert (await call.create()).status == 201
    refused = await call.create()
    assert refused.status == 429
    assert refused.json == {
        "detail": "Request was throttled. Your rate limit for creating predictions is reduced to 6 requests "
        "per minute with a burst of 1 requests while you have less than $5.0 in credit. "
        "Your rate limit resets in ~10s.",
        "status": 429,
        "retry_after": 10,
    }
    emulator.clock.advance(10)
    assert (await call.create()).status == 201
    assert emulator.purchases == 2


async def test_no_credit_refuses_creates_only(call: Caller, emulator: Emulator):
    done = await call.finished()
    emulator.set_mode(no_credit=True)
    reply = await call.create()
    assert reply.status == 402
    assert reply.json["title"] == "Insufficient credit"
    assert reply.json["detail"].startswith("You have insufficient credit to run this model.")
    assert (await call("GET", done["urls"]["get"])).status == 200
    assert emulator.purchases == 1


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"GET /v1/account HTTP/1.1\r\nAuthorization: Bearer \xff\xfe", b"", 200),
        (b"GET /v1/account HTTP/1.1\r\nAuthorization: Bearer x\r\nUser-Agent: \xff", b"", 200),
        (b"GET /v1/%ff%fe?x=%ff HTTP/1.1", b"", 404),
        (b"GET /v1/models/%2F/%00 HTTP/1.1\r\nAuthorization: Bearer x", b"", 404),
        (b"POST /v1/predictions HTTP/1.1\r\nAuthorization: Bearer x", b"[" * 200_000, 400),
        (b"POST /v1/predictions HTTP/1.1\r\nAuthorization: Bearer x", b'{"version": 1e400}', 400),
        (b"GET /v1/predictions?cursor=" + b"9" * 6000 + b" HTTP/1.1\r\nAuthorization: Bearer x", b"", 404),
        (b"GET /v1/files/x/download?expiry=" + b"9" * 6000 + b" HTTP/1.1", b"", 404),
        (b"DELETE /_emulator/faults/" + b"9" * 6000 + b" HTTP/1.1", b"", 404),
    ],
)
async def test_odd_bytes_never_break_the_server(
    call: Caller, emulator: Emulator, head: bytes, body: bytes, status: int
):
    host, port = emulator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    rest = b"\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + rest + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert int(answer.split(b" ")[1]) == status
    assert (await call("GET", "/_emulator/journal", token=None)).status == 200


@pytest.mark.parametrize("seed", [-5, 10**30, 10**400, 7.0, 1e300])
async def test_any_whole_number_is_a_seed(call: Caller, seed: float):
    done = await call.finished(seed=seed)
    assert done["input"]["seed"] == seed
    assert (await call("GET", done["output"][0])).status == 200
