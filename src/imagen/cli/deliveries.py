"""`imagen deliveries`: events that are told to callers at their own addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.domain.delivery import Delivery
    from imagen.errors import ConfigError
    from imagen.service.deliveries import CallerSecret

app = typer.Typer(
    help="Events that are delivered to addresses of callers: how they went, and what signs them.",
    no_args_is_help=True,
)
secret_app = typer.Typer(help="What events are signed with.", no_args_is_help=True)
app.add_typer(secret_app, name="secret")

LIST_EXAMPLES = """\b
Examples:
  imagen deliveries list
  imagen deliveries list --failed
  imagen deliveries list --json
"""
RETRY_EXAMPLES = """\b
Examples:
  imagen deliveries retry msg_01kvcs5w8zqe4h2m0r7t9y3xbn
"""
SHOW_EXAMPLES = """\b
Examples:
  imagen deliveries secret show
  imagen deliveries secret show --scope admin
  imagen deliveries secret show --scope key:key_01kvcs5w8zqe4h2m0r7t9y3xbn
"""
ROTATE_EXAMPLES = """\b
Examples:
  imagen deliveries secret rotate
  imagen deliveries secret rotate --overlap 7d
  imagen deliveries secret rotate --overlap 0
"""

_COLUMNS = ("id", "created", "event", "subject", "status", "attempts", "next", "last answer", "url")
_LONGEST_URL, _LONGEST_ANSWER = 60, 60
_LONGEST_OVERLAP_DAYS = 30
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command("list", epilog=LIST_EXAMPLES)
def list_(
    failed: Annotated[
        bool,
        typer.Option(
            "--failed", help="Only those that were given up, or have failed and wait to be sent again."
        ),
    ] = False,
    scope: Annotated[
        str | None, typer.Option(metavar="SCOPE", help="Only those of one caller, such as key:ID.")
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many at most.")] = 50,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show deliveries, the newest first; what is done is kept for a week."""
    from imagen.cli.output import print_json, print_table, remark
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(app: App) -> tuple[Sequence[Delivery], ConfigError | None]:
        return await app.outbox.list(limit=limit, scope=scope, failed=failed), await app.signing.shut()

    found, shut = run_app(command, config=config, json=as_json)
    _warn(shut)
    if as_json:
        print_json([_facts(one) for one in found])
    elif found:
        print_table(format_table(_COLUMNS, map(_row, found), right=("attempts",)))
    else:
        remark("No delivery has failed." if failed else "No delivery yet.")


@app.command(epilog=RETRY_EXAMPLES)
def retry(
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, msg_…")], config: Config = None
) -> None:
    """Have one sent again at once, also one that was given up; a gateway that runs on this data does it."""
    from imagen.cli.output import remark
    from imagen.cli.run import run_app

    async def command(app: App) -> Delivery:
        return await app.outbox.retry(delivery_id, now=app.clock.now())

    found = run_app(command, config=config)
    if found.status == "taken":
        remark(f"{found.id} was taken already; it is not sent again")
    else:
        remark(f"{found.id} is sent again by the gateway that runs on this data, for another day")


@secret_app.command("show", epilog=SHOW_EXAMPLES)
def show(
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="Whose events: local, admin, key:ID or token:ACCOUNT.")
    ] = "local",
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Print the secrets that sign the events of a caller now, the newest first."""
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> tuple[Sequence[CallerSecret], ConfigError | None]:
        return await app.signing.of(scope), await app.signing.shut()

    found, shut = run_app(command, config=config, json=as_json)
    _warn(shut)
    if as_json:
        print_json(
            {
                "scope": scope,
                "secrets": [
                    {
                        "secret": one.secret.reveal(),
                        "created_at": one.created_at,
                        "retires_at": one.retires_at,
                    }
                    for one in found
                ],
            }
        )
        return
    print_lines([one.secret.reveal() for one in found])
    for one in found:
        if one.retires_at is not None:
            remark(f"an older one signs beside it until {one.retires_at.astimezone():%Y-%m-%d %H:%M}")


@secret_app.command(epilog=ROTATE_EXAMPLES)
def rotate(
    overlap: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help=(
                "How long the old secrets sign beside the new ones, as 24h, 7d or a number of hours; "
                f"at most {_LONGEST_OVERLAP_DAYS}d."
            ),
        ),
    ] = "24h",
    config: Config = None,
) -> None:
    """Make new signing secrets for all callers. Each fetches its own at `GET /webhooks/secret`."""
    from imagen.cli.output import remark
    from imagen.cli.run import reported, run_app

    with reported():
        seconds = _overlap_seconds(overlap)

    async def command(app: App) -> ConfigError | None:
        await app.signing.rotate(overlap_seconds=seconds)
        return await app.signing.shut()

    shut = run_app(command, config=config)
    if shut is not None:
        remark(f"new secrets sign from now on, but not all old ones beside them: {shut.detail}")
        return
    remark(
        f"new secrets sign from now on, the old ones beside them for {seconds / 3600:g} hours"
        if seconds
        else "new secrets sign from now on, and they alone"
    )


def _warn(shut: ConfigError | None) -> None:
    """Say what does not sign, if something does not."""
    from imagen.cli.output import remark

    if shut is not None:
        remark(f"warning: {shut}")


def _overlap_seconds(text: str) -> float:
    """A duration, or a plain number of hours.

    Raises:
        InvalidRequest: it is neither, or out of range.
    """
    from datetime import timedelta

    from imagen.errors import InvalidRequest
    from imagen.service.usage import parse_duration

    longest = timedelta(days=_LONGEST_OVERLAP_DAYS)
    try:
        found = parse_duration(text)
        # What is no number at all, or none that ends, is a ValueError or an OverflowError here.
        overlap = timedelta(hours=float(text)) if found is None else found
    except (ValueError, OverflowError):
        overlap = None
    if overlap is None or not timedelta(0) <= overlap <= longest:
        raise InvalidRequest(
            f"--overlap {text[:60]!r} is no duration from 0 to {longest.days}d.",
            hint="Write 24h, 7d, 2w or a number of hours; with 0 the new secrets sign alone.",
        )
    return overlap.total_seconds()


def _facts(one: Delivery) -> dict[str, Any]:
    names = ("id", "status", "event", "subject", "scope", "url", "attempts", "created_at", "due_at")
    return {name: getattr(one, name) for name in (*names, "delivered_at", "given_up_at", "answer")}


def _row(one: Delivery) -> tuple[str, ...]:
    from imagen.cli.tables import shorten

    return (
        one.id,
        f"{one.created_at.astimezone():%Y-%m-%d %H:%M}",
        one.event,
        one.subject,
        one.status,
        str(one.attempts),
        "-" if one.due_at is None else f"{one.due_at.astimezone():%Y-%m-%d %H:%M:%S}",
        "-" if one.answer is None else shorten(one.answer, _LONGEST_ANSWER),
        shorten(one.url, _LONGEST_URL),
    )
