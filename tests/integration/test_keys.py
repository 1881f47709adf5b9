"""Keys as the gateway knows them: made, remembered for a second, revoked, and administered over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, RunningGateway, running_gateway

from fakes.clock import ManualClock
from imagen.catalog import Catalog
from imagen.domain.identifiers import new_secret
from imagen.domain.key import PREFIX, ROUTES, Key
from imagen.emulator import EmulatorThread
from imagen.errors import IdempotencyConflict, InvalidInput, NotFound, StoreError
from imagen.ports import Keys
from imagen.server.app import all_operations
from imagen.service.keys import REMEMBERED_SECONDS, KeyBook
from imagen.store.budgets import SqlBudgets
from imagen.store.database import Database
from imagen.store.keys import SqlKeys

pytestmark = pytest.mark.anyio

CATALOG = Catalog.load()


class Counted:
    """`ports.Keys` that counts its look-ups and is out of order on request."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.reads = 0
        self.broken = False

    async def add(self, key: Key, *, digest: str) -> None:
        await self._keys.add(key, digest=digest)

    async def list(self) -> Sequence[Key]:
        return await self._keys.list()

    async def revoke(self, name: str, *, at: datetime) -> Key:
        return await self._keys.revoke(name, at=at)

    async def find(self, digest: str) -> Key | None:
        self.reads += 1
        if self.broken:
            raise StoreError("the disk is gone")
        return await self._keys.find(digest)


class Process:
    """What one process of the gateway has: a database of its own on the common file, and a book."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        self.database = Database(path)
        self.keys = Counted(SqlKeys(self.database))
        self.book = KeyBook(keys=self.keys, budgets=SqlBudgets(self.database), catalog=CATALOG, clock=clock)


@asynccontextmanager
async def processes(tmp_path: Path, clock: ManualClock) -> AsyncIterator[tuple[Process, Process]]:
    both = Process(tmp_path / "imagen.db", clock), Process(tmp_path / "imagen.db", clock)
    try:
        yield both
    finally:
        for one in both:
            one.database.close()


# --- the book ---


async def test_a_key_that_was_made_is_found_by_what_was_shown_once(tmp_path: Path, clock: ManualClock):
    async with processes(tmp_path, clock) as (here, there):
        key, plain = await here.book.create(
            "shop", models=["flux-dev"], routes=["/generate"], concurrent=4, per_minute=60
        )
        assert (key.name, key.concurrent, key.per_minute, key.created_at) == ("shop", 4, 60, clock.now())
        assert key.models == {"black-forest-labs/flux-dev"}
        assert key.id.startswith("key_")
        assert "imk_" not in repr((key, plain))
        for process in (here, there):
            assert await process.book.find(plain.reveal()) == key
            assert list(await process.book.list()) == [key]


async def test_a_request_costs_no_read_within_a_second(tmp_path: Path, clock: ManualClock):
    async with processes(tmp_path, clock) as (here, _):
        key, plain = await here.book.create("shop")
        unknown = new_secret(PREFIX)
        for _ in range(100):
            assert await here.book.find(plain.reveal()) == key
            assert await here.book.find(unknown) is None
        assert here.keys.reads == 2
        clock.advance(REMEMBERED_SECONDS)
        assert await here.book.find(plain.reveal()) == key
        assert here.keys.reads == 3


async def test_those_who_come_at_once_share_one_read_also_when_the_first_leaves(
    tmp_path: Path, clock: ManualClock
):
    async with processes(tmp_path, clock) as (here, _):
        key, plain = await here.book.create("shop")
        asking = [asyncio.ensure_future(here.book.find(plain.reveal())) for _ in range(50)]
        await asyncio.sleep(0)
        asking[0].cancel()
        assert await asyncio.gather(*asking[1:]) == [key] * 49
        assert here.keys.reads == 1


async def test_a_revocation_takes_effect_here_at_once_and_elsewhere_within_a_second(
    tmp_path: Path, clock: ManualClock
):
    async with processes(tmp_path, clock) as (here, there):
        key, plain = await here.book.create("shop")
        assert await here.book.find(plain.reveal()) == await there.book.find(plain.reveal()) == key
        clock.advance(0.5)
        revoked, idle = await here.book.revoke("shop")
        assert list(idle) == []
        assert revoked.revoked_at == clock.now()
        assert await here.book.find(plain.reveal()) is None
        assert await there.book.find(plain.reveal()) == key  # it looked half a second ago
        clock.advance(0.5)
        assert await there.book.find(plain.reveal()) is None
        assert list(await there.book.list()) == []


async def test_whoever_keeps_asking_does_not_keep_a_revoked_key_good(tmp_path: Path, clock: ManualClock):
    async with processes(tmp_path, clock) as (here, there):
        _, plain = await here.book.create("shop")
        await there.book.find(plain.reveal())
        await here.book.revoke("shop")
        answers = []
        for _ in range(9):
            answers.append(await there.book.find(plain.reveal()))
            clock.advance(0.125)
        assert answers[0] is not None
        assert answers[-1] is None


@pytest.mark.parametrize("shown", ["", "imk_", "r8_something", "imk_" + "0" * 100_000, "imk_\udcff"])
async def test_what_cannot_be_a_key_costs_no_read_and_no_memory(
    tmp_path: Path, clock: ManualClock, shown: str
):
    async with processes(tmp_path, clock) as (here, _):
        assert await here.book.find(shown) is None
        assert here.keys.reads == 0
        assert len(here.book._remembered) == 0


async def test_strangers_who_try_keys_fill_no_memory(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("imagen.service.keys._MOST_REMEMBERED", 8)
    async with processes(tmp_path, clock) as (here, _):
        key, plain = await here.book.create("shop")
        for _ in range(40):
            assert await here.book.find(new_secret(PREFIX)) is None
            assert await here.book.find(plain.reveal()) == key
        assert len(here.book._remembered) == 8
        assert here.keys.reads == 41  # the one that is asked for again and again stays


async def test_a_fault_of_the_store_is_not_remembered(tmp_path: Path, clock: ManualClock):
    async with processes(tmp_path, clock) as (here, _):
        key, plain = await here.book.create("shop")
        here.keys.broken = True
        answers = await asyncio.gather(
            *(here.book.find(plain.reveal()) for _ in range(3)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [StoreError] * 3
        here.keys.broken = False
        assert await here.book.find(plain.reveal()) == key


async def test_models_are_written_as_the_catalog_calls_them(tmp_path: Path, clock: ManualClock):
    async with processes(tmp_path, clock) as (here, _):
        named = ["flux-dev", "Black-Forest-Labs/FLUX-DEV", "some-one/else", "deployments/acme/fox"]
        key, _ = await here.book.create("shop", models=named)
        assert key.models == {"black-forest-labs/flux-dev", "some-one/else", "deployments/acme/fox"}


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (["flux-devv"], "flux-dev"),
        (["a/b/c"], "owner/name"),
        (["black-forest-labs/flux-dev:abc123"], "without a version"),
        ([""], "owner/name"),
    ],
)
async def test_models_that_mean_nothing_make_no_key(
    tmp_path: Path, clock: ManualClock, models: list[str], told: str
):
    async with processes(tmp_path, clock) as (here, _):
        with pytest.raises(InvalidInput, match="models") as raised:
            await here.book.create("shop", models=models)
        assert told in str(raised.value)
        assert list(await here.book.list()) == []


async def test_names_are_taken_until_they_are_revoked(tmp_path: Path, clock: ManualClock):
    async with processes(tmp_path, clock) as (here, there):
        first, old = await here.book.create("shop")
        with pytest.raises(IdempotencyConflict):
            await there.book.create("shop")
        await there.book.revoke("shop")
        with pytest.raises(NotFound, match="imagen keys list"):
            await here.book.revoke("shop")
        second, new = await here.book.create("shop")
        assert second.id != first.id
        assert await here.book.find(old.reveal()) is None
        assert await here.book.find(new.reveal()) == second


# --- over HTTP ---


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as running:
        yield running


async def test_the_admin_makes_lists_and_revokes_keys(gateway: RunningGateway):
    made = await gateway.request(
        "POST",
        "/keys",
        json={
            "name": "shop",
            "models": ["flux-dev"],
            "routes": ["/generate"],
            "concurrent": 4,
            "rpm": 60,
        },
        headers=ADMIN,
    )
    assert made.status == 201, made.body
    assert made.headers["cache-control"] == "no-store"
    facts = made.json()
    plain = facts.pop("key")
    assert plain.startswith("imk_")
    assert len(plain) == 36
    assert facts == {
        "name": "shop",
        "id": facts["id"],
        "models": ["black-forest-labs/flux-dev"],
        "routes": ["/generate"],
        "concurrent": 4,
        "rpm": 60,
        "created_at": facts["created_at"],
        "revoked_at": None,
    }
    listed = await gateway.request("GET", "/keys", headers=ADMIN)
    assert (listed.status, listed.json()) == (200, {"count": 1, "keys": [facts]})
    assert plain.encode() not in listed.body
    revoked = await gateway.request("DELETE", "/keys/shop", headers=ADMIN)
    assert revoked.status == 200
    assert revoked.json() == facts | {"revoked_at": revoked.json()["revoked_at"], "budgets": []}
    assert revoked.json()["revoked_at"] is not None
    again = await gateway.request("DELETE", "/keys/shop", headers=ADMIN)
    assert (again.status, again.json()["code"]) == (404, "not_found")
    assert (await gateway.request("GET", "/keys", headers=ADMIN)).json() == {"count": 0, "keys": []}


async def test_a_revocation_names_the_budgets_that_count_nobody_now(gateway: RunningGateway):
    for name in ("shop", "app"):
        await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN)
    for name, whose in (("b", "shop"), ("a", "shop"), ("of-app", "app"), ("each", "*")):
        body = {"usd": 1, "per": "day", "key": whose}
        assert (await gateway.request("PUT", f"/budgets/{name}", json=body, headers=ADMIN)).status == 200
    revoked = await gateway.request("DELETE", "/keys/shop", headers=ADMIN)
    assert revoked.json()["budgets"] == ["a", "b"]


async def test_names_of_those_without_a_key_are_no_names_of_keys(gateway: RunningGateway):
    for name in ("admin", "Admin", "unknown", "token:12345678"):
        refused = await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN)
        assert (refused.status, name in refused.json()["error"]) == (400, True)
    for name in ("administrator", "token", "my-token:1"):
        assert (await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN)).status == 201


async def test_a_key_is_let_in_until_it_is_revoked(gateway: RunningGateway):
    made = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
    header = {"X-API-Key": made.json()["key"]}
    visitor = await gateway.app.keys.find(made.json()["key"])
    assert visitor is not None
    assert visitor.caller.name == "shop"
    assert (await gateway.generate(headers=header)).status == 200
    await gateway.request("DELETE", "/keys/shop", headers=ADMIN)
    assert (await gateway.generate(headers=header)).status == 401


async def test_a_gateway_refuses_within_a_second_what_another_process_revoked(
    gateway: RunningGateway, tmp_path: Path, clock: ManualClock
):
    made = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
    header = {"X-API-Key": made.json()["key"]}
    probe = ("GET", "/global-semaphores/none")
    assert (await gateway.request(*probe, headers=header)).status == 404  # let in, and nothing there
    other = Process(tmp_path / "data" / "imagen.db", clock)
    try:
        await other.book.revoke("shop")
    finally:
        other.database.close()
    await asyncio.sleep(REMEMBERED_SECONDS)
    assert (await gateway.request(*probe, headers=header)).status == 401


async def test_a_key_is_good_for_its_models_and_paths_only(gateway: RunningGateway):
    wanted = {"name": "shop", "models": ["flux-schnell"], "routes": ["/generate"]}
    made = await gateway.request("POST", "/keys", json=wanted, headers=ADMIN)
    header = {"Authorization": f"Bearer {made.json()['key']}"}
    assert (await gateway.generate(model_name="flux-schnell", headers=header)).status == 200
    other = await gateway.generate(model_name="flux-dev", headers=header)
    assert other.status == 403
    assert "black-forest-labs/flux-schnell" in other.json()["error"]
    body = {"model_name": "flux-schnell", "tasks": [{"prompt": "a red fox"}]}
    assert (await gateway.request("POST", "/generate-batch", json=body, headers=header)).status == 403


async def test_a_name_that_is_taken_is_a_conflict(gateway: RunningGateway):
    await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
    again = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
    assert again.status == 409
    assert "shop" in again.json()["error"]
    assert "key" not in again.json()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": 7}, "name"),
        ({"name": "web shop"}, "name"),
        ({"name": "shop", "concurrent": 0}, "concurrent"),
        ({"name": "shop", "concurrent": True}, "concurrent"),
        ({"name": "shop", "rpm": "60"}, "rpm"),
        ({"name": "shop", "rpm": 10**30}, "rpm"),
        ({"name": "shop", "models": "flux-dev"}, "models"),
        ({"name": "shop", "models": ["flux-devv"]}, "models"),
        ({"name": "shop", "routes": ["/keys"]}, "routes"),
        ({"name": "shop", "model": "flux-dev"}, "model"),
    ],
)
async def test_bodies_that_make_no_sense_are_refused_by_field(
    gateway: RunningGateway, body: dict[str, Any], field: str
):
    answer = await gateway.request("POST", "/keys", json=body, headers=ADMIN)
    assert answer.status == 400, answer.body
    assert field in answer.json()["error"]
    assert (await gateway.request("GET", "/keys", headers=ADMIN)).json()["count"] == 0


@pytest.mark.parametrize(("method", "path"), [("GET", "/keys"), ("POST", "/keys"), ("DELETE", "/keys/shop")])
async def test_nobody_but_the_admin_sees_or_changes_keys(gateway: RunningGateway, method: str, path: str):
    made = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
    body = {"name": "other"} if method == "POST" else None
    plain = made.json()["key"]
    for headers in (
        {},
        {"X-Admin-API-Key": "wrong"},
        {"X-Admin-API-Key": plain},
        {"X-API-Key": plain},
        {"Authorization": f"Bearer {plain}"},
    ):
        answer = await gateway.request(method, path, json=body, headers=headers)
        assert answer.status == 401, (headers, answer.body)
        assert b"shop" not in answer.body
    assert [key.name for key in await gateway.app.keys.list()] == ["shop"]


async def test_every_path_a_key_may_be_limited_to_is_one_of_the_gateway():
    paths = [operation.path for operation in all_operations()]
    for route in ROUTES:
        assert any(path == route or path.startswith(f"{route}/") for path in paths), route
