"""Money through the whole application: buyers at once, failures, crashes, several processes, and batches that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batch_calls import ended, events, make_batch
from durable import ADMIN, accepted, items, worked_off
from gateway import ADMIN as ADMIN_KEYS
from gateway import RunningGateway, running_gateway
from stories import stuck

from imagen.assembly import GATEWAY, App, build
from imagen.domain.batch import Batch, BatchStatus, ItemStatus
from imagen.domain.budget import Balance, Budget
from imagen.domain.caller import Caller
from imagen.domain.events import BudgetPassed
from imagen.domain.limits import Lane, Patience
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import BudgetExceeded, ImagenError
from imagen.instrumentation.clock import SystemClock
from imagen.service.accept import Entry, NewBatch
from imagen.service.finish import Outcome
from imagen.service.prepare import Order
from imagen.settings import load_settings
from imagen.store.budgets import SqlBudgets
from waiting import until

pytestmark = pytest.mark.anyio
KAI = Caller(name="kai")
DEV, SCHNELL = Usd.parse("0.025"), Usd.parse("0.003")


class Later(SystemClock):
    """A clock that can be put forward."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


async def budget(app: App, usd: str = "1", name: str = "b", **facts: Any) -> None:
    now = app.clock.now()
    given: dict[str, Any] = {"per": "total", "scope": "all", "created_at": now}
    await SqlBudgets(app.database).set(Budget(name=name, limit=Usd.parse(usd), **given | facts), now=now)


async def balance(app: App, name: str = "b") -> Balance:
    found = await SqlBudgets(app.database).list(now=app.clock.now())
    return next(one for one in found if one.budget.name == name)


async def spent(app: App) -> Usd:
    """What the ledger says, which the budget must say as well."""
    entries = await app.ledger.entries()
    total = Usd.total(entry.cost for entry in entries if entry.cost is not None)
    found = await balance(app)
    assert (found.settled, found.reserved) == (total, Usd(0))
    return total


async def buy(app: App, number: int, *, model: str = "flux-dev", **more: Any) -> Outcome:
    """One buyer, who waits for as long as it takes."""
    ref = app.catalog.resolve(model)
    given = {"caller": KAI, "patience": Patience(line_seconds=50.0)} | more
    try:
        order = await app.gateway.prepare(
            GenerationRequest(prompt=f"fox {number}", model=ref, resume=False),
            backend=app.backends.get(GATEWAY),
            **given,
        )
    except ImagenError as error:
        raise AssertionError(error) from error
    (outcome,) = await app.gateway.carry_out(order)
    return outcome


def split(outcomes: list[Outcome]) -> tuple[int, list[BudgetExceeded], list[ImagenError]]:
    """Who got a picture, whom a budget refused, and what else went wrong."""
    errors = [one.error for one in outcomes if one.error is not None]
    refused = [one for one in errors if isinstance(one, BudgetExceeded)]
    return len(outcomes) - len(errors), refused, [one for one in errors if one not in refused]


# --- a hundred buyers and a dollar -----------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_hundred_buyers_spend_a_dollar_and_not_a_cent_more(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        await budget(app)
        outcomes = await asyncio.gather(*(buy(app, number) for number in range(100)))
        made, refused, other = split(outcomes)
        assert other == []
        total = await spent(app)
    assert made == 40
    assert total == Usd.parse("1")
    assert len(refused) == 60
    assert {(one.budget, one.quote_micros, one.renews_at) for one in refused} == {("b", DEV.micros, None)}


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_what_fails_leaves_its_money_to_those_who_wait(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await budget(app, "0.5")
        replicate_emulator.add_fault("fail", times=15)
        outcomes = await asyncio.gather(*(buy(app, number) for number in range(60)))
        made, refused, other = split(outcomes)
        total = await spent(app)
    assert len(other) == 15
    assert (made, len(refused)) == (20, 25)
    assert total == Usd.parse("0.5")


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_what_costs_less_than_was_quoted_leaves_room_and_wastes_less_than_one_quote(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    """As with models that are paid for by the second: what a run came to is known after it."""
    high = Usd.parse("0.06")
    async with open_app() as app:
        await budget(app)
        backend = app.backends.get(GATEWAY)
        backend.quote = lambda *_, **__: Quote(low=Usd(0), likely=Usd.parse("0.02"), high=high)  # type: ignore[method-assign]
        backend.price = lambda one: Usd(7_001 + 1_000 * (int(one.prompt.split()[1]) % 50))  # type: ignore[method-assign]
        replicate_emulator.add_fault("fail", times=5)
        outcomes = await asyncio.gather(*(buy(app, number) for number in range(100)))
        made, refused, other = split(outcomes)
        total = await spent(app)
    assert len(other) == 5
    assert made + len(refused) == 95
    assert made > 1_000_000 // high.micros
    assert Usd.parse("1") - high < total <= Usd.parse("1")


async def test_a_hundred_callers_of_a_gateway_are_served_or_told_of_the_budget(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await budget(gateway.app, per="day")
        answers = await asyncio.gather(*(gateway.generate(prompt=f"fox {number}") for number in range(100)))
        assert await spent(gateway.app) == Usd.parse("1")
    assert sorted({one.status for one in answers}) == [200, 402]
    assert sum(one.status == 200 for one in answers) == 40
    refused = next(one.json() for one in answers if one.status == 402)
    assert refused["budget"] == "b"
    assert refused["renews_at"]


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_two_processes_spend_one_budget_together(open_app: Callable[..., App]) -> None:
    async with open_app() as one, open_app() as other:
        await budget(one)
        outcomes = await asyncio.gather(*(buy(app, number) for number in range(30) for app in (one, other)))
        made, refused, wrong = split(outcomes)
        assert wrong == []
        assert await spent(one) == Usd.parse("1")
    assert (made, len(refused)) == (40, 20)


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_every_key_has_its_own_where_the_budget_says_so(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        await budget(app, "0.1", scope="caller", subject="*")
        bo = Caller(name="bo")
        outcomes = await asyncio.gather(
            *(buy(app, number, caller=caller) for number in range(6) for caller in (KAI, bo))
        )
        made, refused, _ = split(outcomes)
        found = await SqlBudgets(app.database).list(now=app.clock.now())
    assert (made, len(refused)) == (8, 4)
    assert {(one.subject, one.settled) for one in found} == {("kai", Usd(100_000)), ("bo", Usd(100_000))}


# --- warnings, and what is not ours ----------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_budget_that_only_warns_is_told_and_buys(open_app: Callable[..., App], record: Any) -> None:
    async with open_app() as app:
        await budget(app, "0.03", hard=False)
        for number in range(2):
            assert (await buy(app, number)).error is None
        (told,) = record.of(BudgetPassed)
    assert told.shortage.balance.budget.name == "b"
    assert told.shortage.quote == DEV


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_who_pays_for_themselves_asks_no_budget(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        await budget(app, "0")
        stranger = Caller(name="token:0123abcd", stranger=True)
        assert (await buy(app, 1, caller=stranger)).error is None
        assert isinstance((await buy(app, 2)).error, BudgetExceeded)
        assert (await balance(app)).settled == Usd(0)


# --- ends of all kinds -----------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=30.0)
async def test_what_is_canceled_is_settled_and_what_never_ran_is_not(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await budget(app)
        buying = asyncio.create_task(buy(app, 1))
        await until(lambda: replicate_emulator.purchases)
        assert (await balance(app)).reserved == DEV
        buying.cancel()
        await asyncio.gather(buying, return_exceptions=True)
        (one,) = await app.store.list(limit=9)
        assert one.status in {Status.CANCELED, Status.ABORTED}
        total = await spent(app)
    assert total == (one.cost or Usd(0))


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_refused_create_gives_its_money_back(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await budget(app)
        replicate_emulator.add_fault("status", status=402, operation="predictions.create", times=None)
        assert (await buy(app, 1)).error is not None
        assert await spent(app) == Usd(0)


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_throttled_create_reserves_its_money_once(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await budget(app, "0.025")  # room for one, and for no second reservation of the same
        replicate_emulator.add_fault("status", status=429, operation="predictions.create", times=1)
        assert (await buy(app, 1)).error is None
        assert await spent(app) == DEV


@asynccontextmanager
async def dying(app: App, moment: str) -> AsyncIterator[None]:
    """A process that buys picture 1 and is gone at the end of the block, with its create at that moment.

    Args:
        app: the process.
        moment: as `stories.stuck` says.
    """
    there = stuck(app.backends.get(GATEWAY), moment)
    app.finisher.hands_over = True  # nothing is canceled: it is as if nobody were there any more
    buying = asyncio.create_task(buy(app, 1))
    await until(lambda: there)
    yield
    buying.cancel()
    await asyncio.gather(buying, return_exceptions=True)


@pytest.mark.replicate_emulator(run_seconds=0.05)
@pytest.mark.parametrize("arrived", [True, False])
async def test_after_a_crash_what_was_reserved_is_settled_with_the_purchase(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, arrived: bool
) -> None:
    """The process is gone between the intent and the answer; the same command comes again."""
    async with open_app() as app:
        await budget(app, "0.025")
        async with dying(app, "arrived" if arrived else "on its way"):
            assert (await balance(app)).reserved == DEV
    async with open_app() as app:
        assert (await balance(app)).reserved == DEV
        request = GenerationRequest(prompt="fox 1", model=app.catalog.resolve("flux-dev"))
        (outcome,) = await app.gateway.generate(request, backend=GATEWAY, caller=KAI)
        assert outcome.error is None
        assert await spent(app) == DEV
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_what_surely_never_arrived_is_voided_when_nobody_buys_it_any_more(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """The process is gone before anything was sent, and nobody asks for it again: a gateway tidies it up."""
    clock, settings = Later(), load_settings(environ=environ, cwd=tmp_path)
    async with build(settings, environ=environ, clock=clock) as app:
        await budget(app)
        async with dying(app, "on its way"):
            pass
    clock.ahead = timedelta(minutes=70)
    replicate_emulator.clock.advance(clock.ahead.total_seconds())
    async with build(settings, environ=environ, clock=clock) as app:
        assert (await balance(app)).reserved == DEV
        (left,) = await app.store.unfinished()
        outcome = await app.gateway.resume(left.id, leaves_running=True)
        assert (outcome.prediction.status, outcome.prediction.charged) == (Status.UNKNOWN, False)
        assert "nothing was bought" in str(outcome.error)
        assert await spent(app) == Usd(0)


# --- batches ---------------------------------------------------------------------------------------------


async def test_a_batch_that_cannot_be_paid_is_not_accepted(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app, worked_off(app):
        await budget(app, "0.01")
        with pytest.raises(BudgetExceeded) as told:
            await accepted(app, ["a fox"] * 4)
        assert (told.value.budget, told.value.quote_micros) == ("b", 4 * SCHNELL.micros)
        assert list(await app.batches.list(limit=9)) == []
        batch = await accepted(app, ["a fox"] * 3)
        assert (batch.quoted, batch.unpriced) == (3 * SCHNELL, 0)
        await app.batches.ended(batch.id)
        assert await spent(app) == 3 * SCHNELL
    assert replicate_emulator.purchases == 3


@pytest.mark.replicate_emulator(run_seconds=0.05)
@pytest.mark.parametrize("how", ["it renews", "somebody changes it"])
async def test_a_batch_waits_for_its_budget_and_goes_on_by_itself(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, how: str
) -> None:
    clock = Later()
    settings = load_settings(environ=environ, cwd=tmp_path)
    async with build(settings, environ=environ, clock=clock) as app, worked_off(app):
        batch = await accepted(app, [f"fox {number}" for number in range(6)])
        await budget(app, "0.009", per="day")  # made when all of it was promised already
        other = await accepted_for_free(app)
        trouble = await until(lambda: next(iter(app.worker.troubles.now()), None))
        assert trouble.subject == "budget:b"
        assert "'b'" in trouble.reason
        await until(lambda: replicate_emulator.purchases >= 1)
        view = await app.batches.view(batch.id)
        assert view.status is BatchStatus.RUNNING
        assert view.trouble is not None
        assert await app.batches.ended(other)  # whoever asks no budget is not held up
        assert (await balance(app)).settled <= Usd.parse("0.009")
        if how == "it renews":
            clock.ahead = timedelta(days=1)
        await budget(app, "0.009" if how == "it renews" else "1", per="day")
        async with asyncio.timeout(30):
            view = await app.batches.ended(batch.id)
        assert view.status is BatchStatus.SUCCEEDED
        assert view.trouble is None
        assert not app.worker.troubles.now()
    assert replicate_emulator.purchases == 6 + 1


@pytest.mark.replicate_emulator(run_seconds=1.0)
async def test_what_a_batch_waits_for_is_told_over_http(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="1") as gateway:
        made = await make_batch(gateway, ["a fox", "a hare", "an owl"])
        await budget(gateway.app, "0.003", per="day")  # for one of them
        async with asyncio.timeout(20):
            reason = await next_trouble(gateway, made["id"])
        answer = await gateway.request("GET", "/health", headers=ADMIN_KEYS)
        (trouble,) = answer.json()["work"]["troubles"]
        state = (await gateway.request("GET", f"/batches/{made['id']}", headers=ADMIN_KEYS)).json()
        assert (trouble["of"], trouble["reason"]) == ("budget", reason)
        assert "'b'" in reason
        assert (state["status"], state["trouble"]["reason"]) == ("running", reason)
        await SqlBudgets(gateway.app.database).remove("b")
        assert (await ended(gateway, made["id"]))["status"] == "succeeded"
        assert (await gateway.request("GET", "/health", headers=ADMIN_KEYS)).json()["work"]["troubles"] == []


async def next_trouble(gateway: RunningGateway, batch_id: str) -> str:
    """Why a batch waits, as its events tell it."""
    async for told in events(gateway, batch_id):
        if told.event == "trouble" and told.data is not None:
            return str(told.data["reason"])
    raise AssertionError("it ended without a trouble")


async def accepted_for_free(app: App) -> str:
    """A batch of somebody who pays for it themselves."""
    backend = app.backends.get(GATEWAY)
    stranger = Caller(name="token:0123abcd", stranger=True)
    order = await app.gateway.prepare(
        GenerationRequest(
            prompt="a hare", model=ModelRef.parse("black-forest-labs/flux-schnell"), resume=False
        ),
        backend=backend,
        caller=stranger,
        lane=Lane.BATCH,
    )
    return (
        await app.acceptance.accept(NewBatch(backend=backend, caller=stranger, scope="x"), [Entry(order)])
    ).id


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_batch_that_waits_for_money_can_be_canceled_at_once(open_app: Callable[..., App]) -> None:
    async with open_app() as app, worked_off(app):
        batch = await accepted(app, ["a fox", "a hare"])
        await budget(app, "0.003")
        await until(app.worker.troubles.now)
        await app.batches.cancel(batch.id)
        async with asyncio.timeout(10):
            view = await app.batches.ended(batch.id)
    assert view.status is BatchStatus.CANCELED
    assert (view.tally.succeeded, view.tally.canceled, view.tally.cost) == (1, 1, SCHNELL)


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_single_prediction_without_money_ends_with_the_budget(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        backend = app.backends.get(GATEWAY)
        order = await app.gateway.prepare(
            GenerationRequest(prompt="a fox", model=app.catalog.resolve("flux-dev"), resume=False),
            backend=backend,
            caller=ADMIN,
        )
        new = NewBatch(backend=backend, caller=ADMIN, scope="admin", kind="single")
        batch = await app.acceptance.accept(new, [Entry(order)])
        await budget(app, "0")
        async with worked_off(app), asyncio.timeout(10):
            await app.batches.ended(batch.id)
        (item,) = await items(app, batch)
    assert (item.status, item.code, item.cost) == (ItemStatus.FAILED, "budget_exceeded", Usd(0))


async def order_of(app: App, model: str, **quote: Quote) -> Order:
    """One task of a batch; `quote` is what was known of its price when it was accepted."""
    order = await app.gateway.prepare(
        GenerationRequest(prompt=f"a {model}", model=app.catalog.resolve(model), resume=False, plain=True),
        backend=app.backends.get(GATEWAY),
        caller=ADMIN,
        lane=Lane.BATCH,
    )
    intents = tuple((msgspec.structs.replace(intent, **quote), plan) for intent, plan in order.intents)
    return msgspec.structs.replace(order, intents=intents)


async def batch_of(app: App, *orders: Order) -> Batch:
    new = NewBatch(backend=app.backends.get(GATEWAY), caller=ADMIN, scope="admin")
    return await app.acceptance.accept(new, [Entry(order) for order in orders])


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_what_no_waiting_helps_ends_and_the_rest_of_its_batch_goes_on(
    open_app: Callable[..., App],
) -> None:
    async with open_app() as app:
        orders = [await order_of(app, "black-forest-labs/flux-2-klein-9b"), await order_of(app, "flux-dev")]
        orders += [await order_of(app, "flux-schnell") for _ in range(3)]
        batch = await batch_of(app, *orders)
        await budget(app, "0.02")
        async with worked_off(app), asyncio.timeout(10):
            view = await app.batches.ended(batch.id)
        found = await items(app, batch)
        assert not app.worker.troubles.now()
        assert await spent(app) == 3 * SCHNELL
    assert view.status is BatchStatus.PARTLY_FAILED
    assert [one.code for one in found] == ["budget_exceeded", "budget_exceeded", None, None, None]
    assert ("nobody knows" in (found[0].error or ""), "$0.025" in (found[1].error or "")) == (True, True)


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_work_that_was_accepted_without_a_quote_is_quoted_when_it_is_bought(
    open_app: Callable[..., App],
) -> None:
    """As that of a release that knew no quotes."""
    async with open_app() as app:
        batch = await batch_of(app, await order_of(app, "flux-schnell", quote=UNKNOWN_PRICE))
        await budget(app, "1")
        async with worked_off(app), asyncio.timeout(10):
            assert (await app.batches.ended(batch.id)).status is BatchStatus.SUCCEEDED
        assert await spent(app) == SCHNELL


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_batch_that_stands_in_line_for_money_of_others_tells_it(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        await budget(app, "0.026")
        backend, held = app.backends.get(GATEWAY), asyncio.Event()
        send = backend.submit

        async def slowly(prediction: Prediction, **more: Any) -> Any:
            if prediction.model.endswith("dev"):
                await held.wait()
            return await send(prediction, **more)

        backend.submit = slowly  # type: ignore[method-assign]
        batch = await batch_of(app, await order_of(app, "flux-schnell"))
        other = asyncio.create_task(buy(app, 1))
        await until(lambda: reserved(app))
        async with worked_off(app), asyncio.timeout(15):
            (trouble,) = await until(app.worker.troubles.now)
            assert (trouble.subject, "is reserved" in trouble.reason) == ("budget:b", True)
            assert (await app.batches.view(batch.id)).trouble == trouble
            await SqlBudgets(app.database).set(
                msgspec.structs.replace((await balance(app)).budget, limit=Usd(30_000)), now=app.clock.now()
            )
            assert (await app.batches.ended(batch.id)).trouble is None
            assert not app.worker.troubles.now()
        held.set()
        assert (await other).error is None


async def reserved(app: App) -> Usd:
    """What is reserved now."""
    return (await balance(app)).reserved


# --- what was left behind --------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.05)
@pytest.mark.parametrize("moment", ["arrived", "on its way", "before it left"])
async def test_what_a_killed_process_left_is_found_and_not_bought_beyond_a_budget_made_since(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, moment: str
) -> None:
    environ["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "0.5"
    settings = load_settings(environ=environ, cwd=tmp_path)
    async with build(settings, environ=environ) as app, dying(app, moment):
        pass
    async with build(settings, environ=environ) as app:
        await budget(app, "0.01")
        assert await reserved(app) == DEV
        request = GenerationRequest(prompt="fox 1", model=app.catalog.resolve("flux-dev"))
        (outcome,) = await app.gateway.generate(request, backend=GATEWAY, caller=KAI)
        if moment == "arrived":
            assert outcome.error is None
            assert await spent(app) == DEV
        else:
            assert isinstance(outcome.error, BudgetExceeded)
            assert await reserved(app) == DEV  # it is looked for, or sent, when there is room
    assert replicate_emulator.purchases == int(moment == "arrived")


@pytest.mark.replicate_emulator(run_seconds=0.05)
async def test_a_throttled_create_whose_semaphore_is_removed_goes_on_without_it(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await budget(app, "0.025")
        await app.semaphores.register("gpu", 2)
        refuse = app.admission.refused

        async def refused(*args: Any, **more: Any) -> None:
            await app.semaphores.remove("gpu")
            await refuse(*args, **more)

        app.admission.refused = refused  # type: ignore[method-assign]
        replicate_emulator.add_fault("status", status=429, operation="predictions.create", times=1)
        request = GenerationRequest(
            prompt="fox", model=app.catalog.resolve("flux-dev"), resume=False, semaphore="gpu"
        )
        (outcome,) = await app.gateway.generate(request, backend=GATEWAY, caller=KAI)
        assert outcome.error is None
        assert await spent(app) == DEV
