"""`imagen emulator`: Replicate on this machine, for practice and for other programs' tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from imagen.emulator import Emulator

EXAMPLES = """\b
Examples:
  imagen emulator
  imagen emulator --port 0 --run-seconds 3 --json
  imagen emulator --host 0.0.0.0 --delivery-port 5056 --allow-non-loopback
"""

PRACTICE_TOKEN = "r8_practice"  # noqa: S105 - let in nowhere but here


def emulator(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The API's port; 0 takes a free one.")] = 5055,
    host: Annotated[
        str, typer.Option(help="Where it listens; this machine only, unless allowed.")
    ] = "127.0.0.1",
    run_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=86_400,
            metavar="SECONDS",
            help="How long each prediction runs.",
            show_default="as its model does",
        ),
    ] = None,
    delivery_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port of its pictures; 0 takes a free one.")
    ] = 0,
    public_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="How clients reach the API.", show_default="host and port"),
    ] = None,
    public_delivery_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="How clients reach its pictures.", show_default="host and port"),
    ] = None,
    allow_non_loopback: Annotated[
        bool,
        typer.Option(
            "--allow-non-loopback", help="Listen to other machines too; whoever reaches it controls it."
        ),
    ] = False,
    data_uris: Annotated[
        bool, typer.Option("--data-uris", help="Pictures inside the answers of held creates (Prefer: wait).")
    ] = False,
    picture_kib: Annotated[
        int,
        typer.Option(min=0, max=65_536, metavar="KIB", help="Least size of a picture in KiB, for measuring."),
    ] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="One line of JSON on standard output once it listens.")
    ] = False,
) -> None:
    """Run a Replicate for practice on this machine until Ctrl-C. It buys nothing and costs nothing."""
    from imagen.cli.run import reported, run_loop

    places: dict[str, Any] = {
        "host": host,
        "port": port,
        "delivery_port": delivery_port,
        "public_url": public_url,
        "public_delivery_url": public_delivery_url,
        "allow_non_loopback": allow_non_loopback,
        "run_seconds": run_seconds,
    }
    with reported(json=json):
        run_loop(_serve(places, {"data_uris": data_uris, "picture_kib": picture_kib}, json=json))


emulator.__doc__ = f"{emulator.__doc__}\n\n{EXAMPLES}"


async def _serve(arguments: dict[str, Any], mode: dict[str, Any], *, json: bool) -> None:
    """Listen until somebody ends it; that is its usual end and no interruption.

    Args:
        arguments: of the `Emulator`.
        mode: what of its mode is not as usual.
        json: whether it says in JSON where it listens.
    """
    import asyncio
    import signal

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    running = await _started(arguments, mode)
    try:
        _announce(running, json=json)
        await stopping.wait()
    finally:
        await running.stop()
        loop.remove_signal_handler(signal.SIGINT)
    if not json:
        typer.echo("stopped; what it remembered is gone", err=True)


async def _started(arguments: dict[str, Any], mode: dict[str, Any]) -> Emulator:
    """The emulator, listening.

    Raises:
        InvalidRequest: it cannot listen there.
    """
    import errno

    from imagen.emulator import Emulator
    from imagen.emulator.limits import Mode
    from imagen.errors import InvalidRequest

    host, port = arguments["host"], arguments["port"]
    free = "`--port 0` takes a free one."
    try:
        running = Emulator(**arguments, mode=Mode(**mode))
        await running.start()
    except ValueError:
        raise InvalidRequest(
            f"--host {host[:80]!r} is no address of this machine alone; whoever reaches the emulator controls it.",
            hint="Use 127.0.0.1 or ::1; in a container say --allow-non-loopback.",
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidRequest(
                f"port {port} of {host} is taken: something listens there already.", hint=free
            ) from None
        if error.errno == errno.EACCES:
            raise InvalidRequest(f"port {port} may not be taken by this user.", hint=free) from None
        raise InvalidRequest(
            f"{host}:{port} cannot be listened on: {error.strerror or error}.", hint=free
        ) from None
    return running


def _announce(running: Emulator, *, json: bool) -> None:
    if json:
        import msgspec

        facts = {
            "url": running.url,
            "delivery_url": running.delivery_url,
            "token": PRACTICE_TOKEN,
            "practice": True,
        }
        typer.echo(msgspec.json.encode(facts).decode())
        return
    typer.echo(f"Replicate for practice listens on {running.url}, its pictures on {running.delivery_url}.")
    typer.echo("Nothing here is bought, and no picture comes from a model. To use it, in another terminal:")
    typer.echo(f"\n  export IMAGEN_REPLICATE__API_BASE={running.url} REPLICATE_API_TOKEN={PRACTICE_TOKEN}\n")
    typer.echo(
        "imagen then takes it for Replicate itself and writes real prices into its ledger; to keep that apart,"
    )
    typer.echo("set IMAGEN_DATA_DIR to another folder there too. Ctrl-C ends it.")
