"""Whatever is taken, given back, ended, forgotten or refused, in whatever order: the limits hold and nothing is lost.

A model of the places in plain Python runs beside two stores on one file, as two processes have them. Nobody stands in
line here, so that whoever finds a free place must get it.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select

from fakes.make import make_prediction
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.limits import (
    AccountRules,
    Admitted,
    Blocked,
    Missing,
    Need,
    Refusal,
    account_limit,
    key_limit,
    semaphore_limit,
)
from imagen.domain.prediction import Status
from imagen.errors import NotFound
from imagen.store.database import Database
from imagen.store.limits import SqlLimits
from imagen.store.predictions import SqlPredictionStore
from imagen.store.semaphores import SqlSemaphores
from imagen.store.tables import leases

T = TypeVar("T")
BEGINNING = 1_800_000_000.0
PLACES = 3
ACCOUNTS = ("one", "other")
SEMAPHORES = ("s", "t")
CALLERS = (
    UNKNOWN,
    Caller(name="narrow", key="key_narrow", concurrent=1),
    Caller(name="wide", key="key_wide", concurrent=2),
    Caller(name="slow", key="key_slow", concurrent=2, per_minute=2),
)
PER_MINUTE = 2
OPTIONAL_ACCOUNT = st.sampled_from((*ACCOUNTS, *ACCOUNTS, None))
OPTIONAL_SEMAPHORE = st.sampled_from((None, None, *SEMAPHORES, "nobody's"))


class Process:
    """What one process has of a shared file."""

    def __init__(self, path: Path) -> None:
        rules = AccountRules(concurrent=PLACES, creates_per_minute=1_000_000)
        self.database = Database(path)
        self.limits = SqlLimits(self.database, rules)
        self.semaphores = SqlSemaphores(self.database)
        self.store = SqlPredictionStore(self.database)


@dataclass
class Wish:
    """A need as it is drawn; `again` takes the lease of somebody who may be there still."""

    account: str | None
    caller: Caller
    semaphore: str | None
    lasts: float
    running: bool
    again: int | None
    intended: bool


WISH = st.builds(
    Wish,
    account=OPTIONAL_ACCOUNT,
    caller=st.sampled_from(CALLERS),
    semaphore=OPTIONAL_SEMAPHORE,
    lasts=st.sampled_from((1.0, 5.0, 60.0, 600.0)),
    running=st.sampled_from((False, False, False, False, True)),
    again=st.one_of(st.none(), st.none(), st.integers(0, 100)),
    intended=st.booleans(),
)


@dataclass
class Model:
    """How it should be: when each lease's place in each limit ends."""

    now: float = BEGINNING
    places: dict[str, dict[str, float]] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    slow_sent: list[float] = field(default_factory=list)

    def limit_of(self, limit: str, need: Need) -> int:
        if limit == account_limit(need.account or ""):
            return PLACES
        if limit == semaphore_limit(need.semaphore or ""):
            return self.most[limit]
        return need.caller.concurrent or 0

    def held(self, limit: str, *, besides: str = "") -> int:
        ends = self.places.get(limit, {})
        return sum(end > self.now for lease, end in ends.items() if lease != besides)

    def hold(self, need: Need) -> None:
        for limit in need.limits():
            self.places.setdefault(limit, {})[need.lease] = self.now + need.lasts_seconds

    def limits_of(self, lease: str) -> set[str]:
        return {limit for limit, ends in self.places.items() if ends.get(lease, 0.0) > self.now}

    def free(self, lease: str) -> None:
        for ends in self.places.values():
            ends.pop(lease, None)

    def standing(self) -> dict[tuple[str, str], float]:
        return {
            (limit, lease): end
            for limit, ends in self.places.items()
            for lease, end in ends.items()
            if end > self.now
        }


class LimitsHold(RuleBasedStateMachine):
    """Two processes, one file, a clock that is moved by hand."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "imagen.db"
        shutil.copy(self.template, path)
        self.loop = asyncio.new_event_loop()
        self.processes = (Process(path), Process(path))
        self.model = Model()
        self.leases: list[str] = []
        self.intents: dict[str, int] = {}
        self.number = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    # --- what may happen ---------------------------------------------------------------------------------

    @initialize(most=st.integers(1, 3))
    def one_semaphore_is_there(self, most: int) -> None:
        self.register(SEMAPHORES[0], most, 0)

    @rule(wishes=st.lists(WISH, min_size=1, max_size=4), process=st.integers(0, 1))
    def take(self, wishes: list[Wish], process: int) -> None:
        needs, taken = [], set()
        if any(wish.running or wish.again is not None for wish in wishes):
            # What was there before is asked for alone; the tests below have it among others.
            wishes = wishes[:1]
        for wish in wishes:
            need = self._need(wish)
            if need.lease not in taken:
                needs.append(need)
                taken.add(need.lease)
        house = self.processes[process]
        verdicts = self.run(house.limits.take(needs, now=self.model.now, line=f"line {process}", waiting={}))
        for need, verdict in zip(needs, verdicts, strict=True):
            self._judge(need, verdict)

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 100), process=st.integers(0, 1))
    def give_back(self, which: int, process: int) -> None:
        lease = self.leases[which % len(self.leases)]
        self.run(self.processes[process].limits.give_back(lease))
        self.model.free(lease)

    @precondition(lambda self: self.intents)
    @rule(which=st.integers(0, 100))
    def take_back_what_was_not_sent(self, which: int) -> None:
        lease = [*self.intents][which % len(self.intents)]
        self.run(self.processes[0].limits.give_back(lease, unsent=True))
        self.model.free(lease)
        stored = self._stored(lease)
        assert stored is None or stored.status.terminal
        del self.intents[lease]

    @precondition(lambda self: self.intents)
    @rule(
        which=st.integers(0, 100),
        process=st.integers(0, 1),
        status=st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED]),
    )
    def a_prediction_ends(self, which: int, process: int, status: Status) -> None:
        lease = [*self.intents][which % len(self.intents)]
        ended = make_prediction(self.intents[lease], status=status, upstream_id=f"up-{lease}")
        self.run(self.processes[process].store.save(ended))
        self.model.free(lease)

    @rule(seconds=st.sampled_from((0.001, 0.5, 1.0, 4.0, 30.0, 61.0, 600.0)))
    def time_passes(self, seconds: float) -> None:
        self.model.now += seconds

    @rule(name=st.sampled_from(SEMAPHORES), most=st.integers(1, 3), process=st.integers(0, 1))
    def register(self, name: str, most: int, process: int) -> None:
        self.run(self.processes[process].semaphores.register(name, most))
        self.model.most[semaphore_limit(name)] = most

    @rule(name=st.sampled_from(SEMAPHORES), process=st.integers(0, 1))
    def remove(self, name: str, process: int) -> None:
        limit = semaphore_limit(name)
        if self.model.most.pop(limit, None) is None:
            with pytest.raises(NotFound):
                self.run(self.processes[process].semaphores.remove(name))
            return
        self.run(self.processes[process].semaphores.remove(name))
        self.model.places.pop(limit, None)

    @precondition(lambda self: self.leases)
    @rule(
        name=st.sampled_from(SEMAPHORES),
        which=st.integers(0, 100),
        lasts=st.sampled_from((1.0, 60.0)),
        process=st.integers(0, 1),
    )
    def renew(self, name: str, which: int, lasts: float, process: int) -> None:
        lease = self.leases[which % len(self.leases)]
        ends = self.model.places.get(semaphore_limit(name), {})
        work = self.processes[process].semaphores.renew(name, lease, now=self.model.now, lasts_seconds=lasts)
        if ends.get(lease, 0.0) <= self.model.now:
            with pytest.raises(NotFound):
                self.run(work)
            return
        assert self.run(work).expires_at == self.model.now + lasts
        ends[lease] = self.model.now + lasts

    @precondition(lambda self: self.leases)
    @rule(name=st.sampled_from(SEMAPHORES), which=st.integers(0, 100))
    def release(self, name: str, which: int) -> None:
        lease = self.leases[which % len(self.leases)]
        self.run(self.processes[0].semaphores.release(name, lease))
        self.model.places.get(semaphore_limit(name), {}).pop(lease, None)

    @rule(
        account=st.sampled_from(ACCOUNTS),
        retry_after=st.sampled_from((None, 0.5, 10.0, 45.0)),
        process=st.integers(0, 1),
    )
    def the_service_refuses(self, account: str, retry_after: float | None, process: int) -> None:
        refusal = Refusal(creates=True, retry_after=retry_after, detail="throttled")
        self.run(self.processes[process].limits.refused(account, refusal, now=self.model.now))
        until = self.model.now + (retry_after or 1.0)
        self.model.closed[account] = max(self.model.closed.get(account, 0.0), until)
        self.model.refused.add(account)

    # --- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def exactly_the_places_are_held_that_should_be(self) -> None:
        now = self.model.now

        def read(connection: Any) -> Mapping[tuple[str, str], float]:
            rows = connection.execute(select(leases).where(leases.c.expires_at > now)).all()
            return {(row.resource, row.lease): row.expires_at for row in rows}

        assert self.run(self.processes[0].database.read(read)) == self.model.standing()

    def teardown(self) -> None:
        try:
            self._end_everything()
        finally:
            for process in self.processes:
                process.database.close()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()

    def _end_everything(self) -> None:
        house = self.processes[1]
        for lease in self.leases:
            if lease in self.intents:
                ended = make_prediction(self.intents[lease], status=Status.FAILED)
                self.run(house.store.save(ended))
            else:
                self.run(house.limits.give_back(lease))
        for account in ACCOUNTS:
            assert self.run(house.limits.show(account, now=self.model.now)).running == 0
        assert [one.held for one in self.run(house.semaphores.list(now=self.model.now))] == [0] * len(
            self.model.most
        )
        self.model.places.clear()
        self.exactly_the_places_are_held_that_should_be()
        # All of it can be had again.
        needs = [
            Need(lease=f"last-{n}", holder="x", lasts_seconds=1.0, account="fresh") for n in range(PLACES + 1)
        ]
        verdicts = self.run(house.limits.take(needs, now=self.model.now, line="last", waiting={}))
        assert [isinstance(one, Admitted) for one in verdicts] == [True] * PLACES + [False]

    # --- the steps ---------------------------------------------------------------------------------------

    def _need(self, wish: Wish) -> Need:
        intent = None
        if wish.again is not None and self.leases:
            lease = self.leases[wish.again % len(self.leases)]
        else:
            self.number += 1
            prediction = make_prediction(self.number, sent_at=None)
            lease = prediction.id
            self.leases.append(lease)
            if wish.intended and not wish.running:
                intent = prediction
        return Need(
            lease=lease,
            holder=wish.caller.name,
            lasts_seconds=wish.lasts,
            account=wish.account,
            caller=wish.caller,
            semaphore=wish.semaphore,
            running=wish.running,
            intent=intent,
        )

    def _judge(self, need: Need, verdict: Any) -> None:
        """Whether the verdict is right as the places stand, those counted that were let in just before."""
        model = self.model
        left_behind = need.intent is None and need.account is not None
        own = model.limits_of(need.lease) if left_behind else set()
        if need.running:
            assert isinstance(verdict, Admitted)
            model.free(need.lease)
            model.hold(need)
            return
        missing = need.semaphore is not None and semaphore_limit(need.semaphore) not in model.most
        if missing:
            assert verdict == Missing(need.semaphore or "")
            self._is_not_written_down(need)
            return
        full = [
            limit
            for limit in need.limits()
            if limit not in own and model.held(limit, besides=need.lease) >= model.limit_of(limit, need)
        ]
        closed = model.closed.get(need.account or "", 0.0)
        if isinstance(verdict, Admitted):
            assert not full, f"{need} was let in where {full} had no place"
            assert closed <= model.now, f"{need} was let in while the gate was closed"
            if own:
                model.free(need.lease)  # it holds what it has asked for now, and no more
            self._is_let_in(need, verdict)
            return
        assert isinstance(verdict, Blocked)
        self._is_not_written_down(need)
        if verdict.until is None:
            assert verdict.limit in full, f"{need} was kept out of {verdict.limit}, which has a place"
        else:
            assert not math.isinf(verdict.until)
            assert verdict.until > model.now
            slow = need.caller.per_minute is not None and verdict.limit == key_limit(need.caller.key or "")
            learned = need.account in model.refused and verdict.limit == account_limit(need.account or "")
            assert slow or learned, f"{need} has to wait for {verdict}"
            if closed > model.now and not slow:
                assert verdict.until >= closed - 0.001

    def _is_let_in(self, need: Need, verdict: Admitted) -> None:
        self.model.hold(need)
        if need.caller.per_minute is not None and need.account is not None:
            sent = self.model.slow_sent
            sent.append(self.model.now)
            last_minute = [at for at in sent if at > self.model.now - 60]
            assert len(last_minute) <= 2 * PER_MINUTE
        if need.intent is None:
            assert verdict.intent is None
            return
        stored = self._stored(need.intent.id)
        assert stored is not None
        assert stored == verdict.intent
        assert stored.sent_at is not None
        assert stored.sent_at.timestamp() == pytest.approx(self.model.now)
        self.intents[need.lease] = self.number_of(need.lease)

    def _is_not_written_down(self, need: Need) -> None:
        if need.intent is not None:
            assert self._stored(need.intent.id) is None

    def _stored(self, prediction_id: str) -> Any:
        try:
            return self.run(self.processes[0].store.get(prediction_id))
        except NotFound:
            return None

    @staticmethod
    def number_of(lease: str) -> int:
        return int(lease.removeprefix("pred_"))


@pytest.fixture(scope="module", autouse=True)
def an_empty_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Made once and copied for each run: its migrations take longer than a run does."""
    path = tmp_path_factory.mktemp("limits") / "empty.db"

    async def make() -> None:
        process = Process(path)
        await process.semaphores.list(now=BEGINNING)
        process.database.close()

    asyncio.run(make())
    LimitsHold.template = path


@pytest.mark.slow
class TestLimitsHold(LimitsHold.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=60,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
    )


# --- a prediction that was left behind, asked for among others -------------------------------------------


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def left_behind(number: int, **facts: Any) -> Need:
    return Need(lease=f"lease-{number}", holder="x", lasts_seconds=600.0, account="one", **facts)


@pytest.mark.anyio
async def test_it_has_its_own_place_also_when_somebody_before_it_finds_none(tmp_path: Path) -> None:
    house = Process(tmp_path / "imagen.db")
    for number in range(PLACES):
        await house.limits.take([left_behind(number)], now=BEGINNING, line="a", waiting={})
    verdicts = await house.limits.take(
        [left_behind(7), left_behind(0)], now=BEGINNING + 1, line="a", waiting={}
    )
    house.database.close()
    assert [type(one) for one in verdicts] == [Blocked, Admitted]


@pytest.mark.anyio
async def test_while_it_waits_for_its_turn_the_limit_holds(tmp_path: Path) -> None:
    house = Process(tmp_path / "imagen.db")
    slow = Caller(name="slow", key="key_slow", per_minute=1)
    for number in range(PLACES):
        caller = slow if number == 0 else UNKNOWN
        await house.limits.take([left_behind(number, caller=caller)], now=BEGINNING, line="a", waiting={})
    asked = [left_behind(0, caller=slow), *map(left_behind, range(7, 7 + PLACES))]
    verdicts = await house.limits.take(asked, now=BEGINNING + 1, line="a", waiting={})
    state = await house.limits.show("one", now=BEGINNING + 1)
    house.database.close()
    assert isinstance(verdicts[0], Blocked)
    assert state.running <= PLACES
