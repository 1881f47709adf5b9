"""How long models run, in SQL."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from imagen.store.database import Database
from imagen.store.tables import run_times


class SqlRunTimes:
    """`ports.RunTimes` on one database: the table `run_times`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def recall(self) -> Mapping[str, Mapping[str, float]]:
        """See the port."""
        statement = select(run_times.c.model, run_times.c.learned)

        def job(connection: Connection) -> Mapping[str, Mapping[str, float]]:
            return {row.model: row.learned for row in connection.execute(statement)}

        return await self._database.read(job)

    async def remember(self, learned: Mapping[str, Mapping[str, float]]) -> None:
        """See the port."""
        if not learned:
            return
        rows = [{"model": model, "learned": dict(numbers)} for model, numbers in learned.items()]
        statement = insert(run_times).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=["model"], set_={"learned": statement.excluded.learned}
        )

        def job(connection: Connection) -> None:
            connection.execute(statement)

        await self._database.write(job)
