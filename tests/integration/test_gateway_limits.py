"""Limits that hold: counted at the service, whatever callers, faults and departures do."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, RunningGateway, running_gateway

from imagen.assembly import build
from imagen.domain.limits import Need
from imagen.emulator import EmulatorThread
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio
FAULTS = {
    "lost": "[fault:drop_after]",
    "fails": "[fault:fail]",
    "slowly": "[fault:hold_returns_starting]",
}
"""What the emulator does to the request with such a prompt, once."""
TOKEN = "r8_the_servers_own_token"


def predictions_of(emulator: EmulatorThread, token: str = TOKEN) -> list[dict[str, Any]]:
    """All of an account, as the service lists them."""
    url, found = f"{emulator.url}/v1/predictions", []
    while url:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request) as answer:
            page = json.load(answer)
        found += page["results"]
        url = page["next"]
    return found


def most_at_once(predictions: Iterable[dict[str, Any]]) -> int:
    """How many ran at the same time, from being created to being over."""
    moments = []
    for one in predictions:
        assert one["completed_at"], one
        moments.append((datetime.fromisoformat(one["created_at"]), 1))
        moments.append((datetime.fromisoformat(one["completed_at"]), -1))
    running = most = 0
    for _, change in sorted(moments, key=lambda moment: (moment[0], moment[1])):
        running += change
        most = max(most, running)
    return most


async def nothing_is_held(gateway: RunningGateway, *, within: float = 8.0) -> None:
    """Wait until every place has been given back."""
    async with asyncio.timeout(within):
        while True:
            health = (await gateway.request("GET", "/health")).json()
            semaphores = (await gateway.request("GET", "/global-semaphores", headers=ADMIN)).json()
            held = health["concurrency_status"]["running"] + sum(
                one["held"] for one in semaphores["semaphores"]
            )
            if held == 0:
                return
            await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_200_mixed_requests_never_pass_a_limit_and_none_is_lost(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    chance = random.Random(7)
    replicate_emulator.set_mode(creates_per_minute=3000, creates_burst=3000)
    rate = {"REPLICATE_REQUESTS_PER_MINUTE": "3000"}  # after a refusal creates go no quicker than that
    async with running_gateway(
        tmp_path, replicate_emulator, IMAGEN_REPLICATE__LOST_ANSWER_GRACE="2", **rate
    ) as gateway:
        named = {"semaphore_id": "narrow", "limit": 2}
        await gateway.request("POST", "/global-semaphores", json=named, headers=ADMIN)
        replicate_emulator.add_fault("rate_limit", operation="predictions.create", retry_after=1, times=3)

        async def ask(number: int) -> str:
            kind = chance.choice(
                ["plain", "narrow", "lost", "fails", "slowly", "stored", "own", "batch", "gone"]
            )
            prompt = f"{kind} fox {number} {FAULTS.get(kind, '')}"
            wish: dict[str, Any] = {"prompt": prompt, "model_name": "flux-schnell"}
            headers: dict[str, str] | None = ADMIN
            if kind == "narrow":
                wish["external_semaphore_id"] = "narrow"
            elif kind == "stored":
                wish["store"] = True
            elif kind == "own":
                wish["credentials"], headers = {"replicate_api_token": "r8_a_caller_s_own"}, None
            elif kind == "batch":
                tasks = [{"prompt": f"batch fox {number}.{one}"} for one in range(3)]
                batch = {"model_name": "flux-schnell", "tasks": tasks}
                answer = await gateway.request("POST", "/generate-batch", json=batch, headers=ADMIN)
                assert answer.json()["successful_count"] == 3, answer.json()
                return kind
            elif kind == "gone":
                try:
                    async with asyncio.timeout(chance.uniform(0.01, 0.5)):
                        await gateway.request("POST", "/generate", json=wish, headers=headers)
                except TimeoutError:
                    return kind
                return kind
            answer = await gateway.request("POST", "/generate", json=wish, headers=headers)
            assert answer.status == (422 if kind == "fails" else 200), answer.json()
            return kind

        kinds = await asyncio.gather(*map(ask, range(200)))
        assert len(kinds) == 200
        await nothing_is_held(gateway)
        assert gateway.app.line.waiting == 0
    made = predictions_of(replicate_emulator)
    assert most_at_once(made) <= 60
    assert most_at_once(one for one in made if one["input"]["prompt"].startswith("narrow")) <= 2
    # Each wish that was not given up was bought exactly once.
    prompts = [one["input"]["prompt"] for one in made if not one["input"]["prompt"].startswith("gone")]
    wishes = 3 * kinds.count("batch") + sum(
        kinds.count(kind) for kind in ("plain", "narrow", "lost", "fails", "slowly", "stored")
    )
    assert len(prompts) == len(set(prompts)) == wishes
    assert len(predictions_of(replicate_emulator, "r8_a_caller_s_own")) == kinds.count("own")


@pytest.mark.replicate_emulator(run_seconds=0.2)
async def test_the_account_s_limit_holds_and_interactive_work_goes_first(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="3") as gateway:
        tasks = [{"prompt": f"batch {number}"} for number in range(24)]
        batch = asyncio.ensure_future(
            gateway.request(
                "POST", "/generate-batch", json={"model_name": "flux-schnell", "tasks": tasks}, headers=ADMIN
            )
        )
        await until(lambda: replicate_emulator.purchases >= 3)
        before = replicate_emulator.purchases
        answer = await gateway.generate(model_name="flux-schnell", prompt="somebody waits")
        assert not batch.done()
        assert answer.status == 200
        assert int(answer.headers["x-imagen-queue-position"]) == 1
        assert (await batch).json()["successful_count"] == 24
    made = sorted(predictions_of(replicate_emulator), key=lambda one: one["created_at"])
    (place,) = (number for number, one in enumerate(made) if one["input"]["prompt"] == "somebody waits")
    assert place <= before + 3  # who had a place already when it came, and nobody else
    assert most_at_once(made) == 3


@pytest.mark.replicate_emulator(run_seconds=60.0)
async def test_a_caller_who_leaves_is_canceled_upstream_unless_it_is_stored(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for wish in ({"prompt": "left alone"}, {"prompt": "kept", "store": True}):
            asked, before = asyncio.ensure_future(gateway.generate(**wish)), replicate_emulator.purchases
            await until(lambda before=before: replicate_emulator.purchases > before)
            asked.cancel()
            await asyncio.wait({asked})

        def statuses() -> dict[str, str]:
            return {one["input"]["prompt"]: one["status"] for one in predictions_of(replicate_emulator)}

        await until(lambda: statuses()["left alone"] == "canceled")
        assert statuses()["kept"] == "processing"
        replicate_emulator.clock.advance(60)

        async def has_come() -> bool:
            return any(one.files for one in await gateway.app.store.list(limit=5))

        await until(has_come)
        assert statuses() == {"left alone": "canceled", "kept": "succeeded"}
        assert [one.prompt for one in await gateway.app.store.list(limit=5) if one.files] == ["kept"]
        await nothing_is_held(gateway)


async def test_a_full_line_is_429_with_retry_after(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    limits = {"REPLICATE_CONCURRENT_LIMIT": "1", "IMAGEN_LIMITS__WAITING": "2", "IMAGEN_LIMITS__WAIT": "30"}
    async with running_gateway(tmp_path, replicate_emulator, **limits) as gateway:
        answers = await asyncio.gather(*(gateway.generate(prompt=f"fox {n}") for n in range(8)))
        refused = [one for one in answers if one.status == 429]
        assert refused
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert {one.json()["code"] for one in refused} == {"queue_full"}
        assert {one.status for one in answers} == {200, 429}


async def test_low_credit_is_shown_and_kept_to(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__WAIT="2") as gateway:
        replicate_emulator.set_mode(low_credit=True)
        answers = await asyncio.gather(*(gateway.generate(prompt=f"fox {n}") for n in range(4)))
        assert sorted(one.status for one in answers) == [200, 429, 429, 429]
        health = (await gateway.request("GET", "/health")).json()
        low = health["account"]["creates"]["low_credit"]
        assert (low["per_minute"], low["burst"]) == (6, 1)
        assert replicate_emulator.purchases == 1


async def test_the_command_line_and_the_gateway_share_the_limits(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="1") as gateway:
        environ = {
            "HOME": str(tmp_path),
            "IMAGEN_DATA_DIR": str(tmp_path / "data"),
            "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
            "REPLICATE_API_TOKEN": TOKEN,
            "REPLICATE_CONCURRENT_LIMIT": "1",
        }
        async with build(load_settings(environ=environ, cwd=tmp_path), environ=environ) as other:
            account = other.backends.get("flux-schnell-replicate").account
            held = Need(lease="elsewhere", holder="cli", lasts_seconds=60, account=account)
            await other.line.enter(held, wait_seconds=1)
            waiting = asyncio.ensure_future(gateway.generate())
            await asyncio.sleep(0.5)
            assert replicate_emulator.purchases == 0
            await other.limits.give_back("elsewhere")
            assert (await waiting).status == 200
