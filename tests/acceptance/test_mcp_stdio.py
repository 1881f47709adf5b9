"""`imagen mcp` in a process of its own, spoken to by the official client and by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError

from agent_calls import (
    DEV,
    NO_PICTURES,
    SCHNELL,
    TOOLS,
    Asked,
    Heard,
    facts_of,
    holds_picture,
    picture_at,
    text_of,
    thumbnail_of,
)
from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = pytest.mark.anyio
ERAS = ("auto", "legacy")
"""The protocol with a handshake, which most agents speak, and the one without."""


@asynccontextmanager
async def an_agent(cli: Any, *options: str, era: str = "auto", **client: Any) -> AsyncIterator[Client]:
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "imagen", "mcp", *options], env=cli.env, cwd=cli.work
    )
    async with Client(server, mode=era, **client) as agent:
        yield agent


@pytest.fixture
def practised(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """A command whose Replicate is the emulator, with prices as with the real one."""
    cli.use(replicate_emulator.url)
    return cli


@pytest.mark.replicate_emulator(run_seconds=0.5)
@pytest.mark.parametrize("era", ERAS)
async def test_an_agent_chooses_makes_looks_edits_and_counts(
    era: str, practised: Any, replicate_emulator: EmulatorThread
) -> None:
    async with an_agent(practised, era=era) as agent:
        listed = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert set(listed) == TOOLS
        assert listed["generate_image"].annotations is not None
        assert not listed["generate_image"].annotations.read_only_hint
        assert listed["estimate_cost"].annotations is not None
        assert listed["estimate_cost"].annotations.read_only_hint

        found = facts_of(await agent.call_tool("list_models", {"search": "flux edit"}))
        assert DEV in [model["name"] for model in found["models"]]
        sheet = facts_of(await agent.call_tool("describe_model", {"model": "flux-dev"}))
        assert sheet["parameters"]["properties"]["num_inference_steps"]["maximum"] == 50
        wish = {"prompt": "a red fox", "model": "flux-dev"}
        quoted = facts_of(await agent.call_tool("estimate_cost", {**wish, "count": 2}))
        assert quoted["quote"]["high_usd"] == 0.05
        advised = facts_of(await agent.call_tool("recommend_model", {"budget_usd": 1, "iterations": 300}))
        assert advised["model"] == SCHNELL
        assert replicate_emulator.purchases == 0

        heard = Heard()
        answer = await agent.call_tool(
            "generate_image",
            {**wish, "seed": 7, "output": "fox.png", "thumbnail": True, "options": {"guidance": 4}},
            progress_callback=heard,
        )
        made = facts_of(answer)
        content = picture_at(practised.work / "fox.png")
        assert made["pictures"][0]["path"] == str(practised.work / "fox.png")
        assert made["pictures"][0]["bytes"] == len(content)
        assert (made["seed"], made["model"], made["cost_usd"]) == (7, DEV, 0.025)
        assert made["prediction_id"] in text_of(answer)
        assert str(practised.work / "fox.png") in text_of(answer)
        assert thumbnail_of(answer).size == (256, 256)
        assert not holds_picture(answer, content)
        assert heard.messages[-1] == "saved"
        assert heard.values == sorted(set(heard.values))
        assert len(heard.values) >= 2

        seen = facts_of(await agent.call_tool("get_prediction", {"id": made["prediction_id"]}))
        assert seen["status"] == "succeeded"
        assert seen["pictures"] == made["pictures"]
        edited = facts_of(
            await agent.call_tool(
                "edit_image", {"prompt": "in the snow", "image": "fox.png", "model": "flux-dev"}
            )
        )
        assert picture_at(edited["pictures"][0]["path"]) != content
        report = await agent.call_tool("usage_report", {"since": "today", "by": "model"})
        spent = facts_of(report)
        assert (spent["total"]["cost_usd"], spent["total"]["images"]) == (0.05, 2)
        assert "Total: $0.05, 2 predictions, 2 pictures" in text_of(report)
    assert replicate_emulator.purchases == 2


async def test_what_is_wrong_is_told_and_nothing_is_bought(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    (practised.work / "there.png").write_bytes(b"a picture of somebody")
    async with an_agent(practised) as agent:
        for wrong, told in (
            ({"prompt": "a fox", "go_fast": True}, ("go_fast", "It takes prompt, model", "options")),
            ({"prompt": "a fox", "output": "there.png"}, ("there.png exists already: use another name",)),
            ({"model": "flux-dev"}, ("prompt", "required")),
            ({"prompt": "a fox", "count": "two"}, ("count", "whole number")),
            ({"prompt": "a fox", "width": 512}, ("height",)),
            ({"prompt": "a fox", "model": "flux-dev", "options": {"guidance": 99}}, ("guidance", "10")),
            (
                {"prompt": "a fox", "model": "flux-schnell", "count": 3, "options": {"num_outputs": 1}},
                ("num_outputs", "3"),
            ),
            ({"prompt": "a fox", "model": "no-such-model"}, ("no-such-model",)),
            ({"prompt": "a fox", "model": "flux-dev", "max_cost_usd": 0.001}, ("$0.025", "$0.001")),
            (
                {"prompt": "a fox", "model": "flux-2-klein-9b", "max_cost_usd": 1},
                ("not known", "Leave max_cost_usd away"),
            ),
        ):
            answer = await agent.call_tool("generate_image", wrong)
            assert answer.is_error, wrong
            assert all(part in text_of(answer) for part in told), text_of(answer)
            assert "Traceback" not in text_of(answer)
        missing = await agent.call_tool("edit_image", {"prompt": "a fox", "image": "nowhere.png"})
        assert missing.is_error
        assert "image: nowhere.png" in text_of(missing)
        for image in NO_PICTURES:
            nothing = await agent.call_tool(
                "edit_image", {"prompt": "a fox", "model": "flux-dev", "image": image}
            )
            assert nothing.is_error, image
            assert "image: it" in text_of(nothing), text_of(nothing)
        (practised.work / "secrets.env").write_text("TOKEN=r8_secret")
        leaked = await agent.call_tool("edit_image", {"prompt": "a fox", "image": "secrets.env"})
        assert leaked.is_error
        assert "image: secrets.env is no picture" in text_of(leaked)
        unknown = await agent.call_tool("get_prediction", {"id": "pred_unheardof"})
        assert unknown.is_error
        with pytest.raises(MCPError, match="there is no tool"):
            await agent.call_tool("paint", {})
        assert replicate_emulator.purchases == 0
        replicate_emulator.add_fault("fail", preset="nsfw")
        failed = await agent.call_tool("generate_image", {"prompt": "a fox", "model": "flux-dev"})
        assert failed.is_error
        assert "NSFW content detected" in text_of(failed)
        assert "a different prompt (it was not charged). The content filter" in text_of(failed)
        assert "charged: no" in text_of(failed)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("agrees", [True, False, None])
async def test_a_dear_call_asks_the_user(
    agrees: bool | None, era: str, practised: Any, replicate_emulator: EmulatorThread
) -> None:
    user = Asked(agrees=agrees)
    async with an_agent(practised, era=era, elicitation_callback=user) as agent:
        cheap = facts_of(await agent.call_tool("generate_image", {"prompt": "a fox", "model": "flux-dev"}))
        assert cheap["status"] == "made"
        assert user.questions == []
        dear = facts_of(
            await agent.call_tool("generate_image", {"prompt": "foxes", "model": "flux-dev", "count": 5})
        )
    (question,) = user.questions
    assert "$0.125" in question
    assert dear["status"] == ("made" if agrees else "declined")
    assert len(dear["pictures"]) == (5 if agrees else 0)
    assert replicate_emulator.purchases == (1 + 2 if agrees else 1)


async def test_where_nobody_can_be_asked_the_answer_says_how_to_confirm(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    async with an_agent(practised, "--confirm-above", "0.01", "--budget", "0.06") as agent:
        wish = {"prompt": "a fox", "model": "flux-dev"}
        first = await agent.call_tool("generate_image", wish)
        asked = facts_of(first)
        assert (asked["status"], asked["quoted_usd"], asked["pictures"]) == ("confirmation_needed", 0.025, [])
        assert "Nothing was bought yet" in text_of(first)
        assert "confirm_cost_usd: 0.025" in text_of(first)
        unpriced = {"prompt": "a fox", "model": "flux-2-klein-9b"}
        nobody_knows = facts_of(await agent.call_tool("generate_image", unpriced))
        assert (nobody_knows["status"], nobody_knows["quoted_usd"]) == ("confirmation_needed", None)
        bold = await agent.call_tool("generate_image", {**unpriced, "confirm_cost_usd": 0})
        assert bold.is_error
        assert "nobody knows what this costs" in text_of(bold)
        too_little = facts_of(await agent.call_tool("generate_image", {**wish, "confirm_cost_usd": 0.02}))
        assert too_little["status"] == "confirmation_needed"
        assert replicate_emulator.purchases == 0

        confirmed = {**wish, "confirm_cost_usd": asked["confirmation"]["confirm_cost_usd"]}
        for left in (0.035, 0.01):
            made = facts_of(await agent.call_tool("generate_image", confirmed))
            assert (made["status"], made["budget_left_usd"]) == ("made", left)
        refused = await agent.call_tool("generate_image", confirmed)
        assert refused.is_error
        assert "this connection may spend $0.06" in text_of(refused)
        assert "budget_exceeded" in text_of(refused)
        assert replicate_emulator.purchases == 2


@pytest.mark.replicate_emulator(run_seconds=30)
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_the_client_gives_up_is_canceled_upstream(
    era: str, practised: Any, replicate_emulator: EmulatorThread
) -> None:
    async with an_agent(practised, era=era) as agent:
        async with anyio.create_task_group() as calls:
            calls.start_soon(agent.call_tool, "generate_image", {"prompt": "a fox", "model": "flux-dev"})
            await until(lambda: replicate_emulator.state()["running"])
            calls.cancel_scope.cancel()
        await until(lambda: replicate_emulator.state()["by_status"].get("canceled"))

        async def is_counted() -> Any:  # it is settled a little later than it is canceled
            spent = facts_of(await agent.call_tool("usage_report", {}))["total"]
            return spent if spent["predictions"] else None

        spent = await until(is_counted)
        assert (spent["predictions"], spent["succeeded"]) == (1, 0)


@pytest.mark.replicate_emulator(run_seconds=30)
@pytest.mark.parametrize("heard", [None, Heard()], ids=["held open", "looked at"])
async def test_one_call_cancels_another(
    heard: Heard | None, practised: Any, replicate_emulator: EmulatorThread
) -> None:
    answers: list[Any] = []
    async with an_agent(practised) as agent:

        async def make() -> None:
            wish = {"prompt": "a fox", "model": "flux-dev"}
            answers.append(await agent.call_tool("generate_image", wish, progress_callback=heard))

        async with anyio.create_task_group() as calls:
            calls.start_soon(make)
            await until(lambda: replicate_emulator.state()["running"])
            (one,) = practised("predictions", "list", "--json", code=0).json
            ended = facts_of(await agent.call_tool("cancel_prediction", {"id": one["id"]}))
            assert ended["status"] == "canceled"
    (answer,) = answers
    assert answer.is_error
    assert one["id"] in text_of(answer)
    assert replicate_emulator.state()["by_status"] == {"canceled": 1}


async def test_an_estimate_of_a_price_is_not_bought_without_asking(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    wish = {"prompt": "a fox", "model": "sdxl", "options": {"num_inference_steps": 500}}
    async with an_agent(practised, "--confirm-above", "1") as agent:
        first = await agent.call_tool("generate_image", wish)
        asked = facts_of(first)
        assert asked["status"] == "confirmation_needed"
        assert "by an estimate" in text_of(first)
        assert replicate_emulator.purchases == 0
        confirmed = wish | {"confirm_cost_usd": asked["confirmation"]["confirm_cost_usd"]}
        assert facts_of(await agent.call_tool("generate_image", confirmed))["status"] == "made"
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_two_agents_share_one_data_folder(practised: Any, replicate_emulator: EmulatorThread) -> None:
    paths: list[str] = []

    async def make(agent: Client, number: int) -> None:
        wish = {"prompt": f"fox {number}", "model": "flux-schnell"}
        paths.append(facts_of(await agent.call_tool("generate_image", wish))["pictures"][0]["path"])

    async with an_agent(practised) as one, an_agent(practised) as other, anyio.create_task_group() as calls:
        for number in range(4):
            calls.start_soon(make, (one, other)[number % 2], number)
    assert len(set(paths)) == 4
    assert all(picture_at(path) for path in paths)
    assert replicate_emulator.purchases == 4


async def test_without_a_token_it_is_practice(cli: Any) -> None:
    async with an_agent(cli, "--output", "kept/") as agent:
        made = facts_of(await agent.call_tool("generate_image", {"prompt": "a fox", "count": 4}))
        assert (made["practice"], made["cost_usd"], len(made["pictures"])) == (True, 0.0, 4)
        assert {picture["path"].rpartition("/")[0] for picture in made["pictures"]} == {
            str(cli.work / "kept")
        }
        edited = facts_of(
            await agent.call_tool("edit_image", {"prompt": "snow", "image": made["pictures"][0]["path"]})
        )
        assert edited["model"] == "black-forest-labs/flux-kontext-pro"


@pytest.mark.replicate_emulator(run_seconds=0.2)
async def test_a_running_gateway_does_the_work(practised: Any, replicate_emulator: EmulatorThread) -> None:
    served = practised.start("serve", "--port", "0", "--json")
    url = json.loads(served.read_line())["url"]
    elsewhere = practised.env | {"IMAGEN_DATA_DIR": str(practised.root / "agent"), "REPLICATE_API_TOKEN": ""}
    practised.env.clear()
    practised.env.update(elsewhere)
    async with an_agent(practised, "--server", url, "--confirm-above", "0.03") as agent:
        wish = {"prompt": "a fox", "model": "flux-dev"}
        made = facts_of(await agent.call_tool("generate_image", {**wish, "output": "fox.png"}))
        assert picture_at(practised.work / "fox.png")
        assert (made["cost_usd"], made["practice"]) == (0.025, False)
        seen = facts_of(await agent.call_tool("get_prediction", {"id": made["prediction_id"]}))
        assert seen["status"] == "succeeded"
        dear = facts_of(await agent.call_tool("generate_image", {**wish, "count": 2}))
        assert dear["status"] == "confirmation_needed"
        report = await agent.call_tool("usage_report", {})
        assert facts_of(report)["total"]["cost_usd"] == 0.025
        assert "Total: $0.025, 1 prediction, 1 picture" in text_of(report)
        quoted = facts_of(await agent.call_tool("estimate_cost", wish))
        assert quoted["quote"]["likely_usd"] == 0.025
        replicate_emulator.add_fault("slow", prompt="slow", run_seconds=60)
        async with httpx2.AsyncClient() as client:
            durable = {"model_name": "flux-dev", "prompt": "a slow fox"}
            taken = (await client.post(f"{url}/predictions", json=durable)).json()
        state = facts_of(await agent.call_tool("get_prediction", {"id": taken["id"]}))
        assert state["status"] in {"queued", "starting", "processing"}
        await until(lambda: replicate_emulator.state()["running"], within=30)
        facts_of(await agent.call_tool("cancel_prediction", {"id": taken["id"]}))

        async def is_canceled() -> bool:
            told = facts_of(await agent.call_tool("get_prediction", {"id": taken["id"]}))
            return bool(told["status"] == "canceled")

        await until(is_canceled, within=30)
    assert replicate_emulator.purchases == 2


HELLO = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "by hand", "version": "1"}}},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
)  # fmt: skip
CALL = {
    "jsonrpc": "2.0", "id": 2, "method": "tools/call",
    "params": {"name": "generate_image", "arguments": {"prompt": "a fox", "model": "flux-dev"}},
}  # fmt: skip


@pytest.mark.replicate_emulator(run_seconds=30)
@pytest.mark.parametrize("how", ["closed", "told to stop", "interrupted"])
async def test_it_ends_in_order_with_what_it_was_making(
    how: str, practised: Any, replicate_emulator: EmulatorThread
) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else happens meanwhile
        [sys.executable, "-m", "imagen", "mcp"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=practised.env, cwd=practised.work, text=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write("".join(json.dumps(one) + "\n" for one in (*HELLO, CALL)))
        process.stdin.flush()
        await until(lambda: replicate_emulator.state()["running"])
        match how:
            case "told to stop":
                process.send_signal(signal.SIGTERM)
            case "interrupted":
                process.send_signal(signal.SIGINT)
            case _:
                process.stdin.close()
                process.stdin = None
        stdout, stderr = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=20))
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    assert stderr == ""
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line.get("id") for line in lines][:1] == [1]
    assert all(line["jsonrpc"] == "2.0" for line in lines)
    assert replicate_emulator.state()["by_status"].get("canceled") == 1
    (one,) = practised("predictions", "list", "--json", code=0).json
    assert one["status"] == "canceled"


async def test_what_goes_into_an_agents_configuration(cli: Any) -> None:
    told = cli("mcp", "--print-config", "--budget", "2", "--server", "http://127.0.0.1:5003", code=0)
    (server,) = told.json["mcpServers"].values()
    assert server["args"][-5:] == ["mcp", "--budget", "2", "--server", "http://127.0.0.1:5003"]
    assert "IMAGEN_API_KEY" in told.stderr
    assert "never give an agent the admin key" in told.stderr
    assert "REPLICATE_API_TOKEN" in cli("mcp", "--print-config", code=0).stderr
    for wrong in (
        ("--budget", "much"),
        ("--confirm-above", "-1"),
        ("--backend", "nobody"),
        ("--server", "ftp://a"),
    ):
        refused = cli("mcp", "--print-config", *wrong, code=2)
        assert refused.stdout == ""
        assert wrong[0].strip("-").replace("-", "_") in refused.stderr


async def test_a_wrong_option_is_told_before_anything_is_said(cli: Any) -> None:
    told = cli("mcp", "--budget", "much", code=2)
    assert told.stdout == ""
    assert "budget" in told.stderr
