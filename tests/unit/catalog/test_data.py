"""What every shipped fact must be like, and the facts that the product promises."""

from __future__ import annotations

import tomllib
from collections import Counter
from datetime import date
from importlib import resources

import jsonschema
import pytest

from imagen.catalog import Catalog, Model
from imagen.catalog.model import DEFAULT_DEADLINE_SECONDS
from imagen.domain.money import Usd
from imagen.domain.pricing import PerImage, PerMegapixel, PriceFact, cost

CATALOG = Catalog.load()
MODELS = [pytest.param(model, id=model.name) for model in CATALOG]
DATA = [
    file
    for file in resources.files("imagen.catalog").joinpath("data").iterdir()
    if file.name.endswith(".toml")
]


def known(name: str) -> Model:
    model = CATALOG.find(name)
    assert model is not None, name
    return model


def price_of(name: str, **input_: object) -> PriceFact:
    fact = known(name).price_for(input_)
    assert fact is not None, name
    return fact


@pytest.mark.parametrize("file", DATA, ids=lambda file: file.name)
def test_every_model_of_every_file_is_in_the_catalog(file: resources.abc.Traversable):
    written = tomllib.loads(file.read_text(encoding="utf-8")).get("models", {})
    family = file.name.removesuffix(".toml")
    assert {model.name for model in CATALOG if model.family == family} == set(written)


def test_lists_are_used_and_sources_are_named():
    for file in DATA:
        text = file.read_text(encoding="utf-8")
        for name in tomllib.loads(text).get("lists", {}):
            assert f'enum = "{name}"' in text, f"{file.name} never uses {name}"


@pytest.mark.parametrize("model", MODELS)
def test_a_model_says_what_it_is(model: Model):
    assert model.description
    assert "\n" not in model.description
    assert len(model.description) < 90
    assert model.deadline_seconds > 0
    assert model.typical_seconds is None or 0 < model.typical_seconds < model.deadline_seconds


@pytest.mark.parametrize("model", MODELS)
def test_every_price_has_a_source_and_a_date(model: Model):
    for fact in model.prices:
        assert fact.source
        assert date(2025, 1, 1) <= fact.checked_on <= date(2026, 11, 30)
        amount = cost(fact.rule, images=1, output_megapixels=1, input_megapixels=(), predict_seconds=1)
        assert amount is not None
        assert Usd(0) < amount < Usd.parse(1)


@pytest.mark.parametrize("model", MODELS)
def test_conditions_of_prices_name_parameters_and_their_values(model: Model):
    for fact in model.prices:
        for name, values in fact.when:
            parameter = model.parameter(name)
            assert parameter is not None
            assert values
            assert parameter.enum is None or set(values) <= set(parameter.enum)
    unconditional = [not fact.when for fact in model.prices]
    assert unconditional == sorted(unconditional), "a price without condition hides those after it"
    assert sum(unconditional) <= 1


@pytest.mark.parametrize("model", MODELS)
def test_parameters_make_sense(model: Model):
    for parameter in model.parameters or ():
        assert parameter.description, parameter.name
        assert (parameter.type == "array") == (parameter.items is not None), parameter.name
        assert not (parameter.required and parameter.default is not None), parameter.name
        assert all(model.accepts(name) for name in parameter.needs), parameter.name
        if parameter.minimum is not None and parameter.maximum is not None:
            assert parameter.minimum < parameter.maximum, parameter.name
        if parameter.enum is not None:
            assert len(set(parameter.enum)) == len(parameter.enum), parameter.name


@pytest.mark.parametrize("model", MODELS)
def test_the_schema_is_valid_and_takes_the_models_own_defaults(model: Model):
    schema = model.input_schema()
    if schema is None:
        assert model.parameters is None
        assert model.prices, "a model of which neither parameters nor price are known is of no use"
        return
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    defaults = {p.name: p.default for p in model.parameters or () if p.default is not None}
    pictures = {
        p.name: ["https://e.test/a.png"] if p.items else "https://e.test/a.png"
        for p in model.parameters or ()
        if p.required and p.format
    }
    validator.validate({**defaults, **pictures, "prompt": "a fox"})
    assert not validator.is_valid({**pictures, "prompt": "a fox", "no_such_parameter": 1})
    assert not validator.is_valid(pictures)


@pytest.mark.parametrize("model", MODELS)
def test_a_rank_of_quality_has_its_reasons(model: Model):
    """By the class of its price, moved by one at most, as the head of `data/flux.toml` says."""
    if model.quality is None:
        return
    assert model.price is not None
    assert model.parameters is not None
    dollars = cost(model.price.rule, images=1, output_megapixels=1, input_megapixels=(), predict_seconds=9)
    assert dollars is not None
    class_ = 1 + sum(dollars.micros >= bound for bound in (10_000, 30_000, 50_000, 80_001))
    assert abs(model.quality - class_) <= 1


def test_dearer_siblings_rank_no_lower():
    for family in (
        ("flux-schnell", "flux-dev", "flux-1.1-pro", "flux-1.1-pro-ultra"),
        ("flux-kontext-pro", "flux-kontext-max"),
        ("flux-2-klein-4b", "flux-2-dev", "flux-2-pro", "flux-2-max"),
        ("imagen-4-fast", "imagen-4", "imagen-4-ultra"),
        ("ideogram-v3-turbo", "ideogram-v3-balanced", "ideogram-v3-quality"),
        ("nano-banana", "nano-banana-pro"),
    ):
        ranks = [known(name).quality or 0 for name in family]
        assert ranks == sorted(set(ranks)), family


def test_no_name_twice():
    names = Counter(name.lower() for model in CATALOG for name in (model.name, *model.aliases))
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("flux-dev", "black-forest-labs/flux-dev"),
        ("flux-kontext-max", "black-forest-labs/flux-kontext-max"),
        ("qwen-image", "qwen/qwen-image"),
        ("imagen4Ultra", "google/imagen-4-ultra"),
        ("fluxProUltra", "black-forest-labs/flux-1.1-pro-ultra"),
        ("fluxSchnell", "black-forest-labs/flux-schnell"),
        ("seeDream4", "bytedance/seedream-4"),
    ],
)
def test_the_names_of_the_seeds(alias: str, name: str):
    assert known(alias).name == name


def test_deadlines():
    assert DEFAULT_DEADLINE_SECONDS == 120
    assert {model.name: model.deadline_seconds for model in CATALOG if model.deadline_seconds != 120} == {
        "black-forest-labs/flux-schnell": 60
    }


def test_seconds_are_told_only_where_they_are_known():
    assert {model.name: model.typical_seconds for model in CATALOG if model.typical_seconds} == {
        "black-forest-labs/flux-schnell": 2,
        "google/imagen-4-ultra": 45,
    }


@pytest.mark.parametrize(
    ("name", "dollars", "confidence"),
    [
        ("flux-schnell", "0.003", "published"),
        ("flux-dev", "0.025", "published"),
        ("flux-1.1-pro", "0.04", "published"),
        ("flux-1.1-pro-ultra", "0.06", "reported"),
        ("flux-pro", "0.055", "reported"),
        ("flux-kontext-pro", "0.04", "reported"),
        ("flux-kontext-max", "0.08", "reported"),
        ("flux-kontext-dev", "0.025", "reported"),
        ("flux-fill-pro", "0.05", "weak"),
        ("flux-canny-pro", "0.05", "weak"),
        ("flux-depth-pro", "0.05", "weak"),
        ("qwen-image", "0.025", "weak"),
        ("imagen-4-ultra", "0.06", "weak"),
        ("seedream-4", "0.03", "weak"),
        ("ideogram-v3-quality", "0.09", "published"),
        ("nano-banana", "0.039", "reported"),
        ("stable-diffusion-3.5-large", "0.065", "weak"),
    ],
)
def test_prices_an_image(name: str, dollars: str, confidence: str):
    fact = price_of(name)
    assert fact.rule == PerImage(Usd.parse(dollars))
    assert fact.confidence == confidence


def test_prices_a_megapixel():
    rule = price_of("flux-2-pro").rule
    assert rule == PerMegapixel(output=Usd(15_000), input=Usd(15_000), per_run=Usd(15_000))
    assert cost(rule, images=1, output_megapixels=1, input_megapixels=()) == Usd.parse("0.03")


@pytest.mark.parametrize(
    ("name", "input_", "dollars"),
    [
        ("nano-banana-pro", {}, "0.15"),
        ("nano-banana-pro", {"resolution": "1K"}, "0.15"),
        ("nano-banana-pro", {"resolution": "4K"}, "0.30"),
        ("seedream-5-pro", {}, "0.09"),
        ("seedream-5-pro", {"size": "1K"}, "0.045"),
        ("flux-2-dev", {}, "0.012"),
        ("flux-2-dev", {"go_fast": None}, "0.012"),
        ("flux-2-dev", {"go_fast": False}, "0.014"),
        ("gpt-image-2", {"quality": "high"}, "0.128"),
    ],
)
def test_prices_that_depend_on_the_input(name: str, input_: dict[str, object], dollars: str):
    rule = price_of(name, **input_).rule
    assert cost(rule, images=1, output_megapixels=1, input_megapixels=()) == Usd.parse(dollars)


@pytest.mark.parametrize(
    "name", ["gpt-image-2", "gpt-image-1.5", "flux-2-klein-9b", "photon-flash", "qwen-image-edit"]
)
def test_an_unknown_price_is_none(name: str):
    assert known(name).price is None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("imagen-4-ultra", "$0.08"),
        ("imagen-4-ultra", "$0.10"),
        ("seedream-4", "$0.025"),
        ("flux-1.1-pro-ultra", "$0.12"),
        ("flux-2-pro", "$0.05"),
        ("imagen-4", "$0.15"),
        ("imagen-3", "$0.03"),
        ("ideogram-v3-turbo", "$0.04"),
        ("nano-banana-2", "$0.039"),
        ("recraft-v3-svg", "$0.06"),
        ("stable-diffusion-3.5-large-turbo", "$0.035"),
    ],
)
def test_contradictions_are_told(name: str, other: str):
    assert other in price_of(name).note


def test_hardware_by_the_second():
    micros = {name: fact.rule.usd_per_second.micros for name, fact in CATALOG.hardware.items()}
    assert micros == {
        "cpu-small": 25,
        "cpu": 100,
        "gpu-t4": 225,
        "gpu-l40s": 975,
        "gpu-a100-large": 1400,
        "gpu-h100": 1525,
    }


def test_a_community_model_is_pinned_to_a_version():
    for model in CATALOG:
        assert (model.official is False) == (model.ref.version is not None), model.name
