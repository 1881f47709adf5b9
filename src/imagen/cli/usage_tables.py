"""The tables of `imagen usage`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from imagen.cli.tables import format_table
from imagen.domain.money import from_dollars
from imagen.domain.usage import UsageEntry
from imagen.service.usage import GroupFacts, UsageReport

RAW_COLUMNS = (
    "created_at",
    "backend",
    "model",
    "seed",
    "prompt_hash",
    "latency_ms",
    "cost_usd_estimate",
    "caller",
)
GROUP_COLUMNS = ("predictions", "succeeded", "success", "images", "cost", "p50_s", "p95_s")
JUDGED_COLUMNS = ("kept", "cost_per_kept")
_HASH_DIGITS = 12
_EPSILON = 1e-6
"""A tenth of a percent may be stored as a little less than it is."""


def format_groups(report: UsageReport, limit: int | None = None) -> list[str]:
    """Groups and their total; what was kept has columns where anything was judged."""
    columns = GROUP_COLUMNS + (JUDGED_COLUMNS if report.total.judged else ())
    name = f"{report.by} ({report.days})" if report.by == "day" and report.days == "UTC" else report.by
    rows = [group_cells(group)[: len(columns) + 1] for group in report.groups[:limit]]
    total = group_cells(report.total)[: len(columns) + 1]
    return format_table((name, *columns), rows, right=columns, total=total)


def group_cells(group: GroupFacts) -> Sequence[str]:
    """The cells of a group: its name, then `GROUP_COLUMNS`, then `JUDGED_COLUMNS`."""
    made = group.predictions > 0
    return (
        group.name,
        str(group.predictions),
        str(group.succeeded),
        "" if group.success_rate is None else shown_rate(group.success_rate),
        str(group.images),
        shown_cost(group),
        f"{group.p50_seconds:.1f}" if made else "",
        f"{group.p95_seconds:.1f}" if made else "",
        str(group.kept) if group.judged else "",
        "" if group.cost_per_kept_usd is None else str(from_dollars(group.cost_per_kept_usd)),
    )


def shown_rate(rate: float) -> str:
    """A share in percent, cut and not rounded: only what is all of them is 100 %."""
    return f"{math.floor(1000 * rate + _EPSILON) / 10:g}%"


def shown_cost(group: GroupFacts) -> str:
    """What is unknown is no zero: it shows."""
    if group.cost_usd is None:
        return "?"
    return f"{from_dollars(group.cost_usd)} + ?" if group.unpriced else str(from_dollars(group.cost_usd))


def notes_on(total: GroupFacts) -> list[str]:
    """What the table leaves out, in sentences."""
    notes = []
    if total.unpriced:
        notes.append(f"{total.unpriced} without a known price: the cost above leaves them out.")
    if total.practice:
        notes.append(
            f"{total.practice} of {total.predictions} were practice on the emulator and cost nothing."
        )
    if total.cached:
        requests = "request was" if total.cached == 1 else "requests were"
        notes.append(
            f"{total.cached} {requests} answered with pictures of equal ones, not counted above: "
            f"{from_dollars(total.saved_usd)} saved."
        )
    if total.quoted_usd:
        notes.append(
            f"Quoted {from_dollars(total.quoted_usd)}, came to {from_dollars(total.quoted_cost_usd)}, "
            "of those where both are known."
        )
    if total.judged:
        notes.append(
            f"{total.judged} of {total.predictions} were kept or rejected; cost_per_kept is of these."
        )
    return notes


def format_entries(entries: Sequence[UsageEntry], total: GroupFacts) -> list[str]:
    """One line for each entry, and their total."""
    count = f"{total.predictions} {'prediction' if total.predictions == 1 else 'predictions'}"
    last = ("total", count, "", "", "", f"mean {round(1000 * total.mean_seconds)}", shown_cost(total), "")
    right = ("seed", "latency_ms", "cost_usd_estimate")
    return format_table(RAW_COLUMNS, map(_entry_cells, entries), right=right, total=last)


def _entry_cells(entry: UsageEntry) -> Sequence[str]:
    return (
        entry.created_at.astimezone().isoformat(timespec="seconds"),
        entry.backend,
        entry.model,
        "-" if entry.seed is None else str(entry.seed),
        entry.prompt_hash[:_HASH_DIGITS],
        str(entry.latency_ms),
        "?" if entry.cost is None else str(entry.cost),
        entry.caller,
    )
