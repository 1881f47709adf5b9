"""`imagen privacy`: whether prompts and tokens stay where they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from imagen.service.privacy import PrivacyReport

app = typer.Typer(help="Where prompts are kept, and a test that they are nowhere else.", no_args_is_help=True)

VERIFY_EXAMPLES = """\b
Examples:
  imagen privacy verify
  imagen privacy verify --json

\b
Exit status:
  0   prompts and tokens are where they belong
  70  they are somewhere else besides
"""


@app.callback()
def _privacy() -> None:
    """Options of the group itself: none. With them it stays a group, although it has one command."""


@app.command(epilog=VERIFY_EXAMPLES)
def verify(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """Send a prompt that occurs nowhere else through everything, and look for it in everything that was written.

    It works in a temporary folder, with the built-in emulator: nothing is bought, and nothing of yours is touched.
    """
    from imagen.cli.exit_status import INTERNAL
    from imagen.cli.privacy_rehearsal import rehearse
    from imagen.cli.run import leave, read_settings, reported, run_loop

    with reported(json=json):
        settings = read_settings(config)
        report = run_loop(rehearse(settings))
        _show(report, json=json)
        if report.leaks:
            leave(INTERNAL)


def _show(report: PrivacyReport, *, json: bool) -> None:
    import msgspec

    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.tables import format_table

    if json:
        places = [msgspec.to_builtins(place) | {"leaks": place.leaks} for place in report.places]
        print_json({"ok": not report.leaks, "keyed": report.keyed, "places": places})
        return
    kept = [(place.place, place.why or "") for place in report.places if place.prompt and not place.leaks]
    print_lines(
        ["Prompts are kept here, by design:", *(f"  {line}" for line in format_table(("", ""), kept)[1:])]
    )
    clean = [place for place in report.places if not place.prompt and not place.leaks]
    things = sum(place.looked_at for place in clean)
    print_lines([f"They are nowhere in {len(clean)} other places ({things} things looked through)."])
    hashed = (
        "HMAC-SHA256 with your key"
        if report.keyed
        else "sha256; with IMAGEN_PROMPT_HASH_KEY it is a keyed one"
    )
    print_lines([f"The ledger has a hash of each: {hashed}."])
    for place in report.leaks:
        what = ", ".join(
            name
            for name, found in (
                ("the prompt", place.prompt and place.why is None),
                ("the token", place.token),
                ("the plain hash", place.plain_hash),
            )
            if found
        )
        print_lines([f"LEAK  {place.place}: {what}"])
    remark(f"{len(report.leaks)} {'leak' if len(report.leaks) == 1 else 'leaks'}")
