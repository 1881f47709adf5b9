"""`imagen keep`, `imagen reject`, `imagen preferences`: what you think of your pictures, and what was learned of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from pathlib import Path

    from imagen.assembly import App
    from imagen.service.choice_shapes import Erased, FeedbackState, PreferenceList

KEEP_EXAMPLES = """\b
Examples:
  imagen keep pred_01kamx3
  imagen keep pred_01kamx3 pred_01kamx7
"""
REJECT_EXAMPLES = """\b
Examples:
  imagen reject pred_01kamx3
"""
SHOW_EXAMPLES = """\b
Examples:
  imagen preferences show
  imagen preferences show --caller web-shop --json
"""
EXPORT_EXAMPLES = """\b
Examples:
  imagen preferences export > preferences.csv
  imagen preferences export --json
"""
ERASE_EXAMPLES = """\b
Examples:
  imagen preferences erase
  imagen preferences erase --caller web-shop
"""

preferences = typer.Typer(
    help="What was learned from `imagen keep` and `imagen reject`; the setting `learning: false` switches it off.",
    no_args_is_help=True,
)

_COLUMNS = ("kind", "model", "kept", "rejected", "chance", "sure")
_EXPORTED = ("prediction_id", "verdict", "caller", "model", "kind", "at")
_OFF = "learning is switched off: nothing more is written, and recommendations do not look at this"
Ids = Annotated[
    list[str],
    typer.Argument(metavar="ID…", help="Of predictions; ours may be cut short, but not with --server."),
]
Caller = Annotated[
    str | None,
    typer.Option("--caller", metavar="NAME", help="Whose, by the name in the ledger; by default your own."),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def keep(ids: Ids, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Say that you keep these pictures. Recommendations learn from it; the last word on a picture counts."""
    _judge(ids, kept=True, json=json, server=server, config=config)


def reject(ids: Ids, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Say that these pictures are not what you wanted. The last word on a picture counts."""
    _judge(ids, kept=False, json=json, server=server, config=config)


def _judge(ids: list[str], *, kept: bool, json: bool, server: str | None, config: Path | None) -> None:
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app

    async def command(app: App) -> list[FeedbackState]:
        tastes, wanted = parts_at(server, app).tastes, list(dict.fromkeys(ids))
        if len(wanted) > 1:  # all or none
            for one in wanted:
                await tastes.judge(one, kept=kept, dry_run=True)
        return [await tastes.judge(one, kept=kept) for one in wanted]

    said = run_app(command, config=config, json=json)
    if json:
        print_json(said)
        return
    word = "kept" if kept else "rejected"
    print_lines(f"{one.prediction_id}  {word}  {one.model}  {one.kind}" for one in said)


@preferences.command(epilog=SHOW_EXAMPLES)
def show(caller: Caller = None, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Show what was learned: by kind of prompt and model, how many you kept, and the chance that you keep the next."""
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.tables import format_table

    found = _found(caller, json=json, server=server, config=config)
    if json:
        print_json(found)
    elif found.preferences:
        rows = [
            (
                one.kind,
                one.model,
                str(one.kept),
                str(one.rejected),
                f"{one.chance:.0%}",
                f"{one.sureness:.0%}",
            )
            for one in found.preferences
        ]
        print_table(format_table(_COLUMNS, rows, right=_COLUMNS[2:]))
    else:
        remark(
            f"nothing was learned of {found.caller} yet. `imagen keep ID` and `imagen reject ID` teach it."
        )
    if not found.learning:
        remark(_OFF)


@preferences.command(epilog=EXPORT_EXAMPLES)
def export(caller: Caller = None, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Write every judgement as CSV, or as JSON: all that is kept of it."""
    import msgspec

    from imagen.cli.output import print_csv, print_json

    found = _found(caller, json=json, server=server, config=config)
    if json:
        print_json(found.feedback)
    else:
        print_csv(_EXPORTED, [msgspec.to_builtins(one) for one in found.feedback])


@preferences.command(epilog=ERASE_EXAMPLES)
def erase(caller: Caller = None, json: Json = False, server: Server = None, config: Config = None) -> None:
    """Forget everything that was learned of a caller."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> Erased:
        from imagen.assembly import Remote

        parts = parts_at(server, app)
        if isinstance(parts, Remote):
            return await parts.tastes.erase(caller)
        return await parts.tastes.erase(caller or app.caller().name)

    done = run_app(command, config=config, json=json)
    if json:
        print_json(done)
    else:
        remark(f"{done.erased} {'judgement' if done.erased == 1 else 'judgements'} of {done.caller} erased")


def _found(caller: str | None, *, json: bool, server: str | None, config: Path | None) -> PreferenceList:
    from imagen.cli.options import parts_at
    from imagen.cli.run import run_app

    async def command(app: App) -> PreferenceList:
        from imagen.assembly import Remote

        parts = parts_at(server, app)
        if isinstance(parts, Remote):
            return await parts.tastes.show(caller)
        return await parts.tastes.show(caller or app.caller().name)

    return run_app(command, config=config, json=json)


keep.__doc__ = f"{keep.__doc__}\n\n{KEEP_EXAMPLES}"
reject.__doc__ = f"{reject.__doc__}\n\n{REJECT_EXAMPLES}"
