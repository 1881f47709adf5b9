"""Who is asking."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.identity import clean_caller, resolve_caller, run_command


def never(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
    raise AssertionError(command)


def test_the_variable_comes_first() -> None:
    assert resolve_caller({"MAI_FROM_ID": " ada\n", "TMUX_PANE": "%1"}, run=never) == "ada"


@pytest.mark.parametrize("environ", [{}, {"MAI_FROM_ID": " \x00"}, {"TMUX_PANE": " "}])
def test_unknown_without_asking(environ: dict[str, str]) -> None:
    assert resolve_caller(environ, run=never) == "unknown"


def test_the_pane_is_asked() -> None:
    asked = []

    def run(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
        asked.append((tuple(command), seconds))
        return "grace\n"

    assert resolve_caller({"TMUX_PANE": "%7"}, run=run) == "grace"
    assert asked == [(("tmux", "display-message", "-p", "-t", "%7", "#{@mai-name}"), 1.0)]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("tmux"),
        PermissionError(),
        subprocess.TimeoutExpired("tmux", 1),
        subprocess.CalledProcessError(1, "tmux"),
        ValueError("embedded null byte"),
    ],
)
def test_any_failure_is_ignored(error: Exception) -> None:
    def run(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
        raise error

    assert resolve_caller({"TMUX_PANE": "%7"}, run=run) == "unknown"


def test_no_tmux_at_all(tmp_path: Path) -> None:
    assert resolve_caller({"TMUX_PANE": "%7", "PATH": str(tmp_path)}) == "unknown"


def test_a_tmux_that_hangs(tmp_path: Path) -> None:
    tmux = tmp_path / "tmux"
    tmux.write_text("#!/bin/sh\nexec sleep 30\n")
    tmux.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["tmux"], environ, 0.05)


def test_a_tmux_that_prints_rubbish(tmp_path: Path) -> None:
    tmux = tmp_path / "tmux"
    tmux.write_text("#!/bin/sh\nprintf 'a\\377\\033[31mb'\n")
    tmux.chmod(0o755)
    environ = {"TMUX_PANE": "%7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert resolve_caller(environ) == "a\N{REPLACEMENT CHARACTER}[31mb"


@pytest.fixture
def pane(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a pane of a private tmux server, which ends with the test; of none without tmux."""
    if shutil.which("tmux") is None:
        yield {"TMUX_PANE": "%0", "PATH": os.environ["PATH"]}
        return
    socket = f"imagen-{uuid.uuid4().hex[:12]}"
    folder = Path("/tmp") / socket  # the path of a socket must be short
    folder.mkdir(mode=0o700)
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMUX_TMPDIR": str(folder), "TERM": "screen"}

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-L", socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, env=base, check=True, capture_output=True, text=True).stdout.strip()

    try:
        tmux("new-session", "-d", "-x", "80", "-y", "24", "sleep 600")
        number = tmux("display-message", "-p", "#{pane_id}")
        path = tmux("display-message", "-p", "#{socket_path},#{pid},0")
        tmux("set-option", "-p", "-t", number, "@mai-name", " hedy lamarr ")
        yield base | {"TMUX_PANE": number, "TMUX": path}
    finally:
        subprocess.run(["tmux", "-L", socket, "kill-server"], env=base, check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_real_tmux(pane: dict[str, str]) -> None:
    expected = "hedy lamarr" if "TMUX" in pane else "unknown"
    assert resolve_caller(pane) == expected
    assert resolve_caller(pane | {"TMUX_PANE": "%99"}) == "unknown"
    assert resolve_caller(pane | {"MAI_FROM_ID": "ada"}) == "ada"


@given(st.text())
def test_a_clean_name_is_short_and_printable(text: str) -> None:
    name = clean_caller(text)
    assert len(name) <= 200
    assert name.isprintable()
    assert name == name.strip() == clean_caller(name)
    assert resolve_caller({"MAI_FROM_ID": text}) == (name or "unknown")


def test_a_long_name_is_cut() -> None:
    assert clean_caller("x" * 1000) == "x" * 200
    assert clean_caller("a\nb\tc\x00d") == "a b cd"
