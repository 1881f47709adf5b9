"""Pages of predictions, models and versions, the account, and the Files API."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from imagen.emulator import Emulator

if TYPE_CHECKING:
    from conftest import Caller, Reply


pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"


async def test_pages_of_100_newest_first_both_ways(call: Caller, emulator: Emulator):
    ids = [(await call.create(f"fox {n}")).json["id"] for n in range(250)]
    first = (await call("GET", "/v1/predictions")).json
    assert [one["id"] for one in first["results"]] == ids[:149:-1]
    assert first["previous"] is None
    assert first["next"].startswith(f"{emulator.url}/v1/predictions?cursor=")
    second = (await call("GET", first["next"])).json
    third = (await call("GET", second["next"])).json
    assert [one["id"] for one in second["results"] + third["results"]] == ids[149::-1]
    assert third["next"] is None
    assert (await call("GET", third["previous"])).json["results"] == second["results"]
    assert (await call("GET", second["previous"])).json["results"] == first["results"]


async def test_a_page_stays_what_it_is_when_newer_ones_come(call: Caller):
    for n in range(101):
        await call.create(f"fox {n}")
    first = (await call("GET", "/v1/predictions")).json
    await call.create("a newer one")
    (oldest,) = (await call("GET", first["next"])).json["results"]
    assert oldest["input"]["prompt"] == "fox 0"


async def test_created_after_includes_and_created_before_excludes(call: Caller, emulator: Emulator):
    created = []
    for n in range(3):
        created.append((await call.create(f"fox {n}")).json)
        emulator.clock.advance(100)

    async def prompts(query: str) -> list[str]:
        page = (await call("GET", f"/v1/predictions?{query}")).json
        return [one["input"]["prompt"] for one in page["results"]]

    middle = emulator.world.state.predictions[created[1]["id"]].created_at
    after = f"created_after={_iso(middle - 0.5)}"
    before = f"created_before={_iso(middle + 0.5)}"
    assert await prompts(after) == ["fox 2", "fox 1"]
    assert await prompts(before) == ["fox 1", "fox 0"]
    assert await prompts(f"{after}&{before}") == ["fox 1"]


async def test_the_filters_stay_on_the_next_page(call: Caller):
    for n in range(101):
        await call.create(f"fox {n}")
    page = (await call("GET", "/v1/predictions?created_after=2020-01-01T00:00:00Z")).json
    assert "created_after=2020-01-01T00%3A00%3A00Z" in page["next"]
    assert len((await call("GET", page["next"])).json["results"]) == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("cursor=nonsense", 404),
        ("cursor=%F0%9F%A6%8A", 404),
        ("created_after=yesterday", 422),
        ("source=api", 422),
        ("source=web", 200),
    ],
)
async def test_odd_queries(call: Caller, query: str, status: Any):
    reply = await call("GET", f"/v1/predictions?{query}")
    assert reply.status == status


async def test_models_and_versions(call: Caller):
    models = (await call("GET", "/v1/models")).json
    names = {f"{model['owner']}/{model['name']}" for model in models["results"]}
    assert {SCHNELL, "qwen/qwen-image", "google/nano-banana", "recraft-ai/recraft-v3-svg"} <= names
    model = (await call("GET", f"/v1/models/{SCHNELL}")).json
    assert model["is_official"] is True
    version = model["latest_version"]
    assert (await call("GET", f"/v1/models/{SCHNELL}/versions")).json["results"] == [version]
    assert (await call("GET", f"/v1/models/{SCHNELL}/versions/{version['id']}")).json == version
    assert (await call("GET", f"/v1/models/{SCHNELL}/versions/{'0' * 64}")).status == 404
    assert (await call("GET", "/v1/models/nobody/nothing")).status == 404


async def test_a_deployment_names_a_version_that_can_be_read(call: Caller):
    (listed,) = (await call("GET", "/v1/deployments")).json["results"]
    found = (await call("GET", f"/v1/deployments/{listed['owner']}/{listed['name']}")).json
    assert found == listed
    assert (found["owner"], found["name"]) == ("emulated", "flux-deployment")
    release = found["current_release"]
    assert release["model"] == "black-forest-labs/flux-dev"
    version = await call("GET", f"/v1/models/{release['model']}/versions/{release['version']}")
    assert (version.status, version.json["id"]) == (200, release["version"])
    assert (await call("GET", "/v1/deployments/emulated/nothing")).status == 404


async def test_a_deployment_of_an_unknown_model_is_not_there(call: Caller):
    deployments = {"acme/foxes": SCHNELL, "acme/ghosts": "nobody/nothing"}
    async with Emulator(deployments=deployments) as own:
        results = (await call("GET", f"{own.url}/v1/deployments")).json["results"]
        assert [deployment["name"] for deployment in results] == ["flux-deployment", "foxes"]
        assert (await call("GET", f"{own.url}/v1/deployments/acme/foxes")).status == 200
        assert (await call("GET", f"{own.url}/v1/deployments/acme/ghosts")).status == 404


async def test_a_schema_has_the_shape_that_cog_writes(call: Caller):
    model = (await call("GET", f"/v1/models/{SCHNELL}")).json
    schemas = model["latest_version"]["openapi_schema"]["components"]["schemas"]
    assert schemas["Input"]["required"] == ["prompt"]
    assert schemas["Input"]["additionalProperties"] is False
    ratio = schemas["Input"]["properties"]["aspect_ratio"]
    assert ratio["allOf"] == [{"$ref": "#/components/schemas/aspect_ratio"}]
    assert ratio["default"] in schemas["aspect_ratio"]["enum"]
    assert schemas["Input"]["properties"]["num_outputs"]["maximum"] == 4
    assert schemas["Output"]["items"] == {"type": "string", "format": "uri"}


async def test_every_known_model_runs_with_what_it_requires_alone(call: Caller, emulator: Emulator):
    required = {"prompt": "a red fox", "text": "Alice", "image": "https://example.com/fox.png"}
    for model in emulator.world.models.everyone():
        version = model.name if model.official else model.version_id
        given = {name: required[name] for name in {*model.required, "prompt"} & set(model.parameters)}
        created = await call("POST", "/v1/predictions", {"version": version, "input": given})
        assert created.status == 201, created.raw
        emulator.clock.advance(60)
        done = await call.get(created.json)
        assert done["status"] == "succeeded", model.name
        assert isinstance(done["output"], str) == (model.output in {"uri", "string"})
        assert ("image_count" in done["metrics"]) == model.makes_files


async def test_the_account_and_its_webhook_secret_stay_the_same(call: Caller):
    account, again = [(await call("GET", "/v1/account")).json for _ in range(2)]
    assert account == again
    assert account["type"] == "user"
    secret = (await call("GET", "/v1/webhooks/default/secret")).json["key"]
    assert secret.startswith("whsec_")
    assert secret != (await call("GET", "/v1/webhooks/default/secret", token="r8_other")).json["key"]


async def test_a_file_is_uploaded_listed_read_and_deleted(call: Caller, emulator: Emulator):
    uploaded = await _upload(call, b"\x89PNG fox")
    assert uploaded.status == 201
    stored = uploaded.json
    assert (stored["name"], stored["size"], stored["content_type"]) == ("fox.png", 8, "image/png")
    assert stored["checksums"]["sha256"] == hashlib.sha256(b"\x89PNG fox").hexdigest()
    assert stored["metadata"] == {"who": "me"}
    assert (await call("GET", stored["urls"]["get"])).json == stored
    assert (await call("GET", "/v1/files")).json["results"] == [stored]
    assert (await call("GET", stored["urls"]["get"], token="r8_other")).status == 404
    gone = await call("DELETE", stored["urls"]["get"])
    assert (gone.status, gone.raw) == (204, b"")
    missing = await call("GET", stored["urls"]["get"])
    assert (missing.status, missing.json["detail"]) == (404, "File not found")


async def test_a_download_needs_its_signature_and_no_token(call: Caller, emulator: Emulator):
    stored = (await _upload(call, b"fox")).json
    url = emulator.download_url(stored["id"], expires_in_seconds=60)
    reply = await call("GET", url, token=None)
    assert (reply.status, reply.raw) == (200, b"fox")
    assert (await call("GET", url.replace("signature=", "signature=x"), token=None)).status == 404
    emulator.clock.advance(61)
    assert (await call("GET", url, token=None)).status == 404


@pytest.mark.parametrize(
    "query", ["", "?owner=a&expiry=b&signature=c", "?owner=a&expiry=99999999999&signature=%F0"]
)
async def test_odd_download_links_are_not_found(call: Caller, query: str):
    stored = (await _upload(call, b"fox")).json
    assert (await call("GET", f"/v1/files/{stored['id']}/download{query}")).status == 404


async def test_files_expire_after_a_day(call: Caller, emulator: Emulator):
    stored = (await _upload(call, b"fox")).json
    emulator.clock.advance(24 * 3600 + 1)
    assert (await call("GET", stored["urls"]["get"])).status == 404
    assert (await call("GET", "/v1/files")).json["results"] == []


async def test_a_file_over_100_mib_is_too_large(call: Caller):
    reply = await _upload(call, b"\0" * (100 * 1024 * 1024 + 100_000))
    assert reply.status == 413
    assert reply.json["detail"] == "Files must be less than 100MB in size"


async def test_forms_that_cannot_be_read(call: Caller):
    assert (await call("POST", "/v1/files", {"content": "x"})).status == 400
    broken = await call(
        "POST", "/v1/files", data=b"nonsense", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert broken.status in {400, 422}
    empty = aiohttp.FormData(default_to_multipart=True)
    empty.add_field("metadata", "{}")
    assert (await call("POST", "/v1/files", data=empty)).status == 422
    bad = aiohttp.FormData(default_to_multipart=True)
    bad.add_field("content", b"x", filename="a.png")
    bad.add_field("metadata", "{")
    assert (await call("POST", "/v1/files", data=bad)).status == 400


async def _upload(call: Caller, content: bytes) -> Reply:
    form = aiohttp.FormData()
    form.add_field("content", io.BytesIO(content), filename="fox.png", content_type="image/png")
    form.add_field("metadata", '{"who": "me"}', content_type="application/json")
    return await call("POST", "/v1/files", data=form)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
