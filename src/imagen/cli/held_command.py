"""A command that runs while a place in a semaphore is held, with our terminal, our input and output, and our signals."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from imagen.cli.output import remark
from imagen.service.semaphore_lease import HeldSemaphore

CANNOT_RUN, NOT_FOUND, SIGNALED = 126, 127, 128
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_held(place: HeldSemaphore, command: Sequence[str]) -> int:
    """Wait for the place, run the command while it is held, and give it back.

    Args:
        place: not taken yet.
        command: a program, found like a shell finds it, and its arguments.

    Returns:
        The command's exit status as a shell tells it: 128 and the signal's number when one ended it, 126 when it cannot
        be run, 127 when there is none of that name (nothing is waited for then).

    Raises:
        InvalidInput, NotFound, RateLimited, QueueFull: no place was had; the command did not run.
    """
    if not _is_there(command[0]):
        remark(f"imagen: {command[0]}: command not found")
        return NOT_FOUND
    await place.take()
    try:
        return await _run(place, _Child(command))
    finally:
        await place.give_back()


async def _run(place: HeldSemaphore, child: _Child) -> int:
    loop = asyncio.get_running_loop()
    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a script's background job
            loop.add_signal_handler(number, child.pass_on, number)
    running = asyncio.ensure_future(asyncio.to_thread(child.run))
    losing = asyncio.ensure_future(place.until_lost())
    try:
        await asyncio.wait({running, losing}, return_when=asyncio.FIRST_COMPLETED)
        if place.lost is not None and not running.done():
            remark(f"imagen: {place.lost} The command goes on.")
        return await running
    except OSError as error:
        remark(f"imagen: {child.name}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
    finally:
        losing.cancel()


class _Child:
    """The command as a process, once it runs."""

    def __init__(self, command: Sequence[str]) -> None:
        self.name = command[0]
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._signals: deque[int] = deque()

    def run(self) -> int:
        """Start it and wait for its end. Call it in a thread."""
        # Not the loop's own subprocesses: libuv would let them hear the signals that were to be ignored.
        with subprocess.Popen(self._command) as process:
            self._process = process
            self._deliver()
            status = process.wait()
        return SIGNALED - status if status < 0 else status

    def pass_on(self, number: int) -> None:
        """A signal for us is one for the command, now or as soon as it runs."""
        if self._process is not None and number == signal.SIGINT and _reaches_all():
            return
        self._signals.append(number)
        self._deliver()

    def _deliver(self) -> None:
        while self._process is not None and self._signals:
            # The other thread was quicker; it runs as somebody else.
            with suppress(IndexError, PermissionError):
                self._process.send_signal(self._signals.popleft())


def _is_there(name: str) -> bool:
    return shutil.which(name) is not None or Path(name).is_file()


def _reaches_all() -> bool:
    """Whether Ctrl-C was heard by the command too: a terminal interrupts all that runs in its foreground."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
