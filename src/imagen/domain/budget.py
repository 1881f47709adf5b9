"""Budgets: who may spend how much in which time, and what one purchase asks of them.

A budget counts what was settled and what is reserved in one period, for everybody together or for each one separately.
Its arithmetic is here; `store/budgets.py` does it in one transaction with the purchase's intent.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import msgspec

from imagen.domain.model_ref import ModelRef
from imagen.domain.money import MOST_BUDGET, Usd
from imagen.errors import BudgetExceeded, InvalidInput, Problem

Scope = Literal["all", "key", "caller", "model"]
Per = Literal["day", "month", "total"]
Counts = Literal["charged", "succeeded"]
EACH = "*"
"""As the subject of a budget: everyone has their own."""
MOST_BUDGETS = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on spending.

    Attributes:
        name: its own; letters, digits, dots, dashes and underscores, 64 at most.
        limit: US dollars in one period.
        per: the period, by the days and months of UTC; `total` never renews.
        scope: what it counts: everything, or what is of a key, a caller or a model.
        subject: the key's id, the caller's name or the model's `owner/name`; `*` gives each of them the limit for
            itself; empty with scope `all`.
        hard: refuse what does not fit; else only warn.
        counts: `charged` counts all that is billed; `succeeded` only runs that succeeded (canceled ones are billed too).
        created_at: aware, UTC.
    """

    name: str
    limit: Usd
    per: Per
    scope: Scope
    subject: str = ""
    hard: bool = True
    counts: Counts = "charged"
    created_at: datetime

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidInput: naming each field that is not allowed.
        """
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(
                Problem("name", "1 to 64 letters, digits, dots, dashes and underscores are allowed")
            )
        if not Usd(0) <= self.limit <= MOST_BUDGET:
            problems.append(
                Problem("usd", f"{self.limit} is not allowed; it must be from $0 to {MOST_BUDGET}")
            )
        if (self.scope == "all") != (self.subject == ""):
            problems.append(Problem("scope", f"a budget of scope {self.scope!r} needs whom it counts"))
        if problems:
            raise InvalidInput(problems, subject="the budget")

    def counts_for(self, charge: Charge) -> str | None:
        """Under which subject it counts a purchase; None when it does not."""
        match self.scope:
            case "all":
                return ""
            case "key":
                who = charge.key
            case "caller":
                who = charge.caller
            case "model":
                who = charge.model
        if who is None:
            return None
        return who if self.subject in {EACH, who} else None

    def period(self, at: datetime) -> str:
        """The period in which an instant lies: `2026-11-22`, `2026-11` or `total`."""
        match self.per:
            case "day":
                return at.astimezone(UTC).date().isoformat()
            case "month":
                return at.astimezone(UTC).date().isoformat()[:7]
            case "total":
                return "total"

    def begins_at(self, at: datetime) -> datetime | None:
        """When the period of an instant began; None for `total`."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        match self.per:
            case "day":
                return day
            case "month":
                return day.replace(day=1)
            case "total":
                return None

    def renews_at(self, at: datetime) -> datetime | None:
        """When the next period begins, aware, UTC; None for `total`."""
        begins = self.begins_at(at)
        if begins is None:
            return None
        if self.per == "day":
            return begins + timedelta(days=1)
        return (begins + timedelta(days=32)).replace(day=1)


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What one purchase asks of the budgets.

    Attributes:
        amount: the most that it can cost; None when nobody knows.
        key: the id of the caller's key, where it has one.
        caller: whom the ledger names.
        model: `owner/name`, without version.
    """

    amount: Usd | None
    key: str | None
    caller: str
    model: str


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How a budget stands in one period, for one subject.

    Attributes:
        settled: what has been spent.
        reserved: the most that what is under way can cost.
    """

    budget: Budget
    subject: str = ""
    settled: Usd = Usd(0)
    reserved: Usd = Usd(0)
    renews_at: datetime | None = None

    @property
    def left(self) -> Usd:
        """What can be spent still; below zero where a warning was passed."""
        return self.budget.limit - self.settled - self.reserved

    def has_room_for(self, amount: Usd) -> bool:
        """Whether a purchase fits now."""
        return amount <= self.left

    def may_have_room_for(self, amount: Usd) -> bool:
        """Whether it fits when what is under way should cost nothing."""
        return amount <= self.budget.limit - self.settled


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """Why a purchase does not fit.

    Attributes:
        balance: of the budget that it does not fit in.
        quote: the most that it can cost; None when nobody knows.
        caller: for whom it is, which is also what their key is called.
    """

    balance: Balance
    quote: Usd | None
    caller: str = ""

    @property
    def may_pass(self) -> bool:
        """Whether it fits when what is under way should cost nothing, so that waiting may help."""
        return self.quote is not None and self.balance.may_have_room_for(self.quote)

    @property
    def lasting(self) -> bool:
        """Whether it would not even fit if nothing had been spent, or cannot be told to fit."""
        return self.quote is None or self.quote > self.balance.budget.limit

    def to_error(self) -> BudgetExceeded:
        """The refusal, with the budget, the quote and when it renews."""
        balance, budget = self.balance, self.balance.budget
        # Nobody who shows a key knows its id.
        subject = self.caller if budget.scope == "key" and self.caller else balance.subject
        whose = f" ({subject})" if budget.subject == EACH else ""
        if self.quote is None:
            detail = (
                f"nobody knows what this costs, so it cannot be held within the budget {budget.name!r}{whose} "
                f"of {budget.limit}{_PER[budget.per]}; nothing was bought"
            )
            hint = "Set the price of the model in the configuration, or make the budget one that only warns."
        else:
            detail = (
                f"this costs up to {self.quote}, and of the budget {budget.name!r}{whose} of "
                f"{budget.limit}{_PER[budget.per]} {max(balance.left, Usd(0))} is left; nothing was bought"
            )
            renews = balance.renews_at
            hint = (
                f"It renews at {renews:%Y-%m-%d %H:%M} UTC."
                if renews is not None
                else f"It does not renew; `imagen budget set {budget.name}` changes it."
            )
        return BudgetExceeded(
            detail, hint=hint, budget=budget.name, quote_micros=None if self.quote is None else self.quote.micros,
            renews_at=balance.renews_at, lasting=self.lasting,
        )  # fmt: skip


_PER = {"day": " a day", "month": " a month", "total": " in all"}


@lru_cache(maxsize=1024)
def model_of(ref: str) -> str:
    """The name under which budgets count a model: `owner/name` of a ref as text.

    In small letters: Replicate's names do not tell large ones from them, so that another way of writing a name would else
    pass a budget by.
    """
    return ModelRef.parse(ref).base.lower()
