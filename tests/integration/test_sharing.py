"""Equal requests at once: one purchase, whoever leaves; and what callers over HTTP are told of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import ADMIN, Answer, RunningGateway, running_gateway
from msgspec.structs import replace
from stories import stuck

from imagen.assembly import GATEWAY, App
from imagen.domain.batch import Batch
from imagen.domain.caller import Caller
from imagen.domain.events import CacheHit
from imagen.domain.limits import Lane, Patience
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import DeliveryError, PredictionCanceled, PredictionFailed, RateLimited, StillFollowed
from imagen.service.accept import Entry, NewBatch
from imagen.service.deliver import Destination
from imagen.service.finish import Outcome
from imagen.service.orders import from_stored
from imagen.store.batches import SqlBatches
from waiting import until

pytestmark = pytest.mark.anyio

SEEDED = GenerationRequest(prompt="a fox", seed=7, cache=True, resume=False)
SHELF = Destination(shelf=True)
BATCHES = Caller(name="admin")
KEEP = {"IMAGEN_CACHE__KEEP": "true"}


async def ask(app: App, request: GenerationRequest = SEEDED, to: Destination | None = SHELF) -> Outcome:
    (outcome,) = await app.gateway.generate(request, destination=to)
    return outcome


def begin(app: App, *given: Any) -> asyncio.Task[Outcome]:
    return asyncio.ensure_future(ask(app, *given))


def waiting(app: App) -> int:
    """How many wait for what is being made."""
    return sum(flight.waiting for flight in app.gateway._reuse._flights.values())


async def outcomes(app: App) -> Counter[str]:
    return Counter(entry.outcome for entry in await app.ledger.entries())


def statuses(emulator: EmulatorThread) -> Any:
    return emulator.state()["by_status"]


# --- in one process ----------------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_equal_requests_at_once_share_one_purchase(
    open_app: Callable[..., App], record: Any, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        found = await asyncio.gather(*(ask(app) for _ in range(30)))
        assert Counter(one.cache for one in found) == {"miss": 1, "shared": 29}
        assert all(one.error is None for one in found)
        (made,) = (one.prediction for one in found if one.cache == "miss")
        copies = [one.prediction for one in found if one.cache == "shared"]
        assert all((one.charged, one.cost, one.reused) == (False, Usd(0), True) for one in copies)
        # Each has its own prediction and its own picture.
        assert len({one.prediction.id for one in found}) == 30
        assert len({one.pictures[0].shelf_id for one in found}) == 30
        assert [await app.store.get(one.id) for one in copies] == copies
        assert await outcomes(app) == {"succeeded": 1, "shared": 29}
        assert Usd.total(entry.cost for entry in await app.ledger.entries() if entry.cost) == made.cost
        assert app.gateway._reuse._flights == {}
    assert replicate_emulator.purchases == 1
    assert len(replicate_emulator.journal.entries(operation="delivery")) == 1
    assert {(hit.made_as, hit.shared) for hit in record.of(CacheHit)} == {(made.id, True)}


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_those_who_leave_the_picture_upstream_are_told_where_it_is(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        found = await asyncio.gather(*(ask(app, SEEDED, None) for _ in range(3)))
        assert {one.prediction.output for one in found} == {found[0].prediction.output}
        assert all(one.pictures == () and one.prediction.finished for one in found)
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_who_does_not_ask_for_it_shares_nothing(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        alone = [replace(SEEDED, cache=None), replace(SEEDED, cache=False), replace(SEEDED, seed=None)]
        found = await asyncio.gather(*(ask(app, one) for one in [*alone, *alone]))
        assert [one.cache for one in found] == [None] * 6
    assert replicate_emulator.purchases == 6


@pytest.mark.replicate_emulator(run_seconds=0.6)
async def test_when_the_first_leaves_it_goes_on_for_the_others(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        first = begin(app)
        await until(lambda: replicate_emulator.purchases == 1)
        second, third = begin(app), begin(app)
        await until(lambda: waiting(app) == 3)
        for leaving in (first, third):
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
        outcome = await second
        assert (outcome.error, outcome.cache) == (None, "shared")
        assert len(outcome.pictures) == 1
        assert await outcomes(app) == {"succeeded": 1, "shared": 1}
    assert statuses(replicate_emulator) == {"succeeded": 1}


@pytest.mark.replicate_emulator(run_seconds=20)
async def test_when_nobody_is_left_it_is_canceled_upstream_and_who_comes_then_begins_anew(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        tasks = [begin(app) for _ in range(3)]
        await until(lambda: replicate_emulator.purchases == 1 and waiting(app) == 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert statuses(replicate_emulator) == {"canceled": 1}
        state = await app.limits.show(app.backends.get(None).account, now=app.clock.now().timestamp())
        assert state.running == 0
        later = begin(app)
        await until(lambda: replicate_emulator.purchases == 2)
        later.cancel()
        await asyncio.wait([later])
        assert app.gateway._reuse._flights == {}
    assert statuses(replicate_emulator) == {"canceled": 2}


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_the_failure_of_the_first_is_that_of_all_and_is_charged_to_none(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("fail", prompt="fox", preset="nsfw")
    async with open_app() as app:
        found = await asyncio.gather(*(ask(app) for _ in range(4)))
        for one in found:
            assert isinstance(one.error, PredictionFailed)
            assert (one.error.charged, one.error.category) == (False, "safety")
            assert one.error.prediction_id == one.prediction.id
            stored = await app.store.get(one.prediction.id)
            assert (stored.status, stored.charged, stored.finished) == (Status.FAILED, False, True)
        assert await outcomes(app) == {"failed": 1, "shared": 3}
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_a_defective_picture_is_charged_to_the_first_alone(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("broken_picture", prompt="fox")
    async with open_app() as app:
        found = await asyncio.gather(*(ask(app) for _ in range(3)))
        assert all(one.error is not None for one in found)
        assert sorted(str(one.prediction.charged) for one in found) == ["False", "False", "True"]
        copies = [one for one in found if one.prediction.charged is False]
        assert {type(one.error) for one in copies} == {PredictionFailed}
        assert not any("it was charged" in str(one.error) for one in copies)
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_a_place_that_takes_no_picture_spoils_it_for_that_one_alone(
    open_app: Callable[..., App], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        first = begin(app, SEEDED, Destination(output=f"{tmp_path}/there/a.png"))
        await until(lambda: waiting(app) == 1)
        (tmp_path / "there").rmdir()
        (tmp_path / "there").write_text("a file stands where the folder should be")
        second = await ask(app)
        assert (await first).error is not None
        assert (second.error, second.cache) == (None, "shared")
        assert len(second.pictures) == 1
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_who_waits_for_one_that_is_not_let_in_has_it_made(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await app.semaphores.register("narrow", 1)
        turn = app.caller().turn
        async with app.leases.hold("narrow", holder="me", ttl_seconds=60, wait_seconds=5, turn=turn):
            order = await app.gateway.prepare(
                replace(SEEDED, semaphore="narrow"),
                backend=app.backends.get(None),
                patience=Patience(line_seconds=0.3),
                destination=SHELF,
            )
            refused = asyncio.ensure_future(app.gateway.carry_out(order))
            await until(lambda: waiting(app) == 1)
            outcome = await ask(app)
            assert isinstance((await refused)[0].error, RateLimited)
        assert (outcome.error, outcome.cache) == (None, "miss")
        assert await outcomes(app) == {"succeeded": 1}
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.1)
async def test_who_waits_for_one_that_somebody_cancels_has_it_made(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", prompt="fox", run_seconds=30.0, times=1)
    async with open_app(IMAGEN_REPLICATE__HELD_OPEN="0") as app:
        first = begin(app)
        await until(lambda: app.watcher.watching == 1)
        second = begin(app)
        await until(lambda: waiting(app) == 2)
        (left,) = await app.store.unfinished()
        await app.gateway.cancel(left.id)
        assert isinstance((await first).error, PredictionCanceled)
        outcome = await second
        assert (outcome.error, outcome.cache) == (None, "miss")
    assert statuses(replicate_emulator) == {"canceled": 1, "succeeded": 1}


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_what_was_accepted_and_has_a_copy_is_not_made_again_when_it_is_done_again(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        backend = app.backends.get(None)
        orders = [
            replace(await app.gateway.prepare(SEEDED, backend=backend, destination=SHELF), accepted=True)
            for _ in range(3)
        ]
        first = [one for (one,) in await asyncio.gather(*map(app.gateway.carry_out, orders))]
        assert Counter(one.cache for one in first) == {"miss": 1, "shared": 2}
    async with open_app() as app:
        backend = app.backends.get(None)
        later = replace(await app.gateway.prepare(SEEDED, backend=backend, destination=SHELF), accepted=True)
        orders = [replace(one, backend=backend) for one in [*orders, later]]
        again = [(await app.gateway.carry_out(one))[0] for one in [*orders, later]]
        assert all(one.error is None and len(one.pictures) == 1 for one in again)
        assert [one.prediction.id for one in again[:3]] == [one.prediction.id for one in first]
        assert [one.pictures[0].path for one in again[:3]] == [one.pictures[0].path for one in first]
        assert again[3].prediction == again[4].prediction
        assert await outcomes(app) == {"succeeded": 1, "shared": 2, "cached": 1}
    assert replicate_emulator.purchases == 1


# --- over HTTP ---------------------------------------------------------------------------------------------


def told(answer: Answer) -> tuple[Any, ...]:
    assert answer.status == 200, answer.body
    body = answer.json()
    return answer.headers.get("x-imagen-cache"), body["cached"], body["cost_usd"]


async def fetched(gateway: RunningGateway, url: str) -> bytes:
    async with gateway.session.get(url) as response:
        assert response.status == 200
        return await response.read()


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_the_answer_tells_what_came_of_asking(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        plain = await gateway.generate(seed=7)
        assert told(plain)[:2] == (None, False)
        first, other = await asyncio.gather(*(gateway.generate(seed=7, cache=True) for _ in range(2)))
        assert {told(first)[:2], told(other)[:2]} == {("miss", False), ("shared", True)}
        assert {first.headers["x-imagen-cost-usd"], other.headers["x-imagen-cost-usd"]} == {"0.025", "0"}
        (there,) = (one["url"] for one in first.json()["generated_files"])
        hits = [await gateway.generate(seed=7, cache=True) for _ in range(2)]
        assert [told(hit) for hit in hits] == [("hit", True, 0.0)] * 2
        # Where the service has it for an hour there may be nothing any more: the gateway keeps it.
        (here,) = hits[0].json()["generated_files"]
        assert here["url"] == here["stored_url"] != there
        assert here["url"].startswith(gateway.url + "/pictures/pic_")
        assert await fetched(gateway, here["url"]) == await fetched(gateway, there)
        assert hits[1].json()["generated_files"][0]["url"] == here["url"]
        assert hits[0].json()["replicate_id"] is None
        stored = await gateway.generate(seed=7, cache=True, store=True)
        assert told(stored) == ("hit", True, 0.0)
        assert stored.json()["generated_files"][0]["stored_url"] != here["url"]
        assert told(await gateway.generate(seed=7, cache=False))[0] is None
        assert told(await gateway.generate(cache=True))[0] is None
    assert replicate_emulator.purchases == 4


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_the_settings_answer_for_the_gateway_s_account_and_for_no_other(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    own = {"credentials": {"replicate_api_token": "r8_a_caller_s_own"}, "seed": 7}
    async with running_gateway(tmp_path, replicate_emulator, **KEEP) as gateway:
        assert [told(await gateway.generate(seed=7))[0] for _ in range(2)] == ["miss", "hit"]
        for _ in range(2):
            assert told(await gateway.generate(headers={}, **own))[0] is None
        asked = [told(await gateway.generate(headers={}, cache=True, **own))[0] for _ in range(2)]
        assert asked == ["miss", "hit"]
    assert replicate_emulator.purchases == 4


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_the_tasks_of_a_batch_share_too_and_each_says_so(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    tasks = [{"prompt": "a fox", "seed": 7}] * 3 + [{"prompt": "a fox"}] * 2
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        body = {"model_name": "flux-dev", "tasks": tasks, "cache": True}
        answer = await gateway.request("POST", "/generate-batch", json=body, headers=ADMIN)
        results = answer.json()["results"]
        assert [one["success"] for one in results] == [True] * 5
        assert sorted(one["cached"] for one in results[:3]) == [False, True, True]
        assert [one["cached"] for one in results[3:]] == [False, False]
        assert answer.json()["cost_usd"] == 0.075
    assert replicate_emulator.purchases == 3


@pytest.mark.replicate_emulator(run_seconds=1.5)
async def test_a_caller_who_hangs_up_takes_the_picture_from_nobody_else(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        first = asyncio.ensure_future(gateway.generate(seed=7, cache=True))
        await until(lambda: replicate_emulator.purchases == 1)
        second = asyncio.ensure_future(gateway.generate(seed=7, cache=True))
        await until(lambda: waiting(gateway.app) == 2)
        first.cancel()
        await until(lambda: waiting(gateway.app) == 1)
        assert told(await second) == ("shared", True, 0.0)
    assert statuses(replicate_emulator) == {"succeeded": 1}


@pytest.mark.replicate_emulator(run_seconds=3)
async def test_a_gateway_that_is_told_to_stop_leaves_it_running_for_the_next(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    body = {"model_name": "flux-dev", "prompt": "a fox", "seed": 7, "cache": True}
    async with aiohttp.ClientSession() as session:  # callers who outlive the gateway
        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="1") as gateway:
            url = gateway.url + "/generate"
            asked = [asyncio.ensure_future(session.post(url, json=body, headers=ADMIN)) for _ in range(3)]
            await until(lambda: replicate_emulator.purchases == 1 and waiting(gateway.app) == 3)
        answers = [await one for one in asked]
        # The one that has it made is told of what; for the others nothing was begun.
        told_ids = [(await one.json()).get("prediction_id") for one in answers]
        assert sorted(one.status for one in answers) == [503, 503, 504]
        assert sum(one is not None for one in told_ids) == 1
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        async with asyncio.timeout(20):
            while (await gateway.app.store.list(limit=1))[0].status is not Status.SUCCEEDED:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert statuses(replicate_emulator) == {"succeeded": 1}


@pytest.mark.parametrize("wrong", ["yes", 1, [], "true"])
async def test_the_field_takes_true_and_false(
    tmp_path: Path, replicate_emulator: EmulatorThread, wrong: Any
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await gateway.generate(cache=wrong)
        assert answer.status == 400
        assert "cache" in answer.json()["error"]
    assert replicate_emulator.purchases == 0


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_another_process_asks_a_gateway_for_it(
    open_app: Callable[..., App], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with (
        running_gateway(tmp_path / "there", replicate_emulator) as gateway,
        open_app(CONCURRENT_DOCKER_ADMIN_API_KEY=ADMIN["X-Admin-API-Key"]) as app,
    ):
        remote = app.at(gateway.url).gateway
        found = []
        for name in ("one.png", "two.png", "three.png"):
            wanted = replace(SEEDED, cache=name != "three.png")
            (outcome,) = await remote.generate(
                wanted, destination=Destination(output=str(tmp_path / name), metadata=False)
            )
            assert outcome.error is None
            found.append((outcome.prediction.reused, outcome.prediction.charged))
        assert found == [(False, True), (True, False), (False, True)]
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert replicate_emulator.purchases == 2


@pytest.mark.replicate_emulator(run_seconds=0.5)
async def test_the_items_of_durable_work_share_too_unless_their_seeds_are_ours(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    tasks = [{"prompt": "a fox", "seed": 7}] * 4 + [{"prompt": "a fox"}] * 2
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        body = {"model_name": "flux-dev", "tasks": tasks, "cache": True}
        for bought, cost in ((3, 75_000), (5, 50_000)):
            answer = await gateway.request("POST", "/batches", json=body, headers=ADMIN)
            assert answer.status == 202, answer.body
            async with asyncio.timeout(20):
                view = await gateway.app.batches.ended(answer.json()["id"])
            assert view.tally.succeeded == 6
            assert view.tally.cost == Usd(cost)
            assert replicate_emulator.purchases == bought
            items = await gateway.app.batches.items(view.batch.id)
            # Each item has a picture of its own that stays.
            assert len({item.files for item in items}) == 6
            assert all(item.files[0].startswith("shelf:pic_") for item in items)
        found = await outcomes(gateway.app)
    # Of the first four one is bought, and whoever comes later than its end finds it in the cache, as the next four do.
    assert (found["succeeded"], found["shared"] + found["cached"]) == (5, 7)
    assert found["cached"] >= 4


# --- in a batch --------------------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_equal_items_wait_for_a_purchase_whose_picture_cannot_be_fetched_at_once(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        backend = app.backends.get(GATEWAY)
        request = replace(SEEDED, model=app.catalog.resolve("flux-schnell"), plain=True)
        entries = []
        for number in range(3):
            order = await app.gateway.prepare(
                request, backend=backend, caller=BATCHES, lane=Lane.BATCH, destination=SHELF
            )
            entries.append(Entry(order, {"output_filename": f"{number}.png"}))
        batch = await app.acceptance.accept(NewBatch(backend=backend, caller=BATCHES, scope="admin"), entries)
        assert await SqlBatches(app.database).take(batch.id, owner=app.owners.me, was=None)
        items = await app.batches.items(batch.id)

        async def carry_out(number: int) -> Outcome:
            order = from_stored(
                items[number].order, batch=batch, backend=backend, owner=app.owners.me, sealer=None
            )
            (outcome,) = await app.gateway.carry_out(order)
            return outcome

        replicate_emulator.add_fault("status", status=404, operation="delivery", times=None)
        first = asyncio.create_task(carry_out(0))
        await until(lambda: replicate_emulator.purchases)
        led, shared = await asyncio.gather(first, carry_out(1))
        assert isinstance(led.error, DeliveryError)
        assert isinstance(shared.error, DeliveryError)
        # The first may be the last that gets its turn again.
        for number in (1, 2):
            assert isinstance((await carry_out(number)).error, StillFollowed)
        assert replicate_emulator.purchases == 1
        replicate_emulator.clear_faults()
        assert (await carry_out(0)).error is None
        assert [(one.error, one.cache) for one in [await carry_out(1), await carry_out(2)]] == [
            (None, "hit")
        ] * 2
    assert replicate_emulator.purchases == 1


async def accept_seeded(app: App) -> Batch:
    """A batch with one item that is equal to that of every other one."""
    backend = app.backends.get(GATEWAY)
    request = replace(SEEDED, model=app.catalog.resolve("flux-schnell"), plain=True)
    order = await app.gateway.prepare(
        request, backend=backend, caller=BATCHES, lane=Lane.BATCH, destination=SHELF
    )
    return await app.acceptance.accept(
        NewBatch(backend=backend, caller=BATCHES, scope="admin"), [Entry(order, {})]
    )


@asynccontextmanager
async def working(app: App, *batches: Batch) -> AsyncIterator[None]:
    """While the block runs this process works on these batches alone."""
    ours = {batch.id for batch in batches}
    task = asyncio.create_task(
        app.queue.run(app.worker.work, emptied=app.worker.emptied, takes=lambda batch: batch.id in ours)
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def left_by_the_dead(open_app: Callable[..., App], moment: str) -> Batch:
    """A batch whose process was gone while the create of its item was at a moment.

    Args:
        open_app: opens the process.
        moment: as `stories.stuck` says.
    """

    async def nothing(*_: Any, **_more: Any) -> None:
        return None

    async with open_app() as app:
        there = stuck(app.backends.get(GATEWAY), moment)
        dead = await accept_seeded(app)
        async with working(app, dead):
            await until(lambda: there)
            app.finisher.hands_over = True
            app.store.release = nothing  # type: ignore[method-assign]
            app.limits.give_back = nothing  # type: ignore[method-assign]
            app.queue._batches.release = nothing  # type: ignore[method-assign]
    return dead


@pytest.mark.replicate_emulator(run_seconds=0.3)
@pytest.mark.parametrize("moment", ["before it left", "on its way", "arrived"])
async def test_an_equal_item_does_not_wait_for_what_the_dead_have_left(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, moment: str
) -> None:
    dead = await left_by_the_dead(open_app, moment)
    async with open_app() as app:
        fresh = await accept_seeded(app)
        async with working(app, fresh), asyncio.timeout(10):
            assert (await app.batches.ended(fresh.id)).tally.succeeded == 1
        # Somebody goes on with it at last: its own purchase, or what others have made meanwhile.
        async with working(app, dead), asyncio.timeout(10):
            assert (await app.batches.ended(dead.id)).tally.succeeded == 1
    assert replicate_emulator.purchases == 2


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_an_equal_item_waits_for_what_this_process_goes_on_with(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    dead = await left_by_the_dead(open_app, "arrived")
    async with open_app() as app:
        fresh = await accept_seeded(app)
        async with working(app, fresh, dead), asyncio.timeout(10):
            for batch in (fresh, dead):
                assert (await app.batches.ended(batch.id)).tally.succeeded == 1
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.3)
@pytest.mark.parametrize("moment", ["before it left", "on its way"])
async def test_an_equal_item_does_not_wait_for_what_is_bought_after_a_pause(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, moment: str
) -> None:
    dead = await left_by_the_dead(open_app, moment)
    async with open_app() as app:
        await app.batches.pause(dead.id)
        fresh = await accept_seeded(app)
        async with working(app, fresh, dead), asyncio.timeout(10):
            assert (await app.batches.ended(fresh.id)).tally.succeeded == 1
        # The search for the lost create may have taken what this one bought, which then bought another.
        whose = [one.upstream_id for one in await app.store.list(limit=10) if one.upstream_id]
        assert len(set(whose)) == len(whose) == replicate_emulator.purchases


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_an_equal_request_that_joined_the_search_for_one_that_is_paused_buys_its_own(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    dead = await left_by_the_dead(open_app, "on its way")
    async with open_app() as app:
        await app.batches.pause(dead.id)
        async with working(app, dead), asyncio.timeout(10):
            await until(lambda: waiting(app) == 1)
            request = replace(SEEDED, model=app.catalog.resolve("flux-schnell"), plain=True)
            asking = asyncio.create_task(app.gateway.generate(request, backend=GATEWAY, destination=SHELF))
            await until(lambda: waiting(app) == 2)
            assert len(app.gateway._reuse._flights) == 1
            (outcome,) = await asking
    assert (outcome.error, outcome.prediction.status) == (None, Status.SUCCEEDED)
    assert replicate_emulator.purchases == 1
