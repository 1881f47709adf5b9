"""What `ports.Limits.standing` promises: it tells how limits stand for somebody, and takes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagen.domain.caller import Caller
from imagen.domain.limits import AccountRules, Admitted, Lane, LineReport, Need
from imagen.domain.outlook import LimitStanding
from imagen.ports import Limits
from imagen.store.database import Database
from imagen.store.limits import SqlLimits
from imagen.store.semaphores import SqlSemaphores

pytestmark = pytest.mark.anyio
NOW = 1_000_000.0
RULES = AccountRules(concurrent=2, creates_per_minute=600)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "imagen.db")
    yield database
    database.close()


@pytest.fixture
def limits(database: Database) -> Limits:
    return SqlLimits(database, RULES)


def need(lease: str = "one", **facts: Any) -> Need:
    return Need(
        **{"lease": lease, "holder": "me", "lasts_seconds": 60.0, "account": "acct", "since": NOW} | facts
    )


async def places(limits: Limits, wanted: Need, **facts: Any) -> dict[str, LimitStanding]:
    given = {"count": 1, "now": NOW, "line": "mine", "waiting": {}} | facts
    found = await limits.standing(wanted, **given)
    return {one.limit: one for one in found if one.places is not None or one.missing}


async def test_what_is_held_and_who_waits_is_counted(limits: Limits, database: Database) -> None:
    await SqlSemaphores(database).register("gpu", 1)
    taken = await limits.take(
        [need("one", semaphore="gpu"), need("two", semaphore="gpu")], now=NOW, line="other", waiting={}
    )
    assert [type(one).__name__ for one in taken] == ["Admitted", "Blocked"]
    found = await places(limits, need("me", semaphore="gpu"), waiting={"semaphore:gpu": 4})
    assert (found["semaphore:gpu"].places, found["semaphore:gpu"].held) == (1, 1)
    assert found["semaphore:gpu"].ahead == 1 + 4
    assert (found["account:acct"].places, found["account:acct"].held) == (2, 1)


async def test_nothing_is_taken_and_nobody_stands_in_line(limits: Limits) -> None:
    for _ in range(5):
        before = await places(limits, need())
        assert before["account:acct"].held == 0
        assert before["account:acct"].ahead == 0
    (verdict,) = await limits.take([need()], now=NOW, line="mine", waiting={})
    assert isinstance(verdict, Admitted)


async def test_a_semaphore_that_is_not_there_is_told_as_missing(limits: Limits) -> None:
    assert (await places(limits, need(semaphore="nope")))["semaphore:nope"].missing


async def test_interactive_work_goes_before_batches_of_other_lines(limits: Limits) -> None:
    await limits.take([need("one"), need("two")], now=NOW, line="other", waiting={})
    waiting = {"account:acct": LineReport(Lane.BATCH, NOW, 7)}
    await limits.take([need("three", lane=Lane.BATCH)], now=NOW, line="other", waiting=waiting)
    assert (await places(limits, need()))["account:acct"].ahead == 0
    assert (await places(limits, need(lane=Lane.BATCH)))["account:acct"].ahead == 8


async def test_a_key_has_places_and_a_rate_of_its_own(limits: Limits) -> None:
    caller = Caller(name="shop", key="key_1", concurrent=3, per_minute=1)
    await limits.take([need("one", caller=caller)], now=NOW, line="other", waiting={})
    found = await limits.standing(need("me", caller=caller), count=2, now=NOW, line="mine", waiting={})
    key = [one for one in found if one.limit == "key:key_1"]
    assert [(one.places, one.held) for one in key] == [(3, 1), (None, 0)]
    assert 0 < key[1].first_in <= key[1].last_in
