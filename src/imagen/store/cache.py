"""What is in the cache of pictures, in SQL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    LargeBinary,
    Row,
    cast,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from imagen.decoding import convert
from imagen.ports import CacheEntry
from imagen.store.damage import DAMAGE, is_damage
from imagen.store.database import Database
from imagen.store.tables import cached

_FIELDS = CacheEntry.__struct_fields__
_COLUMNS = tuple(cached.c[name] for name in _FIELDS)
_LATEST_FIRST = (cached.c.used_at.desc(), cached.c.key.desc())
_UP_TO_HERE = func.sum(cached.c.size_bytes).over(order_by=_LATEST_FIRST, rows=(None, 0)).label("up_to_here")
_NUMBER = literal_column("cached.rowid", BigInteger).label("number")
"""Which row it is, also where nothing that is written in it can be read."""
_ADDED_UP = select(*_COLUMNS, _NUMBER, _UP_TO_HERE).subquery()
_SIZE = select(func.count(), func.coalesce(func.sum(cached.c.size_bytes), 0)).select_from(cached)

_log = logging.getLogger(__name__)


class SqlCacheIndex:
    """`ports.CacheIndex` on one database: the table `cached`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: str, *, now: datetime) -> CacheEntry | None:
        """See the port. Only a hit writes: a miss is told by a reader, who waits for nobody."""
        there = select(cached.c.key).where(cached.c.key == key)
        if not await self._database.read(lambda connection: connection.execute(there).first()):
            return None
        use = update(cached).where(cached.c.key == key).values(used_at=now)

        def job(connection: Connection) -> CacheEntry | int | None:
            number = connection.execute(select(_NUMBER).where(cached.c.key == key)).scalar()
            if number is None:
                return None
            connection.execute(use)
            found = _read(connection, number)
            return number if found is None else found

        found = await self._database.write(job)
        if isinstance(found, int):
            await self._forget([found])
            return None
        return found

    async def put(self, entry: CacheEntry) -> None:
        """See the port."""
        row = {name: getattr(entry, name) for name in _FIELDS}
        changed = {name: value for name, value in row.items() if name != "key"}
        statement = insert(cached).values(row).on_conflict_do_update(index_elements=["key"], set_=changed)
        await self._database.write(lambda connection: connection.execute(statement))

    async def remove(self, key: str, *, prediction_id: str) -> None:
        """See the port."""
        statement = delete(cached).where(cached.c.key == key, cached.c.prediction_id == prediction_id)
        await self._database.write(lambda connection: connection.execute(statement))

    async def oldest(self, *, above_bytes: int) -> Sequence[CacheEntry]:
        """See the port."""
        too_many = (
            select(*(_ADDED_UP.c[name] for name in _FIELDS))
            .where(_ADDED_UP.c.up_to_here > above_bytes)
            .order_by(_ADDED_UP.c.used_at, _ADDED_UP.c.key)
        )

        def job(connection: Connection) -> tuple[Sequence[CacheEntry], Sequence[int]]:
            if connection.execute(_SIZE).one()[1] <= above_bytes:
                return (), ()
            try:
                return [_from_row(row) for row in connection.execute(too_many)], ()
            except DAMAGE as error:
                if not is_damage(error):
                    raise
            numbers = connection.execute(too_many.with_only_columns(_ADDED_UP.c.number)).scalars().all()
            read = [(number, _read(connection, number)) for number in numbers]
            return [one for _, one in read if one is not None], [each for each, one in read if one is None]

        found, damaged = await self._database.read(job)
        if damaged:
            await self._forget(damaged)
        return found

    async def size(self) -> tuple[int, int]:
        """See the port."""

        def job(connection: Connection) -> tuple[int, int]:
            count, size_bytes = connection.execute(_SIZE).one()
            return count, size_bytes

        return await self._database.read(job)

    async def _forget(self, numbers: Sequence[int]) -> None:
        """Forget rows that cannot be read. They may have been replaced since they were met: whole ones stay."""
        whose = select(cast(cached.c.prediction_id, LargeBinary))

        def job(connection: Connection) -> Sequence[bytes]:
            forgotten = list[bytes]()
            for number in numbers:
                if _read(connection, number) is None:
                    forgotten += connection.execute(whose.where(_NUMBER.element == number)).scalars()
                    connection.execute(delete(cached).where(_NUMBER.element == number))
            return forgotten

        for prediction_id in await self._database.write(job):
            whom = prediction_id.decode(errors="replace")
            _log.warning("the cached pictures of %s are forgotten: their row cannot be read", whom)


def _from_row(row: Row[Any]) -> CacheEntry:
    return convert(dict(zip(_FIELDS, row, strict=True)), CacheEntry)


def _read(connection: Connection, number: int) -> CacheEntry | None:
    """What one row says; None when that cannot be read, or it is gone."""
    try:
        row = connection.execute(select(*_COLUMNS).where(_NUMBER.element == number)).one_or_none()
        return None if row is None else _from_row(row)
    except DAMAGE as error:
        if not is_damage(error):
            raise
        return None
