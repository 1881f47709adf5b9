"""What it takes to watch many predictions at once: calls, delay until an end is seen, memory, CPU.

    make bench                       or    .venv/bin/python bench/watcher.py [in flight] [rounds]

The emulator runs in a process of its own. Each prediction runs for about 40 s (log-normal, one in twenty longer than 77 s),
none is held open, and as soon as one has ended the next is bought, until each of those in flight was replaced `rounds`
times. The allowance is Replicate's 3,000 calls a minute besides creates; creates are not limited. The delay is from
the end at the service until the end is known here. Memory is that of this process, database and all.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from imagen.assembly import App, build
from imagen.domain.events import Called, Event
from imagen.domain.request import GenerationRequest
from imagen.service.finish import Outcome
from imagen.settings import load_settings

IN_FLIGHT, ROUNDS = 1000, 2.0
RUN_SECONDS, SPREAD = 40.0, 0.4
SAMPLE_SECONDS = 0.25
EMULATOR = "--emulator"


async def serve() -> None:
    """The emulator, until its input is closed."""
    # Only this process has it: the other one is weighed.
    from imagen.emulator import Emulator  # noqa: PLC0415
    from imagen.emulator.course import Course  # noqa: PLC0415
    from imagen.emulator.limits import Mode  # noqa: PLC0415

    luck = random.Random(7)  # noqa: S311 - the same for everybody, no secret
    emulator = Emulator(mode=Mode(creates_per_minute=0))

    def course_of(_: Any) -> Course:
        return Course(queue_seconds=0.0, run_seconds=RUN_SECONDS * luck.lognormvariate(0, SPREAD))

    emulator.world.course_of = course_of  # type: ignore[method-assign]
    async with emulator:
        print(emulator.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Calls:
    """An observer that counts calls, by second."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        self.by_second: Counter[int] = Counter()
        self.refused = 0

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, Called):
            self.by_kind[event.operation] += 1
            self.refused += event.status == 429
            if event.operation != "create":
                self.by_second[int(time.monotonic())] += 1


class Flight:
    """One run of the bench."""

    def __init__(self, app: App, calls: Calls, in_flight: int, total: int) -> None:
        self.app, self.calls, self.in_flight, self.total = app, calls, in_flight, total
        self.delays: list[float] = []
        self.wrong: Counter[str] = Counter()
        self.most_watched, self.most_mb = 0, 0.0
        self.began_with_mb = resident_mb()

    async def run(self) -> None:
        """Keep so many in flight until all were made."""
        numbers = iter(range(self.total))
        sampling = asyncio.ensure_future(self.sample())
        await asyncio.gather(*(self.work(place, numbers) for place in range(self.in_flight)))
        sampling.cancel()

    async def work(self, place: int, numbers: Any) -> None:
        """One place: a prediction after the other. The places are filled one after the other, within one run."""
        await asyncio.sleep(place / self.in_flight * RUN_SECONDS)
        for number in numbers:
            request = GenerationRequest(prompt="a fox", options={"seed": number + 1}, deadline_seconds=600)
            self.note(*await self.app.gateway.generate(request))

    def note(self, outcome: Outcome) -> None:
        """Take down how one went. Nothing of it is kept: what is weighed is what is in flight."""
        seen = outcome.prediction
        if outcome.error is not None or seen.ended_at is None or seen.started_at is None:
            self.wrong[type(outcome.error).__name__] += 1
            return
        ran = seen.ended_at - seen.started_at
        self.delays.append(ran.total_seconds() - (seen.predict_seconds or 0.0))

    async def sample(self) -> None:
        """Look at ourselves now and then."""
        while True:
            self.most_watched = max(self.most_watched, self.app.watcher.watching)
            self.most_mb = max(self.most_mb, resident_mb())
            await asyncio.sleep(SAMPLE_SECONDS)


async def watch(url: str, in_flight: int, total: int, folder: Path) -> None:
    environ = {
        "HOME": str(folder),
        "IMAGEN_DATA_DIR": str(folder / "data"),
        "IMAGEN_REPLICATE__API_BASE": url,
        "IMAGEN_REPLICATE__HELD_OPEN": "0",
        "IMAGEN_LIMITS__CONCURRENT": str(in_flight),
        "IMAGEN_LIMITS__CREATES_PER_MINUTE": "1000000",
        "IMAGEN_LIMITS__WAITING": "1000000",
        "IMAGEN_LIMITS__WAITING_PER_CALLER": "1000000",
        "REPLICATE_API_TOKEN": "r8_watcher",
    }
    calls = Calls()
    async with build(load_settings(environ=environ, cwd=folder), environ=environ, observer=calls) as app:
        flight = Flight(app, calls, in_flight, total)
        before, started = cpu_seconds(), time.perf_counter()
        await flight.run()
        took, cpu = time.perf_counter() - started, cpu_seconds() - before
    report(flight, calls, took, cpu)


def report(flight: Flight, calls: Calls, took: float, cpu: float) -> None:
    made = len(flight.delays)
    other = sum(calls.by_second.values())
    per_second = sorted(calls.by_second.values())
    delays = sorted(flight.delays)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(calls.by_kind.items()))
    print(
        f"{made:,} predictions of about {RUN_SECONDS:g} s, at most {flight.most_watched:,} in flight, in {took:.0f} s"
    )
    print(
        f"calls besides creates: {other / took:.1f} a second, at most {per_second[-1]}; {other / made:.2f} a prediction"
    )
    print(f"all calls: {kinds}; refused with 429: {calls.refused}")
    print(
        f"an end is seen after {statistics.median(delays):.2f} s (median), {delays[int(made * 0.9)]:.2f} s (nine of ten),"
        f" {delays[int(made * 0.99)]:.2f} s (99 of 100), {delays[-1]:.2f} s (all)"
    )
    print(
        f"resident memory: {flight.most_mb:.0f} MB at most, {flight.began_with_mb:.0f} MB before;"
        f" {(flight.most_mb - flight.began_with_mb) * 1000 / flight.most_watched:.1f} kB each in flight"
    )
    print(f"CPU: {cpu / made * 1000:.2f} ms a prediction, {cpu / took:.0%} of a core")
    if flight.wrong:
        print(f"went wrong: {dict(flight.wrong)}")


def main() -> None:
    if EMULATOR in sys.argv:
        uvloop.run(serve())
        return
    in_flight = int(sys.argv[1]) if len(sys.argv) > 1 else IN_FLIGHT
    total = int(in_flight * (float(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS))
    command = [sys.executable, __file__, EMULATOR]
    emulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert emulator.stdout is not None
        url = emulator.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            uvloop.run(watch(url, in_flight, total, Path(folder)))
    finally:
        emulator.terminate()
        emulator.wait()


if __name__ == "__main__":
    main()
