"""The control plane, the clock, the thread, the plugin, and what the package may import."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import imagen.emulator
from imagen.emulator import Clock, Emulator, EmulatorThread, Model

if TYPE_CHECKING:
    from conftest import Caller


SCHNELL = "black-forest-labs/flux-schnell"
HOUSE = Path(imagen.emulator.__file__).parent


@pytest.mark.anyio
async def test_state_counts(call: Caller, emulator: Emulator):
    await call.finished()
    await call.create()
    state = (await call("GET", "/_emulator/state", token=None)).json
    assert state["purchases"] == emulator.purchases == 2
    assert (state["running"], state["max_running"]) == (1, 1)
    assert state["by_status"] in ({"succeeded": 1, "starting": 1}, {"succeeded": 1, "processing": 1})
    assert (state["api_url"], state["delivery_url"]) == (emulator.url, emulator.delivery_url)
    (account,) = state["accounts"]
    assert account["predictions"] == 2


@pytest.mark.anyio
async def test_reset_forgets_everything_but_models_and_time(call: Caller, emulator: Emulator):
    done = await call.finished()
    await call("POST", "/_emulator/mode", {"low_credit": True}, token=None)
    await call("POST", "/_emulator/faults", {"name": "drop"}, token=None)
    await call("POST", "/_emulator/models", {"name": "me/mine"}, token=None)
    offset = emulator.clock.offset_seconds
    state = (await call("POST", "/_emulator/reset", token=None)).json
    assert (state["purchases"], state["accounts"], state["by_status"]) == (0, [], {})
    assert state["mode"]["low_credit"] is False
    assert emulator.clock.offset_seconds == offset
    assert (await call("GET", done["urls"]["get"])).status == 404
    assert (await call("GET", done["output"][0])).status == 404
    assert [entry.status for entry in emulator.journal.entries()] == [404, 404]
    assert (await call.create(model="me/mine")).status == 201


@pytest.mark.anyio
async def test_the_clock_is_read_and_advanced(call: Caller, emulator: Emulator):
    before = (await call("GET", "/_emulator/clock", token=None)).json
    assert before["offset_seconds"] == 0
    after = (await call("POST", "/_emulator/clock", {"advance": 3600}, token=None)).json
    assert after["offset_seconds"] == 3600
    assert after["now"] > before["now"]


@pytest.mark.anyio
async def test_faults_are_posted_counted_and_withdrawn(call: Caller):
    fault = {"name": "status", "status": 503, "operation": "predictions.create", "times": 2}
    posted = (await call("POST", "/_emulator/faults", fault, token=None)).json
    assert (await call.create()).status == 503
    listed = (await call("GET", "/_emulator/faults", token=None)).json
    assert listed["faults"][0] == {**posted, "met": 1, "struck": 1}
    assert "drop_after" in listed["known"]
    assert (await call("DELETE", f"/_emulator/faults/{posted['id']}", token=None)).json["faults"] == []
    assert (await call("DELETE", f"/_emulator/faults/{posted['id']}", token=None)).status == 404
    await call("POST", "/_emulator/faults", fault, token=None)
    assert (await call("DELETE", "/_emulator/faults", token=None)).json["faults"] == []
    assert (await call.create()).status == 201


@pytest.mark.anyio
async def test_the_journal_tells_what_was_asked_and_never_a_token(call: Caller):
    created = await call.create(
        headers={"Prefer": "wait=1", "Cancel-After": "5m", "X-Secret": "r8_no"}, token="r8_yes"
    )
    await call("GET", created.json["urls"]["get"] + "?a=b", token="r8_yes")
    reply = await call("GET", "/_emulator/journal", token=None)
    assert b"r8_" not in reply.raw
    first, second = reply.json["entries"]
    assert (first["operation"], first["method"], first["path"]) == (
        "predictions.create",
        "POST",
        "/v1/predictions",
    )
    assert first["body"] == {"version": SCHNELL, "input": {"prompt": "a red fox"}}
    assert (first["headers"]["prefer"], first["headers"]["cancel-after"]) == ("wait=1", "5m")
    assert first["authorization"].startswith("bearer:")
    assert len(first["authorization"]) == len("bearer:") + 12
    assert (first["status"], first["prediction_id"]) == (202, created.json["id"])
    assert (second["query"], second["prediction_id"]) == ({"a": "b"}, created.json["id"])
    filtered = await call("GET", "/_emulator/journal?operation=predictions.get&status=200", token=None)
    assert filtered.json["entries"] == [second]


@pytest.mark.anyio
async def test_a_large_body_is_left_out_of_the_journal(call: Caller, emulator: Emulator):
    await call.create("x" * 70_000)
    (entry,) = emulator.journal.entries()
    assert entry.body["left_out_bytes"] > 70_000


@pytest.mark.anyio
async def test_mode_changes_what_it_names(call: Caller, emulator: Emulator):
    changed = (await call("POST", "/_emulator/mode", {"creates_per_minute": 60}, token=None)).json
    assert (changed["creates_per_minute"], changed["others_per_minute"]) == (60, 3000)
    assert (await call("GET", "/_emulator/mode", token=None)).json == changed


@pytest.mark.anyio
async def test_a_model_is_registered_with_its_own_parameters(call: Caller):
    model = {
        "name": "me/mine",
        "parameters": {
            "prompt": {"type": "string"},
            "size": {"type": "string", "enum": ["64x32"], "default": "64x32"},
        },
        "output": "uri",
        "run_seconds": 1,
    }
    assert (await call("POST", "/_emulator/models", model, token=None)).json["owner"] == "me"
    assert (await call.create(model="me/mine", size="1x1")).status == 422
    done = await call.finished(model="me/mine")
    assert isinstance(done["output"], str)
    names = [known["name"] for known in (await call("GET", "/_emulator/models", token=None)).json["models"]]
    assert "me/mine" in names


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("clock", {"advance": 5, "bakc": 1}, "bakc"),
        ("clock", {}, "advance"),
        ("clock", {"advance": -1}, ">= 0"),
        ("clock", [], "object"),
        ("faults", {"name": "drop", "tmies": 2}, "tmies"),
        ("faults", {"name": "nonsense"}, "drop_after"),
        ("faults", {}, "name"),
        ("faults", None, "object"),
        ("mode", {"low_cerdit": True}, "low_cerdit"),
        ("mode", {"creates_per_minute": -1}, "rates"),
        ("mode", {"concurrency": 0}, "concurrency"),
        ("mode", 5, "object"),
        ("models", {"name": "mine"}, "owner/name"),
        ("models", {"name": "me/mine", "required": ["x"]}, "required"),
        ("models", {"name": "me/mine", "version": "v1"}, "hexadecimal"),
        ("reset", {"please": True}, "please"),
    ],
)
async def test_what_control_does_not_know_it_refuses_clearly(call: Caller, path: str, body: Any, word: str):
    reply = await call("POST", f"/_emulator/{path}", body, token=None)
    assert reply.status == 422
    assert word in reply.json["detail"]


@pytest.mark.anyio
async def test_odd_calls_to_control(call: Caller):
    assert (await call("GET", "/_emulator/journal?colour=red", token=None)).status == 422
    assert (await call("GET", "/_emulator/journal?status=red", token=None)).status == 422
    assert (await call("GET", "/_emulator/nothing", token=None)).status == 404
    assert (await call("PUT", "/_emulator/clock", {}, token=None)).status == 405
    assert (await call("POST", "/_emulator/clock", data=b"{", token=None)).status == 400


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.com", ""])  # noqa: S104
def test_other_hosts_than_loopback_must_be_meant(host: str):
    with pytest.raises(ValueError, match="allow_non_loopback"):
        Emulator(host=host)
    Emulator(host=host, allow_non_loopback=True)


@pytest.mark.anyio
async def test_a_port_that_is_taken_leaves_nothing_behind(emulator: Emulator):
    port = int(emulator.url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="address"):
        await Emulator(delivery_port=port).start()


@pytest.mark.anyio
async def test_models_and_deployments_are_given_to_the_constructor(call: Caller):
    mine = Model(name="me/mine", official=False, run_seconds=5)
    async with Emulator(models=[mine], deployments={"me/run": "me/mine"}) as own:
        path = f"{own.url}/v1/deployments/me/run/predictions"
        created = (await call("POST", path, {"input": {"prompt": "x"}})).json
        assert created["version"] == mine.version_id
        own.clock.advance(5)
        done = (await call("GET", f"{own.url}/v1/predictions/{created['id']}")).json
        assert done["metrics"]["predict_time"] == 5


@pytest.mark.anyio
async def test_public_urls_replace_the_own(call: Caller):
    async with Emulator(public_url="http://proxy.example", public_delivery_url="http://files.example") as own:
        port_url = f"http://127.0.0.1:{own.world.state and _port(own)}"
        created = await call(
            "POST", f"{port_url}/v1/predictions", {"version": SCHNELL, "input": {"prompt": "x"}}
        )
        assert created.json["urls"]["get"].startswith("http://proxy.example/v1/")


def _port(emulator: Emulator) -> int:
    return int(emulator._runners[0].addresses[0][1])


def test_time_only_goes_forward():
    clock = Clock()
    before = clock.time()
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds"):
            clock.advance(seconds)
    clock.advance(10)
    assert 10 <= clock.time() - before < 20
    assert clock.now().tzinfo is not None


@pytest.mark.anyio
async def test_sleepers_wake_when_time_passes_and_not_before():
    clock = Clock()
    sleeper = asyncio.create_task(clock.sleep(100))
    await asyncio.sleep(0)
    clock.advance(50)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not sleeper.done()
    threading.Thread(target=clock.advance, args=(50,)).start()
    await asyncio.wait_for(sleeper, 10)


def test_the_fixture_runs_an_emulator_on_a_thread(replicate_emulator: EmulatorThread):
    created = _post(replicate_emulator, {"version": SCHNELL, "input": {"prompt": "x"}})
    assert created["status"] == "starting"
    assert replicate_emulator.purchases == 1
    replicate_emulator.clock.advance(60)
    assert _asked(_request(created["urls"]["get"]))["status"] == "succeeded"
    assert len(replicate_emulator.journal.entries(operation="predictions.create")) == 1
    assert replicate_emulator.state()["by_status"] == {"succeeded": 1}
    replicate_emulator.reset()
    assert replicate_emulator.purchases == 0


@pytest.mark.replicate_emulator(run_seconds=500)
def test_the_marker_gives_arguments(replicate_emulator: EmulatorThread):
    created = _post(replicate_emulator, {"version": SCHNELL, "input": {"prompt": "x"}})
    replicate_emulator.clock.advance(100)
    assert _asked(_request(created["urls"]["get"]))["status"] == "processing"


def test_the_thread_does_all_that_the_emulator_does(replicate_emulator: EmulatorThread):
    replicate_emulator.add_fault("status", status=503)
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        _post(replicate_emulator, {"version": SCHNELL, "input": {"prompt": "x"}})
    caught.value.close()
    replicate_emulator.add_fault("status", status=503)
    replicate_emulator.clear_faults()
    replicate_emulator.add_model(Model(name="me/mine"))
    assert replicate_emulator.set_mode(concurrency=1).concurrency == 1
    assert _post(replicate_emulator, {"version": "me/mine", "input": {"prompt": "x"}})["id"]
    with pytest.raises(ValueError, match="nonsense"):
        replicate_emulator.add_fault("nonsense")
    with pytest.raises(KeyError):
        replicate_emulator.download_url("nothing")
    missing = _names(Emulator) - _names(EmulatorThread) - {"world"}
    assert missing == set()


def test_a_thread_ends_held_calls_and_can_be_stopped_twice():
    thread = EmulatorThread(run_seconds=1000)
    with pytest.raises(RuntimeError, match="not been started"):
        thread.reset()
    thread.start()
    failures: list[Exception] = []

    def hold() -> None:
        try:
            _post(thread, {"version": SCHNELL, "input": {"prompt": "x"}}, {"Prefer": "wait"})
        except OSError as problem:
            failures.append(problem)

    caller = threading.Thread(target=hold)
    caller.start()
    while thread.purchases == 0:
        time.sleep(0.001)
    thread.stop()
    thread.stop()
    caller.join()
    assert len(failures) == 1


def test_a_thread_whose_port_is_taken_says_so(replicate_emulator: EmulatorThread):
    port = int(replicate_emulator.url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="address"):
        EmulatorThread(port=port).start()


def test_the_emulator_imports_nothing_of_ours_that_knows_of_replicate():
    for module in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, module
                names = [node.module or ""]
            for name in names:
                ours = name.partition(".")[0] == "imagen" and name.split(".")[:2] != ["imagen", "emulator"]
                assert not ours or name == "imagen.decoding", (module, name)


def test_loading_the_plugin_loads_no_server():
    code = "import sys, imagen.emulator.pytest_plugin; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in shown.stdout.split() if name.startswith("imagen.emulator")}
    assert loaded == {"imagen.emulator", "imagen.emulator.pytest_plugin"}


def test_public_names_are_there():
    for name in imagen.emulator.__all__:
        assert getattr(imagen.emulator, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = imagen.emulator.nonsense


def _post(emulator: EmulatorThread, body: Any, headers: dict[str, str] | None = None) -> Any:
    request = _request(f"{emulator.url}/v1/predictions", headers)
    request.data = json.dumps(body).encode()
    return _asked(request)


def _asked(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def _request(url: str, headers: dict[str, str] | None = None) -> urllib.request.Request:
    sent = {"Authorization": "Bearer r8_thread", **(headers or {})}
    return urllib.request.Request(url, headers=sent)


def _names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}
