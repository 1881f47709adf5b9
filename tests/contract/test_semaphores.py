"""Places in named limits: counted exactly for all processes of one database, given in the order of coming."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fakes.clock import ManualClock
from imagen.domain.limits import AccountRules
from imagen.domain.semaphore import Lease
from imagen.errors import Draining, InvalidInput, NotFound, RateLimited
from imagen.instrumentation.clock import SystemClock
from imagen.limits.admission import Admission
from imagen.limits.line import Line
from imagen.ports import Clock
from imagen.service.semaphore_lease import HeldSemaphore, SemaphoreLeases
from imagen.store.database import Database
from imagen.store.limits import SqlLimits
from imagen.store.semaphores import SqlSemaphores
from waiting import until

pytestmark = pytest.mark.anyio


class Process:
    """All that one process has: a database of its own on the shared file, and a line of its own."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.clock = clock
        self.database = Database(path)
        self.semaphores = SqlSemaphores(self.database)
        limits = SqlLimits(self.database, AccountRules())
        self.line = Line(limits=limits, clock=clock)
        self.admission = Admission(limits=limits, line=self.line, clock=clock, creates_per_minute=600)
        self.leases = SemaphoreLeases(admission=self.admission, semaphores=self.semaphores, clock=clock)

    def now(self) -> float:
        return self.clock.now().timestamp()

    async def take(
        self, *, wait: float = 20.0, ttl: float = 60.0, holder: str = "tests", turn: str = "tests"
    ) -> Lease:
        return await self.leases.take("gpu", holder=holder, ttl_seconds=ttl, wait_seconds=wait, turn=turn)

    async def held(self) -> int:
        return (await self.semaphores.show("gpu", now=self.now()))[0].held

    async def waiting(self) -> int:
        return (await self.semaphores.show("gpu", now=self.now()))[0].waiting


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    with ExitStack() as closing:

        def start(clock: Clock | None = None) -> Process:
            process = Process(tmp_path / "imagen.db", clock or SystemClock())
            closing.callback(process.database.close)
            return process

        yield start


@pytest.fixture
async def process(processes: Callable[..., Process]) -> AsyncIterator[Process]:
    one = processes()
    await one.semaphores.register("gpu", 1)
    yield one
    one.line.close()


class Room:
    """Counts who is inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.order: list[str] = []

    async def visit(self, process: Process, name: str, *, turn: str = "tests", stay: float = 0.01) -> None:
        lease = await process.take(wait=50, holder=name, turn=turn)
        self.order.append(name)
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(stay)
        self.inside -= 1
        await process.leases.give_back("gpu", lease.id)


# --- never more than the limit ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
async def test_fifty_tasks_never_hold_more_than_the_limit(process: Process, limit: int) -> None:
    await process.semaphores.register("gpu", limit)
    room = Room()
    await asyncio.gather(*(room.visit(process, str(one), turn=f"caller {one % 5}") for one in range(50)))
    assert len(room.order) == 50
    assert room.most == limit
    assert await process.held() == 0


async def test_two_processes_never_hold_more_than_the_limit_together(
    process: Process, processes: Callable[..., Process]
) -> None:
    await process.semaphores.register("gpu", 3)
    other, room = processes(), Room()
    await asyncio.gather(*(room.visit((process, other)[one % 2], str(one)) for one in range(50)))
    assert len(room.order) == 50
    assert room.most == 3


async def test_a_semaphore_keeps_nobody_out_of_another(process: Process) -> None:
    await process.semaphores.register("cpu", 1)
    await process.take()
    waiting = asyncio.create_task(process.take())
    lease = await process.leases.take("cpu", holder="x", ttl_seconds=5, wait_seconds=5, turn="tests")
    assert lease.semaphore == "cpu"
    assert not waiting.done()
    waiting.cancel()


# --- first come, first served ----------------------------------------------------------------------------


async def test_who_came_first_goes_first(process: Process) -> None:
    room = Room()
    first = await process.take()
    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(room.visit(process, str(number), stay=0)))
        await asyncio.sleep(0)
    await process.leases.give_back("gpu", first.id)
    await asyncio.gather(*tasks)
    assert room.order == [str(number) for number in range(10)]


async def test_who_came_first_goes_first_whichever_process_it_is_in(
    process: Process, processes: Callable[..., Process]
) -> None:
    other, room = processes(), Room()
    first = await process.take()
    tasks = []
    for number in range(6):
        here = (process, other)[number % 2]
        tasks.append(asyncio.create_task(room.visit(here, str(number), stay=0.05)))
        await asyncio.sleep(0.3)  # each process has told the other that it waits
    await process.leases.give_back("gpu", first.id)
    await asyncio.gather(*tasks)
    assert room.order == [str(number) for number in range(6)]


class NeverRings(SystemClock):
    """Whoever sleeps by it sleeps on until somebody wakes them."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


async def test_who_waits_is_woken_when_a_place_is_given_back(processes: Callable[..., Process]) -> None:
    process = processes(NeverRings())
    await process.semaphores.register("gpu", 1)
    first = await process.take()
    waiting = asyncio.create_task(process.take())
    await until(process.waiting)
    await process.leases.give_back("gpu", first.id)
    async with asyncio.timeout(10):
        await waiting
    process.line.close()


# --- no place --------------------------------------------------------------------------------------------


async def test_who_does_not_wait_takes_what_is_free_and_nothing_else(process: Process) -> None:
    assert (await process.take(wait=0)).holder == "tests"
    with pytest.raises(RateLimited, match="no place in semaphore 'gpu' is free now") as caught:
        await process.take(wait=0)
    assert caught.value.retry_after == 5
    assert await process.held() == 1


async def test_a_short_wait_is_short_behind_a_long_one(process: Process) -> None:
    await process.take()
    patient = asyncio.create_task(process.take(wait=60))
    await until(process.waiting)
    began = time.perf_counter()
    with pytest.raises(RateLimited, match=r"became free in 0\.5 s"):
        await process.take(wait=0.5)
    assert 0.4 < time.perf_counter() - began < 15
    assert not patient.done()
    patient.cancel()


async def test_who_stops_waiting_holds_nothing_and_is_in_nobodys_way(process: Process) -> None:
    first = await process.take()
    gone = asyncio.create_task(process.take())
    await until(process.waiting)
    behind = asyncio.create_task(process.take())
    gone.cancel()
    await process.leases.give_back("gpu", first.id)
    assert (await behind).semaphore == "gpu"
    assert gone.cancelled()
    assert await process.held() == 1


async def test_stopping_in_the_moment_of_being_let_in_leaves_nothing_held(process: Process) -> None:
    for _ in range(20):
        first = await process.take()
        waiting = asyncio.create_task(process.take())
        await until(process.waiting)
        await process.leases.give_back("gpu", first.id)
        waiting.cancel()
        await asyncio.wait({waiting})
        if not waiting.cancelled():
            await process.leases.give_back("gpu", waiting.result().id)
        await until(lambda: _none_held(process))


async def _none_held(process: Process) -> bool:
    return await process.held() == 0


async def test_an_unknown_semaphore_is_not_found(process: Process) -> None:
    with pytest.raises(NotFound, match="External semaphore 'nope' not found"):
        await process.leases.take("nope", holder="x", ttl_seconds=5, wait_seconds=5, turn="x")
    with pytest.raises(NotFound):
        await process.semaphores.show("nope", now=process.now())
    with pytest.raises(NotFound):
        await process.semaphores.remove("nope")


async def test_who_waits_for_a_semaphore_that_is_removed_is_told_so(process: Process) -> None:
    await process.take()
    waiting = asyncio.create_task(process.take())
    await until(process.waiting)
    await process.semaphores.remove("gpu")
    process.leases.look_again()
    with pytest.raises(NotFound):
        await waiting


async def test_a_process_that_shuts_down_sends_those_who_wait_away(process: Process) -> None:
    await process.take()
    waiting = asyncio.create_task(process.take())
    await until(process.waiting)
    process.line.close()
    with pytest.raises(Draining):
        await waiting


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("wait", {"wait": -1}),
        ("wait", {"wait": 86_401}),
        ("wait", {"wait": float("nan")}),
        ("ttl", {"ttl": 0.5}),
        ("ttl", {"ttl": 86_401}),
        ("ttl", {"ttl": float("inf")}),
        ("holder", {"holder": ""}),
        ("holder", {"holder": "two\nlines"}),
        ("holder", {"holder": "x" * 101}),
    ],
)
async def test_what_makes_no_sense_is_named(process: Process, field: str, given: dict[str, float]) -> None:
    with pytest.raises(InvalidInput) as caught:
        await process.take(**given)  # type: ignore[arg-type]
    assert [problem.field for problem in caught.value.problems] == [field]
    assert await process.held() == 0


# --- limits that change ----------------------------------------------------------------------------------


async def test_a_lowered_limit_takes_no_place_away_and_lets_nobody_in(process: Process) -> None:
    await process.semaphores.register("gpu", 3)
    held = [await process.take() for _ in range(3)]
    await process.semaphores.register("gpu", 2)
    assert await process.held() == 3
    await process.leases.give_back("gpu", held.pop().id)
    with pytest.raises(RateLimited):
        await process.take(wait=0)
    await process.leases.give_back("gpu", held.pop().id)
    assert (await process.take(wait=0)).semaphore == "gpu"
    with pytest.raises(RateLimited):
        await process.take(wait=0)


async def test_a_raised_limit_lets_in_who_waits(process: Process) -> None:
    await process.take()
    waiting = asyncio.create_task(process.take())
    await until(process.waiting)
    await process.semaphores.register("gpu", 2)
    process.leases.look_again()
    await waiting
    assert await process.held() == 2


# --- leases that end -------------------------------------------------------------------------------------


async def test_a_lease_that_was_not_renewed_frees_its_place(processes: Callable[..., Process]) -> None:
    clock = ManualClock()
    process = processes(clock)
    await process.semaphores.register("gpu", 1)
    lease = await process.take(ttl=10)
    clock.advance(9)
    renewed = await process.leases.renew("gpu", lease.id, ttl_seconds=10)
    assert renewed.expires_at == process.now() + 10
    clock.advance(9)
    assert await process.held() == 1
    clock.advance(2)
    assert await process.held() == 0
    with pytest.raises(NotFound, match="no such lease, or it has ended"):
        await process.leases.renew("gpu", lease.id, ttl_seconds=10)
    second = await process.take()
    with pytest.raises(NotFound):
        await process.leases.renew("gpu", lease.id, ttl_seconds=10)
    await process.leases.give_back("gpu", lease.id)  # no mistake, and not the new one's end
    assert await process.held() == 1
    await process.leases.give_back("gpu", second.id)


async def test_who_waits_gets_the_place_of_a_process_that_died(process: Process) -> None:
    await process.take(ttl=1)
    began = time.perf_counter()
    await process.take(wait=20)
    assert 0.8 < time.perf_counter() - began < 15


async def test_a_line_that_died_is_in_nobodys_way(
    process: Process, processes: Callable[..., Process]
) -> None:
    dead = processes()
    first = await process.take()
    waiting = asyncio.create_task(dead.take())
    await until(process.waiting)
    assert dead.line._dispatcher is not None
    dead.line._dispatcher.cancel()  # kill -9: it says nothing any more, and never leaves the line
    await dead.semaphores.register("another", 1)  # after all that it asked for
    await process.leases.give_back("gpu", first.id)
    assert (await process.take(wait=20)).semaphore == "gpu"
    waiting.cancel()


# --- who holds, who waits --------------------------------------------------------------------------------


async def test_holders_and_those_who_wait_are_shown(
    process: Process, processes: Callable[..., Process]
) -> None:
    other = processes()
    await process.semaphores.register("gpu", 2)
    await process.semaphores.register("cpu", 7)
    before = process.now()
    await process.take(holder="ann", ttl=60)
    await other.take(holder="bob", ttl=120)
    waiting = [asyncio.create_task(one.take()) for one in (process, process, other)]

    async def three() -> bool:
        return await process.waiting() == 3

    await until(three)
    cpu, gpu = await process.semaphores.list(now=process.now())
    assert (cpu.name, cpu.limit, cpu.held, cpu.waiting) == ("cpu", 7, 0, 0)
    assert (gpu.name, gpu.limit, gpu.held, gpu.waiting) == ("gpu", 2, 2, 3)
    shown, holders = await other.semaphores.show("gpu", now=process.now())
    assert shown == gpu
    assert [one.holder for one in holders] == ["ann", "bob"]
    assert before <= holders[0].since <= holders[1].since <= process.now()
    assert [round(one.expires_at - one.since) for one in holders] == [60, 120]
    for task in waiting:
        task.cancel()


# --- held for a block ------------------------------------------------------------------------------------


def hold(process: Process, *, ttl: float = 1.0, wait: float = 5.0) -> HeldSemaphore:
    return process.leases.hold("gpu", holder="block", ttl_seconds=ttl, wait_seconds=wait, turn="block")


async def test_a_block_holds_its_place_for_longer_than_a_lease_lasts(process: Process) -> None:
    async with hold(process) as held:
        await asyncio.sleep(2.5)
        assert held.lost is None
        with pytest.raises(RateLimited):
            await process.take(wait=0)
    assert await process.held() == 0
    assert not held.is_held


async def test_a_block_that_fails_gives_its_place_back(process: Process) -> None:
    with pytest.raises(ZeroDivisionError):
        async with hold(process):
            raise ZeroDivisionError
    assert await process.held() == 0


async def test_a_block_that_is_canceled_gives_its_place_back(process: Process) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with hold(process):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await process.held() == 0


async def test_a_block_learns_that_its_place_was_taken_away(process: Process) -> None:
    async def work() -> None:
        async with hold(process) as held:
            held.check()
            await process.semaphores.remove("gpu")
            async with asyncio.timeout(15):
                await held.until_lost()
            with pytest.raises(NotFound, match="was lost"):
                held.check()

    with pytest.raises(NotFound, match="was lost: its lease ended, or somebody removed the semaphore"):
        await work()


async def test_a_block_that_stood_still_for_too_long_has_lost_its_place(process: Process) -> None:
    async def work() -> None:
        async with hold(process):
            time.sleep(1.2)  # noqa: ASYNC251 - the whole loop stands still
            await asyncio.sleep(0.05)

    with pytest.raises(NotFound, match="it could not be renewed for 1 s"):
        await work()


async def test_the_blocks_own_error_is_the_one_that_is_raised(process: Process) -> None:
    async def work() -> None:
        async with hold(process) as held:
            await process.semaphores.remove("gpu")
            await held.until_lost()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()


async def test_closing_gives_back_what_is_held_still(process: Process) -> None:
    held = hold(process)
    await held.take()
    assert await process.held() == 1
    with pytest.raises(RuntimeError, match="held already"):
        await held.take()
    await process.leases.aclose()
    assert await process.held() == 0
