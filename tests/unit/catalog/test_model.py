from __future__ import annotations

from datetime import date

import jsonschema
import pytest

from imagen.catalog import Catalog, ImageInput, Model, Parameter
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.pricing import PerImage, PriceFact

CATALOG = Catalog.load()


def known(name: str) -> Model:
    model = CATALOG.find(name)
    assert model is not None
    return model


UNKNOWN = Model(ref=ModelRef("someone", "something"), family="configuration", description="")


def test_schema_of_one_model():
    model = Model(
        ref=ModelRef("o", "n"),
        family="test",
        description="",
        parameters=(
            Parameter(name="prompt", type="string", description="Words", required=True, max_length=9),
            Parameter(name="steps", type="integer", description="Steps", minimum=0, maximum=4, default=0),
            Parameter(name="fast", type="boolean", description="Speed", default=False),
            Parameter(name="format", type="string", description="Format", enum=("jpg", "png")),
            Parameter(name="image", type="string", description="Picture", format="uri", needs=("mask",)),
            Parameter(name="mask", type="string", description="Mask", format="uri", deprecated=True),
            Parameter(
                name="more", type="array", description="More", items="string", format="uri", max_items=2
            ),
            Parameter(name="key", type="string", description="Key", secret=True),
        ),
    )
    assert model.input_schema() == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "o/n",
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "description": "Words", "maxLength": 9},
            "steps": {"type": "integer", "description": "Steps", "default": 0, "minimum": 0, "maximum": 4},
            "fast": {"type": "boolean", "description": "Speed", "default": False},
            "format": {"type": "string", "description": "Format", "enum": ["jpg", "png"]},
            "image": {"type": "string", "description": "Picture", "format": "uri"},
            "mask": {"type": "string", "description": "Mask", "format": "uri", "deprecated": True},
            "more": {
                "type": "array",
                "description": "More",
                "items": {"type": "string", "format": "uri"},
                "maxItems": 2,
            },
            "key": {"type": "string", "description": "Key", "writeOnly": True},
        },
        "required": ["prompt"],
        "additionalProperties": False,
        "dependentRequired": {"image": ["mask"]},
    }


def test_a_schema_belongs_to_who_asked_for_it():
    model = known("flux-schnell")
    schema = model.input_schema()
    assert schema is not None
    schema["properties"].clear()
    again = model.input_schema()
    assert again is not None
    assert "prompt" in again["properties"]


@pytest.mark.parametrize(
    ("name", "input_", "valid"),
    [
        ("flux-schnell", {"prompt": "x", "num_outputs": 4}, True),
        ("flux-schnell", {"prompt": "x", "num_outputs": 5}, False),
        ("flux-schnell", {"prompt": "x", "num_inference_steps": 5}, False),
        ("flux-schnell", {"num_outputs": 1}, False),
        ("flux-dev", {"prompt": "x", "guidance": 3.5, "aspect_ratio": "21:9"}, True),
        ("flux-dev", {"prompt": "x", "aspect_ratio": "7:5"}, False),
        ("flux-dev", {"prompt": "x", "negative_prompt": "y"}, False),
        ("flux-kontext-max", {"prompt": "x", "safety_tolerance": 0}, True),
        ("flux-kontext-max", {"prompt": "x", "safety_tolerance": 7}, False),
        ("qwen-image", {"prompt": "x", "negative_prompt": "", "image_size": "optimize_for_speed"}, True),
        ("ideogram-v2", {"prompt": "x", "image": "https://e.test/a.png"}, False),
        ("seedream-4", {"prompt": "x", "image_input": ["https://e.test/a.png"] * 10}, True),
        ("seedream-4", {"prompt": "x", "image_input": ["https://e.test/a.png"] * 11}, False),
    ],
)
def test_schemas_judge_inputs(name: str, input_: dict[str, object], valid: bool):
    schema = known(name).input_schema()
    assert schema is not None
    assert jsonschema.Draft202012Validator(schema).is_valid(input_) is valid


@pytest.mark.parametrize(
    ("name", "key", "is_list", "limit"),
    [
        ("flux-dev", "image", False, 1),
        ("flux-1.1-pro", "image_prompt", False, 1),
        ("flux-kontext-max", "input_image", False, 1),
        ("flux-2-pro", "input_images", True, 8),
        ("flux-2-klein-4b", "images", True, 5),
        ("seedream-4", "image_input", True, 10),
        ("nano-banana", "image_input", True, None),
        ("qwen-image-edit-plus", "image", True, None),
        ("photon-flash", "image_reference", False, 1),
        ("image-01", "subject_reference", False, 1),
    ],
)
def test_where_a_picture_goes(name: str, key: str, is_list: bool, limit: int | None):
    place = known(name).image_input
    assert place is not None
    assert (place.key, place.is_list, place.limit) == (key, is_list, limit)


def test_what_must_come_with_a_picture():
    assert known("ideogram-v2").image_input == ImageInput(
        "image", is_list=False, limit=1, required=False, needs=("mask",)
    )
    required = known("qwen-image-edit").image_input
    assert required is not None
    assert required.required


@pytest.mark.parametrize("name", ["flux-schnell", "imagen-4-ultra", "recraft-v3", "flux-pro"])
def test_no_place_for_a_picture(name: str):
    assert known(name).image_input is None


@pytest.mark.parametrize(
    ("name", "abilities"),
    [
        ("flux-schnell", {"seed", "several_outputs"}),
        ("flux-dev", {"seed", "several_outputs", "edit"}),
        ("flux-1.1-pro", {"seed"}),
        ("flux-kontext-max", {"seed", "edit", "typography"}),
        ("qwen-image", {"seed", "edit", "negative_prompt", "typography"}),
        ("imagen-4-ultra", set()),
        ("seedream-4", {"edit", "several_outputs"}),
        ("sdxl", {"seed", "edit", "mask", "negative_prompt", "several_outputs"}),
        ("gpt-image-1.5", {"edit", "several_outputs", "transparent_background"}),
        ("flux-pro", set()),
        ("recraft-v3", {"typography"}),
        ("recraft-v3-svg", {"vector"}),
        ("flux-1.1-pro-ultra", {"seed", "photo"}),
        ("ideogram-v3-quality", {"seed", "edit", "mask", "photo"}),
    ],
)
def test_abilities(name: str, abilities: set[str]):
    assert known(name).abilities == abilities


@pytest.mark.parametrize(
    ("name", "count_key", "steps_key"),
    [
        ("flux-schnell", "num_outputs", "num_inference_steps"),
        ("flux-2-flex", None, "steps"),
        ("image-01", "number_of_images", None),
        ("seedream-4", None, None),
    ],
)
def test_keys_that_differ_by_model(name: str, count_key: str | None, steps_key: str | None):
    assert (known(name).count_key, known(name).steps_key) == (count_key, steps_key)


def test_a_model_accepts_its_parameters():
    assert known("flux-dev").accepts("guidance") is True
    assert known("flux-dev").accepts("negative_prompt") is False
    assert known("flux-pro").accepts("guidance") is None


def test_a_model_of_which_nothing_is_known():
    assert UNKNOWN.input_schema() is None
    assert UNKNOWN.image_input is None
    assert UNKNOWN.count_key is None
    assert UNKNOWN.steps_key is None
    assert UNKNOWN.price is None
    assert UNKNOWN.price_for({"prompt": "x"}) is None
    assert UNKNOWN.abilities == frozenset()
    assert UNKNOWN.output == "unknown"
    assert UNKNOWN.official is None


def test_a_price_may_hold_for_several_values():
    model = Model(
        ref=ModelRef("o", "n"),
        family="test",
        description="",
        parameters=(
            Parameter(name="size", type="string", description="Size", default="1K"),
            Parameter(name="fast", type="boolean", description="Speed"),
        ),
        prices=tuple(
            PriceFact(rule=PerImage(Usd(price)), source="s", checked_on=date(2026, 1, 1), when=when)
            for price, when in (
                (1, (("size", ("1K", "2K")), ("fast", (True,)))),
                (2, (("size", ("1K", "2K")),)),
                (3, (("size", ("4K",)),)),
            )
        ),
    )
    prices = [
        model.price_for(values)
        for values in ({"fast": True}, {"size": "2K", "fast": False}, {}, {"size": "4K"}, {"size": "8K"})
    ]
    assert [fact and fact.rule for fact in prices] == [
        PerImage(Usd(1)),
        PerImage(Usd(2)),
        PerImage(Usd(2)),
        PerImage(Usd(3)),
        None,
    ]


def test_models_are_values():
    assert len({known("flux-dev"), known("black-forest-labs/flux-dev"), known("qwen-image")}) == 2
    with pytest.raises(AttributeError):
        known("flux-dev").description = "better"  # type: ignore[misc]
