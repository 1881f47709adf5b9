"""`imagen auth`: the token of your account, kept outside the environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imagen.assembly import App
    from imagen.credentials import CredentialStore
    from imagen.domain.secret import Secret
    from imagen.settings import BackendSettings, Settings

app = typer.Typer(help="Keep, show and forget the token of your Replicate account.", no_args_is_help=True)

LOGIN_EXAMPLES = """\b
Examples:
  imagen auth login
  imagen auth login --token-stdin < token.txt
  imagen auth login --name OTHER_TOKEN       (for backends with api_token_env: OTHER_TOKEN)
"""
STATUS_EXAMPLES = """\b
Examples:
  imagen auth status
  imagen auth status --json
"""
LOGOUT_EXAMPLES = """\b
Examples:
  imagen auth logout
"""

_TOKENS_PAGE = "https://replicate.com/account/api-tokens"
_LONGEST_TOKEN = 4096

Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The environment variable in whose place it is kept.",
        show_default="replicate.api_token_env, which is REPLICATE_API_TOKEN",
    ),
]


# --- login -----------------------------------------------------------------------------------------------


@app.command(epilog=LOGIN_EXAMPLES)
def login(
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read the token from standard input.")
    ] = False,
    name: Name = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Save it without asking Replicate.")] = False,
    config: Config = None,
) -> None:
    """Keep a token in the keyring, or in a file that only you can read, once it is known to work."""
    from imagen.cli.checkup import shown_account
    from imagen.cli.run import read_settings, reported, run_loop

    with reported():
        settings = read_settings(config)
        wanted = _checked_name(name, settings)
        token = _read_token(from_stdin=token_stdin)
        if no_check:
            owner = ""
        else:
            typer.echo("asking Replicate whose token this is …", err=True)
            owner = shown_account(run_loop(_ask_account(settings, wanted, token)))
        _save(settings, wanted, token, owner)


def _checked_name(name: str | None, settings: Settings) -> str:
    """The name to keep it under. Some give the token itself here, so it is not repeated."""
    from imagen.errors import InvalidRequest
    from imagen.settings import kinds

    if name is None:
        return settings.replicate.api_token_env
    kind = kinds.variable()
    try:
        return str(kind.read(name.strip(), Path()))
    except ValueError:
        raise InvalidRequest(
            f"--name must be {kind.allowed}.", hint="For example --name OTHER_TOKEN."
        ) from None


def _read_token(*, from_stdin: bool) -> Secret:
    """What was typed or piped.

    Raises:
        InvalidRequest: there is nobody to ask, or it is no token.
    """
    from imagen.domain.secret import Secret
    from imagen.errors import InvalidRequest
    from imagen.settings import kinds

    if from_stdin:
        text = sys.stdin.read(_LONGEST_TOKEN + 1)
    elif sys.stdin.isatty():
        try:
            text = typer.prompt(f"Token (from {_TOKENS_PAGE})", hide_input=True, err=True)
        except typer.Abort:
            raise KeyboardInterrupt from None
    else:
        raise InvalidRequest(
            "There is no terminal to ask for the token.",
            hint="Pipe it in: imagen auth login --token-stdin < token.txt",
        )
    if not kinds.is_sendable(text.strip()):
        raise InvalidRequest(
            "That is no token: it is empty, too long, or has spaces, line breaks or other odd characters.",
            hint=f"Copy it again from {_TOKENS_PAGE}, whole and alone.",
        )
    return Secret(text.strip())


async def _ask_account(settings: Settings, name: str, token: Secret) -> Mapping[str, Any]:
    """Whose token it is, asked where the backends that use that name would send it.

    Raises:
        BackendError: it does not work, or that could not be found out. Nothing was saved.
    """
    import msgspec

    from imagen.assembly import build
    from imagen.cli.checkup import ANSWER_SECONDS, ask_account
    from imagen.errors import BackendError, BackendUnauthenticated

    asked = _backend_for(settings, name)
    candidate = msgspec.structs.replace(
        settings,
        backends={**settings.backends, asked.name: asked},
        environ_tokens={**settings.environ_tokens, name: token},
    )
    async with build(candidate) as parts:
        try:
            return await ask_account(parts.backends.get(asked.name), seconds=ANSWER_SECONDS)
        except BackendUnauthenticated as error:
            error.detail = f"this token does not work, and was not saved ({error.detail})"
            error.hint = f"Copy it again from {_TOKENS_PAGE}."
            error.backend = None
            raise
        except BackendError as error:
            error.detail = f"the token could not be checked, and was not saved: {error.detail}."
            error.hint = "Try again later; --no-check saves it without asking."
            error.backend = None
            raise


def _backend_for(settings: Settings, name: str) -> BackendSettings:
    """The first backend that uses the token of that name, else one made for the question."""
    import msgspec

    from imagen.domain.prediction import EMULATOR

    for backend in settings.backends.values():
        if backend.type == "replicate" and backend.api_token_env == name:
            return backend
    return msgspec.structs.replace(
        settings.backends[EMULATOR],
        name="auth",
        type="replicate",
        api_base=settings.replicate.api_base,
        api_token_env=name,
    )


def _save(settings: Settings, name: str, token: Secret, owner: str) -> None:
    place = _store().save(name, token)
    typer.echo(
        f"saved {name} in {_shown_place(place)}{f'; it belongs to {owner}' if owner else ', unchecked'}"
    )
    if settings.environ_token(name):
        typer.echo(f"Note: {name} is set in the environment too, and that one wins.", err=True)
    elif name not in _used_names(settings):
        typer.echo(f"Note: no backend uses it yet; give one `api_token_env: {name}`.", err=True)


# --- status ----------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """What is known of one token: never the token itself."""

    name: str
    source: str
    fingerprint: str | None
    used_by: tuple[str, ...]
    fault: str | None = None


@app.command(epilog=STATUS_EXAMPLES)
def status(
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
) -> None:
    """Show where each token comes from, and its fingerprint. Asks nobody; `imagen doctor` asks Replicate."""
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(parts: App) -> None:
        rows = _known_tokens(parts)
        if json:
            print_json([row._asdict() for row in rows])
            return
        cells = [
            (row.name, row.source, row.fingerprint or "-", ", ".join(row.used_by) or "-") for row in rows
        ]
        print_table(format_table(("token", "from", "fingerprint", "used by"), cells))
        for row in rows:
            if row.fault:
                remark(f"{row.name}: {row.fault}")
        if not any(row.fingerprint for row in rows):
            remark("No token: `imagen auth login` keeps one.")

    run_app(command, config=config, json=json)


def _known_tokens(parts: App) -> list[Known]:
    used = _used_names(parts.settings)
    names = [*used, *(name for name in parts.credentials.names() if name not in used)]
    return [_known_token(parts, name, used.get(name, ())) for name in names]


def _known_token(parts: App, name: str, used_by: tuple[str, ...]) -> Known:
    from imagen.errors import ConfigError

    kept = parts.credentials.where(name)
    place = None if kept is None else _shown_place(kept)
    try:
        if token := parts.settings.environ_token(name):
            hides = f", hiding the one in {place}" if place else ""
            return Known(name, f"environment{hides}", token.fingerprint(), used_by)
        token = parts.credentials.load(name)
    except ConfigError as error:
        return Known(name, place or "environment", None, used_by, str(error))
    return Known(name, place or "not set", token.fingerprint() if token else None, used_by)


def _used_names(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Names of tokens with the backends that use each; the account's own name is always there."""
    from imagen.domain.prediction import EMULATOR

    used: dict[str, tuple[str, ...]] = {settings.replicate.api_token_env: ()}
    for backend in settings.backends.values():
        if backend.type != EMULATOR and backend.api_token_env:
            used[backend.api_token_env] = (*used.get(backend.api_token_env, ()), backend.name)
    return used


# --- logout ----------------------------------------------------------------------------------------------


@app.command(epilog=LOGOUT_EXAMPLES)
def logout(name: Name = None, config: Config = None) -> None:
    """Forget a token that `imagen auth login` kept."""
    from imagen.cli.run import read_settings, reported

    with reported():
        settings = read_settings(config)
        wanted = _checked_name(name, settings)
        if _store().delete(wanted):
            typer.echo(f"forgot {wanted}")
        else:
            typer.echo(f"no {wanted} was kept")
        if settings.environ_token(wanted):
            typer.echo(f"Note: {wanted} is still set in the environment: unset {wanted}", err=True)


def _store() -> CredentialStore:
    import os

    from imagen.credentials import CredentialStore
    from imagen.settings import user_config_folder

    return CredentialStore(user_config_folder(os.environ))


def _shown_place(place: str) -> str:
    return "the keyring" if place == "keyring" else place
