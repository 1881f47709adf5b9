"""One list of models for two families of clients: Replicate's and OpenAI's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway import ADMIN, ADMIN_KEY, RunningGateway, running_gateway

from imagen.catalog import Catalog
from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"
KNOWN = {model.name for model in Catalog.load()}
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - whoever serves others does not practise


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as one:
        yield one


async def get(gateway: RunningGateway, path: str, headers: dict[str, str] = ADMIN) -> Any:
    return await gateway.request("GET", path, headers=headers)


async def raw_get(gateway: RunningGateway, path: str) -> tuple[int, Any]:
    """For these very bytes: other clients decode the path before they send it."""
    parts = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\nconnection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def check_for_openai(model: dict[str, Any], name: str) -> None:
    assert (model["id"], model["object"], model["owned_by"]) == (name, "model", name.partition("/")[0])
    assert isinstance(model["created"], int)


async def test_whoever_takes_nothing_but_the_services_form_gets_that_alone(gateway: RunningGateway) -> None:
    exact = ADMIN | {"X-Imagen-Exact": "1"}
    for headers in (ADMIN, exact, ADMIN):  # neither is answered with what was kept for the other
        page = (await get(gateway, "/v1/models", headers)).json()
        assert ("data" in page) is (headers is ADMIN)
        assert page["results"]
        model = (await get(gateway, f"/v1/models/{SCHNELL}", headers)).json()
        assert ("object" in model) is (headers is ADMIN)
        assert model["name"] == "flux-schnell"


async def test_one_page_is_read_by_both(gateway: RunningGateway) -> None:
    for path in ("/v1/models", "/models", "/v1/models?sort_by=model_created_at"):
        answer = await get(gateway, path)
        page = answer.json()
        assert {f"{one['owner']}/{one['name']}" for one in page["results"]} >= {SCHNELL}
        assert {"next", "previous"} <= page.keys()
        assert page["object"] == "list"
        assert {one["id"] for one in page["data"]} >= KNOWN
        assert len({one["id"].lower() for one in page["data"]}) == len(page["data"])
        for one in page["data"]:
            check_for_openai(one, one["id"])
        assert "x-imagen-adapted" not in answer.headers


async def test_a_later_page_has_nothing_twice(gateway: RunningGateway) -> None:
    page = (await get(gateway, "/v1/models")).json()
    while page["next"]:
        assert page["next"].startswith(f"{gateway.url}/v1/models?")
        at = urlsplit(page["next"])
        page = (await get(gateway, f"{at.path}?{at.query}")).json()
        assert [one["id"] for one in page["data"]] == [
            f"{one['owner']}/{one['name']}" for one in page["results"]
        ]


@pytest.mark.parametrize(
    "path", [SCHNELL, SCHNELL.replace("/", "%2F"), SCHNELL.replace("/", "%2f"), "flux-schnell"]
)
async def test_one_model_is_found_by_whatever_a_client_makes_of_its_name(
    gateway: RunningGateway, path: str
) -> None:
    for prefix in ("/v1/models/", "/models/"):
        status, model = await raw_get(gateway, prefix + path)
        assert status == 200
        check_for_openai(model, SCHNELL)
        assert model["created"] > 1_500_000_000  # the emulator tells when its version was made
        assert (model["owner"], model["name"]) == ("black-forest-labs", "flux-schnell")
        assert model["latest_version"]["openapi_schema"]


async def test_a_model_that_nobody_knows_is_not_found(gateway: RunningGateway) -> None:
    for path in ("nobody/nothing", "no-such-name"):
        answer = await get(gateway, f"/v1/models/{path}")
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_key_for_one_model_is_offered_that_one(gateway: RunningGateway) -> None:
    made = await gateway.request("POST", "/keys", json={"name": "narrow", "models": [SCHNELL]}, headers=ADMIN)
    headers = {"Authorization": f"Bearer {made.json()['key']}"}
    offered = (await get(gateway, "/v1/models", headers)).json()["data"]
    assert [one["id"] for one in offered] == [SCHNELL]
    assert {one["id"] for one in (await get(gateway, "/v1/models")).json()["data"]} >= KNOWN


@pytest.mark.parametrize(
    "environ",
    [{"IMAGEN_REPLICATE__API_BASE": NOWHERE}, {"REPLICATE_API_TOKEN": "", "IMAGEN_SERVER__HOST": EVERYWHERE}],
    ids=["down", "no token"],
)
async def test_what_we_know_is_told_without_the_service(tmp_path: Path, environ: dict[str, str]) -> None:
    async with asyncio.timeout(10), running_gateway(tmp_path, None, **environ) as gateway:
        answer = await get(gateway, "/v1/models")
        assert answer.status == 200
        assert answer.headers["x-imagen-adapted"] == "source=service->catalog"
        page = answer.json()
        assert (page["results"], page["next"], page["object"]) == ([], None, "list")
        assert {one["id"] for one in page["data"]} == KNOWN
        one = await get(gateway, f"/v1/models/{SCHNELL}")
        assert one.headers["x-imagen-adapted"] == "source=service->catalog"
        model = one.json()
        check_for_openai(model, SCHNELL)
        assert (model["url"], model["visibility"]) == (f"https://replicate.com/{SCHNELL}", "public")


async def test_a_service_that_fails_is_not_waited_for(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation="models.list", status=503, times=9)
    answer = await get(gateway, "/v1/models")
    assert (answer.status, answer.headers["x-imagen-adapted"]) == (200, "source=service->catalog")
    assert len(replicate_emulator.journal.entries(operation="models.list")) == 1


async def test_a_wrong_token_of_ones_own_is_told_so(gateway: RunningGateway) -> None:
    for path in ("/v1/models", f"/v1/models/{SCHNELL}"):
        answer = await get(gateway, path, {"Authorization": "Bearer r8_invalid"})
        assert (answer.status, answer.json()["title"]) == (401, "Unauthenticated")
