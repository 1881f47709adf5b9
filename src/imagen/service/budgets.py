"""Budgets as people name them: set by the name of a key, a caller or a model, listed with how each stands, removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, get_args

import msgspec

from imagen.catalog import Catalog
from imagen.decoding import convert
from imagen.domain.budget import EACH, Balance, Budget, Counts, Per, Scope, model_of
from imagen.domain.caller import LONGEST_CALLER, Caller
from imagen.domain.key import Key
from imagen.domain.money import MICROS, Usd, read_decimal
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.ports import Budgets, Clock, Keys

PERIODS: tuple[Per, ...] = get_args(Per)
COUNTED: tuple[Counts, ...] = get_args(Counts)
SUBJECTS = ("key", "caller", "model", "all")
"""Whom a budget can count, as faces name it: exactly one of them is given."""
_MOST_DECIMALS = len(str(MICROS)) - 1
_ONE_OF_THEM = f"exactly one of {', '.join(SUBJECTS)} must be given"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a budget stands, with keys by their names.

    Attributes:
        balance: in the present period, for one subject; of a budget that everyone has for themselves the subject is `*` as
            long as nobody has spent anything.
        whom: whom the budget counts: the name of a key (and that it was revoked), a caller, `owner/name`, `*` for each
            of them, or empty for everything.
        subject: the same for this one balance.
        idle: it counts nobody, as its one key was revoked.
    """

    balance: Balance
    whom: str
    subject: str
    idle: bool = False

    @property
    def budget(self) -> Budget:
        """The budget itself."""
        return self.balance.budget

    def facts(self) -> dict[str, Any]:
        """What was set, as every face tells it."""
        budget = self.budget
        return {
            "name": budget.name,
            "usd": budget.limit.to_json(),
            "per": budget.per,
            **{scope: self.whom if budget.scope == scope else None for scope in ("key", "caller", "model")},
            "all": budget.scope == "all",
            "warn": not budget.hard,
            "count": budget.counts,
        }

    def state(self) -> dict[str, Any]:
        """How it stands, as every face tells it."""
        balance = self.balance
        return {
            "subject": self.subject,
            "settled_usd": balance.settled.to_json(),
            "reserved_usd": balance.reserved.to_json(),
            "left_usd": balance.left.to_json(),
            "renews_at": balance.renews_at,
        }


class BudgetBook:
    """Sets, lists and removes budgets. Safe to share between the tasks of one loop.

    Args:
        budgets: where they are kept.
        keys: knows the names of keys.
        catalog: knows what models are called.
        clock: tells which period is the present one.
    """

    def __init__(self, *, budgets: Budgets, keys: Keys, catalog: Catalog, clock: Clock) -> None:
        self._budgets = budgets
        self._keys = keys
        self._catalog = catalog
        self._clock = clock

    async def set(
        self,
        name: str,
        *,
        usd: str | float | Decimal,
        per: str,
        key: str | None = None,
        caller: str | None = None,
        model: str | None = None,
        everything: bool = False,
        warn: bool = False,
        count: str = "charged",
    ) -> Standing:
        """Make a budget, or change the one of that name. The same once more changes nothing.

        Args:
            name: 1 to 64 letters, digits, dots, dashes and underscores.
            usd: the limit of one period: dollars above zero, with six decimals at most.
            per: `day`, `month` or `total`; days and months are those of UTC.
            key: it counts what is asked for with the key of this name or id; `*` gives each key the limit for itself.
            caller: it counts what the ledger notes for this name; `*` for each.
            model: it counts what is made with this model, in all versions; `*` for each.
            everything: it counts all of it.
            warn: what does not fit is bought all the same, and told.
            count: `charged` counts whatever is billed, `succeeded` only runs that succeeded.

        Returns:
            It as it was set; what was spent before is not in it, `list` tells that.

        Raises:
            InvalidInput: naming each field that makes no sense, or there are too many.
            StoreError: it was not written down.
        """
        scopes = _scopes(key=key, caller=caller, model=model, everything=everything)
        limit, problems = read_limit(usd)
        if per not in PERIODS:
            problems.append(Problem("per", f"{per[:60]!r} must be one of {', '.join(PERIODS)}"))
        if count not in COUNTED:
            problems.append(Problem("count", f"{count[:60]!r} must be one of {', '.join(COUNTED)}"))
        if len(scopes) != 1:
            problems.append(Problem(SUBJECTS[0] if not scopes else scopes[-1][0], _ONE_OF_THEM))
        if problems:
            raise InvalidInput(problems, subject="the budget")
        ((scope, told),) = scopes
        keys = await self._keys.list()
        now = self._clock.now()
        budget = Budget(
            name=name,
            limit=limit,
            per=convert(per, Per),
            scope=scope,
            subject=self._subject(scope, told, keys),
            hard=not warn,
            counts=convert(count, Counts),
            created_at=now,
        )
        budget.check()
        await self._budgets.set(budget, now=now)
        return _standing(_untouched(budget, budget.subject, budget.renews_at(now)), keys)

    async def remove(self, name: str) -> None:
        """Remove a budget: nothing is refused or warned of for it any more.

        Raises:
            NotFound: none is called so.
            StoreError: it was not written down.
        """
        await self._budgets.remove(name)

    async def list(self) -> Sequence[Standing]:
        """How each stands in its present period, by name; one for each subject that has spent anything.

        Raises:
            StoreError: they could not be read.
        """
        balances = await self._budgets.list(now=self._clock.now())
        keys = await self._keys.ever() if any(one.budget.scope == "key" for one in balances) else ()
        return [_standing(one, keys) for one in balances]

    async def list_for(self, caller: Caller, *, models: frozenset[str] = frozenset()) -> Sequence[Standing]:
        """Those that count what one caller asks for, with that caller's own part of those that everyone has.

        Args:
            caller: who asks. What is bought on an account of their own counts for none.
            models: `owner/name` of those that they may use; empty for all.

        Raises:
            StoreError: they could not be read.
        """
        if caller.stranger:
            return []
        own = {"key": caller.key, "caller": caller.name}
        known = {one.lower() for one in models}
        found: dict[tuple[str, str], Standing] = {}
        for one in await self.list():
            budget, subject = one.budget, one.balance.subject
            mine = own.get(budget.scope)
            if budget.scope in own and mine is not None and budget.subject in {EACH, mine}:
                # Those of others are not for this one, who may have spent nothing yet.
                if subject == mine:
                    found[budget.name, mine] = one
                elif (budget.name, mine) not in found:
                    untouched = _untouched(budget, mine, one.balance.renews_at)
                    found[budget.name, mine] = Standing(balance=untouched, whom=one.whom, subject=caller.name)
            elif budget.scope == "all" or (
                budget.scope == "model" and (not known or subject == EACH or subject.lower() in known)
            ):
                found[budget.name, subject] = one
        return list(found.values())

    def _subject(self, scope: Scope, told: str, keys: Sequence[Key]) -> str:
        """Under which name the store counts it.

        Raises:
            InvalidInput: naming the field and what is allowed.
        """
        if scope == "all" or told == EACH:
            return told
        match scope:
            case "key":
                return _key_id(told, keys)
            case "model":
                return self._model(told)
            case _:
                return _caller(told)

    def _model(self, told: str) -> str:
        if ":" in told:
            raise _wrong("model", f"{told[:120]!r} must be without a version; a budget counts all of them")
        try:
            ref = self._catalog.resolve(told)
        except InvalidRequest as error:
            raise _wrong("model", error.detail, hint=error.hint) from None
        known = self._catalog.find(told)
        return model_of(known.name if known is not None else str(ref))


def _scopes(
    *, key: str | None, caller: str | None, model: str | None, everything: bool
) -> list[tuple[Scope, str]]:
    """What was given of `SUBJECTS`."""
    given: tuple[tuple[Scope, str | None], ...] = (
        ("key", key),
        ("caller", caller),
        ("model", model),
        ("all", "" if everything else None),
    )
    return [(scope, told) for scope, told in given if told is not None]


def read_limit(told: str | float | Decimal) -> tuple[Usd, list[Problem]]:
    """Dollars as they were told, without rounding; with the problem when they are no limit."""
    shown = str(told)[:40]
    try:
        amount = read_decimal(str(told))
    except ValueError:
        return Usd(), [Problem("usd", f"{shown!r} is not an amount in dollars such as 5 or 0.25")]
    if not amount.is_finite() or amount <= 0:
        return Usd(), [Problem("usd", f"{shown} is not allowed; it must be above zero")]
    exponent = amount.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -_MOST_DECIMALS:
        return Usd(), [Problem("usd", f"{shown} has more than {_MOST_DECIMALS} decimals")]
    try:
        return Usd.parse(amount), []
    except ValueError:
        return Usd(), [Problem("usd", f"{shown} is more than there is")]


def _key_id(told: str, keys: Sequence[Key]) -> str:
    for key in keys:
        if told in {key.name, key.id}:
            return key.id
    raise _wrong(
        "key",
        f"no key is called {told[:100]!r}; a name or an id of a key that is good is allowed, or {EACH} for each",
        hint="`imagen keys list`, or GET /keys, shows the keys that are good.",
    )


def _caller(told: str) -> str:
    if not told.strip() or not told.isprintable() or len(told) > LONGEST_CALLER:
        raise _wrong("caller", f"it must be 1 to {LONGEST_CALLER} printable characters, or {EACH} for each")
    return told


def _wrong(field: str, message: str, *, hint: str | None = None) -> InvalidInput:
    return InvalidInput([Problem(field, message)], subject="the budget", hint=hint)


def _untouched(budget: Budget, subject: str, renews_at: datetime | None) -> Balance:
    return Balance(budget=budget, subject=subject, renews_at=renews_at)


def _standing(balance: Balance, keys: Sequence[Key]) -> Standing:
    names = {key.id: key.label for key in keys} if balance.budget.scope == "key" else {}
    whom, subject = balance.budget.subject, balance.subject or balance.budget.subject
    return Standing(
        balance=balance,
        whom=names.get(whom, whom),
        subject=names.get(subject, subject),
        idle=any(key.id == whom and key.revoked_at is not None for key in keys),
    )
