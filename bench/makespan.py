"""How long a batch takes through a gateway, over what the limits make it take, in real time.

    make bench                       or    .venv/bin/python bench/makespan.py [tasks] [seconds of a run]

The emulator, in a process of its own, gives a bucket of 600 creates that fills by 600 a minute, and 60 places. With a
thousand tasks of 1.5 s the rate binds: the last create can go after 40 s. The goal is 1.02 and no 429, on a machine that
does nothing else meanwhile; `bench/limits.py` simulates other limits, `tests/integration/test_makespan.py` keeps watch.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import uvloop
from overhead import ask, start_emulator

from imagen.server.run import serving
from imagen.settings import load_settings

TASKS, PLACES, PER_MINUTE, RUN_SECONDS = 1000, 60, 600, 1.5
KEY = "the-admin-key-of-this-bench"


async def batch(emulator_url: str, tasks: int, folder: Path) -> float:
    """Seconds from asking to the answer."""
    environ = {
        "HOME": str(folder),
        "IMAGEN_DATA_DIR": str(folder / "data"),
        "IMAGEN_REPLICATE__API_BASE": emulator_url,
        "REPLICATE_API_TOKEN": "r8_ours",
        "CONCURRENT_DOCKER_ADMIN_API_KEY": KEY,
        "FLASK_PORT": "0",
    }
    wanted = {"model_name": "flux-schnell", "tasks": [{"prompt": f"fox {n}"} for n in range(tasks)]}
    async with (
        serving(load_settings(environ=environ, cwd=folder), environ=environ) as served,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
    ):
        began = time.perf_counter()
        url, headers = f"{served.url}/generate-batch", {"X-Admin-API-Key": KEY}
        async with session.post(url, json=wanted, headers=headers) as answer:
            told = await answer.json()
        took = time.perf_counter() - began
    assert told["successful_count"] == tasks, told
    return took


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else RUN_SECONDS
    emulator, url = start_emulator(run_seconds=seconds)
    try:
        ask(url, "/_emulator/mode", {"creates_per_minute": PER_MINUTE, "others_per_minute": 3000})
        with tempfile.TemporaryDirectory() as folder:
            took = uvloop.run(batch(url, tasks, Path(folder)))
        refused = len(ask(url, "/_emulator/journal?status=429")["entries"])
    finally:
        emulator.terminate()
        emulator.wait()
    by_rate = max(0.0, tasks - PER_MINUTE) / (PER_MINUTE / 60) + seconds
    bound = max(tasks * seconds / PLACES, by_rate)
    print(f"a batch of {tasks} tasks of {seconds:g} s each, {PLACES} at once, {PER_MINUTE} creates a minute")
    print(
        f"{took:.2f} s where {bound:.2f} s is the least: {took / bound:.3f} (goal: 1.02), {refused} 429s (goal: 0)"
    )


if __name__ == "__main__":
    main()
