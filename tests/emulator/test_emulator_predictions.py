"""Creating, following, holding, canceling: what a prediction does as time passes."""

from __future__ import annotations

import asyncio
import re
import string
from typing import TYPE_CHECKING

import pytest

from imagen.emulator import Emulator, Model
from imagen.emulator.parameters import prompt

if TYPE_CHECKING:
    from conftest import Caller


pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"
SDXL = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"


async def test_a_create_answers_201_starting_at_once(call: Caller):
    reply = await call.create(seed=7)
    assert reply.status == 201
    assert reply.kind == "application/json"
    body = reply.json
    assert re.fullmatch(r"[a-z2-7]{26}", body["id"])
    assert body["status"] == "starting"
    assert body["output"] is None
    assert body["version"] == "hidden"
    assert body["input"] == {"prompt": "a red fox", "seed": 7}
    assert reply.headers["location"] == body["urls"]["get"]
    assert "preference-applied" not in reply.headers


async def test_the_clock_takes_it_from_starting_to_succeeded(call: Caller, emulator: Emulator):
    created = (await call.create(num_outputs=2, seed=7)).json
    emulator.clock.advance(15)
    running = await call.get(created)
    assert running["status"] == "processing"
    assert running["output"] is None
    assert "Using seed: 7" in running["logs"]
    assert " 50%|█████     | 2/4 [00:15<00:15, 0.13it/s]" in running["logs"]
    assert "100%" not in running["logs"]
    emulator.clock.advance(15)
    done = await call.get(created)
    assert done["status"] == "succeeded"
    assert len(done["output"]) == 2
    assert all(url.startswith(emulator.delivery_url) for url in done["output"])
    assert done["metrics"] == {"predict_time": 30.0, "total_time": 30.0, "image_count": 2}
    assert "100%|██████████| 4/4" in done["logs"]
    assert done["started_at"] <= done["completed_at"]


async def test_models_with_one_file_answer_a_string(call: Caller):
    done = await call.finished(model="black-forest-labs/flux-1.1-pro")
    assert isinstance(done["output"], str)


async def test_queue_seconds_keep_it_starting(call: Caller, emulator: Emulator):
    emulator.add_fault("slow", queue_seconds=100, run_seconds=10)
    created = (await call.create()).json
    emulator.clock.advance(50)
    assert (await call.get(created))["status"] == "starting"
    emulator.clock.advance(55)
    assert (await call.get(created))["status"] == "processing"
    emulator.clock.advance(5)
    done = await call.get(created)
    assert done["metrics"]["predict_time"] == pytest.approx(10)
    assert done["metrics"]["total_time"] == pytest.approx(110)


@pytest.mark.parametrize("preference", ["wait", "wait=60", "wait=99"])
async def test_a_held_create_returns_when_it_is_done(call: Caller, emulator: Emulator, preference: str):
    held = asyncio.create_task(call.create(headers={"Prefer": preference}))
    await _bought(emulator)
    emulator.clock.advance(31)
    reply = await held
    assert reply.status == 201
    assert reply.json["status"] == "succeeded"
    assert reply.json["output"]
    assert reply.headers["preference-applied"] == "wait=60"


async def test_a_hold_that_runs_out_answers_202_and_the_prediction_goes_on(call: Caller, emulator: Emulator):
    held = asyncio.create_task(call.create(headers={"Prefer": "wait=5"}))
    await _bought(emulator)
    emulator.clock.advance(5)
    reply = await held
    assert reply.status == 202
    assert reply.json["status"] == "processing"
    assert reply.headers["preference-applied"] == "wait=5"
    emulator.clock.advance(30)
    assert (await call.get(reply.json))["status"] == "succeeded"


async def test_a_cancel_ends_a_hold(call: Caller, emulator: Emulator):
    held = asyncio.create_task(call.create(headers={"Prefer": "wait"}))
    prediction_id = await _bought(emulator)
    canceled = await call("POST", f"/v1/predictions/{prediction_id}/cancel")
    assert canceled.status == 200
    assert canceled.json["status"] == "canceled"
    assert (await held).json["status"] == "canceled"


@pytest.mark.parametrize("value", ["wait=0", "wait=100", "wait=x", "wait=-1", "wait 5"])
async def test_a_malformed_wait_is_refused_and_buys_nothing(call: Caller, emulator: Emulator, value: str):
    assert (await call.create(headers={"Prefer": value})).status == 422
    assert emulator.purchases == 0


async def test_other_preferences_are_ignored(call: Caller):
    reply = await call.create(headers={"Prefer": "respond-async"})
    assert (reply.status, reply.json["status"]) == (201, "starting")


async def test_cancel_keeps_what_ended_before(call: Caller):
    done = await call.finished()
    again = await call("POST", done["urls"]["cancel"])
    assert again.status == 200
    assert again.json["status"] == "succeeded"


async def test_a_canceled_prediction_stays_canceled_and_has_no_output(call: Caller, emulator: Emulator):
    created = (await call.create()).json
    emulator.clock.advance(10)
    await call("POST", created["urls"]["cancel"])
    emulator.clock.advance(100)
    body = await call.get(created)
    assert body["status"] == "canceled"
    assert body["output"] is None
    assert body["metrics"]["predict_time"] == pytest.approx(10, abs=1)


@pytest.mark.parametrize(
    ("value", "seconds"), [("30", 30), ("30s", 30), ("5m", 300), ("2h", 7200), ("1h30m45s", 5445)]
)
async def test_deadlines_are_read_in_every_format(
    call: Caller, emulator: Emulator, value: str, seconds: float
):
    emulator.add_fault("never_starts")
    created = (await call.create(headers={"Cancel-After": value})).json
    assert "deadline" in created
    emulator.clock.advance(seconds - 2)
    assert (await call.get(created))["status"] == "starting"
    emulator.clock.advance(2)
    body = await call.get(created)
    assert body["status"] == "aborted"
    assert "started_at" not in body
    assert "predict_time" not in body["metrics"]


async def test_a_deadline_while_running_cancels(call: Caller, emulator: Emulator):
    created = (await call.create(headers={"Cancel-After": "20s"})).json
    emulator.clock.advance(21)
    body = await call.get(created)
    assert body["status"] == "canceled"
    assert body["metrics"]["total_time"] == pytest.approx(20)


async def test_a_deadline_after_the_end_changes_nothing(call: Caller, emulator: Emulator):
    created = (await call.create(headers={"Cancel-After": "2m"})).json
    emulator.clock.advance(300)
    assert (await call.get(created))["status"] == "succeeded"


@pytest.mark.parametrize("value", ["4", "0s", "25h", "soon", "", "-5", "5d", "1s1h"])
async def test_other_deadlines_are_refused(call: Caller, emulator: Emulator, value: str):
    assert (await call.create(headers={"Cancel-After": value})).status == 422
    assert emulator.purchases == 0


async def test_everything_is_removed_after_an_hour(call: Caller, emulator: Emulator):
    done = await call.finished()
    assert (await call("GET", done["output"][0])).status == 200
    emulator.clock.advance(3601)
    body = await call.get(done)
    assert body["data_removed"] is True
    assert (body["input"], body["output"], body["logs"]) == ({}, None, "")
    assert body["status"] == "succeeded"
    assert (await call("GET", done["output"][0])).status == 404


@pytest.mark.parametrize("version", [SDXL, f"stability-ai/sdxl:{SDXL}"])
async def test_community_models_run_by_version(call: Caller, version: str):
    reply = await call.create(model=version)
    assert reply.status == 201
    assert reply.json["version"] == SDXL
    assert reply.json["model"] == "stability-ai/sdxl"


@pytest.mark.parametrize("version", ["stability-ai/sdxl", "f" * 64, f"{SCHNELL}:{SDXL}", "nonsense", ""])
async def test_an_unknown_version_is_the_recorded_422(call: Caller, version: str):
    reply = await call.create(model=version)
    assert reply.status == 422
    assert reply.json == {
        "title": "Invalid version or not permitted",
        "detail": "The specified version does not exist (or perhaps you don't have permission to use it?)",
        "status": 422,
    }


async def test_an_unknown_name_is_not_found(call: Caller):
    assert (await call.create(model="nobody/nothing")).status == 404
    unknown = await call("POST", "/v1/models/nobody/nothing/predictions", {"input": {"prompt": "x"}})
    assert unknown.status == 404


async def test_official_models_have_their_own_path_and_community_models_do_not(call: Caller):
    body = {"input": {"prompt": "x"}}
    assert (await call("POST", f"/v1/models/{SCHNELL}/predictions", body)).status == 201
    assert (await call("POST", "/v1/models/stability-ai/sdxl/predictions", body)).status == 404


async def test_the_deployment_runs_its_model(call: Caller):
    reply = await call(
        "POST", "/v1/deployments/emulated/flux-deployment/predictions", {"input": {"prompt": "x"}}
    )
    assert reply.status == 201
    assert reply.json["deployment"] == "emulated/flux-deployment"
    assert reply.json["model"] == "black-forest-labs/flux-dev"
    missing = await call("POST", "/v1/deployments/emulated/none/predictions", {"input": {"prompt": "x"}})
    assert missing.status == 404


async def test_many_at_once_are_counted_and_each_has_its_own_id(call: Caller, emulator: Emulator):
    replies = await asyncio.gather(*(call.create(f"fox {n}") for n in range(40)))
    assert len({reply.json["id"] for reply in replies}) == 40
    assert emulator.purchases == 40
    assert emulator.state()["max_running"] == 40
    emulator.clock.advance(60)
    assert emulator.state()["running"] == 0
    assert emulator.state()["by_status"] == {"succeeded": 40}


async def test_configured_concurrency_keeps_the_others_starting(call: Caller, emulator: Emulator):
    emulator.set_mode(concurrency=2)
    created = [(await call.create()).json for _ in range(5)]
    emulator.clock.advance(10)
    assert [(await call.get(one))["status"] for one in created] == ["processing"] * 2 + ["starting"] * 3
    emulator.clock.advance(30)
    assert [(await call.get(one))["status"] for one in created] == [
        "succeeded",
        "succeeded",
        "processing",
        "processing",
        "starting",
    ]


async def test_a_nul_and_every_other_character_of_a_prompt_come_back(call: Caller):
    prompt = 'nul \x00, quote ", emoji 🦊, right-to-left \u202e' + string.printable
    reply = await call.create(prompt)
    assert reply.json["input"]["prompt"] == prompt


async def test_a_picture_given_as_data_uri_is_accepted_untouched(call: Caller):
    uri = "data:image/png;base64," + "A" * 300_000
    reply = await call.create(model="black-forest-labs/flux-kontext-pro", input_image=uri)
    assert reply.status == 201
    assert reply.json["input"]["input_image"] == uri


SECRETS = {
    "api_key": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
    "hf_token": {"type": "string", "x-cog-secret": True},
    "password": {"type": "string", "format": "password", "nullable": True},
    "no_secret": {"type": "string", "x-cog-secret": False},
}


async def test_secret_inputs_are_never_answered_and_the_run_has_them(call: Caller, emulator: Emulator):
    emulator.add_model(Model(name="acme/keyed", parameters={"prompt": prompt(), **SECRETS}))
    given = {"api_key": "sk-very-long-indeed", "hf_token": "t", "password": "hunter2", "no_secret": "plain"}
    shown = {"prompt": "a red fox", **dict.fromkeys(given, "*" * 10), "no_secret": "plain"}
    created = await call.create(model="acme/keyed", **given)
    emulator.add_fault("hold_returns_starting")
    held = await call.create(model="acme/keyed", **given, headers={"Prefer": "wait"})
    url = created.json["urls"]["get"]
    emulator.clock.advance(10)
    listed = await call("GET", "/v1/predictions")
    canceled = await call("POST", held.json["urls"]["cancel"])
    emulator.clock.advance(60)
    done = await call("GET", url)
    assert (done.json["status"], canceled.json["status"]) == ("succeeded", "canceled")
    for reply in (created, held, canceled, done):
        assert reply.json["input"] == shown
    assert [one["input"] for one in listed.json["results"]] == [shown] * 2
    for reply in (created, held, listed, canceled, done):
        assert not {value for value in ("sk-very", "hunter2") if value in reply.raw.decode()}
    assert emulator.world.state.predictions[created.json["id"]].input == {"prompt": "a red fox", **given}
    (sent, _) = emulator.journal.entries(operation="predictions.create")
    assert sent.body["input"] == {"prompt": "a red fox", **given}


async def test_a_secret_that_was_not_given_is_not_masked(call: Caller, emulator: Emulator):
    emulator.add_model(Model(name="acme/keyed", parameters={"prompt": prompt(), **SECRETS}))
    body = (await call.create(model="acme/keyed", password=None)).json
    assert body["input"] == {"prompt": "a red fox", "password": None}


async def test_the_schema_says_which_inputs_are_secret(call: Caller, emulator: Emulator):
    emulator.add_model(Model(name="acme/keyed", parameters={"prompt": prompt(), **SECRETS}))
    version = (await call("GET", "/v1/models/acme/keyed")).json["latest_version"]
    properties = version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert properties["api_key"].items() >= SECRETS["api_key"].items()


async def _bought(emulator: Emulator) -> str:
    """Wait until a create call that is still held has bought its prediction."""
    while not emulator.world.state.predictions:  # noqa: ASYNC110 - the emulator tells nobody
        await asyncio.sleep(0)
    return next(iter(emulator.world.state.predictions))
