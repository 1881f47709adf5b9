"""Named semaphores and their leases in SQL, shared by all processes of one database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, literal, select, update
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.limits import semaphore_limit
from imagen.domain.semaphore import Holder, Lease, Semaphore, unknown_semaphore
from imagen.errors import NotFound
from imagen.store.database import Database
from imagen.store.limits import LINE_LIVES_SECONDS
from imagen.store.tables import leases, lines, semaphores

_RESOURCE = literal(semaphore_limit("")) + semaphores.c.name


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

        def job(connection: Connection) -> int:
            gone = connection.execute(delete(semaphores).where(semaphores.c.name == name)).rowcount
            if gone:
                connection.execute(delete(leases).where(leases.c.resource == semaphore_limit(name)))
            return gone

        if not await self._database.write(job):
            raise unknown_semaphore(name)

    async def list(self, *, now: float) -> Sequence[Semaphore]:
        """See the port."""
        return await self._database.read(
            lambda connection: [
                Semaphore(*row) for row in connection.execute(_overview(now).order_by("name"))
            ]
        )

    async def show(self, name: str, *, now: float) -> tuple[Semaphore, Sequence[Holder]]:
        """See the port."""
        holders = (
            select(leases.c.holder, leases.c.since, leases.c.expires_at)
            .where(leases.c.resource == semaphore_limit(name), leases.c.expires_at > now)
            .order_by(leases.c.since)
        )

        def job(connection: Connection) -> tuple[Semaphore, Sequence[Holder]]:
            row = connection.execute(_overview(now).where(semaphores.c.name == name)).one_or_none()
            if row is None:
                raise unknown_semaphore(name)
            return Semaphore(*row), [Holder(*each) for each in connection.execute(holders)]

        return await self._database.read(job)

    async def renew(self, name: str, lease: str, *, now: float, lasts_seconds: float) -> Lease:
        """See the port."""
        statement = (
            update(leases)
            .where(
                leases.c.resource == semaphore_limit(name), leases.c.lease == lease, leases.c.expires_at > now
            )
            .values(expires_at=now + lasts_seconds)
            .returning(leases.c.holder)
        )

        # What is wrong is told outside: a job that raises makes all others of its group begin again.
        row = await self._database.write(lambda connection: connection.execute(statement).one_or_none())
        if row is None:
            raise NotFound(
                f"semaphore {name[:100]!r} has no such lease, or it has ended",
                hint="Take a new one before the old one ends, or renew it in time.",
            )
        return Lease(id=lease, semaphore=name, holder=row.holder, expires_at=now + lasts_seconds)

    async def release(self, name: str, lease: str) -> None:
        """See the port."""
        statement = delete(leases).where(leases.c.resource == semaphore_limit(name), leases.c.lease == lease)
        await self._database.write(lambda connection: connection.execute(statement))


def _overview(now: float) -> Any:
    """Name, limit, places held and how many wait, of each semaphore."""
    held = select(func.count()).where(leases.c.resource == _RESOURCE, leases.c.expires_at > now)
    waiting = select(func.coalesce(func.sum(lines.c.count), 0)).where(
        lines.c.resource == _RESOURCE, lines.c.seen_at > now - LINE_LIVES_SECONDS
    )
    return select(semaphores.c.name, semaphores.c.limit, held.scalar_subquery(), waiting.scalar_subquery())
