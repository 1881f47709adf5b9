"""Whatever is bought, ended, entered late, repeated, forgotten or budgeted, in whatever order: the money adds up.

A model in plain Python runs beside two stores on one file, as two processes have them. It knows every purchase, and says
from that what each budget has settled and reserved, and who may buy.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from sqlalchemy import select

from fakes.make import make_entry, make_prediction
from imagen.domain.budget import EACH, Budget, Charge, model_of
from imagen.domain.caller import Caller
from imagen.domain.limits import AccountRules, Admitted, Blocked, Need, Unaffordable, Verdict, budget_limit
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.usage import UsageEntry
from imagen.errors import NotFound
from imagen.store.budgets import SqlBudgets
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from imagen.store.limits import SqlLimits
from imagen.store.predictions import SqlPredictionStore
from imagen.store.tables import balances, reservations

T = TypeVar("T")
BEGINNING = datetime(2026, 11, 29, 22, 30, tzinfo=UTC)  # midnight and the next month are near
WHO = (("kai", "key_a"), ("bo", None), ("cy", "key_c"))
MODELS = ("acme/one", "acme/one:abc", "acme/two")
SUBJECTS = {
    "all": ("",),
    "key": ("key_a", "key_c", EACH),
    "caller": ("kai", "bo", EACH),
    "model": ("acme/one", EACH),
}
NAMES = ("a", "b", "c")
ANCHOR, ANCHOR_LIMIT = "z-anchor", Usd(1_500_000)
# Few amounts, so that many a purchase meets a budget that has just not room enough.
AMOUNT = st.one_of(st.sampled_from((400_000, 300_000, 700_000, 25_001, 0, None)), st.integers(0, 900_000))
LIMIT = st.one_of(st.sampled_from((1_000_000, 700_000, 0)), st.integers(0, 2_000_000))


class Process:
    """What one process has of a shared file."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.limits = SqlLimits(self.database, AccountRules(concurrent=10_000, creates_per_minute=1_000_000))
        self.budgets = SqlBudgets(self.database)
        self.store = SqlPredictionStore(self.database)
        self.ledger = SqlLedger(self.database)


@dataclass
class Bought:
    """A purchase as the model knows it.

    `counted_at` is the moment by which budgets count it, None as long as none does. `state` is that of its reservation.
    """

    intent: Prediction
    amount: int | None
    state: str | None = None
    counted_at: datetime | None = None
    ended: Prediction | None = None
    entry: UsageEntry | None = None

    @property
    def charge(self) -> Charge:
        return Charge(
            amount=None if self.amount is None else Usd(self.amount),
            key=self.intent.key,
            caller=self.intent.caller,
            model=model_of(self.intent.model),
        )

    def spent(self, counts: str) -> int:
        """What the ledger says of it."""
        if self.entry is None or (counts == "succeeded" and self.entry.outcome != "succeeded"):
            return 0
        if self.entry.cost is not None:
            return self.entry.cost.micros
        return (self.amount or 0) if self.state == "settled" else 0


@dataclass
class Model:
    """All that has happened."""

    now: datetime = BEGINNING
    budgets: dict[str, Budget] = field(default_factory=dict)
    bought: dict[int, Bought] = field(default_factory=dict)

    def counting(self, charge: Charge) -> list[tuple[Budget, str]]:
        found = [(self.budgets[name], self.budgets[name].counts_for(charge)) for name in sorted(self.budgets)]
        return [(budget, subject) for budget, subject in found if subject is not None]

    def standing(self, budget: Budget, subject: str, period: str | None = None) -> tuple[int, int, int]:
        """Settled, reserved, and of that what ended without a word."""
        period = period or budget.period(self.now)
        settled = reserved = lost = 0
        for one in self.bought.values():
            at = one.counted_at or (one.entry.created_at if one.entry is not None else None)
            if at is None or budget.counts_for(one.charge) != subject or budget.period(at) != period:
                continue
            settled += one.spent(budget.counts)
            if one.state == "open":
                reserved += one.amount or 0
                if one.ended is not None and one.ended.status is Status.UNKNOWN:
                    lost += one.amount or 0
        return settled, reserved, lost

    def verdict(self, charge: Charge) -> tuple[type, set[str]]:
        """What must be answered, and which budgets may be named for it."""
        short, full, passed = set(), set(), set()
        for budget, subject in self.counting(charge):
            settled, reserved, lost = self.standing(budget, subject)
            limit = budget.limit.micros
            if charge.amount is None:
                short |= {budget.name} if budget.hard else set()
            elif charge.amount.micros <= limit - settled - reserved:
                continue
            elif not budget.hard:
                passed.add(budget.name)
            elif charge.amount.micros <= limit - settled - lost:
                full.add(budget.name)
            else:
                short.add(budget.name)
        if short:
            return Unaffordable, short
        return (Blocked, full) if full else (Admitted, passed)


class MoneyAddsUp(RuleBasedStateMachine):
    """See the module."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "imagen.db"
        shutil.copy(self.template, path)
        self.loop = asyncio.new_event_loop()
        self.processes = (Process(path), Process(path))
        self.model = Model()
        self.anchored = False
        self.number = 0
        self.turn = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @property
    def house(self) -> Process:
        """One after the other."""
        self.turn += 1
        return self.processes[self.turn % 2]

    # --- what may happen ---------------------------------------------------------------------------------

    @initialize(anchored=st.booleans())
    def perhaps_one_budget_stands_from_the_beginning(self, anchored: bool) -> None:
        self.anchored = anchored
        if anchored:
            self._set(Budget(name=ANCHOR, limit=ANCHOR_LIMIT, per="total", scope="all", created_at=BEGINNING))

    @rule(
        wishes=st.lists(
            st.tuples(AMOUNT, st.sampled_from(WHO), st.sampled_from(MODELS)), min_size=1, max_size=3
        )
    )
    def take(self, wishes: list[tuple[int | None, tuple[str, str | None], str]]) -> None:
        asked = [self._bought(*wish) for wish in wishes]
        needs = [self._need(one) for _, one in asked]
        verdicts = self.run(
            self.house.limits.take(needs, now=self.model.now.timestamp(), line="line", waiting={})
        )
        for (number, one), verdict in zip(asked, verdicts, strict=True):
            self._judge(number, one, verdict)

    @precondition(lambda self: any(self.waiting()))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number, one = data.draw(st.sampled_from(list(self.waiting())))
        self.run(self.house.limits.give_back(one.intent.id, unsent=True))
        if one.intent.upstream_id is None:
            del self.model.bought[number]

    @precondition(lambda self: any(self.waiting()))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        number, one = data.draw(st.sampled_from(list(self.waiting())))
        one.intent = replace(one.intent, status=Status.STARTING, upstream_id=f"up-{number}")
        self.run(self.house.store.save(one.intent))

    @precondition(lambda self: any(self.waiting()))
    @rule(
        data=st.data(),
        how=st.sampled_from(
            (
                (Status.SUCCEEDED, True),
                (Status.SUCCEEDED, True),
                (Status.CANCELED, True),
                (Status.CANCELED, False),
                (Status.FAILED, False),
                (Status.UNKNOWN, None),
                (Status.UNKNOWN, None),
            )
        ),
        part=st.sampled_from((0, 1, 50, 99, 100, None)),
        entered=st.booleans(),
    )
    def end(
        self, data: st.DataObject, how: tuple[Status, bool | None], part: int | None, entered: bool
    ) -> None:
        number, one = data.draw(st.sampled_from(list(self.waiting())))
        status, charged = how
        cost = None
        if charged is False:
            cost = Usd(0)
        elif charged and part is not None:
            cost = Usd((one.amount or 0) * part // 100)
        upstream_id = one.intent.upstream_id if status is Status.UNKNOWN else f"up-{number}"
        ended = replace(
            one.intent,
            status=status,
            charged=charged,
            cost=cost,
            upstream_id=upstream_id,
            ended_at=self.model.now,
        )
        entry = (
            UsageEntry.from_prediction(ended, at=self.model.now) if entered and charged is not None else None
        )
        one.ended = self.run(self.house.store.save(ended, entry=entry))
        if charged is False and one.state == "open":
            one.state = "voided"
        if entry is not None:
            self._enter(one, entry)

    @precondition(lambda self: any(self.ended()))
    @rule(data=st.data())
    def enter_late_or_again(self, data: st.DataObject) -> None:
        _, one = data.draw(st.sampled_from(list(self.ended())))
        assert one.ended is not None
        if one.ended.charged is None:
            return
        entry = UsageEntry.from_prediction(one.ended, at=one.ended.ended_at or self.model.now)
        self.run(self.house.ledger.record([entry, entry]))
        if one.entry is None:
            self._enter(one, entry)

    @precondition(lambda self: any(self.ended()))
    @rule(data=st.data(), entered=st.booleans())
    def save_again(self, data: st.DataObject, entered: bool) -> None:
        _, one = data.draw(st.sampled_from(list(self.ended())))
        assert one.ended is not None
        again = replace(one.ended, delivered_at=self.model.now)
        entry = None
        if entered and one.entry is not None:
            entry = replace(one.entry, cost=Usd(99_999))  # what is written stays as it is
        self.run(self.house.store.save(again, entry=entry))

    @precondition(lambda self: any(self.ended()))
    @rule(data=st.data(), status=st.sampled_from((Status.SUCCEEDED, Status.FAILED, Status.QUEUED)))
    def a_late_writer_has_seen_another_end(self, data: st.DataObject, status: Status) -> None:
        _, one = data.draw(st.sampled_from(list(self.ended())))
        assert one.ended is not None
        if status is one.ended.status:
            return
        other = replace(one.ended, status=status, charged=status is Status.SUCCEEDED)
        self.run(self.house.store.save(other, entry=UsageEntry.from_prediction(other, at=self.model.now)))

    @precondition(lambda self: not self.anchored)
    @rule(
        cost=st.integers(0, 700_000),
        who=st.sampled_from((*WHO, ("token:abcd1234", None))),
        model=st.sampled_from(MODELS),
    )
    def find_what_nobody_knew(self, cost: int, who: tuple[str, str | None], model: str) -> None:
        """Made by another program, or on the token of its caller."""
        number, one = self._bought(cost, who, model)
        entry = make_entry(
            number,
            id=one.intent.id,
            created_at=self.model.now,
            cost=Usd(cost),
            caller=who[0],
            key=who[1],
            model=model,
        )
        self.run(self.house.ledger.record([entry]))
        if not who[0].startswith("token:"):
            self.model.bought[number] = one
            one.ended = one.intent
            self._enter(one, entry)

    @rule(hours=st.sampled_from((4.0, 4.0, 0.1, 24.0, 24.0 * 20)))
    def time_passes(self, hours: float) -> None:
        self.model.now += timedelta(hours=hours)

    @rule(
        name=st.sampled_from(NAMES),
        limit=LIMIT,
        per=st.sampled_from(("day", "month", "total")),
        whose=st.sampled_from([(scope, one) for scope, those in SUBJECTS.items() for one in those]),
        hard=st.sampled_from((True, True, False)),
        counts=st.sampled_from(("charged", "charged", "succeeded")),
    )
    def set(self, name: str, limit: int, per: Any, whose: tuple[Any, str], hard: bool, counts: Any) -> None:
        self._set(
            Budget(
                name=name,
                limit=Usd(limit),
                per=per,
                scope=whose[0],
                subject=whose[1],
                hard=hard,
                counts=counts,
                created_at=self.model.now,
            )
        )

    @precondition(lambda self: self.model.budgets)
    @rule(data=st.data(), limit=LIMIT)
    def change_the_limit(self, data: st.DataObject, limit: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.budgets)))
        if name != ANCHOR:
            self._set(replace(self.model.budgets[name], limit=Usd(limit)))

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if self.model.budgets.pop(name, None) is None:
            with pytest.raises(NotFound):
                self.run(self.house.budgets.remove(name))
        else:
            self.run(self.house.budgets.remove(name))

    @rule()
    def heal(self) -> None:
        """Whoever buys here closes what it has opened itself."""
        assert self.run(self.house.budgets.heal(now=self.model.now)) == 0

    # --- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def every_budget_stands_as_the_model_says(self) -> None:
        listed = self.run(self.house.budgets.list(now=self.model.now))
        assert sorted({one.budget.name for one in listed}) == sorted(self.model.budgets)
        for one in listed:
            budget = self.model.budgets[one.budget.name]
            assert (one.budget.limit, one.budget.hard) == (budget.limit, budget.hard)
            settled, reserved, _ = self.model.standing(budget, one.subject)
            assert (one.settled.micros, one.reserved.micros) == (settled, reserved), (one, self.model.now)
        for budget in self.model.budgets.values():
            shown = {one.subject for one in listed if one.budget.name == budget.name}
            charges = [one.charge for one in self.model.bought.values()]
            for subject in {budget.counts_for(charge) for charge in charges} - {None}:
                if sum(self.model.standing(budget, str(subject))[:2]):
                    assert subject in shown

    @invariant()
    def every_reservation_is_in_one_state_and_the_open_ones_are_what_is_reserved(self) -> None:
        def read(connection: Any) -> tuple[list[Any], list[Any]]:
            return connection.execute(select(reservations)).all(), connection.execute(select(balances)).all()

        rows, standing = self.run(self.house.database.read(read))
        known = {one.intent.id: one for one in self.model.bought.values()}
        reserved: dict[tuple[str, str, str], int] = {}
        for row in rows:
            if row.prediction_id in known:
                assert row.state == known[row.prediction_id].state
            else:
                assert row.state == "voided"  # withdrawn, and forgotten
            assert (row.state == "open") == (row.ended_at is None) == (row.settled is None)
            if row.state == "open":
                for name, subject, period in row.counted:
                    reserved[name, subject, period] = reserved.get((name, subject, period), 0) + row.amount
        assert {one.intent.id for one in known.values() if one.state} <= {row.prediction_id for row in rows}
        found = {(row.budget, row.subject, row.period): row.reserved for row in standing}
        assert {key: amount for key, amount in found.items() if amount} == {
            key: amount for key, amount in reserved.items() if amount
        }
        assert all(row.settled >= 0 for row in standing)

    @invariant()
    def what_stands_from_the_beginning_is_never_passed(self) -> None:
        if self.anchored:
            (anchor,) = [
                one
                for one in self.run(self.house.budgets.list(now=self.model.now))
                if one.budget.name == ANCHOR
            ]
            assert anchor.settled + anchor.reserved <= ANCHOR_LIMIT

    def teardown(self) -> None:
        for process in self.processes:
            process.database.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.folder.cleanup()

    # --- the steps ---------------------------------------------------------------------------------------

    def waiting(self) -> Iterator[tuple[int, Bought]]:
        """Those that have not ended."""
        return ((number, one) for number, one in self.model.bought.items() if one.ended is None)

    def ended(self) -> Iterator[tuple[int, Bought]]:
        """Those that have, and are written down."""
        return (
            (number, one)
            for number, one in self.model.bought.items()
            if one.ended is not None and one.ended is not one.intent
        )

    def _set(self, budget: Budget) -> None:
        self.run(self.house.budgets.set(budget, now=self.model.now))
        before = self.model.budgets.get(budget.name)
        self.model.budgets[budget.name] = budget
        if before is not None and (before.per, before.scope, before.subject, before.counts) == (
            budget.per,
            budget.scope,
            budget.subject,
            budget.counts,
        ):
            return
        for _, one in self.waiting():  # what no budget has counted so far is under way all the same
            if one.state is None and budget.counts_for(one.charge) is not None:
                one.state, one.counted_at = "open", self.model.now

    def _enter(self, one: Bought, entry: UsageEntry) -> None:
        one.entry = entry
        if one.state == "open":
            one.state = "settled"
        elif entry.cost and self.model.counting(one.charge):
            one.state, one.counted_at = "settled", entry.created_at

    def _bought(self, amount: int | None, who: tuple[str, str | None], model: str) -> tuple[int, Bought]:
        self.number += 1
        caller, key = who
        intent = make_prediction(
            self.number,
            caller=caller,
            key=key,
            model=model,
            sent_at=None,
            created_at=self.model.now,
            quote=UNKNOWN_PRICE if amount is None else Quote.exactly(Usd(amount)),
        )
        return self.number, Bought(intent, amount)

    def _need(self, one: Bought) -> Need:
        return Need(
            lease=one.intent.id,
            holder=one.intent.caller,
            lasts_seconds=600.0,
            account="account-a",
            caller=Caller(name=one.intent.caller, key=one.intent.key),
            intent=one.intent,
            charge=one.charge,
        )

    def _judge(self, number: int, one: Bought, verdict: Verdict) -> None:
        kind, names = self.model.verdict(one.charge)
        assert isinstance(verdict, kind), (verdict, kind, names)
        if isinstance(verdict, Admitted):
            assert {shortage.balance.budget.name for shortage in verdict.passed} == names
            assert verdict.intent is not None
            one.intent = verdict.intent
            self.model.bought[number] = one
            if self.model.counting(one.charge):
                one.state, one.counted_at = "open", self.model.now
            return
        with pytest.raises(NotFound):
            self.run(self.house.store.get(one.intent.id))
        if isinstance(verdict, Blocked):
            assert verdict.limit in {budget_limit(name) for name in names}
        else:
            assert isinstance(verdict, Unaffordable)
            assert verdict.shortage.balance.budget.name in names


@pytest.fixture(scope="module", autouse=True)
def an_empty_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Made once and copied for each run: its migrations take longer than a run does."""
    path = tmp_path_factory.mktemp("money") / "empty.db"

    async def make() -> None:
        process = Process(path)
        await process.budgets.list(now=BEGINNING)
        process.database.close()

    asyncio.run(make())
    MoneyAddsUp.template = path


@pytest.mark.slow
class TestMoneyAddsUp(MoneyAddsUp.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=50,
        stateful_step_count=35,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
    )
