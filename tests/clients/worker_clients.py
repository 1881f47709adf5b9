"""The official clients, each in a process of its own that stays and takes one step after the other."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INSTALLED = ROOT / ".venv-clients"
STEP_SECONDS = 40.0
"""A client that takes longer hangs."""


class Raised(Exception):
    """What a client raised.

    Attributes:
        kind: the class; kinds: it and those that it comes from.
        text: what it says.
        facts: whatever else it knows: `code`, `body` and so on.
        status: the HTTP status, where the client tells it.
    """

    def __init__(self, *, kind: str, kinds: list[str], text: str, **facts: Any) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.kinds = kinds
        self.text = text
        self.facts = facts
        self.status: int | None = facts.get("status_code") or facts.get("status")


class Hung(Exception):
    """A client did not come back; its process was ended."""


@dataclass(frozen=True)
class Target:
    """Where a client turns to, and what it shows there."""

    url: str
    token: str


class Client:
    """One client: `client.step("run", target, ref="owner/name", input={…})`.

    Args:
        name: what tests call it.
        command: starts its side of the talk.
        installed: what has to be there for that.
    """

    def __init__(self, name: str, command: tuple[str, ...], installed: Path) -> None:
        self.name = name
        self._command = command
        self._installed = installed
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[str] = queue.Queue()

    def step(self, step: str, to: Target, **given: Any) -> Any:
        """Let it do something.

        Raises:
            Raised: the client raised something.
            Hung: it did not come back.
        """
        process = self._running()
        assert process.stdin is not None
        asked = {"step": step, "to": {"url": to.url, "token": to.token}, "given": given}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        answer = self._answer()
        if (error := answer.get("error")) is not None:
            raise Raised(**error)
        return answer["done"]

    def end(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            assert self._installed.exists(), f"{self._installed} is not there: run `make clients`"
            self._said = queue.Queue()
            self._process = subprocess.Popen(
                self._command,
                cwd=HERE, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            threading.Thread(target=_listen, args=(self._process, self._said), daemon=True).start()
            self._answer()
        return self._process

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._said.get(timeout=STEP_SECONDS)
        except queue.Empty:
            self.end()
            raise Hung(f"{self.name} did not come back within {STEP_SECONDS:.0f} s") from None
        if not line:
            self.end()
            raise Hung(f"{self.name} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _listen(process: subprocess.Popen[str], said: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        said.put(line)
    said.put("")


def _environment() -> dict[str, str]:
    """Nothing of whoever runs the tests: no token, no proxy, no settings of a client."""
    return {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", "PYTHONWARNINGS": "ignore"}


def _python(name: str, steps: str) -> Client:
    interpreter = INSTALLED / name / "bin/python"
    return Client(name, (str(interpreter), "python/steps.py", steps), INSTALLED / name / ".installed")


def _node(name: str, steps: str) -> Client:
    interpreter = INSTALLED / "node/bin/node"
    return Client(name, (str(interpreter), "node/steps.mjs", steps), INSTALLED / "node/.modules")


def all_clients() -> dict[str, Client]:
    """Those that there are; none is started before its first step."""
    return {
        "replicate-1": _python("replicate-1", "with_replicate_1"),
        "replicate-2": _python("replicate-2", "with_replicate_2"),
        "replicate-js": _node("replicate-js", "./with_replicate.mjs"),
        "ai-sdk": _node("ai-sdk", "./with_ai_sdk.mjs"),
        "openai": _python("openai", "with_openai"),
    }
