"""Durable work on a Replicate token of its caller's own: it is done while the token is at hand, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from batch_calls import FLUX, ended, written_below
from durable import accepted
from gateway import ADMIN, Answer, RunningGateway, running_gateway
from sqlalchemy import func, select, update

from imagen.assembly import App
from imagen.domain.batch import Batch, BatchStatus, ItemStatus
from imagen.domain.caller import Caller
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.emulator import EmulatorThread
from imagen.errors import QueueFull
from imagen.service.accept import Entry, NewBatch
from imagen.service.load import MOST_OPEN_BATCHES
from imagen.store.tables import batches, predictions
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]
SEALS = {"IMAGEN_SECRET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode()}
TOKEN = "r8_their_own"
OWN = {"X-Replicate-Api-Token": TOKEN}
MADE_UP = {"X-Replicate-Api-Token": "r8_invalid_made_up"}
KEY = {"Idempotency-Key": "order 4711"}
WISH = {"model_name": FLUX, "prompt": "a fox"}
TASKS = {"model_name": FLUX, "tasks": [{"prompt": "a fox"}, {"prompt": "a hare"}]}


async def count(app: App, table: Any) -> int:
    found: int = await app.database.read(
        lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
    )
    return found


async def post(gateway: RunningGateway, path: str, fields: Any = None, **headers: str) -> Answer:
    return await gateway.request("POST", path, json=fields, headers=headers)


# --- the token is brought once more ------------------------------------------------------------------------


async def test_failed_items_are_tried_again_with_the_token_which_is_kept_for_that(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **SEALS) as gateway:
        replicate_emulator.add_fault("fail", prompt="hare", error="tired")
        made = (await post(gateway, "/batches", TASKS, **OWN)).json()
        assert (await ended(gateway, made["id"], headers=OWN))["status"] == "partly_failed"
        batch = (await gateway.app.batches.view(made["id"])).batch
        assert batch.sealed_token is None  # forgotten at its end
        replicate_emulator.clear_faults()
        replicate_emulator.add_fault("slow", run_seconds=30)
        again = await post(gateway, f"/batches/{made['id']}/retry-failed", **OWN)
        assert (again.status, again.json()["retried"]) == (202, 1)
        await until(lambda: replicate_emulator.purchases == 3)
        batch = (await gateway.app.batches.view(made["id"])).batch
        assert batch.sealed_token is not None
    async with running_gateway(tmp_path, replicate_emulator, **SEALS) as gateway:
        # Nobody has to bring it to the next process.
        view = await gateway.app.batches.view(made["id"])
        assert view.batch.reason is None
        await post(gateway, f"/batches/{made['id']}/cancel", **OWN)
        assert (await ended(gateway, made["id"], headers=OWN))["counts"]["canceled"] == 1
        assert replicate_emulator.state()["by_status"]["canceled"] == 1  # it was stopped at the service too
        assert (await gateway.app.batches.view(made["id"])).batch.sealed_token is None
        assert gateway.app.batches._tokens._in_memory == {}
    assert TOKEN.encode() not in written_below(tmp_path)


async def test_work_whose_token_cannot_be_read_any_more_goes_on_when_its_caller_brings_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    other = {"IMAGEN_SECRET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode()}
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    async with running_gateway(tmp_path, replicate_emulator, **other) as gateway:
        made = (await post(gateway, "/batches", TASKS, **OWN)).json()
        await until(lambda: replicate_emulator.purchases > 0)
    async with running_gateway(tmp_path, replicate_emulator, **SEALS) as gateway:
        await paused(gateway.app, made["id"])
        assert (await post(gateway, f"/batches/{made['id']}/resume", **OWN)).status == 200
        assert (await ended(gateway, made["id"], headers=OWN))["status"] == "succeeded"
    assert replicate_emulator.purchases == 2


# --- two gateways -------------------------------------------------------------------------------------------


async def test_work_whose_token_one_process_has_in_memory_is_left_to_that_one(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as other, open_app() as asked:
        batch = await own_work(asked, 0)
        owner = (await asked.batches.view(batch.id)).batch.owner
        async with worked_off(other):
            # What came later is done, so it has looked at this one too.
            async with asyncio.timeout(15):
                await other.batches.ended((await accepted(other, ["a hare"])).id)
            assert (await other.batches.view(batch.id)).batch.owner == owner
        async with worked_off(asked), asyncio.timeout(15):
            view = await asked.batches.ended(batch.id)
        assert (view.status, view.tally.succeeded) == (BatchStatus.SUCCEEDED, 1)
        assert view.batch.reason is None
    assert replicate_emulator.purchases == 2


async def test_work_whose_token_one_process_has_in_memory_is_done_by_that_one(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with (
        running_gateway(tmp_path, replicate_emulator) as idle,
        running_gateway(tmp_path, replicate_emulator) as asked,
    ):

        async def one(number: int) -> int:
            idle.app.queue.wake()
            own = {"X-Replicate-Api-Token": f"r8_true_{number}"}
            key = {"Idempotency-Key": f"order {number}"}
            return (await post(asked, "/generate", WISH, **own, **key)).status

        assert {await one(number) for number in range(6)} == {200}
        assert set(await asyncio.gather(*(one(number) for number in range(10, 22)))) == {200}
    assert replicate_emulator.purchases == 18


async def test_what_a_process_left_behind_waits_for_whoever_is_brought_its_token(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    async with running_gateway(tmp_path, replicate_emulator) as idle:
        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as asked:
            leaving = asyncio.ensure_future(post(asked, "/generate", WISH, **OWN, **KEY))
            await until(lambda: replicate_emulator.purchases == 1)
            leaving.cancel()
        (left,) = await idle.app.batches._store.open()
        idle.app.queue.wake()
        answer = await post(idle, "/generate", WISH, **OWN, **KEY)
        assert answer.status == 200, answer.body
        assert left.owner is None
        assert left.reason is None
    assert replicate_emulator.purchases == 1


# --- strangers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/generate", WISH), ("/generate-batch", TASKS), ("/predictions", WISH), ("/batches", TASKS)],
)
async def test_a_made_up_token_is_refused_and_nothing_is_kept(
    tmp_path: Path, replicate_emulator: EmulatorThread, path: str, fields: dict[str, Any]
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **SEALS) as gateway:
        async with asyncio.timeout(15):
            keyed = await post(gateway, path, fields, **MADE_UP, **KEY)
        assert (keyed.status, keyed.json()["code"]) == (401, "unauthenticated"), keyed.body
        plain = await post(gateway, "/generate", WISH, **MADE_UP)
        assert (keyed.status, keyed.body) == (plain.status, plain.body)
        assert await count(gateway.app, batches) == 0
        assert gateway.app.batches._tokens._in_memory == {}
        assert gateway.app.worker.troubles.now() == []
        assert (await post(gateway, path, fields, **OWN, **KEY)).status in {200, 202}
        await until(lambda: replicate_emulator.purchases == (2 if "tasks" in fields else 1))


async def test_a_good_token_is_not_asked_about_each_time(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for number in range(3):
            key = {"Idempotency-Key": f"order {number}"}
            assert (await post(gateway, "/generate", WISH, **OWN, **key)).status == 200
    assert len(replicate_emulator.journal.entries(operation="account.get")) == 1


async def own_work(app: App, number: int, *, items: int = 1, token: str = TOKEN) -> Batch:
    """Work on a token of its caller's, accepted as `/generate` with a key does."""
    secret = Secret(token)
    backend = app.backends.of(secret)
    caller = Caller(name="stranger", stranger=True)
    request = GenerationRequest(
        prompt=f"a fox {number}", model=app.catalog.resolve(FLUX), resume=False, plain=True
    )
    order = await app.gateway.prepare(request, backend=backend, caller=caller)
    new = NewBatch(
        backend=backend,
        caller=caller,
        scope=f"token:{backend.account}",
        kind="single",
        own_token=secret,
        outlives=False,
    )
    more = [await app.gateway.prepare(request, backend=backend, caller=caller) for _ in range(items - 1)]
    return await app.acceptance.accept(new, [Entry(each) for each in (order, *more)])


async def test_a_stranger_has_only_so_much_under_way(
    open_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app() as app:
        for number in range(MOST_OPEN_BATCHES):
            await own_work(app, number)
        with pytest.raises(QueueFull, match="under way"):
            await own_work(app, MOST_OPEN_BATCHES)
        assert await count(app, batches) == MOST_OPEN_BATCHES
        assert len(app.batches._tokens._in_memory) == MOST_OPEN_BATCHES
        monkeypatch.setattr("imagen.service.load.MOST_OPEN_ITEMS", 3)
        await own_work(app, 0, items=2, token="r8_another")
        with pytest.raises(QueueFull, match="2 tasks"):
            await own_work(app, 1, items=2, token="r8_another")
        await own_work(app, 1, token="r8_another")


# --- a token that is good no more ---------------------------------------------------------------------------


@asynccontextmanager
async def worked_off(app: App) -> AsyncIterator[None]:
    working = asyncio.create_task(
        app.queue.run(app.worker.work, emptied=app.worker.emptied, takes=app.batches.has_token)
    )
    try:
        yield
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def a_day_passes(app: App) -> None:
    earlier = app.clock.now() - timedelta(hours=25)
    await app.database.write(
        lambda connection: connection.execute(update(batches).values(created_at=earlier))
    )


async def paused(app: App, batch_id: str) -> None:
    async with asyncio.timeout(15):
        async for _ in app.batches.events(batch_id):
            if (await app.batches.view(batch_id)).batch.reason is not None:
                return


async def test_a_single_whose_token_was_revoked_ends_after_a_day_and_costs_nothing(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", status=401, operation="predictions.create", times=None)
    async with open_app() as app, worked_off(app):
        batch = await own_work(app, 0)
        await paused(app, batch.id)
        await app.batches.sweep()
        assert (await app.batches.view(batch.id)).batch.ended_at is None
        await a_day_passes(app)
        await app.batches.sweep()
        view = await app.batches.view(batch.id)
        assert view.batch.ended_at is not None
        (item,) = await app.batches.items(batch.id)
        assert (item.status, item.charged, item.code) == (ItemStatus.FAILED, False, "backend_unauthenticated")
        assert item.cost is not None
        assert item.cost.to_json() == 0.0
        assert app.batches._tokens._in_memory == {}
        assert app.worker.troubles.now() == []
    assert replicate_emulator.purchases == 0


async def test_a_single_whose_token_nobody_brings_again_ends_after_a_day(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        batch = await own_work(app, 0)
        await app.batches._store.release(batch.id, owner=app.owners.me)
    async with open_app() as app, worked_off(app):
        await a_day_passes(app)
        await app.batches.sweep()
        (item,) = await app.batches.items(batch.id)
        assert (item.status, item.charged) == (ItemStatus.FAILED, False)
        assert (await app.batches.view(batch.id)).batch.ended_at is not None
        assert await count(app, predictions) == 0
    assert replicate_emulator.purchases == 0


# --- what stopped it is told as without a key ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "headers", "status"),
    [
        ("payment_required", ADMIN, 402),
        ("payment_required", OWN, 402),
        ("status", OWN, 401),
        ("status", ADMIN, 502),
    ],
)
async def test_what_stopped_it_has_the_status_that_it_has_without_a_key(
    tmp_path: Path, replicate_emulator: EmulatorThread, fault: str, headers: dict[str, str], status: int
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        refused = {"status": 401} if fault == "status" else {}
        replicate_emulator.add_fault(fault, operation="predictions.create", times=None, **refused)
        async with asyncio.timeout(20):
            plain = await post(gateway, "/generate", WISH, **headers)
            keyed = await post(gateway, "/generate", WISH, **headers, **KEY)
        assert (keyed.status, keyed.json()["code"]) == (plain.status, plain.json()["code"]), keyed.body
        assert plain.status == status
        replicate_emulator.clear_faults()
        async with asyncio.timeout(20):
            paid = await post(gateway, "/generate", WISH, **headers, **KEY)
        assert paid.status == 200, paid.body
    assert replicate_emulator.purchases == 1
