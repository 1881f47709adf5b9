"""`imagen doctor`: what would keep a picture from being made, and the one command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.cli.checkup import Finding
    from imagen.errors import ConfigError

EXAMPLES = """\b
Examples:
  imagen doctor
  imagen doctor --offline --json

\b
Exit status:
  0   no fault (warnings do not count)
  2   the configuration is at fault
  70  this machine is: its folders, its database, its clock
  4   only the service is: the token, the way to it
"""


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Ask no service.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """Check configuration, folders, database, token, service, clock and prices; say what mends each fault."""
    from imagen.assembly import load_catalog
    from imagen.cli.run import leave, read_settings, reported, run_app
    from imagen.errors import ConfigError
    from imagen.instrumentation.clock import SystemClock

    async def command(app: App) -> int:
        from imagen.cli.checkup import Checkup

        checkup = Checkup(
            app.settings,
            backends=app.backends,
            catalog=app.catalog,
            store=app.store,
            bookkeeper=app.bookkeeper,
            budgets=app.budgets,
            mirror=app.mirror,
            owners=app.owners,
            clock=app.clock,
        )
        return _show(await checkup.run(offline=offline), json=json)

    with reported(json=json):
        try:
            load_catalog(read_settings(config), SystemClock())
        except ConfigError as error:
            leave(_show([_config_fault(error)], json=json))
    if status := run_app(command, config=config, json=json):
        leave(status)


doctor.__doc__ = f"{doctor.__doc__}\n\n{EXAMPLES}"


def _config_fault(error: ConfigError) -> Finding:
    from imagen.cli.checkup import Finding

    mend = error.hint or f"Correct it in {error.source}."
    return Finding(level="fault", what="config", detail=error.detail, mend=mend, blame="config")


def _show(findings: Sequence[Finding], *, json: bool) -> int:
    """Print them; the exit status that fits."""
    import msgspec

    from imagen.cli.exit_status import BACKEND, INTERNAL, USAGE
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.tables import GAP, clean, format_table

    faults = [finding for finding in findings if finding.level == "fault"]
    if json:
        print_json({"ok": not faults, "findings": [msgspec.to_builtins(finding) for finding in findings]})
    else:
        rows = [(finding.level, finding.what, finding.detail) for finding in findings]
        table = format_table(("", "", ""), rows)[1:]
        indent = " " * (max(len(finding.level) for finding in findings) + len(GAP))
        for finding, line in zip(findings, table, strict=True):
            print_lines([line, *([f"{indent}mend: {clean(finding.mend)}"] if finding.mend else [])])
        warnings = sum(finding.level == "warn" for finding in findings)
        remark(
            f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"
        )
    blamed = {finding.blame for finding in faults}
    by_weight = (("config", USAGE), ("machine", INTERNAL), ("service", BACKEND))
    return next((status for blame, status in by_weight if blame in blamed), 0)
