"""Stores that remember in memory. They pass the same contract suites as those on a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from imagen.domain.prediction import Prediction, Status
from imagen.domain.usage import UsageEntry, UsageQuery, UsageSummary, summarize
from imagen.errors import NotFound, StoreError, UpstreamTaken
from imagen.ports import Sight, Stretch


class Memory:
    """What a store and a ledger have in common."""

    def __init__(self) -> None:
        self.predictions: dict[str, Prediction] = {}
        self.usage: dict[str, UsageEntry] = {}
        self.sunk: dict[str, str] = {}


_SAID_ONCE = (
    "owner", "backend", "backend_type", "account", "model", "prompt", "input", "request_key", "caller", "created_at",
    "deadline_seconds", "seed",
)  # fmt: skip


class MemoryPredictionStore:
    """`ports.PredictionStore`."""

    def __init__(self, memory: Memory) -> None:
        self._rows = memory.predictions
        self._usage = memory.usage

    async def add(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> None:
        if prediction.id in self._rows:
            raise StoreError(f"prediction {prediction.id} is written down already")
        self._rows[prediction.id] = prediction
        if entry is not None:
            self._usage.setdefault(entry.id, entry)

    async def save(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> Prediction:
        stored = self._rows.get(prediction.id)
        if stored is None:
            raise NotFound(f"no prediction here is called {prediction.id!r}")
        if stored.status.terminal and stored.status is not prediction.status:
            return stored
        if prediction.upstream_id is not None and any(
            (other.account, other.upstream_id) == (prediction.account, prediction.upstream_id)
            for other in self._rows.values()
            if other.id != prediction.id
        ):
            raise UpstreamTaken(
                f"upstream prediction {prediction.upstream_id} belongs to another prediction here"
            )
        now = replace(
            prediction,
            status=stored.status if prediction.status is Status.QUEUED else prediction.status,
            upstream_id=prediction.upstream_id or stored.upstream_id,
            delivered_at=prediction.delivered_at or stored.delivered_at,
            settled_at=prediction.settled_at or stored.settled_at,
        )
        if entry is not None:
            self._usage.setdefault(entry.id, entry)
            now = replace(now, settled_at=entry.created_at)
        kept = tuple("data:" if url.startswith("data:") else url for url in prediction.output)
        said = {name: getattr(stored, name) for name in _SAID_ONCE}
        self._rows[prediction.id] = replace(now, **said, output=kept)
        return now

    async def get(self, prediction_id: str) -> Prediction:
        wanted = prediction_id.strip()
        found = [one for one in self._rows.values() if wanted in {one.id, one.upstream_id}]
        found = found or [one for one in self._rows.values() if wanted and one.id.startswith(wanted.lower())]
        if len(found) != 1:
            raise NotFound(
                f"{'several predictions begin with' if found else 'no prediction here is called'} {wanted!r}"
            )
        return found[0]

    async def status(self, prediction_id: str) -> Status | None:
        found = self._rows.get(prediction_id)
        return None if found is None else found.status

    async def promised(self, request_key: str) -> list[Prediction]:
        return []

    async def unfinished(
        self, *, request_key: str | None = None, besides: str | None = None
    ) -> Sequence[Prediction]:
        rows = sorted(self._rows.values(), key=lambda one: (one.created_at, one.id))
        return [
            one
            for one in rows
            if not one.finished
            and request_key in {None, one.request_key}
            and (besides is None or one.owner != besides)
        ]

    async def take(self, prediction_id: str, *, owner: str, was: str | None) -> bool:
        stored = self._rows.get(prediction_id)
        if stored is None or stored.owner != was:
            return False
        self._rows[prediction_id] = replace(stored, owner=owner)
        return True

    async def release(self, prediction_id: str, *, owner: str) -> None:
        stored = self._rows.get(prediction_id)
        if stored is not None and stored.owner == owner:
            self._rows[prediction_id] = replace(stored, owner=None)

    async def list(self, *, limit: int, status: Status | None = None) -> Sequence[Prediction]:
        rows = sorted(self._rows.values(), key=lambda one: (one.created_at, one.id), reverse=True)
        return [one for one in rows if status in {None, one.status}][:limit]

    async def stretch(self, sight: Sight, stretch: Stretch) -> Sequence[str]:
        rows = sorted(self._rows.values(), key=lambda one: one.id, reverse=not stretch.rising)
        return [
            one.id
            for one in rows
            if sight.key in {None, one.key}
            and sight.account in {None, one.account}
            and (sight.caller is None or (one.caller == sight.caller and one.key is None))
            and (stretch.above is None or one.id > stretch.above)
            and (stretch.below is None or one.id < stretch.below)
        ][: stretch.limit]

    async def unsettled(self) -> Sequence[Prediction]:
        return [
            one
            for one in self._rows.values()
            if one.settled_at is None and one.upstream_id is not None and one.status.terminal
        ]

    async def known_upstream_ids(self, account: str, *, since: datetime) -> frozenset[str]:
        return frozenset(
            one.upstream_id
            for one in self._rows.values()
            if one.account == account and one.upstream_id is not None and one.sent_at and one.sent_at >= since
        )

    async def of_upstream(self, account: str, upstream_ids: Sequence[str]) -> Sequence[Prediction]:
        return [
            one for one in self._rows.values() if one.account == account and one.upstream_id in upstream_ids
        ]

    async def unreadable(self) -> Sequence[str]:
        return []


class MemoryLedger:
    """`ports.Ledger`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def record(self, entries: Sequence[UsageEntry]) -> None:
        for entry in entries:
            self._memory.usage.setdefault(entry.id, entry)
            if (prediction := self._memory.predictions.get(entry.id)) is not None:
                self._memory.predictions[entry.id] = replace(prediction, settled_at=datetime.now(UTC))

    async def unsunk(self, sink: str, *, limit: int) -> Sequence[UsageEntry]:
        marks = self._memory.sunk
        without = {sink, f"refused:{sink}"}
        lacking = [one for one in self._memory.usage.values() if marks.get(one.id) not in without]
        return sorted(lacking, key=lambda one: (one.id in marks, marks.get(one.id, ""), one.created_at))[
            :limit
        ]

    async def count_unsunk(self, sink: str) -> int:
        return len(await self.unsunk(sink, limit=len(self._memory.usage))) + await self.count_refused(sink)

    async def sunk(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        self._memory.sunk |= {entry.id: sink for entry in entries}

    async def refused(self, sink: str, entries: Sequence[UsageEntry]) -> None:
        await self.sunk(f"refused:{sink}", entries)

    async def count_refused(self, sink: str) -> int:
        return list(self._memory.sunk.values()).count(f"refused:{sink}")

    async def offer_again(self, sink: str) -> None:
        marks = self._memory.sunk
        self._memory.sunk = {one: mark for one, mark in marks.items() if mark != f"refused:{sink}"}

    async def entries(
        self, *, since: datetime | None = None, limit: int | None = None
    ) -> Sequence[UsageEntry]:
        rows = sorted(self._memory.usage.values(), key=lambda one: (one.created_at, one.id), reverse=True)
        return [one for one in rows if since is None or one.created_at >= since][:limit]

    async def page(self, query: UsageQuery, *, before: str | None = None, limit: int) -> Sequence[UsageEntry]:
        rows = [one for one in await self.entries() if query.takes(one)]
        if before is not None:
            last = self._memory.usage.get(before)
            if last is None:
                raise NotFound(f"no entry is called {before}")
            rows = [one for one in rows if (one.created_at, one.id) < (last.created_at, last.id)]
        return rows[:limit]

    async def summary(self, query: UsageQuery) -> UsageSummary:
        return summarize(self._memory.usage.values(), query)
