"""What the ledger remembers: one entry for each prediction that ended, without its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status, hash_prompt

CACHED, SHARED = "cached", "shared"
"""Outcomes of predictions for which nothing was bought: their pictures are those of an equal one, made before or just
then. What of a shared one failed is told as `shared` too."""
REUSED = frozenset({CACHED, SHARED})


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `imagen_usage`. `cost` is None where no price is known: unknown is never zero."""

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

    @classmethod
    def from_prediction(cls, prediction: Prediction, *, at: datetime) -> UsageEntry:
        """The entry of an ended prediction. Its id is the prediction's, so that writing it twice adds nothing."""
        return cls(
            id=prediction.id,
            created_at=at,
            backend=prediction.backend,
            model=prediction.model,
            seed=prediction.seed,
            prompt_hash=hash_prompt(prediction.prompt),
            latency_ms=prediction.latency_ms or 0,
            cost=prediction.cost if prediction.charged is not False else Usd(0),
            caller=prediction.caller,
            outcome=prediction.status.value,
            images=len(prediction.output) if prediction.status is Status.SUCCEEDED else 0,
            upstream_id=prediction.upstream_id,
        )

    @property
    def reused(self) -> bool:
        """Whether nothing was bought for it."""
        return self.outcome in REUSED


class UsageGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Several entries added up under one name. What was reused counts as `cached` and nowhere else."""

    name: str
    predictions: int
    succeeded: int
    images: int
    cost: Usd
    unpriced: int
    mean_latency_ms: int
    cached: int = 0


GROUPINGS: dict[str, Callable[[UsageEntry], str]] = {
    "model": lambda entry: entry.model,
    "caller": lambda entry: entry.caller,
    "backend": lambda entry: entry.backend,
    "day": lambda entry: entry.created_at.astimezone(UTC).date().isoformat(),
}


def group_usage(entries: Iterable[UsageEntry], by: str) -> list[UsageGroup]:
    """Entries added up by `model`, `caller`, `backend` or `day` (UTC), dearest first, days in order."""
    buckets: dict[str, list[UsageEntry]] = {}
    for entry in entries:
        buckets.setdefault(GROUPINGS[by](entry), []).append(entry)
    groups = [sum_usage(name, bucket) for name, bucket in buckets.items()]
    if by == "day":
        return sorted(groups, key=lambda group: group.name)
    return sorted(groups, key=lambda group: (-group.cost.micros, group.name))


def sum_usage(name: str, entries: list[UsageEntry]) -> UsageGroup:
    """All entries in one group."""
    made = [entry for entry in entries if not entry.reused]
    return UsageGroup(
        name=name,
        predictions=len(made),
        succeeded=sum(entry.outcome == Status.SUCCEEDED for entry in made),
        images=sum(entry.images for entry in made),
        cost=Usd.total(entry.cost for entry in made if entry.cost is not None),
        unpriced=sum(entry.cost is None for entry in made),
        mean_latency_ms=round(sum(entry.latency_ms for entry in made) / len(made)) if made else 0,
        cached=len(entries) - len(made),
    )
