"""The ledger in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.usage import UsageEntry, UsageQuery, UsageSummary
from imagen.store.budgets import settle
from imagen.store.database import Database
from imagen.store.statement import Statement
from imagen.store.tables import predictions, usage
from imagen.store.usage_summary import WHOLE_ENTRIES, read_page, read_summary

_FIELDS = tuple(name for name in UsageEntry.__struct_fields__ if name != "kept")

_WRITE = Statement(insert(usage).on_conflict_do_nothing(), columns=_FIELDS)
_SETTLED = Statement(
    update(predictions).where(predictions.c.id == bindparam("this_id")).values(settled_at=bindparam("now"))
)
_SUNK = Statement(update(usage).where(usage.c.id == bindparam("this_id")).values(sink=bindparam("this_sink")))


class SqlLedger:
    """`ports.Ledger` on one database: the table `imagen_usage`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, entries: Sequence[UsageEntry]) -> None:
        """See the port."""
        if not entries:
            return
        now = datetime.now(UTC)

        def job(connection: Connection) -> None:
            write_entries(connection, entries)
            _SETTLED.run_many(connection, [{"this_id": entry.id, "now": now} for entry in entries])

        await self._database.write(job)

    async def entries(
        self, *, since: datetime | None = None, limit: int | None = None
    ) -> Sequence[UsageEntry]:
        """See the port."""
        statement = WHOLE_ENTRIES
        if since is not None:
            statement = statement.where(usage.c.created_at >= since)
        if limit is not None:
            statement = statement.limit(limit)
        return await self._database.read(
            lambda connection: [UsageEntry(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001
        )

    async def page(self, query: UsageQuery, *, before: str | None = None, limit: int) -> Sequence[UsageEntry]:
        """See the port."""
        return await self._database.read(
            lambda connection: read_page(connection, query, before=before, limit=limit)
        )

    async def summary(self, query: UsageQuery) -> UsageSummary:
        """See the port."""
        return await self._database.read(lambda connection: read_summary(connection, query))

    async def unsunk(self, sink: str, *, limit: int) -> Sequence[UsageEntry]:
        """See the port."""
        columns = [usage.c[name] for name in _FIELDS]

        def job(connection: Connection) -> list[UsageEntry]:
            found: list[UsageEntry] = []
            for which in _places_without(sink):
                # Each in the order of its index: among a million entries the next few cost nothing.
                statement = (
                    select(*columns)
                    .where(which)
                    .order_by(usage.c.sink, usage.c.created_at)
                    .limit(limit - len(found))
                )
                found += [UsageEntry(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001
                if len(found) == limit:
                    break
            return found

        return await self._database.read(job)

    async def count_unsunk(self, sink: str) -> int:
        """See the port."""
        return await self._count(or_(*_places_without(sink), usage.c.sink == _refusal_of(sink)))

    async def sunk(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        """See the port."""
        rows = [{"this_id": entry.id, "this_sink": sink} for entry in entries]
        await self._database.write(lambda connection: _SUNK.run_many(connection, rows))

    async def refused(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        """See the port."""
        await self.sunk(_refusal_of(sink), entries)

    async def count_refused(self, sink: str) -> int:
        """See the port."""
        return await self._count(usage.c.sink == _refusal_of(sink))

    async def offer_again(self, sink: str) -> None:
        """See the port."""
        statement = update(usage).where(usage.c.sink == _refusal_of(sink)).values(sink=None)
        await self._database.write(lambda connection: connection.execute(statement))

    async def _count(self, which: ColumnElement[bool]) -> int:
        statement = select(func.count()).select_from(usage).where(which)
        return await self._database.read(lambda connection: connection.execute(statement).scalar_one())


def _refusal_of(sink: str) -> str:
    """What stands in the place of a sink's name at an entry that it refused."""
    return f"refused:{sink}"


def _places_without(sink: str) -> tuple[ColumnElement[bool], ...]:
    """Entries that no sink has, and those that another one has or refused: three ranges of the index."""
    others = usage.c.sink != _refusal_of(sink)
    return usage.c.sink.is_(None), and_(usage.c.sink < sink, others), and_(usage.c.sink > sink, others)


def write_entries(connection: Connection, entries: Sequence[UsageEntry]) -> None:
    """Write entries, in the transaction of `connection`, and settle what was reserved for them.

    Those that are there stay as they are, and are settled.
    """
    for entry in entries:
        row = {name: getattr(entry, name) for name in _FIELDS}
        if _WRITE.run(connection, row).rowcount:
            settle(connection, entry)
