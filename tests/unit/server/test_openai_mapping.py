"""OpenAI's words in the words of each model."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen.backends.replicate.translate import Defaults, translate
from imagen.catalog import Catalog
from imagen.catalog.model import Model
from imagen.domain.aspect_ratio import ASPECT_RATIOS
from imagen.domain.input_schema import check_input
from imagen.domain.model_ref import ModelRef
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput
from imagen.server.openai.mapping import Words, in_words_of
from imagen.server.openai.wish import FORMATS, QUALITIES, ImagesWish, read_texts, read_wish

CATALOG = Catalog.load()
DESCRIBED = [model for model in CATALOG if model.parameters is not None]


def model_of(name: str) -> Model:
    found = CATALOG.find(name)
    assert found is not None
    return found


def said(
    name: str, *, pictures: int = 0, masked: bool = False, own: tuple[str, ...] = (), **fields: Any
) -> Words:
    model = model_of(name)
    return in_words_of(
        model.input_schema(),
        ImagesWish(prompt="a fox", **fields),
        model=model.name,
        said=own,
        pictures=pictures,
        masked=masked,
    )


def refused(name: str, **fields: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        said(name, **fields)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0].field


# --- size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "options"),
    [
        ("flux-schnell", "1024x1024", {"aspect_ratio": "1:1", "megapixels": "1"}),
        ("flux-schnell", "256x256", {"aspect_ratio": "1:1", "megapixels": "0.25"}),
        ("flux-schnell", "1792x1024", {"aspect_ratio": "16:9", "megapixels": "1"}),
        ("flux-schnell", "1024x1792", {"aspect_ratio": "9:16", "megapixels": "1"}),
        ("sdxl", "1536x1024", {"width": 1536, "height": 1024}),
        ("flux-2-pro", "1536x1024", {"aspect_ratio": "custom", "width": 1536, "height": 1024}),
        ("flux-1.1-pro", "1024x1024", {"aspect_ratio": "custom", "width": 1024, "height": 1024}),
        ("flux-1.1-pro", "1792x1024", {"aspect_ratio": "16:9"}),  # wider than it can be told
        ("seedream-4", "2048x1024", {"size": "custom", "width": 2048, "height": 1024}),
        ("seedream-4", "512x512", {"aspect_ratio": "1:1", "size": "1K"}),
        ("seedream-4.5", "1024x1024", {"aspect_ratio": "1:1", "size": "2K"}),  # width counts with a switch it lacks
        ("recraft-v3", "1536x1024", {"size": "1536x1024"}),
        ("ideogram-v3-turbo", "1024x1024", {"resolution": "1024x1024"}),
        ("ideogram-v3-turbo", "1792x1024", {"aspect_ratio": "16:9"}),
        ("gpt-image-1.5", "1536x1024", {"aspect_ratio": "3:2"}),
        ("gpt-image-2", "1024x1536", {"aspect_ratio": "2:3"}),
        ("nano-banana-pro", "4096x4096", {"aspect_ratio": "1:1", "resolution": "4K"}),
        ("flux-schnell", "21:9", {"aspect_ratio": "21:9"}),
        ("seedream-4", "4K", {"size": "4K"}),
        ("flux-schnell", "auto", {}),
    ],
)  # fmt: skip
def test_a_size_goes_where_the_model_says_it(model: str, size: str, options: dict[str, Any]) -> None:
    words = said(model, size=size)
    assert words.options == options
    assert words.unmapped == ()


def test_what_came_out_otherwise_is_told_and_what_came_out_as_said_is_not() -> None:
    assert said("flux-schnell", size="1792x1024").adapted == {"size": "aspect_ratio=16:9, megapixels=1"}
    lost = "megapixels=1, aspect_ratio=as the model has it"
    assert said("flux-schnell", size="2048x512").adapted == {"size": lost}
    # Who says the shape himself has not lost it.
    assert said("flux-schnell", size="2048x512", own=("aspect_ratio",)).adapted == {"size": "megapixels=1"}
    for model, size in (("sdxl", "1024x768"), ("flux-2-pro", "1024x768"), ("recraft-v3", "1024x1024")):
        assert said(model, size=size).adapted == {}


def test_a_shape_that_the_model_has_not_is_told_and_not_replaced() -> None:
    words = said("gpt-image-1.5", size="4096x256")
    assert (words.options, words.unmapped) == ({}, ("size",))
    assert said("qwen-image-edit", size="1024x1024", pictures=1).unmapped == ("size",)


@pytest.mark.parametrize("size", ["large", "1024", "0x5", "1024x99999", "-1x3", "1024 by 1024"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    assert refused("flux-schnell", size=size) == "size"


def test_an_edit_takes_the_shape_of_its_picture_where_nothing_else_is_said() -> None:
    assert said("flux-2-pro", pictures=1).options == {"aspect_ratio": "match_input_image"}
    assert said("flux-2-pro", pictures=1, size="auto").options == {"aspect_ratio": "match_input_image"}
    assert said("flux-2-pro").options == {}
    assert said("flux-dev", pictures=1, size="auto").options == {}


# --- the other words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fields", "options"),
    [
        ("gpt-image-1.5", {"quality": "hd"}, {"quality": "high"}),
        ("gpt-image-1.5", {"quality": "standard"}, {"quality": "medium"}),
        ("gpt-image-2", {"quality": "max"}, {"quality": "high"}),
        ("flux-dev", {"quality": "low"}, {"num_inference_steps": 14, "go_fast": True}),
        ("flux-dev", {"quality": "high"}, {"num_inference_steps": 42, "go_fast": False}),
        ("flux-dev", {"quality": "medium"}, {}),
        ("flux-schnell", {"quality": "high"}, {"go_fast": False}),  # its steps are at their most
        ("flux-fill-pro", {"quality": "high"}, {}),
        ("ideogram-character", {"quality": "low"}, {"rendering_speed": "Turbo"}),
        ("recraft-v3", {"style": "natural"}, {"style": "realistic_image"}),
        ("recraft-v3", {"style": "digital_illustration"}, {"style": "digital_illustration"}),
        ("flux-1.1-pro-ultra", {"style": "natural"}, {"raw": True}),
        ("ideogram-v3-turbo", {"style": "natural"}, {"style_type": "Realistic"}),
        ("flux-dev", {"output_format": "jpeg"}, {"output_format": "jpg"}),
        ("gpt-image-1.5", {"output_format": "jpeg"}, {"output_format": "jpeg"}),
        ("nano-banana-2-lite", {"output_format": "jpeg"}, {"output_format": "jpg"}),
        ("flux-dev", {"output_compression": 40}, {"output_quality": 40}),
        ("gpt-image-1.5", {"output_compression": 40}, {"output_compression": 40}),
        ("gpt-image-1.5", {"background": "transparent"}, {"background": "transparent"}),
        ("gpt-image-2", {"background": "transparent"}, {"background": "transparent"}),
        ("flux-dev", {"background": "auto"}, {}),
        ("gpt-image-1.5", {"moderation": "low"}, {"moderation": "low"}),
        ("imagen-4", {"moderation": "low"}, {"safety_filter_level": "block_only_high"}),
        ("gpt-image-1.5", {"input_fidelity": "high"}, {"input_fidelity": "high"}),
    ],
)
def test_words_become_those_of_the_model(model: str, fields: dict[str, Any], options: dict[str, Any]) -> None:
    words = said(model, **fields)
    assert words.options == options
    assert words.unmapped == ()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("imagen-4", {"quality": "high"}),
        ("flux-dev", {"style": "vivid"}),
        ("flux-kontext-pro", {"output_format": "webp"}),
        ("flux-dev", {"output_format": "svg"}),
        ("imagen-4", {"output_compression": 40}),
        ("flux-dev", {"background": "opaque"}),
        ("flux-dev", {"moderation": "low"}),  # no check is switched off for the sake of a word
        ("flux-dev", {"input_fidelity": "high"}),
        ("gpt-image-1.5", {"complexity": "high"}),
        ("gpt-image-1.5", {"frame_count": 4}),
        ("gpt-image-1.5", {"svg": {"model": "x"}}),
    ],
)
def test_what_the_model_has_no_word_for_is_told(model: str, fields: dict[str, Any]) -> None:
    words = said(model, **fields)
    assert words.options == {}
    assert words.unmapped == tuple(fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [("quality", "best"), ("style", "nice"), ("background", "red"), ("moderation", "off"), ("output_format", "bmp")],
)  # fmt: skip
def test_words_that_nobody_knows_are_refused(field: str, value: str) -> None:
    assert refused("flux-dev", **{field: value}) == field


def test_a_transparent_background_is_refused_where_there_is_none() -> None:
    assert refused("flux-dev", background="transparent") == "background"


def test_partial_pictures_and_addresses_in_a_stream_are_told_as_unmapped() -> None:
    words = said("flux-dev", stream=True, partial_images=2, response_format="url")
    assert words.unmapped == ("partial_images", "response_format")
    assert said("flux-dev", stream=True, partial_images=0).unmapped == ()


def test_what_the_caller_says_in_the_models_words_is_left_alone() -> None:
    words = said("flux-dev", size="1024x1792", quality="low", own=("aspect_ratio", "num_inference_steps"))
    assert words.options == {"megapixels": "1", "go_fast": True}
    assert said("imagen-3", size="1024x1024", own=("aspect_ratio",)).unmapped == ("size",)


def test_without_a_schema_nothing_is_mapped() -> None:
    wish = ImagesWish(prompt="a fox", size="1024x1024", quality="high")
    words = in_words_of(None, wish, model="some/model")
    assert (words.options, words.unmapped) == ({}, ("size", "quality"))
    with pytest.raises(InvalidInput, match="under which name"):
        in_words_of(None, wish, model="some/model", pictures=1)


# --- pictures --------------------------------------------------------------------------------------------


def test_pictures_go_to_the_parameter_that_takes_them() -> None:
    for name, key, listed in (
        ("flux-dev", "image", False),
        ("flux-kontext-pro", "input_image", False),
        ("nano-banana", "image_input", True),
        ("qwen-image-edit-plus", "image", True),
    ):
        words = said(name, pictures=1)
        assert (words.picture_key, words.picture_list) == (key, listed)
        assert words.origins[key] == "image"


def test_an_edit_with_a_model_that_takes_no_picture_or_not_so_many_is_refused() -> None:
    assert refused("flux-schnell", pictures=1) == "image"
    assert refused("flux-dev", pictures=2) == "image"
    assert refused("flux-2-pro", pictures=9) == "image"
    assert said("nano-banana", pictures=16).picture_list


def test_a_picture_that_only_guides_is_told() -> None:
    assert said("flux-1.1-pro", pictures=1).adapted["image"].startswith("image_prompt")


def test_a_mask_is_never_ignored_and_is_told_as_the_model_has_it() -> None:
    assert refused("flux-dev", pictures=1, masked=True) == "mask"
    assert not said("flux-fill-pro", pictures=1, masked=True).black_is_edited
    assert not said("sdxl", pictures=1, masked=True).black_is_edited
    assert said("ideogram-v3-quality", pictures=1, masked=True).black_is_edited


# --- laws ------------------------------------------------------------------------------------------------

SIDES = st.integers(16, 4096)
WISHES = st.fixed_dictionaries(
    {},
    optional={
        "size": st.builds("{}x{}".format, SIDES, SIDES) | st.sampled_from(["auto", "1024x1024", *ASPECT_RATIOS]),
        "quality": st.sampled_from(QUALITIES),
        "style": st.sampled_from(["vivid", "natural"]),
        "background": st.sampled_from(["opaque", "auto"]),
        "moderation": st.sampled_from(["low", "auto"]),
        "input_fidelity": st.sampled_from(["low", "high"]),
        "output_format": st.sampled_from(FORMATS),
        "output_compression": st.integers(0, 100),
    },
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(model=st.sampled_from(DESCRIBED), fields=WISHES, edits=st.booleans(), count=st.integers(1, 10))
def test_for_every_model_each_word_is_mapped_or_told_and_what_is_sent_is_allowed(
    model: Model, fields: dict[str, Any], edits: bool, count: int
) -> None:
    schema = model.input_schema()
    assert schema is not None
    pictures = 1 if edits and model.image_input is not None else 0
    words = in_words_of(schema, ImagesWish(prompt="a fox", **fields), model=model.name, pictures=pictures)
    # Nothing is sent that the model does not take.
    assert not check_input({**schema, "required": [], "dependentRequired": {}}, words.options)
    # Every word is told as unmapped, or it is in the options, or nothing had to be said for it.
    assert {*words.unmapped} <= {*fields}
    assert not {*words.unmapped} & {*words.adapted}
    assert not {*words.unmapped} & {*words.origins.values()}
    assert {*words.origins.values()} - {"image"} <= {*fields}
    assert {*words.adapted} - {"image"} <= {*words.origins.values()}
    # The same words again say the same.
    again = in_words_of(schema, ImagesWish(prompt="a fox", **fields), model=model.name, pictures=pictures)
    assert again == words
    # The whole of it passes the check before buying, and asks for as many pictures as were wished for.
    needs = {name for name in schema["required"] if name != "prompt"} - {words.picture_key}
    if needs or (pictures and model.image_input is not None and model.image_input.needs):
        return
    options = dict(words.options)
    if words.picture_key is not None:
        address = "https://example.com/a.png"
        options[words.picture_key] = [address] if words.picture_list else address
    request = GenerationRequest(
        prompt="a fox", model=ModelRef.parse(model.name), options=options, count=count, plain=True
    )
    made = translate(request, model=model.name, schema=schema, image=None, defaults=Defaults())
    assert sum(made.images) == count
    for sent in made.inputs:
        assert {name: sent[name] for name in words.options} == words.options


@settings(deadline=None, max_examples=300)
@given(model=st.sampled_from(DESCRIBED), width=SIDES, height=SIDES)
def test_the_shape_is_the_nearest_that_the_model_has_or_told_as_unmapped(
    model: Model, width: int, height: int
) -> None:
    schema = model.input_schema()
    words = in_words_of(schema, ImagesWish(prompt="a fox", size=f"{width}x{height}"), model=model.name)
    if "width" in words.options:
        assert (words.options["width"], words.options["height"]) == (width, height)
        return
    ratio = words.options.get("aspect_ratio")
    if ratio is None:
        return
    parameter = model.parameter("aspect_ratio")
    assert parameter is not None
    near = abs(math.log(Fraction(ratio.replace(":", "/")) / Fraction(width, height)))
    known = [text for text in parameter.enum or ASPECT_RATIOS if text[0].isdigit()]
    assert near == min(
        abs(math.log(Fraction(str(text).replace(":", "/")) / Fraction(width, height))) for text in known
    )
    assert near <= math.log(1.25)


# --- reading ---------------------------------------------------------------------------------------------


def test_json_and_forms_say_the_same() -> None:
    fields = {"prompt": "a fox", "n": 2, "size": "1024x1024", "stream": True, "partial_images": 1}
    wish, extras = read_wish({**fields, "seed": 7, "user": None})
    form, texts = read_texts(
        {name: str(value).lower() if value is True else str(value) for name, value in fields.items()} | {"seed": "7"}
    )  # fmt: skip
    assert wish == form
    assert (extras, texts) == ({"seed": 7}, {"seed": "7"})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "n": "2"}, "n"),
        ({"prompt": "x", "response_format": "png"}, "response_format"),
        ({"prompt": "x", "output_compression": 101}, "output_compression"),
        ({"prompt": "x", "stream": True, "partial_images": 4}, "partial_images"),
        ({"prompt": "x", "partial_images": 1}, "partial_images"),
        ({"prompt": "x", "user": "u" * 600}, "user"),
        ({"prompt": "x", "background": "transparent", "output_format": "jpeg"}, "output_format"),
    ],
)
def test_what_no_model_could_do_is_refused_by_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_wish(fields)
    assert [problem.field for problem in caught.value.problems] == [field]
