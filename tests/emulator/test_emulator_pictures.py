"""The file host and what it serves."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from imagen.emulator.pictures import KEPT_PICTURES, PictureSpec, PictureStudio, paint

if TYPE_CHECKING:
    from conftest import Caller
    from imagen.emulator import Emulator


pytestmark = pytest.mark.anyio

SPEC = PictureSpec(model="a/b", prompt="a red fox", seed=7, index=0, width=320, height=256, format="png")


@pytest.mark.parametrize(
    ("model", "inputs", "size", "kind"),
    [
        ("black-forest-labs/flux-schnell", {}, (1024, 1024), "image/webp"),
        (
            "black-forest-labs/flux-schnell",
            {"aspect_ratio": "16:9", "output_format": "png"},
            (1344, 768),
            "image/png",
        ),
        (
            "black-forest-labs/flux-schnell",
            {"megapixels": "0.25", "output_format": "jpg"},
            (512, 512),
            "image/jpeg",
        ),
        (
            "black-forest-labs/flux-1.1-pro",
            {"aspect_ratio": "custom", "width": 512, "height": 256},
            (512, 256),
            "image/webp",
        ),
        (
            "black-forest-labs/flux-2-pro",
            {"resolution": "0.5 MP", "output_format": "jpg"},
            (720, 720),
            "image/jpeg",
        ),
        ("bytedance/seedream-4", {"size": "1K", "aspect_ratio": "16:9"}, (1344, 768), "image/jpeg"),
        ("google/imagen-4-ultra", {"aspect_ratio": "9:16"}, (768, 1344), "image/jpeg"),
        ("qwen/qwen-image", {}, (1344, 768), "image/webp"),
        (
            "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc",
            {"width": 640, "height": 384},
            (640, 384),
            "image/png",
        ),
    ],
)
async def test_size_and_format_are_those_asked_for(
    call: Caller, model: str, inputs: dict[str, Any], size: tuple[int, int], kind: str
):
    done = await call.finished(model=model, **inputs)
    url = done["output"] if isinstance(done["output"], str) else done["output"][0]
    reply = await call("GET", url, token=None)
    assert (reply.status, reply.kind) == (200, kind)
    image = Image.open(io.BytesIO(reply.raw))
    image.load()
    assert image.size == size


async def test_the_svg_model_gives_svg(call: Caller):
    done = await call.finished('<a> & "fox"', model="recraft-ai/recraft-v3-svg", size="1365x1024")
    reply = await call("GET", done["output"], token=None)
    assert reply.kind == "image/svg+xml"
    root = ET.fromstring(reply.raw)  # noqa: S314 - our own
    assert (root.get("width"), root.get("height")) == ("1365", "1024")
    assert 'EMULATED  <a> & "fox"' in "".join(root.itertext())


async def test_seedream_makes_several_when_told(call: Caller):
    done = await call.finished(
        model="bytedance/seedream-4", size="1K", sequential_image_generation="auto", max_images=3
    )
    assert len(done["output"]) == 3


async def test_the_file_host_is_another_origin_and_needs_no_token(call: Caller, emulator: Emulator):
    done = await call.finished()
    assert emulator.delivery_url != emulator.url
    await call("GET", done["output"][0], token=None)
    await call("GET", done["output"][0], token="r8_leaked")
    kept, leaked = emulator.journal.entries(server="delivery")
    assert kept.authorization is None
    assert leaked.authorization is not None
    assert "r8_leaked" not in str(leaked)
    assert kept.prediction_id == done["id"]


async def test_what_is_not_there_is_not_found(call: Caller, emulator: Emulator):
    done = await call.finished()
    created = (await call.create()).json
    unfinished = emulator.world.state.predictions[created["id"]].files[0]
    url = done["output"][0]
    for missing in (
        unfinished,
        url.replace("out-0", "out-1"),
        url.replace("/xezq/", "/xezq/x"),
        emulator.delivery_url,
    ):
        assert (await call("GET", missing, token=None)).status == 404
    assert (await call("POST", url, token=None)).status == 405
    head = await call("HEAD", url, token=None)
    assert (head.status, head.raw) == (200, b"")
    assert int(head.headers["content-length"]) > 0


def test_the_same_prompt_and_seed_give_the_same_picture():
    assert paint(SPEC) == paint(SPEC)


@pytest.mark.parametrize("change", [{"prompt": "a blue fox"}, {"seed": 8}, {"index": 1}, {"model": "a/c"}])
def test_anything_else_gives_another(change: dict[str, Any]):
    assert paint(SPEC) != paint(replace(SPEC, **change))


@pytest.mark.parametrize("prompt", ["", "\x00\x1b[31m", "🦊" * 300, "\u202eright to left", "\ud800"])
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_any_prompt_can_be_painted(prompt: str, kind: str):
    assert paint(replace(SPEC, prompt=prompt, format=kind))


@pytest.mark.parametrize(("width", "height"), [(16, 16), (16, 2048), (2048, 16)])
def test_any_size_can_be_painted(width: int, height: int):
    assert Image.open(io.BytesIO(paint(replace(SPEC, width=width, height=height)))).size == (width, height)


@pytest.mark.parametrize("quality", [0, 1, 50, 100])
@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_quality_is_heeded_or_at_least_harmless(quality: int, kind: str):
    assert paint(replace(SPEC, format=kind, quality=quality))


def test_the_newest_pictures_are_kept():
    studio = PictureStudio()
    first = studio.picture(SPEC)
    assert studio.picture(SPEC) is first
    for seed in range(100, 100 + KEPT_PICTURES):
        studio.picture(replace(SPEC, seed=seed, width=32, height=32))
    again = studio.picture(SPEC)
    assert again == first
    assert again is not first
