"""Callers of Replicate's API are told at their addresses: the prediction itself, in order, signed with what they are shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from gateway import ADMIN, RunningGateway, running_gateway
from standardwebhooks import Webhook

from fakes.servers import Exchange, RawServer, raw_server
from imagen.domain.delivery import Delivery
from imagen.emulator import EmulatorThread
from replicate_document import complaints, document, find_document
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]

MODEL = "black-forest-labs/flux-dev"
PRIVATE = {"IMAGEN_DELIVERIES__PRIVATE": "true"}
ALL = ["start", "output", "logs", "completed"]


async def say_ok(exchange: Exchange) -> None:
    await exchange.answer()


async def create(
    gateway: RunningGateway,
    server: RawServer,
    *,
    events: list[str] | None = None,
    headers: dict[str, str] | None = None,
    **model_input: Any,
) -> dict[str, Any]:
    body: dict[str, Any] = {"input": {"prompt": "a fox"} | model_input, "webhook": f"{server.url}/hook"}
    if events is not None:
        body["webhook_events_filter"] = events
    answer = await gateway.request(
        "POST", f"/v1/models/{MODEL}/predictions", json=body, headers=headers or ADMIN
    )
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.json()
    return made


async def told(server: RawServer) -> list[dict[str, Any]]:
    """What came until the end was told."""

    def came() -> list[dict[str, Any]] | None:
        bodies = [json.loads(one.body) for one in server.exchanges]
        return bodies if bodies and "completed_at" in bodies[-1] else None

    return await until(came)


async def test_each_event_tells_the_prediction_in_order_and_is_signed(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=4.0)
    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        made = (await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)).json()
        key = {"Authorization": f"Bearer {made['key']}"}
        promised = await create(gateway, server, events=ALL, headers=key)
        bodies = await told(server)
        answer = await gateway.request("GET", "/v1/webhooks/default/secret", headers=key)
        if find_document() is not None:
            assert (
                complaints(
                    method="get",
                    template="/webhooks/default/secret",
                    status=answer.status,
                    kind="application/json",
                    raw=answer.body,
                )
                == []
            )
            schema = {
                "$ref": "#/components/schemas/schemas_prediction_response",
                "components": document()["components"],
            }
            for body in bodies:
                jsonschema.validate(body, schema)
        verifier = Webhook(answer.json()["key"])
        for one in server.exchanges:
            verifier.verify(one.body, one.headers)
        assert (
            answer.json()["key"]
            == (await gateway.request("GET", "/webhooks/secret", headers=key)).json()["secrets"][0]["secret"]
        )
        last = await gateway.request("GET", f"/v1/predictions/{promised['id']}", headers=key)
    assert {body["id"] for body in bodies} == {promised["id"]}
    assert bodies[0]["status"] == "processing"  # that it begins
    assert bodies[-1] == last.json()
    assert bodies[-2]["output"] == bodies[-1]["output"]
    assert bodies[-2]["status"] == "processing"
    logs = [len(body["logs"]) for body in bodies]
    assert logs == sorted(logs)
    assert len(set(logs)) > 2
    assert len(bodies) <= 2 + 1 + 1 + 4.0 / 0.5


async def test_without_a_filter_output_and_end_are_told(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        made = await create(gateway, server)
        bodies = await told(server)
        assert [body["status"] for body in bodies] == ["processing", "succeeded"]
        assert bodies[0]["output"] == bodies[1]["output"] != []
        assert bodies[1]["urls"]["get"] == made["urls"]["get"]


async def test_a_filter_of_nothing_or_for_nobody_is_none(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        await create(gateway, server, events=[])
        assert [body["status"] for body in await told(server)] == ["processing", "succeeded"]
        for events in ([], ["start", "output"]):
            body = {"input": {"prompt": "a hen"}, "webhook_events_filter": events}
            answer = await gateway.request(
                "POST", f"/v1/models/{MODEL}/predictions", json=body, headers=ADMIN | {"Prefer": "wait"}
            )
            assert (answer.status, answer.json()["status"]) == (201, "succeeded"), answer.body
        assert len(server.exchanges) == 2


async def test_an_end_is_told_however_it_came(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    """Failed with the model's reason, canceled while it ran, and canceled while it waited with us."""
    async with (
        running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="1", **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        await create(gateway, server, events=["completed"], prompt="x [fault:fail preset=nsfw]")
        (failed,) = await told(server)
        assert (failed["status"], failed["output"]) == ("failed", None)
        assert "NSFW" in failed["error"]
        replicate_emulator.add_fault("slow", run_seconds=60.0)
        runs = await create(gateway, server, events=["completed"])
        await until(lambda: replicate_emulator.purchases == 2)
        waits = await create(gateway, server, events=["completed"])
        for one in (waits, runs):
            path = f"/v1/predictions/{one['id']}/cancel"
            assert (await gateway.request("POST", path, headers=ADMIN)).json()["status"] == "canceled"
        await until(lambda: len(server.exchanges) == 3)
        rest = {body["id"]: body["status"] for body in [json.loads(one.body) for one in server.exchanges[1:]]}
    assert rest == {waits["id"]: "canceled", runs["id"]: "canceled"}
    assert replicate_emulator.purchases == 2


async def test_files_inside_an_answer_are_sent_and_never_written_down(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("data_uri_output")
    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        made = await create(gateway, server, events=["completed"])
        (body,) = await told(server)
        (picture,) = body["output"]
        assert picture.startswith("data:image/")
        assert len(picture) > 1000
        (kept,) = await gateway.app.outbox.list(limit=10)
        assert kept.body["output"] == ["data:"]
        seen = await gateway.request("GET", f"/v1/predictions/{made['id']}", headers=ADMIN)
        assert seen.json()["output"] == [picture]


async def test_an_input_is_written_down_once_however_often_it_is_told(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    large = "data:image/png;base64," + "A" * 600_000
    async with (
        running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="1", **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        replicate_emulator.add_fault("slow", run_seconds=1.0)
        await create(gateway, server, events=ALL, prompt="told often", image=large)
        bodies = await told(server)
        assert len(bodies) >= 3
        assert all(body["input"]["prompt"] == "told often" for body in bodies)
        assert all(body["input"]["image"] == large for body in bodies)
        assert all(not one.body["input"] for one in await gateway.app.outbox.list(limit=10))
        before = len(server.exchanges)
        replicate_emulator.add_fault("slow", run_seconds=60.0)
        await create(gateway, server, events=["completed"])
        await until(lambda: replicate_emulator.purchases == 2)
        waits = await create(gateway, server, events=["completed"], prompt="never begun")
        await gateway.request("POST", f"/v1/predictions/{waits['id']}/cancel", headers=ADMIN)
        (body,) = await until(lambda: [json.loads(one.body) for one in server.exchanges[before:]])
        assert (body["id"], body["input"]["prompt"]) == (waits["id"], "never begun")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"webhook": "ftp://shop.example/x"}, "webhook"),
        ({"webhook_events_filter": ["begin"]}, "webhook_events_filter.0"),
        ({"webhook": "https://10.0.0.1/x"}, "webhook"),
    ],
)
async def test_addresses_that_cannot_be_told_are_refused(
    tmp_path: Path, replicate_emulator: EmulatorThread, fields: dict[str, Any], wrong: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        body = {"input": {"prompt": "a fox"}} | fields
        answer = await gateway.request("POST", f"/v1/models/{MODEL}/predictions", json=body, headers=ADMIN)
        assert (answer.status, answer.json()["invalid_fields"][0]["field"]) == (422, wrong)
    assert replicate_emulator.purchases == 0


async def in_outbox(gateway: RunningGateway, event: str) -> list[Delivery]:
    found = await gateway.app.outbox.list(limit=100)
    return [one for one in reversed(found) if event in {one.event, "*"}]


def assert_told_once(deliveries: list[Delivery]) -> None:
    """No state twice, each longer than the one before, and the end at the end."""
    for event in ("replicate.output", "replicate.logs"):
        logs = [len(one.body["logs"]) for one in deliveries if one.event == event]
        assert logs == sorted(set(logs)), event
        assert logs, event
    assert len([one for one in deliveries if one.event == "replicate.output"]) == 1
    assert deliveries[-1].event == "replicate.completed"


@pytest.mark.replicate_emulator(run_seconds=3.0)
async def test_what_is_being_written_as_it_ends_is_told_once(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.service.terms._QUICK_SECONDS", 0.0)  # as a slow model: watched, not held
    replicate_emulator.add_fault("early_output", prompt="a fox", times=None)
    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        put, written, known = gateway.app.outbox.put, asyncio.Event(), asyncio.Event()

        async def late(deliveries: Sequence[Delivery]) -> None:
            """It is written, and that is known only after the end."""
            await put(deliveries)
            if any(one.event == "replicate.output" for one in deliveries):
                written.set()
                await known.wait()

        monkeypatch.setattr(gateway.app.outbox, "put", late)
        await create(gateway, server, events=ALL)
        await told(server)
        deliveries = await in_outbox(gateway, "*")
        known.set()
    assert_told_once(deliveries)
    assert written.is_set()


@pytest.mark.replicate_emulator(run_seconds=4.0)
async def test_after_a_restart_nothing_is_told_again(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.service.terms._QUICK_SECONDS", 0.0)
    replicate_emulator.add_fault("early_output", prompt="a fox", seconds=3, times=None)
    async with raw_server(say_ok) as server:
        async with running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway:
            await create(gateway, server, events=ALL)
            await until(lambda: in_outbox(gateway, "replicate.output"))
        async with running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway:
            await told(server)
            deliveries = await in_outbox(gateway, "*")
    assert_told_once(deliveries)
