"""Named keys in SQL: known by the hash of what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.key import Key, unknown_key
from imagen.errors import IdempotencyConflict
from imagen.store.database import Database
from imagen.store.tables import api_keys

_COLUMNS = tuple(api_keys.c[name] for name in Key.__struct_fields__)
_GOOD = api_keys.c.revoked_at.is_(None)


class SqlKeys:
    """`ports.Keys` on one database: the table `api_keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: Key, *, digest: str) -> None:
        """See the port."""
        row = {name: getattr(key, name) for name in Key.__struct_fields__}
        # Sorted, so that one key looks the same in every row and in every listing.
        row |= {"models": sorted(key.models), "routes": sorted(key.routes), "digest": digest}
        statement = insert(api_keys).values(row)
        statement = statement.on_conflict_do_nothing(index_elements=["name"], index_where=_GOOD)

        def job(connection: Connection) -> None:
            if not connection.execute(statement).rowcount:
                raise IdempotencyConflict(
                    f"a key is called {key.name[:100]!r} already",
                    hint="Choose another name, or revoke that key first.",
                )

        await self._database.write(job)

    async def list(self) -> Sequence[Key]:
        """See the port."""
        statement = select(*_COLUMNS).where(_GOOD).order_by(api_keys.c.name)
        return await self._database.read(
            lambda connection: [_from_row(row) for row in connection.execute(statement)]
        )

    async def ever(self) -> Sequence[Key]:
        """See the port."""
        statement = select(*_COLUMNS).order_by(api_keys.c.created_at, api_keys.c.id)
        return await self._database.read(
            lambda connection: [_from_row(row) for row in connection.execute(statement)]
        )

    async def revoke(self, name: str, *, at: datetime) -> Key:
        """See the port."""
        statement = (
            update(api_keys).where(api_keys.c.name == name, _GOOD).values(revoked_at=at).returning(*_COLUMNS)
        )

        def job(connection: Connection) -> Key:
            row = connection.execute(statement).one_or_none()
            if row is None:
                raise unknown_key(name)
            return _from_row(row)

        return await self._database.write(job)

    async def find(self, digest: str) -> Key | None:
        """See the port."""
        statement = select(*_COLUMNS).where(api_keys.c.digest == digest, _GOOD)

        def job(connection: Connection) -> Key | None:
            row = connection.execute(statement).one_or_none()
            return None if row is None else _from_row(row)

        return await self._database.read(job)


def _from_row(row: Row[Any]) -> Key:
    facts = dict(row._mapping)  # noqa: SLF001 - its public name
    return Key(**facts | {"models": frozenset(facts["models"]), "routes": frozenset(facts["routes"])})
