"""Each fault in turn: what the caller sees, and what was bought."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from PIL import Image

from imagen.emulator import Emulator
from imagen.emulator.api import ROUTES, STREAMS
from imagen.emulator.exchange import UNKNOWN
from imagen.emulator.fault import DELIVERY, OPERATIONS, Fault
from imagen.emulator.faults import DropAfter, Status, fault_names

if TYPE_CHECKING:
    from conftest import Caller


pytestmark = pytest.mark.anyio

CREATE = "predictions.create"


async def test_status_answers_without_doing(call: Caller, emulator: Emulator):
    emulator.add_fault("status", status=502, body="<h1>Bad Gateway</h1>", headers={"X-Proxy": "yes"}, times=2)
    for _ in range(2):
        reply = await call.create()
        assert (reply.status, reply.kind, reply.headers["x-proxy"]) == (502, "text/html", "yes")
    assert emulator.purchases == 0
    assert (await call.create()).status == 201


async def test_status_without_a_body_is_a_problem_document(call: Caller, emulator: Emulator):
    emulator.add_fault("status", status=599)
    reply = await call.create()
    assert (reply.status, reply.kind, reply.json["status"]) == (599, "application/problem+json", 599)


async def test_status_after_buys_and_then_fails(call: Caller, emulator: Emulator):
    emulator.add_fault("status_after", status=504)
    assert (await call.create()).status == 504
    assert emulator.purchases == 1
    assert len((await call("GET", "/v1/predictions")).json["results"]) == 1


@pytest.mark.parametrize(("name", "purchases"), [("drop", 0), ("drop_after", 1)])
async def test_a_dropped_connection_brings_no_answer(
    call: Caller, emulator: Emulator, name: str, purchases: int
):
    emulator.add_fault(name, operation=CREATE)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await call.create()
    assert emulator.purchases == purchases
    (entry,) = emulator.journal.entries(operation=CREATE)
    assert (entry.status, entry.fault) == (0, name)
    assert (entry.prediction_id is None) == (purchases == 0)
    assert (await call.create()).status == 201


async def test_cut_announces_everything_and_sends_half(emulator: Emulator):
    emulator.add_fault("cut", operation=CREATE)
    raw = await _raw_create(emulator)
    head, _, body = raw.partition(b"\r\n\r\n")
    announced = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    assert len(body) == announced // 2
    assert emulator.purchases == 1


async def test_cut_of_a_large_file_sends_half_of_it(call: Caller, emulator: Emulator):
    done = await call.finished(output_format="png")
    whole = (await call("GET", done["output"][0])).raw
    emulator.add_fault("cut", operation="delivery")
    received = bytearray()
    async with aiohttp.ClientSession() as session, session.get(done["output"][0]) as response:
        assert response.content_length == len(whole)
        with pytest.raises(aiohttp.ClientPayloadError):
            await _read_into(received, response)
    assert bytes(received) == whole[: len(whole) // 2]


async def test_delay_lasts_until_the_clock_says_so(call: Caller, emulator: Emulator):
    emulator.add_fault("delay", seconds=500)
    waiting = asyncio.create_task(call("GET", "/v1/account"))
    while not emulator.world.faults.posted()[0].struck:  # noqa: ASYNC110 - the emulator tells nobody
        await asyncio.sleep(0)
    assert not waiting.done()
    emulator.clock.advance(500)
    assert (await waiting).status == 200


@pytest.mark.parametrize(
    ("where", "header", "in_body", "in_text"),
    [
        ("body", None, 7, True),
        ("header", "7", None, False),
        ("text", None, None, True),
        ("none", None, None, False),
    ],
)
async def test_rate_limit_says_when_in_one_place(
    call: Caller, *, emulator: Emulator, where: str, header: str | None, in_body: int | None, in_text: bool
):
    emulator.add_fault("rate_limit", retry_after=7, where=where)
    reply = await call.create()
    assert reply.status == 429
    assert reply.headers.get("retry-after") == header
    assert reply.json.get("retry_after") == in_body
    assert ("~7s" in reply.json["detail"]) == in_text
    assert emulator.purchases == 0


async def test_payment_required(call: Caller, emulator: Emulator):
    emulator.add_fault("payment_required")
    assert (await call.create()).status == 402


@pytest.mark.parametrize("kind", ["html", "text", "empty", "half_json"])
@pytest.mark.parametrize(("name", "purchases"), [("garbage", 0), ("garbage_after", 1)])
async def test_garbage_is_200_and_no_json(
    call: Caller, emulator: Emulator, kind: str, name: str, purchases: int
):
    emulator.add_fault(name, kind=kind)
    reply = await call.create()
    assert reply.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply.raw)
    assert emulator.purchases == purchases


async def test_a_prediction_is_not_found_once_then_garbled_once_then_there(call: Caller, emulator: Emulator):
    created = (await call.create()).json
    url = created["urls"]["get"]
    emulator.add_fault("status", operation="predictions.get", status=404)
    emulator.add_fault("garbage", operation="predictions.get", kind="half_json")
    missing, garbled, found = [await call("GET", url) for _ in range(3)]
    assert (missing.status, missing.kind) == (404, "application/problem+json")
    assert missing.raw == (await call("GET", "/v1/predictions/nothing")).raw
    assert garbled.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(garbled.raw)
    assert (found.status, found.json["id"]) == (200, created["id"])
    assert emulator.purchases == 1
    entries = emulator.journal.entries(operation="predictions.get", prediction_id=created["id"])
    assert [entry.fault for entry in entries] == ["status", "garbage", None]


async def test_a_deployment_can_be_struck(call: Caller, emulator: Emulator):
    emulator.add_fault("status", operation="deployments.get", model="black-forest-labs/flux-dev", status=503)
    path = "/v1/deployments/emulated/flux-deployment"
    assert [(await call("GET", path)).status for _ in range(2)] == [503, 200]


async def test_redirect(call: Caller, emulator: Emulator):
    emulator.add_fault("redirect", location="http://elsewhere.example/", status=307)
    reply = await call.create()
    assert (reply.status, reply.headers["location"]) == (307, "http://elsewhere.example/")


async def test_huge(call: Caller, emulator: Emulator):
    emulator.add_fault("huge", size=1_000_001)
    reply = await call("GET", "/v1/account")
    assert len(reply.raw) == 1_000_001
    assert "content-length" not in reply.headers


async def test_a_reader_of_a_huge_answer_may_go_away(call: Caller, emulator: Emulator):
    emulator.add_fault("huge", size=200_000_000)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{emulator.url}/v1/account", headers={"Authorization": "Bearer r8_x"}) as response,
    ):
        await response.content.read(10)
    assert (await call("GET", "/v1/account")).status == 200


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({}, "NSFW content detected"),
        ({"preset": "E005"}, "(E005)"),
        ({"preset": "interrupted"}, "Prediction interrupted; please retry (code: PA)"),
        ({"error": "my own words"}, "my own words"),
    ],
)
async def test_fail(call: Caller, emulator: Emulator, attributes: dict[str, Any], text: str):
    emulator.add_fault("fail", **attributes)
    done = await call.finished()
    assert done["status"] == "failed"
    assert text in done["error"]
    assert done["output"] is None
    assert "predict_time" in done["metrics"]


async def test_a_held_create_answers_a_failure_with_201(call: Caller, emulator: Emulator):
    emulator.add_fault("fail")
    emulator.add_fault("slow", run_seconds=0)
    reply = await call.create(headers={"Prefer": "wait"})
    assert (reply.status, reply.json["status"]) == (201, "failed")


@pytest.mark.parametrize(("name", "output"), [("empty_output", []), ("null_output", None)])
async def test_success_without_a_picture(call: Caller, emulator: Emulator, name: str, output: Any):
    emulator.add_fault(name)
    done = await call.finished()
    assert (done["status"], done["output"]) == ("succeeded", output)
    assert "image_count" not in done["metrics"]


async def test_data_uri_output(call: Caller, emulator: Emulator):
    emulator.add_fault("data_uri_output")
    done = await call.finished(output_format="png", megapixels="0.25", num_outputs=2)
    assert len(done["output"]) == 2
    head, _, content = done["output"][1].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (512, 512)


async def test_a_broken_picture_is_broken_each_time_and_its_length_agrees(call: Caller, emulator: Emulator):
    emulator.add_fault("broken_picture")
    done = await call.finished(output_format="png")
    for _ in range(2):
        reply = await call("GET", done["output"][0])
        assert reply.status == 200
        assert int(reply.headers["content-length"]) == len(reply.raw)
        with pytest.raises(OSError, match=r"truncated|broken"):
            Image.open(io.BytesIO(reply.raw)).load()


async def test_a_broken_download_is_whole_the_next_time(call: Caller, emulator: Emulator):
    done = await call.finished(output_format="png")
    emulator.add_fault("broken_picture", operation="delivery")
    first, second = [await call("GET", done["output"][0]) for _ in range(2)]
    assert len(first.raw) == len(second.raw) // 2
    Image.open(io.BytesIO(second.raw)).load()


async def test_not_a_picture(call: Caller, emulator: Emulator):
    emulator.add_fault("not_a_picture")
    done = await call.finished()
    reply = await call("GET", done["output"][0])
    assert (reply.status, reply.kind) == (200, "text/html")


async def test_early_output(call: Caller, emulator: Emulator):
    emulator.add_fault("slow", run_seconds=0)
    emulator.add_fault("early_output", seconds=50)
    reply = await call.create(headers={"Prefer": "wait"})
    assert (reply.status, reply.json["status"]) == (201, "processing")
    assert reply.json["output"]
    assert "completed_at" not in reply.json
    emulator.clock.advance(50)
    done = await call.get(reply.json)
    assert (done["status"], done["output"]) == ("succeeded", reply.json["output"])


@pytest.mark.parametrize("status", ["starting", "processing"])
async def test_a_hold_that_does_not_hold(call: Caller, emulator: Emulator, status: Any):
    emulator.add_fault("hold_returns_starting", status=status)
    reply = await call.create(headers={"Prefer": "wait"})
    assert (reply.status, reply.json["status"], reply.json["output"]) == (202, status, None)
    emulator.clock.advance(60)
    assert (await call.get(reply.json))["status"] == "succeeded"


async def test_never_starts(call: Caller, emulator: Emulator):
    emulator.add_fault("never_starts")
    created = (await call.create()).json
    emulator.clock.advance(7 * 24 * 3600)
    assert (await call.get(created))["status"] == "starting"
    assert (await call("POST", created["urls"]["cancel"])).json["status"] == "canceled"


async def test_loose_bodies_lack_what_recorded_ones_lack(call: Caller, emulator: Emulator):
    emulator.add_fault("loose")
    created = (await call.create()).json
    assert {"output", "data_removed"}.isdisjoint(created)
    assert "web" not in created["urls"]
    emulator.clock.advance(60)
    done = await call.get(created)
    assert "metrics" not in done
    assert done["output"]


async def test_hidden_from_list(call: Caller, emulator: Emulator):
    emulator.add_fault("hidden_from_list", seconds=5)
    created = (await call.create()).json
    assert (await call("GET", "/v1/predictions")).json["results"] == []
    assert (await call("GET", created["urls"]["get"])).status == 200
    emulator.clock.advance(5)
    assert len((await call("GET", "/v1/predictions")).json["results"]) == 1


def test_every_fault_has_a_test_here():
    here = (Path(__file__), Path(__file__).with_name("test_emulator_webhooks.py"))
    tested = "".join(path.read_text(encoding="utf-8") for path in here)
    assert [name for name in fault_names() if f'"{name}"' not in tested] == []


async def test_skip_and_times(call: Caller, emulator: Emulator):
    emulator.add_fault("status", status=503, skip=1, times=2)
    assert [(await call("GET", "/v1/account")).status for _ in range(5)] == [200, 503, 503, 200, 200]


async def test_faults_of_one_place_strike_one_after_the_other(call: Caller, emulator: Emulator):
    emulator.add_fault("rate_limit")
    emulator.add_fault("status", status=500)
    assert [(await call.create()).status for _ in range(3)] == [429, 500, 201]


async def test_a_fault_for_ever(call: Caller, emulator: Emulator):
    emulator.add_fault("status", status=503, times=None)
    assert {(await call("GET", "/v1/account")).status for _ in range(5)} == {503}
    emulator.clear_faults()
    assert (await call("GET", "/v1/account")).status == 200


@pytest.mark.parametrize(
    "attributes",
    [
        {"operation": "predictions.create"},
        {"method": "post"},
        {"path": r"/predictions$", "method": "POST"},
        {"model": "black-forest-labs/flux-schnell"},
        {"prompt": "red"},
        {"operation": "predictions.create", "prompt": "fox", "method": "POST"},
    ],
)
async def test_a_fault_meets_what_it_names_and_nothing_else(
    call: Caller, emulator: Emulator, attributes: dict[str, Any]
):
    emulator.add_fault("status", status=503, times=None, **attributes)
    assert (await call("GET", "/v1/account")).status == 200
    assert (await call.create("a red fox")).status == 503


@pytest.mark.parametrize(
    "attributes",
    [
        {"operation": "models.predictions.create"},
        {"model": "google/nano-banana"},
        {"prompt": "blue"},
        {"method": "GET"},
    ],
)
async def test_a_fault_leaves_the_others_alone(call: Caller, emulator: Emulator, attributes: dict[str, Any]):
    emulator.add_fault("status", status=503, **attributes)
    assert (await call.create("a red fox")).status == 201


async def test_create_means_every_path_that_creates(call: Caller, emulator: Emulator):
    emulator.add_fault("status", status=503, operation=CREATE, times=None)
    body = {"input": {"prompt": "x"}}
    for path in ("models/black-forest-labs/flux-schnell", "deployments/emulated/flux-deployment"):
        assert (await call("POST", f"/v1/{path}/predictions", body)).status == 503


async def test_a_prompt_carries_a_fault_of_the_wire_once(call: Caller, emulator: Emulator):
    assert (await call.create("a fox [fault:status status=503]")).status == 503
    assert (await call.create("a fox [fault:status status=503]")).status == 201
    assert emulator.purchases == 1


async def test_a_prompt_carries_a_fault_of_the_prediction_always(call: Caller):
    for _ in range(2):
        done = await call.finished('a fox [fault:fail error="out of paint"] [fault:slow run_seconds=1]')
        assert (done["status"], done["error"]) == ("failed", "out of paint")
        assert done["metrics"]["predict_time"] == pytest.approx(1)


async def test_a_prompt_carries_a_fault_of_its_downloads(call: Caller):
    done = await call.finished("a fox [fault:status status=500 operation=delivery]")
    assert [(await call("GET", done["output"][0])).status for _ in range(2)] == [500, 200]


@pytest.mark.parametrize(
    "text", ["nonsense", "", "status status=hello", "fail mood=bad", 'fail "', "fail preset"]
)
async def test_a_fault_in_a_prompt_that_cannot_be_read_is_refused(
    call: Caller, emulator: Emulator, text: str
):
    reply = await call.create(f"a fox [fault:{text}]")
    assert reply.status == 422
    assert "the faults are status, " in reply.json["detail"]
    assert emulator.purchases == 0


async def test_structs_and_names_are_the_same(emulator: Emulator):
    posted = emulator.add_fault(Status(status=503, times=None))
    named = emulator.add_fault("status", status=503, times=None)
    assert posted.fault == named.fault
    assert emulator.add_fault(DropAfter()).fault.name == "drop_after"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("nonsense", {}),
        ("drop", {"stauts": 1}),
        ("status", {"status": 99}),
        ("drop", {"times": 0}),
        ("drop", {"path": "("}),
    ],
)
async def test_what_is_no_fault_is_refused(emulator: Emulator, name: str, attributes: dict[str, Any]):
    with pytest.raises(ValueError, match=r"."):
        emulator.add_fault(name, **attributes)


def test_the_base_of_all_faults_is_none_itself():
    with pytest.raises(TypeError, match="use one of the structs"):
        Fault()


async def _read_into(received: bytearray, response: aiohttp.ClientResponse) -> None:
    async for chunk in response.content.iter_any():
        received += chunk


async def _raw_create(emulator: Emulator) -> bytes:
    host, port = emulator.url.removeprefix("http://").split(":")
    body = b'{"version": "black-forest-labs/flux-schnell", "input": {"prompt": "x"}}'
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/predictions HTTP/1.1\r\nHost: emulator\r\nAuthorization: Bearer r8_x\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    return raw


def test_the_operations_of_faults_are_those_of_the_routes():
    routed = {operation for _, _, operation, _ in (*ROUTES, *STREAMS)}
    assert set(OPERATIONS) == routed | {DELIVERY, UNKNOWN}


@pytest.mark.parametrize(
    ("name", "operation"),
    [("status", "prediction.create"), ("drop", "nonsense"), ("fail", "predictions.get"), ("slow", DELIVERY)],
)
async def test_an_operation_that_a_fault_can_never_strike_is_refused(
    emulator: Emulator, name: str, operation: str
):
    with pytest.raises(ValueError, match="cannot strike"):
        emulator.add_fault(name, operation=operation)
