"""What was spent: entries of the ledger since some instant, one by one or added up."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime, time, timedelta

import msgspec

from imagen.domain.usage import UsageEntry, UsageGroup, group_usage, sum_usage
from imagen.errors import InvalidRequest
from imagen.ports import Ledger

TOTAL = "total"
_AGO = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Entries added up.

    Attributes:
        groups: the dearest first, days in order.
        total: of all groups.
        practice: how many predictions were made by the emulator and cost nothing.
    """

    groups: Sequence[UsageGroup]
    total: UsageGroup
    practice: int


async def report_usage(
    ledger: Ledger, *, since: datetime | None, by: str, practice_backends: Collection[str] = ()
) -> UsageReport:
    """What was spent since an instant, by `model`, `caller`, `backend` or `day`: a day is the user's own, local one."""
    entries = [to_local(entry) for entry in await ledger.entries(since=since)]
    return UsageReport(
        groups=group_usage(entries, by),
        total=sum_usage(TOTAL, entries),
        practice=sum(entry.backend in practice_backends and not entry.reused for entry in entries),
    )


def to_local(entry: UsageEntry) -> UsageEntry:
    """The entry with its instant in the local time zone."""
    return msgspec.structs.replace(entry, created_at=entry.created_at.astimezone())


def parse_since(text: str, *, now: datetime) -> datetime:
    """Read a date (its local midnight), an instant (local unless it tells its zone), `today`, `yesterday`, `7d`, `24h`.

    Raises:
        InvalidRequest: it is none of them.
    """
    wanted = text.strip().lower()
    try:
        if ago := _AGO.fullmatch(wanted):
            return now - int(ago["number"]) * _UNITS[ago["unit"]]
        if wanted in {"today", "yesterday"}:
            day = now.astimezone().date() - timedelta(days=wanted == "yesterday")
            return datetime.combine(day, time()).astimezone()
        # Without a zone it is local: `astimezone` reads it so, summer time included.
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"--since {text[:60]!r} is no date.",
            hint="Write 2026-11-01, 2026-11-01T08:30, today, yesterday, 7d, 24h or 2w.",
        ) from None
