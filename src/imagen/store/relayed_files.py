"""Whose files were relayed, in SQL: no more than an id, a scope and an end for each, and only until that end."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from imagen.store.database import Database
from imagen.store.tables import relayed_files as _table


class SqlRelayedFiles:
    """`ports.RelayedFiles` on one database: the table `relayed_files`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, file_id: str, *, scope: str, expires_at: datetime, now: datetime) -> None:
        """See the port."""
        values = {"scope": scope, "expires_at": expires_at}
        statement = insert(_table).values(id=file_id, **values)
        statement = statement.on_conflict_do_update(index_elements=["id"], set_=values)

        def job(connection: Connection) -> None:
            connection.execute(delete(_table).where(_table.c.expires_at <= now))
            connection.execute(statement)

        await self._database.write(job)

    async def owner(self, file_id: str, *, now: datetime) -> str | None:
        """See the port."""
        statement = select(_table.c.scope).where(_table.c.id == file_id, _table.c.expires_at > now)
        return await self._database.read(
            lambda connection: connection.execute(statement).scalar_one_or_none()
        )

    async def of(self, scope: str, *, now: datetime) -> frozenset[str]:
        """See the port."""
        statement = select(_table.c.id).where(_table.c.scope == scope, _table.c.expires_at > now)
        return await self._database.read(
            lambda connection: frozenset(connection.execute(statement).scalars())
        )

    async def remove(self, file_id: str) -> None:
        """See the port."""
        statement = delete(_table).where(_table.c.id == file_id)
        await self._database.write(lambda connection: connection.execute(statement))
