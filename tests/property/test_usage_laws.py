"""Groups are the sum of their parts, percentiles are of the values themselves, and the database adds up as memory does."""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.clock import BEGINNING
from fakes.make import make_entry
from imagen.domain.feedback import Feedback
from imagen.domain.money import Usd
from imagen.domain.usage import (
    GROUPINGS,
    SUMMED,
    UsageEntry,
    UsageQuery,
    percentile,
    sum_usage,
    summarize,
)
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from imagen.store.tables import feedback, usage

MONEY = st.none() | st.integers(0, 10**9).map(Usd)
OUTCOMES = st.sampled_from(["succeeded", "failed", "canceled", "aborted", "unknown", "cached", "shared"])


@st.composite
def entries(draw: st.DrawFn) -> list[UsageEntry]:
    size = draw(st.integers(0, 30))
    return [
        make_entry(
            number,
            created_at=BEGINNING
            + timedelta(hours=draw(st.integers(-72, 72)), microseconds=draw(st.integers(0, 9))),
            backend=draw(st.sampled_from(["fast", "emulator"])),
            model=draw(st.sampled_from(["a/x", "a/y", "a/x:1", "ä/'\"%"])),
            caller=draw(st.sampled_from(["kai", "lee"])),
            key=draw(st.sampled_from([None, "key_1", "key_2"])),
            tier=draw(st.sampled_from([None, "preview", "final"])),
            latency_ms=draw(st.integers(0, 20) | st.integers(0, 10**6)),
            cost=draw(MONEY),
            quoted=draw(MONEY),
            saved=draw(MONEY),
            outcome=draw(OUTCOMES),
            images=draw(st.integers(0, 4)),
            kept=draw(st.none() | st.booleans()),
        )
        for number in range(size)
    ]


def instants() -> st.SearchStrategy[datetime | None]:
    return st.none() | st.integers(-80, 80).map(lambda hours: BEGINNING + timedelta(hours=hours))


QUERIES = st.builds(
    UsageQuery,
    since=instants(),
    until=instants(),
    by=st.sampled_from(GROUPINGS),
    key=st.sampled_from([None, None, "key_1"]),
    keyless=st.sampled_from([None, None, "kai"]),
    local_days=st.booleans(),
    practice=st.sampled_from([frozenset(), frozenset({"emulator"}), frozenset({"emulator", "other"})]),
)


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[int], percent: int) -> None:
    found = percentile(Counter(values), percent)
    assert found in values
    not_above = sum(value <= found for value in values)
    below = sum(value < found for value in values)
    assert 100 * not_above >= percent * len(values)
    assert 100 * below < percent * len(values)
    assert found == sorted(values)[math.ceil(percent * len(values) / 100) - 1]


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_the_fiftieth_is_the_lower_median(values: list[int]) -> None:
    assert percentile(Counter(values), 50) == statistics.median_low(values)


def test_of_nothing_every_percentile_is_zero() -> None:
    assert percentile({}, 95) == 0


@given(entries(), QUERIES)
def test_groups_part_the_entries_and_add_up_to_the_total(found: list[UsageEntry], query: UsageQuery) -> None:
    summary = summarize(iter(found), query)
    taken = [entry for entry in found if query.takes(entry)]
    assert [group.name for group in summary.groups] == list(
        dict.fromkeys(group.name for group in summary.groups)
    )
    assert {group.name for group in summary.groups} == {query.name_of(entry) for entry in taken}
    for field in SUMMED:
        parts = [getattr(group, field) for group in summary.groups]
        start: Any = Usd(0) if parts and isinstance(parts[0], Usd) else 0
        if parts:
            assert sum(parts, start) == getattr(summary.total, field)
    assert summary.total.predictions + summary.total.cached == len(taken)
    for group in summary.groups:
        part = [entry for entry in taken if query.name_of(entry) == group.name]
        alone = summarize(part, query)
        assert alone.groups == (group,)
        made = [entry for entry in part if not entry.reused]
        assert group.cost == Usd.total(entry.cost for entry in made if entry.cost is not None)
        assert group.images == sum(entry.images for entry in made)
        assert group.p50_ms == (statistics.median_low(entry.latency_ms for entry in made) if made else 0)


@given(entries())
def test_a_price_that_is_not_known_is_no_price_of_zero(found: list[UsageEntry]) -> None:
    total = sum_usage(found)
    judged = [entry for entry in found if entry.kept is not None and not entry.reused]
    kept = sum(entry.images for entry in judged if entry.kept)
    costs = [entry.cost for entry in judged]
    if not kept or None in costs:
        assert total.cost_per_kept is None
    else:
        assert total.cost_per_kept is not None
        exact = sum(cost.micros for cost in costs if cost is not None) / kept
        assert abs(total.cost_per_kept.micros - exact) <= 0.5


class House:
    """A ledger on a file that is emptied for each example."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "imagen.db")
        self.ledger = SqlLedger(self.database)
        self.runner = asyncio.Runner()

    def fill(self, found: Sequence[UsageEntry]) -> None:
        judged = [
            {"prediction_id": one.id, "caller": one.caller, "model": one.model, "kind": "photo", "kept": one.kept, "at": BEGINNING}
            for one in found
            if one.kept is not None
        ]  # fmt: skip

        def job(connection: Any) -> None:
            connection.execute(usage.delete())
            connection.execute(feedback.delete())
            if judged:
                connection.execute(feedback.insert(), judged)

        async def run() -> None:
            await self.database.write(job)
            await self.ledger.record(found)

        self.runner.run(run())


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory() as folder:
        made = House(Path(folder))
        yield made
        made.runner.close()
        made.database.close()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(found=entries(), query=QUERIES)
def test_the_database_adds_up_as_memory_does(
    house: House, found: list[UsageEntry], query: UsageQuery
) -> None:
    house.fill(found)
    assert house.runner.run(house.ledger.summary(query)) == summarize(found, query)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(found=entries(), query=QUERIES, size=st.integers(1, 7))
def test_pages_are_all_that_a_query_takes_newest_first_each_once(
    house: House, found: list[UsageEntry], query: UsageQuery, size: int
) -> None:
    house.fill(found)

    async def read() -> list[UsageEntry]:
        pages: list[UsageEntry] = []
        last: str | None = None
        while page := await house.ledger.page(query, before=last, limit=size):
            assert len(page) <= size
            pages += page
            last = page[-1].id
        return pages

    wanted = sorted(filter(query.takes, found), key=lambda one: (one.created_at, one.id), reverse=True)
    assert house.runner.run(read()) == wanted


def test_feedback_is_what_the_store_keeps() -> None:
    assert {column.name for column in feedback.columns} == set(Feedback.__struct_fields__)
