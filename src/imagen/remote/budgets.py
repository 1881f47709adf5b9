"""The budgets of a running gateway, for its admin."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import quote

import msgspec

from imagen.domain.budget import Balance, Budget, Counts, Per, Scope
from imagen.domain.money import from_dollars
from imagen.remote.connection import Connection
from imagen.service.budgets import Standing

_PATH = "/budgets"
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,300}\Z")]
_Dollars = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


class _Budget(msgspec.Struct, frozen=True, kw_only=True):
    name: _Text
    usd: _Dollars
    per: Per
    key: _Text | None
    caller: _Text | None
    model: _Text | None
    warn: bool
    count: Counts
    subject: str = ""
    settled_usd: _Dollars = 0.0
    reserved_usd: _Dollars = 0.0
    renews_at: datetime | None = None

    def to_standing(self) -> Standing:
        given: dict[Scope, str | None] = {"key": self.key, "caller": self.caller, "model": self.model}
        scope, whom = next(((name, told) for name, told in given.items() if told is not None), ("all", ""))
        budget = Budget(
            name=self.name,
            limit=from_dollars(self.usd),
            per=self.per,
            scope=scope,
            subject=whom,
            hard=not self.warn,
            counts=self.count,
            created_at=datetime.fromtimestamp(0, UTC),  # a gateway does not tell it, and nobody here shows it
        )
        balance = Balance(
            budget=budget,
            subject=self.subject,
            settled=from_dollars(self.settled_usd),
            reserved=from_dollars(self.reserved_usd),
            renews_at=self.renews_at,
        )
        return Standing(balance=balance, whom=whom, subject=self.subject or whom)


class _List(msgspec.Struct, frozen=True):
    budgets: list[_Budget]


class RemoteBudgets:
    """What `BudgetBook` does, at a running gateway; every method raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

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
        """See `BudgetBook.set`."""
        body = {
            "name": name,
            "usd": str(usd),
            "per": per,
            "key": key,
            "caller": caller,
            "model": model,
            "all": everything,
            "warn": warn,
            "count": count,
        }
        lost = "Set it again: the same once more changes nothing."
        made = await self._connection.ask("POST", _PATH, _Budget, body=body, admin=True, lost=lost)
        return made.to_standing()

    async def remove(self, name: str) -> None:
        """See `BudgetBook.remove`."""
        await self._connection.ask("DELETE", f"{_PATH}/{quote(name, safe='')}", Any, admin=True)

    async def list(self) -> Sequence[Standing]:
        """See `BudgetBook.list`; without the admin's key those that count for the key that is shown."""
        found = await self._connection.ask("GET", _PATH, _List, admin=True)
        return [one.to_standing() for one in found.budgets]
