"""Budgets by the names that people give: what is understood, what is refused, and who is shown what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import ManualClock
from fakes.make import make_entry
from imagen.catalog import Catalog
from imagen.domain.caller import Caller
from imagen.domain.key import Key
from imagen.domain.money import Usd
from imagen.errors import InvalidInput, NotFound
from imagen.service.budgets import BudgetBook, read_limit
from imagen.store.budgets import SqlBudgets
from imagen.store.database import Database
from imagen.store.keys import SqlKeys
from imagen.store.ledger import SqlLedger

pytestmark = pytest.mark.anyio

CATALOG = Catalog.load()
GOOD: dict[str, Any] = {"usd": "1", "per": "day", "everything": True}


class Desk:
    """A book on a database, with two keys."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.keys = SqlKeys(self.database)
        self.clock = ManualClock()
        self.ledger = SqlLedger(self.database)
        self.book = BudgetBook(
            budgets=SqlBudgets(self.database), keys=self.keys, catalog=CATALOG, clock=self.clock
        )

    async def make_keys(self, *names: str) -> None:
        for name in names:
            key = Key(id=f"key_{name}_id", name=name, created_at=self.clock.now())
            await self.keys.add(key, digest=f"digest of {name}")

    async def spend(self, number: int, dollars: str, **facts: Any) -> None:
        at = self.clock.now()
        await self.ledger.record([make_entry(number, cost=Usd.parse(dollars), created_at=at, **facts)])

    async def shown(self, caller: Caller | None = None, **facts: Any) -> list[tuple[str, str, Usd]]:
        found = await (self.book.list() if caller is None else self.book.list_for(caller, **facts))
        return [(one.budget.name, one.subject, one.balance.settled) for one in found]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    one = Desk(tmp_path / "imagen.db")
    yield one
    one.database.close()


# --- setting ---------------------------------------------------------------------------------------------


async def test_a_key_is_named_by_its_name_or_id_and_shown_by_its_name(desk: Desk) -> None:
    await desk.make_keys("shop", "app")
    by_name = await desk.book.set("a", usd="1", per="day", key="shop")
    by_id = await desk.book.set("b", usd="1", per="day", key="key_app_id")
    assert (by_name.budget.subject, by_name.whom) == ("key_shop_id", "shop")
    assert (by_id.budget.subject, by_id.whom) == ("key_app_id", "app")
    assert await desk.shown() == [("a", "shop", Usd()), ("b", "app", Usd())]
    await desk.keys.revoke("shop", at=desk.clock.now())
    assert (await desk.shown())[0] == ("a", "shop (revoked)", Usd())
    assert [one.idle for one in await desk.book.list()] == [True, False]


@pytest.mark.parametrize(
    ("told", "means"),
    [
        ("flux-dev", "black-forest-labs/flux-dev"),
        ("Black-Forest-Labs/FLUX-dev", "black-forest-labs/flux-dev"),
        ("acme/Unheard-Of", "acme/unheard-of"),
        ("*", "*"),
    ],
)
async def test_a_model_is_named_as_everywhere(desk: Desk, told: str, means: str) -> None:
    assert (await desk.book.set("m", usd="1", per="day", model=told)).budget.subject == means


async def test_what_was_set_is_what_was_said(desk: Desk) -> None:
    made = await desk.book.set("q", usd="0.000001", per="month", caller="*", warn=True, count="succeeded")
    assert made.facts() == {
        "name": "q",
        "usd": 0.000001,
        "per": "month",
        "key": None,
        "caller": "*",
        "model": None,
        "all": False,
        "warn": True,
        "count": "succeeded",
    }
    (listed,) = await desk.book.list()
    assert listed.facts() == made.facts()
    assert listed.state()["renews_at"] == datetime(2026, 12, 1, tzinfo=UTC)


async def test_the_same_again_changes_nothing_and_another_limit_keeps_what_was_spent(desk: Desk) -> None:
    await desk.book.set("a", **GOOD)
    await desk.spend(1, "0.25")
    before = await desk.book.list()
    await desk.book.set("a", **GOOD)
    assert await desk.book.list() == before
    await desk.book.set("a", **GOOD | {"usd": 2})
    (now,) = await desk.book.list()
    assert (now.balance.settled, now.balance.left) == (Usd(250_000), Usd(1_750_000))


async def test_what_was_spent_before_in_the_period_counts(desk: Desk) -> None:
    await desk.spend(1, "0.25", caller="alice")
    await desk.book.set("a", usd="1", per="day", caller="alice")
    assert await desk.shown() == [("a", "alice", Usd(250_000))]
    desk.clock.advance(timedelta(days=1).total_seconds())
    assert await desk.shown() == [("a", "alice", Usd())]


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"usd": "0"}, "usd", "above zero"),
        ({"usd": -1.5}, "usd", "above zero"),
        ({"usd": "NaN"}, "usd", "not an amount"),
        ({"usd": "1_000"}, "usd", "not an amount"),
        ({"usd": "\uff15"}, "usd", "not an amount"),
        ({"usd": "1e99999"}, "usd", "more"),
        ({"usd": "2000000000"}, "usd", "1000000000"),
        ({"usd": "0.0000001"}, "usd", "6 decimals"),
        ({"usd": "a lot"}, "usd", "0.25"),
        ({"per": "week"}, "per", "day, month, total"),
        ({"count": "all"}, "count", "charged, succeeded"),
        ({"everything": False}, "key", "exactly one of key, caller, model, all"),
        ({"caller": "alice"}, "all", "exactly one of key, caller, model, all"),
        ({"everything": False, "key": "nobody"}, "key", "'nobody'"),
        ({"everything": False, "model": "flux-devv"}, "model", "flux-devv"),
        ({"everything": False, "model": "flux-dev:" + "a" * 64}, "model", "version"),
        ({"everything": False, "caller": " "}, "caller", "printable"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_field(
    desk: Desk, changes: dict[str, Any], field: str, told: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await desk.book.set("a", **GOOD | changes)
    (problem,) = refused.value.problems
    assert problem.field == field
    assert told in problem.message
    assert await desk.shown() == []


@pytest.mark.parametrize("name", ["", "two words", "a/b", "-a", "a" * 65, "ä"])
async def test_a_name_has_a_form(desk: Desk, name: str) -> None:
    with pytest.raises(InvalidInput, match="name: 1 to 64 letters"):
        await desk.book.set(name, **GOOD)


async def test_all_mistakes_are_told_at_once(desk: Desk) -> None:
    with pytest.raises(InvalidInput) as refused:
        await desk.book.set("a", usd="0", per="week", count="none")
    assert [problem.field for problem in refused.value.problems] == ["usd", "per", "count", "key"]


@given(st.decimals(min_value="0.000001", max_value=999_999_999, places=6))
def test_every_amount_of_six_decimals_is_kept_to_the_last(amount: Any) -> None:
    assert read_limit(f"${amount}") == (Usd.parse(amount), [])


# --- removing --------------------------------------------------------------------------------------------


async def test_a_removed_one_is_gone_and_removing_it_again_says_so(desk: Desk) -> None:
    await desk.book.set("a", **GOOD)
    await desk.book.remove("a")
    assert await desk.shown() == []
    with pytest.raises(NotFound, match="imagen budget list"):
        await desk.book.remove("a")


# --- who sees what ---------------------------------------------------------------------------------------


async def test_a_caller_sees_what_they_are_held_to_and_their_own_part_of_what_everyone_has(
    desk: Desk,
) -> None:
    await desk.make_keys("shop", "app")
    await desk.book.set("all", **GOOD)
    await desk.book.set("each-caller", usd="5", per="month", caller="*")
    await desk.book.set("each-key", usd="5", per="month", key="*")
    await desk.book.set("dev", usd="5", per="month", model="flux-dev")
    await desk.book.set("of-app", usd="5", per="total", key="app")
    await desk.book.set("of-shop", usd="5", per="total", key="shop")
    await desk.spend(1, "0.5", caller="app", key="key_app_id", model="black-forest-labs/flux-schnell")

    shop = Caller(name="shop", key="key_shop_id")
    half, nothing = Usd(500_000), Usd()
    assert await desk.shown(shop) == [
        ("all", "", half),
        ("dev", "black-forest-labs/flux-dev", nothing),
        ("each-caller", "shop", nothing),
        ("each-key", "shop", nothing),
        ("of-shop", "shop", nothing),
    ]
    app = await desk.shown(Caller(name="app", key="key_app_id"), models=frozenset({"qwen/qwen-image"}))
    assert app == [
        ("all", "", half),
        ("each-caller", "app", half),
        ("each-key", "app", half),
        ("of-app", "app", half),
    ]
    without_key = await desk.shown(Caller(name="nobody"))
    assert [name for name, _, _ in without_key] == ["all", "dev", "each-caller"]
    assert await desk.shown(Caller(name="token:1234", stranger=True)) == []
