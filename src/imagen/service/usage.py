"""What was spent: entries of the ledger in some time, one by one or added up.

`report_usage` takes whatever has entries: the ledger, which adds them up itself, or entries that came from elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Literal

import msgspec

from imagen.domain.money import from_dollars, to_dollars
from imagen.domain.prediction import Tier
from imagen.domain.usage import (
    GROUPINGS,
    NONE,
    UsageEntry,
    UsageGroup,
    UsageQuery,
    UsageSummary,
    summarize,
)
from imagen.errors import InvalidRequest
from imagen.ports import Keys, Ledger

_DURATION = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_SHOWN_RATE = 4
"""Digits of a rate behind the point."""


# --- what is told ----------------------------------------------------------------------------------------


class GroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Several predictions added up. Those answered with the pictures of an equal one count as `cached` and `saved_usd` only.

    Attributes:
        name: what they have in common; `(none)` for those without.
        predictions: so many were made.
        succeeded: of these, the ones with pictures.
        success_rate: their share, 0 to 1; null where none was made.
        images: pictures that came of them.
        cost_usd: what they cost as far as that is known; null where it is known of none.
        unpriced: so many have no known price; the cost leaves them out.
        mean_seconds: from the moment one was sent until its end, on average.
        p50_seconds: half of them took no longer.
        p95_seconds: 95 of 100 took no longer.
        cached: so many were answered with the pictures of an equal one, at no cost.
        saved_usd: what those had cost, as far as that is known.
        quoted_usd: what was told before, of those whose quote and cost are known.
        quoted_cost_usd: what exactly those came to.
        judged: so many were kept or rejected by whoever wanted them.
        kept: pictures of those that were kept.
        cost_per_kept_usd: what the judged ones cost, the rejected ones too, for each kept picture; null where that is not known.
        practice: so many were made by the emulator and cost nothing.
        key_id: the id of the key, where they are added up by key.
    """

    name: str
    predictions: int
    succeeded: int
    success_rate: float | None
    images: int
    cost_usd: float | None
    unpriced: int
    mean_seconds: float
    p50_seconds: float
    p95_seconds: float
    cached: int
    saved_usd: float
    quoted_usd: float
    quoted_cost_usd: float
    judged: int
    kept: int
    cost_per_kept_usd: float | None
    practice: int
    key_id: str | None = None


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was made in some time, added up.

    Attributes:
        since: only what ended then or later; null for all.
        until: only what ended before then; null for all.
        by: what the groups have in common: `model`, `caller`, `backend`, `day`, `key` or `tier`.
        days: whose days they are: `UTC`, or `local` on the command line.
        groups: the dearest first, days in order.
        total: all of them together.
        practice: so many were made by the emulator and cost nothing.
    """

    since: datetime | None
    until: datetime | None
    by: str
    days: Literal["UTC", "local"]
    groups: list[GroupFacts]
    total: GroupFacts
    practice: int


class EntryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the ledger: a prediction that ended.

    Attributes:
        id: `pred_…`.
        created_at: when it ended.
        backend: where it was made; model: by which, with a version where one was pinned.
        seed: null where the model takes none.
        prompt_hash: all that the ledger knows of the prompt.
        latency_ms: from the moment it was sent until its end.
        cost_usd_estimate: by the price book; null where the price is not known.
        caller: whom it was made for.
        outcome: `succeeded`, `failed`, `canceled`, `aborted`, `unknown`; `cached` and `shared` were not made anew.
        images: how many pictures came of it.
        upstream_id: Replicate's id.
        key_id: the id of the key with which it was asked for.
        quoted_usd: the likely cost that was told before.
        predict_seconds: how long the model ran.
        saved_usd: what the pictures had cost that it was answered with.
        tier: `preview` or `final`.
        parent: the preview that a final was made of.
        kept: whether the pictures were kept or rejected; null where nobody said.
    """

    id: str
    created_at: datetime
    backend: str
    model: str
    seed: int | None
    prompt_hash: str
    latency_ms: int
    cost_usd_estimate: float | None
    caller: str
    outcome: str
    images: int
    upstream_id: str | None = None
    key_id: str | None = None
    quoted_usd: float | None = None
    predict_seconds: float | None = None
    saved_usd: float | None = None
    tier: Tier | None = None
    parent: str | None = None
    kept: bool | None = None


class EntryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some entries, newest first.

    Attributes:
        entries: of the page.
        next_cursor: asks for the next page; null when this is the last one.
    """

    entries: list[EntryFacts]
    next_cursor: str | None


GROUP_FIELDS = GroupFacts.__struct_fields__
ENTRY_FIELDS = EntryFacts.__struct_fields__
_DOLLARS = frozenset(name for name in (*GROUP_FIELDS, *ENTRY_FIELDS) if "_usd" in name)


def facts_of(group: UsageGroup, *, label: str | None = None, key_id: str | None = None) -> GroupFacts:
    """A group as it is told.

    Args:
        group: added up.
        label: what it is called in place of its name.
        key_id: of a group of one key.
    """
    nothing_known = 0 < group.unpriced == group.predictions
    rate, per_kept = group.success_rate, group.cost_per_kept
    return GroupFacts(
        name=group.name if label is None else label,
        predictions=group.predictions,
        succeeded=group.succeeded,
        success_rate=None if rate is None else round(rate, _SHOWN_RATE),
        images=group.images,
        cost_usd=None if nothing_known else group.cost.to_json(),
        unpriced=group.unpriced,
        mean_seconds=group.mean_latency_ms / 1000,
        p50_seconds=group.p50_ms / 1000,
        p95_seconds=group.p95_ms / 1000,
        cached=group.cached,
        saved_usd=group.saved.to_json(),
        quoted_usd=group.quoted.to_json(),
        quoted_cost_usd=group.quoted_cost.to_json(),
        judged=group.judged,
        kept=group.kept,
        cost_per_kept_usd=to_dollars(per_kept),
        practice=group.practice,
        key_id=key_id,
    )


def entry_facts(entry: UsageEntry) -> EntryFacts:
    """An entry as it is told."""
    return EntryFacts(
        **{name: getattr(entry, name) for name in ENTRY_FIELDS if name not in _DOLLARS and name != "key_id"},
        key_id=entry.key,
        cost_usd_estimate=to_dollars(entry.cost),
        quoted_usd=to_dollars(entry.quoted),
        saved_usd=to_dollars(entry.saved),
    )


def entry_of(facts: EntryFacts) -> UsageEntry:
    """The entry that was told."""
    return UsageEntry(
        **{
            name: getattr(facts, name)
            for name in UsageEntry.__struct_fields__
            if name not in {"key", "cost", "quoted", "saved"}
        },
        key=facts.key_id,
        cost=from_dollars(facts.cost_usd_estimate),
        quoted=from_dollars(facts.quoted_usd),
        saved=from_dollars(facts.saved_usd),
    )


def csv_row(facts: GroupFacts | EntryFacts) -> dict[str, Any]:
    """Facts as cells of a table for spreadsheets: exact dollars, and what is unknown is None."""
    row = msgspec.structs.asdict(facts)
    for name in _DOLLARS & row.keys():
        amount = from_dollars(row[name])
        row[name] = None if amount is None else f"{amount.to_decimal():f}"
    if isinstance(facts, EntryFacts):
        row["created_at"] = facts.created_at.isoformat()
    return row


# --- adding up -------------------------------------------------------------------------------------------


async def report_usage(
    source: Ledger | Iterable[UsageEntry], query: UsageQuery, *, keys: Mapping[str, str] | None = None
) -> UsageReport:
    """What was spent.

    Args:
        source: the ledger, which adds up by itself; or entries from elsewhere, in any order, looked at once.
        query: which entries, and how they are added up.
        keys: what the keys are called, by their ids.
    """
    summary = summarize(source, query) if isinstance(source, Iterable) else await source.summary(query)
    return _report(summary, query, keys or {})


def _report(summary: UsageSummary, query: UsageQuery, keys: Mapping[str, str]) -> UsageReport:
    if query.by == "key":
        groups = [
            facts_of(one, label=keys.get(one.name), key_id=None if one.name == NONE else one.name)
            for one in summary.groups
        ]
    else:
        groups = [facts_of(one) for one in summary.groups]
    return UsageReport(
        since=query.since,
        until=query.until,
        by=query.by,
        days="local" if query.local_days else "UTC",
        groups=groups,
        total=facts_of(summary.total),
        practice=summary.total.practice,
    )


class UsageBook:
    """Reads the ledger for people. Safe to share between tasks.

    Args:
        ledger: what everything cost.
        keys: what keys are called.
        practice: names of backends that cost nothing.
    """

    def __init__(self, *, ledger: Ledger, keys: Keys, practice: Collection[str]) -> None:
        self._ledger = ledger
        self._keys = keys
        self._practice = frozenset(practice)
        self._one_at_a_time = asyncio.Lock()

    async def report(self, query: UsageQuery) -> UsageReport:
        """What a query takes, added up. One report is made at a time, as each reads all that it is about.

        Raises:
            StoreError: the ledger cannot be read.
        """
        query = msgspec.structs.replace(query, practice=self._practice)
        async with self._one_at_a_time:
            names = await self._names() if query.by == "key" else {}
            return await report_usage(self._ledger, query, keys=names)

    async def entries(self, query: UsageQuery, *, cursor: str | None = None, limit: int) -> EntryPage:
        """What a query takes, one by one, newest first.

        Args:
            query: how it adds up means nothing here.
            cursor: `next_cursor` of the page before.
            limit: so many at most.

        Raises:
            NotFound: no page ended there.
            StoreError: the ledger cannot be read.
        """
        found = await self._ledger.page(query, before=cursor, limit=limit + 1)
        more = found[limit - 1].id if len(found) > limit else None
        return EntryPage(entries=[entry_facts(entry) for entry in found[:limit]], next_cursor=more)

    async def _names(self) -> dict[str, str]:
        """The names of the keys by their ids; a revoked one says so, as its name may be another's by now."""
        return {key.id: key.label for key in await self._keys.ever()}


# --- what people ask -------------------------------------------------------------------------------------


def make_query(
    *,
    since: str | None,
    until: str | None,
    by: str | None,
    now: datetime,
    local: bool,
    named: str = "",
) -> UsageQuery:
    """A query of what somebody wrote.

    Args:
        since: as `parse_since` reads it; None for all.
        until: as `parse_until` reads it; None for all.
        by: one of `GROUPINGS`; None for `model`.
        now: aware.
        local: dates and days are those of this machine; else they are UTC.
        named: what stands before the name of each of these where it is written, such as `--`.

    Raises:
        InvalidRequest: one of them makes no sense.
    """
    if by is not None and by not in GROUPINGS:
        raise InvalidRequest(
            f"{named}by {by[:60]!r} is not known.", hint=f"It is one of {', '.join(GROUPINGS)}."
        )
    zone = None if local else UTC
    start = None if since is None else parse_since(since, now=now, zone=zone, name=f"{named}since")
    end = None if until is None else parse_until(until, now=now, zone=zone, name=f"{named}until")
    if start is not None and end is not None and end <= start:
        raise InvalidRequest(
            f"{named}until {until!r} is not after {named}since {since!r}.",
            hint="Exchange them, or leave one out.",
        )
    return UsageQuery(since=start, until=end, by=by or "model", local_days=local)


def parse_since(text: str, *, now: datetime, zone: tzinfo | None = None, name: str = "--since") -> datetime:
    """Read when a period begins: a date (its midnight), an instant, `today`, `yesterday`, `7d`, `24h`, `2w`.

    Args:
        text: what somebody wrote.
        now: aware.
        zone: in which dates are, and instants that tell no zone; None for this machine's own.
        name: of the option.

    Raises:
        InvalidRequest: it is none of them.
    """
    return _parse(text, now=now, zone=zone, name=name, whole_day=False)


def parse_duration(text: str) -> timedelta | None:
    """Read `7d`, `24h` or `2w`; None for everything else.

    Raises:
        OverflowError: it is longer than any span of time here.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    return None if found is None else int(found["number"]) * _UNITS[found["unit"]]


def parse_until(text: str, *, now: datetime, zone: tzinfo | None = None, name: str = "--until") -> datetime:
    """Read when a period ends, as `parse_since` does; but of a day, all belongs to it: it ends with its last moment.

    Raises:
        InvalidRequest: it is none of them.
    """
    return _parse(text, now=now, zone=zone, name=name, whole_day=True)


def _parse(text: str, *, now: datetime, zone: tzinfo | None, name: str, whole_day: bool) -> datetime:
    wanted = text.strip()
    try:
        if (ago := parse_duration(wanted)) is not None:
            return now - ago
        if (day := _read_day(wanted.lower(), now=now, zone=zone)) is not None:
            return _midnight(day + timedelta(days=1) if whole_day else day, zone)
        instant = datetime.fromisoformat(wanted)
        # Without a zone it is local: `astimezone` reads it so, summer time included.
        return instant.astimezone() if instant.tzinfo or zone is None else instant.replace(tzinfo=zone)
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"{name} {text[:60]!r} is no date.",
            hint="Write 2026-11-01, 2026-11-01T08:30, today, yesterday, 7d, 24h or 2w.",
        ) from None


def _read_day(text: str, *, now: datetime, zone: tzinfo | None) -> date | None:
    """A whole day; None where it is something else."""
    if text in {"today", "yesterday"}:
        return now.astimezone(zone).date() - timedelta(days=text == "yesterday")
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _midnight(day: date, zone: tzinfo | None) -> datetime:
    midnight = datetime.combine(day, time())
    return midnight.astimezone() if zone is None else midnight.replace(tzinfo=zone)
