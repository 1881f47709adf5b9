"""What the gateway remembers for a while: for how long, how much of it, and what is forgotten first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes.clock import ManualClock
from imagen.domain.limits import AccountState
from imagen.errors import Draining
from imagen.server.access import Proven
from imagen.server.agent_calls import AgentCall, AgentCalls
from imagen.server.kept import REFUSED_SECONDS, Refusals
from imagen.server.rates import Rates

pytestmark = pytest.mark.anyio


class Account:
    """A backend that counts how often its token was tried; that takes a while."""

    def __init__(self, account: str, clock: ManualClock, *, seconds: float = 0.0) -> None:
        self.account = account
        self.probes = 0
        self._clock = clock
        self._seconds = seconds

    async def probe(self) -> None:
        self.probes += 1
        self._clock.advance(self._seconds)


class Limiters:
    """Limiters that count how often they were looked at."""

    def __init__(self) -> None:
        self.looks: list[str] = []

    async def show(self, account: str, *, now: float) -> AccountState:
        self.looks.append(account)
        return AccountState(concurrent=1, running=0, creates={}, calls={}, spare_creates=5)


async def proves(proven: Proven, account: Any) -> bool:
    """Whether the service was asked."""
    before = account.probes
    await proven.check(account)
    return bool(account.probes > before)


async def test_a_token_is_tried_again_a_minute_after_its_last_trial_began() -> None:
    clock = ManualClock()
    proven, account = Proven(clock), Account("a", clock, seconds=20)
    assert await proves(proven, account)  # it ends at 20 seconds
    clock.advance(39)
    assert not await proves(proven, account)
    clock.advance(1)
    assert await proves(proven, account)


async def test_the_token_that_was_tried_longest_ago_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imagen.server.access._MOST_PROVEN", 2)
    clock = ManualClock()
    proven = Proven(clock)
    a, b, c = (Account(name, clock) for name in "abc")
    await proves(proven, a)
    clock.advance(50)
    await proves(proven, b)
    clock.advance(10)
    await proves(proven, a)  # tried anew: b is the older one now
    assert not await proves(proven, b)
    await proves(proven, c)
    assert [await proves(proven, one) for one in (a, c, b)] == [False, False, True]


async def test_a_limiter_is_looked_at_once_a_second_and_the_oldest_look_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imagen.server.rates._MOST_ACCOUNTS", 2)
    clock, limiters = ManualClock(), Limiters()
    limits: Any = limiters
    rates = Rates(limits, clock)
    for account in ("a", "a", "b", "a", "c"):  # being asked for keeps nothing
        assert (await rates.headers(account, creates=True))["ratelimit-remaining"] == "5"
    assert limiters.looks == ["a", "b", "c"]
    await rates.headers("b", creates=True)
    await rates.headers("a", creates=True)
    assert limiters.looks == ["a", "b", "c", "a"]
    clock.advance(1)
    await rates.headers("a", creates=True)
    assert limiters.looks == ["a", "b", "c", "a", "a"]


def test_what_was_refused_is_known_for_some_minutes_after_the_last_time() -> None:
    clock = ManualClock()
    refusals = Refusals(clock)
    refusals.add("a")
    clock.advance(REFUSED_SECONDS - 1)
    assert "a" in refusals
    refusals.add("a")
    clock.advance(REFUSED_SECONDS - 1)
    assert "a" in refusals
    assert "b" not in refusals
    clock.advance(1)
    assert "a" not in refusals


def test_what_was_refused_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen.server.kept.MOST_REFUSALS", 2)
    refusals = Refusals(ManualClock())
    for what in ("a", "b", "a"):
        refusals.add(what)
    assert "b" in refusals  # being asked for keeps nothing
    refusals.add("c")
    assert [what in refusals for what in "abc"] == [True, False, True]


async def test_calls_that_ended_are_known_until_so_many_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen.server.agent_calls._MOST_ENDED", 2)
    calls = AgentCalls(set(), reason=lambda: Draining("it ends"))
    a, b, c = (AgentCall(scope="admin", session="s", request=request) for request in "abc")
    for call in (a, b, a, c):  # an id that is used again is no younger for it
        task = asyncio.create_task(asyncio.sleep(0))
        calls.begin(call, task)
        await task
        await asyncio.sleep(0)
    assert [calls.cancel(call) for call in (a, b, c)] == [False, True, True]
