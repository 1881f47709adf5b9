"""What `ports.Ledger` promises, of every implementation."""

from __future__ import annotations

import asyncio
from datetime import timedelta, timezone

import pytest

from fakes.make import make_entry
from imagen.domain.money import Usd
from imagen.domain.usage import UsageGroup, UsageQuery, summarize
from imagen.errors import NotFound
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


async def test_entries_are_for_a_sink_until_it_has_them_the_oldest_first(ledger: Ledger):
    await ledger.record([make_entry(number) for number in (3, 1, 2)])
    first = await ledger.unsunk("a", limit=2)
    assert [entry.id[-1] for entry in first] == ["1", "2"]
    assert await ledger.count_unsunk("a") == 3
    await ledger.sunk("a", first)
    assert [entry.id[-1] for entry in await ledger.unsunk("a", limit=9)] == ["3"]
    await ledger.sunk("a", await ledger.unsunk("a", limit=9))
    assert (list(await ledger.unsunk("a", limit=9)), await ledger.count_unsunk("a")) == ([], 0)


async def test_another_sink_gets_all_of_it(ledger: Ledger):
    await ledger.record([make_entry(number) for number in range(5)])
    await ledger.sunk("m", (await ledger.unsunk("m", limit=9))[:3])
    for other in ("a", "z"):
        assert await ledger.count_unsunk(other) == 5
        assert [entry.id[-1] for entry in await ledger.unsunk(other, limit=9)] == ["3", "4", "0", "1", "2"]
        assert [entry.id[-1] for entry in await ledger.unsunk(other, limit=3)] == ["3", "4", "0"]


# --- added up, and page by page ---


async def test_the_ledger_adds_up_what_a_query_takes(ledger: Ledger):
    entries = [
        make_entry(1, cost=Usd(10), quoted=Usd(12), latency_ms=100, key="key_1"),
        make_entry(2, cost=None, latency_ms=300, outcome="failed", images=0),
        make_entry(3, cost=Usd(0), saved=Usd(10), outcome="cached"),
        make_entry(4, cost=Usd(5), latency_ms=200, backend="emulator"),
    ]
    await ledger.record(entries)
    for query in (
        UsageQuery(),
        UsageQuery(by="key"),
        UsageQuery(by="day", since=entries[1].created_at, until=entries[3].created_at),
        UsageQuery(key="key_1"),
        UsageQuery(keyless="kai", practice=frozenset({"emulator"})),
        UsageQuery(keyless="nobody"),
    ):
        assert await ledger.summary(query) == summarize(entries, query)
    summary = await ledger.summary(UsageQuery(by="key"))
    assert [(group.name, group.cost) for group in summary.groups] == [("key_1", Usd(10)), ("(none)", Usd(5))]


async def test_an_empty_ledger_adds_up_to_nothing(ledger: Ledger):
    summary = await ledger.summary(UsageQuery())
    assert (summary.groups, summary.total) == ((), UsageGroup(name="total"))


async def test_pages_follow_one_another(ledger: Ledger):
    await ledger.record([make_entry(number) for number in range(5)])
    first = await ledger.page(UsageQuery(), limit=2)
    second = await ledger.page(UsageQuery(), before=first[-1].id, limit=2)
    assert [entry.id[-1] for entry in (*first, *second)] == ["4", "3", "2", "1"]
    with pytest.raises(NotFound):
        await ledger.page(UsageQuery(), before="pred_nobody", limit=2)
