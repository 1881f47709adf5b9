"""Durable work as `curl` asks for it, over a gateway that is killed in the middle."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from http_calls import Answered, call, curl

from imagen.emulator import EmulatorThread

KEY = "an-admin-key-for-tests"
ADMIN = {"X-Admin-API-Key": KEY}

JSON_BATCH = r"""curl -X POST {url}/batches \
  -H "X-Admin-API-Key: an-admin-key-for-tests" \
  -H "Content-Type: application/json" \
  -H "Idempotency-Key: spring-2026" \
  -d '{{
    "name": "spring",
    "model_name": "flux-schnell",
    "tasks": [{tasks}]
  }}'"""
CSV_BATCH = r"""curl -X POST '{url}/batches?model_name=flux-schnell&name=table' \
  -H "X-Admin-API-Key: an-admin-key-for-tests" \
  -H "Content-Type: text/csv" \
  -d 'prompt,output_filename
a red car,car.png
a blue house,
'"""
ONE = r"""curl -X POST {url}/predictions \
  -H "X-Admin-API-Key: an-admin-key-for-tests" \
  -H "Content-Type: application/json" \
  -d '{{"model_name": "flux-schnell", "prompt": "a red fox"}}'"""


class Gateway:
    """A server process that is started, killed and started again on the same data and port."""

    def __init__(self, cli: Any) -> None:
        self._cli = cli
        self.process: Any = None
        self.url = ""

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        self.process = self._cli.start("serve", "--port", port, "--json")
        self.url = json.loads(self.process.read_line())["url"]

    def get(self, address: str) -> Answered:
        return call("GET", address, headers=ADMIN)

    def ended(self, address: str) -> Any:
        """What is told at an address, once it has ended."""
        ends = time.monotonic() + 40
        while True:
            told = self.get(address).json()
            if told["status"] not in {"running", "paused", "queued", "starting", "processing"}:
                return told
            assert time.monotonic() < ends, told
            time.sleep(0.1)


@pytest.fixture
def gateway(cli: Any, replicate_emulator: EmulatorThread) -> Gateway:
    cli.use(replicate_emulator.url)
    cli.env["CONCURRENT_DOCKER_ADMIN_API_KEY"] = KEY
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "1"
    started = Gateway(cli)
    started.start()
    return started


@pytest.mark.replicate_emulator(run_seconds=0.5)
def test_a_batch_outlives_kill_9_and_its_repeat_is_answered_as_at_first(
    cli: Any, gateway: Gateway, replicate_emulator: EmulatorThread
) -> None:
    cli.env["REPLICATE_CONCURRENT_LIMIT"] = "3"
    tasks = ", ".join(f'{{"prompt": "fox {number}"}}' for number in range(20))
    command = JSON_BATCH.format(url=gateway.url, tasks=tasks)
    first = curl(command)
    assert first.status == 202, first.body
    batch = first.json()
    while replicate_emulator.purchases < 4:
        time.sleep(0.02)
    gateway.process.stop(signal.SIGKILL)
    gateway.start()
    again = curl(command)
    assert (again.status, again.body) == (202, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    over = gateway.ended(batch["urls"]["get"])
    assert (over["status"], over["counts"]["succeeded"], over["images"]) == ("succeeded", 20, 20)
    lines = gateway.get(batch["urls"]["results"]).body.splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["prompt"] for one in told] == [f"fox {number}" for number in range(20)]
    for one in told:
        (file,) = one["files"]
        assert call("GET", file["stored_url"]).status == 200
    assert replicate_emulator.purchases == 20
    assert cli("usage", "--raw", "--json").json["total"]["predictions"] == 20


def test_a_table_and_a_single_prediction(gateway: Gateway, replicate_emulator: EmulatorThread) -> None:
    table = curl(CSV_BATCH.format(url=gateway.url))
    assert table.status == 202, table.body
    assert (table.json()["name"], table.json()["counts"]["total"]) == ("table", 2)
    assert gateway.ended(table.json()["urls"]["get"])["status"] == "succeeded"
    items = gateway.get(table.json()["urls"]["items"]).json()["items"]
    assert [one["prompt"] for one in items] == ["a red car", "a blue house"]
    assert items[0]["files"][0]["filename"] == "car.png"
    told = gateway.get(table.json()["urls"]["events"])
    assert [line for line in told.body.splitlines() if line.startswith(b"event: ")][-1] == b"event: end"
    one = curl(ONE.format(url=gateway.url))
    assert (one.status, one.headers["location"]) == (202, one.json()["urls"]["get"])
    assert gateway.ended(one.json()["urls"]["get"])["files"]
    assert replicate_emulator.purchases == 3


def test_nothing_of_a_file_with_a_mistake_is_taken_on(
    gateway: Gateway, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    wrong = CSV_BATCH.format(url=gateway.url).replace("a blue house,", ",house.png")
    answer = curl(wrong)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_input")
    assert answer.json()["problems"][0]["field"].startswith("line 3")
    assert gateway.get(f"{gateway.url}/batches").json() == {"batches": [], "next_cursor": None}
    assert replicate_emulator.purchases == 0
    assert not list(tmp_path.rglob("kept/*"))
