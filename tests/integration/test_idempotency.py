"""The same request with the same `Idempotency-Key` is carried out once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from batch_calls import FLUX, ended, make_batch, written_below
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]
KEY = {"Idempotency-Key": "order 4711"}
TASKS = [{"prompt": "a fox"}, {"prompt": "a hare"}]
REQUESTS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "generate": ("/generate", {"prompt": "a fox"}, 200, 1),
    "generate stored": ("/generate", {"prompt": "a fox", "store": True}, 200, 1),
    "generate-batch": ("/generate-batch", {"tasks": TASKS}, 200, 2),
    "batches": ("/batches", {"tasks": TASKS, "name": "b"}, 202, 2),
    "predictions": ("/predictions", {"prompt": "a fox"}, 202, 1),
}
EVERY = pytest.mark.parametrize("what", REQUESTS)


async def ask(
    gateway: RunningGateway,
    path: str,
    fields: dict[str, Any],
    *,
    key: dict[str, str] = KEY,
    headers: dict[str, str] | None = None,
) -> Answer:
    body = {"model_name": FLUX} | fields
    return await gateway.request("POST", path, json=body, headers=(headers or ADMIN) | key)


@EVERY
async def test_a_repeat_gets_the_same_answer_and_buys_nothing_also_after_a_restart(
    tmp_path: Path, replicate_emulator: EmulatorThread, what: str
) -> None:
    path, fields, status, purchases = REQUESTS[what]
    given = {"IMAGEN_PUBLIC_URL": "http://127.0.0.1:1"}  # else the answers would differ by the port
    async with running_gateway(tmp_path, replicate_emulator, **given) as gateway:
        first = await ask(gateway, path, fields)
        again = await ask(gateway, path, dict(reversed(fields.items())))
        assert (first.status, again.status) == (status, status), first.body
        assert again.body == first.body
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        await until(lambda: replicate_emulator.purchases >= purchases)
    async with running_gateway(tmp_path, replicate_emulator, **given) as gateway:
        later = await ask(gateway, path, fields)
        assert (later.status, later.body) == (status, first.body)
        assert later.headers.get("x-imagen-prediction-id") == first.headers.get("x-imagen-prediction-id")
        assert later.headers.get("x-imagen-cost-usd") == first.headers.get("x-imagen-cost-usd")
    assert replicate_emulator.purchases == purchases


@EVERY
async def test_the_same_request_sent_at_once_by_many_is_bought_once(
    tmp_path: Path, replicate_emulator: EmulatorThread, what: str
) -> None:
    path, fields, status, purchases = REQUESTS[what]
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answers = await asyncio.gather(*(ask(gateway, path, fields) for _ in range(8)))
        assert {answer.status for answer in answers} == {status}
        assert len({answer.body for answer in answers}) == 1
        await until(lambda: replicate_emulator.purchases >= purchases)
        await asyncio.gather(*(ask(gateway, path, fields) for _ in range(3)))
    assert replicate_emulator.purchases == purchases


@EVERY
async def test_another_body_under_the_same_key_is_refused(
    tmp_path: Path, replicate_emulator: EmulatorThread, what: str
) -> None:
    path, fields, status, purchases = REQUESTS[what]
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await ask(gateway, path, fields)).status == status
        other = await ask(gateway, path, fields | {"aspect_ratio": "16:9"})
        assert (other.status, other.json()["code"]) == (409, "idempotency_conflict")
        elsewhere = "/predictions" if path == "/generate" else "/generate"
        moved = await ask(gateway, elsewhere, {"prompt": "a fox"})
        assert moved.status == 409
        await until(lambda: replicate_emulator.purchases >= purchases)
    assert replicate_emulator.purchases == purchases


async def test_a_key_belongs_to_whoever_sends_it(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
        callers: list[dict[str, str]] = [
            ADMIN,
            {"X-API-Key": made.json()["key"]},
            {"X-Replicate-Api-Token": "r8_one"},
            {"X-Replicate-Api-Token": "r8_two"},
            {"Accept": "*/*"},
        ]
        answers = [
            await ask(gateway, "/generate", {"prompt": "a fox"}, headers=headers) for headers in callers
        ]
        assert [answer.status for answer in answers] == [200] * 5
        assert len({answer.json()["prediction_id"] for answer in answers}) == 5
        same = await ask(
            gateway,
            "/generate",
            {"prompt": "a fox", "credentials": {"replicate_api_token": "r8_two"}},
            headers={"Accept": "*/*"},
        )
        assert same.json() == answers[3].json()
    assert replicate_emulator.purchases == 5


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("[fault:fail preset=nsfw]", 422, "prediction_failed"),
        ("[fault:fail error=tired]", 502, "prediction_failed"),
        ("[fault:status status=422]", 400, "input_rejected"),
    ],
)
async def test_an_error_is_repeated_as_it_was_also_after_a_restart(
    tmp_path: Path, replicate_emulator: EmulatorThread, prompt: str, status: int, code: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        first = await ask(gateway, "/generate", {"prompt": f"a fox {prompt}"})
        assert (first.status, first.json()["code"]) == (status, code), first.body
        plain = await gateway.generate(model_name=FLUX, prompt=f"a hare {prompt}")
        assert plain.status == first.status  # with and without a key it is the same error
        assert plain.json().keys() == first.json().keys()
        sent = len(replicate_emulator.journal.entries(operation="predictions.create"))
        again = await ask(gateway, "/generate", {"prompt": f"a fox {prompt}"})
        assert (again.status, again.body) == (first.status, first.body)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        later = await ask(gateway, "/generate", {"prompt": f"a fox {prompt}"})
        assert (later.status, later.body) == (first.status, first.body)
    assert len(replicate_emulator.journal.entries(operation="predictions.create")) == sent


async def test_work_goes_on_when_its_caller_leaves_and_a_repeat_is_answered_with_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=0.8)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        with pytest.raises(asyncio.TimeoutError):
            await gateway.session.post(
                f"{gateway.url}/generate",
                json={"model_name": FLUX, "prompt": "a fox"},
                headers=ADMIN | KEY,
                timeout=aiohttp.ClientTimeout(total=0.5),
            )
        answer = await ask(gateway, "/generate", {"prompt": "a fox"})
        assert answer.status == 200, answer.body
        assert answer.json()["generated_files"]
    assert replicate_emulator.purchases == 1
    assert replicate_emulator.journal.entries(operation="predictions.cancel") == ()


async def test_a_gateway_that_stops_says_so_and_the_next_one_answers_the_repeat(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=1.5)
    async with aiohttp.ClientSession() as session:
        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.2") as gateway:
            asked = asyncio.ensure_future(
                session.post(
                    f"{gateway.url}/generate",
                    json={"model_name": FLUX, "prompt": "a fox"},
                    headers=ADMIN | KEY,
                )
            )
            await until(lambda: replicate_emulator.purchases >= 1)
        async with asyncio.timeout(15):
            response = await asked
            told = await response.json()
        assert (response.status, told["code"]) == (503, "draining")
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await ask(gateway, "/generate", {"prompt": "a fox"})
        assert answer.status == 200, answer.body
    assert replicate_emulator.purchases == 1


async def test_a_caller_with_a_token_of_their_own_brings_it_again_after_a_restart(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """Nothing of it is on the disk, so that the next process waits until it is brought."""
    replicate_emulator.add_fault("slow", run_seconds=1.5)
    own = {"X-Replicate-Api-Token": "r8_their_own"}
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        asked = asyncio.ensure_future(ask(gateway, "/generate", {"prompt": "a fox"}, headers=own))
        await until(lambda: replicate_emulator.purchases >= 1)
        asked.cancel()
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await ask(gateway, "/generate", {"prompt": "a fox"}, headers=own)
        assert answer.status == 200, answer.body
    assert replicate_emulator.purchases == 1
    assert b"r8_their_own" not in written_below(tmp_path)


async def test_without_credit_the_caller_hears_of_it_and_a_repeat_tries_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        replicate_emulator.add_fault("payment_required")
        async with asyncio.timeout(15):
            refused = await ask(gateway, "/generate", {"prompt": "a fox"})
        assert (refused.status, refused.json()["success"]) == (402, False), refused.body
        assert "credit" in refused.json()["error"]
        replicate_emulator.clear_faults()
        async with asyncio.timeout(15):
            paid = await ask(gateway, "/generate", {"prompt": "a fox"})
        assert paid.status == 200, paid.body
    assert replicate_emulator.purchases == 1


async def test_failed_items_are_retried_once_for_one_key(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        replicate_emulator.add_fault("fail", prompt="hare", error="tired")
        batch = await make_batch(gateway, ["a fox", "a hare"])
        assert (await ended(gateway, batch["id"]))["status"] == "partly_failed"
        replicate_emulator.clear_faults()
        path = f"/batches/{batch['id']}/retry-failed"
        first = await gateway.request("POST", path, headers=ADMIN | KEY)
        assert (first.status, first.json()["retried"]) == (202, 1)
        assert (await ended(gateway, batch["id"]))["status"] == "succeeded"
        again = await gateway.request("POST", path, headers=ADMIN | KEY)
        assert (again.status, again.body) == (202, first.body)
        assert again.headers["idempotent-replayed"] == "true"
        other = await make_batch(gateway, ["an owl"])
        clash = await gateway.request("POST", f"/batches/{other['id']}/retry-failed", headers=ADMIN | KEY)
        assert clash.status == 409
        await ended(gateway, other["id"])
    assert replicate_emulator.purchases == 4


async def test_an_upload_is_recognised_by_its_content_and_its_query(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def send(content: bytes, query: str = "") -> Answer:
            headers = ADMIN | KEY | {"Content-Type": "application/x-ndjson"}
            return await gateway.request(
                "POST", f"/batches?model_name={FLUX}{query}", data=content, headers=headers
            )

        async def fill(content: bytes) -> Answer:
            form = aiohttp.FormData()
            form.add_field("model_name", FLUX)
            form.add_field("file", content, filename="x.jsonl")
            key = {"Idempotency-Key": "another"}
            async with gateway.session.post(
                f"{gateway.url}/batches", data=form, headers=ADMIN | key
            ) as response:
                return Answer(response.status, {}, await response.read())

        first = await send(b'"a fox"')
        assert (await send(b'"a fox"')).body == first.body
        assert first.status == 202
        assert (await send(b'"a hare"')).status == 409
        assert (await send(b'"a fox"', "&seed=7")).status == 409
        form = await fill(b'"a fox"')  # with another boundary each time
        assert form.status == 202
        assert (await fill(b'"a fox"')).body == form.body
        assert (await fill(b'"a hare"')).status == 409


@pytest.mark.parametrize("wrong", ["", "x" * 256, "schlüssel", "a\tb"])
async def test_a_key_that_is_none_is_refused(
    tmp_path: Path, replicate_emulator: EmulatorThread, wrong: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await ask(gateway, "/generate", {"prompt": "a fox"}, key={"Idempotency-Key": wrong})
        assert (answer.status, answer.json()["code"]) == (400, "invalid_input")
        assert "Idempotency-Key" in json.dumps(answer.json())
    assert replicate_emulator.purchases == 0
