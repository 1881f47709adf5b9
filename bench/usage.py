"""How long a report of a large ledger takes, and how much memory it needs.

    .venv/bin/python bench/usage.py [entries, 200000 unless said otherwise]

Each grouping is asked of the database and, for comparison, of memory: entries read whole and added up one by one.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from imagen.domain.money import Usd
from imagen.domain.usage import GROUPINGS, UsageEntry, UsageQuery, summarize
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger

DAYS, MODELS, CALLERS, AT_ONCE = 90, 20, 100, 20_000


def make(count: int) -> Iterator[UsageEntry]:
    """A ledger as a year of a busy shop leaves it."""
    first = datetime(2026, 8, 1, tzinfo=UTC)
    chance = random.Random(1)  # noqa: S311 - the same ledger at each run
    for number in range(count):
        caller = chance.randrange(CALLERS)
        yield UsageEntry(
            id=f"pred_{number:026}",
            created_at=first + timedelta(seconds=chance.random() * DAYS * 86_400),
            backend="gateway",
            model=f"owner/model-{chance.randrange(MODELS)}",
            seed=number,
            prompt_hash=f"{number:064x}",
            latency_ms=int(chance.lognormvariate(8, 1)),
            cost=Usd(chance.choice((3_000, 25_000, 40_000))),
            caller=f"caller-{caller}",
            outcome="cached" if chance.random() < 0.1 else "succeeded",
            images=1,
            key=f"key_{caller}",
            quoted=Usd(25_000),
        )


async def main(count: int) -> None:
    """Fill a ledger, then ask."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / "imagen.db")
        ledger = SqlLedger(database)
        part: list[UsageEntry] = []
        for entry in make(count):
            part.append(entry)
            if len(part) == AT_ONCE:
                await ledger.record(part)
                part = []
        await ledger.record(part)
        part = []
        print(f"{count:,} entries, {DAYS} days, {MODELS} models, {CALLERS} callers")
        before = peak()
        for by in GROUPINGS:
            query = UsageQuery(by=by, local_days=True)
            began = time.perf_counter()
            summary = await ledger.summary(query)
            seconds = time.perf_counter() - began
            print(f"by {by:8} {seconds:6.2f} s  {len(summary.groups):4} groups")
            assert summary.total.predictions + summary.total.cached == count
        began = time.perf_counter()
        summary = await ledger.summary(UsageQuery(by="day", key="key_1"))
        print(f"one key     {time.perf_counter() - began:6.2f} s  {len(summary.groups):4} groups")
        print(f"memory of these: {peak() - before:.0f} MiB")
        began, before = time.perf_counter(), peak()
        in_memory = summarize(await ledger.entries(), UsageQuery(by="model"))
        print(f"in memory   {time.perf_counter() - began:6.2f} s, {peak() - before:.0f} MiB")
        assert in_memory == await ledger.summary(UsageQuery(by="model"))
        database.close()


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000))
