"""Webhooks of the service arrive at the gateway: they are verified, they wake, and nothing depends on them."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import ADMIN, Answer, RunningGateway, running_gateway
from standardwebhooks import Webhook

from imagen.assembly import App, build
from imagen.emulator import EmulatorThread
from imagen.emulator.models import Model
from imagen.server.run import serving
from imagen.service import watch_account
from imagen.service.webhooks import ASK_AGAIN_SECONDS, HEARD_SECONDS, MOST_REMEMBERED, REMEMBERED_SECONDS
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio

QUICK, SLOW, KNOWN = "acme/quick", "acme/slow", "black-forest-labs/flux-schnell"
PUBLIC = "https://pictures.example"
HOOK = "/webhooks/replicate"
UNHELD = {"IMAGEN_PUBLIC_URL": PUBLIC, "IMAGEN_REPLICATE__HELD_OPEN": "0"}
SLOW_SECONDS = 2.5


@pytest.fixture
def emulator(replicate_emulator: EmulatorThread) -> EmulatorThread:
    replicate_emulator.add_model(Model(name=QUICK, run_seconds=0.1))
    replicate_emulator.add_model(Model(name=SLOW, run_seconds=SLOW_SECONDS))
    return replicate_emulator


@asynccontextmanager
async def told_gateway(
    tmp_path: Path, emulator: EmulatorThread, **environ: str
) -> AsyncIterator[RunningGateway]:
    """A gateway that the emulator reaches under its public address, as if through a proxy."""
    async with running_gateway(tmp_path, emulator, **UNHELD | environ) as gateway:
        emulator.set_mode(webhooks_via=gateway.url)
        yield gateway
        emulator.set_mode(webhooks_via=None)


class Ahead:
    """The clock of the webhooks, some seconds ahead."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.seconds = 0.0
        self._inner = gateway.app.webhooks._clock
        gateway.app.webhooks._clock = self

    def now(self) -> datetime:
        return self._inner.now()

    def monotonic(self) -> float:
        return self._inner.monotonic() + self.seconds

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def signed(
    emulator: EmulatorThread,
    body: bytes,
    *,
    message: str = "msg_1",
    ago: float = 0,
    secret: str | None = None,
) -> dict[str, str]:
    """Headers as the service makes them, by the official library."""
    at = datetime.fromtimestamp(time.time() - ago, UTC)
    key = secret or emulator.state()["accounts"][0]["webhook_secret"]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(key).sign(message, at, body.decode()),
        "content-type": "application/json",
    }


def about(upstream_id: str = "nobody") -> bytes:
    return json.dumps(
        {"id": upstream_id, "status": "succeeded", "output": ["https://evil.example/"]}
    ).encode()


async def post(gateway: RunningGateway, body: bytes, headers: dict[str, str]) -> Answer:
    async with gateway.session.post(gateway.url + HOOK, data=io.BytesIO(body), headers=headers) as response:
        found = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, found, await response.read())


async def counted(gateway: RunningGateway) -> dict[str, int]:
    text = (await gateway.request("GET", "/metrics", headers=ADMIN)).body.decode()
    found = [line for line in text.splitlines() if line.startswith("imagen_webhooks_total{")]
    return {line.split('"')[1]: int(float(line.rpartition(" ")[2])) for line in found}


def sent(emulator: EmulatorThread) -> list[tuple[int, str | None]]:
    return [(entry.status, entry.fault) for entry in emulator.journal.entries(operation="webhook")]


async def attempts(emulator: EmulatorThread, count: int) -> None:
    await until(lambda: len(sent(emulator)) >= count)


def asked_for_secret(emulator: EmulatorThread) -> int:
    return len(emulator.journal.entries(operation="webhooks.default.secret.get"))


def creates(emulator: EmulatorThread) -> list[dict[str, Any]]:
    return [entry.body for entry in emulator.journal.entries(operation="predictions.create")]


# --- what it is for --------------------------------------------------------------------------------------


async def test_an_unheld_prediction_ends_right_after_its_webhook_with_hardly_a_look(
    tmp_path: Path, emulator: EmulatorThread
):
    async with told_gateway(tmp_path, emulator) as gateway:
        assert (await gateway.generate(model_name=QUICK)).status == 200
        await attempts(emulator, 1)
        answer = await gateway.generate(model_name=SLOW)
        ended_at = time.time()
        assert answer.status == 200, answer.body
        assert (await counted(gateway)).get("taken") == 2
    webhook = emulator.journal.entries(operation="webhook")[-1]
    looks = emulator.journal.entries(operation="predictions.get", prediction_id=webhook.prediction_id)
    lists = emulator.journal.entries(operation="predictions.list")
    assert webhook.status == 200
    assert len(looks) == 1
    assert len(lists) == 0
    assert ended_at - datetime.fromisoformat(webhook.at).timestamp() < 1.5


async def test_the_create_names_our_address_and_the_end_alone(tmp_path: Path, emulator: EmulatorThread):
    async with told_gateway(tmp_path, emulator) as gateway:
        await gateway.generate(model_name=QUICK)
    (create,) = creates(emulator)
    assert create["webhook"] == f"{PUBLIC}{HOOK}"
    assert create["webhook_events_filter"] == ["completed"]


async def test_many_at_once_are_each_woken(tmp_path: Path, emulator: EmulatorThread):
    async with told_gateway(tmp_path, emulator) as gateway:
        await gateway.generate(model_name=QUICK)
        emulator.add_model(Model(name="acme/middle", run_seconds=1.5))
        answers = await asyncio.gather(
            *(gateway.generate(model_name="acme/middle", prompt=f"fox {n}") for n in range(40))
        )
        assert {answer.status for answer in answers} == {200}
        assert sum((await counted(gateway)).values()) == 41
        assert asked_for_secret(emulator) == 1


@pytest.mark.parametrize(
    ("environ", "fields", "headers"),
    [
        ({"IMAGEN_PUBLIC_URL": "http://127.0.0.1:1"}, {}, ADMIN),
        ({"IMAGEN_REPLICATE__HELD_OPEN": "10"}, {"model_name": KNOWN}, ADMIN),
        ({}, {"credentials": {"replicate_api_token": "r8_somebody_elses"}}, {}),
    ],
    ids=["no https", "held open for the whole run", "on a caller's token"],
)
async def test_no_address_is_named(
    tmp_path: Path,
    emulator: EmulatorThread,
    environ: dict[str, str],
    fields: dict[str, Any],
    headers: dict[str, str],
):
    async with told_gateway(tmp_path, emulator, **environ) as gateway:
        answer = await gateway.generate(headers=headers, **{"model_name": QUICK} | fields)
        assert answer.status == 200, answer.body
    (create,) = creates(emulator)
    assert "webhook" not in create
    assert "webhook_events_filter" not in create


async def test_a_command_names_no_address_as_nobody_listens_there(tmp_path: Path, emulator: EmulatorThread):
    environ = UNHELD | {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "REPLICATE_API_TOKEN": "r8_integration",
    }
    app: App
    async with build(load_settings(environ=environ, cwd=tmp_path), environ=environ) as app:
        own = app.backends.own().account
        assert app.webhooks.address(own) is None
        app.webhooks.listen()
        assert app.webhooks.address(own) == f"{PUBLIC}{HOOK}"
        assert app.webhooks.address("another") is None


# --- nothing depends on them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"name": "webhook_drop"},
        {"name": "webhook_duplicate", "copies": 3},
        {"name": "webhook_delay", "seconds": 1},
        {"name": "webhook_forge", "kind": "secret"},
        {"name": "webhook_forge", "kind": "body"},
        {"name": "webhook_forge", "kind": "unsigned"},
        {"name": "webhook_forge", "kind": "stale"},
        {"name": "webhook_forge", "kind": "garbage"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
async def test_whatever_befalls_all_of_them_the_prediction_ends_and_is_bought_once(
    tmp_path: Path, emulator: EmulatorThread, fault: dict[str, Any]
):
    emulator.add_fault(times=None, **_named(fault))
    async with told_gateway(tmp_path, emulator) as gateway:
        answer = await gateway.generate(model_name=QUICK)
        assert answer.status == 200, answer.body
        await attempts(emulator, 1)
        outcomes = await counted(gateway)
    assert emulator.purchases == 1
    if fault["name"] == "webhook_forge":
        assert outcomes.keys() <= {"forged", "stale", "malformed"}
        assert sent(emulator)[0] == (400, "webhook_forge")
    if fault["name"] == "webhook_duplicate":
        await attempts(emulator, 4)
        assert {status for status, _ in sent(emulator)} == {200}


def _named(fault: dict[str, Any]) -> dict[str, Any]:
    return {"fault": fault["name"]} | {name: value for name, value in fault.items() if name != "name"}


async def test_one_that_is_relied_on_and_lost_only_delays(
    tmp_path: Path, emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch_account, "LATE_SECONDS", 2.0)
    async with told_gateway(tmp_path, emulator) as gateway:
        await gateway.generate(model_name=QUICK)
        await attempts(emulator, 1)
        assert gateway.app.webhooks.arrive
        emulator.add_fault("webhook_drop", times=None)
        answer = await gateway.generate(model_name=QUICK, prompt="another fox")
        assert answer.status == 200
    assert (0, "webhook_drop") in sent(emulator)
    assert emulator.purchases == 2


async def test_they_are_relied_on_only_while_they_come(tmp_path: Path, emulator: EmulatorThread):
    async with told_gateway(tmp_path, emulator) as gateway:
        ahead = Ahead(gateway)
        assert not gateway.app.webhooks.arrive
        await gateway.generate(model_name=QUICK)
        await attempts(emulator, 1)
        assert gateway.app.webhooks.arrive
        ahead.seconds = HEARD_SECONDS + 1
        assert not gateway.app.webhooks.arrive


async def test_a_secret_that_cannot_be_asked_for_costs_nothing_but_the_webhook(
    tmp_path: Path, emulator: EmulatorThread
):
    emulator.add_fault("status", status=500, operation="webhooks.default.secret.get", times=None)
    async with told_gateway(tmp_path, emulator) as gateway:
        assert (await gateway.generate(model_name=QUICK)).status == 200
        await attempts(emulator, 1)
        answer = await post(gateway, about(), signed(emulator, about()))
        assert (answer.status, asked_for_secret(emulator)) == (502, 1)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await counted(gateway)) == {"unverified": 2}
        emulator.clear_faults()
        Ahead(gateway).seconds = ASK_AGAIN_SECONDS
        assert (await post(gateway, about(), signed(emulator, about()))).status == 200


# --- who is believed -------------------------------------------------------------------------------------


@asynccontextmanager
async def asked(tmp_path: Path, emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    """A gateway whose account the emulator knows."""
    async with told_gateway(tmp_path, emulator) as gateway:
        await gateway.app.backends.own().probe()
        yield gateway


async def test_a_genuine_one_is_taken_and_its_repeats_are_answered_alike(
    tmp_path: Path, emulator: EmulatorThread
):
    async with asked(tmp_path, emulator) as gateway:
        answers = [
            await post(gateway, about(), signed(emulator, about(), ago=ago)) for ago in (0, 0, 250, -250)
        ]
        assert [answer.status for answer in answers] == [200] * 4
        assert [answer.json() for answer in answers] == [{"success": True}] * 4
        assert await counted(gateway) == {"taken": 1, "repeated": 3}
        assert (await post(gateway, about(), signed(emulator, about(), message="msg_2"))).status == 200
        assert (await counted(gateway))["taken"] == 2


async def test_one_of_several_signatures_is_enough(tmp_path: Path, emulator: EmulatorThread):
    async with asked(tmp_path, emulator) as gateway:
        headers = signed(emulator, about())
        headers["webhook-signature"] = f"v2,abc v1,bm90IG91cnM= v1 {headers['webhook-signature']} v1a,x"
        assert (await post(gateway, about(), headers)).status == 200


# A time is told in seconds from the moment of the test, which may be long after this file was read.
REFUSED: tuple[tuple[dict[str, str | None], str], ...] = (
    ({"webhook-signature": "v1,bm90IG91cnM="}, "forged"),
    ({"webhook-signature": "v1,\xff\xfe"}, "forged"),
    ({"webhook-signature": "v1," + "A" * 4000}, "forged"),
    ({"webhook-signature": " ".join(["v1,bm90IG91cnM="] * 50)}, "forged"),
    ({"webhook-id": "msg_other"}, "forged"),
    ({"webhook-timestamp": "now -3"}, "forged"),
    ({"webhook-timestamp": "now -900"}, "stale"),
    ({"webhook-timestamp": "now +9000"}, "stale"),
    ({"webhook-timestamp": "99999999999"}, "stale"),
    ({"webhook-timestamp": "nan"}, "malformed"),
    ({"webhook-timestamp": "-1"}, "malformed"),
    ({"webhook-timestamp": "1e9"}, "malformed"),
    ({"webhook-timestamp": "\u0661"}, "malformed"),
    ({"webhook-timestamp": None}, "malformed"),
    ({"webhook-id": None}, "malformed"),
    ({"webhook-id": "x" * 201}, "malformed"),
    ({"webhook-id": "a b"}, "malformed"),
    ({"webhook-signature": None}, "malformed"),
    ({"webhook-signature": "v2,abc"}, "malformed"),
    ({"webhook-signature": "v1"}, "malformed"),
)


async def test_anything_else_is_refused_in_words_that_help(tmp_path: Path, emulator: EmulatorThread):
    async with asked(tmp_path, emulator) as gateway:
        for changes, reason in REFUSED:
            before = await counted(gateway)
            found = signed(emulator, about()) | changes
            if (told := found["webhook-timestamp"]) is not None and told.startswith("now "):
                found["webhook-timestamp"] = str(int(time.time()) + int(told.removeprefix("now ")))
            headers = {name: value for name, value in found.items() if value is not None}
            answer = await post(gateway, about(), headers)
            body = answer.json()
            assert (answer.status, body["code"]) == (400, "webhook_rejected"), changes
            assert body["error"].startswith("webhook-"), changes
            assert await counted(gateway) == before | {reason: before.get(reason, 0) + 1}, changes


async def test_a_changed_body_or_another_accounts_secret_does_not_pass(
    tmp_path: Path, emulator: EmulatorThread
):
    async with asked(tmp_path, emulator) as gateway:
        headers = signed(emulator, about())
        assert (await post(gateway, about("other"), headers)).status == 400
        other = signed(emulator, about(), secret="whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
        assert (await post(gateway, about(), other)).status == 400
        assert (await post(gateway, about(), headers)).status == 200


NONSENSE = (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"id": 1}', b"[]", b'{"status": "x"}')


async def test_nothing_is_read_before_it_is_verified_and_nonsense_does_no_harm_then(
    tmp_path: Path, emulator: EmulatorThread
):
    async with asked(tmp_path, emulator) as gateway:
        for number, body in enumerate(NONSENSE):
            answer = await post(gateway, body, signed(emulator, b"something else"))
            assert answer.status == 400
            if body != b"\xff\xfe":
                assert "webhook-signature" in answer.json()["error"]
                answer = await post(gateway, body, signed(emulator, body, message=f"msg_{number}"))
                assert answer.status == 400
            assert "body" in answer.json()["error"]
        assert (await gateway.request("GET", "/health")).status == 200


async def test_what_is_too_large_is_refused_without_being_read(tmp_path: Path, emulator: EmulatorThread):
    async with asked(tmp_path, emulator) as gateway:
        small = b" " * 5 * 1024 * 1024
        answer = await post(gateway, small, signed(emulator, small))
        assert answer.status == 400  # verified, and no prediction
        large = small + b" "
        answer = await post(gateway, large, signed(emulator, large, message="msg_2"))
        assert answer.status == 400
        assert "larger than 5 MiB" in answer.json()["error"]
        assert asked_for_secret(emulator) == 1


async def test_a_flood_of_forgeries_asks_for_the_secret_once_a_minute(
    tmp_path: Path, emulator: EmulatorThread
):
    async with asked(tmp_path, emulator) as gateway:
        ahead = Ahead(gateway)
        wrong = signed(emulator, about(), secret="whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
        for minute in range(3):
            answers = await asyncio.gather(*(post(gateway, about(), wrong) for _ in range(100)))
            assert {answer.status for answer in answers} <= {400, 502}
            assert asked_for_secret(emulator) == minute + 1
            ahead.seconds += ASK_AGAIN_SECONDS
        assert (await post(gateway, about(), signed(emulator, about()))).status == 200


async def test_a_rotated_secret_is_found_out(tmp_path: Path, emulator: EmulatorThread):
    async with asked(tmp_path, emulator) as gateway:
        ahead = Ahead(gateway)
        assert (await post(gateway, about(), signed(emulator, about(), message="a"))).status == 200
        old = signed(emulator, about(), message="d")
        emulator.rotate_webhook_secrets()
        new = signed(emulator, about(), message="b")
        assert (await post(gateway, about(), new)).status == 400  # it was asked for just now
        ahead.seconds += ASK_AGAIN_SECONDS
        assert (await post(gateway, about(), new)).status == 200
        assert asked_for_secret(emulator) == 2
        assert (await post(gateway, about(), old)).status == 400
        assert await counted(gateway) == {"taken": 2, "forged": 2}


async def test_a_prediction_whose_webhook_is_signed_anew_ends_all_the_same(
    tmp_path: Path, emulator: EmulatorThread
):
    async with told_gateway(tmp_path, emulator) as gateway:
        await gateway.generate(model_name=QUICK)
        await attempts(emulator, 1)
        emulator.rotate_webhook_secrets()
        Ahead(gateway).seconds = ASK_AGAIN_SECONDS
        assert (await gateway.generate(model_name=QUICK, prompt="another fox")).status == 200
        await attempts(emulator, 2)
        assert sent(emulator) == [(200, None), (200, None)]


async def test_what_came_before_is_forgotten_when_it_would_be_stale_and_never_more_than_so_much_is_kept(
    tmp_path: Path, emulator: EmulatorThread
):
    async with asked(tmp_path, emulator) as gateway:
        ahead = Ahead(gateway)
        webhooks = gateway.app.webhooks
        for number in range(MOST_REMEMBERED + 10):
            assert not webhooks._is_repeated(f"msg_{number}")
        assert len(webhooks._seen) == MOST_REMEMBERED
        assert webhooks._is_repeated(f"msg_{MOST_REMEMBERED}")
        ahead.seconds = REMEMBERED_SECONDS + 1
        assert not webhooks._is_repeated("msg_new")
        assert len(webhooks._seen) == 1


async def test_where_none_are_expected_they_are_not_found(tmp_path: Path, emulator: EmulatorThread):
    async with running_gateway(tmp_path, emulator) as gateway:
        await gateway.app.backends.own().probe()
        answer = await post(gateway, about(), signed(emulator, about()))
        assert answer.status == 404
        assert "IMAGEN_PUBLIC_URL" in answer.json()["hint"]
        assert await counted(gateway) == {"unexpected": 1}


async def test_they_are_taken_while_the_process_shuts_down(tmp_path: Path, emulator: EmulatorThread):
    environ = UNHELD | {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "FLASK_PORT": "0",
        "REPLICATE_API_TOKEN": "r8_integration",
        "IMAGEN_REPLICATE__API_BASE": emulator.url,
    }
    settings = load_settings(environ=environ, cwd=tmp_path)
    async with serving(settings, environ=environ) as served, aiohttp.ClientSession() as session:
        await served.app.backends.own().probe()
        served.context.drains = True
        headers = signed(emulator, about())
        async with session.post(served.url + HOOK, data=about(), headers=headers) as answer:
            assert answer.status == 200


async def test_the_document_tells_of_it(tmp_path: Path, emulator: EmulatorThread):
    async with told_gateway(tmp_path, emulator) as gateway:
        document = (await gateway.request("GET", "/openapi.json")).json()
    told = document["paths"][HOOK]["post"]
    assert told["security"] == []
    assert {"200", "400", "404", "502"} <= told["responses"].keys()
    assert [one["name"] for one in told["parameters"]] == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
