"""`imagen serve`: the HTTP gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagen.cli.parameters import Config

if TYPE_CHECKING:
    from imagen.server.run import Served
    from imagen.settings import Settings

EXAMPLES = """\b
Examples:
  imagen serve
  CONCURRENT_DOCKER_ADMIN_API_KEY=$(openssl rand -hex 24) imagen serve --host 0.0.0.0
  curl localhost:5003/generate -d '{"model_name": "flux-dev", "prompt": "a red fox"}'
"""


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; others than this machine need an admin key.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    drain: Annotated[
        float | None,
        typer.Option(help="Seconds that requests get to finish after SIGTERM; what is left is handed over."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One line of JSON on standard output once it listens.")
    ] = False,
    config: Config = None,
) -> None:
    """Serve pictures to other programs over HTTP: limits that hold, keys, semaphores, metrics."""
    from msgspec.json import encode

    from imagen.cli.output import remark
    from imagen.cli.run import read_settings, reported, run_loop
    from imagen.server.run import serve as serve_until_stopped

    def told(served: Served) -> None:
        remark(f"imagen: serving on {served.url} (docs at {served.url}/docs); Ctrl-C or SIGTERM stops it")
        if served.practises:
            remark("imagen: no Replicate token is set: pictures are practice, painted by the emulator")
        if json:
            typer.echo(encode({"url": served.url}).decode())

    with reported(json=json):
        settings = _with_options(read_settings(config), host, port, drain)
        run_loop(serve_until_stopped(settings, told=told))
        remark("imagen: stopped")


def _with_options(settings: Settings, host: str | None, port: int | None, drain: float | None) -> Settings:
    """The settings with what the command line says instead."""
    from datetime import timedelta

    from msgspec.structs import replace

    from imagen.errors import InvalidInput, Problem

    if port is not None and not 0 <= port <= 65_535:
        raise InvalidInput([Problem("port", f"{port} is not allowed; it must be from 0 to 65535")])
    if drain is not None and not 0 <= drain <= 3600:
        raise InvalidInput([Problem("drain", f"{drain:g} is not allowed; it must be from 0 to 3600 seconds")])
    server = settings.server
    return replace(
        settings,
        server=replace(
            server,
            host=host or server.host,
            port=server.port if port is None else port,
            drain=server.drain if drain is None else timedelta(seconds=drain),
        ),
    )


serve.__doc__ = f"{serve.__doc__}\n\n{EXAMPLES}"
