"""`imagen mcp`: tools for agents over standard input and output."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config, Server

if TYPE_CHECKING:
    from imagen.agents.tools import Desk
    from imagen.agents.workshop import Workshop
    from imagen.assembly import App
    from imagen.domain.money import Usd
    from imagen.errors import ImagenError

EXAMPLES = """An agent starts this itself; it ends when the agent closes its input. Standard output carries the protocol alone.

\b
Examples:
  imagen mcp --print-config
  imagen mcp --budget 2.50
  imagen mcp --confirm-above 0.02 -o ~/Pictures/agent/
  IMAGEN_API_KEY=imk_… imagen mcp --server https://pictures.example.com
"""


_ADVICE_HERE = (
    "imagen: agents start servers with few variables: name those that are needed, such as REPLICATE_API_TOKEN, under "
    '"env", or keep the token with `imagen auth login`'
)
_ADVICE_SERVER = (
    "imagen: agents start servers with few variables: name a key of the gateway as IMAGEN_API_KEY under "
    '"env". Make one with `imagen keys create`, and never give an agent the admin key'
)


def mcp(
    backend: Annotated[
        str | None, typer.Option("-b", "--backend", help="A backend of your configuration.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Where pictures go when a call says nothing: as -o of generate."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="US dollars that may be spent until it ends; what would pass them is refused."),
    ] = None,
    confirm_above: Annotated[
        str | None, typer.Option(help="US dollars that one call may cost without being confirmed.")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print what goes into the configuration of an agent, and end."),
    ] = False,
    server: Server = None,
    config: Config = None,
) -> None:
    """Let an agent make pictures: tools by the Model Context Protocol, over standard input and output."""
    from imagen.cli.run import run_app

    async def command(app: App) -> None:
        import sys

        from imagen.cli.output import remark
        from imagen.domain.money import read_dollars

        settings = app.settings.mcp
        most = settings.budget if budget is None else read_dollars(budget, field="budget")
        above = (
            settings.confirm_above
            if confirm_above is None
            else read_dollars(confirm_above, field="confirm_above")
        )
        if print_config:
            _check_given(app, backend=backend, server=server)
            _print_config(
                backend=backend,
                output=output,
                budget=budget,
                confirm_above=confirm_above,
                server=server,
                config=config,
            )
            return
        desk = _desk(app, backend=backend, output=output, server=server, budget=most, confirm_above=above)
        from imagen.agents.lines import serve_lines
        from imagen.agents.protocol import make_server

        if sys.stdin.isatty():
            remark(
                "imagen: an agent should have started this, and is waited for; --print-config tells how. Ctrl-D ends it"
            )
        async with _mirrored(app):
            await serve_lines(make_server(desk, started=_nothing, ended=_ended))

    run_app(command, config=config)


@asynccontextmanager
async def _mirrored(app: App) -> AsyncIterator[None]:
    """Keep the ledger's second place up with the first, where there is one: an agent may stay for days."""
    import asyncio

    if app.mirror.sink is None:
        yield
        return
    mirroring = asyncio.create_task(app.mirror.run())
    try:
        yield
    finally:
        mirroring.cancel()
        await asyncio.gather(mirroring, return_exceptions=True)


def _nothing(*_: object) -> None:
    """Nobody else has to know of a call."""


def _ended(*_: object) -> ImagenError:
    from imagen.errors import Draining

    return Draining("the process is ending")


def _desk(
    app: App,
    *,
    backend: str | None,
    output: str | None,
    server: str | None,
    budget: Usd | None,
    confirm_above: Usd,
) -> Desk:
    """The tools of whoever runs this process."""
    from imagen.agents.money import Purse
    from imagen.agents.tools import Desk
    from imagen.assembly import Remote
    from imagen.cli.mcp_workshops import LocalWorkshop, ThroughGateway
    from imagen.cli.options import absolute_output, parts_at

    usual = absolute_output(output)
    parts = parts_at(server, app)
    workshop: Workshop
    if isinstance(parts, Remote):
        workshop = ThroughGateway(app, parts, backend=backend, output=usual)
    else:
        workshop = LocalWorkshop(app, backend=backend, output=usual)
    return Desk(
        workshop=workshop,
        confirm_above=confirm_above,
        purse=Purse(budget),
        local=True,
        resumes=parts is app,
    )


def _check_given(app: App, *, backend: str | None, server: str | None) -> None:
    """Refuse now what a start with these options would refuse, when nobody may see why.

    Raises:
        InvalidInput, NotFound: naming what is wrong.
    """
    from imagen.cli.options import parts_at

    app.backends.habits(backend)
    parts_at(server, app)


def _print_config(**given: str | Path | None) -> None:
    """The usual JSON of agents: who starts a server finds the command and its arguments there."""
    import shutil
    import sys

    from imagen.cli.options import absolute_output
    from imagen.cli.output import print_json, remark

    arguments = ["mcp"]
    for name, value in given.items():
        if value is not None:
            told = absolute_output(str(value)) if name in {"config", "output"} else str(value)
            arguments += [f"--{name.replace('_', '-')}", str(told)]
    found = shutil.which(sys.argv[0]) or shutil.which("imagen")
    command = [str(Path(found).absolute())] if found else [sys.executable, "-m", "imagen"]
    print_json({"mcpServers": {"imagen": {"command": command[0], "args": [*command[1:], *arguments]}}})
    remark(_ADVICE_SERVER if given["server"] else _ADVICE_HERE)


mcp.__doc__ = f"{mcp.__doc__}\n\n{EXAMPLES}"
