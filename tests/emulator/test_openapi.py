"""Every kind of answer is held against Replicate's own published OpenAPI document, where that is here."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

import replicate_document
from imagen.emulator.api import ROUTES
from replicate_document import complaints, document

if TYPE_CHECKING:
    from conftest import Caller
    from imagen.emulator import Emulator


SCHNELL = "black-forest-labs/flux-schnell"
TOKEN = "r8_emulated_test_token"
SDXL = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"


pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        replicate_document.find_document() is None,
        reason=replicate_document.MISSING,
    ),
]


def judge(reply: Any, method: str, path: str) -> None:
    """Hold an answer against what the document says of this call and this status."""
    assert str(reply.status) in document()["paths"][path][method]["responses"], (
        reply.status,
        reply.raw[:300],
    )
    assert complaints(method=method, template=path, status=reply.status, kind=reply.kind, raw=reply.raw) == []


def test_the_judge_finds_fault():
    bad = type("Reply", (), {"status": 200, "kind": "application/json", "raw": b'{"id": 5}'})
    with pytest.raises(AssertionError, match="is not of type 'string'"):
        judge(bad, "get", "/predictions/{prediction_id}")


@pytest.mark.parametrize(
    ("version", "inputs"),
    [
        (SCHNELL, {}),
        (SCHNELL, {"num_outputs": 4}),
        (SDXL, {}),
        ("black-forest-labs/flux-1.1-pro", {}),
        ("recraft-ai/recraft-v3-svg", {}),
        ("meta/meta-llama-3-8b-instruct", {}),
    ],
)
async def test_a_prediction_in_every_stage_of_its_life(
    call: Caller, emulator: Emulator, version: str, inputs: dict[str, Any]
):
    created = await call.create(model=version, **inputs)
    judge(created, "post", "/predictions")
    url = created.json["urls"]["get"]
    for seconds in (1, 15, 60, 4000):
        emulator.clock.advance(seconds)
        judge(await call("GET", url), "get", "/predictions/{prediction_id}")
    judge(await call("POST", f"{url}/cancel"), "post", "/predictions/{prediction_id}/cancel")


async def test_held_creates_done_and_not_done(call: Caller, emulator: Emulator):
    emulator.add_fault("slow", run_seconds=0, queue_seconds=0)
    done = await call.create(headers={"Prefer": "wait"})
    assert done.status == 201
    judge(done, "post", "/predictions")
    emulator.add_fault("hold_returns_starting")
    early = await call.create(headers={"Prefer": "wait"})
    assert early.status == 202
    judge(early, "post", "/predictions")


@pytest.mark.parametrize(
    "fault", ["fail", "empty_output", "null_output", "data_uri_output", "early_output", "never_starts"]
)
async def test_predictions_that_go_wrong(call: Caller, emulator: Emulator, fault: str):
    emulator.add_fault(fault)
    created = await call.create(headers={"Cancel-After": "1h"})
    judge(created, "post", "/predictions")
    emulator.clock.advance(30.5)
    judge(await call("GET", created.json["urls"]["get"]), "get", "/predictions/{prediction_id}")
    emulator.clock.advance(3600)
    judge(await call("GET", created.json["urls"]["get"]), "get", "/predictions/{prediction_id}")


async def test_canceled_and_aborted(call: Caller, emulator: Emulator):
    created = await call.create()
    canceled = await call("POST", created.json["urls"]["cancel"])
    assert canceled.json["status"] == "canceled"
    judge(canceled, "post", "/predictions/{prediction_id}/cancel")
    emulator.add_fault("never_starts")
    created = await call.create(headers={"Cancel-After": "5"})
    emulator.clock.advance(5)
    aborted = await call("GET", created.json["urls"]["get"])
    assert aborted.json["status"] == "aborted"
    judge(aborted, "get", "/predictions/{prediction_id}")


async def test_the_other_ways_to_create(call: Caller):
    body = {"input": {"prompt": "x"}, "webhook": "https://example.com/x", "webhook_events_filter": ["start"]}
    by_model = await call("POST", f"/v1/models/{SCHNELL}/predictions", body)
    judge(by_model, "post", "/models/{model_owner}/{model_name}/predictions")
    by_deployment = await call("POST", "/v1/deployments/emulated/flux-deployment/predictions", body)
    judge(by_deployment, "post", "/deployments/{deployment_owner}/{deployment_name}/predictions")


async def test_lists(call: Caller, emulator: Emulator):
    judge(await call("GET", "/v1/predictions"), "get", "/predictions")
    for _ in range(101):
        await call.create()
    emulator.clock.advance(60)
    first = await call("GET", "/v1/predictions")
    judge(first, "get", "/predictions")
    judge(await call("GET", first.json["next"]), "get", "/predictions")


async def test_models(call: Caller):
    model, versions = "/models/{model_owner}/{model_name}", "/models/{model_owner}/{model_name}/versions"
    judge(await call("GET", "/v1/models"), "get", "/models")
    for name in (SCHNELL, "stability-ai/sdxl"):
        found = await call("GET", f"/v1/models/{name}")
        judge(found, "get", model)
        judge(await call("GET", f"/v1/models/{name}/versions"), "get", versions)
        version_id = found.json["latest_version"]["id"]
        judge(
            await call("GET", f"/v1/models/{name}/versions/{version_id}"), "get", f"{versions}/{{version_id}}"
        )


async def test_deployments(call: Caller):
    judge(await call("GET", "/v1/deployments"), "get", "/deployments")
    found = await call("GET", "/v1/deployments/emulated/flux-deployment")
    judge(found, "get", "/deployments/{deployment_owner}/{deployment_name}")
    release = found.json["current_release"]
    version = await call("GET", f"/v1/models/{release['model']}/versions/{release['version']}")
    judge(version, "get", "/models/{model_owner}/{model_name}/versions/{version_id}")


async def test_models_of_ones_own(call: Caller, emulator: Emulator):
    owner = (await call("GET", "/v1/account")).json["username"]
    model = "/models/{model_owner}/{model_name}"
    body = {
        "owner": owner,
        "name": "foxes",
        "visibility": "private",
        "hardware": "cpu",
        "description": "Foxes",
    }
    created = await call("POST", "/v1/models", {**body, "github_url": "https://github.com/x/y"})
    judge(created, "post", "/models")
    assert created.status == 201
    mine = f"/v1/models/{owner}/foxes"
    changed = await call("PATCH", mine, {"readme": "# Foxes", "paper_url": "https://arxiv.org/abs/1"})
    judge(changed, "patch", model)
    judge(await call("GET", f"{mine}/readme"), "get", f"{model}/readme")
    judge(await call("GET", f"{mine}/examples"), "get", f"{model}/examples")
    judge(await call("GET", f"{mine}/versions"), "get", f"{model}/versions")
    judge(await call("DELETE", mine), "delete", model)


async def test_examples_and_readme_of_known_models(call: Caller):
    model = "/models/{model_owner}/{model_name}"
    examples = await call("GET", f"/v1/models/{SCHNELL}/examples")
    judge(examples, "get", f"{model}/examples")
    assert len(examples.json["results"]) == 1
    judge(await call("GET", f"/v1/models/{SCHNELL}/readme"), "get", f"{model}/readme")


async def test_collections_hardware_and_searches(call: Caller):
    judge(await call("GET", "/v1/collections"), "get", "/collections")
    found = await call("GET", "/v1/collections/text-to-image")
    judge(found, "get", "/collections/{collection_slug}")
    judge(await call("GET", "/v1/hardware"), "get", "/hardware")
    plain = {"Content-Type": "text/plain"}
    judge(await call("QUERY", "/v1/models", data="flux", headers=plain), "query", "/models")
    judge(await call("GET", "/v1/search?query=flux&limit=2"), "get", "/search")
    judge(await call("GET", "/v1/search"), "get", "/search")


async def test_a_deployment_in_every_stage_of_its_life(call: Caller):
    version = (await call("GET", f"/v1/models/{SCHNELL}")).json["latest_version"]["id"]
    deployment = "/deployments/{deployment_owner}/{deployment_name}"
    body = {"name": "mine", "model": SCHNELL, "version": version, "hardware": "gpu-t4"}
    created = await call("POST", "/v1/deployments", {**body, "min_instances": 0, "max_instances": 2})
    judge(created, "post", "/deployments")
    assert created.status == 200
    mine = f"/v1/deployments/{created.json['owner']}/mine"
    judge(await call("PATCH", mine, {"max_instances": 3}), "patch", deployment)
    judge(
        await call("POST", f"{mine}/predictions", {"input": {"prompt": "x"}}),
        "post",
        f"{deployment}/predictions",
    )
    judge(await call("DELETE", "/v1/deployments/emulated/flux-deployment"), "delete", deployment)


async def test_a_training_in_every_stage_of_its_life(call: Caller, emulator: Emulator):
    owner = (await call("GET", "/v1/account")).json["username"]
    body = {"owner": owner, "name": "tuned", "visibility": "private", "hardware": "cpu"}
    await call("POST", "/v1/models", body)
    base = "/models/{model_owner}/{model_name}/versions/{version_id}"
    training = {"destination": f"{owner}/tuned", "input": {"input_images": "https://example.com/foxes.zip"}}
    path = f"/v1/models/stability-ai/sdxl/versions/{SDXL}/trainings"
    created = await call("POST", path, training)
    judge(created, "post", f"{base}/trainings")
    assert created.status == 201
    own = created.json["urls"]["get"]
    for seconds in (1, 60, 4000):
        emulator.clock.advance(seconds)
        judge(await call("GET", own), "get", "/trainings/{training_id}")
    judge(await call("POST", f"{own}/cancel"), "post", "/trainings/{training_id}/cancel")
    judge(await call("GET", "/v1/trainings"), "get", "/trainings")
    trained = f"/v1/models/{owner}/tuned/versions/{(await call('GET', own)).json['output']['version'].split(':')[1]}"
    judge(await call("GET", trained), "get", base)
    judge(await call("DELETE", trained), "delete", base)


@pytest.mark.parametrize("status", ["starting", "processing", "succeeded", "failed", "canceled", "aborted"])
async def test_what_is_planted_looks_like_everything_else(call: Caller, emulator: Emulator, status: str):
    emulator.plant(
        token=TOKEN,
        models=[{"name": "model_owner/model_name", "versions": ["version_id"]}],
        predictions=[
            {"id": "prediction_id", "model": "model_owner/model_name", "status": status, "output": {"a": 1}}
        ],
        trainings=[
            {
                "id": "training_id",
                "model": "model_owner/model_name",
                "destination": "model_owner/model_name",
                "status": status,
            }
        ],
        files=[{"id": "file_id"}],
    )
    judge(await call("GET", "/v1/predictions/prediction_id"), "get", "/predictions/{prediction_id}")
    judge(await call("GET", "/v1/trainings/training_id"), "get", "/trainings/{training_id}")
    judge(await call("GET", "/v1/files/file_id"), "get", "/files/{file_id}")
    model = "/models/{model_owner}/{model_name}"
    judge(
        await call("GET", "/v1/models/model_owner/model_name/versions/version_id"),
        "get",
        f"{model}/versions/{{version_id}}",
    )


async def test_account_and_secret(call: Caller):
    judge(await call("GET", "/v1/account"), "get", "/account")
    judge(await call("GET", "/v1/webhooks/default/secret"), "get", "/webhooks/default/secret")


async def test_files(call: Caller, emulator: Emulator):
    form = aiohttp.FormData()
    form.add_field("content", io.BytesIO(b"fox"), filename="fox.png", content_type="image/png")
    created = await call("POST", "/v1/files", data=form)
    judge(created, "post", "/files")
    url = created.json["urls"]["get"]
    judge(await call("GET", "/v1/files"), "get", "/files")
    judge(await call("GET", url), "get", "/files/{file_id}")
    download = emulator.download_url(created.json["id"])
    judge(await call("GET", download, token=None), "get", "/files/{file_id}/download")
    judge(await call("GET", f"{url}/download", token=None), "get", "/files/{file_id}/download")
    judge(await call("DELETE", url), "delete", "/files/{file_id}")
    judge(await call("DELETE", url), "delete", "/files/{file_id}")
    judge(await call("GET", url), "get", "/files/{file_id}")
    large = aiohttp.FormData()
    large.add_field("content", io.BytesIO(b"\0" * 105_000_000), filename="fox.png")
    judge(await call("POST", "/v1/files", data=large), "post", "/files")


async def test_every_operation_of_theirs_is_answered_and_no_other():
    theirs = {
        (operation["operationId"], method.upper(), re.sub(r"{\w+}", "{}", path))
        for path, operations in document()["paths"].items()
        for method, operation in operations.items()
    }
    ours = {(operation, method, re.sub(r"{\w+}", "{}", path)) for method, path, operation, _ in ROUTES}
    assert len(theirs) == 37
    assert ours == theirs
