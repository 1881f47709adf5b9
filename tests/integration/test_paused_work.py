"""What a process left of a batch that is paused or canceled then: what is under way is finished, and nothing more is bought."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from durable import accepted, items, worked_off
from gateway import ADMIN, running_gateway
from stories import stuck

from imagen.assembly import GATEWAY, App
from imagen.domain.batch import BatchStatus, ItemStatus
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import Paused
from imagen.service.cancel_item import ItemCancels
from imagen.store.batches import SqlBatches
from waiting import until

pytestmark = pytest.mark.anyio
GRACE = {"IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1"}


async def held_places(app: App) -> int:
    backend = app.backends.get("gateway")
    state = await app.limits.show(backend.account, now=app.clock.now().timestamp())
    return state.running


@pytest.mark.parametrize("arrived", [False, True])
async def test_of_what_a_process_was_about_to_buy_nothing_is_bought_before_it_is_resumed(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, *, arrived: bool
) -> None:
    async with open_app(**GRACE) as app, worked_off(app):
        there = stuck(app.backends.get(GATEWAY), "arrived" if arrived else "on its way")
        batch = await accepted(app, ["a fox", "a hen"])
        await until(lambda: len(there) == 2)
    async with open_app(**GRACE) as app:
        await app.batches.pause(batch.id)
        async with worked_off(app):
            if arrived:
                await until(lambda: _all_ended(app, batch.id))
            else:
                # Searched for in vain, it holds nothing: what others make goes on.
                await until(lambda: _waits_and_holds_nothing(app, batch.id))
            assert replicate_emulator.purchases == (2 if arrived else 0)
            await app.batches.resume(batch.id)
            async with asyncio.timeout(15):
                view = await app.batches.ended(batch.id)
            found = await items(app, batch)
            assert await held_places(app) == 0
    assert view.status is BatchStatus.SUCCEEDED
    assert [item.attempt for item in found] == [1, 1]
    assert replicate_emulator.purchases == 2


async def _all_ended(app: App, batch_id: str) -> bool:
    view = await app.batches.view(batch_id)
    return view.tally.succeeded == 2


async def _waits_and_holds_nothing(app: App, batch_id: str) -> bool:
    view = await app.batches.view(batch_id)
    return view.tally.queued == 2 and await held_places(app) == 0


@pytest.mark.parametrize("moment", ["while it is searched for", "before"])
async def test_what_is_paused_during_the_search_is_not_bought_after_it(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, moment: str
) -> None:
    async with open_app(**GRACE) as app, worked_off(app):
        there = stuck(app.backends.get(GATEWAY), "on its way")
        batch = await accepted(app, ["a fox"])
        await until(lambda: there)
    async with open_app(IMAGEN_REPLICATE__LOST_ANSWER_GRACE="3") as app, worked_off(app):
        if moment != "before":
            await until(lambda: app.queue.busy == 1)
        await app.batches.pause(batch.id)
        await asyncio.sleep(4)
        view = await app.batches.view(batch.id)
    assert replicate_emulator.purchases == 0
    assert (view.status, view.tally.left) == (BatchStatus.PAUSED, 1)


async def test_a_paused_order_buys_none_of_its_predictions_that_was_not_begun(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        backend = app.backends.get("gateway")
        order = await app.gateway.prepare(
            GenerationRequest(prompt="a fox", model=app.catalog.resolve("flux-schnell")), backend=backend
        )
        (outcome,) = await app.gateway.carry_out(msgspec.structs.replace(order, accepted=True, paused=True))
        assert await held_places(app) == 0
    assert isinstance(outcome.error, Paused)
    assert outcome.error.retryable
    assert replicate_emulator.purchases == 0


async def test_what_is_canceled_as_it_is_sent_holds_nothing_when_its_batch_has_ended(
    tmp_path: Any, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **GRACE) as gateway:
        there = stuck(gateway.app.backends.get(GATEWAY), "on its way")
        task = {"model_name": "flux-schnell", "tasks": [{"prompt": "a fox"}]}
        taken = await gateway.request("POST", "/batches", headers=ADMIN, json=task)
        batch_id = taken.json()["id"]
        await until(lambda: there)
        await gateway.request("POST", f"/batches/{batch_id}/cancel", headers=ADMIN)
        async with asyncio.timeout(15):
            view = await gateway.app.batches.ended(batch_id)
        assert await held_places(gateway.app) == 0
        (item,) = await gateway.app.batches.items(batch_id)
    assert view.status is BatchStatus.CANCELED
    # Its create may arrive still: nobody can tell what it costs.
    assert (item.status, item.cost) == (ItemStatus.CANCELED, None)
    assert replicate_emulator.purchases == 0


async def test_what_is_resumed_while_it_is_searched_for_goes_on_at_once(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    given = {"REPLICATE_CONCURRENT_LIMIT": "1", "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "2"}
    async with open_app(**given) as app, worked_off(app):
        there = stuck(app.backends.get(GATEWAY), "on its way")
        batch = await accepted(app, [f"a fox {number}" for number in range(4)])
        await until(lambda: there)
    async with open_app(**given) as app:
        await app.batches.pause(batch.id)
        async with worked_off(app):
            await until(lambda: app.queue.busy == 1)
            await app.batches.resume(batch.id)
            async with asyncio.timeout(15):
                view = await app.batches.ended(batch.id)
    assert (view.status, replicate_emulator.purchases) == (BatchStatus.SUCCEEDED, 4)


# --- what a command left, and somebody cancels ---------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=25.0)
@pytest.mark.parametrize(("token", "ended"), [("r8_integration", True), ("r8_of_another_account", False)])
async def test_a_batch_ends_as_canceled_only_where_what_runs_of_it_can_be_stopped(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, token: str, *, ended: bool
) -> None:
    async with open_app() as app, worked_off(app):
        batch = await accepted(app, ["a fox", "a hen"], details={"command": "imagen batch"})
        await until(lambda: replicate_emulator.purchases == 2)
    async with open_app(REPLICATE_API_TOKEN=token) as app:
        await app.batches.cancel(batch.id)
        assert (app.why_it_cannot_end(batch) is None) is ended
        working = asyncio.ensure_future(
            app.queue.run(
                app.worker.work,
                emptied=app.worker.emptied,
                takes=lambda each: app.why_it_cannot_end(each) is None,
            )
        )
        await asyncio.sleep(2.5)
        view = await app.batches.view(batch.id)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert (view.batch.ended_at is not None) is ended
    assert replicate_emulator.state()["running"] == (0 if ended else 2)


async def test_who_took_a_batch_to_cancel_it_buys_nothing_when_it_is_tried_again(
    tmp_path: Any, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        app, gate = gateway.app, asyncio.Event()
        batch = await accepted(app, [f"a fox {n}" for n in range(20)], details={"command": "imagen batch"})
        store = SqlBatches(app.database)
        await store.take(batch.id, owner="1-gone", was=None)
        await store.claim(batch.id, owner="1-gone", limit=1)
        cancel = ItemCancels.cancel

        async def slow(cancels: ItemCancels, *given: Any) -> None:
            await gate.wait()
            await cancel(cancels, *given)

        monkeypatch.setattr(ItemCancels, "cancel", slow)
        await app.batches.cancel(batch.id)
        await until(lambda: app.queue.busy >= 1)
        assert await app.batches.retry_failed(batch.id) >= 19
        gate.set()
        await until(lambda: app.queue.busy == 0)
        await asyncio.sleep(1.5)
        view = await app.batches.view(batch.id)
    assert replicate_emulator.purchases == 0
    assert view.batch.owner is None
    assert view.tally.succeeded == 0
