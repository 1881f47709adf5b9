"""The gateway tells callers of events, shows each what signs theirs, and the admin how it went."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, RunningGateway, running_gateway
from standardwebhooks import Webhook

from fakes.servers import Exchange, raw_server
from imagen.domain.delivery import Delivery
from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.anyio

PRIVATE = {"IMAGEN_DELIVERIES__PRIVATE": "true"}
TOKEN = {"X-Replicate-Api-Token": "r8_of_somebody_else"}


def make_delivery(url: str, number: int = 1, **facts: Any) -> Delivery:
    now = datetime.now(UTC)
    given = {
        "id": f"msg_{number}",
        "subject": f"pred_{number}",
        "url": url,
        "scope": "admin",
        "event": "prediction.completed",
        "body": {"type": "prediction.completed", "data": {"number": number}},
        "created_at": now,
        "due_at": now,
    }
    return Delivery(**given | facts)


async def listed(gateway: RunningGateway, query: str = "") -> list[dict[str, Any]]:
    answer = await gateway.request("GET", f"/deliveries{query}", headers=ADMIN)
    assert answer.status == 200
    told = answer.json()
    assert told["count"] == len(told["deliveries"])
    return told["deliveries"]


async def until_listed(
    gateway: RunningGateway, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The newest delivery, once it is as it should be."""
    async with asyncio.timeout(20):
        while True:
            found = await listed(gateway)
            if found and condition(found[0]):
                return found[0]
            await asyncio.sleep(0.02)


def taken(message: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a delivery is the one of that id, and was taken."""
    return lambda one: (one["id"], one["status"]) == (message, "taken")


async def make_key(gateway: RunningGateway, **facts: Any) -> tuple[str, dict[str, str]]:
    made = (await gateway.request("POST", "/keys", json={"name": "shop"} | facts, headers=ADMIN)).json()
    return f"key:{made['id']}", {"X-API-Key": made["key"]}


async def secret_of(gateway: RunningGateway, headers: dict[str, str]) -> tuple[str, list[str]]:
    answer = await gateway.request("GET", "/webhooks/secret", headers=headers)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    return told["scope"], [one["secret"] for one in told["secrets"]]


async def say_ok(exchange: Exchange) -> None:
    await exchange.answer()


async def test_each_caller_verifies_their_events_with_the_secret_they_are_shown(
    tmp_path: Path, replicate_emulator: EmulatorThread
):
    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(say_ok) as server,
    ):
        scope, key = await make_key(gateway, routes=["/batches"])
        told = {}
        for headers in (ADMIN, key, TOKEN, {}):
            name, (secret,) = await secret_of(gateway, headers)
            told[name] = secret
        assert list(told)[:2] == ["admin", scope]
        assert list(told)[2].startswith("token:")
        assert list(told)[3] == "local"
        assert len(set(told.values())) == 4
        for number, (name, secret) in enumerate(told.items()):
            await gateway.app.outbox.put([make_delivery(server.url, number, scope=name)])
            await until_listed(gateway, taken(f"msg_{number}"))
            came = server.exchanges[-1]
            assert Webhook(secret).verify(came.body, came.headers)["data"] == {"number": number}
            assert came.headers["user-agent"].startswith("imagen/")


async def test_nobody_is_shown_a_secret_without_credentials(
    tmp_path: Path, replicate_emulator: EmulatorThread
):
    async with running_gateway(
        tmp_path, replicate_emulator, IMAGEN_PUBLIC_URL="https://gateway.example"
    ) as gateway:
        for headers in ({}, {"X-API-Key": "imk_" + "0" * 32}, {"X-Admin-API-Key": "wrong"}):
            answer = await gateway.request("GET", "/webhooks/secret", headers=headers)
            assert answer.status == 401
            assert "whsec_" not in answer.body.decode()


async def test_by_default_nothing_is_sent_to_this_machine_or_its_network(
    tmp_path: Path, replicate_emulator: EmulatorThread
):
    async with running_gateway(tmp_path, replicate_emulator) as gateway, raw_server(say_ok) as server:
        for number, url in enumerate(
            (
                f"https://127.0.0.1:{server.port}/",
                f"https://localhost:{server.port}/",
                f"https://[::1]:{server.port}/",
                f"https://0x7f.1:{server.port}/",
                f"http://localhost:{server.port}/",
            )
        ):
            await gateway.app.outbox.put([make_delivery(url, number)])
            failed = await until_listed(gateway, lambda one: one["attempts"] > 0)
            assert failed["status"] == "waiting"
            assert failed["answer"] in {"the address is not public", "only https addresses are called"}
        assert server.connections == 0


async def test_the_admin_sees_what_failed_and_has_it_sent_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
):
    statuses = [410, 204]

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(b"", statuses[min(exchange.number, 1)])

    async with (
        running_gateway(tmp_path, replicate_emulator, **PRIVATE) as gateway,
        raw_server(answer) as server,
    ):
        one = make_delivery(f"{server.url}/hook", scope="key:a")
        await gateway.app.outbox.put([one])
        lost = await until_listed(gateway, lambda one: one["status"] == "given_up")
        assert lost["answer"] == "status 410"
        assert (lost["event"], lost["subject"], lost["scope"], lost["url"], lost["attempts"]) == (
            one.event, one.subject, one.scope, one.url, 1,
        )  # fmt: skip
        assert "body" not in lost
        assert await listed(gateway, "?failed=true&limit=5&scope=key:a") == [lost]
        assert await listed(gateway, "?scope=key:b") == []

        again = await gateway.request("POST", "/deliveries/msg_1/retry", headers=ADMIN)
        assert (again.status, again.json()["status"]) == (200, "waiting")
        await until_listed(gateway, lambda one: one["status"] == "taken")
        assert await listed(gateway, "?failed=true") == []
        kept = await gateway.request("POST", "/deliveries/msg_1/retry", headers=ADMIN)
        assert (kept.status, kept.json()["status"]) == (200, "taken")
        assert len(server.exchanges) == 2

        text = (await gateway.request("GET", "/metrics", headers=ADMIN)).body.decode()
        assert 'imagen_deliveries_total{outcome="given_up"} 1.0' in text
        assert 'imagen_deliveries_total{outcome="taken"} 1.0' in text
        assert "imagen_deliveries_waiting 0.0" in text


async def test_only_the_admin_sees_deliveries(tmp_path: Path, replicate_emulator: EmulatorThread):
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        _, key = await make_key(gateway)
        for headers in ({}, key, TOKEN, {"X-Admin-API-Key": "wrong"}):
            for method, path in (("GET", "/deliveries"), ("POST", "/deliveries/msg_1/retry")):
                assert (await gateway.request(method, path, headers=headers)).status == 401


async def test_what_makes_no_sense_is_refused_by_field(tmp_path: Path, replicate_emulator: EmulatorThread):
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for query, field in (
            ("?limit=0", "limit"),
            ("?limit=1001", "limit"),
            ("?limit=", "limit"),
            ("?limit=%D9%A3", "limit"),
            ("?limit=9999999999999999999", "limit"),
            ("?failed=perhaps", "failed"),
        ):
            answer = await gateway.request("GET", f"/deliveries{query}", headers=ADMIN)
            assert answer.status == 400
            assert [problem["field"] for problem in answer.json()["problems"]] == [field]
        missing = await gateway.request("POST", "/deliveries/msg_none/retry", headers=ADMIN)
        assert (missing.status, missing.json()["code"]) == (404, "not_found")
