"""The table `mai.imagen_usage`: the SQL that makes it, and how an entry lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any
from uuid import UUID

from imagen.domain.identifiers import from_uuid, to_uuid
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.usage import UsageEntry

SCHEMA, TABLE = "mai", "imagen_usage"
PAGE = 1000
"""Rows that are read at once; PostgREST gives no more by default."""

_PLAIN = (
    "backend", "model", "seed", "prompt_hash", "latency_ms", "caller", "outcome", "images", "upstream_id", "key",
    "predict_seconds", "tier",
)  # fmt: skip
_MONEY = {"cost": "cost_usd_micros", "quoted": "quoted_usd_micros", "saved": "saved_usd_micros"}
COLUMNS = ("id", "created_at", *_PLAIN, "cost_usd_estimate", *_MONEY.values(), "parent")
_PREDICTION = "pred"


def schema_sql() -> str:
    """What makes the table, and adds what an older one lacks."""
    return files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")


def to_row(entry: UsageEntry) -> dict[str, Any]:
    """An entry by the columns of the table: ids are UUIDs, money is decimal dollars and whole micro-dollars."""
    row: dict[str, Any] = {name: getattr(entry, name) for name in _PLAIN}
    for field, column in _MONEY.items():
        amount: Usd | None = getattr(entry, field)
        row[column] = None if amount is None else amount.micros
    return row | {
        "id": to_uuid(entry.id),
        "created_at": entry.created_at.astimezone(UTC),
        "cost_usd_estimate": None if entry.cost is None else entry.cost.to_decimal(),
        "parent": None if entry.parent is None else to_uuid(entry.parent),
    }


def from_row(row: Mapping[str, Any]) -> UsageEntry:
    """An entry from its row, whose values may be text.

    The program for which the table was made first knows nine columns, and writes one row for each picture that
    succeeded: so what it leaves empty is filled in.
    """
    facts: dict[str, Any] = {name: row[name] for name in _PLAIN}
    if facts["outcome"] is None:
        facts |= {"outcome": Status.SUCCEEDED.value, "images": 1}
    for field, column in _MONEY.items():
        facts[field] = None if row[column] is None else Usd(row[column])
    estimate = row["cost_usd_estimate"]
    if facts["cost"] is None and estimate is not None:
        facts["cost"] = Usd.parse(Decimal(estimate))
    return UsageEntry(
        id=_ours(row["id"]),
        created_at=_instant(row["created_at"]),
        parent=None if row["parent"] is None else _ours(row["parent"]),
        **facts,
    )


def _ours(found: UUID | str) -> str:
    return from_uuid(_PREDICTION, found if isinstance(found, UUID) else UUID(found))


def _instant(found: datetime | str) -> datetime:
    at = datetime.fromisoformat(found) if isinstance(found, str) else found
    return at.astimezone(UTC)
