"""`imagen serve` as a process: told to stop, killed, started again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from http_calls import Answered, call

from imagen.emulator import EmulatorThread

ADMIN = {"X-Admin-API-Key": "an-admin-key-for-tests"}


class Gateway:
    """A server process that a test starts, stops and starts again on the same data."""

    def __init__(self, cli: Any) -> None:
        self._cli = cli
        self.url = ""
        self.process: Any = None

    def start(self, *options: str) -> None:
        self.process = self._cli.start("serve", "--port", "0", "--json", *options)
        self.url = json.loads(self.process.read_line())["url"]

    def ask(self, method: str, path: str, body: Any = None) -> Answered:
        return call(method, self.url + path, body=body, headers=ADMIN)

    def generate(self, prompt: str, **fields: Any) -> Answered:
        return self.ask("POST", "/generate", {"model_name": "flux-schnell", "prompt": prompt} | fields)

    def held(self) -> int:
        return int(self.ask("GET", "/health").json()["concurrency_status"]["running"])


@pytest.fixture
def gateway(cli: Any, replicate_emulator: EmulatorThread) -> Gateway:
    cli.use(replicate_emulator.url)
    cli.env["CONCURRENT_DOCKER_ADMIN_API_KEY"] = ADMIN["X-Admin-API-Key"]
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "1"
    return Gateway(cli)


def until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait for it."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come true in time"
        time.sleep(0.1)


def in_background(work: Callable[[], Answered]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def statuses(cli: Any) -> list[str]:
    return [one["status"] for one in cli("predictions", "list", "--json").json]


@pytest.mark.replicate_emulator(run_seconds=2.0)
def test_sigterm_lets_what_is_under_way_finish(gateway: Gateway, replicate_emulator: EmulatorThread) -> None:
    gateway.start("--drain", "20")
    thread, found = in_background(lambda: gateway.generate("a fox"))
    until(lambda: replicate_emulator.purchases == 1)
    done = gateway.process.stop(signal.SIGTERM)
    thread.join()
    assert done.code == 0, done
    assert found[0].status == 200
    assert found[0].json()["generated_files"]


@pytest.mark.replicate_emulator(run_seconds=6.0)
def test_what_does_not_finish_in_time_is_handed_over_and_bought_once(
    cli: Any, gateway: Gateway, replicate_emulator: EmulatorThread
) -> None:
    gateway.start("--drain", "0.5")
    thread, found = in_background(lambda: gateway.generate("a slow fox", store=True))
    until(lambda: replicate_emulator.purchases == 1)
    began = time.monotonic()
    done = gateway.process.stop(signal.SIGTERM)
    assert done.code == 0, done
    assert time.monotonic() - began < 5
    thread.join()
    assert found[0].status == 504
    assert found[0].json()["code"] == "wait_timeout"
    assert found[0].json()["prediction_id"].startswith("pred_")
    gateway.start()
    until(lambda: statuses(cli) == ["succeeded"])
    until(lambda: gateway.held() == 0)
    assert replicate_emulator.purchases == 1
    kept = cli("predictions", "list", "--json").json[0]
    assert cli("predictions", "show", kept["id"], "--json").json["files"]


@pytest.mark.replicate_emulator(run_seconds=1.0)
def test_killed_in_the_middle_of_a_batch_nothing_is_lost_or_bought_twice_and_no_place_stays_held(
    cli: Any, gateway: Gateway, replicate_emulator: EmulatorThread
) -> None:
    cli.env["REPLICATE_CONCURRENT_LIMIT"] = "10"
    gateway.start()
    gateway.ask("POST", "/global-semaphores", {"semaphore_id": "s", "limit": 8})
    tasks = [{"prompt": f"fox {number}"} for number in range(40)]
    batch = {"model_name": "flux-schnell", "tasks": tasks, "external_semaphore_id": "s"}
    thread, _ = in_background(lambda: gateway.ask("POST", "/generate-batch", batch))
    until(lambda: replicate_emulator.purchases >= 12)
    gateway.process.stop(signal.SIGKILL)
    thread.join()
    bought = replicate_emulator.purchases
    gateway.start()
    until(lambda: gateway.held() == 0)
    until(lambda: gateway.ask("GET", "/global-semaphores/s").json()["waiting"] == 0)
    assert gateway.ask("GET", "/global-semaphores/s").json()["held"] == 0
    assert replicate_emulator.purchases == bought
    found = cli("predictions", "list", "--limit", "100", "--json").json
    ended = [one for one in found if one["status"] == "succeeded"]
    assert len(ended) == bought
    assert cli("usage", "--raw", "--json").json["total"]["predictions"] == bought


CREATE = "/v1/models/black-forest-labs/flux-schnell/predictions"
OWN = {"Authorization": "Bearer r8_their_very_own"}


def create(gateway: Gateway, prompt: str, *, who: dict[str, str] = ADMIN, **headers: str) -> Answered:
    return call("POST", gateway.url + CREATE, body={"input": {"prompt": prompt}}, headers=who | headers)


@pytest.mark.replicate_emulator(run_seconds=6.0)
def test_a_create_whose_gateway_was_killed_is_bought_once_when_its_client_sends_it_again(
    gateway: Gateway, replicate_emulator: EmulatorThread
) -> None:
    """Without any key: whoever was held had no answer. Who had theirs, and asks for the same, wants another one."""

    def counts(times: int) -> dict[str, str]:
        return {"x-stainless-retry-count": str(times)}

    gateway.start()
    hen = create(gateway, "a hen", **counts(0)).json()["id"]
    cow = create(gateway, "a cow").json()["id"]
    pig = create(gateway, "a pig", Prefer="wait=1").json()
    assert pig["status"] in {"starting", "processing"}
    thread, _ = in_background(lambda: create(gateway, "a fox", Prefer="wait=2"))
    until(lambda: replicate_emulator.purchases == 4)
    gateway.process.stop(signal.SIGKILL)
    thread.join()
    time.sleep(1.5)  # longer than it would have been held
    gateway.start()
    fox = create(gateway, "a fox", Prefer="wait=30")
    assert (fox.status, fox.json()["status"]) == (201, "succeeded")
    assert fox.headers["idempotent-replayed"] == "true"
    assert create(gateway, "a hen", **counts(1)).json()["id"] == hen
    assert replicate_emulator.purchases == 4
    for prompt, had in (("a cow", cow), ("a pig", pig["id"]), ("a fox", fox.json()["id"])):
        assert create(gateway, prompt).json()["id"] != had
    until(lambda: replicate_emulator.purchases == 7)


@pytest.mark.replicate_emulator(run_seconds=6.0)
def test_another_gateway_answers_at_once_for_one_that_was_killed_on_a_token_of_ones_own_too(
    cli: Any, gateway: Gateway, replicate_emulator: EmulatorThread
) -> None:
    other = Gateway(cli)
    gateway.start()
    other.start()
    asked = [
        in_background(lambda who=who: create(gateway, "a fox", who=who, Prefer="wait=30"))  # type: ignore[misc]
        for who in (ADMIN, ADMIN, OWN)
    ]
    until(lambda: replicate_emulator.purchases == 3)
    gateway.process.stop(signal.SIGKILL)
    for thread, _ in asked:
        thread.join()
    with ThreadPoolExecutor(3) as pool:
        again = [
            pool.submit(create, other, "a fox", who=who, Prefer="wait=30") for who in (ADMIN, ADMIN, OWN)
        ]
        answers = [each.result() for each in again]
    assert [answer.json()["status"] for answer in answers] == ["succeeded"] * 3
    assert [answer.headers["idempotent-replayed"] for answer in answers] == ["true"] * 3
    assert len({answer.json()["id"] for answer in answers}) == 3
    assert replicate_emulator.purchases == 3


@pytest.mark.replicate_emulator(run_seconds=0.3)
def test_a_command_and_a_gateway_keep_one_limit(
    cli: Any, gateway: Gateway, replicate_emulator: EmulatorThread
) -> None:
    cli.env["REPLICATE_CONCURRENT_LIMIT"] = "2"
    gateway.start()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(gateway.generate, f"fox {number}") for number in range(12)]
        commands = [
            pool.submit(cli, "generate", f"hen {number}", "--no-download", "--json") for number in range(2)
        ]
        assert [answer.result().status for answer in answers] == [200] * 12
        assert [command.result().code for command in commands] == [0, 0]
    assert replicate_emulator.state()["max_running"] <= 2


def test_a_port_that_is_taken_is_one_clear_line(cli: Any, gateway: Gateway) -> None:
    gateway.start()
    port = gateway.url.rpartition(":")[2]
    refused = cli("serve", "--port", port)
    assert refused.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_without_a_token_it_practises_and_says_so(cli: Any) -> None:
    gateway = Gateway(cli)
    gateway.start()
    answer = call("POST", f"{gateway.url}/generate", body={"model_name": "flux-dev", "prompt": "a fox"})
    assert answer.status == 200
    assert answer.json()["practice"] is True
    done = gateway.process.stop()
    assert "practice" in done.stderr
