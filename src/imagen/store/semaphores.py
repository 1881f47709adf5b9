"""Named semaphores and their leases in SQL, shared by all processes of one database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.semaphore import Semaphore
from imagen.errors import NotFound
from imagen.store.database import Database
from imagen.store.tables import leases, semaphores


class SqlSemaphores:
    """`ports.Semaphores` on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, name: str, limit: int) -> None:
        """See the port."""
        statement = insert(semaphores).values(name=name, limit=limit)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"limit": limit})
        await self._database.write(lambda connection: connection.execute(statement))

    async def remove(self, name: str) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            _limit(connection, name)
            connection.execute(delete(leases).where(leases.c.semaphore == name))
            connection.execute(delete(semaphores).where(semaphores.c.name == name))

        await self._database.write(job)

    async def list(self, *, now: datetime) -> Sequence[Semaphore]:
        """See the port."""
        held = (
            select(leases.c.semaphore, func.count().label("held"))
            .where(leases.c.expires_at > now)
            .group_by(leases.c.semaphore)
            .subquery()
        )
        statement = (
            select(semaphores.c.name, semaphores.c.limit, func.coalesce(held.c.held, 0))
            .join(held, held.c.semaphore == semaphores.c.name, isouter=True)
            .order_by(semaphores.c.name)
        )
        return await self._database.read(
            lambda connection: [Semaphore(*row) for row in connection.execute(statement).tuples()]
        )

    async def acquire(self, name: str, lease: str, *, now: datetime, lasts: timedelta) -> bool:
        """See the port."""

        def job(connection: Connection) -> bool:
            limit = _limit(connection, name)
            connection.execute(delete(leases).where(leases.c.expires_at <= now))
            others = connection.scalar(
                select(func.count()).where(leases.c.semaphore == name, leases.c.lease != lease)
            )
            if (others or 0) >= limit:
                return False
            values = {"semaphore": name, "lease": lease, "expires_at": now + lasts}
            statement = insert(leases).values(values)
            connection.execute(statement.on_conflict_do_update(set_={"expires_at": now + lasts}))
            return True

        return await self._database.write(job)

    async def release(self, name: str, lease: str) -> None:
        """See the port."""
        statement = delete(leases).where(leases.c.semaphore == name, leases.c.lease == lease)
        await self._database.write(lambda connection: connection.execute(statement))


def _limit(connection: Connection, name: str) -> int:
    limit: int | None = connection.scalar(select(semaphores.c.limit).where(semaphores.c.name == name))
    if limit is None:
        raise NotFound(
            f"External semaphore {name[:100]!r} not found",
            hint="`imagen semaphore register NAME LIMIT` makes one.",
        )
    return limit
