"""What the ledger remembers: one entry for each prediction that ended, without its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status, hash_prompt


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


class UsageGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Several entries added up under one name."""

    name: str
    predictions: int
    succeeded: int
    images: int
    cost: Usd
    unpriced: int
    mean_latency_ms: int


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
    return UsageGroup(
        name=name,
        predictions=len(entries),
        succeeded=sum(entry.outcome == Status.SUCCEEDED for entry in entries),
        images=sum(entry.images for entry in entries),
        cost=Usd.total(entry.cost for entry in entries if entry.cost is not None),
        unpriced=sum(entry.cost is None for entry in entries),
        mean_latency_ms=round(sum(entry.latency_ms for entry in entries) / len(entries)) if entries else 0,
    )
