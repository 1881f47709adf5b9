"""What `ports.Ledger` promises, of every implementation."""

from __future__ import annotations

import asyncio
from datetime import timedelta, timezone

import pytest

from fakes.make import make_entry
from imagen.domain.money import Usd
from imagen.ports import Ledger

pytestmark = pytest.mark.anyio


async def test_an_entry_comes_back_whole(ledger: Ledger):
    entry = make_entry(cost=Usd(3000), upstream_id="up-1", images=4, outcome="canceled", seed=None)
    await ledger.record([entry])
    assert list(await ledger.entries()) == [entry]


@pytest.mark.parametrize("cost", [None, Usd(0), Usd(1), Usd(10**12)])
async def test_costs_are_exact_and_unknown_is_not_zero(ledger: Ledger, cost: Usd | None):
    await ledger.record([make_entry(cost=cost)])
    assert (await ledger.entries())[0].cost == cost


async def test_recorded_twice_is_recorded_once_and_the_first_stays(ledger: Ledger):
    await ledger.record([make_entry(cost=Usd(1))])
    await ledger.record([make_entry(cost=Usd(2)), make_entry(cost=Usd(3)), make_entry(2)])
    assert [entry.cost for entry in await ledger.entries()] == [None, Usd(1)]


async def test_recording_nothing_does_nothing(ledger: Ledger):
    await ledger.record([])
    assert list(await ledger.entries()) == []


async def test_entries_are_newest_first_since_then_and_so_many(ledger: Ledger):
    await ledger.record([make_entry(number) for number in (2, 4, 1, 3)])
    assert [entry.id[-1] for entry in await ledger.entries()] == ["4", "3", "2", "1"]
    assert [entry.id[-1] for entry in await ledger.entries(limit=2)] == ["4", "3"]
    since = make_entry(3).created_at
    assert [entry.id[-1] for entry in await ledger.entries(since=since)] == ["4", "3"]
    elsewhere = since.astimezone(timezone(timedelta(hours=9)))
    assert [entry.id[-1] for entry in await ledger.entries(since=elsewhere, limit=9)] == ["4", "3"]


async def test_fifty_writers_of_the_same_entry_write_one(ledger: Ledger):
    await asyncio.gather(*(ledger.record([make_entry(cost=Usd(5))]) for _ in range(50)))
    assert [entry.cost for entry in await ledger.entries()] == [Usd(5)]


async def test_a_thousand_entries_at_once(ledger: Ledger):
    await ledger.record([make_entry(number, cost=Usd(number)) for number in range(1000)])
    assert sum(entry.cost.micros for entry in await ledger.entries() if entry.cost) == 499_500
