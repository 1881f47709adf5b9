"""Budgets on a real database: reserved with the intent, settled or voided with the end, counted from the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from fakes.make import FLUX, make_entry, make_prediction
from imagen.domain.budget import EACH, Balance, Budget, Charge
from imagen.domain.caller import Caller
from imagen.domain.limits import AccountRules, Admitted, Blocked, Need, Unaffordable, Verdict
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.quote import Quote
from imagen.domain.usage import UsageEntry
from imagen.errors import BudgetExceeded, InvalidInput, NotFound
from imagen.instrumentation.clock import SystemClock
from imagen.limits.line import Line
from imagen.store import budgets as module
from imagen.store.budgets import SqlBudgets
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from imagen.store.limits import SqlLimits
from imagen.store.predictions import SqlPredictionStore
from imagen.store.tables import balances, predictions, reservations, usage
from waiting import until

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ACCOUNT = "account-a"


class House:
    """One process's worth of parts on a shared file."""

    def __init__(self, path: Path, concurrent: int = 1000) -> None:
        self.database = Database(path)
        self.limits = SqlLimits(
            self.database, AccountRules(concurrent=concurrent, creates_per_minute=1_000_000)
        )
        self.budgets = SqlBudgets(self.database)
        self.store = SqlPredictionStore(self.database)
        self.ledger = SqlLedger(self.database)

    async def set(self, name: str = "b", usd: str = "1", at: datetime = NOON, **facts: Any) -> None:
        given: dict[str, Any] = {"per": "day", "scope": "all", "created_at": at}
        await self.budgets.set(Budget(name=name, limit=Usd.parse(usd), **given | facts), now=at)

    async def take(self, *needs: Need, at: datetime = NOON) -> list[Verdict]:
        found = await self.limits.take(needs, now=at.timestamp(), line="a", waiting={})
        return list(found)

    async def buy(self, number: int, usd: str | None = "0.4", at: datetime = NOON, **facts: Any) -> Verdict:
        (verdict,) = await self.take(need(number, usd, **facts), at=at)
        return verdict

    async def end(
        self, number: int, usd: str | None = "0.3", at: datetime = NOON, charged: bool = True, **facts: Any
    ) -> None:
        """It ends as it does in the service: its end and its entry in one transaction."""
        cost = None if usd is None else Usd.parse(usd)
        given: dict[str, Any] = {"status": Status.SUCCEEDED if charged else Status.FAILED, "ended_at": at}
        ended = prediction(
            number,
            charged=charged,
            cost=cost if charged else Usd(0),
            upstream_id=f"up-{number}",
            **given | facts,
        )
        await self.store.save(ended, entry=UsageEntry.from_prediction(ended, at=at))

    async def balance(self, name: str = "b", subject: str | None = None, at: datetime = NOON) -> Balance:
        found = [
            one
            for one in await self.budgets.list(now=at)
            if one.budget.name == name and subject in {None, one.subject}
        ]
        assert len(found) == 1, found
        return found[0]

    async def standing(self, **which: Any) -> tuple[str, str]:
        """Settled and reserved, in words."""
        found = await self.balance(**which)
        return str(found.settled), str(found.reserved)

    async def state(self, number: int) -> str | None:
        statement = select(reservations.c.state).where(reservations.c.prediction_id == f"pred_{number:026}")
        return await self.database.read(lambda connection: connection.execute(statement).scalar_one_or_none())


@pytest.fixture
def open_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    opened: list[House] = []

    def open_one(**rules: int) -> House:
        opened.append(House(tmp_path / "imagen.db", **rules))
        return opened[-1]

    yield open_one
    for house in opened:
        house.database.close()


@pytest.fixture
def house(open_house: Callable[..., House]) -> House:
    return open_house()


def prediction(number: int, **facts: Any) -> Prediction:
    return make_prediction(number, **{"account": ACCOUNT, "sent_at": None} | facts)


def need(number: int, usd: str | None = "0.4", **facts: Any) -> Need:
    """A purchase that costs at most so much."""
    intent = prediction(number, **facts)
    charge = Charge(
        amount=None if usd is None else Usd.parse(usd),
        key=intent.key,
        caller=intent.caller,
        model=intent.model.partition(":")[0],
    )
    return Need(
        lease=intent.id,
        holder="kai",
        lasts_seconds=60.0,
        account=ACCOUNT,
        caller=Caller(name=intent.caller, key=intent.key),
        intent=intent,
        charge=charge,
    )


# --- reserve, settle, void -------------------------------------------------------------------------------


async def test_what_is_bought_is_reserved_and_settled_with_what_it_came_to(house: House) -> None:
    await house.set()
    assert isinstance(await house.buy(1), Admitted)
    assert await house.standing() == ("$0.00", "$0.40")
    await house.end(1)
    assert await house.standing() == ("$0.30", "$0.00")
    assert await house.state(1) == "settled"


@pytest.mark.parametrize("entered", [True, False])
async def test_what_is_not_charged_is_voided(house: House, entered: bool) -> None:
    await house.set()
    await house.buy(1)
    if entered:
        await house.end(1, charged=False)
    else:
        await house.store.save(prediction(1, status=Status.FAILED, charged=False, ended_at=NOON))
    assert await house.standing() == ("$0.00", "$0.00")
    assert await house.state(1) == "voided"


async def test_what_costs_nobody_knows_how_much_is_settled_with_what_was_reserved(house: House) -> None:
    await house.set()
    await house.buy(1)
    await house.end(1, usd=None)
    assert await house.standing() == ("$0.40", "$0.00")


async def test_what_nobody_saw_end_stays_reserved(house: House) -> None:
    await house.set()
    await house.buy(1)
    await house.store.save(prediction(1, status=Status.UNKNOWN, ended_at=NOON))
    assert await house.standing() == ("$0.00", "$0.40")
    assert await house.state(1) == "open"


async def test_what_was_not_sent_is_voided_and_its_id_may_come_again(house: House) -> None:
    await house.set()
    await house.buy(1)
    await house.limits.give_back(prediction(1).id, unsent=True)
    assert await house.standing() == ("$0.00", "$0.00")
    assert await house.state(1) == "voided"
    await house.buy(1, usd="0.5")
    assert await house.standing() == ("$0.00", "$0.50")


async def test_what_was_sent_is_not_voided_by_giving_its_places_back(house: House) -> None:
    await house.set()
    await house.buy(1)
    await house.store.save(prediction(1, status=Status.STARTING, upstream_id="up-1"))
    await house.limits.give_back(prediction(1).id, unsent=True)
    assert await house.standing() == ("$0.00", "$0.40")


async def test_an_end_that_comes_twice_is_settled_once(house: House) -> None:
    await house.set()
    await house.buy(1)
    for _ in range(2):
        await house.end(1)
    await house.ledger.record([make_entry(1, cost=Usd.parse("0.3"))])
    assert await house.standing() == ("$0.30", "$0.00")


async def test_an_entry_that_comes_later_than_the_end_settles(house: House) -> None:
    await house.set()
    await house.buy(1)
    ended = prediction(
        1, status=Status.SUCCEEDED, charged=True, cost=Usd(300_000), upstream_id="u", ended_at=NOON
    )
    await house.store.save(ended)
    assert await house.standing() == ("$0.00", "$0.40")
    await house.ledger.record([UsageEntry.from_prediction(ended, at=NOON)])
    assert await house.standing() == ("$0.30", "$0.00")


async def test_what_nobody_reserved_counts_from_its_entry_on(house: House) -> None:
    await house.store.add(prediction(1))  # bought before there was a budget
    await house.set()
    await house.end(1)
    assert await house.standing() == ("$0.30", "$0.00")
    assert await house.state(1) == "settled"


async def test_what_a_new_budget_has_counted_does_not_count_again_when_its_entry_is_repeated(
    house: House,
) -> None:
    entry = make_entry(1, cost=Usd(300_000), created_at=NOON)
    await house.ledger.record([entry])
    await house.set()
    await house.ledger.record([entry])
    await house.store.add(prediction(2), entry=make_entry(2, cost=Usd(0), created_at=NOON))
    assert await house.standing() == ("$0.30", "$0.00")


async def test_what_callers_pay_themselves_counts_for_no_budget(house: House) -> None:
    await house.ledger.record([make_entry(1, cost=Usd(300_000), caller="token:abcdef01", created_at=NOON)])
    await house.set()
    await house.ledger.record([make_entry(2, cost=Usd(300_000), caller="token:abcdef01", created_at=NOON)])
    assert await house.standing() == ("$0.00", "$0.00")


async def test_what_was_refused_and_bought_after_all_counts(house: House) -> None:
    await house.set()
    await house.buy(1)
    await house.store.save(prediction(1, status=Status.FAILED, charged=False, ended_at=NOON))
    await house.ledger.record([make_entry(1, cost=Usd(300_000), created_at=NOON)])
    assert await house.standing() == ("$0.30", "$0.00")
    assert await house.state(1) == "settled"


# --- who fits --------------------------------------------------------------------------------------------


async def test_needs_of_one_transaction_see_what_the_others_reserve(house: House) -> None:
    await house.set()
    verdicts = await house.take(*(need(number) for number in range(1, 5)))
    assert [type(one) for one in verdicts] == [Admitted, Admitted, Blocked, Blocked]
    assert verdicts[2].limit == "budget:b"  # type: ignore[union-attr]
    assert await house.standing() == ("$0.00", "$0.80")
    with pytest.raises(NotFound):
        await house.store.get(prediction(3).id)


async def test_who_waits_for_money_goes_when_less_was_spent(house: House) -> None:
    await house.set()
    await house.take(need(1), need(2))
    assert isinstance(await house.buy(3), Blocked)
    await house.end(1, usd="0.1")
    assert isinstance(await house.buy(3), Admitted)


async def test_what_cannot_fit_whatever_comes_is_refused_at_once(house: House) -> None:
    await house.set()
    await house.take(need(1), need(2))
    await house.end(1, usd="0.4")
    await house.end(2, usd="0.4")
    verdict = await house.buy(3)
    assert isinstance(verdict, Unaffordable)
    error = verdict.shortage.to_error()
    assert (error.budget, error.quote_micros) == ("b", 400_000)
    assert error.renews_at == datetime(2026, 11, 23, tzinfo=UTC)
    assert "$0.20 is left" in error.detail
    assert isinstance(await house.buy(3, at=NOON + DAY), Admitted)


async def test_what_nobody_saw_end_lets_nobody_wait(house: House) -> None:
    await house.set(per="total")
    await house.buy(1, usd="0.8")
    await house.store.save(prediction(1, status=Status.UNKNOWN, ended_at=NOON))
    verdict = await house.buy(2)
    assert isinstance(verdict, Unaffordable)
    assert verdict.shortage.to_error().renews_at is None


async def test_of_several_budgets_all_must_have_room(house: House) -> None:
    await house.set("wide", "10")
    await house.set("month", "0.5", per="month")
    await house.set("day", "0.6")
    assert isinstance(await house.buy(1), Admitted)
    assert [str(one.reserved) for one in await house.budgets.list(now=NOON)] == ["$0.40"] * 3
    await house.end(1, usd="0.4")
    verdict = await house.buy(2)
    assert isinstance(verdict, Unaffordable)
    assert verdict.shortage.balance.budget.name == "month"  # it keeps us waiting longest
    assert str((await house.balance("wide")).reserved) == "$0.00"


async def test_a_price_that_nobody_knows_fits_no_hard_budget(house: House) -> None:
    await house.set(hard=False)
    assert isinstance(await house.buy(1, usd=None), Admitted)
    await house.set(hard=True)
    verdict = await house.buy(2, usd=None)
    assert isinstance(verdict, Unaffordable)
    assert verdict.shortage.to_error().quote_micros is None


async def test_a_soft_budget_only_tells(house: House) -> None:
    await house.set(usd="0.5", hard=False)
    first, second = await house.take(need(1), need(2))
    assert isinstance(first, Admitted)
    assert first.passed == ()
    assert isinstance(second, Admitted)
    assert [one.balance.budget.name for one in second.passed] == ["b"]
    assert str((await house.balance()).left) == "-$0.30"


async def test_money_is_asked_for_before_places_and_reserved_after_them(open_house: Any) -> None:
    house = open_house(concurrent=1)
    await house.set()
    first, second, third = await house.take(need(1), need(2), need(3, "1.5"))
    assert isinstance(first, Admitted)
    assert second == Blocked(f"account:{ACCOUNT}")
    assert isinstance(third, Unaffordable)
    assert await house.standing() == ("$0.00", "$0.40")


async def test_a_second_turn_after_a_refusal_reserves_nothing_more(house: House) -> None:
    await house.set()
    await house.buy(1)
    again = Need(lease=prediction(1).id, holder="kai", lasts_seconds=60.0, account=ACCOUNT)
    assert isinstance((await house.take(again))[0], Admitted)
    assert await house.standing() == ("$0.00", "$0.40")


# --- whose it is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "subject", "theirs"),
    [
        ("key", "key_a", {"key": "key_b"}),
        ("key", "key_a", {"key": None}),
        ("caller", "kai", {"caller": "bo"}),
        ("model", FLUX, {"model": "black-forest-labs/flux-dev"}),
    ],
)
async def test_a_budget_counts_only_its_subject(
    house: House, scope: str, subject: str, theirs: dict[str, Any]
) -> None:
    await house.set(usd="0.5", scope=scope, subject=subject)
    ours = {"key": "key_a", "caller": "kai", "model": FLUX}
    assert isinstance(await house.buy(1, **ours), Admitted)
    assert isinstance(await house.buy(2, **ours), Blocked)
    assert isinstance(await house.buy(3, **ours | theirs), Admitted)
    assert await house.standing() == ("$0.00", "$0.40")


async def test_everyone_has_their_own_where_the_subject_is_a_star(house: House) -> None:
    await house.set(usd="0.5", scope="caller", subject="*")
    assert [one.subject for one in await house.budgets.list(now=NOON)] == ["*"]
    await house.buy(1, caller="kai")
    await house.buy(2, caller="bo")
    assert isinstance(await house.buy(3, caller="bo"), Blocked)
    assert [one.subject for one in await house.budgets.list(now=NOON)] == ["bo", "kai"]


async def test_versions_of_a_model_count_together(house: House) -> None:
    await house.set(scope="model", subject=FLUX)
    await house.buy(1, model=f"{FLUX}:abc")
    await house.end(1, model=f"{FLUX}:abc")
    assert await house.standing() == ("$0.30", "$0.00")


async def test_where_only_successes_count_other_ends_cost_nothing(house: House) -> None:
    await house.set(counts="succeeded")
    await house.buy(1)
    await house.buy(2)
    await house.end(1, status=Status.CANCELED)
    await house.end(2)
    assert await house.standing() == ("$0.30", "$0.00")
    await house.set(counts="charged")
    assert await house.standing() == ("$0.60", "$0.00")


# --- periods ---------------------------------------------------------------------------------------------


async def test_what_was_reserved_before_midnight_is_settled_on_that_day(house: House) -> None:
    await house.set()
    late, early = NOON.replace(hour=23, minute=59), NOON.replace(hour=0) + DAY
    await house.buy(1, at=late)
    await house.end(1, at=early)
    assert await house.standing(at=late) == ("$0.30", "$0.00")
    assert await house.standing(at=early) == ("$0.00", "$0.00")
    await house.set("anew", at=early)  # and so it is counted from the ledger
    assert await house.standing(name="anew", at=early) == ("$0.00", "$0.00")
    await house.set("anew", per="month", at=early)
    assert await house.standing(name="anew", at=early) == ("$0.30", "$0.00")


# --- changing them ---------------------------------------------------------------------------------------


async def test_a_new_budget_counts_what_the_ledger_says_of_its_period(house: House) -> None:
    amounts = {NOON: 100_000, NOON - DAY: 20_000, NOON - 30 * DAY: 3_000}
    await house.ledger.record(
        [make_entry(n, created_at=at, cost=Usd(cost)) for n, (at, cost) in enumerate(amounts.items())]
    )
    for per, spent in {"day": "$0.10", "month": "$0.12", "total": "$0.123"}.items():
        await house.set(per, per=per)
        assert await house.standing(name=per) == (spent, "$0.00")


async def test_another_limit_keeps_what_was_counted(house: House) -> None:
    await house.set()
    await house.buy(1)
    await house.buy(2)
    await house.end(1)
    await house.set(usd="2", at=NOON + timedelta(hours=1))
    found = await house.balance()
    assert (str(found.settled), str(found.reserved), str(found.left)) == ("$0.30", "$0.40", "$1.30")
    assert found.budget.created_at == NOON


async def test_another_subject_is_counted_anew_with_what_is_reserved(house: House) -> None:
    await house.set()
    await house.buy(1, caller="kai")
    await house.buy(2, caller="bo", usd="0.2")
    await house.end(2, caller="bo", usd="0.1")
    await house.buy(3, caller="bo", usd="0.25")
    await house.set(scope="caller", subject="bo")
    assert await house.standing() == ("$0.10", "$0.25")
    await house.end(3, caller="bo", usd="0.05")
    await house.end(1, caller="kai")
    assert await house.standing() == ("$0.15", "$0.00")


async def test_a_removed_budget_is_asked_no_more(house: House) -> None:
    await house.set(usd="0.5")
    await house.buy(1)
    await house.budgets.remove("b")
    assert isinstance(await house.buy(2), Admitted)
    await house.end(1)
    assert list(await house.budgets.list(now=NOON)) == []
    with pytest.raises(NotFound):
        await house.budgets.remove("b")
    await house.set()
    assert await house.standing() == ("$0.30", "$0.00")

    def rows(connection: Any) -> int:
        return len(connection.execute(select(balances)).all())

    assert await house.database.read(rows) == 1


async def test_there_are_not_endlessly_many(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BUDGETS", 2)
    await house.set("a")
    await house.set("b")
    with pytest.raises(InvalidInput):
        await house.set("c")
    await house.set("b", usd="2")  # one that is there may be changed


# --- a whole batch ---------------------------------------------------------------------------------------


async def test_a_shortage_is_told_for_all_of_a_batch_together(house: House) -> None:
    await house.set(usd="1")
    await house.set("warn", "0.01", hard=False)
    charge = need(1, "0.25").charge
    assert charge is not None
    assert await house.budgets.shortage([charge] * 4, now=NOON) is None
    shortage = await house.budgets.shortage([charge] * 5, now=NOON)
    assert shortage is not None
    assert (str(shortage.quote), shortage.balance.budget.name) == ("$1.25", "b")
    await house.buy(1, "0.25")
    assert await house.budgets.shortage([charge] * 4, now=NOON) is not None
    assert await house.standing() == ("$0.00", "$0.25")


async def test_a_batch_of_unknown_price_has_a_shortage(house: House) -> None:
    await house.set()
    charge = need(1, None).charge
    assert charge is not None
    shortage = await house.budgets.shortage([charge], now=NOON)
    assert shortage is not None
    assert shortage.quote is None


# --- in line ---------------------------------------------------------------------------------------------


async def entered(line: Line, number: int, usd: str = "0.4", wait: float = 20.0, **facts: Any) -> Admitted:
    return await line.enter(need(number, usd, **facts), wait_seconds=wait)


async def test_who_waits_for_money_keeps_no_other_model_waiting_and_asks_seldom(house: House) -> None:
    await house.set(usd="0.5", scope="model", subject=FLUX, at=datetime.now(UTC))
    line = Line(limits=house.limits, clock=SystemClock())
    await entered(line, 1)
    asked, take = 0, house.limits.take

    async def counted(*args: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        return await take(*args, **more)

    house.limits.take = counted  # type: ignore[method-assign]
    told: list[str] = []
    waiting = asyncio.create_task(
        line.enter(need(2), wait_seconds=20.0, tell_place=lambda limit, _: told.append(limit))
    )
    await until(lambda: told)
    assert told == ["budget:b"]
    await entered(line, 3, model="black-forest-labs/flux-dev")
    before = asked
    await asyncio.sleep(0.5)
    assert asked - before < 15
    assert not waiting.done()
    await house.end(1, usd="0.1", at=datetime.now(UTC))
    line.look_again()
    await waiting
    await line.aclose()


async def test_who_waited_too_long_for_money_is_told_of_the_budget(house: House) -> None:
    await house.set(usd="0.5", at=datetime.now(UTC))
    line = Line(limits=house.limits, clock=SystemClock())
    await entered(line, 1)
    both = await asyncio.gather(
        entered(line, 2, wait=0.1), entered(line, 3, usd="0.3", wait=0.1), return_exceptions=True
    )
    assert [type(one) for one in both] == [BudgetExceeded, BudgetExceeded]
    assert [(one.budget, one.quote_micros) for one in both if isinstance(one, BudgetExceeded)] == [
        ("b", 400_000),
        ("b", 300_000),
    ]
    await line.aclose()


async def test_who_cannot_be_paid_is_sent_away_from_a_full_line(open_house: Any) -> None:
    house = open_house(concurrent=1)
    await house.set(at=datetime.now(UTC))
    line = Line(limits=house.limits, clock=SystemClock())
    await entered(line, 1)
    with pytest.raises(BudgetExceeded) as told:
        await entered(line, 2, usd="1.01")
    assert told.value.budget == "b"
    await line.aclose()


# --- what others have left -------------------------------------------------------------------------------


async def test_what_a_process_of_an_older_release_has_ended_is_closed_later(house: House) -> None:
    await house.set(usd="10")
    for number in range(1, 7):
        assert isinstance(await house.buy(number), Admitted)

    def end_as_it_did(connection: Any) -> None:
        """It knows nothing of reservations."""
        this = {number: f"pred_{number:026}" for number in range(1, 7)}
        for number, cost in ((1, 300_000), (2, None)):
            entry = make_entry(number, cost=None if cost is None else Usd(cost))
            row = {name: getattr(entry, name) for name in UsageEntry.__struct_fields__ if name != "kept"}
            connection.execute(insert(usage).values(row))
        for number, status, charged in ((3, Status.FAILED, False), (4, Status.UNKNOWN, None)):
            one = update(predictions).where(predictions.c.id == this[number])
            connection.execute(one.values(status=status, charged=charged))
        connection.execute(delete(predictions).where(predictions.c.id == this[5]))

    await house.database.write(end_as_it_did)
    assert await house.standing() == ("$0.00", "$2.40")
    assert await house.budgets.heal(now=NOON) == 4
    # what it cost, and what was reserved where nobody knows
    assert await house.standing() == ("$0.70", "$0.80")
    assert [await house.state(number) for number in range(1, 7)] == [
        "settled", "settled", "voided", "open", "voided", "open",
    ]  # fmt: skip
    assert await house.budgets.heal(now=NOON) == 0


async def test_a_new_budget_reserves_for_what_is_under_way_and_no_other_budget_counts(house: House) -> None:
    await house.set("other", scope="model", subject="acme/none")
    quoted = {"quote": Quote.exactly(Usd(900_000)), "created_at": NOON - DAY}
    assert isinstance(await house.buy(1, "0.9", **quoted), Admitted)
    await house.store.add(prediction(2, caller="token:0123abcd", **quoted))  # pays for it alone
    await house.store.add(prediction(3, backend_type="emulator", **quoted))
    await house.store.add(prediction(4, status=Status.FAILED, charged=False, ended_at=NOON, **quoted))
    await house.store.add(prediction(5))  # nobody knows what it costs
    await house.set()
    assert await house.standing() == ("$0.00", "$0.90")
    assert isinstance(await house.buy(6, "0.2"), Blocked)
    await house.end(1, "0.8")
    await house.end(5, "0.1")
    assert await house.standing() == ("$0.90", "$0.00")
    assert (await house.balance("other")).settled == Usd(0)


@pytest.mark.parametrize(("limit", "kind"), [("1", Admitted), ("0.6", Unaffordable)])
async def test_what_was_left_behind_before_the_budget_is_bought_only_where_it_fits(
    house: House, limit: str, kind: type
) -> None:
    for number in (1, 2):
        await house.store.add(prediction(number, quote=Quote.exactly(Usd(400_000))))
    await house.set(usd=limit)
    left = msgspec.structs.replace(need(1), intent=None)
    verdicts = [*await house.take(left), *await house.take(left)]
    assert [type(one) for one in verdicts] == [kind, kind]
    assert await house.standing() == ("$0.00", "$0.80")  # reserved once, however often it is asked for


async def test_what_was_left_behind_without_a_reservation_gets_one(house: House) -> None:
    await house.set()
    await house.store.add(prediction(1))  # by a process of an older release
    await house.store.add(prediction(2))
    assert isinstance((await house.take(msgspec.structs.replace(need(1, "0.7"), intent=None)))[0], Admitted)
    assert await house.standing() == ("$0.00", "$0.70")
    assert isinstance((await house.take(msgspec.structs.replace(need(2, "0.7"), intent=None)))[0], Blocked)


async def test_an_entry_of_a_model_that_has_no_name_counts_and_stops_no_budget(house: House) -> None:
    await house.ledger.record([make_entry(1, model="", created_at=NOON, cost=Usd(5))])
    await house.set()
    await house.set("each", scope="model", subject=EACH)
    await house.ledger.record([make_entry(2, model="Odd", created_at=NOON, cost=Usd(7))])
    assert (await house.balance()).settled == Usd(12)
    assert (await house.balance("each", subject="odd")).settled == Usd(7)
