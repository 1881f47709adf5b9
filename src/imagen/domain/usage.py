"""What the ledger remembers: one entry for each prediction that ended, without its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status, Tier, hash_prompt

CACHED, SHARED = "cached", "shared"
"""Outcomes of predictions for which nothing was bought: their pictures are those of an equal one, made before or just
then. What of a shared one failed is told as `shared` too."""
REUSED = frozenset({CACHED, SHARED})


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `imagen_usage`. `cost` is None where no price is known: unknown is never zero.

    Attributes:
        key: the id of the key with which it was asked for.
        quoted: the likely cost that was told before.
        predict_seconds: how long the model ran, where the service tells it.
        saved: of a reused one, what the picture had cost when it was bought.
        kept: whether the user kept the pictures or rejected them; None where nobody said. Not a column of the row: it is
            read from the feedback.
    """

    id: str
    created_at: datetime
    backend: str
    model: str
    seed: int | None
    prompt_hash: str
    latency_ms: int
    cost: Usd | None
    caller: str
    outcome: str
    images: int = 0
    upstream_id: str | None = None
    key: str | None = None
    quoted: Usd | None = None
    predict_seconds: float | None = None
    saved: Usd | None = None
    tier: Tier | None = None
    parent: str | None = None
    kept: bool | None = None

    @classmethod
    def from_prediction(cls, prediction: Prediction, *, at: datetime) -> UsageEntry:
        """The entry of an ended prediction. Its id is the prediction's, so that writing it twice adds nothing."""
        return cls(
            id=prediction.id,
            created_at=at,
            backend=prediction.backend,
            model=prediction.model,
            seed=prediction.seed,
            prompt_hash=prediction.prompt_hash or hash_prompt(prediction.prompt),
            latency_ms=prediction.latency_ms or 0,
            cost=prediction.spent,
            caller=prediction.caller,
            outcome=prediction.status.value,
            images=len(prediction.output) if prediction.status is Status.SUCCEEDED else 0,
            upstream_id=prediction.upstream_id,
            key=prediction.key,
            quoted=prediction.quote.likely,
            predict_seconds=prediction.predict_seconds,
            tier=prediction.tier,
            parent=prediction.parent,
        )

    @property
    def reused(self) -> bool:
        """Whether nothing was bought for it."""
        return self.outcome in REUSED


class UsageGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Several entries added up under one name. What was reused counts as `cached` and `saved`, and nowhere else.

    Attributes:
        name: what they have in common; `NONE` for those that have nothing there.
        predictions: so many were made; succeeded: of these, the ones with pictures.
        images: pictures that came of them.
        cost: of those whose price is known; unpriced: how many have none.
        latency_ms: of all together; p50_ms, p95_ms: so long took the one in the middle, and all but the slowest 5 %.
        cached: answered with the pictures of an equal one; saved: what those had cost, as far as that is known.
        quoted: what was told before, of those where it and the cost are known; quoted_cost: what these came to.
        judged: so many were kept or rejected; kept: pictures of those that were kept.
        judged_cost: of the judged ones whose price is known; judged_unpriced: how many have none.
        practice: made by backends that cost nothing.
    """

    name: str
    predictions: int = 0
    succeeded: int = 0
    images: int = 0
    cost: Usd = Usd(0)
    unpriced: int = 0
    latency_ms: int = 0
    p50_ms: int = 0
    p95_ms: int = 0
    cached: int = 0
    saved: Usd = Usd(0)
    quoted: Usd = Usd(0)
    quoted_cost: Usd = Usd(0)
    judged: int = 0
    kept: int = 0
    judged_cost: Usd = Usd(0)
    judged_unpriced: int = 0
    practice: int = 0

    @property
    def mean_latency_ms(self) -> int:
        """Zero where none was made."""
        return round(self.latency_ms / self.predictions) if self.predictions else 0

    @property
    def success_rate(self) -> float | None:
        """From 0.0 to 1.0; None where none was made."""
        return self.succeeded / self.predictions if self.predictions else None

    @property
    def cost_per_kept(self) -> Usd | None:
        """What the judged ones cost, the rejected ones too, for each picture that was kept.

        None where nobody kept one, and where the price of a judged one is not known.
        """
        if not self.kept or self.judged_unpriced:
            return None
        return Usd((2 * self.judged_cost.micros + self.kept) // (2 * self.kept))


SUMMED = tuple(name for name in UsageGroup.__struct_fields__ if name not in {"name", "p50_ms", "p95_ms"})
"""What of a group is the sum of its parts'."""
MONEY = frozenset({"cost", "saved", "quoted", "quoted_cost", "judged_cost"})
PERCENTILES = {"p50_ms": 50, "p95_ms": 95}
GROUPINGS = ("model", "caller", "backend", "day", "key", "tier")
"""By what entries are added up."""
NONE = "(none)"
"""The name of those without a key, or without a tier."""
TOTAL = "total"


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are added up, and how.

    Attributes:
        since: only what was created then or later, aware; None for all.
        until: only what was created before, aware; None for all.
        by: one of `GROUPINGS`.
        key: only what was asked for with the key of that id.
        keyless: only what that caller asked for without a key.
        local_days: a day is one of this machine's time zone; else it is one of UTC.
        practice: names of backends that cost nothing.
    """

    since: datetime | None = None
    until: datetime | None = None
    by: str = "model"
    key: str | None = None
    keyless: str | None = None
    local_days: bool = False
    practice: frozenset[str] = frozenset()

    def takes(self, entry: UsageEntry) -> bool:
        """Whether an entry counts."""
        return (
            (self.since is None or entry.created_at >= self.since)
            and (self.until is None or entry.created_at < self.until)
            and (self.key is None or entry.key == self.key)
            and (self.keyless is None or (entry.caller == self.keyless and entry.key is None))
        )

    def name_of(self, entry: UsageEntry) -> str:
        """Under what an entry counts."""
        if self.by == "day":
            return entry.created_at.astimezone(None if self.local_days else UTC).date().isoformat()
        name: str | None = getattr(entry, self.by)
        return NONE if name is None else name


class UsageSummary(msgspec.Struct, frozen=True):
    """Entries added up.

    Attributes:
        groups: the dearest first, days in order.
        total: of all of them.
    """

    groups: tuple[UsageGroup, ...]
    total: UsageGroup


def summarize(entries: Iterable[UsageEntry], query: UsageQuery) -> UsageSummary:
    """Add up those entries that a query takes. They are looked at one by one, and none is held."""
    sums: dict[str, _Sums] = {}
    for entry in entries:
        if query.takes(entry):
            name = query.name_of(entry)
            found = sums.get(name)
            if found is None:
                found = sums[name] = _Sums()
            found.add(entry, practice=entry.backend in query.practice)
    latencies = Counter[int]()
    for each in sums.values():
        latencies.update(each.latencies)
    return summary_of([each.to_group(name) for name, each in sums.items()], by=query.by, **_shares(latencies))


def sum_usage(entries: Iterable[UsageEntry]) -> UsageGroup:
    """All entries in one group."""
    return summarize(entries, UsageQuery()).total


def summary_of(groups: Iterable[UsageGroup], *, by: str, p50_ms: int, p95_ms: int) -> UsageSummary:
    """Groups in their order, and their total.

    Args:
        groups: in any order.
        by: what they were grouped by.
        p50_ms: of all of them together, as percentiles cannot be added up.
        p95_ms: likewise.
    """
    if by == "day":
        ordered = sorted(groups, key=lambda group: group.name)
    else:
        ordered = sorted(groups, key=lambda group: (-group.cost.micros, group.name))
    summed: dict[str, Any] = {
        name: sum((getattr(group, name) for group in ordered), Usd(0) if name in MONEY else 0)
        for name in SUMMED
    }
    return UsageSummary(tuple(ordered), UsageGroup(name=TOTAL, p50_ms=p50_ms, p95_ms=p95_ms, **summed))


def percentile(counts: Mapping[int, int], percent: int) -> int:
    """The smallest value that is not below `percent` of a hundred of all: exact, by the nearest rank. Zero for none.

    Args:
        counts: how often each value came.
        percent: 1 to 100.
    """
    whole, so_far = sum(counts.values()), 0
    for value in sorted(counts):
        so_far += counts[value]
        if 100 * so_far >= percent * whole:
            return value
    return 0


def _shares(latencies: Mapping[int, int]) -> dict[str, int]:
    return {name: percentile(latencies, percent) for name, percent in PERCENTILES.items()}


class _Sums:
    """What is added up of one group, in plain numbers."""

    def __init__(self) -> None:
        self.of = dict.fromkeys(SUMMED, 0)
        self.latencies = Counter[int]()

    def add(self, entry: UsageEntry, *, practice: bool) -> None:
        of, cost = self.of, entry.cost
        if entry.reused:
            of["cached"] += 1
            of["saved"] += 0 if entry.saved is None else entry.saved.micros
            return
        of["predictions"] += 1
        of["succeeded"] += entry.outcome == Status.SUCCEEDED
        of["images"] += entry.images
        of["latency_ms"] += entry.latency_ms
        of["practice"] += practice
        self.latencies[entry.latency_ms] += 1
        if cost is None:
            of["unpriced"] += 1
        else:
            of["cost"] += cost.micros
        if entry.quoted is not None and cost is not None:
            of["quoted"] += entry.quoted.micros
            of["quoted_cost"] += cost.micros
        if entry.kept is not None:
            of["judged"] += 1
            of["kept"] += entry.images if entry.kept else 0
            if cost is None:
                of["judged_unpriced"] += 1
            else:
                of["judged_cost"] += cost.micros

    def to_group(self, name: str) -> UsageGroup:
        return group_of(name, self.of, **_shares(self.latencies))


def group_of(name: str, sums: Mapping[str, int], *, p50_ms: int, p95_ms: int) -> UsageGroup:
    """A group of plain numbers.

    Args:
        name: of the group.
        sums: one for each of `SUMMED`, money in micro-dollars.
        p50_ms: its median latency.
        p95_ms: what 95 of 100 did not exceed.
    """
    facts: dict[str, Any] = {field: Usd(sums[field]) if field in MONEY else sums[field] for field in SUMMED}
    return UsageGroup(name=name, p50_ms=p50_ms, p95_ms=p95_ms, **facts)
