"""The command as users start it, from an interpreter that has imported nothing.

The other stories fork their commands from a process that has imported all of imagen (`forked.py`), which would hide an import
that is missing or goes in a circle. Here, and on the pages that are run (`tests/docs`), nothing is imported before.
"""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from imagen.emulator import EmulatorThread

COMMANDS: dict[str, tuple[str, ...]] = {
    "audit": ("audit",),
    "auth": ("auth", "status"),
    "backends": ("backends",),
    "config": ("config", "show"),
    "deliveries": ("deliveries", "list"),
    "doctor": ("doctor", "--offline"),
    "generate through a gateway": ("generate", "a fox", "--server", "http://127.0.0.1:1"),
    "predictions": ("predictions", "adopt", "pred_unheardof"),
    "wrong": ("generate", "a fox", "--steps", "many"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_says_the_same_whether_it_is_forked_or_starts_cold(name: str, cli: Any) -> None:
    forked, cold = (cli(*COMMANDS[name], cold=cold) for cold in (False, True))
    assert forked.code == cold.code
    assert forked.stderr == cold.stderr
    free = r"[\d.]+ GiB free"  # others use the disk too
    assert re.sub(free, "", forked.stdout) == re.sub(free, "", cold.stdout)


def test_a_picture_is_bought_cold(cli: Any, replicate_emulator: EmulatorThread) -> None:
    cli.use(replicate_emulator.url)
    cli("generate", "a fox", "-o", "fox.png", code=0, cold=True)
    assert (cli.work / "fox.png").is_file()
    assert replicate_emulator.purchases == 1


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)])
def test_signals_reach_it(number: signal.Signals, code: int, cold: bool, cli: Any) -> None:
    started = cli.start("emulator", "--port", "0", "--json", cold=cold)
    assert "url" in started.read_line()
    assert started.stop(number).code == code
