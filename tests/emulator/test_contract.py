"""The shape of every answer, written down by hand from the published document and recorded exchanges.

`test_openapi.py` asks Replicate's own document; this file always runs.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from conftest import Caller
    from imagen.emulator import Emulator


pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
URL = re.compile(r"https?://[^ ]+")
ANY = re.compile(r".*", re.DOTALL)

PREDICTION: dict[str, Any] = {
    "id": re.compile(r"[a-z0-9]{26}"),
    "model": re.compile(r"[^/]+/[^/]+"),
    "version": re.compile(r"hidden|[0-9a-f]{64}"),
    "input": dict,
    "output": (list, str, type(None)),
    "logs": ANY,
    "data_removed": bool,
    "error": (str, type(None)),
    "status": re.compile(r"starting|processing|succeeded|failed|canceled|aborted"),
    "source": re.compile(r"api"),
    "created_at": INSTANT,
    "urls": {"web": URL, "get": URL, "cancel": URL, "stream": URL},
}
LATER = {
    "started_at": INSTANT,
    "completed_at": INSTANT,
    "deadline": INSTANT,
    "deployment": ANY,
    "metrics": dict,
}
PAGE = {"next": (str, type(None)), "previous": (str, type(None)), "results": list}
FILE = {
    "id": re.compile(r"[a-z0-9]{26}"),
    "name": ANY,
    "content_type": ANY,
    "size": int,
    "etag": ANY,
    "checksums": {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")},
    "metadata": dict,
    "created_at": INSTANT,
    "expires_at": INSTANT,
    "urls": {"get": URL},
}
VERSION = {"id": re.compile(r"[0-9a-f]{64}"), "created_at": ANY, "cog_version": ANY, "openapi_schema": dict}
DEPLOYMENT: dict[str, Any] = {
    "owner": ANY,
    "name": ANY,
    "current_release": {
        "number": int,
        "model": re.compile(r"[^/]+/[^/]+"),
        "version": re.compile(r"[0-9a-f]{64}"),
        "created_at": ANY,
        "created_by": {
            "type": re.compile(r"organization|user"),
            "username": ANY,
            "name": ANY,
            "avatar_url": URL,
            "github_url": URL,
        },
        "configuration": {"hardware": ANY, "min_instances": int, "max_instances": int},
    },
}
MODEL: dict[str, Any] = {
    "url": URL,
    "owner": ANY,
    "name": ANY,
    "description": ANY,
    "visibility": re.compile(r"public"),
    "is_official": bool,
    "github_url": type(None),
    "paper_url": type(None),
    "license_url": type(None),
    "run_count": int,
    "cover_image_url": type(None),
    "default_example": type(None),
    "latest_version": VERSION,
}


TRAINING: dict[str, Any] = {
    "id": re.compile(r"[a-z0-9]{26}"),
    "model": re.compile(r"[^/]+/[^/]+"),
    "version": re.compile(r"[0-9a-f]{64}"),
    "input": dict,
    "logs": ANY,
    "error": type(None),
    "status": re.compile(r"succeeded"),
    "source": re.compile(r"api"),
    "created_at": INSTANT,
    "started_at": INSTANT,
    "completed_at": INSTANT,
    "metrics": {"predict_time": (int, float), "total_time": (int, float)},
    "output": {"version": re.compile(r"[^/]+/[^:]+:[0-9a-f]{64}"), "weights": URL},
    "urls": {"web": URL, "get": URL, "cancel": URL},
}
COLLECTION = {"slug": re.compile(r"[a-z-]+"), "name": ANY, "description": ANY}
SEARCH = {"query": ANY, "models": list, "collections": list, "pages": list}


def fits(value: Any, shape: Any, path: str = "$") -> None:
    """Hold a value against a shape: no key less, and no key more than `LATER` allows a prediction."""
    if isinstance(shape, dict):
        allowed = set(shape) | (set(LATER) if shape is PREDICTION else set())
        assert set(shape) <= set(value) <= allowed, (path, set(value) ^ set(shape))
        for key in value:
            fits(value[key], shape.get(key, LATER.get(key)), f"{path}.{key}")
    elif isinstance(shape, re.Pattern):
        assert isinstance(value, str), (path, value)
        assert shape.fullmatch(value), (path, value)
    else:
        assert isinstance(value, shape), (path, value)


ENDED = {"completed_at", "metrics"}
RAN = {"started_at"}


@pytest.mark.parametrize(
    ("fault", "seconds", "status", "present"),
    [
        (None, 10, "processing", RAN),
        (None, 31, "succeeded", RAN | ENDED),
        (None, 4000, "succeeded", RAN | ENDED),
        ("fail", 31, "failed", RAN | ENDED),
        ("never_starts", 31, "starting", set()),
        ("early_output", 30.5, "processing", RAN),
    ],
)
async def test_the_keys_of_each_status(
    call: Caller, *, emulator: Emulator, fault: str, seconds: float, status: Any, present: set[str]
):
    if fault:
        emulator.add_fault(fault)
    created = (await call.create()).json
    fits(created, PREDICTION)
    assert set(created) == set(PREDICTION)
    emulator.clock.advance(seconds)
    body = await call.get(created)
    fits(body, PREDICTION)
    assert body["status"] == status
    assert set(body) - set(PREDICTION) == present
    assert (body["error"] is not None) == (status == "failed")


@pytest.mark.parametrize(
    ("fault", "status", "present"), [("never_starts", "aborted", ENDED), ("slow", "canceled", ENDED | RAN)]
)
async def test_the_keys_after_a_deadline(
    call: Caller, emulator: Emulator, fault: str, status: Any, present: set[str]
):
    emulator.add_fault(fault)
    created = (await call.create(headers={"Cancel-After": "5"})).json
    fits(created["deadline"], INSTANT)
    emulator.clock.advance(6)
    body = await call.get(created)
    fits(body, PREDICTION)
    assert body["status"] == status
    assert set(body) - set(PREDICTION) == present | {"deadline"}
    assert ("predict_time" in body["metrics"]) == (status == "canceled")


async def test_urls_point_back_at_the_emulator(call: Caller, emulator: Emulator):
    created = (await call.create()).json
    own = f"{emulator.url}/v1/predictions/{created['id']}"
    assert (created["urls"]["get"], created["urls"]["cancel"]) == (own, f"{own}/cancel")
    assert (await call("GET", own)).status == 200


async def test_lists_models_account_and_files(call: Caller):
    await call.create()
    page = (await call("GET", "/v1/predictions")).json
    fits(page, PAGE)
    fits(page["results"][0], PREDICTION)
    models = (await call("GET", "/v1/models")).json
    fits(models, PAGE)
    for model in models["results"]:
        fits(model, MODEL)
    fits((await call("GET", f"/v1/models/{SCHNELL}/versions")).json["results"][0], VERSION)
    deployments = (await call("GET", "/v1/deployments")).json
    fits(deployments, PAGE)
    fits(deployments["results"][0], DEPLOYMENT)
    fits((await call("GET", "/v1/deployments/emulated/flux-deployment")).json, DEPLOYMENT)
    account = (await call("GET", "/v1/account")).json
    fits(account, {"type": ANY, "username": ANY, "name": ANY, "github_url": URL, "avatar_url": URL})
    fits((await call("GET", "/v1/webhooks/default/secret")).json, {"key": re.compile(r"whsec_[\w+/]{32}")})
    form = aiohttp.FormData()
    form.add_field("content", io.BytesIO(b"fox"), filename="fox.png", content_type="image/png")
    stored = (await call("POST", "/v1/files", data=form)).json
    fits(stored, FILE)
    fits((await call("GET", "/v1/files")).json, PAGE)


async def test_collections_hardware_search_and_examples(call: Caller):
    for collection in (await call("GET", "/v1/collections")).json["results"]:
        fits(collection, COLLECTION)
        found = (await call("GET", f"/v1/collections/{collection['slug']}")).json
        fits(found, {**COLLECTION, "full_description": type(None), "models": list})
        fits(found["models"][0], MODEL)
    for kind in (await call("GET", "/v1/hardware")).json:
        fits(kind, {"sku": re.compile(r"[a-z0-9-]+"), "name": ANY})
    found = (await call("GET", "/v1/search?query=images")).json
    fits(found, SEARCH)
    fits(found["collections"][0], {**COLLECTION, "models": list})
    (model,) = (await call("GET", "/v1/search?query=schnell")).json["models"]
    fits(model, {"model": MODEL, "metadata": {"generated_description": ANY, "tags": list, "score": float}})
    fits((await call("QUERY", "/v1/models", data="flux")).json["results"][0], MODEL)
    (example,) = (await call("GET", f"/v1/models/{SCHNELL}/examples")).json["results"]
    fits(
        example, {**PREDICTION, **{name: LATER[name] for name in (*RAN, *ENDED)}, "source": re.compile("web")}
    )


async def test_a_training_and_what_it_needs(call: Caller, emulator: Emulator):
    owner = (await call("GET", "/v1/account")).json["username"]
    body = {"owner": owner, "name": "tuned", "visibility": "private", "hardware": "cpu"}
    made = (await call("POST", "/v1/models", body)).json
    bare = {
        **MODEL,
        "description": type(None),
        "visibility": re.compile("private"),
        "latest_version": type(None),
    }
    fits(made, bare)
    version = (await call("GET", f"/v1/models/{SCHNELL}")).json["latest_version"]["id"]
    path = f"/v1/models/{SCHNELL}/versions/{version}/trainings"
    begun = (await call("POST", path, {"destination": f"{owner}/tuned", "input": {}})).json
    not_yet = {"started_at", "completed_at", "metrics", "output"}
    early = {
        **{key: shape for key, shape in TRAINING.items() if key not in not_yet},
        "status": re.compile("starting"),
    }
    fits(begun, early)
    emulator.clock.advance(60)
    fits(await call.get(begun), TRAINING)
    tuned = (await call("GET", f"/v1/models/{owner}/tuned")).json
    fits(tuned, {**bare, "latest_version": VERSION})


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v1/account", None, {"Authorization": "Bearer invalid"}, 401),
        ("GET", "/v1/predictions/nothing", None, {}, 404),
        ("GET", "/v1/nothing", None, {}, 404),
        ("GET", "/v1/files/nothing", None, {}, 404),
        ("GET", "/v1/deployments/emulated/nothing", None, {}, 404),
        ("PUT", "/v1/account", None, {}, 405),
        ("POST", "/v1/predictions", {}, {}, 422),
        ("POST", "/v1/predictions", {"version": "x", "input": {}}, {}, 422),
        ("POST", "/v1/files", {}, {}, 400),
        ("POST", "/v1/models", {}, {}, 422),
        ("DELETE", f"/v1/models/{SCHNELL}", None, {}, 403),
        ("PATCH", f"/v1/models/{SCHNELL}", {}, {}, 403),
        ("POST", "/v1/deployments", {}, {}, 422),
        ("GET", "/v1/trainings/nothing", None, {}, 404),
        ("GET", "/v1/collections/nothing", None, {}, 404),
        ("GET", "/v1/stream/nothing", None, {}, 404),
    ],
)
async def test_errors_are_problem_documents(
    call: Caller, *, method: str, path: str, body: Any, headers: dict[str, str], status: Any
):
    reply = await call(method, path, body, headers=headers)
    assert (reply.status, reply.kind) == (status, "application/problem+json")
    assert reply.json["status"] == status
    assert isinstance(reply.json["detail"], str)
    assert set(reply.json) <= {"detail", "status", "title", "invalid_fields"}


@pytest.mark.parametrize("limits", [{"no_credit": True}, {"low_credit": True}, {"creates_burst": 1}])
async def test_refusals_for_money_and_pace_are_problem_documents(
    call: Caller, emulator: Emulator, limits: dict[str, Any]
):
    emulator.set_mode(**limits)
    await call.create()
    reply = await call.create()
    assert reply.status == (402 if "no_credit" in limits else 429)
    assert reply.kind == "application/problem+json"
    assert reply.json["status"] == reply.status
    assert ("retry_after" in reply.json) == (reply.status == 429)
