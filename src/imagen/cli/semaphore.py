"""`imagen semaphore`: named limits that commands on this machine share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagen.assembly import App
    from imagen.domain.semaphore import Semaphore

app = typer.Typer(
    help="Named limits: `imagen generate … --semaphore NAME` waits for a free place.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and . _ : -")]


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False, config: Config = None
) -> None:
    """Show every semaphore: its limit and how many places are held now."""
    from imagen.cli.output import print_json, print_lines, remark
    from imagen.cli.run import run_app

    async def command(app: App) -> Sequence[Semaphore]:
        return await app.semaphores.list(now=app.clock.now())

    found = run_app(command, config=config, json=as_json)
    if as_json:
        print_json([{"name": one.name, "limit": one.limit, "held": one.held} for one in found])
    elif found:
        print_lines(f"{one.name}  {one.held} of {one.limit} held" for one in found)
    else:
        remark("No semaphore yet. `imagen semaphore register NAME LIMIT` makes one.")


@app.command()
def register(
    name: Name,
    limit: Annotated[int, typer.Argument(metavar="LIMIT", help="Places, 1 to 10000.")],
    config: Config = None,
) -> None:
    """Make a semaphore, or give one another limit; places that are held stay held."""
    from imagen.cli.output import remark
    from imagen.cli.run import run_app
    from imagen.domain.semaphore import check_semaphore

    async def command(app: App) -> None:
        check_semaphore(name, limit)
        await app.semaphores.register(name, limit)

    run_app(command, config=config)
    remark(f"semaphore {name}: {limit} at once")


@app.command()
def remove(name: Name, config: Config = None) -> None:
    """Remove a semaphore and everything that is held in it."""
    from imagen.cli.output import remark
    from imagen.cli.run import run_app

    async def command(app: App) -> None:
        await app.semaphores.remove(name)

    run_app(command, config=config)
    remark(f"semaphore {name} removed")
