"""What callers thought of their pictures, in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.feedback import Feedback
from imagen.store import tables
from imagen.store.database import Database

_TABLE = tables.feedback
_NAMES = Feedback.__struct_fields__


class SqlFeedback:
    """`ports.FeedbackStore` on one database: the table `feedback`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, feedback: Feedback) -> Feedback:
        """See the port."""
        row = {name: getattr(feedback, name) for name in _NAMES}
        statement = insert(_TABLE).values(row)
        changed = {name: statement.excluded[name] for name in _NAMES if name != "prediction_id"}
        # The same said again changes nothing, not even when it was said.
        statement = statement.on_conflict_do_update(
            index_elements=["prediction_id"], set_=changed, where=_TABLE.c.kept != statement.excluded.kept
        )
        counts = select(*(_TABLE.c[name] for name in _NAMES)).where(
            _TABLE.c.prediction_id == feedback.prediction_id
        )

        def job(connection: Connection) -> Feedback:
            connection.execute(statement)
            return Feedback(**connection.execute(counts).one()._mapping)  # noqa: SLF001 - its public name

        return await self._database.write(job)

    async def list(self, *, caller: str | None = None) -> Sequence[Feedback]:
        """See the port."""
        statement = select(*(_TABLE.c[name] for name in _NAMES)).order_by(
            _TABLE.c.at.desc(), _TABLE.c.prediction_id
        )
        if caller is not None:
            statement = statement.where(_TABLE.c.caller == caller)
        return await self._database.read(
            lambda connection: [Feedback(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001
        )

    async def erase(self, *, caller: str | None = None) -> int:
        """See the port."""
        statement = delete(_TABLE)
        if caller is not None:
            statement = statement.where(_TABLE.c.caller == caller)
        return int(await self._database.write(lambda connection: connection.execute(statement).rowcount))
