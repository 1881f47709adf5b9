"""A gateway that is killed again and again while it works off batches; what is left of them afterwards, counted.

`make soak` does this a thousand times.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import SOURCE, Forked

from imagen.emulator import EmulatorThread

ADMIN_KEY, TOKEN = "an-admin-key-for-tests", "r8_killing"
LOST_ANSWER_GRACE_SECONDS = 1.5
_STARTED_WITHIN_SECONDS = 30.0


@dataclass
class Tally:
    """What came of all batches of a run."""

    kills: int = 0
    items: int = 0
    succeeded: int = 0
    lost: int = 0
    ended_twice: int = 0
    bought: int = 0
    bought_twice: int = 0
    entries: int = 0
    pictures: int = 0
    places_held: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.items} items: {self.succeeded} succeeded, {self.lost} lost, {self.ended_twice} ended "
            f"twice; {self.bought} bought, {self.bought_twice} of them twice; {self.entries} ledger entries, "
            f"{self.pictures} pictures kept, {self.places_held} places still held"
        )


class Gateway:
    """`imagen serve`, on one data folder, as a process that can be killed and started again."""

    def __init__(self, folder: Path, emulator_url: str, **environ: str) -> None:
        self.data = folder / "data"
        self._folder = folder
        self._env = os.environ | {
            "HOME": str(folder),
            "IMAGEN_DATA_DIR": str(self.data),
            "IMAGEN_REPLICATE__API_BASE": emulator_url,
            "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": str(LOST_ANSWER_GRACE_SECONDS),
            "REPLICATE_API_TOKEN": TOKEN,
            "REPLICATE_REQUESTS_PER_MINUTE": "6000",
            "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
            **environ,
        }
        self._process: Forked | None = None
        self.url = ""

    def start(self) -> None:
        self._process = SOURCE.start(
            ["serve", "--port", "0", "--json"],
            env=self._env,
            cwd=self._folder,
            stderr=subprocess.DEVNULL,
            new_session=True,
        )
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["url"]

    def kill(self) -> None:
        """End it as a power cut would, whatever it is doing; also while it is starting."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Admin-API-Key": ADMIN_KEY, "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def accept(self, name: str, items: int) -> str:
        """A batch of so many items; its id."""
        return self.accept_prompts([f"{name} {number}" for number in range(items)], name=name)

    def accept_prompts(self, prompts: list[str], *, name: str = "") -> str:
        """A batch with these prompts; its id."""
        body = {
            "name": name,
            "model_name": "flux-schnell",
            "megapixels": "0.25",
            "tasks": [{"prompt": prompt} for prompt in prompts],
        }
        return str(self.ask("POST", "/batches", body)["id"])

    def has_ended(self, batch_id: str) -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return self.ask("GET", f"/batches/{batch_id}")["status"] not in {"running", "paused"}
        return False

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """The lines of the results."""
        request = urllib.request.Request(
            f"{self.url}/batches/{batch_id}/results.jsonl", headers={"X-Admin-API-Key": ADMIN_KEY}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.data / "imagen.db", timeout=10)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()


def work_off(gateway: Gateway, batch_id: str, *, kills: int, chance: random.Random, within: float) -> int:
    """Kill it at random moments while the batch runs, and start it again, until the batch has ended; how many kills."""
    done, ends = 0, time.monotonic() + within
    while done < kills and not gateway.has_ended(batch_id):
        time.sleep(chance.uniform(0.0, 1.2))
        gateway.kill()
        done += 1
        gateway.start()
    while not gateway.has_ended(batch_id):
        assert time.monotonic() < ends, gateway.ask("GET", f"/batches/{batch_id}")
        time.sleep(0.1)
    return done


def count(gateway: Gateway, emulator: EmulatorThread, tally: Tally, batch_id: str, items: int) -> None:
    """Add what became of a batch."""
    rows = gateway.rows("SELECT status, sequence, files FROM items WHERE batch_id = ?", batch_id)
    ends = gateway.rows("SELECT sequence, name FROM batches WHERE id = ?", batch_id)
    good = sum(status == "succeeded" for status, *_ in rows)
    prompts = bought(emulator.url, f"{ends[0][1]} ")
    tally.items += items
    tally.succeeded += good
    tally.lost += items - good
    tally.ended_twice += ends[0][0] - len({sequence for _, sequence, _ in rows})
    tally.pictures += sum(len(json.loads(files)) for *_, files in rows)
    tally.bought += len(prompts)
    tally.bought_twice += len(prompts) - len(set(prompts))
    tally.entries = gateway.rows("SELECT count(*) FROM imagen_usage")[0][0]
    tally.places_held = gateway.rows("SELECT count(*) FROM leases")[0][0]


def bought(url: str, beginning: str) -> list[str]:
    """The prompts that the service was paid for; each item has one of its own."""
    found: list[str] = []
    following: str | None = f"{url}/v1/predictions"
    while following is not None:
        request = urllib.request.Request(following, headers={"authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            page = json.loads(answer.read())
        found += [one["input"].get("prompt", "") for one in page["results"]]
        following = page["next"]
    return [prompt for prompt in found if prompt.startswith(beginning)]
