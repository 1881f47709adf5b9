"""`imagen audit`: what the service has made, compared with what is written down here, and mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.domain.audit import Audit, AuditFinding, Totals

EXAMPLES = """\b
Examples:
  imagen audit
  imagen audit --since 7d --dry-run
  imagen audit --adopt-foreign --json

\b
Exit status:
  0   all is well, or was mended
  5   something is lost for good: it was paid for, and its picture is gone
  4   the service could not be asked, or something could not be mended now
"""

_COLUMNS = ("what", "id", "model", "status", "pictures", "cost", "detail")
_SHOWN = {"never_bought": "never bought"}
_DETAIL_COLUMNS = 70


def audit(
    since: Annotated[
        str,
        typer.Option(
            metavar="DATE",
            help="Compare what was made after: 2026-11-01, 2026-11-01T08:30, today, yesterday, 7d or 24h.",
        ),
    ] = "24h",
    backend: Annotated[
        str | None, typer.Option("-b", "--backend", metavar="NAME", help="The backend whose account it is.")
    ] = None,
    adopt_foreign: Annotated[
        bool,
        typer.Option(
            "--adopt-foreign", help="Write down what other programs made too, and fetch its pictures."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done; change nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output; money in dollars.")] = False,
    config: Config = None,
) -> None:
    """Compare the ledger with Replicate's list: finish, adopt and fetch what was left, and say what it cost. Buys nothing."""
    from imagen.cli.run import leave, run_app
    from imagen.service.usage import parse_since

    async def command(app: App) -> int:
        from imagen.service.audit import Auditor

        auditor = Auditor(
            gateway=app.gateway,
            store=app.store,
            ledger=app.ledger,
            bookkeeper=app.bookkeeper,
            owners=app.owners,
            clock=app.clock,
            batches=app.batches,
            hash_prompt=app.hash_prompt,
        )
        start = parse_since(since, now=app.clock.now())
        report = await auditor.run(
            app.backends.get(backend), since=start, adopt_foreign=adopt_foreign, dry_run=dry_run
        )
        if json:
            _print_json(report)
        else:
            _print_table(report)
        return _status(report)

    if status := run_app(command, config=config, json=json):
        leave(status)


audit.__doc__ = f"{audit.__doc__}\n\n{EXAMPLES}"


def _status(report: Audit) -> int:
    from imagen.cli.exit_status import PREDICTION, exit_status
    from imagen.domain.audit import LOST

    if report.total(LOST).predictions:
        return PREDICTION
    return exit_status(report.errors[0]) if report.errors else 0


# --- for people ------------------------------------------------------------------------------------------


def _print_table(report: Audit) -> None:
    from imagen.cli.output import print_lines, print_table
    from imagen.cli.tables import format_table

    if report.findings:
        rows = [_cells(finding) for finding in report.findings]
        print_table(format_table(_COLUMNS, rows, right=("pictures", "cost")))
    print_lines(_summary(report))


def _cells(finding: AuditFinding) -> Sequence[str]:
    from imagen.cli.tables import shorten

    return (
        _SHOWN.get(finding.kind, finding.kind),
        finding.id or "-",
        finding.model.partition(":")[0] or "-",
        finding.status or "-",
        str(finding.images) if finding.images else "-",
        "?" if finding.cost is None else str(finding.cost),
        shorten(finding.detail, _DETAIL_COLUMNS),
    )


def _summary(report: Audit) -> list[str]:
    from imagen.domain.audit import LOST, MENDED

    would = "would recover" if report.dry_run else "recovered"
    recovered, lost = report.total(MENDED), report.total(LOST)
    left = report.total(["left"])
    lines = []
    if recovered.predictions:
        lines.append(f"{would} {_counted(recovered.images, 'picture')} of {_sum(recovered)}")
    if lost.predictions:
        lines.append(f"lost for good: {_sum(lost)}")
    if never := report.total(["never_bought"]).predictions:
        lines.append(
            f"{_counted(never, 'prediction')} never arrived at the service and "
            f"{'costs' if never == 1 else 'cost'} nothing; the same `imagen generate` command buys anew"
        )
    if left.predictions:
        lines.append(f"left for another time: {_sum(left)}; run it again")
    if unlisted := report.total(["unlisted"]).predictions:
        lines.append(f"{_counted(unlisted, 'prediction')} of the ledger the service does not list")
    if not report.findings:
        lines.append(f"all is well: {_counted(report.listed, 'prediction')} compared")
    if report.under_way:
        lines.append(f"{_counted(report.under_way, 'prediction')} under way")
    if foreign := report.foreign.predictions:
        by_status = ", ".join(
            f"{count} {status}" for status, count in sorted(report.foreign.by_status.items())
        )
        unknown = f" and {report.foreign.unpriced} without a known price" if report.foreign.unpriced else ""
        lines.append(
            f"{_counted(foreign, 'prediction')} made by other programs: {by_status}; "
            f"about {report.foreign.cost}{unknown}"
        )
        if not report.total(["foreign"]).predictions:
            lines.append("    imagen audit --adopt-foreign    writes them down and fetches their pictures")
    return lines


def _sum(totals: Totals) -> str:
    unknown = f" + {totals.unpriced} without a known price" if totals.unpriced else ""
    return f"{_counted(totals.predictions, 'prediction')}, {totals.cost}{unknown}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# --- for machines ----------------------------------------------------------------------------------------


def _print_json(report: Audit) -> None:
    from imagen.cli.output import print_json
    from imagen.domain.audit import LOST, MENDED

    print_json(
        {
            "backend": report.backend,
            "since": report.since,
            "dry_run": report.dry_run,
            "listed": report.listed,
            "under_way": report.under_way,
            "findings": [_finding_facts(finding) for finding in report.findings],
            "recovered": _facts(report.total(MENDED)),
            "lost": _facts(report.total(LOST)),
            "left": _facts(report.total(["left"])),
            "foreign": {
                "predictions": report.foreign.predictions,
                "by_status": dict(sorted(report.foreign.by_status.items())),
                "cost_usd": report.foreign.cost.to_json(),
                "unpriced": report.foreign.unpriced,
            },
        }
    )


def _finding_facts(finding: AuditFinding) -> dict[str, Any]:
    from imagen.domain.money import to_dollars

    facts: dict[str, Any] = {
        name: getattr(finding, name) for name in finding.__struct_fields__ if name != "cost"
    }
    return {**facts, "cost_usd": to_dollars(finding.cost)}


def _facts(totals: Totals) -> dict[str, Any]:
    return {
        "predictions": totals.predictions,
        "images": totals.images,
        "cost_usd": totals.cost.to_json(),
        "unpriced": totals.unpriced,
    }
