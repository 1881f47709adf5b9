"""The limits of a store, and the line before them, on a real database shared by several lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.make import make_prediction
from imagen.domain.caller import Caller
from imagen.domain.limits import (
    AccountRules,
    Admitted,
    Blocked,
    Lane,
    LineReport,
    Missing,
    Need,
    Refusal,
)
from imagen.domain.prediction import Status
from imagen.errors import Draining, NotFound, QueueFull, RateLimited
from imagen.instrumentation.clock import SystemClock
from imagen.limits.line import Line, LineRules
from imagen.store.database import Database
from imagen.store.limits import SqlLimits
from imagen.store.predictions import SqlPredictionStore
from imagen.store.semaphores import SqlSemaphores

pytestmark = pytest.mark.anyio
NOW = 1_800_000_000.0
ACCOUNT = "abc@https://api.example"


class House:
    """One process's worth of parts on a shared file."""

    def __init__(self, path: Path, rules: AccountRules) -> None:
        self.database = Database(path)
        self.limits = SqlLimits(self.database, rules)
        self.semaphores = SqlSemaphores(self.database)
        self.store = SqlPredictionStore(self.database)

    def line(self, **rules: int) -> Line:
        return Line(limits=self.limits, clock=SystemClock(), rules=LineRules(**rules))


@pytest.fixture
def open_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    opened: list[House] = []

    def open_one(**rules: int) -> House:
        given = {"concurrent": 2, "creates_per_minute": 100_000, "calls_per_minute": 3000} | rules
        opened.append(House(tmp_path / "imagen.db", AccountRules(**given)))
        return opened[-1]

    yield open_one
    for house in opened:
        house.database.close()


def need(number: int = 1, **facts: Any) -> Need:
    given: dict[str, Any] = {
        "lease": f"lease-{number}",
        "holder": "kai",
        "lasts_seconds": 60.0,
        "account": ACCOUNT,
    }
    return Need(**given | facts)


async def take(
    house: House, *needs: Need, now: float = NOW, line: str = "a", **waiting: LineReport
) -> list[Any]:
    return list(await house.limits.take(needs, now=now, line=line, waiting=waiting))


async def test_places_are_given_until_there_is_none_and_again_when_one_is_back(open_house: Any) -> None:
    house = open_house()
    given = await take(house, need(1), need(2), need(3))
    assert [type(one) for one in given] == [Admitted, Admitted, Blocked]
    assert given[2].limit == f"account:{ACCOUNT}"
    await house.limits.give_back("lease-1")
    assert isinstance((await take(house, need(3), now=NOW + 1))[0], Admitted)


async def test_a_lease_that_ended_holds_nothing(open_house: Any) -> None:
    house = open_house(concurrent=1)
    await take(house, need(1, lasts_seconds=10.0))
    assert isinstance((await take(house, need(2), now=NOW + 9))[0], Blocked)
    assert isinstance((await take(house, need(2), now=NOW + 11))[0], Admitted)


async def test_all_is_given_or_nothing(open_house: Any) -> None:
    house = open_house()
    await house.semaphores.register("s", 1)
    await take(house, need(1, semaphore="s"))
    (blocked,) = await take(house, need(2, semaphore="s"))
    assert blocked == Blocked("semaphore:s")
    assert isinstance((await take(house, need(3)))[0], Admitted)  # the account's second place was not taken


async def test_who_waits_for_a_full_semaphore_keeps_nobody_else_waiting(open_house: Any) -> None:
    house = open_house(concurrent=10)
    await house.semaphores.register("s", 1)
    given = await take(house, need(1, semaphore="s"), need(2, semaphore="s"), need(3))
    assert [type(one) for one in given] == [Admitted, Blocked, Admitted]


async def test_a_semaphore_that_nobody_registered_is_missing(open_house: Any) -> None:
    assert await take(open_house(), need(1, semaphore="none")) == [Missing("none")]


async def test_a_key_has_places_and_a_rate_of_its_own(open_house: Any) -> None:
    house = open_house(concurrent=50)
    narrow = Caller(name="team", key="key_1", concurrent=1)
    given = await take(house, need(1, caller=narrow), need(2, caller=narrow), need(3))
    assert [type(one) for one in given] == [Admitted, Blocked, Admitted]
    slow = Caller(name="slow", key="key_2", per_minute=1)
    (first,) = await take(house, need(4, caller=slow))
    (second,) = await take(house, need(5, caller=slow), now=NOW + 10)
    assert isinstance(first, Admitted)
    assert second.limit == "key:key_2"
    assert second.until > NOW + 50


async def test_the_rate_of_the_account_is_shared_by_all_processes(open_house: Any) -> None:
    one, other = (open_house(concurrent=1000, creates_per_minute=60) for _ in range(2))
    admitted, now = 0, NOW
    for step in range(400):
        house = (one, other)[step % 2]
        (verdict,) = await take(house, need(step), now=now)
        admitted += isinstance(verdict, Admitted)
        now += 0.1  # 40 s
    assert 60 <= admitted <= 60 + 41


async def test_a_429_closes_the_gate_for_everybody_until_its_reset(open_house: Any) -> None:
    one, other = open_house(), open_house()
    await take(one, need(1))
    refusal = Refusal(creates=True, retry_after=30.0, detail="429: throttled", sequence=1)
    await one.limits.refused(ACCOUNT, refusal, now=NOW + 1)
    (verdict,) = await take(other, need(2), now=NOW + 2)
    assert verdict.until == pytest.approx(NOW + 31, abs=0.5)
    state = await other.limits.show(ACCOUNT, now=NOW + 2)
    assert 28 <= state.creates["closed_for_seconds"] <= 30
    assert isinstance((await take(other, need(3, account="another")))[0], Admitted)


async def test_what_is_let_in_is_written_down_in_the_same_moment(open_house: Any) -> None:
    house = open_house(concurrent=1)
    first, second = (make_prediction(n, sent_at=None) for n in (1, 2))
    given = await take(house, need(1, lease=first.id, intent=first), need(2, lease=second.id, intent=second))
    stored = await house.store.get(first.id)
    assert given[0].intent == stored
    assert stored.sent_at is not None
    with pytest.raises(NotFound):
        await house.store.get(second.id)


async def test_the_end_of_a_prediction_frees_what_it_held(open_house: Any) -> None:
    house = open_house(concurrent=1)
    intent = make_prediction(1)
    await take(house, need(1, lease=intent.id, intent=intent))
    await house.store.save(make_prediction(1, status=Status.PROCESSING, upstream_id="up-1"))
    assert isinstance((await take(house, need(2)))[0], Blocked)
    await house.store.save(make_prediction(1, status=Status.FAILED, upstream_id="up-1"))
    assert isinstance((await take(house, need(2)))[0], Admitted)


async def test_what_was_not_sent_leaves_nothing(open_house: Any) -> None:
    house = open_house(concurrent=1)
    intent = make_prediction(1)
    await take(house, need(1, lease=intent.id, intent=intent))
    await house.limits.give_back(intent.id, unsent=True)
    with pytest.raises(NotFound):
        await house.store.get(intent.id)
    assert isinstance((await take(house, need(2)))[0], Admitted)


async def test_what_runs_already_is_let_in_whatever_the_limits_say(open_house: Any) -> None:
    house = open_house(concurrent=1)
    given = await take(house, need(1), need(2, running=True))
    assert [type(one) for one in given] == [Admitted, Admitted]
    assert isinstance((await take(house, need(3)))[0], Blocked)


async def test_a_prediction_that_was_left_behind_still_has_its_own_place(open_house: Any) -> None:
    house = open_house(concurrent=1)
    await take(house, need(1))
    assert isinstance((await take(house, need(1)))[0], Admitted)


async def test_lines_of_all_processes_are_served_first_come_first_served(open_house: Any) -> None:
    house = open_house(concurrent=1)
    await take(house, need(1))
    account = f"account:{ACCOUNT}"
    early = {account: LineReport(Lane.INTERACTIVE, NOW + 1, 1)}
    await house.limits.take([need(2)], now=NOW + 1, line="early", waiting=early)
    await house.limits.give_back("lease-1")
    late = {account: LineReport(Lane.INTERACTIVE, NOW + 2, 1)}
    (verdict,) = await house.limits.take([need(3)], now=NOW + 2, line="late", waiting=late)
    assert isinstance(verdict, Blocked)
    (verdict,) = await house.limits.take([need(2)], now=NOW + 2, line="early", waiting=early)
    assert isinstance(verdict, Admitted)


async def test_a_batch_of_one_process_leaves_the_rate_to_who_waits_in_another(open_house: Any) -> None:
    house = open_house(concurrent=100, creates_per_minute=60)
    await take(house, *(need(number) for number in range(100)))  # the minute's burst is gone
    account, now = f"account:{ACCOUNT}", NOW + 1
    somebody = {account: LineReport(Lane.INTERACTIVE, now, 1)}
    batch = {account: LineReport(Lane.BATCH, NOW, 50)}
    first = need(201, lane=Lane.BATCH)
    at = now
    for _ in range(200):
        (verdict,) = await house.limits.take([need(200)], now=at, line="somebody", waiting=somebody)
        if isinstance(verdict, Admitted):
            break
        (verdict,) = await house.limits.take([first], now=at, line="batch", waiting=batch)
        assert isinstance(verdict, Blocked)
        at += 0.05
    else:
        pytest.fail("somebody was never let in")


async def test_a_line_of_a_process_that_died_keeps_nobody_waiting(open_house: Any) -> None:
    house = open_house(concurrent=1)
    await take(house, need(1))
    account = f"account:{ACCOUNT}"
    waiting = {account: LineReport(Lane.INTERACTIVE, NOW, 1)}
    await house.limits.take([need(2)], now=NOW, line="dead", waiting=waiting)
    await house.limits.give_back("lease-1")
    (verdict,) = await house.limits.take([need(3)], now=NOW + 10, line="alive", waiting={})
    assert isinstance(verdict, Admitted)


async def test_other_calls_have_an_allowance_of_their_own(open_house: Any) -> None:
    house = open_house(calls_per_minute=60)
    waits, now = [], NOW
    for _ in range(5):
        waits.append(await house.limits.take_calls(ACCOUNT, 20, now=now))
        now += 1.0
    assert waits[0] == 0
    assert max(waits) > 0


# --- the line --------------------------------------------------------------------------------------------


async def test_the_limit_holds_for_a_crowd_of_two_processes_and_nobody_is_forgotten(open_house: Any) -> None:
    houses = [open_house(concurrent=3), open_house(concurrent=3)]
    lines = [house.line() for house in houses]
    running = most = done = 0

    async def work(number: int) -> None:
        nonlocal running, most, done
        house, line = houses[number % 2], lines[number % 2]
        await line.enter(need(number), wait_seconds=30)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        await house.limits.give_back(f"lease-{number}")
        line.look_again()
        done += 1

    await asyncio.gather(*map(work, range(60)))
    assert done == 60
    assert most == 3
    assert [line.waiting for line in lines] == [0, 0]


async def entered(line: Line, order: list[str], house: House, name: str, number: int, **facts: Any) -> None:
    await line.enter(need(number, **facts), wait_seconds=30)
    order.append(name)
    await asyncio.sleep(0.002)
    await house.limits.give_back(f"lease-{number}")
    line.look_again()


async def test_interactive_work_goes_before_a_batch_and_callers_take_turns(open_house: Any) -> None:
    house = open_house(concurrent=1)
    line = house.line()
    await line.enter(need(0), wait_seconds=1)
    order: list[str] = []
    eager, modest = Caller(name="eager"), Caller(name="modest")
    tasks = [
        *(entered(line, order, house, "batch", n, lane=Lane.BATCH, caller=eager) for n in range(1, 5)),
        *(entered(line, order, house, "eager", n, caller=eager) for n in range(5, 9)),
        entered(line, order, house, "modest", 9, caller=modest),
    ]
    running = [asyncio.ensure_future(task) for task in tasks]
    await asyncio.sleep(0.05)
    await house.limits.give_back("lease-0")
    line.look_again()
    await asyncio.gather(*running)
    assert order[-4:] == ["batch"] * 4
    assert "modest" in order[:2]


async def test_of_one_caller_the_first_to_come_goes_first(open_house: Any) -> None:
    house = open_house(concurrent=1)
    line = house.line()
    order: list[str] = []
    await asyncio.gather(*(entered(line, order, house, str(number), number) for number in range(12)))
    assert order == [str(number) for number in range(12)]


async def test_who_waits_is_told_what_for_and_how_many_go_before(open_house: Any) -> None:
    house = open_house(concurrent=1)
    line = house.line()
    await line.enter(need(0), wait_seconds=1)
    told: list[tuple[str, int]] = []
    waiting = [
        asyncio.ensure_future(
            line.enter(need(number), wait_seconds=0.3, tell_place=lambda limit, at: told.append((limit, at)))
        )
        for number in (1, 2, 3)
    ]
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert sorted(told) == [(f"account:{ACCOUNT}", at) for at in (1, 2, 3)]
    assert all(isinstance(one, RateLimited) for one in ended)
    assert line.waiting == 0


async def test_a_full_line_refuses_at_once(open_house: Any) -> None:
    house = open_house(concurrent=1)
    line = house.line(waiting=3, waiting_per_caller=2)
    await line.enter(need(0), wait_seconds=1)
    one, other = Caller(name="one"), Caller(name="other")
    waiting = [
        asyncio.ensure_future(line.enter(need(n, caller=caller), wait_seconds=0.5))
        for n, caller in enumerate([one, one, other], 1)
    ]
    await asyncio.sleep(0.05)
    for caller in (one, other):
        with pytest.raises(QueueFull) as caught:
            await line.enter(need(9, caller=caller), wait_seconds=1)
        assert caught.value.retry_after
    assert line.room_for(one) == 0
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_goes_away_holds_nothing(open_house: Any) -> None:
    house = open_house(concurrent=1)
    line = house.line()
    await line.enter(need(0), wait_seconds=1)
    tasks = [asyncio.ensure_future(line.enter(need(number), wait_seconds=30)) for number in range(1, 20)]
    await asyncio.sleep(0.03)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await house.limits.give_back("lease-0")
    line.look_again()
    await line.enter(need(99), wait_seconds=5)
    state = await house.limits.show(ACCOUNT, now=SystemClock().now().timestamp())
    assert state.running == 1


async def test_a_line_that_closes_sends_everybody_away(open_house: Any) -> None:
    house = open_house(concurrent=1)
    line = house.line()
    await line.enter(need(0), wait_seconds=1)
    waiting = asyncio.ensure_future(line.enter(need(1), wait_seconds=30))
    await asyncio.sleep(0.03)
    line.close()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await line.enter(need(2), wait_seconds=30)


async def test_a_semaphore_that_is_removed_while_somebody_waits_ends_the_wait(open_house: Any) -> None:
    house = open_house(concurrent=5)
    await house.semaphores.register("s", 1)
    line = house.line()
    await line.enter(need(0, semaphore="s"), wait_seconds=1)
    waiting = asyncio.ensure_future(line.enter(need(1, semaphore="s"), wait_seconds=30))
    await asyncio.sleep(0.03)
    await house.semaphores.remove("s")
    with pytest.raises(NotFound, match="External semaphore 's' not found"):
        await waiting
