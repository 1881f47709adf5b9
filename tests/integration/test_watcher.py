"""Many predictions are watched together with few calls; whatever goes wrong with a page, none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from imagen.assembly import App
from imagen.domain.caller import UNKNOWN
from imagen.domain.limits import Lane
from imagen.domain.prediction import Prediction, Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import BackendUnauthenticated, ModelNotFound
from imagen.ports import Backend
from imagen.service.finish import Outcome
from imagen.service.pace import RunTimeBook
from imagen.service.watch import HeldOpen, Watcher
from imagen.store.run_times import SqlRunTimes

pytestmark = pytest.mark.anyio

CREATE, GET, LIST = "predictions.create", "predictions.get", "predictions.list"
SCHNELL = "black-forest-labs/flux-schnell"
UNHELD = {"IMAGEN_REPLICATE__HELD_OPEN": "0"}


def calls(emulator: EmulatorThread, operation: str) -> int:
    return len(emulator.journal.entries(operation=operation))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


async def make(app: App, count: int, **fields: Any) -> Sequence[Outcome]:
    """So many at once, each with a seed of its own."""
    outcomes = await asyncio.gather(
        *(
            app.gateway.generate(GenerationRequest(prompt="a fox", options={"seed": seed + 1}, **fields))
            for seed in range(count)
        )
    )
    return [one for (one,) in outcomes]


@asynccontextmanager
async def bought(app: App, count: int = 1, **fields: Any) -> AsyncIterator[tuple[Backend, list[Prediction]]]:
    """Predictions that run at the service and that nobody follows yet."""
    backend = app.backends.get(None)
    intents = []
    for seed in range(count):
        request = GenerationRequest(prompt="a fox", options={"seed": seed + 1}, **fields)
        order = await app.gateway.prepare(request, backend=backend)
        intent = order.intents[0][0]
        intents.append(intent.observe(await submit(backend, intent), now=app.clock.now()))
    yield backend, intents


async def submit(backend: Backend, intent: Prediction) -> Any:
    return await backend.submit(intent, hold_seconds=0, secrets={})


@pytest.mark.replicate_emulator(run_seconds=1.5)
async def test_forty_that_run_at_once_are_seen_to_end_with_a_few_pages(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(**UNHELD) as app:
        outcomes = await make(app, 40)
        assert app.watcher.watching == 0
    assert [one.error for one in outcomes] == [None] * 40
    assert len({one.prediction.upstream_id for one in outcomes}) == 40
    assert replicate_emulator.purchases == 40
    assert calls(replicate_emulator, LIST) > 0
    assert calls(replicate_emulator, LIST) + calls(replicate_emulator, GET) < 80, "less than two calls each"


@pytest.mark.replicate_emulator(run_seconds=0.8)
async def test_one_alone_is_looked_at_by_itself(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(**UNHELD) as app:
        (outcome,) = await make(app, 1)
    assert outcome.error is None
    assert calls(replicate_emulator, GET) > 0
    assert calls(replicate_emulator, LIST) == 0


@pytest.mark.replicate_emulator(run_seconds=0.8)
@pytest.mark.parametrize(
    ("fault", "attributes"),
    [
        ("garbage", {"operation": LIST, "times": None}),
        ("status", {"operation": LIST, "status": 500, "times": None}),
        ("status", {"operation": LIST, "status": 401, "times": None}),
        ("drop", {"operation": LIST, "times": None}),
        ("cut", {"operation": LIST, "times": None}),
        ("rate_limit", {"operation": LIST, "retry_after": 1, "times": 2}),
        ("rate_limit", {"operation": GET, "retry_after": 1, "times": 2}),
        ("status", {"operation": GET, "status": 404, "times": 3}),
        ("hidden_from_list", {"seconds": 60, "times": None}),
        ("hidden_from_list", {"seconds": 1, "times": 6}),
        ("loose", {"times": None}),
        ("early_output", {"seconds": 0.5, "times": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
async def test_whatever_happens_to_the_pages_none_is_lost_and_none_is_bought_twice(
    fault: str, attributes: dict[str, Any], open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault(fault, **attributes)
    async with open_app(**UNHELD) as app:
        outcomes = await make(app, 12)
    assert [one.error for one in outcomes] == [None] * 12
    assert replicate_emulator.purchases == 12
    if attributes.get("operation") == LIST or "hidden" in fault:
        assert calls(replicate_emulator, LIST) > 0, "the fault was met"
    if attributes.get("operation") == LIST and fault != "rate_limit":
        assert calls(replicate_emulator, GET) > 0


@pytest.mark.replicate_emulator(run_seconds=0.5)
async def test_some_end_badly_and_each_is_told_its_own_end(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("fail", preset="nsfw", times=5)
    async with open_app(**UNHELD) as app:
        outcomes = await make(app, 15)
        assert len(await app.ledger.entries()) == 15
    stories = sorted(one.prediction.status for one in outcomes)
    assert stories == [Status.FAILED] * 5 + [Status.SUCCEEDED] * 10
    assert all((one.error is None) == (one.prediction.status is Status.SUCCEEDED) for one in outcomes)


@pytest.mark.replicate_emulator(run_seconds=2.0)
async def test_watching_takes_no_more_than_half_of_the_allowance(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation=LIST, status=500, times=None)
    async with open_app(**UNHELD, IMAGEN_LIMITS__CALLS_PER_MINUTE="600") as app:
        began = app.clock.monotonic()
        outcomes = await make(app, 20)
        took = app.clock.monotonic() - began
    assert [one.error for one in outcomes] == [None] * 20
    made = calls(replicate_emulator, LIST) + calls(replicate_emulator, GET)
    assert made <= 10 + took * 5 + 1, "a burst, and then five a second"


async def test_what_a_webhook_tells_of_is_looked_at_when_it_comes_and_not_before(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=30)
    async with open_app() as app, bought(app) as (backend, (prediction,)):
        ends_at = app.clock.monotonic() + 600
        with app.watcher.watch(backend, prediction, ends_at=ends_at, expects_webhook=True) as watch:
            assert watch.due - app.clock.monotonic() >= 29
            news = asyncio.ensure_future(watch.news())
            replicate_emulator.clock.advance(31)
            await asyncio.wait([news], timeout=0.7)
            assert not news.done()
            assert calls(replicate_emulator, GET) == 0
            app.watcher.wake(str(prediction.upstream_id))
            assert (await news).status is Status.SUCCEEDED
    assert calls(replicate_emulator, GET) == 1


async def test_a_webhook_that_is_quicker_than_the_answer_is_not_forgotten(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, bought(app) as (backend, (prediction,)):
        replicate_emulator.clock.advance(10)
        app.watcher.wake(str(prediction.upstream_id))
        ends_at = app.clock.monotonic() + 600
        with app.watcher.watch(backend, prediction, ends_at=ends_at, expects_webhook=True) as watch:
            assert (await watch.news()).status is Status.SUCCEEDED
    assert calls(replicate_emulator, GET) == 1


async def test_a_webhook_that_comes_while_it_is_looked_at_lets_it_be_looked_at_again(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=30)
    async with open_app() as app, bought(app) as (backend, (prediction,)):
        replicate_emulator.add_fault("delay", operation=GET, seconds=0.5, times=1)
        ends_at = app.clock.monotonic() + 600
        with app.watcher.watch(backend, prediction, ends_at=ends_at, expects_webhook=True) as watch:
            app.watcher.wake(watch.upstream_id)
            for _ in range(10):
                await asyncio.sleep(0)  # now the look is under way
            app.watcher.wake(watch.upstream_id)
            assert (await watch.news()).status is Status.PROCESSING
            assert (await watch.news()).status is Status.PROCESSING
    assert calls(replicate_emulator, GET) == 2


async def test_thousands_of_made_up_ids_are_not_remembered(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        for number in range(5000):
            app.watcher.wake(f"{number}" * 100)
        assert len(app.watcher._early) == 1000


@pytest.mark.replicate_emulator(run_seconds=1.0)
async def test_what_was_learned_is_kept_and_the_first_look_comes_when_it_may_have_ended(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await make(app, 6)  # held open: their ends tell how long they took
        backend = app.backends.get(None)
        typical = app.watcher.typical_seconds(backend, SCHNELL)
        assert typical == pytest.approx(1.0, abs=0.4)
    assert calls(replicate_emulator, GET) + calls(replicate_emulator, LIST) == 0
    async with open_app(**UNHELD) as app:
        app.watcher.typical_seconds(app.backends.get(None), SCHNELL)
        kept = await SqlRunTimes(app.database).recall()
        assert list(kept) == [SCHNELL]
        await until(lambda: app.watcher.typical_seconds(app.backends.get(None), SCHNELL))
        (outcome,) = await make(app, 1)
    assert outcome.error is None
    assert calls(replicate_emulator, GET) <= 2


async def test_with_no_room_for_held_creates_they_are_answered_at_once(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(IMAGEN_REPLICATE__HELD_OPEN="3") as app:
        outcomes = await make(app, 8)
    assert [one.error for one in outcomes] == [None] * 8
    held = [
        entry for entry in replicate_emulator.journal.entries(operation=CREATE) if "prefer" in entry.headers
    ]
    assert len(held) == 3


async def test_a_batch_does_not_hold_open_what_lasts_too_long_anyhow(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        backend = app.backends.get(None)
        for _ in range(6):
            app.watcher._times.learn(SCHNELL, 90.0, practice=False)
        for lane in Lane:
            request = GenerationRequest(prompt="a fox")
            order = await app.gateway.prepare(request, backend=backend, lane=lane, caller=UNKNOWN)
            ((await app.gateway.carry_out(order)),)
    held = ["prefer" in entry.headers for entry in replicate_emulator.journal.entries(operation=CREATE)]
    assert held == [True, False], "somebody who waits is told at once, a batch is not"


def test_batches_leave_room_for_those_who_wait() -> None:
    room = HeldOpen(10)
    with room.hold(60, lane=Lane.INTERACTIVE) as first:
        assert first == 60
    assert room.held == 0
    places = [room.hold(60, lane=Lane.BATCH) for _ in range(10)]
    assert [place.__enter__() for place in places] == [60.0] * 9 + [0.0]
    with room.hold(60, lane=Lane.INTERACTIVE) as last, room.hold(60, lane=Lane.INTERACTIVE) as none:
        assert (last, none) == (60, 0)
    for place in places:
        place.__exit__(None, None, None)
    assert room.held == 0


async def test_a_refused_token_is_told_to_everybody_who_waits(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=30, times=None)
    replicate_emulator.add_fault("status", operation=GET, status=401, times=None)
    replicate_emulator.add_fault("status", operation=LIST, status=401, times=None)
    async with open_app(**UNHELD) as app:
        outcomes = await make(app, 7)
        assert app.watcher.watching == 0
    assert {type(one.error) for one in outcomes} == {BackendUnauthenticated}


async def test_one_that_is_not_known_is_told_so_and_watched_on(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation=GET, status=404, times=1)
    async with open_app() as app, bought(app) as (backend, (prediction,)):
        with app.watcher.watch(backend, prediction, ends_at=app.clock.monotonic() + 60) as watch:
            with pytest.raises(ModelNotFound):
                await watch.news()
            assert (await watch.news()).status is Status.SUCCEEDED


@pytest.mark.replicate_emulator(run_seconds=0.6)
async def test_accounts_are_watched_apart(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(**UNHELD) as one, open_app(**UNHELD, REPLICATE_API_TOKEN="r8_another") as other:
        mine, theirs = await asyncio.gather(make(one, 8), make(other, 8))
    assert [one.error for one in (*mine, *theirs)] == [None] * 16
    signed = {entry.authorization for entry in replicate_emulator.journal.entries(operation=LIST)}
    assert len(signed) == 2


async def test_closing_ends_what_is_under_way(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation=GET, seconds=30, times=None)
    async with open_app() as app, bought(app) as (backend, (prediction,)):
        watcher = Watcher(
            times=RunTimeBook(SqlRunTimes(app.database), app.clock), clock=app.clock, calls_per_minute=600
        )
        with watcher.watch(backend, prediction, ends_at=app.clock.monotonic() + 60) as watch:
            watcher.wake(watch.upstream_id)
            await until(lambda: watch.busy)
            await asyncio.wait_for(watcher.aclose(), 5)
            assert not watch.busy


async def test_without_an_upstream_id_there_is_nothing_to_watch(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        backend = app.backends.get(None)
        order = await app.gateway.prepare(GenerationRequest(prompt="a fox"), backend=backend)
        with (
            pytest.raises(ValueError, match="no upstream id"),
            app.watcher.watch(backend, order.intents[0][0], ends_at=0.0),
        ):
            pass
