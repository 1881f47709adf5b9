"""Modes for measuring: pictures of a size in bytes, files inside held answers. And that memory is bounded."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from imagen.emulator import state

if TYPE_CHECKING:
    from conftest import Caller
    from imagen.emulator import Emulator


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
async def test_pictures_have_the_bytes_asked_for_and_can_be_read(call: Caller, emulator: Emulator, kind: str):
    plain = await call.finished(output_format=kind)
    size = len((await call("GET", plain["output"][0])).raw)
    emulator.set_mode(picture_kib=1024)
    seen = set()
    for prompt in ("a red fox", "a grey fox"):
        done = await call.finished(prompt, output_format=kind, num_outputs=2)
        for url in done["output"]:
            raw = (await call("GET", url, token=None)).raw
            assert abs(len(raw) - 1024 * 1024) < 2048
            with Image.open(io.BytesIO(raw)) as picture:
                picture.load()
                assert picture.size == (1024, 1024)
            assert (await call("GET", url, token=None)).raw == raw
            seen.add(raw)
    assert len(seen) == 4
    assert size < 1024 * 1024


async def test_a_picture_that_is_large_already_stays(call: Caller, emulator: Emulator):
    emulator.set_mode(picture_kib=1)
    done = await call.finished(output_format="png")
    raw = (await call("GET", done["output"][0])).raw
    assert len(raw) > 1024
    Image.open(io.BytesIO(raw)).verify()


async def test_svg_is_filled_with_a_comment(call: Caller, emulator: Emulator):
    emulator.set_mode(picture_kib=64)
    done = await call.finished(model="recraft-ai/recraft-v3-svg")
    raw = (await call("GET", done["output"])).raw
    assert abs(len(raw) - 65_536) < 1024
    assert raw.startswith(b"<svg")
    assert raw.endswith(b" -->")


async def test_held_creates_answer_with_data_uris_and_others_with_links(call: Caller, emulator: Emulator):
    emulator.set_mode(data_uris=True)
    emulator.add_fault("slow", run_seconds=0)
    held = (await call.create(headers={"Prefer": "wait"}, output_format="png")).json
    (uri,) = held["output"]
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/png"
    Image.open(io.BytesIO(base64.b64decode(content))).verify()
    assert (await call.get(held))["output"] == held["output"]
    assert (await call.finished())["output"][0].startswith("http://")


@pytest.mark.parametrize("changes", [{"picture_kib": -1}, {"picture_kib": 65_537}, {"data_uris": "yes"}])
async def test_a_mode_that_cannot_be(call: Caller, changes: dict[str, Any]):
    assert (await call("POST", "/_emulator/mode", changes, token=None)).status == 422


async def test_the_oldest_predictions_are_forgotten_when_there_are_too_many(
    call: Caller, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state, "MOST_PREDICTIONS", 3)
    first = await call.finished("fox 0")
    for n in range(1, 4):
        await call.create(f"fox {n}")
    assert (await call("GET", first["urls"]["get"])).status == 404
    assert (await call("GET", first["output"][0])).status == 404
    await call.create("fox 4")
    listed = (await call("GET", "/v1/predictions")).json["results"]
    assert [one["input"]["prompt"] for one in listed] == ["fox 4", "fox 3", "fox 2", "fox 1"], (
        "none had ended"
    )
    assert emulator.purchases == 5


async def test_the_oldest_files_are_forgotten_when_there_are_too_many_bytes(
    call: Caller, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state, "MOST_FILE_BYTES", 8)
    content = base64.b64encode(b"four").decode()
    for name in ("a", "b", "c"):
        emulator.plant(token="r8_emulated_test_token", files=[{"id": name, "content": content}])
    assert [one["id"] for one in (await call("GET", "/v1/files")).json["results"]] == ["c", "b"]
