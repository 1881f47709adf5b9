"""`urls.stream`: server-sent events of text, of files, of failures, and what breaks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.emulator.calls.streams import Event, events_until
from imagen.emulator.catalog import known_models
from imagen.emulator.clock import Clock
from imagen.emulator.course import Course
from imagen.emulator.shapes import prediction_json
from imagen.emulator.state import PredictionOrder, State

if TYPE_CHECKING:
    from conftest import Caller
    from imagen.emulator import Emulator


LLAMA = "meta/meta-llama-3-8b-instruct"


def events_of(raw: bytes) -> list[tuple[str, str, str]]:
    """Name, id and data of each event, read as the standard has it."""
    return list(_events(raw.decode()))


def _events(text: str) -> Iterator[tuple[str, str, str]]:
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if "event" in fields:
            data = "\n".join(value for name, _, value in lines if name == "data")
            yield fields["event"], fields["id"], data


@pytest.mark.anyio
async def test_text_comes_piece_by_piece_and_makes_the_output(call: Caller, emulator: Emulator):
    created = (await call.create("two\nlines", model=LLAMA)).json
    emulator.clock.advance(31)
    reply = await call("GET", created["urls"]["stream"], token=None)
    assert (reply.status, reply.kind) == (200, "text/event-stream")
    *outputs, done = events_of(reply.raw)
    assert {name for name, _, _ in outputs} == {"output"}
    assert (done[0], json.loads(done[2])) == ("done", {})
    body = await call.get(created)
    assert [data for _, _, data in outputs] == body["output"]
    assert "two\nlines" in "".join(body["output"])
    assert body["metrics"]["output_token_count"] == len(outputs)
    ids = [identity for _, identity, _ in (*outputs, done)]
    assert all(re.fullmatch(r"\d{13}:\d+", identity) for identity in ids)
    assert [int(identity.split(":")[1]) for identity in ids] == list(range(len(ids)))


@pytest.mark.anyio
async def test_a_stream_is_live(call: Caller, emulator: Emulator):
    created = (await call.create(model=LLAMA)).json
    reading = asyncio.create_task(call("GET", created["urls"]["stream"], token=None))
    for _ in range(4):
        await asyncio.sleep(0.02)
        emulator.clock.advance(8)
    reply = await reading
    *outputs, done = events_of(reply.raw)
    times = [int(identity.split(":")[0]) for _, identity, _ in outputs]
    assert times == sorted(times)
    assert times[-1] - times[0] > 25_000
    assert done[0] == "done"


@pytest.mark.anyio
async def test_output_grows_while_a_language_model_runs(call: Caller, emulator: Emulator):
    created = (await call.create(model=LLAMA)).json
    assert created["output"] is None
    emulator.clock.advance(15)
    half = await call.get(created)
    emulator.clock.advance(30)
    whole = await call.get(created)
    assert half["status"] == "processing"
    assert 0 < len(half["output"]) < len(whole["output"])
    assert whole["output"][: len(half["output"])] == half["output"]


@pytest.mark.anyio
async def test_max_tokens_bounds_the_text(call: Caller):
    assert len((await call.finished(model=LLAMA, max_tokens=5))["output"]) == 5


@pytest.mark.anyio
async def test_pictures_come_as_addresses_below_v1_files(call: Caller, emulator: Emulator):
    created = (await call.create(num_outputs=2)).json
    assert created["urls"]["stream"].startswith(f"{emulator.url}/v1/files/")
    emulator.clock.advance(31)
    events = events_of((await call("GET", created["urls"]["stream"], token=None)).raw)
    assert [name for name, _, _ in events] == ["output", "output", "done"]
    assert [data for _, _, data in events[:2]] == (await call.get(created))["output"]


@pytest.mark.anyio
async def test_a_stream_goes_on_behind_the_last_event_id(call: Caller, emulator: Emulator):
    created = (await call.create(model=LLAMA)).json
    emulator.clock.advance(31)
    url = created["urls"]["stream"]
    events = events_of((await call("GET", url)).raw)
    rest = await call("GET", url, headers={"Last-Event-ID": events[3][1]})
    assert events_of(rest.raw) == events[4:]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("fail", [("error", {"detail": "NSFW content detected. Try running it again, or try a different prompt."}), ("done", {"reason": "error"})]),
        ("empty_output", [("done", {})]),
        ("null_output", [("done", {})]),
    ],
)  # fmt: skip
async def test_the_end_is_told_with_its_reason(
    call: Caller, emulator: Emulator, fault: str, expected: list[Any]
):
    emulator.add_fault(fault)
    created = (await call.create()).json
    emulator.clock.advance(31)
    events = events_of((await call("GET", created["urls"]["stream"])).raw)
    assert [(name, json.loads(data)) for name, _, data in events] == expected


@pytest.mark.anyio
async def test_canceling_ends_a_stream(call: Caller, emulator: Emulator):
    created = (await call.create(model=LLAMA)).json
    reading = asyncio.create_task(call("GET", created["urls"]["stream"], token=None))
    await asyncio.sleep(0.02)
    await call("POST", created["urls"]["cancel"])
    events = events_of((await reading).raw)
    assert json.loads(events[-1][2]) == {"reason": "canceled"}


@pytest.mark.anyio
async def test_half_a_minute_of_silence_ends_a_stream(call: Caller, emulator: Emulator):
    emulator.add_fault("never_starts")
    created = (await call.create(model=LLAMA)).json
    reading = asyncio.create_task(call("GET", created["urls"]["stream"], token=None))
    await asyncio.sleep(0.02)
    emulator.clock.advance(30)
    assert (await reading).raw == b":408: 408 Request Timeout\n\n"


@pytest.mark.anyio
async def test_data_uris_are_streamed_where_the_output_has_them(call: Caller, emulator: Emulator):
    emulator.add_fault("data_uri_output")
    created = (await call.create()).json
    emulator.clock.advance(31)
    events = events_of((await call("GET", created["urls"]["stream"])).raw)
    assert events[0][2].startswith("data:image/webp;base64,")


@pytest.mark.anyio
async def test_faults_strike_streams(call: Caller, emulator: Emulator):
    created = (await call.create(model=LLAMA)).json
    emulator.clock.advance(31)
    url = created["urls"]["stream"]
    emulator.add_fault("status", operation="stream", status=503)
    assert (await call("GET", url)).status == 503
    emulator.add_fault("cut", operation="stream")
    whole = (await call("GET", url, headers={"Last-Event-ID": "0:100"})).raw
    assert whole == b""
    entry = emulator.journal.entries(operation="stream")[0]
    assert (entry.status, entry.fault, entry.prediction_id) == (503, "status", None)


@pytest.mark.anyio
async def test_an_unknown_stream_is_not_found(call: Caller):
    assert (await call("GET", "/v1/stream/nothing", token=None)).status == 404
    assert (await call("GET", "/v1/files/stream/nothing", token=None)).status == 404


@pytest.mark.anyio
async def test_a_model_with_one_text_lists_no_stream(call: Caller, emulator: Emulator):
    version = (await call("GET", "/v1/models/replicate/hello-world")).json["latest_version"]["id"]
    created = await call("POST", "/v1/predictions", {"version": version, "input": {"text": "Alice"}})
    assert "stream" not in created.json["urls"]
    emulator.clock.advance(60)
    assert (await call.get(created.json))["output"] == "hello Alice"


@given(
    prompt=st.text(max_size=60),
    run_seconds=st.floats(0, 500),
    looks=st.lists(st.floats(0, 600), min_size=1, max_size=8),
    canceled_after=st.none() | st.floats(0, 600),
    fails=st.booleans(),
)
def test_what_has_been_streamed_is_never_taken_back(
    prompt: str, run_seconds: float, looks: list[float], *, canceled_after: float | None, fails: bool
):
    clock = Clock()
    model = next(model for model in known_models() if model.name == LLAMA)
    course = Course(queue_seconds=1, run_seconds=run_seconds, error="it broke" if fails else None)
    order = PredictionOrder(model=model, input={"prompt": prompt}, course=course)
    prediction = State(clock, "http://files.example").make("someone", order)
    if canceled_after is not None and not prediction.has_ended(prediction.created_at + canceled_after):
        prediction.canceled_at = prediction.created_at + canceled_after
    before: list[Event] = []
    for look in sorted(looks):
        now = prediction.created_at + look
        events = events_until(prediction, now)
        assert events[: len(before)] == before
        assert [event.at for event in events] == sorted(event.at for event in events)
        assert all(event.at <= now for event in events)
        output = prediction_json(prediction, now, "http://api.example")["output"]
        assert [event.data for event in events if event.name == "output"] == (output or [])
        assert (events[-1:] != [] and events[-1].name == "done") == prediction.has_ended(now)
        before = events
