"""The ledger as its sink has it: what this machine wrote there, and others too."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from imagen.domain.usage import UsageEntry, UsageQuery
from imagen.errors import NotFound
from imagen.ports import Keys, Ledger, UsageSink
from imagen.service.usage import EntryPage, UsageBook, UsageReport, entry_facts, report_usage


class SinkBook(UsageBook):
    """A `UsageBook` that reads a sink. What it has read it keeps: it is for one look.

    Args:
        sink: the other place.
        ledger, keys, practice: as of a `UsageBook`.
    """

    def __init__(self, *, sink: UsageSink, ledger: Ledger, keys: Keys, practice: Collection[str]) -> None:
        super().__init__(ledger=ledger, keys=keys, practice=practice)
        self._sink = sink
        self._read: dict[UsageQuery, Sequence[UsageEntry]] = {}

    async def report(self, query: UsageQuery) -> UsageReport:
        """See `UsageBook`.

        Raises:
            SinkError: the sink could not be read.
        """
        query = msgspec.structs.replace(query, practice=self._practice)
        names = await self._names() if query.by == "key" else {}
        return await report_usage(await self._taken(query), query, keys=names)

    async def entries(self, query: UsageQuery, *, cursor: str | None = None, limit: int) -> EntryPage:
        """See `UsageBook`.

        Raises:
            NotFound: no page ended there.
            SinkError: the sink could not be read.
        """
        found = await self._taken(query)
        ids = [entry.id for entry in found]
        if cursor is not None and cursor not in ids:
            raise NotFound(f"no entry is called {cursor[:80]}")
        first = 0 if cursor is None else ids.index(cursor) + 1
        page = found[first : first + limit]
        more = page[-1].id if first + limit < len(found) else None
        return EntryPage(entries=[entry_facts(entry) for entry in page], next_cursor=more)

    async def _taken(self, query: UsageQuery) -> Sequence[UsageEntry]:
        whole = msgspec.structs.replace(query, by="model", practice=frozenset())
        if whole not in self._read:
            read = await self._sink.read(since=query.since)
            self._read[whole] = [entry for entry in read if query.takes(entry)]
        return self._read[whole]
