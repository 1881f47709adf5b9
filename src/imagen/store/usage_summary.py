"""The ledger added up by the database itself, so that a report of a million entries holds none of them in memory."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Text,
    and_,
    func,
    literal,
    null,
    select,
    tuple_,
    type_coerce,
    union_all,
)

from imagen.domain.prediction import Status
from imagen.domain.usage import (
    NONE,
    PERCENTILES,
    REUSED,
    UsageEntry,
    UsageQuery,
    UsageSummary,
    group_of,
    summary_of,
)
from imagen.errors import NotFound
from imagen.store.tables import feedback, usage
from imagen.store.types import Instant

WHOLE_ENTRIES = (
    select(*(usage.c[name] for name in UsageEntry.__struct_fields__ if name != "kept"), feedback.c.kept)
    .outerjoin_from(usage, feedback, feedback.c.prediction_id == usage.c.id)
    .order_by(usage.c.created_at.desc(), usage.c.id.desc())
)
"""Entries with what their callers thought of the pictures, newest first."""
_WHEN = tuple_(usage.c.created_at, usage.c.id)
_NONE_MADE = dict.fromkeys(PERCENTILES, 0)
_MADE = usage.c.outcome.not_in(REUSED)
_JUDGED = and_(_MADE, feedback.c.kept.is_not(None))
_COST = type_coerce(usage.c.cost, BigInteger)
_QUOTED = type_coerce(usage.c.quoted, BigInteger)
_SUMS: dict[str, ColumnElement[int]] = {
    "predictions": func.count().filter(_MADE),
    "succeeded": func.count().filter(usage.c.outcome == Status.SUCCEEDED.value),
    "images": func.sum(usage.c.images).filter(_MADE),
    "cost": func.sum(_COST).filter(_MADE),
    "unpriced": func.count().filter(_MADE, usage.c.cost.is_(None)),
    "latency_ms": func.sum(usage.c.latency_ms).filter(_MADE),
    "cached": func.count().filter(~_MADE),
    "saved": func.sum(type_coerce(usage.c.saved, BigInteger)).filter(~_MADE),
    "quoted": func.sum(_QUOTED).filter(_MADE, usage.c.cost.is_not(None)),
    "quoted_cost": func.sum(_COST).filter(_MADE, usage.c.quoted.is_not(None)),
    "judged": func.count().filter(_JUDGED),
    "kept": func.sum(usage.c.images).filter(_MADE, feedback.c.kept.is_(True)),
    "judged_cost": func.sum(_COST).filter(_JUDGED),
    "judged_unpriced": func.count().filter(_JUDGED, usage.c.cost.is_(None)),
}
"""What each field of a group is; a sum of nothing is none."""


def taken_by(query: UsageQuery) -> Iterator[ColumnElement[bool]]:
    """The conditions of `UsageQuery.takes`."""
    if query.since is not None:
        yield usage.c.created_at >= query.since
    if query.until is not None:
        yield usage.c.created_at < query.until
    if query.key is not None:
        yield usage.c.key == query.key
    if query.keyless is not None:
        yield and_(usage.c.caller == query.keyless, usage.c.key.is_(None))


def read_page(
    connection: Connection, query: UsageQuery, *, before: str | None, limit: int
) -> list[UsageEntry]:
    """See `ports.Ledger.page`.

    Raises:
        NotFound: there is no entry `before`.
    """
    statement = WHOLE_ENTRIES.where(*taken_by(query)).limit(limit)
    if before is not None:
        found = connection.execute(select(usage.c.created_at).where(usage.c.id == before)).one_or_none()
        if found is None:
            raise NotFound(
                f"no entry of the ledger is called {before[:80]!r}", hint="Begin without a cursor."
            )
        statement = statement.where(tuple_(literal(found.created_at, Instant), literal(before)) > _WHEN)
    return [UsageEntry(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001


def read_summary(connection: Connection, query: UsageQuery) -> UsageSummary:
    """As `domain.usage.summarize` has it of all entries: each is read twice, once for the sums and once for the latencies."""
    name = _name(query)
    sums = _SUMS | {"practice": func.count().filter(_MADE, usage.c.backend.in_(sorted(query.practice)))}
    added = (
        select(name.label("name"), *(func.coalesce(each, 0).label(field) for field, each in sums.items()))
        .outerjoin_from(usage, feedback, feedback.c.prediction_id == usage.c.id)
        .where(*taken_by(query))
        .group_by("name")
    )
    rows = list(connection.execute(added))
    shares = dict(_percentiles(connection, query, name))
    groups = [group_of(row.name, row._asdict(), **shares.get(row.name, _NONE_MADE)) for row in rows]
    return summary_of(groups, by=query.by, **shares.get(None, _NONE_MADE))


def _name(query: UsageQuery) -> ColumnElement[str]:
    if query.by == "day":
        at = type_coerce(usage.c.created_at, Text)
        return func.date(at, "localtime") if query.local_days else func.substr(at, 1, 10)
    return func.coalesce(usage.c[query.by], NONE)


def _percentiles(
    connection: Connection, query: UsageQuery, name: ColumnElement[str]
) -> Iterator[tuple[str | None, dict[str, int]]]:
    """The percentiles of each group, and under None those of all, from how often each latency came: nothing is guessed."""
    counts = (
        select(name.label("name"), usage.c.latency_ms.label("ms"), func.count().label("times"))
        .where(_MADE, *taken_by(query))
        .group_by("name", "ms")
        .cte("counts")
        .prefix_with("MATERIALIZED", dialect="sqlite")
    )
    of_all = select(null().label("name"), counts.c.ms, func.sum(counts.c.times).label("times")).group_by("ms")
    each = union_all(select(counts), of_all).subquery()
    so_far = func.sum(each.c.times).over(partition_by=each.c.name, order_by=each.c.ms)
    whole = func.sum(each.c.times).over(partition_by=each.c.name)
    ranked = select(each.c.name, each.c.ms, so_far.label("so_far"), whole.label("whole")).subquery()
    statement = select(
        ranked.c.name,
        *(
            func.min(ranked.c.ms).filter(100 * ranked.c.so_far >= percent * ranked.c.whole).label(field)
            for field, percent in PERCENTILES.items()
        ),
    ).group_by(ranked.c.name)
    for row in connection.execute(statement):
        yield row.name, {field: getattr(row, field) for field in PERCENTILES}
