"""`imagen keys`: named keys for callers of the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.domain.key import Key
    from imagen.domain.secret import Secret

app = typer.Typer(
    help="Keys for callers of `imagen serve`, each with models, paths and limits of its own.",
    no_args_is_help=True,
)

CREATE_EXAMPLES = """\b
Examples:
  imagen keys create web-shop
  imagen keys create web-shop --model flux-dev --route /generate --concurrent 4 --rpm 60
  imagen keys create web-shop --json
"""
LIST_EXAMPLES = """\b
Examples:
  imagen keys list
  imagen keys list --json
"""
REVOKE_EXAMPLES = """\b
Examples:
  imagen keys revoke web-shop
"""

_COLUMNS = ("name", "id", "models", "routes", "concurrent", "rpm", "created")
_ALL = "all"
Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 100 letters, digits and . _ : -")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command(epilog=CREATE_EXAMPLES)
def create(
    name: Name,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="Good for this model only; repeat for more."),
    ] = None,
    routes: Annotated[
        list[str] | None,
        typer.Option(
            "--route", metavar="PATH", help="Good for this path only, e.g. /generate; repeat for more."
        ),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(metavar="N", help="Predictions at the same time, 1 to 100000.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(metavar="N", help="Predictions a minute, 1 to 1000000.")] = None,
    as_json: Json = False,
    server: Server = None,
    config: Config = None,
) -> None:
    """Make a key and print it: this once, since only its hash is kept."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> tuple[Key, Secret]:
        return await parts_at(server, app).keys.create(
            name, models=models or (), routes=routes or (), concurrent=concurrent, per_minute=rpm
        )

    key, plain = run_app(command, config=config, json=as_json)
    if as_json:
        print_json({"name": key.name, "key": plain.reveal()} | _facts(key))
    else:
        print_lines([plain.reveal()])
    remark(
        f"key {key.name}: shown this once, only its hash is kept. Callers send it in the header X-API-Key, or as a bearer."
    )


@app.command("list", epilog=LIST_EXAMPLES)
def list_(as_json: Json = False, server: Server = None, config: Config = None) -> None:
    """Show the keys that are good, with what they are good for; never the keys themselves."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(app: App) -> Sequence[Key]:
        return await parts_at(server, app).keys.list()

    found = run_app(command, config=config, json=as_json)
    if as_json:
        print_json([{"name": key.name} | _facts(key) for key in found])
    elif found:
        print_table(format_table(_COLUMNS, map(_row, found), right=("concurrent", "rpm")))
    else:
        remark("No key yet. `imagen keys create NAME` makes one.")


@app.command(epilog=REVOKE_EXAMPLES)
def revoke(name: Name, server: Server = None, config: Config = None) -> None:
    """Let a key be good for nothing; a gateway that runs refuses it within a second."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import remark
    from imagen.cli.run import run_app

    async def command(app: App) -> tuple[Key, Sequence[str]]:
        return await parts_at(server, app).keys.revoke(name)

    key, idle = run_app(command, config=config)
    remark(f"key {key.name} revoked")
    for budget in idle:
        remark(
            f"budget {budget} counts nobody now. Set it again with --key {key.name} when there is a new key of that name."
        )


def _facts(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "models": sorted(key.models),
        "routes": sorted(key.routes),
        "concurrent": key.concurrent,
        "rpm": key.per_minute,
        "created_at": key.created_at,
    }


def _row(key: Key) -> tuple[str, ...]:
    return (
        key.name,
        key.id,
        ", ".join(sorted(key.models)) or _ALL,
        ", ".join(sorted(key.routes)) or _ALL,
        "-" if key.concurrent is None else str(key.concurrent),
        "-" if key.per_minute is None else str(key.per_minute),
        f"{key.created_at.astimezone():%Y-%m-%d %H:%M}",
    )
