"""One prediction, asked for now and looked at later, over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from batch_calls import FLUX, ended, items_of, make_batch
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.backends.replicate.backend import ReplicateBackend
from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]


async def ask(gateway: RunningGateway, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    wish = {"model_name": FLUX, "prompt": "a fox"} | fields
    return await gateway.request("POST", "/predictions", json=wish, headers=headers or ADMIN)


async def standing(
    gateway: RunningGateway, prediction_id: str, *wanted: str, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Look at it until it stands so."""
    async with asyncio.timeout(20):
        while True:
            answer = await gateway.request("GET", f"/predictions/{prediction_id}", headers=headers or ADMIN)
            assert answer.status == 200, answer.body
            found: dict[str, Any] = answer.json()
            if found["status"] in wanted:
                return found
            await asyncio.sleep(0.03)


async def test_a_prediction_is_accepted_at_once_and_its_picture_kept(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await ask(gateway, output_filename="fox.png")
        accepted = answer.json()
        assert answer.status == 202
        assert answer.headers["location"] == accepted["urls"]["get"]
        assert accepted["urls"]["get"] == f"{gateway.url}/predictions/{accepted['id']}"
        assert (accepted["status"], accepted["files"], accepted["charged"]) == ("queued", [], None)
        assert (accepted["cost_usd"], answer.headers["x-imagen-cost-usd"]) == (None, "unknown")
        over = await standing(gateway, accepted["id"], "succeeded")
        assert (over["id"], over["model"], over["cost_usd"], over["charged"]) == (
            accepted["id"], "black-forest-labs/flux-schnell", 0.003, True,
        )  # fmt: skip
        assert over["seed"] > 0
        assert over["replicate_id"]
        (file,) = over["files"]
        assert file["filename"] == "fox.png"
        assert (await gateway.session.get(file["stored_url"])).status == 200
        written = await gateway.app.store.get(accepted["id"])
        assert (written.upstream_id, written.caller) == (over["replicate_id"], "admin")
        batches = await gateway.request("GET", "/batches", headers=ADMIN)
        assert batches.json()["batches"] == []
    assert replicate_emulator.purchases == 1


async def test_a_prediction_that_failed_says_why_and_what_it_cost(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        accepted = (await ask(gateway, prompt="a fox [fault:fail preset=nsfw]")).json()
        over = await standing(gateway, accepted["id"], "failed")
        assert (over["code"], over["charged"], over["cost_usd"], over["files"]) == (
            "prediction_failed", False, 0, [],
        )  # fmt: skip
        assert "NSFW" in over["error"]
        assert over["hint"]


async def test_a_prediction_that_runs_can_be_canceled_and_one_that_ended_stays(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        done = (await ask(gateway)).json()
        await standing(gateway, done["id"], "succeeded")
        replicate_emulator.add_fault("slow", run_seconds=60.0)
        slow = (await ask(gateway)).json()
        await standing(gateway, slow["id"], "starting", "processing")
        for one in (slow, done):
            answer = await gateway.request("POST", f"/predictions/{one['id']}/cancel", headers=ADMIN)
            assert answer.status == 200, answer.body
        assert (await standing(gateway, slow["id"], "canceled"))["code"] == "prediction_canceled"
        assert (await standing(gateway, done["id"], "succeeded"))["files"]
    assert len(replicate_emulator.journal.entries(operation="predictions.cancel")) == 1


async def test_what_was_accepted_is_made_by_the_next_process(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=1.5)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        accepted = (await ask(gateway)).json()
        await until(lambda: replicate_emulator.purchases == 1)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await standing(gateway, accepted["id"], "succeeded"))["files"]
    assert replicate_emulator.purchases == 1


async def test_what_was_not_sent_yet_when_a_process_stops_is_sent_by_the_next_without_a_search(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, asked = ReplicateBackend.submit, asyncio.Event()

    async def late(backend: ReplicateBackend, *given: Any, **named: Any) -> Any:
        asked.set()
        await asyncio.sleep(20)  # as while it connects
        return await submit(backend, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(ReplicateBackend, "submit", late)
        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
            accepted = (await ask(gateway)).json()
            await asyncio.wait_for(asked.wait(), 10)
    assert replicate_emulator.purchases == 0
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await gateway.app.store.get(accepted["id"])).upstream_id is None
        assert (await standing(gateway, accepted["id"], "succeeded"))["files"]
    assert replicate_emulator.purchases == 1
    assert replicate_emulator.journal.entries(operation="predictions.list") == ()


async def test_what_the_service_had_refused_for_now_when_a_process_stopped_is_made_by_the_next(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("rate_limit", retry_after=6)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        accepted = (await ask(gateway)).json()
        await until(lambda: replicate_emulator.journal.entries(status=429))
    replicate_emulator.clear_faults()
    assert replicate_emulator.purchases == 0
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        over = await standing(gateway, accepted["id"], "succeeded", "failed", "canceled")
        assert (over["status"], over["error"], over["cost_usd"]) == ("succeeded", None, 0.003)
    assert replicate_emulator.purchases == 1


async def test_a_task_of_a_batch_is_a_prediction_too(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        batch = await make_batch(gateway, ["a fox", "a hare"])
        await ended(gateway, batch["id"])
        fox, hare = await items_of(gateway, batch["id"])
        (prediction_id,) = hare["prediction_ids"]
        found = await standing(gateway, prediction_id, "succeeded")
        assert (found["prompt"], found["batch_id"], found["seed"]) == ("a hare", batch["id"], hare["seed"])
        assert found["id"] != fox["prediction_ids"][0]


async def test_a_prediction_is_seen_by_its_maker_and_the_admin_alone(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = [await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN) for name in "ab"]
        mine, theirs = ({"X-API-Key": one.json()["key"]} for one in made)
        accepted = (await ask(gateway, headers=mine)).json()
        for headers in (theirs, {"X-Replicate-Api-Token": "r8_x"}, {"Accept": "*/*"}):
            path = f"/predictions/{accepted['id']}"
            hidden = await gateway.request("GET", path, headers=headers)
            assert hidden.status == 404
            assert "no prediction that was taken on here" in hidden.json()["error"]
            assert "batch" not in hidden.json()["error"]
            assert (await gateway.request("POST", f"{path}/cancel", headers=headers)).status == 404
        for headers in (mine, ADMIN):
            await standing(gateway, accepted["id"], "succeeded", headers=headers)
        plain = await gateway.generate(headers=mine)
        found = await gateway.request("GET", f"/predictions/{plain.json()['prediction_id']}", headers=mine)
        assert (found.status, found.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": ""}, "prompt"),
        ({"guidance_of_nobody": 1}, "guidance_of_nobody"),
        ({"webhook": "https://10.0.0.1/x"}, "webhook"),
        ({"webhook": "https://hooks.example/x", "webhook_events_filter": ["item"]}, "start, completed"),
        ({"max_cost": 0.001}, "0.003"),
    ],
)
async def test_what_cannot_be_made_is_refused_at_once(
    tmp_path: Path, replicate_emulator: EmulatorThread, fields: dict[str, Any], told: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await ask(gateway, **fields)
        assert answer.status in {400, 402}
        assert told in answer.body.decode()
    assert replicate_emulator.purchases == 0


async def test_a_webhook_is_told_back_with_the_events_that_are_sent(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        hook = "https://hooks.example/x"
        every = await ask(gateway, webhook=hook, webhook_events_filter=["start", "completed", "start"])
        assert (every.json()["webhook"], every.json()["webhook_events_filter"]) == (
            hook, ["start", "completed"],
        )  # fmt: skip
        last = await ask(gateway, webhook=hook)
        assert last.json()["webhook_events_filter"] == ["completed"]
