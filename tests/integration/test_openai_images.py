"""OpenAI's images API: its own package and plain requests, against a real gateway in front of the emulator."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from gateway import ADMIN, ADMIN_KEY, Answer, RunningGateway, leave, running_gateway
from PIL import Image
from starlette.requests import Request
from starlette.types import Message

from imagen.catalog import Catalog
from imagen.emulator import EmulatorThread
from imagen.emulator.models import Model
from imagen.server.context import Gone
from imagen.server.openai.uploads import read_json, told_content
from waiting import least, longest_pause, until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]

PATH = "/v1/images/generations"
EDITS = "/v1/images/edits"


@asynccontextmanager
async def asked(
    tmp_path: Path, emulator: EmulatorThread | None, *known: str, key: str = ADMIN_KEY, **environ: str
) -> AsyncIterator[tuple[RunningGateway, openai.AsyncOpenAI]]:
    """A gateway, and OpenAI's own client of it. `known` are models of the catalog that the emulator does not have."""
    for name in known:
        model = Catalog.load().find(name)
        assert model is not None
        assert emulator is not None
        parameters = {each.name: each.to_schema() for each in model.parameters or ()}
        emulator.add_model(Model(name=model.name, parameters=parameters, output_format="png"))
    async with (
        running_gateway(tmp_path, emulator, **environ) as gateway,
        openai.AsyncOpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0) as client,
    ):
        yield gateway, client


def inputs(emulator: EmulatorThread) -> list[dict[str, Any]]:
    return [entry.body["input"] for entry in emulator.journal.entries(operation="predictions.create")]


def models(emulator: EmulatorThread) -> list[str]:
    found = emulator.journal.entries(operation="predictions.create")
    return [entry.path.removesuffix("/predictions").rpartition("/")[2] for entry in found]


def picture(side: int = 32, *, mode: str = "RGB", color: Any = (200, 30, 30), noise: bool = False) -> bytes:
    made = (
        Image.frombytes(mode, (side, side), os.urandom(side * side * len(mode)))
        if noise
        else Image.new(mode, (side, side), color)
    )
    out = io.BytesIO()
    made.save(out, "PNG")
    return out.getvalue()


async def post(
    gateway: RunningGateway, path: str = PATH, *, headers: dict[str, str] = ADMIN, **fields: Any
) -> Answer:
    return await gateway.request(
        "POST", path, json={"prompt": "a red fox", "model": "flux-schnell"} | fields, headers=headers
    )


def error(answer: Answer, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    told = answer.json()["error"]
    assert (answer.status, told["code"], told["param"]) == (status, code, param), answer.body
    assert set(told) == {"message", "type", "param", "code", "imagen"}
    assert told["message"]
    return told  # type: ignore[no-any-return]


# --- generations -----------------------------------------------------------------------------------------


async def test_the_official_client_makes_pictures(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with asked(tmp_path, replicate_emulator) as (_, client):
        raw = await client.images.with_raw_response.generate(
            prompt="a red fox",
            model="flux-schnell",
            size="1792x1024",
            n=2,
            style="vivid",
            extra_body={"seed": 7},
        )
        answer = raw.parse()
        assert [shot.url[:7] for shot in answer.data] == ["http://"] * 2
        assert answer.created > 1_700_000_000
        assert raw.headers["x-imagen-cost-usd"] == "0.006"
        assert raw.headers["x-imagen-unmapped"] == "style"
        assert raw.headers["x-imagen-adapted"] == "size=1792x1024->aspect_ratio=16:9 megapixels=1"
        told = answer.imagen
        assert (told["unmapped"], told["seeds"], told["cost_usd"]) == (["style"], [7], 0.006)
        assert told["prediction_ids"] == [raw.headers["x-imagen-prediction-id"]]
        assert inputs(replicate_emulator) == [
            {"prompt": "a red fox", "aspect_ratio": "16:9", "megapixels": "1", "num_outputs": 2, "seed": 7}
        ]


async def test_pictures_come_in_base64_as_the_service_has_them(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        answer = await client.images.generate(
            prompt="a red fox", model="flux-schnell", n=3, response_format="b64_json", output_format="png",
            size="1024x1024",
        )  # fmt: skip
        wholes = [base64.b64decode(shot.b64_json or "", validate=True) for shot in answer.data]
        (prediction_id,) = answer.imagen["prediction_ids"]
        prediction = await gateway.app.gateway.show(prediction_id)
        for whole, url in zip(wholes, prediction.output, strict=True):
            async with gateway.session.get(url) as direct:
                assert whole == await direct.read()
        assert (answer.size, answer.output_format) == ("1024x1024", "png")
        assert not list((tmp_path / "data" / "incoming").iterdir())


async def test_several_predictions_make_what_one_cannot(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (_, client):
        answer = await client.images.generate(prompt="a red fox", model="flux-1.1-pro", n=3)
        assert len({shot.url for shot in answer.data}) == 3
        assert len(answer.imagen["prediction_ids"]) == 3
        assert replicate_emulator.purchases == 3
        assert len({each["seed"] for each in inputs(replicate_emulator)}) == 3


async def test_how_many_the_models_own_parameter_says_wins(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        answer = await post(gateway, model="flux-schnell", n=3, num_outputs=2)
        assert (answer.status, len(answer.json()["data"])) == (200, 2), answer.body
        assert answer.headers["x-imagen-unmapped"] == "n"


async def test_names_of_openai_mean_what_the_settings_say_and_decide_the_form(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    names = {
        "IMAGEN_OPENAI__MODELS": "dall-e-3=flux-dev, gpt-image-1=flux-schnell",
        "IMAGEN_OPENAI__MODEL": "qwen-image",
    }
    async with asked(tmp_path, replicate_emulator, "gpt-image-1.5", **names) as (_, client):
        for name, form in (("dall-e-3", "url"), ("GPT-Image-1", "b64_json"), ("gpt-image-1.5", "b64_json")):
            answer = await client.images.generate(prompt="a red fox", model=name)
            assert [field for field in ("url", "b64_json") if getattr(answer.data[0], field)] == [form]
        assert (await client.images.generate(prompt="a red fox")).imagen["model"] == "qwen/qwen-image"
        assert (
            (await client.images.generate(prompt="x", model="gpt-image-1.5", response_format="url"))
            .data[0]
            .url
        )
        assert models(replicate_emulator) == [
            "flux-dev",
            "flux-schnell",
            "gpt-image-1.5",
            "qwen-image",
            "gpt-image-1.5",
        ]


async def test_the_default_is_the_model_of_the_default_backend(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (_, client):
        assert (await client.images.generate(prompt="x")).imagen["model"] == "black-forest-labs/flux-schnell"
    async with asked(tmp_path, replicate_emulator, IMAGEN_DEFAULT_BACKEND="flux-dev-replicate") as (
        _,
        client,
    ):
        assert (await client.images.generate(prompt="x")).imagen["model"] == "black-forest-labs/flux-dev"


async def test_the_paths_are_there_without_the_prefix_too(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        assert (await post(gateway, "/images/generations")).status == 200
        assert (await post(gateway, "/v1/v1/images/generations")).status == 200
        document = (await gateway.request("GET", "/openapi.json")).json()
        assert not [path for path in document["paths"] if "images" in path]


async def test_kept_pictures_are_told_by_the_address_that_lasts(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        answer = await client.images.generate(
            prompt="a red fox", model="flux-schnell", extra_body={"store": True}
        )
        (shot,) = answer.data
        assert shot.url.startswith(f"{gateway.url}/pictures/")
        async with gateway.session.get(shot.url) as kept:
            stored = await kept.read()
        whole = await client.images.generate(
            prompt="a red fox", model="flux-schnell", response_format="b64_json", extra_body={"store": True}
        )
        assert base64.b64decode(whole.data[0].b64_json)[:4] == stored[:4] == b"RIFF"
    async with asked(tmp_path, replicate_emulator, IMAGEN_PICTURES__KEEP="true") as (gateway, client):
        answer = await client.images.generate(prompt="a red fox", model="flux-schnell")
        assert answer.data[0].url.startswith(f"{gateway.url}/pictures/")


async def test_pictures_that_came_inside_an_answer_are_handed_on(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("data_uri_output", times=2)
    async with asked(tmp_path, replicate_emulator) as (_, client):
        told = await client.images.generate(prompt="a red fox", model="flux-schnell")
        whole = await client.images.generate(
            prompt="a red fox", model="flux-schnell", response_format="b64_json"
        )
        head, _, body = told.data[0].url.partition(",")
        assert head.startswith("data:image/")
        assert base64.b64decode(body)[:4] == base64.b64decode(whole.data[0].b64_json)[:4] == b"RIFF"


async def test_pictures_that_came_inside_an_answer_are_there_for_a_repeat_too(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("data_uri_output", times=1)
    once = ADMIN | {"Idempotency-Key": "inside"}
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        first = await post(gateway, headers=once, response_format="b64_json")
        assert base64.b64decode(first.json()["data"][0]["b64_json"])[:4] == b"RIFF"
        gateway.app.fresh._outputs.clear()  # as after a while
        again = await post(gateway, headers=once, response_format="b64_json")
        assert again.body == first.body
        assert replicate_emulator.purchases == 1


async def test_whoever_has_a_token_of_their_own_pays_by_themselves(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator, key="r8_their_own") as (gateway, client):
        answer = await client.images.generate(prompt="x", model="flux-schnell", user="bob")
        # By another name they would not find what they have spent.
        assert answer.imagen["unmapped"] == ["user"]
        await client.images.edit(image=("a.png", picture()), prompt="x", model="flux-dev")
        tokens = {
            entry.authorization
            for entry in replicate_emulator.journal.entries(operation="predictions.create")
        }
        assert len(tokens) == 1
        await post(gateway)
        assert len({entry.authorization for entry in replicate_emulator.journal.entries()}) == 2
        usage = (await gateway.request("GET", "/usage?by=caller", headers=ADMIN)).json()["groups"]
        assert not [one["name"] for one in usage if one["name"].endswith("/bob")]


async def test_who_shows_nothing_on_this_machine_may_practise(tmp_path: Path) -> None:
    async with asked(tmp_path, None, REPLICATE_API_TOKEN="") as (gateway, _):
        answer = await post(gateway, headers={}, response_format="b64_json", user="bob")
        assert answer.status == 200, answer.body
        told = answer.json()
        assert (told["imagen"]["practice"], told["imagen"]["unmapped"]) == (True, ["user"])
        inside = "data:image/png;base64," + base64.b64encode(picture(400, noise=True)).decode()
        answer = await post(gateway, EDITS, headers={}, model="flux-dev", image=inside)
        assert answer.status == 200, answer.body


async def test_a_cached_picture_costs_nothing(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    wish = {"seed": 7, "cache": True, "response_format": "b64_json", "n": 1}
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        first, again = await post(gateway, **wish), await post(gateway, **wish)
        assert again.json()["data"] == first.json()["data"]
        assert (again.headers["x-imagen-cache"], again.headers["x-imagen-cost-usd"]) == ("hit", "0")
        assert again.json()["imagen"]["cached"] is True
        assert replicate_emulator.purchases == 1


async def test_a_preset_names_the_model_and_lies_under_what_is_said(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    preset = "presets:\n  poster:\n    model: flux-dev\n    aspect_ratio: 16:9\n    guidance: 2.5\n"
    (tmp_path / "imagen.yaml").write_text(preset)
    async with asked(tmp_path, replicate_emulator) as (_, client):
        await client.images.generate(prompt="x", size="1024x1024", extra_body={"preset": "poster"})
        (sent,) = inputs(replicate_emulator)
        assert models(replicate_emulator) == ["flux-dev"]
        assert (sent["aspect_ratio"], sent["guidance"]) == ("1:1", 2.5)


# --- edits -----------------------------------------------------------------------------------------------


async def test_an_edit_sends_small_pictures_along_and_large_ones_to_the_files_of_the_service(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    small, large = picture(), picture(400, noise=True)
    assert len(large) > 256 * 1024
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        answer = await client.images.edit(
            image=[("small.png", small), ("large.png", large)],
            prompt="a hat",
            extra_body={"output_format": "png"},
        )
        assert answer.imagen["model"] == "google/nano-banana"
        (sent,) = inputs(replicate_emulator)
        inside, address = sent["image_input"]
        assert base64.b64decode(inside.removeprefix("data:image/png;base64,")) == small
        assert (sent["aspect_ratio"], sent["output_format"]) == ("match_input_image", "png")
        token = {"Authorization": "Bearer r8_the_servers_own_token"}
        async with gateway.session.get(f"{address}", headers=token) as file:
            assert (await file.json())["size"] == len(large)
        assert len(replicate_emulator.journal.entries(operation="files.create")) == 1


async def test_an_edit_of_one_picture_and_its_own_parameters_as_text(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (_, client):
        answer = await client.images.edit(
            image=("a.png", picture()), prompt="a hat", model="flux-dev", n=2, size="auto",
            extra_body={"prompt_strength": 0.5, "seed": 9, "go_fast": False},
        )  # fmt: skip
        assert len(answer.data) == 2
        (sent,) = inputs(replicate_emulator)
        assert sent.pop("image").startswith("data:image/png;base64,")
        assert sent == {
            "prompt": "a hat",
            "prompt_strength": 0.5,
            "seed": 9,
            "go_fast": False,
            "num_outputs": 2,
        }


async def test_an_edit_as_json_takes_addresses_and_data_uris(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    inside = "data:image/png;base64," + base64.b64encode(picture()).decode()
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        listed = [{"image_url": "https://example.com/a.png"}, {"image_url": inside}]
        assert (await post(gateway, EDITS, model="nano-banana", images=listed)).status == 200
        assert (await post(gateway, EDITS, model="flux-dev", image=inside)).status == 200
        first, second = inputs(replicate_emulator)
        assert first["image_input"] == ["https://example.com/a.png", inside]
        assert second["image"] == inside
        error(
            await post(gateway, EDITS, images=[{"file_id": "file-1"}]),
            400,
            "invalid_value",
            "images[0].file_id",
        )
        error(await post(gateway, EDITS, image="/etc/passwd"), 400, "invalid_value", "image")
        error(await post(gateway, EDITS, image="data:image/png;base64,!"), 400, "invalid_value", "image")
        error(await post(gateway, EDITS, image="data:text/plain;base64,aGk="), 400, "invalid_value", "image")
        error(await post(gateway, EDITS), 400, "invalid_value", "image")


@pytest.mark.parametrize(
    ("model", "clear", "rest"), [("flux-fill-pro", 255, 0), ("ideogram-v3-turbo", 0, 255)]
)
async def test_what_is_transparent_in_a_mask_is_painted_anew_in_the_words_of_each_model(
    tmp_path: Path, replicate_emulator: EmulatorThread, model: str, clear: int, rest: int
) -> None:
    mask = Image.new("RGBA", (32, 32), (9, 9, 9, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    out = io.BytesIO()
    mask.save(out, "PNG")
    async with asked(tmp_path, replicate_emulator, model) as (_, client):
        await client.images.edit(
            image=("a.png", picture()), mask=("m.png", out.getvalue()), prompt="a hat", model=model
        )
        (sent,) = inputs(replicate_emulator)
        told = base64.b64decode(sent["mask"].partition(",")[2])
        with Image.open(io.BytesIO(told)) as drawn:
            assert (drawn.mode, drawn.getpixel((0, 0)), drawn.getpixel((31, 0))) == ("L", clear, rest)


async def test_a_mask_in_black_and_white_goes_on_as_it_is(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    mask = picture(mode="L", color=255)
    async with asked(tmp_path, replicate_emulator, "flux-fill-pro") as (_, client):
        await client.images.edit(
            image=("a.png", picture()), mask=("m.png", mask), prompt="a hat", model="flux-fill-pro"
        )
        assert base64.b64decode(inputs(replicate_emulator)[0]["mask"].partition(",")[2]) == mask


async def test_edits_that_cannot_be_are_refused_and_nothing_is_bought(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    one = ("a.png", picture())
    async with asked(tmp_path, replicate_emulator) as (_, client):
        for param, fields in {
            "image": {"image": one, "model": "flux-schnell"},
            "mask": {"image": one, "mask": one, "model": "flux-dev"},
            "markup": {"image": one, "markup": one},
        }.items():
            with pytest.raises(openai.BadRequestError) as refused:
                await client.images.edit(prompt="a hat", **fields)
            assert (refused.value.param, refused.value.code) == (param, "invalid_value")
            assert refused.value.response.headers["x-imagen-cost-usd"] == "0"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.images.edit(prompt="a hat", image=[one, one], model="flux-dev")
        assert refused.value.param == "image"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.images.edit(prompt="a hat", image=("a.png", b"<html>no picture</html>"))
        assert refused.value.param == "image"
    assert replicate_emulator.purchases == 0
    assert not replicate_emulator.journal.entries(operation="files.create")


async def test_forms_are_bounded_and_read_to_the_letter(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):

        async def form(*parts: tuple[str, Any], headers: dict[str, str] = ADMIN) -> Answer:
            body = b"".join(
                b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
                % (
                    (name.encode(), b"", value.encode())
                    if isinstance(value, str)
                    else (name.encode(), b'; filename="a"', value)
                )
                for name, value in parts
            )
            sent = headers | {"Content-Type": "multipart/form-data; boundary=x"}
            data = io.BytesIO(body + b"--x--\r\n")
            async with gateway.session.post(gateway.url + EDITS, data=data, headers=sent) as answer:
                return Answer(answer.status, {}, await answer.read())

        error(await form(("image", picture())), 400, "invalid_value", "prompt")
        error(await form(("prompt", "x"), ("n", "two"), ("image", picture())), 400, "invalid_value", "n")
        error(
            await form(("prompt", "x"), ("prompt", "y"), ("image", picture())), 400, "invalid_value", "prompt"
        )
        error(
            await form(("prompt", "x"), ("image", "https://example.com/a.png"), ("mask", picture())),
            400,
            "invalid_value",
            "image",
        )
        error(await form(("prompt", "x"), ("other", picture())), 400, "invalid_value", "other")
        many = [("image[]", picture())] * 17
        error(await form(("prompt", "x"), *many), 400, "invalid_value", "image")
        told = error(
            await form(("prompt", "x"), ("image", b"\x89PNG\r\n\x1a\n" + bytes(17 << 20)), headers={}),
            400,
            "invalid_request",
        )
        assert "16 MiB" in told["message"]
        broken = ADMIN | {"Content-Type": "multipart/form-data; boundary=x"}
        told = error(
            await gateway.request("POST", EDITS, data=b"broken", headers=broken), 400, "invalid_request"
        )
        assert "the form cannot be read" in told["message"]
        whole = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n--x\r\n'
        whole += b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + picture()
        told = error(await gateway.request("POST", EDITS, data=whole, headers=broken), 400, "invalid_request")
        assert "ended before its last boundary" in told["message"]
        for charset in ("undefined", "punycode", "utf-16", "nothing"):
            odd = ADMIN | {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
            body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n--x--\r\n'
            refused = await gateway.request("POST", EDITS, data=body, headers=odd)
            error(refused, 400, "invalid_value", "Content-Type")
    assert replicate_emulator.purchases == 0


async def test_addresses_that_can_be_none_are_refused_before_anything_is_bought(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        for address in (
            "https://[x",
            "https:///x",
            "file:///etc/passwd",
            "data:,",
            "data:text/plain;base64,aGVsbG8=",
            "data:image/png;base64,=AAA",
            f"{gateway.url}/pictures/nothing.png",
        ):
            answer = await post(gateway, EDITS, model="flux-dev", image=address)
            error(answer, 400, "invalid_value", "image")
        named = await post(gateway, model="flux-dev", image="https://[x")
        error(named, 400, "invalid_value", "image")
    assert replicate_emulator.purchases == 0


async def test_a_picture_that_is_kept_here_is_edited_by_its_own_address(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        kept = (await post(gateway, store=True)).json()["data"][0]["url"]
        assert kept.startswith(f"{gateway.url}/pictures/")
        async with gateway.session.get(kept, headers=ADMIN) as shown:
            content = await shown.read()
        for path in (EDITS, PATH):  # a parameter of the model by its own name may be a picture, too
            answer = await post(gateway, path, model="flux-dev", image=kept)
            assert answer.status == 200, answer.body
            sent = inputs(replicate_emulator)[-1]["image"]
            if sent.startswith("data:"):
                assert base64.b64decode(sent.partition(",")[2]) == content
            else:
                assert replicate_emulator.journal.entries(operation="files.create")
                assert "/pictures/" not in sent


async def test_a_large_picture_in_json_holds_nobody_else_up(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    large = base64.b64encode(picture() + bytes(40 << 20)).decode()

    async def reading() -> None:
        given = await asyncio.to_thread(read_json, {"image": f"data:image/png;base64,{large}"})
        await asyncio.to_thread(told_content, given)
        assert given.pictures[0].size_bytes > 40 << 20

    assert await least(lambda: longest_pause(reading()), enough=0.25) < 0.25


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [(401, 502, "backend_unauthenticated"), (413, 400, "invalid_value")],
)
async def test_what_the_files_of_the_service_refuse_is_not_sent_again(
    tmp_path: Path, replicate_emulator: EmulatorThread, status: int, expected: int, code: str
) -> None:
    replicate_emulator.add_fault("status", operation="files.create", status=status, times=5)
    async with asked(tmp_path, replicate_emulator) as (_, client):
        with pytest.raises(openai.APIStatusError) as refused:
            await client.with_options(max_retries=2).images.edit(
                image=("large.png", picture(400, noise=True)), prompt="a hat", model="flux-dev"
            )
        assert (refused.value.status_code, refused.value.code) == (expected, code)
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(replicate_emulator.journal.entries(operation="files.create")) == 1
    assert replicate_emulator.purchases == 0


async def test_variations_are_refused(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        told = error(await post(gateway, "/v1/images/variations"), 400, "invalid_request")
        assert "/v1/images/edits" in told["message"]


# --- errors ----------------------------------------------------------------------------------------------


async def test_refusals_have_openais_shape_and_the_clients_own_errors(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        told = error(await post(gateway, model="nobody-knows"), 404, "model_not_found", "model")
        assert "GET /v1/models" in told["message"]
        error(await post(gateway, model="no such name"), 404, "model_not_found", "model")
        error(await post(gateway, model="somebody/nothing-at-all"), 404, "model_not_found", "model")
        error(await post(gateway, n=11), 400, "invalid_value", "n")
        error(await post(gateway, size="huge"), 400, "invalid_value", "size")
        error(await post(gateway, background="transparent"), 400, "invalid_value", "background")
        error(await post(gateway, nonsense=1), 400, "invalid_value", "nonsense")
        error(await post(gateway, seed="seven"), 400, "invalid_value", "seed")
        error(await post(gateway, model_name="flux-dev"), 400, "invalid_request")
        error(await post(gateway, max_cost=0.001), 400, "budget_exceeded", "max_cost")
        answer = await post(gateway, headers={"Authorization": "Bearer imk_nobody"})
        assert error(answer, 401, "invalid_api_key")["type"] == "invalid_request_error"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.images.generate(prompt="x", model="gpt-image-1")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="imk_nobody").images.generate(prompt="x")
    assert replicate_emulator.purchases == 0


async def test_refusals_on_paths_shared_with_replicate_say_why_to_openais_client_too(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        with pytest.raises(
            openai.NotFoundError, match=r"404 - no model is called 'nobody-knows'\. GET /v1/models"
        ):
            await client.models.retrieve("nobody-knows")
        with pytest.raises(openai.NotFoundError, match="404 - The requested resource could not be found"):
            await client.models.retrieve("nobody/knows")
        with pytest.raises(openai.AuthenticationError, match="401 - Invalid API key"):
            await client.with_options(api_key="imk_nobody").models.list()
        with pytest.raises(openai.NotFoundError, match="404 - POST /v1/chat/completions was not found"):
            await client.chat.completions.create(model="x", messages=[])
        exact = ADMIN | {"X-Imagen-Exact": "1"}
        told = await gateway.request("GET", "/v1/models/nobody/knows", headers=exact)
        assert set(told.json()) == {"detail", "status"}


async def test_a_key_is_good_for_its_models_and_its_paths(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, _):

        async def key(name: str, **scope: Any) -> dict[str, str]:
            made = await gateway.request("POST", "/keys", json={"name": name} | scope, headers=ADMIN)
            return {"Authorization": f"Bearer {made.json()['key']}"}

        narrow = await key("narrow", models=["black-forest-labs/flux-schnell"], routes=["/v1"])
        assert (await post(gateway, headers=narrow)).status == 200
        assert (await post(gateway, "/images/generations", headers=narrow)).status == 200
        error(await post(gateway, headers=narrow, model="flux-dev"), 403, "permission_denied")
        error(await post(gateway, headers=await key("other", routes=["/generate"])), 403, "permission_denied")


async def test_no_money_is_an_error_that_the_client_knows_and_does_not_repeat(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        made = await gateway.request(
            "PUT", "/budgets/small", json={"usd": 0.004, "per": "day", "all": True}, headers=ADMIN
        )
        assert made.status == 200, made.body
        await client.images.generate(prompt="x", model="flux-schnell")
        with pytest.raises(openai.RateLimitError) as refused:
            await client.with_options(max_retries=3).images.generate(prompt="x", model="flux-schnell")
        assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert refused.value.response.headers["x-imagen-cost-usd"] == "0"
        assert gateway.answered("POST", 429) == 1


async def test_the_models_own_reason_is_told_and_refused_content_is_the_callers(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        replicate_emulator.add_fault("fail", error="the prompt is too long", times=1)
        answer = await post(gateway)
        told = error(answer, 502, "prediction_failed")
        assert (told["type"], told["imagen"]["charged"]) == ("server_error", False)
        assert told["message"] == "the prompt is too long"
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["x-imagen-cost-usd"] == "0"
        assert answer.headers["x-imagen-prediction-id"] == told["imagen"]["prediction_id"]
        replicate_emulator.add_fault("fail", preset="nsfw", times=1)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.images.generate(prompt="x", model="flux-schnell")
        assert refused.value.code == "moderation_blocked"
        assert "NSFW" in refused.value.message


async def test_of_several_predictions_those_that_worked_are_answered(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (_, client):
        replicate_emulator.add_fault("fail", error="no luck", times=1)
        answer = await client.images.generate(prompt="x", model="flux-1.1-pro", n=3)
        assert len(answer.data) == 2
        (failure,) = answer.imagen["failures"]
        assert (failure["message"], failure["code"]) == ("no luck", "prediction_failed")
        assert answer.imagen["missing"] == 1
        assert answer.imagen["cost_usd"] == pytest.approx(0.08)
        replicate_emulator.add_fault("fail", error="no luck", times=3)
        with pytest.raises(openai.InternalServerError, match="no luck"):
            await client.images.generate(prompt="x", model="flux-1.1-pro", n=3)


async def test_a_picture_that_cannot_be_fetched_is_told_by_its_address_and_not_bought_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (_, client):
        replicate_emulator.add_fault("not_a_picture", operation="delivery", times=1)
        assert (await client.images.generate(prompt="x", response_format="b64_json")).data[0].b64_json
        replicate_emulator.add_fault("not_a_picture", operation="delivery", times=2)
        with pytest.raises(openai.InternalServerError) as lost:
            await client.with_options(max_retries=2).images.generate(prompt="x", response_format="b64_json")
        assert lost.value.code == "output_defective"
        assert lost.value.response.headers["x-imagen-cost-usd"] == "0.003"
        assert replicate_emulator.purchases == 2


async def test_who_gets_none_of_the_pictures_is_told_where_they_are_and_that_they_are_paid(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        replicate_emulator.add_fault("status", operation="delivery", status=503, times=200)
        with pytest.raises(openai.InternalServerError) as lost:
            await client.with_options(max_retries=2).images.generate(
                prompt="x", model="flux-schnell", n=2, response_format="b64_json"
            )
        streamed = await post(gateway, stream=True)
        plain, event = (
            lost.value.body,
            json.loads(streamed.body.decode().strip().rpartition("data: ")[2])["error"],
        )
        for told, count in ((plain, 2), (event, 1)):
            assert isinstance(told, dict)
            assert told["code"] == "delivery_error"
            assert "charged" in told["message"]
            ours = told["imagen"]
            assert ours["prediction_ids"] == [ours["prediction_id"]]
            assert len([url for each in ours["failures"] for url in each["urls"]]) == count
            assert ours["cost_usd"] > 0
        assert replicate_emulator.purchases == 2
        replicate_emulator.clear_faults()
        for each in plain["imagen"]["failures"]:  # type: ignore[index]
            async with gateway.session.get(each["urls"][0]) as picture_there:
                assert picture_there.status == 200


# --- once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["url", "b64_json"])
async def test_a_request_with_a_key_of_its_own_is_carried_out_once(
    tmp_path: Path, replicate_emulator: EmulatorThread, form: str
) -> None:
    once = {"Idempotency-Key": "order 4711"}
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        wish = {"model": "flux-1.1-pro", "n": 2, "size": "1792x1024", "response_format": form}
        first = await post(gateway, headers=ADMIN | once, **wish)
        again = await post(gateway, headers=ADMIN | once, **wish)
        assert (first.status, again.status) == (200, 200), first.body
        assert again.body == first.body
        assert len(first.json()["data"]) == 2
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["x-imagen-adapted"] == first.headers["x-imagen-adapted"]
        assert replicate_emulator.purchases == 2
        other = await post(gateway, headers=ADMIN | once, **wish | {"n": 1})
        error(other, 409, "idempotency_conflict")
        assert other.headers["x-should-retry"] == "false"
        edit = {
            "image": ("a.png", picture()),
            "prompt": "a hat",
            "extra_headers": {"Idempotency-Key": "an edit"},
        }
        one = await client.images.edit(**edit)
        assert (await client.images.edit(**edit)).imagen == one.imagen
        with pytest.raises(openai.ConflictError):
            await client.images.edit(**edit | {"image": ("a.png", picture(color=(1, 2, 3)))})
        assert replicate_emulator.purchases == 3


async def test_who_leaves_has_it_canceled(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("slow", run_seconds=60.0, times=2)
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        await leave(post(gateway), replicate_emulator, purchases=1)
        await until(lambda: canceled(replicate_emulator) == 1)
        # The client of OpenAI's may ask once more by itself: that is waited for.
        stream = await client.images.generate(prompt="x", model="flux-schnell", stream=True)
        await until(lambda: replicate_emulator.purchases == 2)
        await stream.close()
        await until(lambda: canceled(replicate_emulator) == 2)


@pytest.mark.parametrize("form", ["url", "b64_json", "store", "edit", "stream"])
async def test_what_the_client_asks_for_again_when_its_time_is_over_is_bought_once(
    tmp_path: Path, replicate_emulator: EmulatorThread, form: str
) -> None:
    # It ends well within the second try, which begins after a rest of 0.375 to 0.5 s.
    replicate_emulator.add_fault("slow", run_seconds=1.7, times=1)
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        hurried = client.with_options(timeout=1.0, max_retries=3)
        if form == "edit":
            answer = await hurried.images.edit(image=("a.png", picture()), prompt="a hat", model="flux-dev")
        elif form == "stream":
            # Until the first event no byte of the answer comes in time; what is under way in line is left, too.
            stream = await hurried.images.generate(prompt="x", model="flux-schnell", stream=True)
            with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
                _ = [event async for event in stream]
            await until(lambda: bool(gateway.context.left_runs))  # it was seen to go
            answer = await client.images.generate(prompt="x", model="flux-schnell", stream=True)
            (event,) = [event async for event in answer]
            assert event.b64_json
        else:
            wish: dict[str, Any] = (
                {"extra_body": {"store": True}} if form == "store" else {"response_format": form}
            )
            raw = await hurried.images.with_raw_response.generate(prompt="x", model="flux-schnell", **wish)
            assert raw.headers["idempotent-replayed"] == "true"
            answer = raw.parse()
        if form != "stream":
            assert answer.data[0].url or answer.data[0].b64_json
        assert (replicate_emulator.purchases, canceled(replicate_emulator)) == (1, 0)
        # Whoever has got it and wants one more gets one more.
        await client.images.generate(prompt="x", model="flux-schnell")
        assert replicate_emulator.purchases == 2


async def test_who_leaves_in_the_moment_of_its_end_has_not_got_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async def hangs_up() -> Message:
        return {"type": "http.disconnect"}

    async def ends_at_once() -> str:
        return "a picture"

    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        with pytest.raises(Gone):
            await gateway.context.stay(Request({"type": "http"}, hangs_up), ends_at_once(), goes_on=True)


async def test_what_was_made_while_its_caller_was_away_is_there_when_they_ask_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=0.4, times=1)
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        made = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
        shop = {"Authorization": f"Bearer {made.json()['key']}"}
        await leave(post(gateway, store=True), replicate_emulator, purchases=1)
        await until(lambda: replicate_emulator.state()["by_status"].get("succeeded"))
        other = await post(gateway, store=True, headers=shop)
        assert "idempotent-replayed" not in other.headers  # not theirs
        again = await post(gateway, store=True)
        assert again.headers["idempotent-replayed"] == "true"
        assert "/pictures/" in again.json()["data"][0]["url"]
        assert replicate_emulator.purchases == 2
        anew = await post(gateway, store=True)
        assert anew.json()["imagen"]["prediction_ids"] != again.json()["imagen"]["prediction_ids"]
        assert replicate_emulator.purchases == 3


async def test_what_nobody_asks_for_again_is_given_up(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=60.0, times=1)
    async with asked(tmp_path, replicate_emulator) as (_, client):
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.5, max_retries=1).images.generate(
                prompt="x", model="flux-schnell"
            )
        assert canceled(replicate_emulator) == 0
        await until(lambda: canceled(replicate_emulator) == 1)
        assert replicate_emulator.purchases == 1


def canceled(emulator: EmulatorThread) -> int:
    return len(emulator.journal.entries(operation="predictions.cancel"))


# --- for whom --------------------------------------------------------------------------------------------


async def test_the_person_for_whom_somebody_asks_is_noted_behind_their_own_name(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator, "gpt-image-1.5") as (gateway, _):
        made = await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)
        shop = {"Authorization": f"Bearer {made.json()['key']}"}
        await post(gateway, headers=shop, user="bob")
        await post(gateway, headers=shop, user="admin", safety_identifier="../ann\n")
        await post(gateway, headers=shop)
        await post(gateway, user="bob")
        usage = await gateway.request("GET", "/usage?by=caller", headers=ADMIN)
        assert {one["name"] for one in usage.json()["groups"]} == {
            "shop/bob",
            "shop/../ann",
            "shop",
            "admin/bob",
        }
        # Where money goes by that name, no other name is taken: it would be new money.
        capped = {"usd": 0.004, "per": "day", "caller": "shop"}
        assert (await gateway.request("PUT", "/budgets/shop", json=capped, headers=ADMIN)).status == 200
        answer = await post(gateway, headers=shop, user="somebody else")
        error(answer, 429, "insufficient_quota")
        # A model of OpenAI's is told of the person; a parameter of the model that the caller names himself wins.
        await post(gateway, model="gpt-image-1.5", user="bob")
        await post(gateway, model="gpt-image-1.5", user="bob", user_id="someone")
        assert [each["user_id"] for each in inputs(replicate_emulator)[-2:]] == ["bob", "someone"]


# --- streams ---------------------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_a_stream_ends_with_each_picture(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        events = [
            event
            async for event in await client.images.generate(
                prompt="x",
                model="flux-dev",
                stream=True,
                partial_images=2,
                n=2,
                size="1024x1024",
                quality="high",
            )
        ]
        assert [event.type for event in events] == ["image_generation.completed"] * 2
        for event in events:
            assert base64.b64decode(event.b64_json)[:4] == b"RIFF"
            assert (event.size, event.output_format, event.quality) == ("1024x1024", "webp", "high")
            assert event.usage.total_tokens == 0
            assert event.imagen["unmapped"] == ["partial_images"]
            assert event.imagen["cost_usd"] == 0.05
        edited = [
            event
            async for event in await client.images.edit(
                image=("a.png", picture()), prompt="a hat", model="flux-dev", stream=True
            )
        ]
        assert [event.type for event in edited] == ["image_edit.completed"]
        answer = await post(gateway, stream=True, partial_images=1)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-imagen-unmapped"] == "partial_images"
        lines = answer.body.decode().split("\n\n")
        assert lines[0].startswith(":")
        assert [
            line for line in lines if line and not line.startswith((":", "event: image_generation.completed"))
        ] == []


async def test_what_goes_wrong_in_a_stream_is_an_error_of_the_client(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with asked(tmp_path, replicate_emulator) as (gateway, client):
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(prompt="x", model="nobody-knows", stream=True)
        await gateway.request(
            "PUT", "/budgets/none", json={"usd": 0.001, "per": "day", "all": True}, headers=ADMIN
        )
        with pytest.raises(openai.RateLimitError):
            await client.images.generate(prompt="x", model="flux-schnell", stream=True)
        await gateway.request("DELETE", "/budgets/none", headers=ADMIN)
        replicate_emulator.add_fault("slow", run_seconds=0.3)
        replicate_emulator.add_fault("fail", error="no luck", times=1)
        with pytest.raises(openai.APIError, match="no luck") as failed:
            _ = [
                event
                async for event in await client.images.generate(prompt="x", model="flux-schnell", stream=True)
            ]
        assert failed.value.code == "prediction_failed"
        assert replicate_emulator.purchases == 1


async def test_a_stream_with_a_key_of_its_own_is_bought_once(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    once = ADMIN | {"Idempotency-Key": "a stream"}
    async with asked(tmp_path, replicate_emulator) as (gateway, _):
        first = await post(gateway, headers=once, stream=True)
        again = await post(gateway, headers=once, stream=True)
        shown = [json.loads(each.body.decode().rpartition("data: ")[2]) for each in (first, again)]
        assert shown[0] == shown[1]
        assert replicate_emulator.purchases == 1


# --- the end of a process --------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=5.0)
@pytest.mark.parametrize("form", ["url", "stream", "once"])
async def test_who_waits_when_the_gateway_stops_is_told_what_was_bought_and_does_not_buy_it_again(
    tmp_path: Path, replicate_emulator: EmulatorThread, form: str
) -> None:
    fields: dict[str, Any] = {"prompt": "a red fox", "model": "flux-schnell", "stream": form == "stream"}
    headers = ADMIN | ({"Idempotency-Key": "stopped"} if form == "once" else {})
    async with aiohttp.ClientSession() as outliving:

        async def ask(url: str) -> Answer:
            async with outliving.post(url + PATH, json=fields, headers=headers) as answer:
                found = {name.lower(): value for name, value in answer.headers.items()}
                return Answer(answer.status, found, await answer.read())

        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.3") as gateway:
            asking = asyncio.create_task(ask(gateway.url))
            await until(lambda: replicate_emulator.purchases == 1)
        async with asyncio.timeout(15):
            answer = await asking
    if form == "stream":
        last = answer.body.decode().strip().rpartition("data: ")[2]
        told = json.loads(last)["error"]
        assert told["imagen"]["cost_usd"] is None
    else:
        told = answer.json()["error"]
        assert answer.headers["x-imagen-cost-usd"] == "unknown"
        assert answer.headers["x-should-retry"] == ("true" if form == "once" else "false")
    if form != "once":
        assert told["code"] == "wait_timeout"
        assert told["imagen"]["prediction_id"].startswith("pred_")
    assert not replicate_emulator.journal.entries(operation="predictions.cancel")
    assert replicate_emulator.purchases == 1
