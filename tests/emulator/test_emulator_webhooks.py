"""Webhooks as Replicate documents them: events, order, signature, retries; and what can be made to go wrong with them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from imagen.emulator import Emulator, EmulatorThread

if TYPE_CHECKING:
    from conftest import Caller, Reply

pytestmark = pytest.mark.anyio

SCHNELL = "black-forest-labs/flux-schnell"
ADDRESS = "https://hooks.example:8443/of/replicate?a=b"
RUN_SECONDS = 30


@dataclass(frozen=True)
class Arrived:
    """One request at the receiver."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """What stands behind the proxy: keeps every request, answers as it is told."""

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.status: Callable[[int], int] = lambda _: 200
        self.url = ""
        self._more = asyncio.Condition()

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.arrived.append(Arrived(request.path_qs, headers, await request.read()))
        async with self._more:
            self._more.notify_all()
        return web.Response(
            status=self.status(len(self.arrived)), headers={"Location": "https://evil.example/"}
        )

    async def until(self, count: int) -> list[Arrived]:
        async with asyncio.timeout(10), self._more:
            await self._more.wait_for(lambda: len(self.arrived) >= count)
        return self.arrived[:count]


@pytest.fixture
async def receiver(anyio_backend: str, emulator: Emulator) -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_route("POST", "/{tail:.*}", found.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    emulator.set_mode(webhooks_via=found.url)
    yield found
    await runner.cleanup()


async def create(call: Caller, *events: str, prompt: str = "a red fox", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"version": SCHNELL, "input": {"prompt": prompt}, "webhook": ADDRESS}
    if events:
        body["webhook_events_filter"] = list(events)
    reply: Reply = await call("POST", "/v1/predictions", body, **more)
    assert reply.status == 201, reply.raw
    created: dict[str, Any] = reply.json
    return created


async def secret(call: Caller) -> str:
    return str((await call("GET", "/v1/webhooks/default/secret")).json["key"])


def sent(emulator: Emulator, event: str = "webhook") -> list[tuple[str, int, str | None]]:
    return [(e.operation, e.status, e.fault) for e in emulator.journal.entries(operation=event)]


async def attempts(emulator: Emulator, count: int) -> None:
    """Until so many attempts have been written down."""
    async with asyncio.timeout(10):
        while len(sent(emulator)) < count:  # noqa: ASYNC110 - the journal tells nobody
            await asyncio.sleep(0.002)


# --- what is sent ----------------------------------------------------------------------------------------


async def test_a_training_tells_of_itself_too(call: Caller, emulator: Emulator, receiver: Receiver):
    owner = (await call("GET", "/v1/account")).json["username"]
    made = {"owner": owner, "name": "tuned", "visibility": "private", "hardware": "cpu"}
    await call("POST", "/v1/models", made)
    version = (await call("GET", f"/v1/models/{SCHNELL}")).json["latest_version"]["id"]
    body = {"destination": f"{owner}/tuned", "input": {}, "webhook": ADDRESS}
    body["webhook_events_filter"] = ["start", "completed"]
    begun = await call("POST", f"/v1/models/{SCHNELL}/versions/{version}/trainings", body)
    emulator.clock.advance(1)
    (start,) = await receiver.until(1)
    emulator.clock.advance(RUN_SECONDS)
    _, completed = await receiver.until(2)
    assert (start.json["id"], start.json["status"]) == (begun.json["id"], "processing")
    assert completed.json == (await call("GET", begun.json["urls"]["get"])).json
    headers = {name: value for name, value in completed.headers.items() if name.startswith("webhook-")}
    assert headers["webhook-id"] != start.id
    assert [operation for operation, _, _ in sent(emulator)] == ["start.webhook", "completed.webhook"]


async def test_the_end_is_told_as_the_prediction_is_shown_and_the_official_verifier_accepts_it(
    call: Caller, emulator: Emulator, receiver: Receiver
):
    created = await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    (told,) = await receiver.until(1)
    assert told.json == await call.get(created)
    assert told.json["status"] == "succeeded"
    assert told.json["output"]
    assert told.path == "/of/replicate?a=b"
    assert told.headers["host"] == "hooks.example:8443"
    assert told.headers["content-type"] == "application/json"


async def test_the_signature_is_one_of_version_1_over_id_time_and_raw_body(
    call: Caller, emulator: Emulator, receiver: Receiver
):
    await create(call, "start")
    (told,) = await receiver.until(1)
    assert Webhook(await secret(call)).verify(told.raw, told.headers) == told.json
    assert re.fullmatch(r"v1,[A-Za-z0-9+/]{43}=", told.headers["webhook-signature"])
    assert abs(int(told.headers["webhook-timestamp"]) - emulator.clock.time()) < 10
    for changed in (
        {"webhook-id": told.id + "x"},
        {"webhook-timestamp": str(int(emulator.clock.time()) + 5)},
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(await secret(call)).verify(told.raw, told.headers | changed)


async def test_each_account_signs_with_its_own_secret(call: Caller, emulator: Emulator, receiver: Receiver):
    await create(call, "start", token="r8_another")
    (told,) = await receiver.until(1)
    with pytest.raises(WebhookVerificationError):
        Webhook(await secret(call)).verify(told.raw, told.headers)
    other = (await call("GET", "/v1/webhooks/default/secret", token="r8_another")).json["key"]
    assert Webhook(other).verify(told.raw, told.headers)["status"] == "processing"


async def test_a_rotated_secret_signs_from_then_on(call: Caller, emulator: Emulator, receiver: Receiver):
    await create(call, "start")
    before = await secret(call)
    await receiver.until(1)
    await call("POST", "/_emulator/webhook-secrets/rotate", token=None)
    after = await secret(call)
    await create(call, "start")
    _, told = await receiver.until(2)
    assert Webhook(after).verify(told.raw, told.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(before).verify(told.raw, told.headers)


async def test_without_a_filter_outputs_and_the_end_are_told(
    call: Caller, emulator: Emulator, receiver: Receiver
):
    emulator.add_fault("early_output", seconds=20)
    await create(call)
    emulator.clock.advance(RUN_SECONDS)
    await receiver.until(1)
    emulator.clock.advance(20)
    first, second = await receiver.until(2)
    assert (first.json["status"], second.json["status"]) == ("processing", "succeeded")
    assert first.json["output"] == second.json["output"] != []
    await attempts(emulator, 2)
    assert [operation for operation, _, _ in sent(emulator)] == ["output.webhook", "completed.webhook"]


async def test_all_four_events_come_in_order_each_as_things_stood_then(
    call: Caller, emulator: Emulator, receiver: Receiver
):
    await create(call, "start", "output", "logs", "completed")
    await receiver.until(2)
    emulator.clock.advance(RUN_SECONDS / 2)
    await receiver.until(3)
    emulator.clock.advance(RUN_SECONDS)
    arrived = await receiver.until(5)
    await attempts(emulator, 5)
    assert [operation.partition(".")[0] for operation, _, _ in sent(emulator)] == [
        "start",
        "logs",
        "logs",
        "output",
        "completed",
    ]
    assert [one.json["status"] for one in arrived[:3]] == ["processing"] * 3
    assert arrived[0].json["output"] is None
    assert len(arrived[2].json["logs"]) > len(arrived[1].json["logs"])
    assert len({one.id for one in arrived}) == 5


async def test_logs_come_at_most_every_half_second(call: Caller, emulator: Emulator, receiver: Receiver):
    emulator.add_fault("slow", run_seconds=4)
    await create(call, "logs", "completed")
    for _ in range(40):
        emulator.clock.advance(0.1)
        await asyncio.sleep(0.002)
    await receiver.until(2)
    at = [
        float(re.sub(r".*T\d\d:(\d\d):([\d.]+)Z", r"\2", e.at))
        for e in emulator.journal.entries(operation="logs.webhook")
    ]
    gaps = [(later - earlier) % 60 for earlier, later in pairwise(at)]
    assert 2 <= len(at) <= 9
    assert min(gaps) >= 0.45, gaps


@pytest.mark.parametrize(
    ("fault", "status"), [("fail", "failed"), ("never_starts", "canceled"), ("slow", "canceled")]
)
async def test_every_end_is_told(
    call: Caller, emulator: Emulator, receiver: Receiver, fault: str, status: str
):
    emulator.add_fault(fault)
    created = await create(call, "completed")
    if status == "canceled":
        await call("POST", f"/v1/predictions/{created['id']}/cancel")
    else:
        emulator.clock.advance(RUN_SECONDS)
    (told,) = await receiver.until(1)
    assert (told.json["status"], told.json["id"]) == (status, created["id"])


async def test_nothing_is_sent_until_it_is_said_where_to(call: Caller, emulator: Emulator):
    await create(call)
    emulator.clock.advance(RUN_SECONDS)
    await call.finished()
    assert sent(emulator) == []


@pytest.mark.parametrize("wrong", ["hooks.example", "ftp://x", "http://x/path", "http://", "http://x:99999"])
async def test_where_to_must_be_an_origin(call: Caller, wrong: str):
    reply = await call("POST", "/_emulator/mode", {"webhooks_via": wrong}, token=None)
    assert reply.status == 422
    assert "webhooks_via" in reply.json["detail"]


# --- what the receiver answers ---------------------------------------------------------------------------


async def test_the_end_is_sent_again_with_the_same_id_until_it_is_taken(
    call: Caller, emulator: Emulator, receiver: Receiver
):
    receiver.status = lambda count: 200 if count == 4 else (500, 404, 429)[count - 1]
    await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    for count in range(1, 4):
        await attempts(emulator, count)
        await asyncio.sleep(0.01)
        emulator.clock.advance(30)
    arrived = await receiver.until(4)
    assert {one.id for one in arrived} == {arrived[0].id}
    assert {one.raw for one in arrived} == {arrived[0].raw}
    emulator.clock.advance(600)
    await call.get(arrived[0].json)
    assert len(receiver.arrived) == 4
    assert Webhook(await secret(call)).verify(
        arrived[1].raw, arrived[1].headers | _now(emulator, arrived[1], await secret(call))
    )


def _now(emulator: Emulator, told: Arrived, key: str) -> dict[str, str]:
    """The headers of today: the official verifier knows no virtual clock, so only the form is looked at."""
    from datetime import UTC, datetime  # noqa: PLC0415

    signed_at = datetime.fromtimestamp(int(told.headers["webhook-timestamp"]), UTC)
    assert Webhook(key).sign(told.id, signed_at, told.raw.decode()) == told.headers["webhook-signature"]
    now = datetime.now(UTC)
    return {
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(key).sign(told.id, now, told.raw.decode()),
    }


async def test_after_about_a_minute_it_is_given_up(call: Caller, emulator: Emulator, receiver: Receiver):
    receiver.status = lambda _: 503
    await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    began = emulator.clock.time()
    for count in range(1, 6):
        await attempts(emulator, count)
        while len(sent(emulator)) == count:
            emulator.clock.advance(1)
            await asyncio.sleep(0.005)
    assert len(sent(emulator)) == 6
    assert 55 < emulator.clock.time() - began < 75
    emulator.clock.advance(3600)
    await call.finished()
    assert len(receiver.arrived) == 6


@pytest.mark.parametrize("event", ["start", "output", "logs"])
async def test_what_comes_before_the_end_is_sent_once_whatever_is_answered(
    call: Caller, emulator: Emulator, receiver: Receiver, event: str
):
    receiver.status = lambda _: 500
    emulator.add_fault("early_output", seconds=100)
    await create(call, event)
    emulator.clock.advance(RUN_SECONDS)
    await receiver.until(1)
    await attempts(emulator, 1)
    emulator.clock.advance(90)
    await call.finished()
    assert len({one.id for one in receiver.arrived}) == len(receiver.arrived)
    assert all(status == 500 for _, status, _ in sent(emulator))


async def test_redirects_are_not_followed(call: Caller, emulator: Emulator, receiver: Receiver):
    receiver.status = lambda _: 302
    await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    await attempts(emulator, 1)
    assert sent(emulator) == [("completed.webhook", 302, None)]


async def test_a_receiver_that_is_away_is_asked_again(call: Caller, emulator: Emulator, receiver: Receiver):
    here = receiver.url
    emulator.set_mode(webhooks_via="http://127.0.0.1:9")
    await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    await attempts(emulator, 1)
    emulator.set_mode(webhooks_via=here)
    await asyncio.sleep(0.01)
    emulator.clock.advance(3)
    (told,) = await receiver.until(1)
    assert told.json["status"] == "succeeded"
    await attempts(emulator, 2)
    assert [status for _, status, _ in sent(emulator)] == [0, 200]


# --- what goes wrong on request --------------------------------------------------------------------------


async def test_a_lost_one_never_arrives(call: Caller, emulator: Emulator, receiver: Receiver):
    emulator.add_fault("webhook_drop", operation="output.webhook")
    await create(call)
    emulator.clock.advance(RUN_SECONDS)
    await receiver.until(1)
    await attempts(emulator, 2)
    assert sent(emulator) == [("output.webhook", 0, "webhook_drop"), ("completed.webhook", 200, None)]
    assert len(receiver.arrived) == 1


async def test_a_duplicate_is_the_same_to_the_letter(call: Caller, emulator: Emulator, receiver: Receiver):
    emulator.add_fault("webhook_duplicate", copies=2)
    await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    arrived = await receiver.until(3)
    assert len({(one.id, one.headers["webhook-signature"], one.raw) for one in arrived}) == 1


async def test_a_late_one_is_overtaken(call: Caller, emulator: Emulator, receiver: Receiver):
    emulator.add_fault("webhook_delay", operation="output.webhook", seconds=20)
    await create(call)
    emulator.clock.advance(RUN_SECONDS)
    await receiver.until(1)
    await attempts(emulator, 1)
    emulator.clock.advance(20)
    await receiver.until(2)
    await attempts(emulator, 2)
    assert [operation for operation, _, _ in sent(emulator)] == ["completed.webhook", "output.webhook"]


async def test_two_change_places(call: Caller, emulator: Emulator, receiver: Receiver):
    emulator.add_fault("webhook_reorder", operation="start.webhook")
    await create(call, "start", "completed")
    emulator.clock.advance(RUN_SECONDS)
    arrived = await receiver.until(2)
    assert [one.json["status"] for one in arrived] == ["succeeded", "processing"]


async def test_the_last_one_is_not_kept_back_for_good(call: Caller, emulator: Emulator, receiver: Receiver):
    emulator.add_fault("webhook_reorder", operation="webhook", times=None)
    await create(call, "start", "output")
    emulator.clock.advance(RUN_SECONDS)
    arrived = await receiver.until(2)
    assert [one.json["status"] for one in arrived] == ["processing", "succeeded"]


@pytest.mark.parametrize("kind", ["secret", "body", "unsigned", "stale", "garbage"])
async def test_a_forged_one_does_not_pass_and_the_next_attempt_is_genuine(
    call: Caller, emulator: Emulator, receiver: Receiver, kind: str
):
    key = await secret(call)
    receiver.status = lambda count: 400 if count == 1 else 200
    emulator.add_fault("webhook_forge", kind=kind)
    await create(call, "start", "completed", prompt="a red fox")
    emulator.clock.advance(RUN_SECONDS)
    forged, genuine = await receiver.until(2)
    with pytest.raises((WebhookVerificationError, ValueError)):
        Webhook(key).verify(forged.raw, forged.headers)
    assert forged.json
    assert _now(emulator, genuine, key)


async def test_a_prompt_can_ask_for_it(call: Caller, emulator: Emulator, receiver: Receiver):
    await create(call, "start", "completed", prompt="a fox [fault:webhook_drop operation=start.webhook]")
    emulator.clock.advance(RUN_SECONDS)
    (told,) = await receiver.until(1)
    assert told.json["status"] == "succeeded"


@pytest.mark.parametrize(
    ("name", "operation"), [("webhook_drop", "predictions.get"), ("status", "webhook"), ("fail", "webhook")]
)
async def test_faults_of_webhooks_strike_webhooks_and_nothing_else(call: Caller, name: str, operation: str):
    reply = await call("POST", "/_emulator/faults", {"name": name, "operation": operation}, token=None)
    assert reply.status == 422
    assert "cannot strike" in reply.json["detail"]


async def test_a_reset_stops_what_is_on_its_way(call: Caller, emulator: Emulator, receiver: Receiver):
    receiver.status = lambda _: 500
    await create(call, "completed")
    emulator.clock.advance(RUN_SECONDS)
    await attempts(emulator, 1)
    emulator.reset()
    emulator.set_mode(webhooks_via=receiver.url)
    emulator.clock.advance(3600)
    await create(call, "start")
    await receiver.until(2)
    assert [json.loads(one.raw)["status"] for one in receiver.arrived] == ["succeeded", "processing"]


async def test_two_hundred_predictions_are_each_told_of_once(
    call: Caller, emulator: Emulator, receiver: Receiver
):
    created = [await create(call, "completed", prompt=f"fox {n}") for n in range(200)]
    emulator.clock.advance(RUN_SECONDS)
    arrived = await receiver.until(200)
    assert {one.json["id"] for one in arrived} == {one["id"] for one in created}


async def test_the_emulator_on_its_own_thread_sends_and_rotates_too(
    anyio_backend: str, receiver: Receiver, call: Caller
):
    with EmulatorThread(run_seconds=0.01) as apart:
        apart.set_mode(webhooks_via=receiver.url)
        before = (await call("GET", f"{apart.url}/v1/webhooks/default/secret")).json["key"]
        apart.rotate_webhook_secrets()
        body = {"version": SCHNELL, "input": {"prompt": "x"}, "webhook": ADDRESS}
        await call("POST", f"{apart.url}/v1/predictions", body)
        told = (await receiver.until(2))[-1]
        key = (await call("GET", f"{apart.url}/v1/webhooks/default/secret")).json["key"]
    assert key != before
    assert Webhook(key).verify(told.raw, told.headers)["status"] == "succeeded"
