"""What durable work adds to an item: CPU beyond the calls themselves, beside a bare client in the same run.

    make bench                       or    .venv/bin/python bench/durable.py [items]

A batch is checked, accepted and worked off to its end by this process: nothing of it can be lost from the moment of
acceptance. The emulator runs in a process of its own and holds each create open for 0.1 s. Beside it the HTTP library
alone makes the same creates. Pictures stay at the service, so that only the work is measured; a last round keeps them.
CPU is this process's user and system time; each side runs three rounds in turn and the median counts.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from overhead import ask, cpu_seconds, floor, start_emulator

from imagen.assembly import GATEWAY, build
from imagen.domain.batch import BatchStatus
from imagen.domain.caller import Caller
from imagen.domain.limits import Lane
from imagen.domain.model_ref import ModelRef
from imagen.domain.request import GenerationRequest
from imagen.service.accept import Entry, NewBatch
from imagen.service.deliver import Destination
from imagen.settings import load_settings

ITEMS, AT_ONCE, ROUNDS = 1000, 60, 3


async def durable(url: str, count: int, folder: Path, *, keep: bool) -> tuple[float, float]:
    """CPU milliseconds an item for checking and accepting, and for working it off."""
    environ = {
        "HOME": str(folder),
        "IMAGEN_DATA_DIR": str(folder / "data"),
        "IMAGEN_REPLICATE__API_BASE": url,
        "REPLICATE_API_TOKEN": "r8_ours",
        "REPLICATE_CONCURRENT_LIMIT": str(AT_ONCE),
        "REPLICATE_REQUESTS_PER_MINUTE": "1000000",
    }
    me = Caller(name="bench")
    async with build(load_settings(environ=environ, cwd=folder), environ=environ) as app:
        backend = app.backends.get(GATEWAY)
        place = Destination(shelf=True) if keep else None

        async def entry(number: int) -> Entry:
            request = GenerationRequest(
                prompt="a fox",
                model=ModelRef.parse("black-forest-labs/flux-schnell"),
                options={"seed": number + 1},
                plain=True,
                resume=False,
            )
            order = await app.gateway.prepare(
                request, backend=backend, caller=me, lane=Lane.BATCH, destination=place
            )
            return Entry(order, {"output_filename": f"{number}.png"})

        await entry(0)
        before = cpu_seconds()
        new = NewBatch(backend=backend, caller=me, scope="bench")
        batch = await app.acceptance.accept(new, [await entry(number) for number in range(count)])
        accepted = (cpu_seconds() - before) / count * 1000
        before = cpu_seconds()
        working = asyncio.create_task(
            app.queue.run(app.worker.work, emptied=app.worker.emptied, takes=lambda _: True)
        )
        view = await app.batches.ended(batch.id)
        worked = (cpu_seconds() - before) / count * 1000
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert view.status is BatchStatus.SUCCEEDED, view
        return accepted, worked


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ITEMS
    emulator, url = start_emulator()
    try:
        bare, accepting, working = [], [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                bare.append(uvloop.run(floor(url, count, AT_ONCE)))
                reset(url)
                started = time.perf_counter()
                accepted, worked = uvloop.run(durable(url, count, Path(folder), keep=False))
                took = time.perf_counter() - started
                accepting.append(accepted)
                working.append(worked)
                reset(url)
        with tempfile.TemporaryDirectory() as folder:
            kept = sum(uvloop.run(durable(url, count // 4, Path(folder), keep=True)))
    finally:
        emulator.terminate()
        emulator.wait()
    floor_ms, accept_ms, work_ms = map(statistics.median, (bare, accepting, working))
    print(
        f"a batch of {count} items, {AT_ONCE} at once, each held 0.1 s; median of {ROUNDS} rounds; last round {took:.1f} s"
    )
    print(
        f"CPU an item: bare HTTP library {floor_ms:.2f} ms; accepted {accept_ms:.2f} ms, worked off {work_ms:.2f} ms"
    )
    print(f"beyond the calls themselves: {accept_ms + work_ms - floor_ms:.2f} ms an item (goal: 2)")
    print(f"with its picture fetched, checked, marked and kept: {kept:.2f} ms an item")


def reset(url: str) -> None:
    ask(url, "/_emulator/reset", {})
    ask(url, "/_emulator/mode", {"creates_per_minute": 0, "others_per_minute": 0})


if __name__ == "__main__":
    main()
