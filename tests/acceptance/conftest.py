"""The real command in a process of its own, far from the home and the keyring of whoever runs the tests.

The processes are forked from one that has imported imagen; with `cold` a command starts as it does for users.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import SOURCE, Forked

COMMAND = (sys.executable, "-m", "imagen")
TOKEN = "r8_acceptance_test_token"
TOLD_BEFORE_THE_START = {"LANG", "LC_ALL", "PYTHONASYNCIODEBUG", "PYTHONWARNINGS", "PYTHON_KEYRING_BACKEND"}
"""What an interpreter, or what it imports, looks at when it starts: where a test changes it, commands start cold."""


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    args: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as JSON: nothing else may be on it."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[str]:
        """Standard output by lines."""
        return self.stdout.splitlines()

    def __str__(self) -> str:
        return f"imagen {' '.join(self.args)} → {self.code}\n{self.stdout}\n--- stderr ---\n{self.stderr}"


class Started:
    """A command that runs until it is stopped."""

    def __init__(self, args: tuple[str, ...], process: Forked | subprocess.Popen[str]) -> None:
        self.args = args
        self.process = process

    def read_line(self) -> str:
        """The next line of its standard output; empty when it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 20) -> Completed:
        """Signal it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            stdout, stderr = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            try:
                stdout, stderr = self.process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                # A child of it has the streams still: whoever reads them would wait for that, and so would closing them.
                self.process.stdout = self.process.stderr = None
                raise
        return Completed(self.args, self.process.returncode, stdout, stderr)


class Cli:
    """Runs `imagen` with folders of its own.

    Attributes:
        root: holds everything below; `home`, `config_home`, `data` (IMAGEN_DATA_DIR) and `work` (current folder).
        env: the whole environment of the commands; a test may change it for all that follow.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.config_home = root / "config"
        self.data = root / "data"
        self.work = root / "work"
        for folder in (self.home, self.config_home, self.work):
            folder.mkdir()
        self.env: dict[str, str] = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.config_home),
            "XDG_DATA_HOME": str(root / "share"),
            "XDG_CACHE_HOME": str(root / "cache"),
            "IMAGEN_DATA_DIR": str(self.data),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "COLUMNS": "100",
        }
        self._started: list[Started] = []
        self._told_first = {name: self.env.get(name) for name in TOLD_BEFORE_THE_START}

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = 50,
        code: int | None = None,
        cold: bool = False,
    ) -> Completed:
        """Run to the end. `env` adds to the environment; `code` is the exit status that is expected, None any.

        With `cold` it is a whole interpreter that imports what it needs.
        """
        given = tuple(map(str, args))
        process = self._begin(given, env, stdin=subprocess.PIPE, cold=cold)
        try:
            stdout, stderr = process.communicate("" if stdin is None else stdin, timeout=timeout)
        finally:
            process.kill()
            close(process)
        completed = Completed(given, process.wait(), stdout, stderr)
        assert "Traceback" not in completed.stderr, completed
        assert code is None or completed.code == code, completed
        return completed

    def start(self, *args: str | Path, env: Mapping[str, str] | None = None, cold: bool = False) -> Started:
        """Start and go on; what still runs when the test ends is stopped."""
        given = tuple(map(str, args))
        process = self._begin(given, env, stdin=subprocess.DEVNULL, cold=cold)
        started = Started(given, process)
        self._started.append(started)
        return started

    def stop_all(self) -> None:
        """End what still runs."""
        for started in self._started:
            if started.process.poll() is None:
                started.stop(signal.SIGKILL)
            close(started.process)

    def _begin(
        self, args: tuple[str, ...], env: Mapping[str, str] | None, *, stdin: int, cold: bool
    ) -> Forked | subprocess.Popen[str]:
        whole = self.env | dict(env or {})
        if not cold and self._told_first == {name: whole.get(name) for name in self._told_first}:
            return SOURCE.start(args, env=whole, cwd=self.work, stdin=stdin)
        return subprocess.Popen(
            [*COMMAND, *args],
            env=whole, cwd=self.work, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def write_config(self, text: str) -> Path:
        """Write `imagen.yaml` into the current folder of the commands."""
        path = self.work / "imagen.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def use(self, api_base: str, token: str = TOKEN) -> None:
        """Send all that follows to the Replicate (an emulator) at `api_base`."""
        self.env["IMAGEN_REPLICATE__API_BASE"] = api_base
        self.env["REPLICATE_API_TOKEN"] = token


def close(process: Forked | subprocess.Popen[str]) -> None:
    """Let go of its streams."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@pytest.fixture(scope="session", autouse=True)
def source() -> Iterator[None]:
    """What the commands are forked from ends with the tests."""
    yield
    SOURCE.end()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command `imagen`, isolated: `cli("usage", "--json").json`."""
    command = Cli(tmp_path)
    yield command
    command.stop_all()
