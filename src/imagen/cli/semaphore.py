"""`imagen semaphore`: named limits that commands share, on this machine or through a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.domain.semaphore import Holder, Semaphore

app = typer.Typer(
    help="Named limits: `imagen generate … --semaphore NAME` waits for a free place, and so does any command under "
    "`imagen semaphore run NAME -- …`.",
    no_args_is_help=True,
)

LIST_EXAMPLES = """\b
Examples:
  imagen semaphore list
  imagen semaphore list --json
"""
SHOW_EXAMPLES = """\b
Examples:
  imagen semaphore show gpu
  imagen semaphore show gpu --json
"""
REGISTER_EXAMPLES = """\b
Examples:
  imagen semaphore register gpu 4
"""
REMOVE_EXAMPLES = """\b
Examples:
  imagen semaphore remove gpu
"""
RUN_EXAMPLES = """\b
Examples:
  imagen semaphore run gpu -- python train.py --epochs 3
  imagen semaphore run gpu --wait 0 -- ./nightly.sh || echo busy
  imagen semaphore run gpu --ttl 15 --holder nightly -- sh -c 'sleep 5; echo done'
"""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and . _ : -")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command("list", epilog=LIST_EXAMPLES)
def list_(as_json: Json = False, server: Server = None, config: Config = None) -> None:
    """Show every semaphore: its limit, how many places are held now, and how many wait for one."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> Sequence[Semaphore]:
        return await parts_at(server, app).semaphores.list(now=app.clock.now().timestamp())

    found = run_app(command, config=config, json=as_json)
    if as_json:
        print_json(found)
    elif found:
        print_lines(f"{one.name}  {_standing(one)}" for one in found)
    else:
        remark("No semaphore yet. `imagen semaphore register NAME LIMIT` makes one.")


@app.command(epilog=SHOW_EXAMPLES)
def show(name: Name, as_json: Json = False, server: Server = None, config: Config = None) -> None:
    """Show one semaphore: who holds its places, since when, and how many wait for one."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import print_json, print_lines
    from imagen.cli.run import run_app
    from imagen.cli.tables import format_table

    async def command(app: App) -> tuple[Semaphore, Sequence[Holder]]:
        return await parts_at(server, app).semaphores.show(name, now=app.clock.now().timestamp())

    found, holders = run_app(command, config=config, json=as_json)
    if as_json:
        print_json(_facts(found, holders))
        return
    print_lines([f"{found.name}  {_standing(found)}"])
    if holders:
        rows = [(one.holder, _time(one.since), _time(one.expires_at)) for one in holders]
        print_lines(format_table(("holder", "since", "ends, unless renewed"), rows))


@app.command(epilog=REGISTER_EXAMPLES)
def register(
    name: Name,
    limit: Annotated[int, typer.Argument(metavar="LIMIT", help="Places, 1 to 10000.")],
    server: Server = None,
    config: Config = None,
) -> None:
    """Make a semaphore, or give one another limit; places that are held stay held."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import remark
    from imagen.cli.run import run_app
    from imagen.domain.semaphore import check_semaphore

    async def command(app: App) -> None:
        check_semaphore(name, limit)
        await parts_at(server, app).semaphores.register(name, limit)

    run_app(command, config=config)
    remark(f"semaphore {name}: {limit} at once")


@app.command(epilog=REMOVE_EXAMPLES)
def remove(name: Name, server: Server = None, config: Config = None) -> None:
    """Remove a semaphore and everything that is held in it."""
    from imagen.cli.options import parts_at
    from imagen.cli.output import remark
    from imagen.cli.run import run_app

    async def command(app: App) -> None:
        await parts_at(server, app).semaphores.remove(name)

    run_app(command, config=config)
    remark(f"semaphore {name} removed")


@app.command(epilog=RUN_EXAMPLES)
def run(
    name: Name,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND…", help="The command and its arguments, after `--`.")
    ],
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait for a place for so long, 0 to 86400.")
    ] = 600.0,
    ttl: Annotated[
        float,
        typer.Option(
            "--ttl",
            metavar="SECONDS",
            help="Free the place so long after this program was killed, 1 to 86400. It is renewed until the command ends.",
        ),
    ] = 60.0,
    holder: Annotated[
        str | None,
        typer.Option("--holder", metavar="NAME", help="Whom others see; by default the caller's name."),
    ] = None,
    server: Server = None,
    config: Config = None,
) -> None:
    """Run a command while holding a place, and leave with its exit status.

    The command has this terminal for itself: input, output, and Ctrl-C go to it. SIGTERM, SIGINT and SIGHUP are passed
    on. Exit codes besides its own: 3 no place became free in time, 126 the command cannot be run, 127 there is none
    of that name, 128 and the signal's number when one ended it.
    """
    from imagen.cli.held_command import run_held
    from imagen.cli.options import parts_at
    from imagen.cli.run import leave, run_app
    from imagen.domain.caller import UNKNOWN

    async def held(app: App) -> int:
        parts, caller = parts_at(server, app), app.caller()
        own_name = _machine() if parts is not app and caller.name == UNKNOWN.name else caller.name
        place = parts.leases.hold(
            name,
            holder=own_name if holder is None else holder,
            ttl_seconds=ttl,
            wait_seconds=wait,
            turn=caller.turn,
        )
        return await run_held(place, command)

    leave(run_app(held, config=config))


def _machine() -> str:
    """Whom others see where nothing is known of the caller but the machine."""
    import platform

    return platform.node()[:100] or "unknown"


def _standing(one: Semaphore) -> str:
    return f"{one.held} of {one.limit} held, {one.waiting} waiting"


def _facts(one: Semaphore, holders: Sequence[Holder]) -> dict[str, object]:
    """Everything, for machines."""
    from datetime import UTC, datetime

    import msgspec

    def instant(seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds, UTC)

    shown = [
        {"holder": each.holder, "since": instant(each.since), "expires_at": instant(each.expires_at)}
        for each in holders
    ]
    return {**msgspec.structs.asdict(one), "holders": shown}


def _time(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
