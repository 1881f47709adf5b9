"""`imagen usage`: what everything cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from imagen.assembly import App
    from imagen.domain.money import Usd
    from imagen.domain.usage import UsageEntry, UsageGroup

EXAMPLES = """\b
Examples:
  imagen usage
  imagen usage --since 7d --by day
  imagen usage --since 2026-11-01 --raw --limit 20
  imagen usage --raw --csv > usage.csv
"""

GROUP_COLUMNS = ("name", "predictions", "succeeded", "images", "cost", "mean_seconds")
GROUP_FIELDS = (
    "name",
    "predictions",
    "succeeded",
    "images",
    "cost_usd",
    "unpriced",
    "mean_seconds",
    "cached",
)
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
RAW_FIELDS = ("id", *RAW_COLUMNS, "outcome", "images")
_HASH_DIGITS = 12


def usage(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only what came after: 2026-11-01, 2026-11-01T08:30, today, yesterday, 7d or 24h. A date is local.",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="One row for each prediction, newest first.")] = False,
    by: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add up by model, caller, backend or day.", show_default="model"),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Show so many rows at most.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output; money in dollars.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output; exact dollars.")] = False,
    config: Config = None,
) -> None:
    """Show what was made and what it cost, from the ledger."""
    from imagen.cli.output import remark
    from imagen.cli.run import run_app
    from imagen.service.usage import parse_since

    async def command(app: App) -> None:
        _check(raw=raw, by=by, json=json, csv=csv)
        start = None if since is None else parse_since(since, now=app.clock.now())
        if late := await app.bookkeeper.catch_up():
            remark(f"wrote {late} late {'entry' if late == 1 else 'entries'} into the ledger")
        if raw:
            await _show_raw(app, start, limit, json=json, csv=csv)
        else:
            await _show_groups(app, start, by or "model", limit, json=json, csv=csv)

    run_app(command, config=config, json=json)


usage.__doc__ = f"{usage.__doc__}\n\n{EXAMPLES}"


def _check(*, raw: bool, by: str | None, json: bool, csv: bool) -> None:
    from imagen.domain.usage import GROUPINGS
    from imagen.errors import InvalidRequest

    if by is not None and by not in GROUPINGS:
        raise InvalidRequest(f"--by {by[:60]!r} is not known.", hint=f"It is one of {', '.join(GROUPINGS)}.")
    for both, first, second in ((raw and by is not None, "--raw", "--by"), (json and csv, "--json", "--csv")):
        if both:
            raise InvalidRequest(f"{first} and {second} exclude each other.", hint=f"Leave out {second}.")


# --- added up --------------------------------------------------------------------------------------------


async def _show_groups(
    app: App, since: datetime | None, by: str, limit: int | None, *, json: bool, csv: bool
) -> None:
    from imagen.cli.output import print_csv, print_json, print_lines, print_table, remark
    from imagen.cli.tables import format_table
    from imagen.service.usage import report_usage

    practice = {name for name, backend in app.settings.backends.items() if backend.type == "emulator"}
    report = await report_usage(app.ledger, since=since, by=by, practice_backends=practice)
    shown = report.groups[:limit]
    if json:
        groups = [_group_facts(group) for group in shown]
        print_json(
            {
                "since": since,
                "by": by,
                "groups": groups,
                "total": _group_facts(report.total),
                "practice": report.practice,
            }
        )
        return
    if csv:
        print_csv(GROUP_FIELDS, (_group_facts(group, exact=True) for group in shown))
        return
    if not report.groups:
        _say_empty(since)
        return
    header = (by, *GROUP_COLUMNS[1:])
    rows = [_group_cells(group) for group in shown]
    print_table(format_table(header, rows, right=GROUP_COLUMNS[1:], total=_group_cells(report.total)))
    notes = []
    if report.total.unpriced:
        notes.append(f"{report.total.unpriced} without a known price: the cost above leaves them out.")
    if report.practice:
        notes.append(
            f"{report.practice} of {report.total.predictions} were practice on the emulator and cost nothing."
        )
    if report.total.cached:
        notes.append(f"{_cached(report.total)}: not counted above.")
    print_lines(notes)
    if left := len(report.groups) - len(shown):
        remark(f"{left} more are in the total; raise --limit to see them")


def _group_cells(group: UsageGroup) -> Sequence[str]:
    seconds = "" if not group.predictions else f"{group.mean_latency_ms / 1000:.1f}"
    counts = (str(group.predictions), str(group.succeeded), str(group.images))
    return (group.name, *counts, _shown_sum(group.cost, group.predictions, group.unpriced), seconds)


def _group_facts(group: UsageGroup, *, exact: bool = False) -> dict[str, Any]:
    nothing_known = group.unpriced > 0 and group.unpriced == group.predictions
    return {
        "name": group.name,
        "predictions": group.predictions,
        "succeeded": group.succeeded,
        "images": group.images,
        "cost_usd": _dollars(None if nothing_known else group.cost, exact=exact),
        "unpriced": group.unpriced,
        "mean_seconds": group.mean_latency_ms / 1000,
        "cached": group.cached,
    }


# --- row by row ------------------------------------------------------------------------------------------


async def _show_raw(app: App, since: datetime | None, limit: int | None, *, json: bool, csv: bool) -> None:
    from imagen.cli.output import print_csv, print_json, print_lines, print_table, remark
    from imagen.cli.tables import format_table
    from imagen.domain.usage import sum_usage

    found = await app.ledger.entries(since=since, limit=None if limit is None else limit + 1)
    entries = list(found[:limit])
    total = sum_usage("total", entries)
    if json:
        print_json(
            {
                "since": since,
                "entries": [_entry_facts(entry) for entry in entries],
                "total": _group_facts(total),
            }
        )
        return
    if csv:
        print_csv(RAW_FIELDS, (_entry_facts(entry, exact=True) for entry in entries))
        return
    if not entries:
        _say_empty(since)
        return
    cost = _shown_sum(total.cost, total.predictions, total.unpriced)
    count = f"{total.predictions} {'prediction' if total.predictions == 1 else 'predictions'}"
    last = ("total", count, "", "", "", f"mean {total.mean_latency_ms}", cost, "")
    rows = [_entry_cells(entry) for entry in entries]
    print_table(
        format_table(RAW_COLUMNS, rows, right=("seed", "latency_ms", "cost_usd_estimate"), total=last)
    )
    if total.cached:
        print_lines([f"{_cached(total)}."])
    if total.unpriced:
        print_lines([f"{total.unpriced} without a known price: the cost above leaves them out."])
    if len(found) > len(entries):
        remark("older ones are left out, also of the total; raise --limit to see them")


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


def _entry_facts(entry: UsageEntry, *, exact: bool = False) -> dict[str, Any]:
    facts = {name: getattr(entry, name) for name in RAW_FIELDS if name != "cost_usd_estimate"}
    facts["cost_usd_estimate"] = _dollars(entry.cost, exact=exact)
    if exact:
        facts["created_at"] = entry.created_at.isoformat()
    return {name: facts[name] for name in RAW_FIELDS}


# --- both ------------------------------------------------------------------------------------------------


def _dollars(cost: Usd | None, *, exact: bool) -> float | str | None:
    if cost is None:
        return None
    return f"{cost.to_decimal():f}" if exact else cost.to_json()


def _shown_sum(cost: Usd, predictions: int, unpriced: int) -> str:
    """What is unknown is no zero: it shows."""
    if not unpriced:
        return str(cost)
    return "?" if unpriced == predictions else f"{cost} + ?"


def _cached(total: UsageGroup) -> str:
    requests = "request was" if total.cached == 1 else "requests were"
    return f"{total.cached} {requests} answered with pictures of equal ones and cost nothing"


def _say_empty(since: datetime | None) -> None:
    from imagen.cli.output import remark

    if since is not None:
        remark(f"nothing was made since {since.astimezone().isoformat(sep=' ', timespec='minutes')}")
        return
    remark('the ledger is empty: nothing was made yet. Begin with: imagen generate "a red fox in the snow"')
