"""Work in trouble: who finds out that it is over, what is let go of, what is bought again, and what a cancel leaves."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from durable import ADMIN, accepted, items, worked_off

from fakes.clock import HastyClock
from imagen.assembly import GATEWAY, App, build
from imagen.domain.batch import Batch, Item, ItemStatus
from imagen.domain.limits import Lane
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import StoreError
from imagen.service.accept import Entry, NewBatch
from imagen.service.deliver import Destination
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio
PRICE = Usd(3000)


async def ended(app: App, batch: Batch, *, within: float = 30.0) -> list[Item]:
    """Its items, when it has ended."""
    async with asyncio.timeout(within):
        await app.batches.ended(batch.id)
    return await items(app, batch)


async def accepted_equal(app: App, count: int, **wishes: Any) -> Batch:
    """A batch whose items all want the same picture, kept on the shelf."""
    backend = app.backends.get(GATEWAY)
    request = GenerationRequest(
        prompt="the same fox", model=app.catalog.resolve("flux-schnell"), resume=False, plain=True, **wishes
    )
    entries = [
        Entry(
            await app.gateway.prepare(
                request, backend=backend, caller=ADMIN, lane=Lane.BATCH, destination=Destination(shelf=True)
            ),
            {"output_filename": f"{number}.png"},
        )
        for number in range(count)
    ]
    return await app.acceptance.accept(NewBatch(backend=backend, caller=ADMIN, scope="admin"), entries)


@pytest.fixture
def app_clock() -> HastyClock:
    """What is tried again is tried after a second and more, each time; nobody needs to wait for all of that."""
    return HastyClock()


class FullDisk:
    """Nothing can be written as long as it is full."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._write = app.database.write
        self.refused = 0

    async def _refuse(self, _job: Any) -> Any:
        self.refused += 1
        raise StoreError("the disk of /somewhere/imagen.db is full")

    def fill(self) -> None:
        self._app.database.write = self._refuse  # type: ignore[method-assign]

    def make_room(self) -> None:
        self._app.database.write = self._write  # type: ignore[method-assign]


class Later(HastyClock):
    """A clock that can be put forward."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_who_finds_out_about_the_service_and_meets_a_full_disk_keeps_nobody_waiting(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        disk = FullDisk(app)
        replicate_emulator.add_fault("status", status=503, operation="predictions.create", times=None)
        batch = await accepted(app, [f"a fox {number}" for number in range(4)])
        await until(app.worker.troubles.now)
        disk.fill()
        replicate_emulator.clear_faults()
        await until(lambda: any(trouble.subject == "store" for trouble in app.worker.troubles.now()))
        disk.make_room()
        found = await ended(app, batch)
        assert not app.worker.troubles.now()
    assert {item.status for item in found} == {ItemStatus.SUCCEEDED}
    assert replicate_emulator.purchases == 4


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_whose_picture_cannot_be_fetched_keeps_nobody_waiting_for_the_service(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        replicate_emulator.add_fault("status", status=503, operation="predictions.create", times=None)
        batch = await accepted(app, [f"a fox {number}" for number in range(4)], keep=True)
        await until(app.worker.troubles.now)
        replicate_emulator.clear_faults()
        replicate_emulator.add_fault("status", status=503, operation="delivery", times=None)
        await until(lambda: replicate_emulator.purchases == 4)
        await until(lambda: not app.worker.troubles.now())
        replicate_emulator.clear_faults()
        found = await ended(app, batch)
    assert {item.status for item in found} == {ItemStatus.SUCCEEDED}
    assert replicate_emulator.purchases == 4


async def test_what_is_said_of_a_trouble_names_no_prediction_and_no_place(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        disk = FullDisk(app)
        replicate_emulator.add_fault("status", status=503, operation="predictions.create", times=None)
        await accepted(app, ["a fox"])
        (trouble,) = await until(app.worker.troubles.now)
        assert trouble.subject != "store"
        assert "pred_" not in trouble.reason
        disk.fill()
        await until(lambda: app.pulse.last.state != "ok" or disk.refused)
        with app.worker.troubles.ticket() as ticket:
            ticket.note("store", StoreError("the disk of /somewhere/imagen.db is full"))
        told = next(each for each in app.worker.troubles.now() if each.subject == "store")
        assert told.reason == "the disk of the database is full"
        disk.make_room()


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_a_damaged_prediction_is_its_items_trouble_alone(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        batch = await accepted(app, ["a fox", "a hare"])
        hurt = (await items(app, batch))[0].predictions[0]
        async with worked_off(app):
            replicate_emulator.add_fault("drop_after", operation="predictions.create", times=None)
            replicate_emulator.add_fault("status", status=503, operation="predictions.list", times=None)

            async def written() -> bool:
                return any(each.id == hurt for each in await app.store.list(limit=9))

            await until(written)
        with sqlite3.connect(app.database.path) as connection:
            connection.execute("update predictions set input = '{broken', owner = null where id = ?", [hurt])
        replicate_emulator.clear_faults()
        async with worked_off(app):
            found = await ended(app, batch)
            assert not any(trouble.subject == "store" for trouble in app.worker.troubles.now())
    assert [item.status for item in found] == [ItemStatus.FAILED, ItemStatus.SUCCEEDED]
    assert found[0].code == "store_error"
    assert found[0].cost is None


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_what_could_not_be_let_go_of_is_taken_up_again_by_the_same_process(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        disk = FullDisk(app)
        replicate_emulator.add_fault("status", status=503, operation="predictions.create", times=1)
        batch = await accepted(app, ["a fox"], keep=True)

        async def written() -> bool:
            return bool(await app.store.list(limit=1))

        await until(written)
        disk.fill()
        await until(lambda: disk.refused >= 2)
        disk.make_room()
        (item,) = await ended(app, batch)
    assert item.status is ItemStatus.SUCCEEDED
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.1)
@pytest.mark.parametrize("stranger", [False, True], ids=["nothing there", "somebody else's there"])
async def test_after_more_than_an_hour_away_only_what_cannot_be_told_fails(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, *, stranger: bool
) -> None:
    clock, hour = Later(), timedelta(minutes=70)
    settings = load_settings(environ=environ, cwd=tmp_path)
    async with build(settings, environ=environ, clock=clock) as app, worked_off(app):
        for operation in ("predictions.create", "predictions.list"):
            fault = "drop_after" if stranger and operation == "predictions.create" else "status"
            replicate_emulator.add_fault(
                fault, operation=operation, times=None, **({"status": 503} if fault == "status" else {})
            )
        batch = await accepted(app, ["a fox"])
        await until(app.worker.troubles.now)
        clock.ahead = hour
        replicate_emulator.clock.advance(hour.total_seconds())
        replicate_emulator.clear_faults()
        (item,) = await ended(app, batch)
    assert replicate_emulator.purchases == 1
    if stranger:
        assert (item.status, item.code) == (ItemStatus.FAILED, "outcome_unknown")
        assert (item.charged, item.cost) == (None, None)
    else:
        assert item.status is ItemStatus.SUCCEEDED
        assert item.cost == PRICE


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_while_the_service_is_away_no_create_is_sent(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    def calls(operation: str) -> int:
        return len(replicate_emulator.journal.entries(operation=operation))

    async with open_app() as app, worked_off(app):
        replicate_emulator.add_fault("status", status=503, times=None)
        batch = await accepted(app, [f"a fox {number}" for number in range(3)])
        await until(app.worker.troubles.now)
        creates = calls("predictions.create")
        await until(lambda: calls("account.get") >= 2)
        assert calls("predictions.create") == creates
        replicate_emulator.clear_faults()
        found = await ended(app, batch)
    assert {item.status for item in found} == {ItemStatus.SUCCEEDED}


@pytest.mark.replicate_emulator(run_seconds=30.0)
async def test_canceling_shared_work_stops_its_run_and_tells_its_cost(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        batch = await accepted_equal(app, 4, seed=7, cache=True)
        await until(lambda: replicate_emulator.purchases)
        await app.batches.cancel(batch.id)
        found = await ended(app, batch)
        predictions = await app.store.list(limit=9)
    assert {item.status for item in found} == {ItemStatus.CANCELED}
    assert replicate_emulator.purchases == 1
    assert replicate_emulator.state()["by_status"] == {"canceled": 1}
    assert [each.status for each in predictions] == [Status.CANCELED]
    assert sum(item.charged is True for item in found) == 1
    assert all(item.cost is not None for item in found)


@pytest.mark.replicate_emulator(run_seconds=0.1)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_fault_of_ours_after_the_purchase_loses_no_picture(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, times: int
) -> None:
    async with open_app() as app, worked_off(app):
        put, left = app.shelf.put, times

        async def broken(*values: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left >= 0:
                raise RuntimeError("can't start new thread")
            return await put(*values, **more)

        app.shelf.put = broken  # type: ignore[method-assign]
        batch = await accepted(app, ["a fox"], keep=True)
        (item,) = await ended(app, batch)
    assert replicate_emulator.purchases == 1
    assert (item.charged, item.cost) == (True, PRICE)
    if times == 1:
        assert item.status is ItemStatus.SUCCEEDED
        assert item.files
    else:
        assert (item.status, item.code) == (ItemStatus.FAILED, "error")
        assert item.urls


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_what_was_bought_before_its_semaphore_was_removed_comes_to_its_end(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        await app.semaphores.register("few", 2)
        replicate_emulator.add_fault("drop_after", operation="predictions.create", times=1)
        replicate_emulator.add_fault("status", status=503, operation="predictions.list", times=None)
        batch = await accepted_equal(app, 1, semaphore="few")
        await until(app.worker.troubles.now)
        await app.semaphores.remove("few")
        replicate_emulator.clear_faults()
        (item,) = await ended(app, batch)
    assert item.status is ItemStatus.SUCCEEDED
    assert item.cost == PRICE
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_what_was_made_and_kept_before_the_cancel_is_told(open_app: Callable[..., App]) -> None:
    async with open_app() as app:

        async def never(*_: Any) -> None:
            await asyncio.Event().wait()

        app.worker._ends.end = never  # type: ignore[method-assign] # as if it were killed before that
        async with worked_off(app):
            batch = await accepted(app, ["a fox"], keep=True)

            async def kept() -> bool:
                return any(each.delivered_at for each in await app.store.list(limit=1))

            await until(kept)
    async with open_app() as app:
        await app.batches.cancel(batch.id)
        async with worked_off(app):
            (item,) = await ended(app, batch)
    assert item.status is ItemStatus.SUCCEEDED
    assert (item.charged, item.cost, item.images) == (True, PRICE, 1)
    assert item.files[0].startswith("shelf:pic_")


@pytest.mark.replicate_emulator(run_seconds=30.0)
async def test_a_process_that_ends_waits_for_what_it_cancels(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        cancel, asked = app.gateway.cancel, asyncio.Event()

        async def heard(prediction_id: str, **more: Any) -> Any:
            asked.set()
            return await cancel(prediction_id, **more)

        app.gateway.cancel = heard  # type: ignore[method-assign]
        async with worked_off(app):
            batch = await accepted(app, ["a fox"])
            await until(lambda: replicate_emulator.purchases)
            await app.batches.cancel(batch.id)
            await asked.wait()
    async with open_app() as app:
        (item,) = await items(app, batch)
    assert item.status is ItemStatus.CANCELED
    assert replicate_emulator.state()["by_status"] == {"canceled": 1}
