"""Models and their versions, deployments, collections, hardware and the two searches, as clients use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Caller, Reply
    from imagen.emulator import Emulator


pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"
SDXL = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"
OTHER = "r8_somebody_else"


async def owner_of(call: Caller) -> str:
    username: str = (await call("GET", "/v1/account")).json["username"]
    return username


async def make(call: Caller, name: str = "foxes", **changes: Any) -> Reply:
    body = {
        "owner": await owner_of(call),
        "name": name,
        "visibility": "private",
        "hardware": "cpu",
        **changes,
    }
    return await call("POST", "/v1/models", body)


async def test_a_model_is_made_changed_and_deleted(call: Caller):
    made = await make(call, description="Foxes")
    assert made.status == 201
    assert (made.json["visibility"], made.json["latest_version"], made.json["run_count"]) == (
        "private",
        None,
        0,
    )
    path = f"/v1/models/{made.json['owner']}/foxes"
    assert (await call("GET", f"{path}/readme")).status == 404
    changed = await call("PATCH", path, {"description": "Red foxes", "readme": "# Foxes"})
    assert (changed.json["description"], changed.json["visibility"]) == ("Red foxes", "private")
    readme = await call("GET", f"{path}/readme")
    assert (readme.kind, readme.raw) == ("text/plain", b"# Foxes")
    assert (await call("DELETE", path)).status == 204
    assert (await call("GET", path)).status == 404


async def test_a_private_model_is_nobody_elses(call: Caller):
    made = (await make(call)).json
    path = f"/v1/models/{made['owner']}/foxes"
    assert (await call("GET", path)).status == 200
    assert (await call("GET", path, token=OTHER)).status == 404
    assert (await call("DELETE", path, token=OTHER)).status == 404
    listed = (await call("GET", "/v1/models")).json["results"]
    assert [one for one in listed if one["name"] == "foxes"] == []


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"owner": "openai"}, 403, "openai"),
        ({"hardware": "abacus"}, 422, "gpu-t4"),
        ({"visibility": "secret"}, 422, "private"),
        ({"colour": "red"}, 422, "colour"),
        ({"name": "a/b"}, 422, "name"),
    ],
)
async def test_a_model_that_cannot_be_made(call: Caller, changes: dict[str, Any], status: Any, word: str):
    refused = await make(call, **changes)
    assert refused.status == status
    assert word in refused.json["detail"]


async def test_a_name_is_taken_once(call: Caller):
    await make(call)
    assert (await make(call)).status == 422


async def test_what_is_not_ones_own_is_not_changed(call: Caller):
    path = f"/v1/models/{SCHNELL}"
    assert (await call("PATCH", path, {"description": "mine"})).status == 403
    assert (await call("DELETE", path)).status == 403
    version = (await call("GET", path)).json["latest_version"]["id"]
    assert (await call("DELETE", f"{path}/versions/{version}")).status == 403
    assert (await call.create()).status == 201


async def test_a_version_is_deleted_with_its_predictions_and_then_its_model(call: Caller, emulator: Emulator):
    emulator.plant(
        models=[{"name": "zoo/foxes", "versions": ["v1", "v2"], "visibility": "private"}],
        deployments=[{"name": "zoo/run", "model": "zoo/foxes", "version": "v2"}],
    )
    done = await call.finished(model="v1")
    assert (await call("GET", done["output"])).status == 200
    assert (await call("DELETE", "/v1/models/zoo/foxes/versions/v2")).status == 422
    assert (await call("DELETE", "/v1/models/zoo/foxes")).status == 422
    assert (await call("DELETE", "/v1/deployments/zoo/run")).status == 204
    for version in ("v2", "v1"):
        assert (await call("DELETE", f"/v1/models/zoo/foxes/versions/{version}")).status == 202
    assert (await call("GET", done["urls"]["get"])).status == 404
    assert (await call("GET", done["output"])).status == 404
    assert (await call("DELETE", "/v1/models/zoo/foxes")).status == 204


async def test_a_version_that_somebody_else_ran_stays(call: Caller, emulator: Emulator):
    emulator.plant(models=[{"name": "zoo/foxes", "versions": ["v1"], "visibility": "private"}])
    assert (await call.create(model="v1", token=OTHER)).status == 201
    assert (await call("DELETE", "/v1/models/zoo/foxes/versions/v1")).status == 422
    assert (await call("DELETE", "/v1/models/zoo/foxes/versions/v1", token=OTHER)).status == 202


async def test_models_are_listed_in_the_order_asked_for(call: Caller, emulator: Emulator):
    emulator.clock.advance(60)
    await make(call, "first", visibility="public")
    emulator.clock.advance(60)
    await make(call, "second", visibility="public")

    async def names(query: str) -> list[str]:
        return [one["name"] for one in (await call("GET", f"/v1/models{query}")).json["results"]]

    assert (await names(""))[:2] == ["second", "first"]
    assert (await names("?sort_direction=asc"))[-2:] == ["first", "second"]
    assert (await names("?sort_by=model_created_at"))[:2] == ["second", "first"]
    assert (await call("GET", "/v1/models?sort_by=fame")).status == 422


async def test_models_come_in_pages(call: Caller, emulator: Emulator):
    emulator.plant(models=[{"name": f"zoo/fox-{n}"} for n in range(120)])
    first = (await call("GET", "/v1/models?sort_direction=asc")).json
    assert len(first["results"]) == 100
    assert "sort_direction=asc" in first["next"]
    second = (await call("GET", first["next"])).json
    assert second["next"] is None
    assert second["results"][-1]["name"] == "fox-119"
    assert (await call("GET", second["previous"])).json["results"] == first["results"]


async def test_the_example_of_a_model_is_a_prediction_whose_picture_stays(call: Caller, emulator: Emulator):
    (example,) = (await call("GET", f"/v1/models/{SCHNELL}/examples")).json["results"]
    assert (example["status"], example["source"]) == ("succeeded", "web")
    emulator.clock.advance(1e6)
    assert (await call("GET", f"/v1/models/{SCHNELL}/examples")).json["results"] == [example]
    assert (await call("GET", example["output"][0])).status == 200
    assert emulator.purchases == 0
    assert (await call("GET", "/v1/models/nightmareai/real-esrgan/examples")).json["results"] == []


async def test_a_deployment_is_made_changed_used_and_deleted(call: Caller, emulator: Emulator):
    owner = await owner_of(call)
    body = {
        "name": "run",
        "model": "stability-ai/sdxl",
        "version": SDXL,
        "hardware": "gpu-t4",
        "min_instances": 1,
        "max_instances": 2,
    }
    made = (await call("POST", "/v1/deployments", body)).json
    assert (made["owner"], made["current_release"]["number"]) == (owner, 1)
    path = f"/v1/deployments/{owner}/run"
    assert (await call("DELETE", path)).status == 422
    changed = (await call("PATCH", path, {"min_instances": 0})).json["current_release"]
    assert (changed["number"], changed["configuration"]["min_instances"]) == (2, 0)
    used = await call("POST", f"{path}/predictions", {"input": {"prompt": "x"}})
    assert (used.json["deployment"], used.json["version"]) == (f"{owner}/run", SDXL)
    assert (await call("DELETE", path)).status == 422
    emulator.clock.advance(900)
    assert (await call("DELETE", path, token=OTHER)).status == 404
    assert (await call("DELETE", path)).status == 204
    assert (await call("GET", path)).status == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "nobody/nothing"}, 404),
        ({"version": "0" * 64}, 422),
        ({"hardware": "abacus"}, 422),
        ({"min_instances": 6}, 422),
        ({"max_instances": 21}, 422),
        ({"max_instances": "many"}, 422),
        ({"name": "a/b"}, 422),
        ({"name": None}, 422),
    ],
)
async def test_a_deployment_that_cannot_be_made(call: Caller, changes: dict[str, Any], status: Any):
    version = (await call("GET", f"/v1/models/{SCHNELL}")).json["latest_version"]["id"]
    body = {
        "name": "run",
        "model": SCHNELL,
        "version": version,
        "hardware": "cpu",
        "min_instances": 0,
        "max_instances": 1,
        **changes,
    }
    assert (await call("POST", "/v1/deployments", body)).status == status
    assert [one["name"] for one in (await call("GET", "/v1/deployments")).json["results"]] == [
        "flux-deployment"
    ]


async def test_deployments_are_listed_for_their_owner(call: Caller):
    version = (await call("GET", f"/v1/models/{SCHNELL}")).json["latest_version"]["id"]
    body = {"name": "run", "model": SCHNELL, "version": version, "hardware": "cpu"}
    await call("POST", "/v1/deployments", {**body, "min_instances": 0, "max_instances": 1})
    assert len((await call("GET", "/v1/deployments")).json["results"]) == 2
    assert len((await call("GET", "/v1/deployments", token=OTHER)).json["results"]) == 1


async def test_collections_hold_models_that_are_there(call: Caller, emulator: Emulator):
    collections = (await call("GET", "/v1/collections")).json["results"]
    for collection in collections:
        found = (await call("GET", f"/v1/collections/{collection['slug']}")).json
        assert found["models"], collection
    emulator.plant(collections=[{"slug": "mine", "models": [SCHNELL, "nobody/nothing"]}])
    found = (await call("GET", "/v1/collections/mine")).json
    assert [one["name"] for one in found["models"]] == ["flux-schnell"]
    assert (await call("GET", "/v1/collections/nothing")).status == 404


async def test_hardware_is_a_bare_list(call: Caller):
    kinds = (await call("GET", "/v1/hardware")).json
    assert {"sku": "gpu-t4", "name": "Nvidia T4 GPU"} in kinds


@pytest.mark.parametrize("body", ["nano banana", '"nano banana"', "NANO-banana"])
async def test_models_are_searched_with_the_method_query(call: Caller, emulator: Emulator, body: str):
    found = await call("QUERY", "/v1/models", data=body, headers={"Content-Type": "text/plain"})
    assert [one["name"] for one in found.json["results"]] == ["nano-banana"]
    assert (emulator.journal.entries()[-1].operation, found.json["next"]) == ("models.search", None)


async def test_a_search_finds_models_by_relevance_and_collections(call: Caller):
    found = (await call("GET", "/v1/search?query=flux+pro", token=None)).json
    names = [one["model"]["name"] for one in found["models"]]
    assert names[0] in {"flux-2-pro", "flux-1.1-pro"}
    scores = [one["metadata"]["score"] for one in found["models"]]
    assert scores == sorted(scores, reverse=True)
    assert len((await call("GET", "/v1/search?query=flux&limit=2")).json["models"]) == 2
    assert [one["slug"] for one in (await call("GET", "/v1/search?query=upscale")).json["collections"]] == [
        "super-resolution"
    ]
    assert (await call("GET", "/v1/search?query=nothing+of+that+kind")).json["models"] == []


@pytest.mark.parametrize(
    "query", ["", "?query=", "?query=flux&limit=0", "?query=flux&limit=51", "?query=x&limit=many"]
)
async def test_a_search_that_makes_no_sense(call: Caller, query: str):
    reply = await call("GET", f"/v1/search{query}")
    assert (reply.status, reply.kind) == (400, "application/json")
    assert "parameter" in reply.json["detail"]


async def test_an_upscaler_takes_a_picture_and_no_prompt(call: Caller, emulator: Emulator):
    version = (await call("GET", "/v1/models/nightmareai/real-esrgan")).json["latest_version"]["id"]
    body: dict[str, Any] = {"version": version, "input": {"image": "https://example.com/fox.png", "scale": 2}}
    created = await call("POST", "/v1/predictions", body)
    emulator.clock.advance(60)
    done = await call.get(created.json)
    assert done["output"].endswith(".png")
    body["input"] = {"scale": 2}
    refused = await call("POST", "/v1/predictions", body)
    assert "image is required" in refused.json["detail"]
