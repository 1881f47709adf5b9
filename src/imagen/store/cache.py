"""What is in the cache of pictures, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from imagen.ports import CacheEntry
from imagen.store.database import Database
from imagen.store.tables import cached

_FIELDS = CacheEntry.__struct_fields__
_COLUMNS = tuple(cached.c[name] for name in _FIELDS)
_LATEST_FIRST = (cached.c.used_at.desc(), cached.c.key.desc())
_UP_TO_HERE = func.sum(cached.c.size_bytes).over(order_by=_LATEST_FIRST, rows=(None, 0)).label("up_to_here")
_ADDED_UP = select(*_COLUMNS, _UP_TO_HERE).subquery()
_SIZE = select(func.count(), func.coalesce(func.sum(cached.c.size_bytes), 0)).select_from(cached)


class SqlCacheIndex:
    """`ports.CacheIndex` on one database: the table `cached`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: str, *, now: datetime) -> CacheEntry | None:
        """See the port. Only a hit writes: a miss is told by a reader, who waits for nobody."""
        there = select(cached.c.key).where(cached.c.key == key)
        if not await self._database.read(lambda connection: connection.execute(there).first()):
            return None
        statement = update(cached).where(cached.c.key == key).values(used_at=now).returning(*_COLUMNS)

        def job(connection: Connection) -> CacheEntry | None:
            row = connection.execute(statement).one_or_none()
            return None if row is None else _from_row(row)

        return await self._database.write(job)

    async def put(self, entry: CacheEntry) -> None:
        """See the port."""
        row = {name: getattr(entry, name) for name in _FIELDS}
        changed = {name: value for name, value in row.items() if name != "key"}
        statement = insert(cached).values(row).on_conflict_do_update(index_elements=["key"], set_=changed)
        await self._database.write(lambda connection: connection.execute(statement))

    async def remove(self, key: str) -> None:
        """See the port."""
        statement = delete(cached).where(cached.c.key == key)
        await self._database.write(lambda connection: connection.execute(statement))

    async def oldest(self, *, above_bytes: int) -> Sequence[CacheEntry]:
        """See the port."""
        too_many = (
            select(*(_ADDED_UP.c[name] for name in _FIELDS))
            .where(_ADDED_UP.c.up_to_here > above_bytes)
            .order_by(_ADDED_UP.c.used_at, _ADDED_UP.c.key)
        )

        def job(connection: Connection) -> Sequence[CacheEntry]:
            if connection.execute(_SIZE).one()[1] <= above_bytes:
                return ()
            return [_from_row(row) for row in connection.execute(too_many)]

        return await self._database.read(job)

    async def size(self) -> tuple[int, int]:
        """See the port."""

        def job(connection: Connection) -> tuple[int, int]:
            count, size_bytes = connection.execute(_SIZE).one()
            return count, size_bytes

        return await self._database.read(job)


def _from_row(row: Row[Any]) -> CacheEntry:
    facts = dict(row._mapping)  # noqa: SLF001 - its public name
    return CacheEntry(
        **facts | {"pictures": tuple(facts["pictures"]), "media_types": tuple(facts["media_types"])}
    )
