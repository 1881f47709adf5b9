"""A request in everybody's words becomes the input of one model in its own words."""

from __future__ import annotations

from typing import Any

import pytest

from imagen.backends.replicate.translate import Defaults, Translation, translate
from imagen.catalog import Catalog
from imagen.domain.input_schema import check_input
from imagen.domain.prediction import HIDDEN
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput

CATALOG = Catalog.load()
SCHNELL = "black-forest-labs/flux-schnell"
DEV = "black-forest-labs/flux-dev"
PRO = "black-forest-labs/flux-1.1-pro"
KONTEXT = "black-forest-labs/flux-kontext-pro"
FLUX_2 = "black-forest-labs/flux-2-pro"
SDXL = "stability-ai/sdxl"
NANO = "google/nano-banana"
IMAGE = "https://a.b/fox.png"
WITH_SCHEMA = [model.name for model in CATALOG if model.input_schema() is not None]


def schema_of(name: str) -> dict[str, Any]:
    model = CATALOG.find(name)
    assert model is not None
    schema = model.input_schema()
    assert schema is not None
    return schema


def translated(
    name: str = SCHNELL,
    *,
    image: str | None = None,
    defaults: Defaults = Defaults(),  # noqa: B008 - frozen
    schema: Any = "of the catalog",
    **fields: Any,
) -> Translation:
    request = GenerationRequest(**{"prompt": "a fox", **fields})
    request.check()
    known = schema_of(name) if schema == "of the catalog" else schema
    return translate(request, model=name, schema=known, image=image, defaults=defaults)


def refused(name: str = SCHNELL, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as told:
        translated(name, **fields)
    assert name in str(told.value)
    return {problem.field: problem.message for problem in told.value.problems}


# --- what we add by ourselves ---


def test_flux_schnell_gets_what_seed_a_sends():
    (values,) = translated().inputs
    assert values == {"prompt": "a fox", "aspect_ratio": "1:1", "output_format": "png", "num_outputs": 1}


def test_the_settings_of_the_backend_are_added_where_the_caller_says_nothing():
    defaults = Defaults(steps=2, aspect_ratio="16:9")
    (values,) = translated(defaults=defaults).inputs
    assert (values["num_inference_steps"], values["aspect_ratio"]) == (2, "16:9")
    (values,) = translated(defaults=defaults, steps=4, width=64, height=64).inputs
    assert (values["num_inference_steps"], values["aspect_ratio"]) == (4, "1:1")


@pytest.mark.parametrize("name", WITH_SCHEMA)
def test_no_model_gets_by_default_what_it_does_not_take(name: str):
    schema = schema_of(name)
    needed = {field: "x" for field in schema["required"] if field != "prompt"}
    try:
        made = translated(name, defaults=Defaults(steps=4, aspect_ratio="9:21"), options=needed)
    except InvalidInput as refused:
        wrong = {problem.field.split("[")[0] for problem in refused.problems}
        made = None
    if made is None:  # for a field that it cannot do without, or because it takes no prompt; nothing of ours
        assert wrong <= {*schema["required"], "prompt"}
        return
    for values in made.inputs:
        assert check_input(schema, values) == []
        assert set(values) <= set(schema["properties"])


def test_a_default_that_a_model_does_not_allow_is_left_away():
    (values,) = translated(defaults=Defaults(steps=50, aspect_ratio="7:3")).inputs
    assert "num_inference_steps" not in values
    assert "aspect_ratio" not in values


@pytest.mark.parametrize(("name", "sent"), [(SCHNELL, "jpg"), (KONTEXT, "jpg"), (SDXL, None), (NANO, "jpg")])
def test_the_format_is_offered_where_one_can_be_chosen(name: str, sent: str | None):
    (values,) = translated(name, output_format="jpg").inputs
    assert values.get("output_format") == sent


# --- what the caller asks for ---


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        (SCHNELL, {"negative_prompt": "blur"}, "negative_prompt"),
        (PRO, {"steps": 4}, "steps"),
        (NANO, {"seed": 7}, "seed"),
        (SCHNELL, {"image": IMAGE}, "input_image"),
        (SDXL, {"aspect_ratio": "16:9"}, "aspect_ratio"),
        (SCHNELL, {"aspect_ratio": "7:3"}, "aspect_ratio"),
        (SCHNELL, {"steps": 5}, "num_inference_steps"),
        (SCHNELL, {"options": {"num_outputs": 5}}, "num_outputs"),
        (SCHNELL, {"count": 3, "options": {"num_outputs": 1}}, "num_outputs"),
        (SCHNELL, {"count": 2, "text_options": {"num_outputs": "4"}}, "num_outputs"),
        (SCHNELL, {"options": {"stepz": 4}}, "stepz"),
        (SCHNELL, {"text_options": {"go_fast": "maybe"}}, "go_fast"),
        (NANO, {"width": 16, "height": 100, "aspect_ratio": None, "options": {"x": 1}}, "x"),
    ],
)
def test_what_was_asked_for_and_does_not_exist_is_refused_by_name(
    name: str, fields: dict[str, Any], named: str
):
    assert set(refused(name, **fields)) == {named}


def test_everything_wrong_is_told_at_once_with_where_to_read():
    with pytest.raises(InvalidInput) as told:
        translated(negative_prompt="x", steps=9, options={"foo": 1})
    assert {problem.field for problem in told.value.problems} == {
        "negative_prompt",
        "num_inference_steps",
        "foo",
    }
    assert f"`imagen models {SCHNELL}`" in str(told.value)


@pytest.mark.parametrize(
    ("width", "height", "ratio"),
    [
        (1024, 1024, "1:1"),
        (1920, 1080, "16:9"),
        (1080, 1920, "9:16"),
        (2520, 1080, "21:9"),
        (1000, 999, "4:5"),
    ],
)
def test_a_size_becomes_the_ratio_where_the_model_wants_one(width: int, height: int, ratio: str):
    (values,) = translated(width=width, height=height, defaults=Defaults(aspect_ratio="4:5")).inputs
    assert values["aspect_ratio"] == ratio
    assert "width" not in values
    assert "height" not in values


def test_a_size_is_a_size_where_the_model_wants_one():
    (values,) = translated(SDXL, width=768, height=512).inputs
    assert (values["width"], values["height"]) == (768, 512)
    assert "aspect_ratio" not in values


@pytest.mark.parametrize(("name", "key"), [(SCHNELL, "num_inference_steps"), (SDXL, "num_inference_steps")])
def test_steps_go_under_the_models_own_name(name: str, key: str):
    (values,) = translated(name, steps=3).inputs
    assert values[key] == 3


def test_steps_may_be_called_steps():
    schema = {"properties": {"prompt": {"type": "string"}, "steps": {"type": "integer", "maximum": 9}}}
    assert translated(schema=schema, steps=3).inputs[0]["steps"] == 3


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (DEV, "image", IMAGE),
        (PRO, "image_prompt", IMAGE),
        (KONTEXT, "input_image", IMAGE),
        (FLUX_2, "input_images", [IMAGE]),
        (NANO, "image_input", [IMAGE]),
        (SDXL, "image", IMAGE),
    ],
)
def test_a_picture_goes_under_the_models_own_name_in_a_list_or_alone(name: str, key: str, value: Any):
    assert translated(name, image=IMAGE).inputs[0][key] == value


# --- several pictures ---


@pytest.mark.parametrize(
    ("name", "count", "images"),
    [
        (SCHNELL, 1, (1,)),
        (SCHNELL, 4, (4,)),
        (SCHNELL, 5, (4, 1)),
        (SCHNELL, 9, (4, 4, 1)),
        (SCHNELL, 100, (4,) * 25),
        (PRO, 1, (1,)),
        (PRO, 3, (1, 1, 1)),
    ],
)
def test_pictures_are_split_into_runs(name: str, count: int, images: tuple[int, ...]):
    made = translated(name, count=count)
    assert made.images == images
    assert sum(made.images) == count
    assert [values.get("num_outputs") for values in made.inputs] == (
        list(images) if name == SCHNELL else [None] * count
    )


def test_number_of_images_counts_too():
    schema = {"properties": {"prompt": {}, "number_of_images": {"type": "integer", "maximum": 3}}}
    made = translated(schema=schema, count=7)
    assert made.images == (3, 3, 1)
    assert [values["number_of_images"] for values in made.inputs] == [3, 3, 1]


def test_further_runs_take_the_following_seeds():
    made = translated(PRO, count=3, seed=41)
    assert [values["seed"] for values in made.inputs] == [41, 42, 43]
    assert [values.get("seed") for values in translated(PRO, count=2).inputs] == [None, None]
    made = translated(PRO, count=2, options={"seed": 5})
    assert [values["seed"] for values in made.inputs] == [5, 6]


def test_seeds_stay_within_what_the_model_takes():
    schema = {"properties": {"prompt": {}, "seed": {"type": "integer", "maximum": 10}}}
    assert [values["seed"] for values in translated(schema=schema, seed=9, count=2).inputs] == [9, 10]
    assert refused(schema=schema, seed=9, count=3) == {"seed": "with 3 runs the first seed must be at most 8"}
    assert "seed" in refused(PRO, seed=2**63 - 1, count=2)
    assert "seed" in refused(schema=None, options={"seed": 2**63})


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        (SCHNELL, {}, "seed"),
        (NANO, {}, None),
        (SCHNELL, {"options": {"seed": 7}}, None),
        (SCHNELL, {"seed": 7}, "seed"),
    ],
)
def test_a_seed_of_ours_goes_where_the_model_has_one_and_the_caller_gave_none_by_option(
    name: str, fields: dict[str, Any], field: str | None
):
    made = translated(name, **fields)
    assert made.seed_field == field
    assert 2**16 < made.seed_maximum < 2**31


# --- options ---


def test_options_win_over_everything_and_python_over_text():
    (values,) = translated(
        steps=2,
        seed=1,
        aspect_ratio="1:1",
        text_options={"num_inference_steps": "3", "seed": "2"},
        options={"seed": 3},
    ).inputs
    assert (values["num_inference_steps"], values["seed"]) == (3, 3)
    assert translated(options={"prompt": "other"}).inputs[0]["prompt"] == "other"
    assert translated(options={"output_format": "webp"}).inputs[0]["output_format"] == "webp"


def test_text_options_are_read_by_the_models_own_types():
    options = {"go_fast": "no", "output_quality": "90", "megapixels": "1", "num_outputs": "2"}
    (values,) = translated(text_options=options).inputs
    assert (values["go_fast"], values["output_quality"], values["megapixels"]) == (False, 90, "1")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("key", ["options", "text_options"])
def test_a_count_given_by_option_is_one_run_with_so_many(key: str, count: int):
    made = translated(count=count, **{key: {"num_outputs": "3" if key == "text_options" else 3}})
    assert made.images == (3,)
    assert [values["num_outputs"] for values in made.inputs] == [3]


# --- a model of which nobody knows what it takes ---


def test_without_a_schema_everything_is_sent_as_named():
    (values,) = translated(schema=None, steps=99, negative_prompt="x", seed=1, options={"foo": [1]}).inputs
    assert values == {
        "prompt": "a fox",
        "num_inference_steps": 99,
        "negative_prompt": "x",
        "seed": 1,
        "foo": [1],
    }


def test_without_a_schema_nothing_is_added():
    defaults = Defaults(steps=4, aspect_ratio="16:9")
    made = translated(schema=None, count=3, defaults=defaults)
    assert made.inputs == ({"prompt": "a fox"},) * 3
    assert (made.images, made.seed_field) == ((1, 1, 1), "seed")


def test_without_a_schema_a_size_or_a_ratio_is_sent_as_it_was_asked_for():
    assert translated(schema=None, width=768, height=512).inputs == (
        {"prompt": "a fox", "width": 768, "height": 512},
    )
    assert translated(schema=None, aspect_ratio="7:3").inputs == ({"prompt": "a fox", "aspect_ratio": "7:3"},)


def test_without_a_schema_every_name_of_the_count_is_known():
    assert translated(schema=None, options={"number_of_images": 2}).images == (2,)
    assert set(refused(schema=None, count=4, options={"number_of_images": 2})) == {"number_of_images"}


@pytest.mark.parametrize("given", ["four", None, [4], {}, -1, True, "0"])
def test_without_a_schema_a_strange_count_is_the_models_business(given: Any):
    made = translated(schema=None, options={"num_outputs": given})
    assert made.images == (1,)
    assert made.inputs[0]["num_outputs"] == given


# --- as it will be at the service ---


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ((1, 2), [1, 2]),
        ({"a": (1, {"b": ("x",)})}, {"a": [1, {"b": ["x"]}]}),
        ({1: "x"}, {"1": "x"}),
        (b"ab", "YWI="),
        (1.5, 1.5),
        (None, None),
    ],
)
def test_values_are_as_json_says_them(given: Any, sent: Any):
    value = translated(schema=None, options={"foo": given}).inputs[0]["foo"]
    assert (value, type(value)) == (sent, type(sent))


@pytest.mark.parametrize(
    "given", [object(), 1j, {(1, 2): "x"}, [translated]], ids=lambda given: type(given).__name__
)
def test_what_json_cannot_say_is_refused_by_name(given: Any):
    assert set(refused(schema=None, options={"foo": given})) == {"foo"}


def test_what_holds_itself_is_refused_by_name():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidInput, match="foo: it is nested too deeply"):
        translated(schema=None, options={"foo": (endless,)})


# --- secrets ---


@pytest.mark.parametrize(
    "marked", [{"writeOnly": True}, {"x-cog-secret": True}, {"format": "password"}], ids=str
)
def test_what_the_schema_calls_a_secret_is_hidden(marked: dict[str, Any]):
    pin = {"type": "string", **marked}
    schema = {"properties": {"prompt": {}, "pin": pin, "pan": {"type": "string"}}}
    made = translated(schema=schema, options={"pin": "1234", "pan": "5678"})
    assert made.inputs == ({"prompt": "a fox", "pin": HIDDEN, "pan": "5678"},)
    assert made.secrets == {"pin": "1234"}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["openai_api_key", "hf_token", "PASSWORD", "client_secret", "apikey"])
def test_what_is_called_like_a_secret_is_hidden_also_without_a_schema(name: str, known: bool):
    schema = {"properties": {"prompt": {}, name: {"type": "string"}}} if known else None
    made = translated(schema=schema, count=2, text_options={name: "sk-1"})
    assert made.inputs == ({"prompt": "a fox", name: HIDDEN},) * 2
    assert made.secrets == {name: "sk-1"}


def test_a_secret_is_checked_before_it_is_hidden():
    schema = {"properties": {"prompt": {}, "pin": {"type": "string", "maxLength": 4, "writeOnly": True}}}
    assert set(refused(schema=schema, options={"pin": "12345"})) == {"pin"}


def test_without_secrets_there_are_none():
    assert translated(options={"go_fast": True}).secrets == {}


# --- the model's own words ---


def test_a_verbatim_input_is_sent_as_it_is_but_for_a_seed():
    given = {"prompt": "a fox", "go_fast": False, "num_outputs": 2}
    made = translated(prompt="a fox", options=given, verbatim=True, plain=True)
    assert made.inputs == (given,)
    assert (made.images, made.seed_field) == ((2,), "seed")
    assert translated(prompt="", options=given | {"seed": 0}, verbatim=True).seed_field is None


def test_a_verbatim_input_needs_no_prompt_where_the_model_has_none():
    schema = {"type": "object", "properties": {"image": {"type": "string"}}, "required": ["image"]}
    made = translated(prompt="", options={"image": IMAGE}, verbatim=True, schema=schema)
    assert (made.inputs, made.seed_field) == (({"image": IMAGE},), None)
    assert translated(prompt="", options={"x": 1}, verbatim=True, schema=None).inputs == ({"x": 1},)


def test_what_is_wrong_with_a_verbatim_input_is_named_as_the_service_names_it():
    wrong = refused(prompt="", options={"num_outputs": 99, "colour": "red"}, verbatim=True)
    assert wrong.keys() == {"input.prompt", "input.num_outputs", "input.colour"}


def test_secrets_of_a_verbatim_input_are_hidden():
    schema = {"properties": {"api_key": {"type": "string", "format": "password"}}}
    made = translated(prompt="", options={"api_key": "sk-secret"}, verbatim=True, schema=schema)
    assert (made.inputs, made.secrets) == (({"api_key": HIDDEN},), {"api_key": "sk-secret"})
