"""What each day cost and how long it took, drawn in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta

from imagen.cli.tables import format_table
from imagen.cli.usage_tables import shown_cost
from imagen.service.usage import GroupFacts, UsageReport

MOST_DAYS = 400
"""So many days are shown with the empty ones between them."""
_PARTS = " ▏▎▍▌▋▊▉█"
_FULL, _LIGHT = "█", "░"
_NARROWEST, _WIDEST = 10, 60
_TEXT_COLUMNS = 46
"""For the day, the numbers and the gaps."""


def plot_days(days: UsageReport, *, columns: int) -> list[str]:
    """Two bars for each day: its cost, and its latency, full up to the median and light up to the 95th percentile.

    Args:
        days: added up by day.
        columns: of the terminal.
    """
    size = max(_NARROWEST, min(_WIDEST, (columns - _TEXT_COLUMNS) // 2))
    shown = list(every_day(days.groups))
    dearest = max((group.cost_usd or 0.0 for _, group in shown if group), default=0.0)
    slowest = max((group.p95_seconds for _, group in shown if group), default=0.0)
    rows = [_row(day, group, dearest=dearest, slowest=slowest, size=size) for day, group in shown]
    header = ("day", "cost", "", "p50_s", "p95_s", f"{_FULL} p50 {_LIGHT} p95")
    return format_table(header, rows, right=("cost", "p50_s", "p95_s"))


def every_day(groups: Iterable[GroupFacts]) -> Iterator[tuple[str, GroupFacts | None]]:
    """Each day on which something was made with its group, the days between without one.

    Where these would be too many they are left out.
    """
    known = {group.name: group for group in groups if group.predictions}
    if not known:
        return
    first, last = (date.fromisoformat(name) for name in (min(known), max(known)))
    if (last - first).days >= MOST_DAYS:
        yield from known.items()
        return
    for number in range((last - first).days + 1):
        name = (first + timedelta(days=number)).isoformat()
        yield name, known.get(name)


def _row(day: str, group: GroupFacts | None, *, dearest: float, slowest: float, size: int) -> Sequence[str]:
    if group is None:
        return (day, "", "", "", "", "")
    middle = _cells(group.p50_seconds, slowest, size)
    light = _LIGHT * (_cells(group.p95_seconds, slowest, size) - middle)
    return (
        day,
        shown_cost(group),
        _bar(group.cost_usd or 0.0, dearest, size),
        f"{group.p50_seconds:.1f}",
        f"{group.p95_seconds:.1f}",
        _FULL * middle + light,
    )


def _cells(value: float, most: float, size: int) -> int:
    return round(size * value / most) if most else 0


def _bar(value: float, most: float, size: int) -> str:
    """A bar by eighths of a cell; what is more than nothing shows."""
    eighths = max(round(8 * size * value / most), 1) if most and value else 0
    whole, part = divmod(eighths, 8)
    return _FULL * whole + (_PARTS[part] if part else "")
