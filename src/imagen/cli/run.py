"""Runs a command: settings, the parts, the loop, signals, and errors as one clear line."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from imagen.cli.exit_status import INTERNAL, INTERRUPTED, exit_status
from imagen.cli.output import print_json, printable, remark
from imagen.errors import ImagenError, money_facts

if TYPE_CHECKING:
    from imagen.assembly import App
    from imagen.ports import Observer
    from imagen.settings import Settings

T = TypeVar("T")


def run_app(
    command: Callable[[App], Awaitable[T]],
    *,
    config: Path | None = None,
    json: bool = False,
    observer: Observer | None = None,
) -> T:
    """Put the parts together, run `command` with them, and leave with the status that fits what happened."""
    with reported(json=json):
        settings = read_settings(config)

        async def run() -> T:
            from imagen.assembly import build

            async with build(settings, observer=observer) as app:
                result = await command(app)
                await app.leave_entries()
                return result

        return run_loop(run())


def read_settings(config: Path | None) -> Settings:
    """The settings by file and environment, with logging set up by them.

    Raises:
        ConfigError: a setting makes no sense.
    """
    from imagen.instrumentation.logs import configure_logging
    from imagen.settings import load_settings

    settings = load_settings(config=config, environ=os.environ, cwd=Path.cwd())
    configure_logging(level=settings.log.level, form=settings.log.format)
    return settings


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop where there is one. Ctrl-C and SIGTERM cancel the work, which then cleans up."""
    from imagen.transport.loop import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        loop = runner.get_loop()

        async def guarded() -> T:
            task = asyncio.current_task()
            if task is not None:
                loop.add_signal_handler(signal.SIGTERM, task.cancel)
            try:
                return await work
            finally:
                loop.remove_signal_handler(signal.SIGTERM)

        return runner.run(guarded())


class reported:  # noqa: N801 - read as `with reported():`
    """Turns what a command raises into one line on stderr (with `json` an object on stdout) and an exit status."""

    def __init__(self, *, json: bool = False) -> None:
        self._json = json

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        match error:
            case None | typer.Exit() | typer.Abort() | SystemExit():
                return
            case ImagenError():
                show_error(error, json=self._json)
                leave(exit_status(error))
            case KeyboardInterrupt() | asyncio.CancelledError():
                remark("imagen: interrupted")
                leave(INTERRUPTED)
            case BrokenPipeError():
                sys.stdout = None
                leave(INTERRUPTED)
            case Exception() if not os.environ.get("IMAGEN_TEST_TRACE"):
                remark(f"imagen: unexpected fault, please report it: {_whereabouts(error)}")
                leave(INTERNAL)


def show_error(error: ImagenError, *, json: bool) -> None:
    """One line for people; with `json`, the same as an object on stdout besides."""
    remark(f"imagen: {error}")
    if json:
        print_json(error_facts(error))


def error_facts(error: ImagenError) -> dict[str, Any]:
    """An error for machines."""
    import msgspec

    shown: dict[str, Any] = {"error": error.code, "detail": error.detail, "hint": error.hint}
    shown |= {
        name: value
        for name in ("prediction_id", "charged", "retry_after", "category", "reason")
        if (value := getattr(error, name, None)) is not None
    }
    shown |= money_facts(error)
    if problems := getattr(error, "problems", ()):
        shown["problems"] = [msgspec.to_builtins(problem) for problem in problems]
    return {name: printable(value) if isinstance(value, str) else value for name, value in shown.items()}


def leave(status: int) -> NoReturn:
    """End with this status."""
    raise SystemExit(status)


def _whereabouts(error: BaseException) -> str:
    """Kind and place of a fault. Its text stays hidden: it may quote a prompt or a secret."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "imagen" in frame.filename]
    return f"{type(error).__name__} at {' < '.join(reversed(places[-3:]))}"
