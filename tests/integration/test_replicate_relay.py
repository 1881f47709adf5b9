"""What of Replicate's API is passed on: everything besides predictions, on the right account, and to nobody who may not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway import ADMIN, ADMIN_KEY, RunningGateway, running_gateway

from fakes.servers import Exchange, raw_server
from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.anyio

OWN = {"Authorization": "Bearer r8_a_callers_own_token"}
SCHNELL = "black-forest-labs/flux-schnell"
HELLO = "replicate/hello-world"


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as one:
        yield one


async def key_of(gateway: RunningGateway, name: str = "shop", **scope: Any) -> dict[str, str]:
    """The headers of a new key."""
    made = await gateway.request("POST", "/keys", json={"name": name, **scope}, headers=ADMIN)
    return {"Authorization": f"Bearer {made.json()['key']}"}


async def raw(gateway: RunningGateway, request: str) -> tuple[int, bytes]:
    """Status and body for these very bytes: clients tidy up paths before they send them."""
    parts = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head, _, body = request.partition("\r\n\r\n")
    head += f"\r\nhost: localhost\r\nauthorization: Bearer {ADMIN_KEY}\r\nconnection: close"
    writer.write(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[2]


async def a_deployment(gateway: RunningGateway) -> dict[str, Any]:
    """The wish for one."""
    version = (await ask(gateway, f"/v1/models/{HELLO}")).json()["latest_version"]["id"]
    facts = {"hardware": "cpu", "min_instances": 0, "max_instances": 1}
    return {"name": "mine", "model": HELLO, "version": version, **facts}


def ask(gateway: RunningGateway, path: str, headers: dict[str, str] = ADMIN, method: str = "GET") -> Any:
    return gateway.request(method, path, headers=headers)


# --- everything is passed on -------------------------------------------------------------------------------


async def test_every_operation_reaches_the_service_under_v1_and_at_the_root(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    version = (await ask(gateway, f"/v1/models/{SCHNELL}")).json()["latest_version"]["id"]
    wanted = {
        "/account": "account.get",
        "/collections": "collections.list",
        "/hardware": "hardware.list",
        "/search?query=flux": "search",
        "/deployments": "deployments.list",
        "/deployments/emulated/flux-deployment": "deployments.get",
        "/trainings": "trainings.list",
        "/files": "files.list",
        "/models": "models.list",
        f"/models/{SCHNELL}": "models.get",
        f"/models/{SCHNELL}/examples": "models.examples.list",
        f"/models/{SCHNELL}/readme": "models.readme.get",
        f"/models/{SCHNELL}/versions": "models.versions.list",
        f"/models/{SCHNELL}/versions/{version}": "models.versions.get",
    }
    for path, operation in wanted.items():
        for prefix in ("/v1", "", "/v1/v1"):
            headers = ADMIN | {"Cache-Control": "no-cache"}
            answer = await ask(gateway, prefix + path, headers)
            last = replicate_emulator.journal.entries()[-1]
            assert (last.operation, last.path) == (operation, f"/v1{path.partition('?')[0]}")
            assert answer.status == last.status, path
            assert {"set-cookie", "authorization"}.isdisjoint(answer.headers)
            if operation != "search":  # takes nothing of anybody's allowance
                assert int(answer.headers["ratelimit-remaining"]) < 3000, path
    assert replicate_emulator.journal.entries(operation="search")[-1].query == {"query": "flux"}


async def test_a_search_by_its_own_method_passes_through_the_server(gateway: RunningGateway) -> None:
    status, body = await raw(
        gateway, "QUERY /v1/models HTTP/1.1\r\ncontent-type: text/plain\r\n\r\nflux-schnell"
    )
    assert status == 200
    found = [f"{one['owner']}/{one['name']}" for one in json.loads(body)["results"]]
    assert SCHNELL in found
    assert len(found) < 10


async def test_the_account_of_an_own_token_is_its_own_and_theirs_to_change(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    servers, own = await ask(gateway, "/v1/account"), await ask(gateway, "/v1/account", OWN)
    assert servers.json()["username"] != own.json()["username"]
    username = own.json()["username"]
    made = await gateway.request("POST", "/v1/deployments", json=await a_deployment(gateway), headers=OWN)
    assert made.status in {200, 201}, made.body
    path = f"/v1/deployments/{username}/mine"
    assert (await ask(gateway, path, OWN)).json()["name"] == "mine"
    changed = await gateway.request("PATCH", path, json={"max_instances": 3}, headers=OWN)
    assert changed.json()["current_release"]["configuration"]["max_instances"] == 3
    entries = replicate_emulator.journal.entries(operation="deployments.update")
    assert entries[0].authorization != replicate_emulator.journal.entries()[0].authorization


async def test_a_key_reads_and_is_told_why_it_may_not_change_the_account(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    key = await key_of(gateway)
    assert (await ask(gateway, "/v1/hardware", key)).status == 200
    assert (await ask(gateway, "/v1/deployments/emulated/flux-deployment", key)).status == 200
    before = len(replicate_emulator.journal.entries())
    version = f"/v1/models/{SCHNELL}/versions/abc"
    for method, path in (
        ("POST", "/v1/models"),
        ("PATCH", f"/v1/models/{SCHNELL}"),
        ("DELETE", f"/models/{SCHNELL}"),
        ("DELETE", version),
        ("POST", "/v1/deployments"),
        ("PATCH", "/v1/deployments/emulated/flux-deployment"),
        ("DELETE", "/v1/deployments/emulated/flux-deployment"),
        ("POST", f"{version}/trainings"),
        ("GET", "/v1/trainings"),
        ("GET", "/v1/trainings/abc"),
        ("POST", "/v1/trainings/abc/cancel"),
    ):
        for headers in (key, {}):  # without a header: whoever is on this machine
            answer = await gateway.request(method, path, json={}, headers=headers)
            assert answer.status == 403, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"
            told = answer.json()
            assert told["status"] == 403
            assert "account of the gateway" in told["detail"]
            assert "Replicate token of your own" in told["detail"]
    assert len(replicate_emulator.journal.entries()) == before


async def test_a_key_for_some_models_sees_no_deployment_besides(gateway: RunningGateway) -> None:
    narrow = await key_of(gateway, "narrow", models=[SCHNELL])
    fitting = await key_of(gateway, "fitting", models=["deployments/emulated/flux-deployment"])
    one = "/v1/deployments/emulated/flux-deployment"
    assert (await ask(gateway, one, narrow)).status == 403
    assert (await ask(gateway, one, fitting)).status == 200
    assert (await ask(gateway, "/v1/deployments", narrow)).json()["results"] == []
    assert len((await ask(gateway, "/v1/deployments", fitting)).json()["results"]) == 1


async def test_nobody_leaves_the_path_that_was_asked_for(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    before = len(replicate_emulator.journal.entries())
    for path in (
        "/v1/models/../files",
        "/v1/models/%2e%2e/files",
        "/v1/models/x/..%2F..%2Ffiles",
        "/v1/collections/%2e%2e",
        "/v1/files/%2e%2e",
        "/v1/models/a%3Fb/c",
        "/v1/models/a%23b/c",
    ):
        assert (await raw(gateway, f"GET {path} HTTP/1.1\r\n\r\n"))[0] == 404, path
    assert len(replicate_emulator.journal.entries()) == before


# --- addresses ---------------------------------------------------------------------------------------------


async def test_addresses_of_trainings_and_pages_lead_back_to_the_gateway(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    version = (await ask(gateway, "/v1/models/" + HELLO)).json()["latest_version"]["id"]
    mine = (await ask(gateway, "/v1/account")).json()["username"]
    hers = {"owner": mine, "name": "tuned", "visibility": "private", "hardware": "cpu"}
    assert (await gateway.request("POST", "/v1/models", json=hers, headers=ADMIN)).status == 201
    wish = {
        "destination": f"{mine}/tuned",
        "input": {"text": "x", "input_images": "https://example.com/v1/a"},
    }
    path = f"/v1/models/{HELLO}/versions/{version}/trainings"
    begun = await gateway.request("POST", path, json=wish, headers=ADMIN)
    assert begun.status == 201, begun.body
    training = begun.json()
    assert training["urls"]["get"] == f"{gateway.url}/v1/trainings/{training['id']}"
    assert training["urls"]["cancel"] == f"{gateway.url}/v1/trainings/{training['id']}/cancel"
    assert training["input"] == wish["input"]  # no place of an address of the API
    listed = (await ask(gateway, "/v1/trainings")).json()["results"]
    assert listed[0]["urls"]["get"] == training["urls"]["get"]
    stopped = await gateway.request("POST", urlsplit(training["urls"]["cancel"]).path, headers=ADMIN)
    assert stopped.json()["id"] == training["id"]


async def test_pages_are_gone_through_at_the_gateway(tmp_path: Path) -> None:
    async def play(exchange: Exchange) -> None:
        page = {
            "next": f"https://api.replicate.com{exchange.path}?cursor=abc%3D",
            "previous": None,
            "results": [],
        }
        await exchange.answer(
            json.dumps(page).encode(),
            content_type="application/json",
            set_cookie="session=1",
            location="https://api.replicate.com/v1/collections/x",
            server="theirs",
        )

    async with (
        raw_server(play) as server,
        running_gateway(tmp_path, None, IMAGEN_REPLICATE__API_BASE=server.url) as gateway,
    ):
        answer = await ask(gateway, "/v1/collections")
    assert answer.json()["next"] == f"{gateway.url}/v1/collections?cursor=abc%3D"
    assert answer.headers["location"] == f"{gateway.url}/v1/collections/x"
    assert {"set-cookie", "server"}.isdisjoint(answer.headers)
    (exchange,) = server.exchanges
    assert exchange.headers["authorization"] == "Bearer r8_the_servers_own_token"
    assert "x-admin-api-key" not in exchange.headers


# --- what is kept for a while ------------------------------------------------------------------------------


async def test_what_was_told_just_now_is_told_again_without_asking(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    def asked() -> int:
        return len(replicate_emulator.journal.entries(operation="hardware.list"))

    first, again = await ask(gateway, "/v1/hardware"), await ask(gateway, "/v1/hardware")
    assert (first.headers["x-imagen-kept"], again.headers["x-imagen-kept"]) == ("miss", "hit")
    assert again.headers["age"] == "0"
    assert again.body == first.body
    assert asked() == 1
    anew = await ask(gateway, "/v1/hardware", ADMIN | {"Cache-Control": "no-cache"})
    assert (anew.headers["x-imagen-kept"], asked()) == ("miss", 2)
    assert (await ask(gateway, "/v1/hardware", OWN)).headers["x-imagen-kept"] == "miss"  # another account
    assert asked() == 3
    assert "x-imagen-kept" not in (await ask(gateway, "/v1/account")).headers


async def test_a_change_is_seen_at_once(gateway: RunningGateway) -> None:
    owner = (await ask(gateway, "/v1/account")).json()["username"]
    made = {"owner": owner, "name": "mine", "visibility": "private", "hardware": "cpu", "description": "old"}
    assert (await gateway.request("POST", "/v1/models", json=made, headers=ADMIN)).status == 201
    path = f"/v1/models/{owner}/mine"
    assert (await ask(gateway, path)).json()["description"] == "old"
    await gateway.request("PATCH", path, json={"description": "new"}, headers=ADMIN)
    assert (await ask(gateway, path)).json()["description"] == "new"
    assert (await ask(gateway, path, method="DELETE")).status == 204
    assert (await ask(gateway, path)).status == 404


# --- refusals and faults -----------------------------------------------------------------------------------


async def test_a_refusal_of_the_service_is_passed_on_as_it_is(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    answer = await ask(gateway, "/v1/models/nobody/nothing")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["status"] == 404
    replicate_emulator.add_fault("rate_limit", operation="deployments.create", times=1, retry_after=7)
    throttled = await gateway.request(
        "POST", "/v1/deployments", json=await a_deployment(gateway), headers=ADMIN
    )
    assert throttled.status == 429
    assert throttled.json()["retry_after"] == 7


async def test_reading_is_repeated_and_changing_is_not(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation="hardware.list", status=503, times=1)
    assert (await ask(gateway, "/v1/hardware")).status == 200
    assert len(replicate_emulator.journal.entries(operation="hardware.list")) == 2
    replicate_emulator.add_fault("status", operation="deployments.create", status=503, times=1)
    answer = await gateway.request("POST", "/v1/deployments", json=await a_deployment(gateway), headers=ADMIN)
    assert answer.status == 503
    assert len(replicate_emulator.journal.entries(operation="deployments.create")) == 1


async def test_a_caller_is_not_told_that_the_gateways_token_is_theirs(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    bad = {"REPLICATE_API_TOKEN": "r8_invalid"}
    async with running_gateway(tmp_path, replicate_emulator, **bad) as gateway:
        answer = await ask(gateway, "/v1/account")
        assert answer.status == 502
        assert answer.json()["code"] == "backend_unauthenticated"
        theirs = await ask(gateway, "/v1/account", {"Authorization": "Bearer r8_invalid_too"})
        assert (theirs.status, theirs.json()["title"]) == (401, "Unauthenticated")


async def test_a_made_up_token_leaves_nothing_behind(
    gateway: RunningGateway, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    wish = {"input": {"prompt": "a red fox"}}
    for method, path, body in (
        ("GET", "/v1/account", None),
        ("GET", "/v1/models", None),
        ("GET", f"/v1/models/{SCHNELL}", None),
        ("GET", "/v1/models/nobody/nothing", None),
        ("GET", "/v1/hardware", None),
        ("GET", "/v1/deployments", None),
        ("GET", "/v1/files", None),
        ("GET", "/v1/files/abc/download?owner=a&expiry=1&signature=b", None),
        ("GET", "/v1/predictions/abcdefgh", None),
        ("POST", f"/v1/models/{SCHNELL}/predictions", wish),
    ):
        headers = {"Authorization": f"Bearer r8_invalid_{path.replace('/', '_')[:60]}"}
        refused = await gateway.request(method, path, json=body, headers=headers)
        assert (refused.status, refused.json()["title"]) == (401, "Unauthenticated"), (path, refused.body)
    asked = {one.operation for one in replicate_emulator.journal.entries()}
    assert asked == {"account.get"}
    with sqlite3.connect(tmp_path / "data" / "imagen.db") as database:
        assert database.execute("SELECT count(*) FROM gates").fetchone() == (0,)


async def test_who_leaves_ends_the_call_too(tmp_path: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        assert await reader.read() == b""  # the line was closed
        ended.set()
        writer.close()

    async with await asyncio.start_server(play, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with running_gateway(tmp_path, None, IMAGEN_REPLICATE__API_BASE=url) as gateway:
            leaving = asyncio.create_task(ask(gateway, "/v1/account"))
            await begun.wait()
            leaving.cancel()
            await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.replicate_emulator(run_seconds=0.0)
async def test_pictures_inside_answers_stay_out_of_the_database(
    gateway: RunningGateway, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    replicate_emulator.set_mode(data_uris=True)
    wish = {"input": {"prompt": "a red fox"}}
    made = await gateway.request(
        "POST", f"/v1/models/{SCHNELL}/predictions", json=wish, headers=ADMIN | {"Prefer": "wait"}
    )
    (picture,) = made.json()["output"]
    assert picture.startswith("data:image/")
    again = await gateway.generate(model_name="flux-schnell", prompt="another")
    assert again.json()["generated_files"][0]["url"].startswith("data:image/")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("imagen.db*"))
    assert b";base64," not in kept
