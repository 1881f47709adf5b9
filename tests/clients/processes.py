"""The processes that clients are let loose on: an emulator, and a gateway in front of an emulator of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from http_calls import Answered, call

ADMIN_KEY = "an-admin-key-for-client-tests"
TOKEN = "r8_client_tests"
OTHER_TOKEN = "r8_somebody_else"


@dataclass(frozen=True)
class Emulated:
    """A running `imagen emulator`."""

    url: str
    delivery_url: str

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Ask what only the emulator has: its state, its clock, its faults."""
        answer = call(method, f"{self.url}/_emulator/{path}", body=body)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json()

    def state(self) -> dict[str, Any]:
        """Counts: `purchases`, `running`, `max_running` and so on."""
        found: dict[str, Any] = self.control("GET", "state")
        return found

    def journal(self, **wanted: str) -> list[dict[str, Any]]:
        """What it was asked, of one `operation` or `prediction_id`."""
        query = "&".join(f"{name}={value}" for name, value in wanted.items())
        found: list[dict[str, Any]] = self.control("GET", f"journal?{query}")["entries"]
        return found


@dataclass(frozen=True)
class Service:
    """What a client is pointed at.

    Attributes:
        name: `direct` or `gateway`.
        url: where it listens, without `/v1`.
        token: what lets in there.
        emulated: makes the pictures in the end.
    """

    name: str
    url: str
    token: str
    emulated: Emulated

    @property
    def is_gateway(self) -> bool:
        """Whether it is ours."""
        return self.name == "gateway"

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Answered:
        """One request without a client."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return call(method, self.url + path, body=body, headers=headers)


@contextlib.contextmanager
def running_emulator(folder: Path) -> Iterator[Emulated]:
    """`imagen emulator` until the block ends."""
    with _running(folder, "emulator", "--port", "0", "--run-seconds", "0.2", "--json") as told:
        yield Emulated(told["url"], told["delivery_url"])


@contextlib.contextmanager
def running_gateway(
    folder: Path, emulated: Emulated, *, env: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """`imagen serve` in front of it until the block ends."""
    settings = {
        "IMAGEN_REPLICATE__API_BASE": emulated.url,
        "REPLICATE_API_TOKEN": TOKEN,
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
        "IMAGEN_DELIVERIES__PRIVATE": "true",
        **(env or {}),
    }
    with _running(folder, "serve", "--port", "0", "--json", env=settings) as told:
        yield Service("gateway", told["url"], ADMIN_KEY, emulated)


@contextlib.contextmanager
def _running(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """A command of ours that tells in one line of JSON that it listens."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = (folder / f"{args[0]}.err").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "imagen", *args],
        cwd=folder, env=_alone(folder) | dict(env or {}), stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert '"url"' in line, _text(errors)
        yield json.loads(line)
        assert process.poll() is None, _text(errors)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.communicate()
            errors.close()


def _text(errors: TextIO) -> str:
    errors.seek(0)
    return errors.read()


def _alone(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "IMAGEN_DATA_DIR": str(folder / "data"),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
    }
