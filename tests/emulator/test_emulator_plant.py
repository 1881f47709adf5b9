"""Planting: things with chosen ids, for tests of clients."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Caller
    from imagen.emulator import Emulator
    from imagen.emulator.thread import EmulatorThread


TOKEN = "r8_emulated_test_token"
MODEL = {"name": "model_owner/model_name", "versions": ["version_id", "version"]}


@pytest.mark.anyio
async def test_everything_is_planted_in_one_call(call: Caller, emulator: Emulator):
    body = {
        "token": TOKEN,
        "owners": ["alice"],
        "hardware": {"hardware": "Planted"},
        "models": [MODEL, {"name": "model", "versions": ["version"]}],
        "deployments": [{"name": "deployment_owner/deployment_name", "model": "model_owner/model_name"}],
        "collections": [{"slug": "collection_slug"}],
        "files": [{"id": "file_id", "content": base64.b64encode(b"fox").decode()}],
        "predictions": [{"id": "prediction_id", "model": "model_owner/model_name"}],
        "trainings": [
            {"id": "training_id", "model": "model_owner/model_name", "destination": "model_owner/model_name"}
        ],
    }
    planted = await call("POST", "/_emulator/plant", body, token=None)
    assert planted.status == 200, planted.raw
    assert planted.json["planted"]["models"] == 2
    for path in (
        "models/model_owner/model_name",
        "models/model_owner/model_name/versions/version_id",
        "deployments/deployment_owner/deployment_name",
        "collections/collection_slug",
        "files/file_id",
        "predictions/prediction_id",
        "trainings/training_id",
    ):
        assert (await call("GET", f"/v1/{path}")).status == 200, path
    download = emulator.download_url("file_id")
    assert (await call("GET", download, token=None)).raw == b"fox"
    run = await call("POST", "/v1/models/model_owner/model_name/predictions", {"input": {"anything": 1}})
    assert run.status == 201
    deployment = {
        "name": "name",
        "model": "model",
        "version": "version",
        "hardware": "hardware",
        "min_instances": 0,
        "max_instances": 0,
    }
    assert (await call("POST", "/v1/deployments", deployment)).status == 200
    training = {"destination": "model", "input": {}}
    begun = await call("POST", "/v1/models/model/versions/version/trainings", training)
    assert begun.status == 404, "a name without an owner is in no path"
    path = "/v1/models/model_owner/model_name/versions/version_id/trainings"
    assert (await call("POST", path, training)).status == 201
    made = {"owner": "alice", "name": "foxes", "visibility": "public", "hardware": "cpu"}
    assert (await call("POST", "/v1/models", made)).status == 201
    assert emulator.purchases == 1


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["predictions", "trainings"])
@pytest.mark.parametrize("status", ["starting", "processing", "succeeded", "failed", "canceled", "aborted"])
async def test_a_run_is_planted_in_a_status_and_stays_there(
    call: Caller, emulator: Emulator, kind: str, status: str
):
    run = {
        "id": "one",
        "model": "model_owner/model_name",
        "status": status,
        "error": "it broke",
        "logs": "hm",
    }
    if kind == "trainings":
        run["destination"] = "model_owner/model_name"
    emulator.plant(token=TOKEN, models=[MODEL], **{kind: [run]})
    for seconds in (0, 600):
        emulator.clock.advance(seconds)
        found = (await call("GET", f"/v1/{kind}/one")).json
        assert found["status"] == status
        assert found["error"] == ("it broke" if status == "failed" else None)
    assert found["logs"] == ("hm" if status in {"processing", "succeeded", "failed"} else "")
    after = (await call("POST", f"/v1/{kind}/one/cancel")).json["status"]
    assert after == ("canceled" if status in {"starting", "processing"} else status)
    listed = (await call("GET", f"/v1/{kind}")).json["results"]
    assert [one["id"] for one in listed] == ["one"]
    assert (await call("GET", f"/v1/{kind}/one", token="r8_other")).status == 404


@pytest.mark.anyio
@pytest.mark.parametrize("output", ["https://example.com/a.png", ["a", "b"], {"text": "x"}, 5])
async def test_a_planted_output_is_given_as_it_is(call: Caller, emulator: Emulator, output: Any):
    prediction = {"id": "one", "model": "model_owner/model_name", "output": output}
    emulator.plant(token=TOKEN, models=[MODEL], predictions=[prediction])
    assert (await call("GET", "/v1/predictions/one")).json["output"] == output


@pytest.mark.anyio
async def test_a_planted_prediction_without_an_output_has_its_models_picture(
    call: Caller, emulator: Emulator
):
    prediction = {"id": "one", "model": "black-forest-labs/flux-schnell", "input": {"prompt": "a fox"}}
    emulator.plant(token=TOKEN, predictions=[prediction])
    (url,) = (await call("GET", "/v1/predictions/one")).json["output"]
    assert (await call("GET", url, token=None)).kind == "image/webp"


@pytest.mark.anyio
async def test_planting_again_replaces_and_reset_forgets(call: Caller, emulator: Emulator):
    for status in ("starting", "failed"):
        prediction = {"id": "one", "model": "model_owner/model_name", "status": status}
        emulator.plant(token=TOKEN, models=[MODEL], predictions=[prediction])
    assert len((await call("GET", "/v1/predictions")).json["results"]) == 1
    assert (await call("GET", "/v1/predictions/one")).json["status"] == "failed"
    emulator.reset()
    assert (await call("GET", "/v1/predictions/one")).status == 404
    assert (await call("GET", "/v1/models/model_owner/model_name")).status == 404
    assert (await call("POST", "/v1/models", {"owner": "model_owner", "name": "x", "visibility": "public", "hardware": "cpu"})).status == 403  # fmt: skip


@pytest.mark.anyio
async def test_what_a_planted_model_takes_is_checked(call: Caller, emulator: Emulator):
    takes = {
        "parameters": {"text": {"type": "string"}},
        "required": ["text"],
        "output": "string",
        "extra_inputs": False,
    }
    emulator.plant(models=[{**MODEL, "takes": takes}])
    refused = await call.create(model="model_owner/model_name")
    assert refused.status == 422
    done = await call("POST", "/v1/predictions", {"version": "version_id", "input": {"text": "Bob"}})
    emulator.clock.advance(60)
    assert (await call.get(done.json))["output"] == "hello Bob"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"predictions": [{"id": "one", "model": "black-forest-labs/flux-schnell"}]}, "token"),
        ({"token": TOKEN, "predictions": [{"id": "one", "model": "nobody/nothing"}]}, "nobody/nothing"),
        ({"token": TOKEN, "predictions": [{"id": "one", "model": "a/b", "version": "x"}]}, "a/b:x"),
        ({"token": TOKEN, "predictions": [{"id": "one", "model": "a/b", "status": "lost"}]}, "lost"),
        ({"token": TOKEN, "files": [{"id": "one", "content": "?"}]}, "base64"),
        ({"token": TOKEN, "trainings": [{"id": "t", "model": "replicate/hello-world", "destination": "a/b"}]}, "a/b"),
        ({"deployments": [{"name": "a/b", "model": "nobody/nothing"}]}, "nobody/nothing"),
        ({"models": [{"name": "a/b", "takes": {"colour": 1}}]}, "colour"),
        ({"modles": []}, "modles"),
    ],
)  # fmt: skip
async def test_what_cannot_be_planted_is_told(call: Caller, body: Any, word: str):
    refused = await call("POST", "/_emulator/plant", body, token=None)
    assert refused.status == 422
    assert word in refused.json["detail"]


def test_the_fixture_plants_too(replicate_emulator: EmulatorThread):
    replicate_emulator.plant(
        token="r8_any", predictions=[{"id": "one", "model": "black-forest-labs/flux-schnell"}]
    )
    assert replicate_emulator.state()["by_status"] == {"succeeded": 1}
    with pytest.raises(ValueError, match="token"):
        replicate_emulator.plant(files=[{"id": "f"}])
