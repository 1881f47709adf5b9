"""Trainings: planned like predictions, and what they leave behind."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Caller, Reply
    from imagen.emulator import Emulator


pytestmark = pytest.mark.anyio

SDXL = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"
PATH = f"/v1/models/stability-ai/sdxl/versions/{SDXL}/trainings"
OTHER = "r8_somebody_else"


@pytest.fixture
async def destination(call: Caller) -> str:
    owner = (await call("GET", "/v1/account")).json["username"]
    body = {"owner": owner, "name": "tuned", "visibility": "private", "hardware": "cpu"}
    assert (await call("POST", "/v1/models", body)).status == 201
    return f"{owner}/tuned"


async def train(call: Caller, destination: str, **more: Any) -> Reply:
    body = {"destination": destination, "input": {"input_images": "https://example.com/foxes.zip"}, **more}
    return await call("POST", PATH, body)


async def test_a_training_gives_its_destination_a_version_that_runs(
    call: Caller, emulator: Emulator, destination: str
):
    begun = await train(call, destination)
    assert begun.status == 201
    assert (begun.json["status"], begun.json["version"]) == ("starting", SDXL)
    assert "output" not in begun.json
    emulator.clock.advance(10)
    assert (await call.get(begun.json))["status"] == "processing"
    assert (await call("GET", f"/v1/models/{destination}")).json["latest_version"] is None
    emulator.clock.advance(21)
    done = await call.get(begun.json)
    assert (done["status"], done["metrics"]["predict_time"]) == ("succeeded", 30)
    name, _, version = done["output"]["version"].partition(":")
    assert name == destination
    assert (await call("GET", f"/v1/models/{destination}")).json["latest_version"]["id"] == version
    weights = await call("GET", done["output"]["weights"], token=None)
    with tarfile.open(fileobj=io.BytesIO(weights.raw)) as archive:
        assert archive.getnames() == ["README"]
    picture = await call.finished(model=done["output"]["version"])
    assert (picture["model"], picture["version"]) == (destination, version)
    assert (await call("GET", picture["output"][0])).status == 200
    assert emulator.purchases == 1


async def test_a_training_is_canceled_and_leaves_nothing(call: Caller, emulator: Emulator, destination: str):
    begun = (await train(call, destination)).json
    emulator.clock.advance(10)
    canceled = (await call("POST", begun["urls"]["cancel"])).json
    assert canceled["status"] == "canceled"
    emulator.clock.advance(60)
    assert (await call.get(begun))["status"] == "canceled"
    assert (await call("GET", f"/v1/models/{destination}/versions")).json["results"] == []


async def test_trainings_are_listed_for_their_owner_newest_first(
    call: Caller, emulator: Emulator, destination: str
):
    emulator.set_mode(others_per_minute=0)
    ids = [(await train(call, destination)).json["id"] for _ in range(101)]
    first = (await call("GET", "/v1/trainings")).json
    assert [one["id"] for one in first["results"]] == ids[:0:-1]
    last = (await call("GET", first["next"])).json
    assert [one["id"] for one in last["results"]] == ids[:1]
    assert (await call("GET", "/v1/trainings", token=OTHER)).json["results"] == []
    assert (await call("GET", f"/v1/trainings/{ids[0]}", token=OTHER)).status == 404
    assert (await call("GET", f"/v1/predictions/{ids[0]}")).status == 404


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"destination": "nobody/nothing", "input": {}}, 404, "training destination"),
        ({"destination": "black-forest-labs/flux-schnell", "input": {}}, 404, "training destination"),
        ({"input": {}}, 422, "destination"),
        ({"destination": "a/b"}, 422, "input"),
        ({"destination": "a/b", "input": {}, "webhook": "http://x"}, 422, "https"),
        ({"destination": "a/b", "input": {}, "webhook_events_filter": ["start"]}, 422, "webhook"),
        ({"destination": "a/b", "input": {}, "colour": "red"}, 422, "colour"),
    ],
)
async def test_a_training_that_cannot_begin(call: Caller, body: Any, status: Any, word: str):
    refused = await call("POST", PATH, body)
    assert refused.status == status
    assert word in refused.json["detail"]
    assert (await call("GET", "/v1/trainings")).json["results"] == []


async def test_a_fault_of_trainings_strikes_trainings_alone(
    call: Caller, emulator: Emulator, destination: str
):
    emulator.add_fault("fail", operation="trainings.create", error="CUDA out of memory")
    picture = await call.finished()
    begun = (await train(call, destination)).json
    emulator.clock.advance(60)
    failed = await call.get(begun)
    assert (picture["status"], failed["status"]) == ("succeeded", "failed")
    assert failed["error"] == "CUDA out of memory"
    assert (await call("GET", f"/v1/models/{destination}/versions")).json["results"] == []
