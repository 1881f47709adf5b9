"""The keys of a running gateway, for its admin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import msgspec

from imagen.domain.key import Key, check_name, unknown_key
from imagen.domain.secret import Secret
from imagen.errors import InvalidInput
from imagen.remote.connection import Connection

_PATH = "/keys"
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]{1,300}\Z")]


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    name: _Text
    id: _Text
    models: list[_Text]
    routes: list[_Text]
    concurrent: int | None
    rpm: int | None
    created_at: datetime
    revoked_at: datetime | None = None

    def to_key(self) -> Key:
        return Key(
            id=self.id,
            name=self.name,
            created_at=self.created_at,
            models=frozenset(self.models),
            routes=frozenset(self.routes),
            concurrent=self.concurrent,
            per_minute=self.rpm,
            revoked_at=self.revoked_at,
        )


class _Created(_Key, frozen=True, kw_only=True):
    key: _Text


class _Revoked(_Key, frozen=True, kw_only=True):
    budgets: list[_Text] = []  # an older gateway tells none


class _List(msgspec.Struct, frozen=True):
    keys: list[_Key]


class RemoteKeys:
    """What `KeyBook` does, at a running gateway; every method raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(
        self,
        name: str,
        *,
        models: Iterable[str] = (),
        routes: Iterable[str] = (),
        concurrent: int | None = None,
        per_minute: int | None = None,
    ) -> tuple[Key, Secret]:
        """See `KeyBook.create`."""
        body = {
            "name": name,
            "models": list(models),
            "routes": list(routes),
            "concurrent": concurrent,
            "rpm": per_minute,
        }
        lost = f"If it was made all the same, `imagen keys revoke {name}` takes it back."
        made = await self._connection.ask("POST", _PATH, _Created, body=body, admin=True, lost=lost)
        return made.to_key(), Secret(made.key)

    async def list(self) -> Sequence[Key]:
        """See `KeyBook.list`."""
        return [one.to_key() for one in (await self._connection.ask("GET", _PATH, _List, admin=True)).keys]

    async def revoke(self, name: str) -> tuple[Key, Sequence[str]]:
        """See `KeyBook.revoke`."""
        try:
            check_name(name)
        except InvalidInput:
            raise unknown_key(name) from None
        path = f"{_PATH}/{quote(name, safe='')}"
        told = await self._connection.ask("DELETE", path, _Revoked, admin=True)
        return told.to_key(), told.budgets
