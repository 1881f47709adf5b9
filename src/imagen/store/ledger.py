"""The ledger in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.usage import UsageEntry
from imagen.store.database import Database
from imagen.store.statement import Statement
from imagen.store.tables import predictions, usage

_FIELDS = UsageEntry.__struct_fields__


_WRITE = Statement(insert(usage).on_conflict_do_nothing(), columns=_FIELDS)
_SETTLED = Statement(
    update(predictions).where(predictions.c.id == bindparam("this_id")).values(settled_at=bindparam("now"))
)


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
        statement = select(*(usage.c[name] for name in _FIELDS)).order_by(
            usage.c.created_at.desc(), usage.c.id.desc()
        )
        if since is not None:
            statement = statement.where(usage.c.created_at >= since)
        if limit is not None:
            statement = statement.limit(limit)
        return await self._database.read(
            lambda connection: [UsageEntry(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001
        )


def write_entries(connection: Connection, entries: Sequence[UsageEntry]) -> None:
    """Write entries, in the transaction of `connection`; those that are there stay as they are."""
    _WRITE.run_many(connection, [{name: getattr(entry, name) for name in _FIELDS} for entry in entries])
