"""The command `imagen`."""

from __future__ import annotations

from typing import Annotated

import typer

from imagen.cli import (
    audit,
    auth,
    backends,
    batch,
    batches,
    budget,
    config,
    deliveries,
    doctor,
    emulator,
    estimate,
    feedback,
    generate,
    keys,
    mcp,
    models,
    predictions,
    presets,
    privacy,
    promote,
    recommend,
    semaphore,
    serve,
    sink,
    usage,
)

EPILOG = (
    "Without a token everything is practice on the built-in emulator. With one (REPLICATE_API_TOKEN, or `imagen auth "
    "login`) the same commands make real pictures. Exit codes: 0 done, 2 your request, 3 refused, 4 the service, "
    "5 the prediction, 70 this program or its disk, 130 interrupted."
)

app = typer.Typer(
    name="imagen",
    help="Pictures through Replicate: never paid for twice, never lost, always priced.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from imagen import __version__

        typer.echo(f"imagen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    """Options of the command itself."""


app.command("generate")(generate.generate)
app.command("promote")(promote.promote)
app.command("batch")(batch.batch)
app.command("presets")(presets.presets)
app.command("backends")(backends.backends)
app.command("models")(models.models)
app.command("estimate")(estimate.estimate)
app.command("recommend")(recommend.recommend)
app.command("keep")(feedback.keep)
app.command("reject")(feedback.reject)
app.add_typer(feedback.preferences, name="preferences")
app.command("usage")(usage.usage)
app.add_typer(sink.app, name="sink")
app.add_typer(privacy.app, name="privacy")
app.command("audit")(audit.audit)
app.add_typer(predictions.app, name="predictions")
app.add_typer(batches.app, name="batches")
app.add_typer(semaphore.app, name="semaphore")
app.add_typer(keys.app, name="keys")
app.add_typer(budget.app, name="budget")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(auth.app, name="auth")
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
app.command("emulator")(emulator.emulator)


def main() -> None:
    """Run the command."""
    app(prog_name="imagen")
