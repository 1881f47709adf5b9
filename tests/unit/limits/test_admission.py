"""What an admitted prediction holds: for how long, and what becomes of it after a 429."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import ManualClock
from fakes.make import make_prediction
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.events import Event, LetIn, Throttled
from imagen.domain.limits import AccountRules, Need, Patience
from imagen.domain.prediction import Status
from imagen.errors import BackendRateLimited, Draining, ImagenError, NotFound, RateLimited
from imagen.limits.admission import Admission
from imagen.limits.line import Line
from imagen.store.database import Database
from imagen.store.limits import SqlLimits
from imagen.store.predictions import SqlPredictionStore
from imagen.store.semaphores import SqlSemaphores

pytestmark = pytest.mark.anyio
ACCOUNT = "abc@https://api.example"
PATIENCE = Patience(line_seconds=60.0)


class StandingClock(ManualClock):
    """Who sleeps sleeps until the test lets time pass."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = asyncio.Condition()

    async def sleep(self, seconds: float) -> None:
        ends = self.monotonic() + seconds
        async with self._moved:
            await self._moved.wait_for(lambda: self.monotonic() >= ends)

    async def let_pass(self, seconds: float) -> None:
        self.advance(seconds)
        async with self._moved:
            self._moved.notify_all()
        await settled()


class House:
    """One process, with a place for one prediction at a time."""

    def __init__(self, path: Path, clock: ManualClock) -> None:
        rules = AccountRules(concurrent=1, creates_per_minute=100_000)
        self.clock = clock
        self.database = Database(path)
        self.limits = SqlLimits(self.database, rules)
        self.store = SqlPredictionStore(self.database)
        self.semaphores = SqlSemaphores(self.database)
        self.line = Line(limits=self.limits, clock=clock)
        self.admission = Admission(
            limits=self.limits, line=self.line, clock=clock, creates_per_minute=rules.creates_per_minute
        )
        self.events: list[Event] = []

    def admit(self, need: Need, patience: Patience = PATIENCE) -> Any:
        return self.admission.admit(need, patience=patience, notify=self.events.append)

    async def running(self) -> int:
        return (await self.limits.show(ACCOUNT, now=self.admission.now())).running

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
async def house(tmp_path: Path, clock: ManualClock) -> AsyncIterator[House]:
    one = House(tmp_path / "imagen.db", clock)
    yield one
    one.line.close()
    await asyncio.sleep(0.05)  # the line's task ends
    one.database.close()


def need(number: int, **facts: Any) -> Need:
    given: dict[str, Any] = {"holder": "kai", "lasts_seconds": 100.0, "account": ACCOUNT}
    return Need(lease=f"lease-{number}", **given | facts)


def throttled(seconds: float | None) -> BackendRateLimited:
    return BackendRateLimited("429: throttled", retry_after=seconds)


async def settled() -> None:
    """Let all who can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0.01)


# --- after a 429 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [UNKNOWN, Caller(name="another"), Caller(name="team", key="key_1")])
async def test_who_was_refused_comes_first_again(tmp_path: Path, others: Caller) -> None:
    clock = StandingClock()
    house = House(tmp_path / "imagen.db", clock)
    order: list[str] = []

    async def wait(number: int) -> None:
        async with house.admit(need(number, caller=others), Patience(line_seconds=3600.0)):
            order.append(f"waiting {number}")

    coming_back: asyncio.Future[None]
    try:
        async with house.admit(need(1)) as place:
            clock.advance(1.0)
            waiting = [asyncio.ensure_future(wait(number)) for number in (2, 3)]
            await settled()
            await place.refused(throttled(5.0))
            assert await house.running() == 0
            coming_back = asyncio.ensure_future(place.again())
            for _ in range(4):
                await clock.let_pass(1.0)
            assert (coming_back.done(), order) == (False, [])
            await clock.let_pass(1.5)
            assert (coming_back.done(), order) == (True, [])
            assert await house.running() == 1
            order.append("refused")
        for _ in range(30):  # one at a time: what was refused taught the gate to be careful
            if all(one.done() for one in waiting):
                break
            await clock.let_pass(10.0)
        await asyncio.gather(*waiting)
        assert order == ["refused", "waiting 2", "waiting 3"]
        assert await house.running() == 0
    finally:
        house.line.close()
        await asyncio.gather(coming_back, *waiting, return_exceptions=True)
        await settled()
        house.database.close()


async def test_a_refusal_gives_the_place_back_and_closes_the_gate_until_its_reset(house: House) -> None:
    async with house.admit(need(1)) as place:
        refused_at = house.admission.now()
        await place.refused(throttled(20.0))
        assert await house.running() == 0
        (told,) = house.told(Throttled)
        assert told.seconds == 20.0
        await place.again()
        assert 20.0 <= house.admission.now() - refused_at < 22.0
        assert await house.running() == 1
    assert await house.running() == 0


async def test_a_refusal_without_a_reset_pauses_longer_each_time(house: House) -> None:
    waits = []
    async with house.admit(need(1), Patience(line_seconds=3600.0)) as place:
        for _ in range(3):
            before = house.admission.now()
            await place.refused(throttled(None))
            await place.again()
            waits.append(house.admission.now() - before)
    assert waits[0] >= 1.0
    assert waits == sorted(waits)
    assert waits[2] >= 3.5


async def test_whose_patience_ends_before_the_reset_is_told_so_and_holds_nothing(house: House) -> None:
    began = house.admission.now()
    async with house.admit(need(1), Patience(line_seconds=10.0)) as place:
        house.clock.advance(4.0)
        await place.refused(throttled(60.0))
        with pytest.raises(RateLimited, match="nothing was bought") as caught:
            await place.again()
    assert caught.value.retry_after
    # Of its patience only what was left: coming back does not begin it anew.
    assert 9.0 <= house.admission.now() - began <= 12.0
    assert await house.running() == 0
    assert house.line.waiting == 0


async def test_who_comes_back_while_the_process_ends_is_sent_away(house: House) -> None:
    with suppress(Draining):
        async with house.admit(need(1)) as place:
            await place.refused(throttled(5.0))
            house.line.close()
            with pytest.raises(Draining):
                await place.again()
    assert await house.running() == 0


async def test_who_was_refused_and_comes_back_is_not_written_down_twice(house: House) -> None:
    intent = make_prediction(1, sent_at=None)
    async with house.admit(_intended(intent)) as place:
        written = place.take_intent()
        assert written is not None
        assert written.sent_at == house.clock.now()
        await place.refused(throttled(1.0))
        await place.again()
        assert [one.id for one in await house.store.list(limit=5)] == [intent.id]


def _intended(intent: Any) -> Need:
    return Need(lease=intent.id, holder="kai", lasts_seconds=100.0, account=ACCOUNT, intent=intent)


# --- at the end ------------------------------------------------------------------------------------------


async def test_what_is_over_is_given_back_and_the_next_goes_at_once(house: House) -> None:
    async def next_one() -> float:
        async with house.admit(need(2)):
            return house.admission.now()

    async with house.admit(need(1)):
        waiting = asyncio.ensure_future(next_one())
        await settled()
    await waiting
    assert await house.running() == 0
    assert len(house.told(LetIn)) == 2


async def test_what_nobody_saw_end_keeps_its_place_until_its_lease_ends(house: House) -> None:
    going_on = make_prediction(1, status=Status.PROCESSING, upstream_id="up-1")
    async with house.admit(need(1, lasts_seconds=100.0)) as place:
        place.ended(going_on)
    assert await house.running() == 1
    house.clock.advance(99.0)
    assert await house.running() == 1
    house.clock.advance(2.0)
    assert await house.running() == 0


async def test_work_that_breaks_off_keeps_its_place_as_it_may_go_on_upstream(house: House) -> None:
    with pytest.raises(RuntimeError):
        async with house.admit(need(1)):
            raise RuntimeError("broken off")
    assert await house.running() == 1


async def test_work_that_breaks_off_after_its_end_was_written_down_holds_nothing(house: House) -> None:
    intent = make_prediction(1, sent_at=None)
    with suppress(RuntimeError):
        async with house.admit(_intended(intent)):
            await house.store.save(make_prediction(1, status=Status.SUCCEEDED, upstream_id="up-1"))
            raise RuntimeError("broken off")
    assert await house.running() == 0


async def test_what_runs_already_waits_for_nobody_and_others_wait_for_it(house: House) -> None:
    async with house.admit(need(1)), house.admit(need(2, running=True)):
        assert await house.running() == 2
        with pytest.raises(RateLimited):
            async with house.admit(need(3), Patience(line_seconds=0.5)):
                pass
    assert await house.running() == 0


async def test_a_place_that_cannot_be_given_back_is_no_error_of_the_work(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.admit(need(1)):
        spoil(house.database)
    assert "until they end by themselves" in caplog.text


async def test_a_semaphore_that_there_is_not_is_not_waited_for(house: House) -> None:
    with pytest.raises(NotFound, match="External semaphore 'none' not found"):
        async with house.admit(need(1, semaphore="none", intent=make_prediction(1, sent_at=None))):
            pass
    assert await house.running() == 0


async def test_a_store_that_fails_lets_nobody_in_and_says_so(house: House) -> None:
    async with house.admit(need(1)):
        pass
    spoil(house.database)
    with pytest.raises(ImagenError) as caught:
        async with house.admit(need(2)):
            pass
    assert caught.value.code.startswith("store")
    assert house.line.waiting == 0


async def test_who_goes_away_while_waiting_leaves_no_intent(house: House) -> None:
    intent = make_prediction(7, sent_at=None)
    async with house.admit(need(1)):
        waiting = asyncio.ensure_future(_hold(house.admit(_intended(intent), Patience(line_seconds=1e6))))
        await settled()
        waiting.cancel()
        await asyncio.wait([waiting])
    await settled()
    assert await house.running() == 0
    assert list(await house.store.list(limit=5)) == []


async def test_an_intent_that_cannot_be_written_down_keeps_nobody_waiting_for_ever(house: House) -> None:
    too_large = make_prediction(1, sent_at=None, seed=10**30)
    async with house.admit(need(2)):
        waiting = [
            asyncio.ensure_future(_hold(house.admit(one, Patience(line_seconds=1e6))))
            for one in (_intended(too_large), need(3, lasts_seconds=1e7))
        ]
        await settled()
    _, left = await asyncio.wait(waiting, timeout=2)
    for one in left:
        one.cancel()
    assert not left, "who was asked for waits for an answer that never comes"
    assert isinstance(waiting[0].exception(), ImagenError)
    async with house.admit(need(4)):
        assert await house.running() == 1


async def _hold(admitted: Any) -> None:
    async with admitted:
        pass


def spoil(database: Database) -> None:
    """Replace the database by something that is none."""
    database.close()
    for file in database.path.parent.glob("imagen.db*"):
        file.unlink()
    database.path.write_bytes(b"this is no database" * 100)
