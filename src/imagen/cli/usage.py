"""`imagen usage`: what everything cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config, Force, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.domain.usage import UsageEntry, UsageQuery
    from imagen.remote.usage import RemoteUsage
    from imagen.service.usage import EntryFacts, UsageBook, UsageReport

    Book = UsageBook | RemoteUsage

EXAMPLES = """\b
Examples:
  imagen usage
  imagen usage --since 7d --by day --plot
  imagen usage --since 2026-11-01 --until 2026-11-30 --by key
  imagen usage --since 2026-11-01 --raw --limit 20
  imagen usage --raw --csv > usage.csv
  imagen usage --since 30d --html usage.html
  imagen usage --source sink --by caller
"""

_PAGE = 1000


def usage(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Only what came after: 2026-11-01, 2026-11-01T08:30, today, yesterday, 7d or 24h. A date is local.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only what came before; of a date, the whole day belongs to it."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="One row for each prediction, newest first.")] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add up by model, caller, backend, day, key or tier.",
            show_default="model",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Show so many rows at most.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output; money in dollars.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output; exact dollars.")] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw what each day cost and how long it took, below the table.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a report that any browser shows, in one file."),
    ] = None,
    force: Force = False,
    source: Annotated[
        str, typer.Option("--source", metavar="NAME", help="ledger, or sink: the ledger's other place.")
    ] = "ledger",
    server: Server = None,
    config: Config = None,
) -> None:
    """Show what was made and what it cost, from the ledger."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import remark
    from imagen.cli.run import run_app
    from imagen.errors import InvalidRequest
    from imagen.service.usage import make_query

    async def command(app: App) -> None:
        _check(
            {"--raw": raw, "--by": by is not None},
            {"--json": json, "--csv": csv, "--plot": plot, "--html": html is not None},
            *({"--raw": raw, name: wanted} for name, wanted in (("--plot", plot), ("--html", bool(html)))),
        )
        if html is not None:
            _check_page(html, force=force)
        elif force:
            raise InvalidRequest("--force belongs to --html.", hint="Leave it out.")
        query = make_query(since=since, until=until, by=by, now=app.clock.now(), local=True, named="--")
        parts = parts_at(server, app)
        if source != "ledger" and parts is not app:
            raise InvalidRequest(
                "--source and --server exclude each other: a gateway tells its ledger alone.",
                hint='Leave out one of them; --server "" where IMAGEN_SERVER is set.',
            )
        if parts is app and (late := await app.bookkeeper.catch_up()):
            remark(f"wrote {late} late {'entry' if late == 1 else 'entries'} into the ledger")
        book = parts.usage if source == "ledger" else _other_book(app, source)
        if raw:
            await _show_raw(book, query, limit, json=json, csv=csv)
            return
        report = await book.report(query)
        if html is not None:
            _write_page(html, report, await _by_day(book, query, report))
        elif json or csv:
            _print_groups(report, limit, csv=csv)
        else:
            _show_groups(report, limit)
            if plot and report.groups:
                _plot(await _by_day(book, query, report))

    run_app(command, config=config, json=json)


usage.__doc__ = f"{usage.__doc__}\n\n{EXAMPLES}"


def _check(*apart: dict[str, bool]) -> None:
    """Refuse options that exclude each other."""
    from imagen.errors import InvalidRequest

    for options in apart:
        given = [name for name, wanted in options.items() if wanted]
        if len(given) > 1:
            first, second, *_ = given
            raise InvalidRequest(f"{first} and {second} exclude each other.", hint=f"Leave out {second}.")


def _other_book(app: App, source: str) -> UsageBook:
    from imagen.errors import InvalidRequest

    if source != "sink":
        raise InvalidRequest(f"--source {source[:60]!r} is not known.", hint="It is ledger or sink.")
    if app.sink_usage is None:
        raise InvalidRequest(
            "--source sink: the ledger is written nowhere besides imagen's own database.",
            hint="`imagen sink status` tells more.",
        )
    return app.sink_usage


# --- added up --------------------------------------------------------------------------------------------


def _print_groups(report: UsageReport, limit: int | None, *, csv: bool) -> None:
    import msgspec

    from imagen.cli.output import print_csv, print_json
    from imagen.service.usage import GROUP_FIELDS, csv_row

    shown = report.groups[:limit]
    if csv:
        print_csv(GROUP_FIELDS, map(csv_row, [*shown, report.total]))
    else:
        print_json(msgspec.structs.replace(report, groups=shown))


def _show_groups(report: UsageReport, limit: int | None) -> None:
    from imagen.cli.output import print_lines, print_table, remark
    from imagen.cli.usage_tables import format_groups, notes_on

    if not report.groups:
        _say_empty(report.since is not None or report.until is not None)
        return
    print_table(format_groups(report, limit))
    print_lines(notes_on(report.total))
    if left := len(report.groups[limit:] if limit else ()):
        remark(f"{left} more are in the total; raise --limit to see them")


async def _by_day(book: Book, query: UsageQuery, report: UsageReport) -> UsageReport:
    import msgspec

    if report.by == "day":
        return report
    return await book.report(msgspec.structs.replace(query, by="day"))


def _plot(days: UsageReport) -> None:
    import shutil

    from imagen.cli.output import print_lines
    from imagen.cli.usage_plot import plot_days

    print_lines(["", *plot_days(days, columns=shutil.get_terminal_size((100, 24)).columns)])


def _check_page(path: Path, *, force: bool) -> None:
    """Refuse a name that is no file's, or that of a file which is there."""
    from imagen.errors import InvalidInput, Problem

    target, shown = path.expanduser(), str(path)[:200]
    try:
        there, is_file = target.exists(), target.is_file()
    except OSError as error:
        problem = Problem("html", f"{shown} cannot be written: {error.strerror or error}")
        raise InvalidInput([problem], hint="Give a file in a folder that exists.") from None
    if not target.name or (there and not is_file):
        raise InvalidInput([Problem("html", f"{shown} is no file")], hint="Name one, such as usage.html.")
    if there and not force:
        problem = Problem("html", f"{shown} exists already; nothing is overwritten without --force")
        raise InvalidInput([problem], hint="Use another name, or --force.")


def _write_page(path: Path, report: UsageReport, days: UsageReport) -> None:
    """Write the report; whoever reads the file meanwhile has the old one or the new one, never half of one."""
    import os
    from datetime import datetime

    from imagen.cli.output import print_lines
    from imagen.cli.usage_html import usage_page
    from imagen.errors import InvalidInput, Problem

    text = usage_page(report, days, made_at=datetime.now().astimezone())
    target = path.expanduser()
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="replace")
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        problem = Problem("html", f"{str(path)[:200]} cannot be written: {error.strerror or error}")
        raise InvalidInput([problem], hint="Give a file in a folder that exists.") from None
    print_lines([str(path)])


# --- row by row ------------------------------------------------------------------------------------------


async def _show_raw(book: Book, query: UsageQuery, limit: int | None, *, json: bool, csv: bool) -> None:
    from imagen.cli.output import print_csv, print_json, print_lines, print_table, remark
    from imagen.cli.usage_tables import format_entries, notes_on
    from imagen.domain.usage import sum_usage
    from imagen.service.usage import ENTRY_FIELDS, csv_row, entry_of, facts_of

    if csv:
        header = True  # with the first page: nothing is printed where there is none to be had
        async for page in _pages(book, query, limit):
            print_csv(ENTRY_FIELDS, map(csv_row, page), header=header)
            header = False
        return
    found = [
        facts async for page in _pages(book, query, None if limit is None else limit + 1) for facts in page
    ]
    shown = found[:limit]
    entries: list[UsageEntry] = [entry_of(facts) for facts in shown]
    total = facts_of(sum_usage(entries))
    if json:
        print_json({"since": query.since, "until": query.until, "entries": shown, "total": total})
        return
    if not entries:
        _say_empty(query.since is not None or query.until is not None)
        return
    print_table(format_entries(entries, total))
    print_lines(notes_on(total))
    if len(found) > len(shown):
        remark("older ones are left out, also of the total; raise --limit to see them")


async def _pages(book: Book, query: UsageQuery, limit: int | None) -> AsyncIterator[Sequence[EntryFacts]]:
    """Entries, newest first, some at a time."""
    cursor, left = None, limit
    while left is None or left > 0:
        page = await book.entries(query, cursor=cursor, limit=min(_PAGE, _PAGE if left is None else left))
        yield page.entries
        cursor = page.next_cursor
        if cursor is None:
            return
        left = None if left is None else left - len(page.entries)


def _say_empty(period: bool) -> None:
    from imagen.cli.output import remark

    if period:
        remark("nothing was made in that time")
        return
    remark('the ledger is empty: nothing was made yet. Begin with: imagen generate "a red fox in the snow"')
