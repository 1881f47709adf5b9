"""How much durable work is left, counted."""

from __future__ import annotations

from sqlalchemy import Connection, func, select, true

from imagen.domain.batch import Control, ItemStatus
from imagen.ports import WorkStanding
from imagen.store.database import Database
from imagen.store.tables import batches, deliveries, items

_OPEN = (batches.c.ended_at.is_(None), batches.c.accepted == true())
_BATCHES = (
    select(batches.c.control, func.count())
    .where(*_OPEN, batches.c.kind == "batch")
    .group_by(batches.c.control)
)
_ITEMS = (
    select(items.c.status, func.count())
    .join(batches, items.c.batch_id == batches.c.id)
    .where(*_OPEN, items.c.status.in_([ItemStatus.QUEUED.value, ItemStatus.RUNNING.value]))
    .group_by(items.c.status)
)
_DELIVERIES = select(func.count(), func.count().filter(deliveries.c.attempts > 0)).where(
    deliveries.c.due_at.is_not(None)
)


class SqlStandings:
    """`ports.Standings` on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count_left(self) -> WorkStanding:
        """See the port."""
        return await self._database.read(_count)


def _count(connection: Connection) -> WorkStanding:
    wanted = {str(row[0]): int(row[1]) for row in connection.execute(_BATCHES)}
    found = {str(row[0]): int(row[1]) for row in connection.execute(_ITEMS)}
    waiting, failing = connection.execute(_DELIVERIES).one()
    paused = wanted.pop(Control.PAUSE.value, 0)
    return WorkStanding(
        batches_running=sum(wanted.values()),
        batches_paused=paused,
        items_queued=found.get(ItemStatus.QUEUED.value, 0),
        items_running=found.get(ItemStatus.RUNNING.value, 0),
        deliveries_waiting=waiting,
        deliveries_failing=failing,
    )
