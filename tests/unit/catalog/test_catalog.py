from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.catalog import Catalog, Model
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.pricing import PerImage, PerSecond
from imagen.errors import ConfigError, InvalidModelRef, NotFound

CATALOG = Catalog.load()
TODAY = date(2026, 11, 22)


def model(name: str, *aliases: str) -> Model:
    return Model(ref=ModelRef.parse(name), family="test", description="", aliases=aliases)


# --- finding ---


@pytest.mark.parametrize(
    "text",
    [
        "black-forest-labs/flux-dev",
        "Black-Forest-Labs/FLUX-dev",
        "black-forest-labs/flux-dev:6e4a938f85952bdabcc15aa329178c4d681c52bf25a0342403287dc26944661d",
        "flux-dev",
        "flux-dev:abc",
        "Flux-Dev",
        "  flux-dev ",
    ],
)
def test_found_by_any_of_its_names(text: str):
    found = CATALOG.find(text)
    assert found is not None
    assert found.name == "black-forest-labs/flux-dev"
    assert text in CATALOG


@pytest.mark.parametrize(
    "text", ["", ":", "flux", "someone/flux-dev", "deployments/black-forest-labs/flux-dev", "a b"]
)
def test_not_found(text: str):
    assert CATALOG.find(text) is None
    assert text not in CATALOG


@pytest.mark.parametrize("known", [pytest.param(known, id=known.name) for known in CATALOG])
def test_every_name_of_a_model_leads_to_it(known: Model):
    for name in (known.name, *known.aliases):
        assert CATALOG.find(name) is known
        assert CATALOG.find(name.upper()) is known
        assert CATALOG.resolve(name).base == known.name


@given(st.text())
def test_any_text_may_be_asked_for(text: str):
    CATALOG.find(text)
    CATALOG.suggest(text)
    try:
        CATALOG.resolve(text)
    except (InvalidModelRef, NotFound) as error:
        assert error.hint  # noqa: PT017 - either is right, but both say what to do


def test_models_come_sorted():
    names = [known.name for known in CATALOG]
    assert names == sorted(names)
    assert len(CATALOG) == len(names) > 50


def test_the_bare_name_belongs_to_a_model_only_while_no_other_has_it():
    one = Catalog([model("a/fox"), model("b/hen")])
    assert one.resolve("fox") == ModelRef("a", "fox")
    two = Catalog([model("a/fox"), model("b/fox")])
    assert two.find("fox") is None
    claimed = Catalog([model("a/fox"), model("b/hen", "fox")])
    assert claimed.find("fox") is claimed.find("b/hen")


@pytest.mark.parametrize(
    "overrides",
    [
        {"flux-2-pro": {"aliases": ["flux-DEV"]}},
        {"acme/fox": {}, "flux-2-pro": {"aliases": ["fox"]}},
        {"flux-dev": {"aliases": ["fox"]}, "flux-2-pro": {"aliases": ["FOX"]}},
    ],
)
def test_an_alias_takes_over_no_name_of_another_model(overrides: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"is a name of .* already") as caught:
        load(overrides)
    assert caught.value.setting in {"models.flux-2-pro.aliases", "models.flux-dev.aliases"}


def test_of_two_models_of_one_bare_name_one_may_be_given_it():
    mine = load({"acme/hen": {}, "emca/hen": {"aliases": ["hen"]}})
    assert mine.resolve("hen") == ModelRef("emca", "hen")


@pytest.mark.parametrize(
    ("facts", "setting", "words"),
    [
        ({"typical_seconds": -1}, "typical_seconds", "above 0"),
        ({"typical_seconds": float("nan")}, "typical_seconds", "above 0"),
        ({"deadline_seconds": 0}, "deadline_seconds", "above 0"),
        ({"price": True}, "price", "an amount in dollars such as 0.02"),
        ({"price": 1e30}, "price", "such as 0.05"),
        ({"price": 2e9}, "price", "$1000000000.00 is allowed"),
        ({"quality": 9}, "quality", "a whole number from 1 to 5"),
        ({"strengths": ["cheap"]}, "strengths", "'cheap' must be one of photo, typography, vector"),
        ({"prices": [{"per_image": 1, "when": {"sizee": 1}}]}, "prices", "no parameter 'sizee'"),
        ({"prices": [{"per_image": 1, "when": {"go_fast": "yes"}}]}, "prices", "true or false"),
        ({"prices": [{"per_image": 1, "when": {"output_format": "gif"}}]}, "prices", "one of"),
    ],
)
def test_what_is_refused_says_what_is_allowed(facts: dict[str, Any], setting: str, words: str):
    with pytest.raises(ConfigError) as caught:
        load({"flux-dev": facts})
    assert caught.value.setting == f"models.flux-dev.{setting}"
    assert words in caught.value.detail
    assert "Expected" not in caught.value.detail
    assert "$." not in caught.value.detail


def test_one_name_for_two_models_is_refused():
    with pytest.raises(ConfigError, match="names both a/fox and b/hen"):
        Catalog([model("a/fox", "pet"), model("b/hen", "PET")])


# --- resolving ---


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("flux-schnell", "black-forest-labs/flux-schnell"),
        ("seeDream4", "bytedance/seedream-4"),
        ("flux-dev:abc", "black-forest-labs/flux-dev:abc"),
        ("sdxl:abc", "stability-ai/sdxl:abc"),
        ("someone/something", "someone/something"),
        ("someone/something:v1", "someone/something:v1"),
        ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-schnell"),
        ("black-forest-labs/flux-dev:abc", "black-forest-labs/flux-dev:abc"),
        ("stability-ai/sdxl", "stability-ai/sdxl"),
        ("deployments/me/mine", "deployments/me/mine"),
    ],
)
def test_resolve(text: str, ref: str):
    assert str(CATALOG.resolve(text)) == ref


def test_the_alias_of_a_community_model_brings_its_version():
    version = CATALOG.resolve("sdxl").version
    assert version is not None
    assert len(version) == 64


@pytest.mark.parametrize(
    "text", ["", "  ", "a/b/c", "a/", "what is this", "../x", "flux-dev:", "flux-dev:a b", ":abc"]
)
def test_no_name_at_all(text: str):
    with pytest.raises(InvalidModelRef):
        CATALOG.resolve(text)


def test_an_unknown_name_brings_the_nearest_ones():
    with pytest.raises(NotFound, match="flux-schnel") as caught:
        CATALOG.resolve("flux-schnel")
    assert caught.value.hint is not None
    assert "Did you mean flux-schnell" in caught.value.hint


def test_an_unknown_name_that_nothing_resembles():
    with pytest.raises(NotFound, match="zzzzzzzz") as caught:
        CATALOG.resolve("zzzzzzzz")
    assert caught.value.hint is not None
    assert "owner/name" in caught.value.hint


def test_suggestions_are_near_and_differ():
    assert CATALOG.suggest("FLUX-SCHNEL")[0] == "flux-schnell"
    assert CATALOG.suggest("seedream4") == CATALOG.suggest("SeeDream4")
    assert CATALOG.suggest("qwen/qwen-imag", limit=1) == ("qwen-image",)
    assert len(set(CATALOG.suggest("flux-2-pr"))) == 3
    assert CATALOG.suggest("zzzzzzzz") == ()


# --- our user's own facts ---


def load(overrides: dict[str, Any]) -> Catalog:
    return Catalog.load(overrides, today=TODAY)


@pytest.mark.parametrize("price", ["0.02", "$0.02", 0.02])
def test_a_price_of_our_users_own(price: object):
    found = load({"flux-dev": {"price": price}}).find("flux-dev")
    assert found is not None
    assert len(found.prices) == 1
    assert found.price is not None
    assert found.price.rule == PerImage(Usd(20_000))
    assert (found.price.source, found.price.checked_on) == ("your configuration", TODAY)
    assert found.price.confidence == "configured"
    assert found.accepts("guidance")  # the rest stays as shipped


def test_prices_by_the_second_of_named_hardware():
    found = load({"sdxl": {"prices": [{"per_second": "gpu-l40s", "checked_on": date(2026, 11, 1)}]}}).find(
        "sdxl"
    )
    assert found is not None
    assert found.price is not None
    assert found.price.rule == PerSecond("gpu-l40s", Usd(975))
    assert found.price.checked_on == date(2026, 11, 1)


def test_a_price_may_be_unknown_or_free():
    mine = load({"flux-dev": {"prices": []}, "flux-schnell": {"price": 0}})
    dev, schnell = mine.find("flux-dev"), mine.find("flux-schnell")
    assert dev is not None
    assert dev.price is None
    assert schnell is not None
    assert schnell.price is not None
    assert schnell.price.rule == PerImage(Usd(0))


def test_other_facts_of_our_users_own():
    mine = load(
        {
            "qwen/qwen-image": {
                "deadline_seconds": 300,
                "typical_seconds": 7.5,
                "aliases": ["hanzi"],
                "parameters": {"seed": {"type": "integer", "maximum": 9}},
            }
        }
    )
    found = mine.find("hanzi")
    assert found is not None
    assert found is mine.find("qwen-image")
    assert (found.deadline_seconds, found.typical_seconds) == (300, 7.5)
    seed = found.parameter("seed")
    assert seed is not None
    assert seed.maximum == 9
    assert found.accepts("guidance")


def test_two_names_of_one_model_add_up():
    found = load({"flux-dev": {"price": "1"}, "black-forest-labs/flux-dev": {"deadline_seconds": 9}}).find(
        "flux-dev"
    )
    assert found is not None
    assert found.price is not None
    assert found.price.rule == PerImage(Usd.parse(1))
    assert found.deadline_seconds == 9


def test_a_model_of_our_users_own():
    mine = load({"me/mine": {"description": "Mine", "price": "0.5", "output": "uri"}})
    found = mine.find("mine")
    assert found is not None
    assert (found.name, found.family, found.parameters) == ("me/mine", "configuration", None)
    assert len(mine) == len(CATALOG) + 1
    assert mine.resolve("mine") == ModelRef("me", "mine")


def test_the_shipped_facts_stay():
    load({"flux-dev": {"price": "9", "aliases": ["x"]}})
    assert list(Catalog.load()) == list(CATALOG)


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        ({"flux-dev": {"pricee": "1"}}, "models.flux-dev.pricee"),
        ({"flux-dev": {"price": "cheap"}}, "models.flux-dev.price"),
        ({"flux-dev": {"price": "-1"}}, "models.flux-dev.price"),
        ({"flux-dev": {"per_second": "abacus"}}, "models.flux-dev.per_second"),
        ({"flux-dev": {"price": 1, "per_run": 1}}, "models.flux-dev.per_run"),
        ({"flux-dev": {"price": "0.0000001"}}, "models.flux-dev.price"),
        ({"flux-dev": {"quality": 0}}, "models.flux-dev.quality"),
        ({"flux-dev": {"strengths": ["cheap"]}}, "models.flux-dev.strengths"),
        ({"flux-dev": {"prices": [{}]}}, "models.flux-dev.prices"),
        (
            {"flux-dev": {"prices": [{"per_image": 1, "per_second": "cpu"}]}},
            "models.flux-dev.prices",
        ),
        ({"flux-dev": {"prices": [{"per_second": "abacus"}]}}, "models.flux-dev.prices"),
        (
            {"flux-dev": {"prices": [{"per_image": 1, "sources": ["hearsay"]}]}},
            "models.flux-dev.prices",
        ),
        (
            {"flux-dev": {"parameters": {"seed": {"type": "int"}}}},
            "models.flux-dev.parameters.seed",
        ),
        (
            {"flux-dev": {"parameters": {"seed": {"type": "integer", "enum": "nope"}}}},
            "models.flux-dev.parameters.seed",
        ),
        ({"flux-dev": {"aliases": ["seeDream4"]}}, "models.flux-dev.aliases"),
        ({"flux-dev": {"aliases": ["qwen/qwen-image"]}}, "models.flux-dev"),
        ({"flux-dev": {"aliases": ["dev:1"]}}, "models.flux-dev"),
        ({"flux-dev": {"aliases": "quick"}}, "models.flux-dev.aliases"),
        ({"flux-dev": {"parameters": 5}}, "models.flux-dev.parameters"),
        ({"flux-dev": "0.02"}, "models.flux-dev"),
        ({"not a name": {}}, "models.not a name"),
        ({"deployments/me/mine": {}}, "models.deployments/me/mine"),
    ],
)
def test_facts_that_make_no_sense_are_refused(overrides: dict[str, Any], setting: str):
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    assert caught.value.setting == setting
