"""`imagen sink`: the place that has the ledger's entries besides imagen's own database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from imagen.assembly import App
    from imagen.ports import UsageSink

app = typer.Typer(
    help="The ledger in PostgreSQL or Supabase besides imagen's own database: how it stands, and how it is set up.",
    no_args_is_help=True,
)

STATUS_EXAMPLES = """\b
Examples:
  imagen sink status
  imagen sink status --json
"""
SYNC_EXAMPLES = """\b
Examples:
  imagen sink sync
"""
SCHEMA_EXAMPLES = """\b
Examples:
  imagen sink schema
  imagen sink schema | psql "$DATABASE_URL"
"""
MIGRATE_EXAMPLES = """\b
Examples:
  imagen sink migrate
"""
NONE = "sqlite"
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command(epilog=STATUS_EXAMPLES)
def status(as_json: Json = False, config: Config = None) -> None:
    """Show where the ledger is written besides imagen's own database, what waits, and whether the place answers."""
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app

    facts = run_app(_stand, config=config, json=as_json)
    if as_json:
        print_json(facts)
    elif facts["kind"] == NONE:
        print_lines(["sqlite: imagen's own database, and nowhere besides"])
    else:
        lines = [f"{facts['kind']}: {'answers' if facts['answers'] else facts['trouble']}"]
        if facts["hint"]:
            lines.append(f"  {facts['hint']}")
        lines.append(f"{_entries(facts['waiting'])} not written there yet")
        if facts["refused"]:
            lines.append(
                f"{_entries(facts['refused'])} of them refused; `imagen sink sync` tries again and says why"
            )
        print_lines(lines)


@app.command(epilog=SYNC_EXAMPLES)
def sync(as_json: Json = False, config: Config = None) -> None:
    """Write everything there that waits; what is there already stays as it is."""
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app

    async def command(app: App) -> int:
        _configured(app)
        await app.bookkeeper.catch_up()
        return await app.mirror.sync()

    written = run_app(command, config=config, json=as_json)
    if as_json:
        print_json({"written": written})
    else:
        print_lines([f"{_entries(written)} written"])


@app.command(epilog=SCHEMA_EXAMPLES)
def schema() -> None:
    """Print the SQL that makes the table mai.imagen_usage, or adds what an older one lacks."""
    from imagen.cli.output import print_lines
    from imagen.sinks.schema import schema_sql

    print_lines([schema_sql().rstrip()])


@app.command(epilog=MIGRATE_EXAMPLES)
def migrate(as_json: Json = False, config: Config = None) -> None:
    """Run that SQL in the PostgreSQL database of the settings; for Supabase, paste it into its SQL editor."""
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app

    async def command(app: App) -> None:
        await _configured(app).migrate()

    run_app(command, config=config, json=as_json)
    if as_json:
        print_json({"migrated": True})
    else:
        print_lines(["the table mai.imagen_usage is there"])


async def _stand(app: App) -> dict[str, Any]:
    from imagen.errors import SinkError

    sink = app.mirror.sink
    if sink is None:
        return {"kind": NONE, "answers": True, "waiting": 0, "refused": 0, "trouble": None, "hint": None}
    facts: dict[str, Any] = {
        "kind": sink.name.partition(":")[0],
        "waiting": await app.mirror.waiting(),
        "refused": await app.mirror.refused(),
    }
    try:
        await sink.read(limit=1)
    except SinkError as error:
        return facts | {"answers": False, "trouble": error.detail, "hint": error.hint}
    return facts | {"answers": True, "trouble": None, "hint": None}


def _configured(app: App) -> UsageSink:
    """The sink.

    Raises:
        InvalidRequest: there is none.
    """
    from imagen.errors import InvalidRequest

    if app.mirror.sink is None:
        raise InvalidRequest(
            "the ledger is written nowhere besides imagen's own database.",
            hint="Set IMAGEN_SINK__POSTGRES_URL, or SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY.",
        )
    return app.mirror.sink


def _entries(number: int) -> str:
    return f"{number} {'entry' if number == 1 else 'entries'}"
