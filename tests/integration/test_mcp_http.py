"""`/mcp` of a gateway on a real socket, spoken to by the official client: as whom its tools act, and how calls end."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import httpx2
import pytest
from gateway import ADMIN, ADMIN_KEY, RunningGateway, running_gateway
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from agent_calls import DEV, NO_PICTURES, TOOLS, Asked, Heard, facts_of, holds_picture, text_of, thumbnail_of
from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = pytest.mark.anyio
ERAS = ("auto", "legacy")
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what others than this machine can reach
FOX = {"prompt": "a red fox", "model": "flux-dev"}

CALL: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 5,
    "method": "tools/call",
    "params": {"name": "generate_image", "arguments": FOX},
}


@asynccontextmanager
async def an_agent(
    gateway: RunningGateway, key: str | None = ADMIN_KEY, *, era: str = "auto", **client: Any
) -> AsyncIterator[Client]:
    shown = {} if key is None else {"authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=shown, timeout=httpx2.Timeout(30)) as carrier,
        Client(
            streamable_http_client(f"{gateway.url}/mcp", http_client=carrier), mode=era, **client
        ) as agent,
    ):
        yield agent


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as running:
        yield running


async def key_of(gateway: RunningGateway, name: str, **limits: Any) -> str:
    made = await gateway.request("POST", "/keys", json={"name": name, **limits}, headers=ADMIN)
    assert made.status == 201, made.body
    return str(made.json()["key"])


async def post(gateway: RunningGateway, headers: dict[str, str], body: Any = None) -> Any:
    told = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"} if body is None else body
    accept = {"accept": "application/json, text/event-stream"}
    return await gateway.request("POST", "/mcp", json=told, headers=accept | headers)


@pytest.mark.replicate_emulator(run_seconds=0.3)
@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_chooses_makes_looks_edits_and_counts(
    era: str, gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    key = await key_of(gateway, "agent")
    async with an_agent(gateway, key, era=era) as agent:
        listed = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert set(listed) == TOOLS
        assert "output" not in listed["generate_image"].input_schema["properties"]
        quoted = facts_of(await agent.call_tool("estimate_cost", FOX))
        assert (quoted["model"], quoted["quote"]["likely_usd"]) == (DEV, 0.025)
        advised = facts_of(await agent.call_tool("recommend_model", {"budget_usd": 1, "iterations": 300}))
        assert advised["model"] == "black-forest-labs/flux-schnell"
        assert facts_of(await agent.call_tool("list_models"))["found"] > 20
        sheet = facts_of(await agent.call_tool("describe_model", {"model": "flux-dev"}))
        assert "guidance" in sheet["parameters"]["properties"]
        heard = Heard()
        answer = await agent.call_tool("generate_image", {**FOX, "thumbnail": True}, progress_callback=heard)
        made = facts_of(answer)
        (picture,) = made["pictures"]
        kept = await gateway.request("GET", picture["url"].removeprefix(gateway.url))
        assert (kept.status, len(kept.body)) == (200, picture["bytes"])
        assert picture["path"] is None
        assert picture["url"] in text_of(answer)
        assert max(thumbnail_of(answer).size) == 256
        assert not holds_picture(answer, kept.body)
        assert heard.values == sorted(set(heard.values))
        assert "sent to the model" in heard.messages
        edited = facts_of(
            await agent.call_tool(
                "edit_image", {"prompt": "in snow", "image": picture["url"], "model": "flux-dev"}
            )
        )
        assert edited["pictures"][0]["url"] != picture["url"]
        seen = facts_of(await agent.call_tool("get_prediction", {"id": made["prediction_id"]}))
        assert (seen["status"], seen["pictures"]) == ("succeeded", made["pictures"])
        spent = facts_of(await agent.call_tool("usage_report", {"by": "caller"}))
        assert [(one["name"], one["cost_usd"]) for one in spent["groups"]] == [("agent", 0.05)]
    assert replicate_emulator.purchases == 2


async def test_the_door_is_that_of_the_gateway(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    wrong = await post(gateway, {"X-API-Key": "imk_nobody"})
    assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Bearer")
    assert wrong.json()["error"]["data"]["code"] == "unauthenticated"
    for headers in ({}, ADMIN):
        page = await post(gateway, {"Origin": "https://evil.example", **headers})
        assert page.status == 403
    rebound = await post(gateway, {"Host": "evil.example", "Origin": "http://evil.example", **ADMIN})
    assert rebound.status == 403
    ours = await post(gateway, {"Origin": gateway.url, **ADMIN})
    assert ours.status == 200
    assert ours.headers["x-request-id"]
    here = await post(gateway, {})  # whoever is on this machine, as elsewhere
    assert here.status == 200
    narrow = await key_of(gateway, "narrow", routes=["/generate"])
    assert (await post(gateway, {"X-API-Key": narrow})).status == 403
    assert (await gateway.request("GET", "/mcp", headers=ADMIN)).status == 405
    assert gateway.answered("POST", 403) >= 4
    assert replicate_emulator.purchases == 0


async def test_without_credentials_nobody_is_served_from_elsewhere(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, FLASK_HOST=EVERYWHERE) as gateway:
        refused = await post(gateway, {})
        assert refused.status == 401
        with pytest.RaisesGroup(
            pytest.RaisesExc(MCPError, match="Authentication failed"), flatten_subgroups=True
        ):
            async with an_agent(gateway, None):
                pass


async def test_every_tool_acts_as_its_caller(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    one = await key_of(gateway, "one", models=["flux-schnell"])
    other = await key_of(gateway, "other")
    async with an_agent(gateway, one) as agent:
        denied = await agent.call_tool("generate_image", FOX)
        assert denied.is_error
        assert "permission_denied" in text_of(denied)
        names = [one["name"] for one in facts_of(await agent.call_tool("list_models"))["models"]]
        assert names == ["black-forest-labs/flux-schnell"]
        made = facts_of(await agent.call_tool("generate_image", {"prompt": "a fox", "model": "flux-schnell"}))
    async with an_agent(gateway, other) as agent:
        for tool in ("get_prediction", "cancel_prediction"):
            hidden = await agent.call_tool(tool, {"id": made["prediction_id"]})
            assert hidden.is_error
            assert "no prediction is called" in text_of(hidden)
        assert facts_of(await agent.call_tool("usage_report"))["total"]["predictions"] == 0
        for image in ("/etc/passwd", "file:///etc/passwd", "http://169.254.169.254/latest"):
            stolen = await agent.call_tool("edit_image", {**FOX, "image": image})
            assert stolen.is_error
            assert "image: it must be" in text_of(stolen)
        unasked = await agent.call_tool("generate_image", {**FOX, "output": "/tmp/fox.png"})
        assert unasked.is_error
        assert "output" in text_of(unasked)
    assert replicate_emulator.purchases == 1


async def test_a_budget_stops_an_agent(gateway: RunningGateway, replicate_emulator: EmulatorThread) -> None:
    key = await key_of(gateway, "poor")
    put = await gateway.request(
        "POST", "/budgets", json={"name": "poor", "key": "poor", "usd": 0.03, "per": "total"}, headers=ADMIN
    )
    assert put.status < 300, put.body
    async with an_agent(gateway, key) as agent:
        facts_of(await agent.call_tool("generate_image", FOX))
        refused = await agent.call_tool("generate_image", FOX)
        assert refused.is_error
        assert "budget_exceeded" in text_of(refused)
        quoted = await agent.call_tool("estimate_cost", FOX)
        assert "would be refused" in text_of(quoted)
    assert replicate_emulator.purchases == 1


async def test_a_dear_call_asks_the_user_or_says_how_to_confirm(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    dear = {**FOX, "count": 5}
    for agrees in (False, True):
        user = Asked(agrees=agrees)
        async with an_agent(gateway, elicitation_callback=user) as agent:
            answer = facts_of(await agent.call_tool("generate_image", dear))
        assert len(user.questions) == 1
        assert answer["status"] == ("made" if agrees else "declined")
    bought = replicate_emulator.purchases
    async with an_agent(gateway, era="legacy", elicitation_callback=Asked(agrees=True)) as agent:
        # older clients cannot be asked from here
        asked = facts_of(await agent.call_tool("generate_image", dear))
        assert asked["status"] == "confirmation_needed"
        assert replicate_emulator.purchases == bought
        confirmed = dear | {"confirm_cost_usd": asked["confirmation"]["confirm_cost_usd"]}
        assert facts_of(await agent.call_tool("generate_image", confirmed))["status"] == "made"


@pytest.mark.replicate_emulator(run_seconds=30)
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_the_client_gives_up_is_canceled_upstream(
    era: str, gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    async with an_agent(gateway, era=era) as agent, an_agent(gateway, era=era) as bystander:
        goes_on = asyncio.create_task(bystander.call_tool("generate_image", FOX))
        await until(lambda: replicate_emulator.state()["running"] == 1)
        async with anyio.create_task_group() as calls:
            calls.start_soon(agent.call_tool, "generate_image", FOX)
            await until(lambda: replicate_emulator.state()["running"] == 2)
            calls.cancel_scope.cancel()
        await until(lambda: replicate_emulator.state()["by_status"].get("canceled") == 1)

        async def is_counted() -> bool:  # it is settled a little later than it is canceled
            return bool(facts_of(await agent.call_tool("usage_report"))["total"]["predictions"] == 1)

        await until(is_counted)
        assert not goes_on.done()
        goes_on.cancel()
        await asyncio.wait({goes_on})


@pytest.mark.replicate_emulator(run_seconds=30)
@pytest.mark.parametrize("version", [None, "2026-07-28"])
async def test_whoever_hangs_up_wants_no_picture(
    version: str | None, gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    headers = ADMIN | {"accept": "application/json, text/event-stream"}
    call = dict(CALL)
    if version is not None:
        headers |= {"mcp-protocol-version": version, "mcp-method": "tools/call", "mcp-name": "generate_image"}
        known = {"protocolVersion": version, "clientCapabilities": {}}
        meta = {f"io.modelcontextprotocol/{name}": value for name, value in known.items()}
        call["params"] = CALL["params"] | {"_meta": meta}
    async with aiohttp.ClientSession() as caller:
        asked = asyncio.create_task(caller.post(f"{gateway.url}/mcp", json=call, headers=headers))
        await until(lambda: replicate_emulator.state()["running"] == 1)
        asked.cancel()
        await asyncio.wait({asked})
        if not asked.cancelled():
            asked.result().close()
    await until(lambda: replicate_emulator.state()["by_status"].get("canceled") == 1)


@pytest.mark.replicate_emulator(run_seconds=30)
async def test_nobody_cancels_the_call_of_somebody_else(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    key = await key_of(gateway, "other")
    common = {"accept": "application/json, text/event-stream", "mcp-session-id": "0" * 32}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": CALL["id"]}}
    asked = asyncio.create_task(post(gateway, common, CALL))
    await until(lambda: replicate_emulator.state()["running"] == 1)
    for headers in (common | {"X-API-Key": key}, common | ADMIN, {}, {"mcp-session-id": "1" * 32}):
        refused = await post(gateway, headers, cancel)
        assert refused.status == 400
        assert "another replica" in refused.json()["error"]["message"]
    assert not asked.done()
    assert replicate_emulator.state()["running"] == 1
    assert (await post(gateway, common, cancel)).status == 202
    answer = await asyncio.wait_for(asked, 10)
    assert b"the client canceled the call" in answer.body
    assert replicate_emulator.state()["by_status"].get("canceled") == 1
    assert (await post(gateway, common, cancel)).status == 202  # a little late, and of no harm


@pytest.mark.replicate_emulator(run_seconds=30)
async def test_a_create_that_is_held_open_is_canceled_by_its_id(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    asked = asyncio.create_task(post(gateway, ADMIN, CALL))
    await until(lambda: replicate_emulator.state()["running"] == 1)
    listed = await gateway.request("GET", "/v1/predictions", headers=ADMIN)
    (one,) = listed.json()["results"]
    other = await key_of(gateway, "other")
    async with an_agent(gateway, other) as agent:
        assert (await agent.call_tool("cancel_prediction", {"id": one["id"]})).is_error
    assert replicate_emulator.state()["running"] == 1
    async with an_agent(gateway) as agent:
        ended = facts_of(await agent.call_tool("cancel_prediction", {"id": one["id"]}))
    assert ended["status"] == "canceled"
    assert one["id"] in (await asyncio.wait_for(asked, 10)).body.decode()
    assert replicate_emulator.state()["by_status"] == {"canceled": 1}


async def test_a_broken_database_tells_nobody_where_it_lies(gateway: RunningGateway, tmp_path: Path) -> None:
    call = CALL | {"params": {"name": "get_prediction", "arguments": {"id": "pred_1"}}}
    database = gateway.app.database
    await until(gateway.is_ready)  # what the start does with it is done
    database.close()
    for file in database.path.parent.glob("imagen.db*"):
        file.unlink()
    database.path.write_bytes(b"this is no database" * 100)
    answers = [
        await post(gateway, {}, call),
        await gateway.request("GET", "/predictions/pred_1", headers=ADMIN),
        await gateway.request("GET", "/v1/predictions/pred_1", headers=ADMIN),
    ]
    for answer in answers:
        assert b"store_error" in answer.body
        assert str(tmp_path) not in answer.body.decode()
        assert b"imagen.db" not in answer.body


async def test_what_is_told_elsewhere_names_neither_our_files_nor_our_commands(
    gateway: RunningGateway, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    async with an_agent(gateway) as agent:
        for tool in ("get_prediction", "cancel_prediction"):
            long = await agent.call_tool(tool, {"id": "x" * 60_000})
            assert long.is_error
            assert "1 to 64" in text_of(long)
        wrong = await agent.call_tool("generate_image", {**FOX, "options": {"guidance": 99}})
        assert "describe_model lists its parameters" in text_of(wrong)
        for image in NO_PICTURES:
            nothing = await agent.call_tool("edit_image", {**FOX, "image": image})
            assert nothing.is_error
            assert "image: it" in text_of(nothing), text_of(nothing)
    answer = await gateway.request("GET", f"/v1/predictions/{'x' * 60_000}", headers=ADMIN)
    assert str(tmp_path) not in answer.body.decode()
    assert replicate_emulator.purchases == 0


@pytest.mark.replicate_emulator(run_seconds=3)
async def test_a_gateway_that_is_told_to_stop_hands_a_call_over(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    accept = {"accept": "application/json, text/event-stream"}
    async with aiohttp.ClientSession() as caller:  # who outlives the gateway

        async def ask(url: str) -> tuple[int, bytes]:
            async with caller.post(url, json=CALL, headers=ADMIN | accept) as response:
                return response.status, await response.read()

        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.2") as gateway:
            asked = asyncio.create_task(ask(f"{gateway.url}/mcp"))
            await until(lambda: replicate_emulator.state()["running"])
        status, body = await asyncio.wait_for(asked, 5)
    assert status == 200
    assert b"shutting down" in body
    assert b"It is paid for: do not ask for it again; get_prediction" in body
    assert b"try again" not in body
    told = re.search(rb"prediction: (pred_\w+)", body)
    assert told is not None
    assert b'"isError":true' in body
    async with running_gateway(tmp_path, replicate_emulator) as gateway, an_agent(gateway) as agent:

        async def pictures() -> Any:
            return facts_of(await agent.call_tool("get_prediction", {"id": told[1].decode()}))["pictures"]

        assert await until(pictures)
    assert replicate_emulator.state()["by_status"] == {"succeeded": 1}


@pytest.mark.replicate_emulator(run_seconds=0.2)
async def test_a_failure_tells_the_models_reason_and_nonsense_is_refused(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("fail", error="the model ran out of paint")
    async with an_agent(gateway) as agent:
        failed = await agent.call_tool("generate_image", FOX)
        assert failed.is_error
        assert "the model ran out of paint" in text_of(failed)
        assert "charged: no" in text_of(failed)
        replicate_emulator.add_fault("fail", error="out of paint again", times=1)
        half = await agent.call_tool(
            "generate_image", {"prompt": "a fox", "model": "flux-1.1-pro", "count": 2}
        )
        made = facts_of(half)
        assert len(made["pictures"]) == 1
        assert made["cost_usd"] == 0.04
        assert sorted(one["error"] is None for one in made["predictions"]) == [False, True]
        assert "out of paint again" in text_of(half)
    for body in ([], [1], {"jsonrpc": "2.0"}, {"id": {"a": 1}}, "x", 7):
        answer = await post(gateway, ADMIN, body)
        assert answer.status == 400, body
    async with gateway.session.post(
        f"{gateway.url}/mcp", data=b"{" * 1000, headers=ADMIN | {"content-type": "application/json"}
    ) as response:
        assert response.status in {400, 406}


LIST: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
MALFORMED: list[Any] = [
    "a hidden fox",
    7,
    {},
    {"jsonrpc": "1.0", "prompt": "a hidden fox"},
    {"jsonrpc": "2.0", "id": 1},
    {**LIST, "params": ["a hidden fox"]},
    {**LIST, "method": 7},
    *({**LIST, "id": told} for told in ({"a": "a hidden fox"}, None, True, 1.5, 1.0)),
    {"jsonrpc": "2.0", "id": 1, "result": "a hidden fox"},
    {"jsonrpc": "2.0", "id": True, "result": {}},
    {"jsonrpc": "2.0", "result": {}},
    {"jsonrpc": "2.0", "id": 1, "error": "a hidden fox"},
    {"jsonrpc": "2.0", "error": {"code": 1, "message": "a hidden fox"}},
]


@pytest.mark.parametrize("version", [None, "2025-06-18", "2026-07-28"])
async def test_what_is_no_message_is_told_in_one_sentence_that_quotes_nothing(
    version: str | None, gateway: RunningGateway
) -> None:
    headers = ADMIN if version is None else ADMIN | {"mcp-protocol-version": version}

    async def told(body: bytes, kind: str = "application/json") -> tuple[int, str]:
        more = {"accept": "application/json, text/event-stream", "content-type": kind}
        answer = await gateway.request("POST", "/mcp", data=body, headers=headers | more)
        assert answer.status == 400, (body, answer.body)
        for hidden in (b"hidden fox", b"pydantic", b"JSONRPCRequest"):
            assert hidden not in answer.body, body
        found = answer.json()
        assert (found["jsonrpc"], found["id"]) == ("2.0", None)
        return found["error"]["code"], found["error"]["message"]

    for body in MALFORMED:
        code, sentence = await told(json.dumps(body).encode())
        assert code == -32600, body
        assert sentence.startswith("the body is no JSON-RPC message: send an object"), body
    for batch in ([], [LIST], [{"prompt": "a hidden fox"}]):
        code, sentence = await told(json.dumps(batch).encode())
        assert (code, sentence) == (
            -32600,
            "batches (arrays) are not supported: send one message at a time",
        )
    for none in (b"", b"a hidden fox", b'{"a hidden fox', b"[" * 5000, b'"\xff"', b"NaN"):
        code, sentence = await told(none)
        assert (code, "not valid JSON" in sentence) == (-32700, True), none
    for kind in ("text/plain", "application/jsonl", "application/x-www-form-urlencoded"):
        code, sentence = await told(json.dumps(LIST).encode(), kind)
        assert (code, sentence) == (-32600, "the Content-Type must be application/json"), kind


async def test_every_well_formed_message_goes_on_to_the_sdk(gateway: RunningGateway) -> None:
    accept = {"accept": "application/json, text/event-stream"}
    for body, status in (
        (LIST, 200),
        (LIST | {"id": "a", "params": {}}, 200),
        (LIST | {"params": None}, 200),
        ({"jsonrpc": "2.0", "method": "notifications/initialized"}, 202),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, 202),
        ({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "no"}}, 202),
    ):
        kind = {"content-type": "application/json; charset=utf-8"}
        answer = await gateway.request(
            "POST", "/mcp", data=json.dumps(body).encode(), headers=ADMIN | accept | kind
        )
        assert answer.status == status, (body, answer.body)


@pytest.mark.replicate_emulator(run_seconds=0.2)
async def test_two_agents_at_once(gateway: RunningGateway, replicate_emulator: EmulatorThread) -> None:
    links: list[str] = []

    async def make(agent: Client, number: int) -> None:
        wish = {"prompt": f"fox {number}", "model": "flux-schnell"}
        links.append(facts_of(await agent.call_tool("generate_image", wish))["pictures"][0]["url"])

    async with (
        an_agent(gateway) as one,
        an_agent(gateway, era="legacy") as other,
        anyio.create_task_group() as calls,
    ):
        for number in range(8):
            calls.start_soon(make, (one, other)[number % 2], number)
    assert len(set(links)) == 8
    assert replicate_emulator.purchases == 8


async def test_a_callers_own_token_pays(gateway: RunningGateway, replicate_emulator: EmulatorThread) -> None:
    async with an_agent(gateway, "r8_the_token_of_an_agent") as agent:
        facts_of(await agent.call_tool("generate_image", FOX))
        spent = facts_of(await agent.call_tool("usage_report", {"by": "caller"}))
    assert spent["groups"][0]["name"].startswith("token:")
    assert [account["predictions"] for account in replicate_emulator.state()["accounts"]].count(1) == 1


def test_neither_the_command_nor_a_gateway_imports_the_sdk() -> None:
    script = (
        "import sys, imagen.cli.main, imagen.cli.mcp_workshops, imagen.server.run\n"
        "print([name for name in sys.modules if name in {'mcp', 'mcp_types', 'httpx2'}])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
