"""`imagen config`: the settings, where each came from, and a sample to begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from imagen.cli.parameters import Config

app = typer.Typer(help="Write, show and find the configuration.", no_args_is_help=True)

INIT_EXAMPLES = """\b
Examples:
  imagen config init
  imagen config init --user
"""
SHOW_EXAMPLES = """\b
Examples:
  imagen config show
  imagen config show --config other.yaml --json
"""
PATH_EXAMPLES = """\b
Examples:
  imagen config path
"""

FILE_NAME = "imagen.yaml"
_TOKEN = "REPLICATE_API_TOKEN"  # noqa: S105 - its name


@app.command(epilog=INIT_EXAMPLES)
def init(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]", help="The file, or the folder of imagen.yaml; else the current one."
        ),
    ] = None,
    user: Annotated[
        bool, typer.Option("--user", help="Write it into your own configuration folder.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented sample to begin with."""
    from imagen.cli.run import reported
    from imagen.errors import InvalidRequest
    from imagen.settings import SAMPLE, user_config_folder

    with reported():
        if user and path is not None:
            raise InvalidRequest("--user and PATH exclude each other.", hint="Leave out one of them.")
        if user:
            target = user_config_folder(os.environ) / FILE_NAME
        else:
            target = _expanded(path or Path(FILE_NAME))
            target = target / FILE_NAME if target.is_dir() else target
        _write(target, SAMPLE, force=force, make_folder=user)
        typer.echo(f"wrote {target}")
        _tell_what_follows(target)


def _write(target: Path, text: str, *, force: bool, make_folder: bool) -> None:
    """Write a file whole, and never over another one without `force`.

    Raises:
        InvalidRequest: it is there already, or cannot be written.
    """
    from imagen.errors import InvalidRequest

    try:
        if make_folder:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if force:
            beside = target.resolve().with_name(f".{target.name}.{os.getpid()}.part")
            beside.write_text(text, encoding="utf-8")
            beside.replace(target.resolve())
        else:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        raise InvalidRequest(f"{target} is there already.", hint="--force replaces it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(f"{target} cannot be written: {reason}.", hint="Name another place.") from None


def _tell_what_follows(target: Path) -> None:
    """Which file is really read from here, and what the sample needs."""
    from imagen.cli.output import remark
    from imagen.credentials import CredentialStore
    from imagen.errors import ConfigError
    from imagen.settings import choose_place, config_places, user_config_folder

    folder = user_config_folder(os.environ)
    chosen = choose_place(config_places(None, os.environ, Path.cwd(), folder))
    if chosen is None or chosen.path is None:
        remark(f"It is not looked for there: name it with --config {target}")
    elif chosen.path.resolve() != target.resolve():
        remark(
            f"Note: here {chosen.path} ({chosen.name}) is read instead; `imagen config path` shows the order."
        )
    try:
        has_token = (
            bool(os.environ.get(_TOKEN, "").strip()) or CredentialStore(folder).where(_TOKEN) is not None
        )
    except ConfigError:
        has_token = False
    if not has_token:
        remark("Its backends need a token: `imagen auth login`. Without one `-b emulator` practises.")


@app.command(epilog=SHOW_EXAMPLES)
def show(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """Show every setting, its value and where it came from. Secrets are masked."""
    from imagen.cli.output import print_json, print_table, printable, remark
    from imagen.cli.run import read_settings, reported
    from imagen.cli.tables import format_table

    with reported(json=json):
        settings = read_settings(config)
        lines = settings.explain()
        file = None if settings.config_file is None else printable(str(settings.config_file))
        if json:
            print_json({"config_file": file, "settings": [line._asdict() for line in lines]})
            return
        rows = [(line.name, line.value, line.source) for line in lines]
        print_table(format_table(("setting", "value", "from"), rows))
        remark(f"Read from {file}." if file else "No configuration file; `imagen config init` writes one.")


@app.command(epilog=PATH_EXAMPLES)
def path(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """Show which file is read, and all places that are looked at, in their order."""
    from imagen.cli.output import print_json, print_table, printable
    from imagen.cli.run import reported
    from imagen.cli.tables import format_table
    from imagen.settings import choose_place, config_places, user_config_folder

    with reported(json=json):
        places = config_places(config, os.environ, Path.cwd(), user_config_folder(os.environ))
        chosen = choose_place(places)
        rows = [
            (
                place.name,
                "-" if place.path is None else printable(str(place.path)),
                _state(place.path, read=place == chosen),
            )
            for place in places
        ]
        if json:
            read = None if chosen is None else printable(str(chosen.path))
            print_json(
                {
                    "read": read,
                    "places": [dict(zip(("place", "path", "state"), row, strict=True)) for row in rows],
                }
            )
            return
        print_table(format_table(("place", "path", "state"), rows))


def _state(path: Path | None, *, read: bool) -> str:
    if path is None:
        return "not named"
    try:
        path.stat()
    except FileNotFoundError:
        return "named, but not there" if read else "not there"
    except (OSError, ValueError):
        return "cannot be read"
    return "read" if read else "there, but not read"


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not there
        return path
