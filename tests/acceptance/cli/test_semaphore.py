"""`imagen semaphore`: any command, held to a limit that all processes of a machine share."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

ONE_AT_A_TIME = "mkdir inside && sleep 0.4 && rmdir inside"
"""Fails when somebody else is inside."""


@pytest.fixture
def gpu(cli: Any) -> Any:
    """The command, with a semaphore of one place."""
    cli("semaphore", "register", "gpu", "1", code=0)
    return cli


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def held(cli: Any) -> int:
    return int(cli("semaphore", "show", "gpu", "--json", code=0).json["held"])


def shell(line: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", line)


# --- run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_it_leaves_with_the_commands_own_status(gpu: Any, line: str, status: int) -> None:
    gpu("semaphore", "run", "gpu", *shell(line), code=status)
    assert held(gpu) == 0


def test_the_command_has_input_output_and_arguments_as_they_are(gpu: Any) -> None:
    program = "import sys; print(sys.stdin.read(), sys.argv[1:]); print('aside', file=sys.stderr)"
    command = ("--", sys.executable, "-c", program, "--wait", "--", "-x")
    done = gpu("semaphore", "run", "gpu", *command, stdin="said", code=0)
    assert done.stdout == "said ['--wait', '--', '-x']\n"
    assert done.stderr == "aside\n"


def test_a_command_that_is_not_there_is_127_and_nothing_is_waited_for(gpu: Any) -> None:
    holding = gpu.start("semaphore", "run", "gpu", *shell("echo in; exec sleep 30"))
    assert holding.read_line() == "in\n"
    began = time.monotonic()
    done = gpu("semaphore", "run", "gpu", "--", "no-such-command-here", code=127)
    assert time.monotonic() - began < 10
    assert done.stderr == "imagen: no-such-command-here: command not found\n"
    holding.stop()


def test_a_file_that_cannot_be_run_is_126(gpu: Any) -> None:
    (gpu.work / "notes.txt").write_text("no program")
    done = gpu("semaphore", "run", "gpu", "--", "./notes.txt", code=126)
    assert "Permission denied" in done.stderr
    assert held(gpu) == 0


def test_no_place_in_time_is_3_and_the_command_does_not_run(gpu: Any) -> None:
    holding = gpu.start("semaphore", "run", "gpu", *shell("echo in; exec sleep 30"))
    assert holding.read_line() == "in\n"
    for wait in ("0", "0.5"):
        done = gpu("semaphore", "run", "gpu", "--wait", wait, *shell("touch ran"), code=3)
        assert "no place in semaphore 'gpu'" in done.stderr
    assert not (gpu.work / "ran").exists()
    holding.stop()
    gpu("semaphore", "run", "gpu", "--wait", "0", *shell("touch ran"), code=0)
    assert (gpu.work / "ran").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("nope",), "External semaphore 'nope' not found"),
        (("gpu", "--wait", "-1"), "wait: -1 is not allowed; it must be from 0 to 86400 seconds"),
        (("gpu", "--ttl", "0"), "ttl: 0 is not allowed; it must be from 1 to 86400 seconds"),
        (("gpu", "--holder", ""), "holder: it must be 1 to 100 printable characters"),
    ],
)
def test_what_makes_no_sense_is_2(gpu: Any, given: tuple[str, ...], told: str) -> None:
    done = gpu("semaphore", "run", *given, *shell("touch ran"), code=2)
    assert told in done.stderr
    assert not (gpu.work / "ran").exists()


def test_processes_take_turns(gpu: Any) -> None:
    started = [gpu.start("semaphore", "run", "gpu", *shell(ONE_AT_A_TIME)) for _ in range(4)]
    for process in started:
        process.process.wait(50)
    assert [process.process.returncode for process in started] == [0, 0, 0, 0]
    assert held(gpu) == 0


def test_it_holds_its_place_for_longer_than_a_lease_lasts(gpu: Any) -> None:
    until_done = "echo in; while [ ! -e done ]; do sleep 0.05; done"
    long = gpu.start("semaphore", "run", "gpu", "--ttl", "1", *shell(until_done))
    assert long.read_line() == "in\n"
    time.sleep(2)
    gpu("semaphore", "run", "gpu", "--wait", "0", *shell("true"), code=3)
    (gpu.work / "done").touch()
    assert long.process.wait(20) == 0


def test_killing_the_runner_frees_the_place_when_its_lease_ends(gpu: Any) -> None:
    killed = gpu.start("semaphore", "run", "gpu", "--ttl", "3", *shell("echo in; exec sleep 1"))
    assert killed.read_line() == "in\n"
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait(10)
    at = time.monotonic()
    assert held(gpu) == 1
    gpu("semaphore", "run", "gpu", "--wait", "20", *shell("true"), code=0)
    assert time.monotonic() - at < 10
    assert held(gpu) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(gpu: Any, number: signal.Signals) -> None:
    """The command decides what they mean, and its place is held until it has ended."""
    name = number.name.removeprefix("SIG")
    line = f"trap 'sleep 0.3; echo heard; exit 5' {name}; echo in; while :; do sleep 0.05; done"
    started = gpu.start("semaphore", "run", "gpu", *shell(line))
    assert started.read_line() == "in\n"
    done = started.stop(number)
    assert (done.code, done.stdout) == (5, "heard\n")
    assert held(gpu) == 0


def test_a_command_that_a_signal_ended_is_128_and_the_signal(gpu: Any) -> None:
    started = gpu.start("semaphore", "run", "gpu", *shell("echo in; exec sleep 30"))
    assert started.read_line() == "in\n"
    assert started.stop(signal.SIGTERM).code == 143
    assert held(gpu) == 0


def test_ctrl_c_while_it_waits_leaves_nothing_held(gpu: Any) -> None:
    holding = gpu.start("semaphore", "run", "gpu", *shell("echo in; exec sleep 30"))
    assert holding.read_line() == "in\n"
    waiting = gpu.start("semaphore", "run", "gpu", *shell("touch ran"))
    wait_for(lambda: "1 of 1 held, 1 waiting" in gpu("semaphore", "list", code=0).stdout)
    done = waiting.stop(signal.SIGINT)
    assert done.code == 130
    assert done.stderr == "imagen: interrupted\n"
    holding.stop()
    assert held(gpu) == 0
    assert not (gpu.work / "ran").exists()


def test_ctrl_c_in_a_terminal_is_heard_once(gpu: Any) -> None:
    """The terminal interrupts the command itself; it must not hear a second one from us."""
    log = gpu.work / "heard"
    line = f"trap 'echo x >> {log}' INT; echo ready; sleep 1; sleep 1; exit 9"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(gpu.work)
        command = [sys.executable, "-m", "imagen", "semaphore", "run", "gpu", *shell(line)]
        os.execve(sys.executable, command, gpu.env)  # noqa: S606 - no shell is wanted
    try:
        seen = b""
        while b"ready" not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, b"\x03")
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 9
    assert log.read_text() == "x\n"
    assert held(gpu) == 0


def test_a_removed_semaphore_is_remarked_on_and_the_command_goes_on(gpu: Any) -> None:
    started = gpu.start(
        "semaphore", "run", "gpu", "--ttl", "1", *shell("echo in; sleep 2; echo done; exit 4")
    )
    assert started.read_line() == "in\n"
    gpu("semaphore", "remove", "gpu", code=0)
    started.process.wait(20)
    done = started.stop()
    assert (done.code, done.stdout) == (4, "done\n")
    assert "the place in semaphore 'gpu' was lost" in done.stderr


# --- show and list ---------------------------------------------------------------------------------------


def test_holders_and_those_who_wait_are_shown(gpu: Any) -> None:
    holding = gpu.start("semaphore", "run", "gpu", "--holder", "nightly", *shell("echo in; exec sleep 30"))
    assert holding.read_line() == "in\n"
    gpu.start("semaphore", "run", "gpu", *shell("true"))
    wait_for(lambda: "gpu  1 of 1 held, 1 waiting" in gpu("semaphore", "list", code=0).lines)
    (listed,) = gpu("semaphore", "list", "--json", code=0).json
    assert listed == {"name": "gpu", "limit": 1, "held": 1, "waiting": 1}

    shown = gpu("semaphore", "show", "gpu", "--json", code=0).json
    (holder,) = shown.pop("holders")
    assert shown == listed
    assert holder["holder"] == "nightly"
    lasts = datetime.fromisoformat(holder["expires_at"]) - datetime.fromisoformat(holder["since"])
    assert 59 < lasts.total_seconds() < 90

    lines = gpu("semaphore", "show", "gpu", code=0).lines
    assert lines[0] == "gpu  1 of 1 held, 1 waiting"
    assert lines[1].split()[:2] == ["holder", "since"]
    assert lines[2].startswith("nightly  20")
    holding.stop()


def test_showing_what_is_not_there_is_2(cli: Any) -> None:
    done = cli("semaphore", "show", "nope", "--json", code=2)
    assert done.json["error"] == "not_found"


def test_register_and_remove(cli: Any, tmp_path: Path) -> None:
    assert "No semaphore yet" in cli("semaphore", "list", code=0).stderr
    cli("semaphore", "register", "gpu", "2", code=0)
    cli("semaphore", "register", "gpu", "3", code=0)
    assert cli("semaphore", "list", code=0).lines == ["gpu  0 of 3 held, 0 waiting"]
    assert "limit: 0 is not allowed" in cli("semaphore", "register", "gpu", "0", code=2).stderr
    cli("semaphore", "remove", "gpu", code=0)
    cli("semaphore", "remove", "gpu", code=2)
    assert cli("semaphore", "list", "--json", code=0).json == []
