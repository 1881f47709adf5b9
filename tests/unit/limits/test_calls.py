"""The calls that are no creates: paced together by all processes, and never in the way of what was paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.clock import ManualClock
from imagen.domain.limits import AccountRules, Refusal
from imagen.limits.calls import CHUNK, CHUNK_LIVES_SECONDS, SharedCallBudget
from imagen.store.database import Database
from imagen.store.limits import SqlLimits

pytestmark = pytest.mark.anyio


ACCOUNT = "abc@https://api.example"


class FineClock(ManualClock):
    """It counts microseconds, as a datetime does; a sleep takes one at least."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(max(seconds, 2e-6))


class Process:
    """What one process has of a shared file; remembers when it called."""

    def __init__(self, path: Path, clock: ManualClock, per_minute: int) -> None:
        self.clock = clock
        self.database = Database(path)
        self.limits = SqlLimits(self.database, AccountRules(calls_per_minute=per_minute))
        self.budget = SharedCallBudget(limits=self.limits, clock=clock, per_minute=per_minute)
        self.made: list[float] = []

    async def call(self, account: str = ACCOUNT) -> None:
        await self.budget.enter(account)
        self.made.append(self.clock.monotonic())


@pytest.fixture
def clock() -> ManualClock:
    return FineClock()


@pytest.fixture
def open_process(tmp_path: Path, clock: ManualClock) -> Iterator[Callable[[int], Process]]:
    opened: list[Process] = []

    def open_one(per_minute: int) -> Process:
        opened.append(Process(tmp_path / "imagen.db", clock, per_minute))
        return opened[-1]

    yield open_one
    for one in opened:
        one.database.close()


def most_in_a_minute(made: list[float]) -> int:
    return max(sum(at <= other < at + 60 for other in made) for at in made)


async def test_after_a_minute_s_allowance_calls_go_at_its_rate(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one = open_process(60)
    for _ in range(150):
        await one.call()
    assert one.made[55] < 30
    assert 85 <= clock.monotonic() <= 100
    assert most_in_a_minute(one.made[64:]) <= 61


async def test_two_processes_have_one_allowance(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    both = [open_process(120), open_process(120)]
    for number in range(360):
        await both[number % 2].call()
    made = sorted(both[0].made + both[1].made)
    assert 110 <= clock.monotonic() <= 130  # 240 of them at two a second
    assert most_in_a_minute(made[120:]) <= 124


async def test_a_crowd_goes_by_the_dozen_and_everybody_goes(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one = open_process(60 * CHUNK)
    taken = 0
    take_calls = one.limits.take_calls

    async def counted(account: str, count: int, *, now: float) -> float:
        nonlocal taken
        wait = await take_calls(account, count, now=now)
        taken += count if wait == 0 else 0
        return wait

    one.limits.take_calls = counted  # type: ignore[method-assign]
    await asyncio.gather(*(one.call() for _ in range(CHUNK * 10)))
    assert len(one.made) == CHUNK * 10
    assert taken == CHUNK * 10
    assert clock.monotonic() < 1.0


async def test_accounts_do_not_wait_for_each_other(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one = open_process(60)
    for _ in range(100):
        await one.call()
    assert clock.monotonic() > 30
    before = clock.monotonic()
    await one.call("another account")
    assert clock.monotonic() == before


async def test_what_is_left_of_a_chunk_is_not_kept_from_others(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one = open_process(60 * CHUNK)
    await one.call()
    clock.advance(CHUNK_LIVES_SECONDS + 1)
    await one.limits.refused(
        ACCOUNT, Refusal(creates=False, retry_after=30.0, detail="throttled"), now=clock.now().timestamp()
    )
    before = clock.monotonic()
    await one.call()  # from a new chunk, which is only given when the gate opens
    assert clock.monotonic() - before >= 30.0


async def test_a_refusal_keeps_every_process_waiting_until_its_reset(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one, other = open_process(3000), open_process(3000)
    await one.call()
    refused_at = clock.monotonic()
    await one.budget.refused(ACCOUNT, retry_after=12.0, detail="throttled")
    await other.call()
    await one.call()
    assert other.made[-1] - refused_at >= 12.0
    assert one.made[-1] - refused_at >= 12.0
    state = await one.limits.show(ACCOUNT, now=clock.now().timestamp())
    assert (state.calls["refusals"], state.creates["refusals"]) == (1, 0)


async def test_a_store_that_fails_holds_no_call_up(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one = open_process(60)
    await one.call()
    one.database.close()
    for file in one.database.path.parent.glob("imagen.db*"):
        file.unlink()
    one.database.path.write_bytes(b"this is no database" * 100)
    await asyncio.gather(*(one.call() for _ in range(100)))
    await one.budget.refused(ACCOUNT, retry_after=12.0, detail="throttled")
    await one.call()
    assert len(one.made) == 102
    assert clock.monotonic() == 0.0


async def test_who_goes_away_while_waiting_holds_nobody_up(
    open_process: Callable[[int], Process], clock: ManualClock
) -> None:
    one = open_process(60)
    for _ in range(60):
        await one.call()
    waiting = [asyncio.ensure_future(one.call()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting[:9]:
        task.cancel()
    await asyncio.wait(waiting)
    assert waiting[9].exception() is None
    async with asyncio.timeout(10):
        await one.call()
