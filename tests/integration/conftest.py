"""A whole app in this process, against the emulator over real sockets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fakes.databases import copy_new_ones
from imagen.assembly import App, build
from imagen.cli.main import app as command_line
from imagen.domain.events import Event
from imagen.emulator import EmulatorThread
from imagen.ports import Clock
from imagen.settings import load_settings


@pytest.fixture(autouse=True)
def _databases(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_new_ones(monkeypatch)


class Record:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def environ(tmp_path: Path, replicate_emulator: EmulatorThread) -> dict[str, str]:
    return {
        "HOME": str(tmp_path / "home"),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
        "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1",
        "REPLICATE_API_TOKEN": "r8_integration",
    }


@pytest.fixture
def app_clock() -> Clock | None:
    """Of the apps; a file whose apps wait long has a hasty one."""
    return None


@pytest.fixture
def open_app(
    environ: dict[str, str], tmp_path: Path, record: Record, app_clock: Clock | None
) -> Callable[..., App]:
    """Build an app on the test's data folder; several make several processes' worth."""

    def open_one(**changes: str) -> App:
        given = environ | changes
        return build(
            load_settings(environ=given, cwd=tmp_path), environ=given, observer=record, clock=app_clock
        )

    return open_one


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs a command in this process, practising in a folder of the test; with `fails` it has to fail."""
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("HOME", tmp_path),
        ("IMAGEN_DATA_DIR", tmp_path / "data"),
        ("IMAGEN_OUTPUT", f"{tmp_path}/out/"),
    ):
        monkeypatch.setenv(name, str(value))

    def run(*words: str, fails: bool = False, **environ: str) -> Result:
        said = CliRunner().invoke(command_line, words, env=environ)
        assert (said.exit_code != 0) == fails, said.output
        return said

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield run
    root.handlers[:] = handlers  # a command logs to its own standard error
    root.setLevel(level)
