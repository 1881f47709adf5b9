"""A gateway that is told to stop: whoever waits for an answer hears what is done and what goes on without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import ADMIN, Answer, running_gateway
from test_gateway_limits import predictions_of

from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = pytest.mark.anyio
FLUX = "flux-schnell"
SHORT = {"IMAGEN_SERVER__DRAIN": "1"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A caller that outlives the gateway."""
    async with aiohttp.ClientSession() as one:
        yield one


async def ask(session: aiohttp.ClientSession, url: str, **body: Any) -> Answer:
    async with session.post(url, json={"model_name": FLUX} | body, headers=ADMIN) as response:
        found = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, found, await response.read())


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_a_batch_that_is_told_to_stop_answers_what_is_done_and_names_the_rest(
    tmp_path: Path, replicate_emulator: EmulatorThread, session: aiohttp.ClientSession
) -> None:
    replicate_emulator.add_fault("slow", prompt="slow", run_seconds=4.0)
    prompts = ["quick 0", "quick 1", "quick 2", "a slow one", "later 0", "later 1"]
    async with running_gateway(
        tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="1", **SHORT
    ) as gateway:
        await gateway.generate(model_name=FLUX, prompt="the first")  # of a process has to wait a little
        tasks = [{"prompt": prompt} for prompt in prompts]
        asked = asyncio.ensure_future(ask(session, gateway.url + "/generate-batch", tasks=tasks))
        await until(lambda: replicate_emulator.purchases >= 5)
    async with asyncio.timeout(10):
        answer = await asked
    told = answer.json()
    assert answer.status == 200
    assert [told[name] for name in ("success", "total_tasks", "successful_count", "failed_count")] == [
        True, 6, 3, 3,
    ]  # fmt: skip
    assert told["cost_usd"] is None  # the slow one may still cost something
    results = told["results"]
    assert [one["prompt"] for one in results] == prompts
    assert all(one["generated_files"] for one in results[:3])
    assert [one["code"] for one in results[3:]] == ["draining"] * 3
    # What is under way can be asked for; of what was never begun there is nothing.
    handed_over = results[3]["prediction_id"]
    assert handed_over.startswith("pred_")
    assert [(one["prediction_id"], one["charged"]) for one in results[4:]] == [(None, None)] * 2
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def is_finished() -> bool:
            return (await gateway.app.store.get(handed_over)).finished

        await until(is_finished, within=15)
        found = await gateway.app.store.list(limit=10)
    assert [(one.prompt, one.status, one.charged) for one in reversed(found)] == [
        (prompt, "succeeded", True) for prompt in ["the first", *prompts[:4]]
    ]
    assert replicate_emulator.purchases == 5


@pytest.mark.replicate_emulator(run_seconds=5.0)
@pytest.mark.parametrize("store", [False, True])
async def test_a_request_that_is_handed_over_is_told_its_prediction(
    tmp_path: Path, replicate_emulator: EmulatorThread, session: aiohttp.ClientSession, store: bool
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **SHORT) as gateway:
        url = gateway.url + "/generate"
        asked = asyncio.ensure_future(ask(session, url, prompt="a fox", store=store))
        await until(lambda: replicate_emulator.purchases >= 1)
    async with asyncio.timeout(10):
        answer = await asked
    told = answer.json()
    assert (answer.status, told["code"]) == (504, "wait_timeout")
    (left,) = await _stored(tmp_path, replicate_emulator)
    assert told["prediction_id"] == left.id
    assert told["prediction_id"] in told["hint"] or "do not ask for it again" in told["hint"]
    assert [one["status"] for one in predictions_of(replicate_emulator)] == ["processing"]


@pytest.mark.replicate_emulator(run_seconds=5.0)
async def test_a_request_that_still_waits_for_its_turn_is_sent_away_with_nothing_bought(
    tmp_path: Path, replicate_emulator: EmulatorThread, session: aiohttp.ClientSession
) -> None:
    limits = {"REPLICATE_CONCURRENT_LIMIT": "1"} | SHORT
    async with running_gateway(tmp_path, replicate_emulator, **limits) as gateway:
        url = gateway.url + "/generate"
        first = asyncio.ensure_future(ask(session, url, prompt="a fox"))
        await until(lambda: replicate_emulator.purchases >= 1)
        second = asyncio.ensure_future(ask(session, url, prompt="a hound"))
        await until(lambda: gateway.app.line.waiting)
    async with asyncio.timeout(10):
        await first
        answer = await second
    assert (answer.status, answer.json()["code"]) == (503, "draining")
    assert answer.json().get("prediction_id") is None
    assert int(answer.headers["retry-after"]) >= 1
    assert replicate_emulator.purchases == 1


async def _stored(tmp_path: Path, emulator: EmulatorThread) -> list[Any]:
    """What another process finds."""
    async with running_gateway(tmp_path, emulator) as gateway:
        return list(await gateway.app.store.unfinished())
