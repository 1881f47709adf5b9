"""Processes of `imagen` that begin where the imports end.

Each command is a process of its own, with its own folder, environment, pipes, signals and exit status; all that it does not
do is import imagen and what that needs, which takes a second of CPU: a process that has done so once waits here, and each
command is forked from it. It runs the module as `python -m imagen` does, and ends as the interpreter does, but that its modules
are not taken apart.

What is not told the interpreter before it starts is told too late here: a command with another language or other `PYTHON...`
variables than the first is for `subprocess`; so are those that test the start itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_SIZE = struct.Struct("!I")
_LOADED_LATE = ("alembic.command", "PIL.PngImagePlugin", "sqlalchemy.dialects.sqlite", "uvicorn.main")
_STREAMS = 3


# --- the side of the tests -----------------------------------------------------------------------------------


class Forked:
    """A command that runs; what `subprocess.Popen` offers, as far as tests ask for it."""

    def __init__(
        self, args: Sequence[str], pid: int, told: socket.socket, streams: list[IO[str] | None]
    ) -> None:
        self.args = args
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = streams
        self._told = told

    def poll(self) -> int | None:
        """Its exit status, or the signal that ended it as a negative number; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, given: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """Hand it its input, read what it says and wait for its end."""
        ends = None if timeout is None else time.monotonic() + timeout
        said: dict[str, str] = {}

        def write() -> None:
            with contextlib.suppress(BrokenPipeError), self.stdin:  # type: ignore[union-attr]
                self.stdin.write(given or "")  # type: ignore[union-attr]

        def read(name: str, stream: IO[str]) -> None:
            said[name] = stream.read()

        helpers = [
            threading.Thread(target=read, args=(name, stream), daemon=True)
            for name, stream in (("out", self.stdout), ("err", self.stderr))
            if stream is not None and not stream.closed
        ]
        if self.stdin is not None:
            helpers.append(threading.Thread(target=write, daemon=True))
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join(None if ends is None else max(0.0, ends - time.monotonic()))
            if helper.is_alive():
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        self.wait(None if ends is None else max(0.0, ends - time.monotonic()))
        return said.get("out", ""), said.get("err", "")

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            told = self._told.recv(_SIZE.size, socket.MSG_WAITALL)
            assert told, f"nobody knows how {self.args} ended"
            self.returncode = struct.unpack("!i", told)[0]
            self._told.close()
        return self.returncode


class Source:
    """What the commands are forked from. It starts when it is needed, and ends with the tests."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._turn = threading.Lock()

    def start(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: int = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
        new_session: bool = False,
    ) -> Forked:
        """Start `imagen` with these arguments; its standard output is a pipe."""
        ours: list[IO[str] | None] = []
        theirs: list[int] = []
        for number, wanted in enumerate((stdin, subprocess.PIPE, stderr)):
            if wanted == subprocess.PIPE:
                reading, writing = os.pipe()
                mine, other = (writing, reading) if number == 0 else (reading, writing)
                ours.append(os.fdopen(mine, "w" if number == 0 else "r", encoding="utf-8"))
            else:
                assert wanted == subprocess.DEVNULL
                other = os.open(os.devnull, os.O_RDWR)
                ours.append(None)
            theirs.append(other)
        told, teller = socket.socketpair()
        order = {"args": list(args), "env": dict(env), "cwd": str(cwd), "new_session": new_session}
        said = json.dumps(order).encode()
        try:
            with self._turn:
                control = self._ready(env)
                socket.send_fds(control, [_SIZE.pack(len(said))], [*theirs, teller.fileno()])
                control.sendall(said)
        finally:
            teller.close()
            for each in theirs:
                os.close(each)
        (pid,) = _SIZE.unpack(told.recv(_SIZE.size, socket.MSG_WAITALL))
        return Forked(("imagen", *args), pid, told, ours)

    def end(self) -> None:
        """Let it go; commands that run go on."""
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait(20)

    def _ready(self, env: Mapping[str, str]) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair()
            with theirs:
                clean = {
                    name: value
                    for name, value in env.items()
                    if not name.startswith(("IMAGEN_", "REPLICATE_"))
                }
                command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
                self._process = subprocess.Popen(
                    command, env=clean, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/"
                )
        return self._control


SOURCE = Source()
"""Of this process of the tests."""


# --- the side of the commands --------------------------------------------------------------------------------


def _load() -> None:
    """Import all that a command may import."""
    import imagen  # noqa: PLC0415 - the tests' side does without

    for found in pkgutil.walk_packages(imagen.__path__, "imagen."):
        if not found.name.endswith("__main__") and ".migrations" not in found.name:
            importlib.import_module(found.name)
    for name in _LOADED_LATE:
        importlib.import_module(name)


def _fork_on_demand(control: socket.socket) -> list[str]:
    """Fork a process for each order. It returns in these, with the arguments; where the orders come from, it exits."""
    waking, woken = socket.socketpair()
    for each in (waking, woken):
        each.setblocking(False)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and for what they started
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            _tell_ends(running)
        if control not in ready:
            continue
        order = _next_order(control)
        if order is None:
            raise SystemExit
        told, fds = order
        *streams, teller = fds
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for each in (control, waking, woken, *running.values()):
                each.close()
            os.close(teller)
            _become(told, streams)
            return list(told["args"])
        for each in streams:
            os.close(each)
        running[pid] = socket.socket(fileno=teller)
        with contextlib.suppress(BrokenPipeError):
            running[pid].sendall(_SIZE.pack(pid))


def _next_order(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    size, fds, _, _ = socket.recv_fds(control, _SIZE.size, _STREAMS + 1)
    if not size:
        return None
    (length,) = _SIZE.unpack(size)
    said = control.recv(length, socket.MSG_WAITALL)
    return json.loads(said), fds


def _tell_ends(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with running.pop(pid) as teller, contextlib.suppress(BrokenPipeError):
            teller.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))


def _become(told: dict[str, Any], streams: list[int]) -> None:
    """Have the folder, environment and streams that were asked for."""
    if told["new_session"]:
        os.setsid()
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    time.tzset()
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    # As the interpreter opens them: by whole lines where somebody reads along.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        stream = open(  # noqa: SIM115 - for as long as the process
            number, "r" if number == 0 else "w", encoding=before.encoding, errors=before.errors,
            buffering=1 if number == 2 else -1, closefd=False,
        )  # fmt: skip
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _end_soon(status: int) -> None:
    """What the interpreter does at its end, but for taking all modules apart, which costs more than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()  # tells of what was never awaited or closed
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # where nobody reads any more the command has let go of it
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _load()
    if threading.active_count() > 1:
        raise RuntimeError("something that is imported starts a thread, and a fork would have half of it")
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as _control:
        _arguments = _fork_on_demand(_control)
    sys.argv[:] = ["imagen", *_arguments]
    sys.path[0] = str(Path.cwd())
    _status = 0
    try:
        runpy.run_module("imagen", run_name="__main__", alter_sys=True)
    except SystemExit as _end:
        if not isinstance(_end.code, int | None):
            raise
        _status = _end.code or 0
    _end_soon(_status)
