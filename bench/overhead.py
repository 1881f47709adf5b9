"""What imagen adds to a prediction: CPU, upstream calls and connections, beside a bare client in the same run.

    make bench                       or    .venv/bin/python bench/overhead.py [predictions] [at once]

The emulator runs in a process of its own and holds each create open for 0.1 s. The floor is the HTTP library alone:
the same creates, nothing written down, nothing checked. CPU is this process's user and system time, so that what
else the machine does hardly matters; each side runs three rounds in turn and the median counts.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from imagen.assembly import build
from imagen.domain.request import GenerationRequest
from imagen.settings import load_settings

PREDICTIONS, AT_ONCE, ROUNDS = 400, 60, 3


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def at_once(count: int, width: int, one: Any) -> None:
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work() for _ in range(width)))


async def floor(url: str, count: int, width: int) -> float:
    headers = {"authorization": "Bearer r8_floor", "prefer": "wait=60", "content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> None:
            body = json.dumps({"input": {"prompt": "a fox", "seed": number + 1}})
            path = f"{url}/v1/models/black-forest-labs/flux-schnell/predictions"
            async with session.post(path, data=body, headers=headers) as response:
                assert (await response.json())["status"] == "succeeded"

        await one(-1)
        before = cpu_seconds()
        await at_once(count, width, one)
        return (cpu_seconds() - before) / count * 1000


async def ours(url: str, count: int, width: int, folder: Path) -> float:
    environ = {
        "HOME": str(folder),
        "IMAGEN_DATA_DIR": str(folder / "data"),
        "IMAGEN_REPLICATE__API_BASE": url,
        "REPLICATE_API_TOKEN": "r8_ours",
    }
    async with build(load_settings(environ=environ, cwd=folder), environ=environ) as app:

        async def one(number: int) -> None:
            request = GenerationRequest(prompt="a fox", options={"seed": number + 1})
            (outcome,) = await app.gateway.generate(request)
            assert outcome.error is None, outcome.error

        await one(-1)
        before = cpu_seconds()
        await at_once(count, width, one)
        return (cpu_seconds() - before) / count * 1000


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


def start_emulator(run_seconds: float = 0.1) -> tuple[subprocess.Popen[str], str]:
    """An emulator without limits in a process of its own, and its address; end it."""
    lasting = ("--run-seconds", str(run_seconds))
    command = [sys.executable, "-m", "imagen", "emulator", "--port", "0", *lasting, "--json"]
    emulator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert emulator.stdout is not None
    url = json.loads(emulator.stdout.readline())["url"]
    ask(url, "/_emulator/mode", {"creates_per_minute": 0, "others_per_minute": 0})
    return emulator, url


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PREDICTIONS
    width = int(sys.argv[2]) if len(sys.argv) > 2 else AT_ONCE
    emulator, url = start_emulator()
    try:
        bare, full = [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                bare.append(uvloop.run(floor(url, count, width)))
                ask(url, "/_emulator/reset", {})
                ask(url, "/_emulator/mode", {"creates_per_minute": 0, "others_per_minute": 0})
                started = time.perf_counter()
                full.append(uvloop.run(ours(url, count, width, Path(folder))))
                took = time.perf_counter() - started
                journal = ask(url, "/_emulator/journal")
        entries = journal if isinstance(journal, list) else journal["entries"]
        calls = len(entries) / (count + 1)
        floor_ms, ours_ms = statistics.median(bare), statistics.median(full)
        print(f"{count} predictions, {width} at once, each held 0.1 s; median of {ROUNDS} rounds")
        print(
            f"CPU a prediction: bare HTTP library {floor_ms:.2f} ms, imagen {ours_ms:.2f} ms ({ours_ms / floor_ms:.1f} times)"
        )
        print(f"upstream calls a prediction: {calls:.3f}; last round {took:.1f} s")
    finally:
        emulator.terminate()
        emulator.wait()


if __name__ == "__main__":
    main()
