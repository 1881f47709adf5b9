"""What was spent at a running gateway, as far as the key that is shown may see it."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlencode

from imagen.domain.usage import UsageQuery
from imagen.remote.connection import Connection
from imagen.service.usage import EntryPage, UsageReport

_REPORT_SECONDS = 120.0
"""How long a gateway may add up."""


class RemoteUsage:
    """What `UsageBook` does, at a running gateway, whose days are UTC; every method raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def report(self, query: UsageQuery) -> UsageReport:
        """See `UsageBook.report`."""
        asked = urlencode({**_period(query), "by": query.by})
        return await self._connection.ask(
            "GET", f"/usage?{asked}", UsageReport, admin=True, answer_seconds=_REPORT_SECONDS
        )

    async def entries(self, query: UsageQuery, *, cursor: str | None = None, limit: int) -> EntryPage:
        """See `UsageBook.entries`."""
        more = {} if cursor is None else {"cursor": cursor}
        asked = urlencode({**_period(query), **more, "limit": limit})
        return await self._connection.ask("GET", f"/usage/entries?{asked}", EntryPage, admin=True)


def _period(query: UsageQuery) -> dict[str, str]:
    ends = {"since": query.since, "until": query.until}
    return {name: _shown(instant) for name, instant in ends.items() if instant is not None}


def _shown(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()
