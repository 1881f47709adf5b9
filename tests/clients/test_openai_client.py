"""`openai` against the gateway, with nothing changed but its base URL."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from http_calls import call
from pairs import Pair
from PIL import Image
from processes import Service
from worker_clients import Client, Raised, Target

pytestmark = pytest.mark.xdist_group("clients gateway")

SCHNELL = "black-forest-labs/flux-schnell"


@pytest.fixture
def gateway(pairs: dict[str, Pair]) -> Service:
    return pairs["gateway"].service


@pytest.fixture
def openai(clients: dict[str, Client]) -> Client:
    return clients["openai"]


@pytest.fixture
def target(gateway: Service) -> Target:
    return Target(f"{gateway.url}/v1", gateway.token)


def opened(picture: dict[str, Any]) -> Image.Image:
    """What one of `data` shows, from wherever it is."""
    if picture.get("b64_json"):
        raw = base64.b64decode(picture["b64_json"])
    else:
        answer = call("GET", picture["url"])
        assert answer.status == 200
        raw = answer.body
    return Image.open(io.BytesIO(raw))


def test_generate_with_an_address(openai: Client, target: Target) -> None:
    found = openai.step("generate", target, model="flux-schnell", prompt="a red fox", response_format="url")
    answer = found["answer"]
    assert answer["created"] > 1_700_000_000
    (picture,) = answer["data"]
    assert picture["b64_json"] is None
    opened(picture).verify()


def test_generate_with_the_picture_inside(openai: Client, target: Target) -> None:
    found = openai.step(
        "generate", target, model=SCHNELL, prompt="a red fox", response_format="b64_json", output_format="png"
    )
    (picture,) = found["answer"]["data"]
    assert picture["url"] is None
    assert opened(picture).format == "PNG"


def test_several(openai: Client, target: Target) -> None:
    found = openai.step(
        "generate", target, model=SCHNELL, prompt="a red fox", n=2, response_format="b64_json"
    )
    assert len(found["answer"]["data"]) == 2
    for each in found["answer"]["data"]:
        opened(each).verify()


def test_several_of_a_model_that_makes_one(openai: Client, target: Target, gateway: Service) -> None:
    before = gateway.emulated.state()["purchases"]
    found = openai.step(
        "generate", target, model="flux-1.1-pro", prompt="a red fox", n=2, response_format="url"
    )
    assert len({each["url"] for each in found["answer"]["data"]}) == 2
    assert gateway.emulated.state()["purchases"] == before + 2


def test_size(openai: Client, target: Target) -> None:
    found = openai.step(
        "generate", target, model=SCHNELL, prompt="a fox", size="1536x1024", response_format="b64_json"
    )
    picture = opened(found["answer"]["data"][0])
    assert picture.width / picture.height == pytest.approx(1.5, rel=0.05)


def test_what_cannot_be_mapped_is_told(openai: Client, target: Target) -> None:
    found = openai.step(
        "generate", target, model=SCHNELL, prompt="a fox", moderation="low", response_format="url"
    )
    assert "moderation" in found["headers"]["x-imagen-unmapped"]


def test_what_no_picture_could_have_is_refused(openai: Client, target: Target) -> None:
    with pytest.raises(Raised, match="background") as refused:
        openai.step("generate", target, model=SCHNELL, prompt="a fox", background="transparent")
    assert refused.value.kind == "BadRequestError"


def test_streamed(openai: Client, target: Target) -> None:
    events = openai.step("generate_streamed", target, model=SCHNELL, prompt="a red fox", output_format="png")
    assert events[-1]["type"] == "image_generation.completed"
    assert events[-1]["begins"] == "89504e47"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def test_edit(openai: Client, target: Target, picture: Path) -> None:
    found = openai.step(
        "edit",
        target,
        paths=[str(picture)],
        model="flux-kontext-pro",
        prompt="make it blue",
        response_format="b64_json",
    )
    opened(found["data"][0]).verify()


def test_edit_streamed(openai: Client, target: Target, picture: Path) -> None:
    events = openai.step(
        "edit_streamed", target, path=str(picture), model="flux-kontext-pro", prompt="make it blue"
    )
    assert events[-1]["type"] == "image_edit.completed"


def test_models(openai: Client, target: Target) -> None:
    found = openai.step("models", target)
    assert all(each["object"] == "model" for each in found)
    ids = [each["id"] for each in found]
    assert SCHNELL in ids
    one = openai.step("model", target, id=SCHNELL)
    assert one["id"] == SCHNELL
    assert one["object"] == "model"


@pytest.mark.parametrize(
    ("wanted", "kind", "status"),
    [
        ({"model": SCHNELL, "prompt": "a fox", "n": 0}, "BadRequestError", 400),
        ({"model": SCHNELL, "prompt": ""}, "BadRequestError", 400),
        ({"model": SCHNELL, "prompt": "a fox", "size": "huge"}, "BadRequestError", 400),
        ({"model": "no-such-model", "prompt": "a fox"}, "NotFoundError", 404),
    ],
)
def test_errors_are_the_clients_own(
    openai: Client, target: Target, gateway: Service, wanted: dict[str, Any], kind: str, status: int
) -> None:
    before = gateway.emulated.state()["purchases"]
    with pytest.raises(Raised) as refused:
        openai.step("generate", target, **wanted)
    assert refused.value.kind == kind
    assert refused.value.status == status
    assert gateway.emulated.state()["purchases"] == before


def test_a_refused_prompt_says_why(openai: Client, target: Target) -> None:
    with pytest.raises(Raised, match="NSFW content detected") as refused:
        openai.step("generate", target, model=SCHNELL, prompt="a fox [fault:fail preset=nsfw]")
    assert refused.value.kind == "BadRequestError"


def test_a_wrong_key(openai: Client, target: Target) -> None:
    with pytest.raises(Raised) as refused:
        openai.step("generate", Target(target.url, "imk_nobody_knows_this"), model=SCHNELL, prompt="a fox")
    assert refused.value.kind == "AuthenticationError"
