"""`imagen backends`: what can make pictures here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from imagen.assembly import App
    from imagen.settings import BackendSettings

EXAMPLES = """\b
Examples:
  imagen backends
  imagen backends --json
"""


class Row(NamedTuple):
    """One configured backend."""

    name: str
    type: str
    model: str
    default: bool
    status: str


def backends(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """List the configured backends and whether each is ready."""
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table
    from imagen.domain.prediction import EMULATOR

    async def command(app: App) -> None:
        rows = list_backends(app)
        if json:
            print_json([{**row._asdict(), "ready": row.status == "ok"} for row in rows])
            return
        cells = [(row.name, row.type, row.model, "yes" if row.default else "-", row.status) for row in rows]
        print_table(format_table(("name", "type", "model", "default", "status"), cells))
        token = app.settings.replicate.api_token_env
        if any(row.default and row.type == EMULATOR for row in rows) and not app.tokens.is_set(token):
            remark(
                f"Without a backend named, pictures are practice. For real ones set {token} or run `imagen auth login`."
            )

    run_app(command, config=config, json=json)


backends.__doc__ = f"{backends.__doc__}\n\n{EXAMPLES}"


def list_backends(app: App) -> list[Row]:
    """All of them in the order of the configuration; what is wrong with one stands in its row."""
    from imagen.errors import ConfigError

    try:
        default = app.backends.default
    except ConfigError:
        default = None  # the credentials cannot be read: the rows of those who need them say so
    return [
        Row(name, found.type, found.model or "-", name == default, _status(app, found))
        for name, found in app.settings.backends.items()
    ]


def _status(app: App, backend: BackendSettings) -> str:
    from imagen.domain.prediction import EMULATOR
    from imagen.errors import ImagenError

    try:
        if backend.type in {"replicate", EMULATOR}:
            app.catalog.resolve(backend.model)
        return app.backends.get(backend.name).readiness()
    except ImagenError as error:
        return f"fault: {error}"
