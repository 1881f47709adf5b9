"""A quote holds what the run then costs, for every model of the catalog and every input."""

from __future__ import annotations

import base64
import io
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fakes.make import make_prediction
from imagen.backends.registry import BackendContext
from imagen.backends.replicate.backend import ReplicateBackend
from imagen.catalog import Catalog, Model, Parameter
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction
from imagen.domain.pricing import (
    Expected,
    PerImage,
    PerMegapixel,
    PerRun,
    PerSecond,
    Price,
    Span,
    cost,
    quote_run,
)
from imagen.domain.quote import UNKNOWN_PRICE, Quote

OWN = {
    "someone/by-the-second": {"per_second": "gpu-a100-large", "typical_seconds": 9},
    "someone/by-the-run": {"per_run": "0.02"},
    "sdxl": {"per_second": "gpu-l40s"},
    "seedream-5-lite": {"per_run": "0.07"},
}
CATALOG = Catalog.load(OWN, today=date(2026, 11, 22))
SCHNELL, PRO, DEV = (f"black-forest-labs/{name}" for name in ("flux-schnell", "flux-2-pro", "flux-2-dev"))


def backend(catalog: Catalog = CATALOG) -> ReplicateBackend:
    """One that only tells prices."""
    values: dict[str, Any] = dict.fromkeys(BackendContext.__struct_fields__)
    values |= {
        "name": "x",
        "api_base": "https://api.replicate.com",
        "token_env": "T",
        "catalog": catalog,
        "cache_folder": Path("x"),
        "default_aspect_ratio": "1:1",
    }
    return ReplicateBackend(BackendContext(**values))


BACKEND = backend()


def data_uri(width: int, height: int, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


PICTURES = ["https://e.test/a.png", data_uri(64, 64), data_uri(1536, 1536, "JPEG"), "data:,x", "nonsense"]


def values_of(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Values that the parameter allows."""
    if parameter.enum is not None:
        return st.sampled_from(parameter.enum)
    if parameter.format == "uri":
        one = st.sampled_from(PICTURES)
        return st.lists(one, max_size=parameter.max_items or 5) if parameter.items else one
    match parameter.type:
        case "integer":
            return st.integers(int(parameter.minimum or 1), int(parameter.maximum or 4000))
        case "number":
            return st.floats(float(parameter.minimum or 0), float(parameter.maximum or 10))
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(st.text(max_size=3), max_size=3)
        case _:
            return st.text(max_size=5)


odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())


@st.composite
def intents(draw: st.DrawFn) -> Prediction:
    """A model of the catalog and an input: mostly one that it takes, now and then one that makes no sense."""
    model = draw(st.sampled_from(list(CATALOG)))
    known = {parameter.name: parameter for parameter in model.parameters or ()}
    names = draw(st.lists(st.sampled_from(sorted(known)), unique=True)) if known else []
    values = {
        name: draw(values_of(known[name]) | (odd if draw(st.booleans()) else st.nothing())) for name in names
    }
    deadline = draw(st.floats(1, 3600))
    return make_prediction(model=str(model.ref), input={"prompt": "x", **values}, deadline_seconds=deadline)


def most_images(intent: Prediction) -> int:
    """As many as the input asks for, read in another way than the code under test does."""
    model = CATALOG.find(intent.model)
    assert model is not None
    asked = {p.name: p.default for p in model.parameters or ()} | {
        k: v for k, v in intent.input.items() if v is not None
    }
    names = ["num_outputs", "number_of_images"]
    if asked.get("sequential_image_generation") == "auto":
        names = ["max_images", *names]
    counts = [asked[name] for name in names if isinstance(asked.get(name), int) and asked[name] > 0]
    return int(next((count for count in counts if count is not True), 1))


@given(intents(), st.data(), st.none() | st.floats(0, 1e6))
def test_what_a_run_costs_lies_within_its_quote(
    intent: Prediction, data: st.DataObject, typical: float | None
):
    quote = BACKEND.quote(intent, typical_seconds=typical)
    images = data.draw(st.none() | st.integers(1, most_images(intent)))
    outputs = data.draw(st.integers(0, most_images(intent)))
    seconds = data.draw(st.none() | st.floats(0, intent.deadline_seconds))
    ended = make_prediction(
        model=intent.model,
        input=intent.input,
        deadline_seconds=intent.deadline_seconds,
        image_count=images,
        output=("https://e.test/a.png",) * outputs,
        predict_seconds=seconds,
    )
    price = BACKEND.price(ended)
    if price is not None:
        assert quote.low is not None
        assert quote.low <= price
        assert quote.high is None or price <= quote.high
    known = [amount for amount in (quote.low, quote.likely, quote.high) if amount is not None]
    assert known == sorted(known)
    assert all(amount >= Usd(0) for amount in known)


@given(intents())
def test_where_a_price_is_known_before_the_quote_has_it(intent: Prediction):
    """The number of images and all sizes are as asked: the likely cost is the price."""
    price, quote = BACKEND.price(intent), BACKEND.quote(intent)
    if price is not None:
        assert quote.likely == quote.high == price


# --- the pure function ---

prices = st.integers(1, 1_000_000).map(Usd)
rules = st.one_of(
    st.builds(PerImage, prices),
    st.builds(PerRun, prices),
    st.builds(PerMegapixel, prices, prices, prices),
    st.builds(PerSecond, st.just("gpu-t4"), prices),
)
amounts = st.decimals(min_value=Decimal("0.001"), max_value=5000, places=3)


@st.composite
def spans(draw: st.DrawFn, of: st.SearchStrategy[Any]) -> Span:
    low, likely, high = sorted(draw(st.tuples(of, of, of)))
    return Span(low, draw(st.sampled_from([likely, None])), draw(st.sampled_from([high, None])))


@given(
    rules,
    spans(st.integers(0, 20)),
    spans(amounts),
    st.lists(spans(amounts), max_size=3),
    spans(amounts),
    st.data(),
)
def test_a_quote_holds_every_run_within_what_was_expected(
    rule: Price, images: Span, size: Span, given_: list[Span], seconds: Span, data: st.DataObject
):
    expected = Expected(
        images=images, output_megapixels=size, input_megapixels=tuple(given_), predict_seconds=seconds
    )
    quote = quote_run(rule, expected)

    def within(span: Span) -> Decimal:
        top = span.high if span.high is not None else span.low + 100
        return Decimal(data.draw(st.decimals(span.low, top, places=3)))

    paid = cost(
        rule,
        images=int(within(images)),
        output_megapixels=within(size),
        input_megapixels=[within(span) for span in given_],
        predict_seconds=within(seconds),
    )
    assert paid is not None
    assert quote.low is not None
    assert quote.low <= paid
    assert quote.high is None or paid <= quote.high


# --- examples, in whole micro-dollars ---


def quoted(
    model: str, *, deadline: float = 120, typical: float | None = None, **values: Any
) -> tuple[Any, ...]:
    intent = make_prediction(model=model, input={"prompt": "x", **values}, deadline_seconds=deadline)
    quote = BACKEND.quote(intent, typical_seconds=typical)
    return tuple(None if amount is None else str(amount) for amount in (quote.low, quote.likely, quote.high))


URL = "https://e.test/a.png"
MP_2_25 = data_uri(1536, 1536)


@pytest.mark.parametrize(
    ("model", "values", "low", "likely", "high"),
    [
        (SCHNELL, {}, "$0.003", "$0.003", "$0.003"),
        # the safety check may take some of them out, and only those that come out are charged
        (SCHNELL, {"num_outputs": 4}, "$0.003", "$0.012", "$0.012"),
        # a series makes as many as it likes, up to what it may
        ("bytedance/seedream-4", {"max_images": 5}, "$0.03", "$0.03", "$0.03"),
        (
            "bytedance/seedream-4",
            {"max_images": 5, "sequential_image_generation": "auto"},
            "$0.03",
            "$0.15",
            "$0.15",
        ),
        # by size and quality
        ("google/nano-banana-pro", {"resolution": "2K"}, "$0.15", "$0.15", "$0.15"),
        ("google/nano-banana-pro", {"resolution": "4K"}, "$0.30", "$0.30", "$0.30"),
        ("openai/gpt-image-2", {"quality": "high", "number_of_images": 2}, "$0.128", "$0.256", "$0.256"),
        ("openai/gpt-image-2", {}, None, None, None),
        # by the megapixel: the run, what comes out, what goes in
        (PRO, {}, "$0.03", "$0.03", "$0.03"),
        (PRO, {"resolution": "0.5 MP"}, "$0.03", "$0.03", "$0.03"),
        (PRO, {"resolution": "4 MP"}, "$0.075", "$0.075", "$0.075"),
        (PRO, {"aspect_ratio": "custom", "width": 2048, "height": 1024}, "$0.045", "$0.045", "$0.045"),
        # width and height count with the aspect ratio custom only
        (PRO, {"aspect_ratio": "16:9", "width": 2048, "height": 2048}, "$0.03", "$0.03", "$0.03"),
        (PRO, {"aspect_ratio": "custom"}, "$0.03", "$0.03", "$0.075"),
        # 2.25 megapixels of input are charged as 3
        (PRO, {"input_images": [MP_2_25]}, "$0.075", "$0.075", "$0.075"),
        (PRO, {"input_images": [MP_2_25, MP_2_25]}, "$0.12", "$0.12", "$0.12"),
        # nobody knows how large the picture behind an address is, and the model sets no bound
        (PRO, {"input_images": [URL]}, "$0.045", "$0.045", None),
        # a picture as large as the one that goes in, within 0.5 and 4 megapixels
        (PRO, {"input_images": [MP_2_25], "resolution": "match_input_image"}, "$0.105", "$0.105", "$0.105"),
        (PRO, {"input_images": [URL], "resolution": "match_input_image"}, "$0.045", "$0.045", None),
        # no word says how large it will be: at most 1440 by 1440
        (DEV, {}, "$0.012", "$0.012", "$0.024"),
        (DEV, {"go_fast": False}, "$0.014", "$0.014", "$0.028"),
        ("black-forest-labs/flux-2-klein-4b", {"output_megapixels": "4"}, "$0.004", "$0.004", "$0.004"),
        ("black-forest-labs/flux-2-klein-9b-base", {}, "$0.011", "$0.011", None),
        # by the run
        ("someone/by-the-run", {"num_outputs": 9}, "$0.02", "$0.02", "$0.02"),
        # nobody knows
        ("someone/hobby", {}, None, None, None),
        ("deployments/acme/flux-schnell", {}, None, None, None),
        ("black-forest-labs/flux-2-klein-9b", {}, None, None, None),
    ],
)
def test_quotes(model: str, values: dict[str, Any], low: str | None, likely: str | None, high: str | None):
    assert quoted(model, **values) == (low, likely, high)


@pytest.mark.parametrize(
    ("deadline", "typical", "expected"),
    [
        # 9 s and 120 s at $0.0014
        (120, None, ("$0.00", "$0.0126", "$0.168")),
        (120, 2.5, ("$0.00", "$0.0035", "$0.168")),
        # the deadline travels in whole seconds, five at least
        (60.2, None, ("$0.00", "$0.0126", "$0.0854")),
        (2, None, ("$0.00", "$0.007", "$0.007")),
        # it cannot take longer than it may
        (120, 500, ("$0.00", "$0.168", "$0.168")),
    ],
)
def test_quotes_by_the_second(deadline: float, typical: float | None, expected: tuple[str, ...]):
    assert quoted("someone/by-the-second", deadline=deadline, typical=typical) == expected


def test_by_the_second_of_a_model_whose_seconds_nobody_knows():
    assert quoted("stability-ai/sdxl", deadline=100) == ("$0.00", None, "$0.0975")


@pytest.mark.parametrize(
    ("model", "facts", "dollars"),
    [
        ("someone/by-the-second", {"predict_seconds": 12.345}, "0.017283"),
        ("someone/by-the-second", {}, None),
        ("someone/by-the-second", {"predict_seconds": float("inf")}, None),
        ("someone/by-the-run", {"image_count": 7}, "0.02"),
        (
            "bytedance/seedream-4",
            {"input": {"max_images": 5, "sequential_image_generation": "auto"}, "image_count": 2},
            "0.06",
        ),
        (PRO, {"input": {"input_images": [MP_2_25]}, "image_count": 1}, "0.075"),
        (DEV, {"image_count": 1}, None),
    ],
)
def test_what_ran_is_charged(model: str, facts: dict[str, Any], dollars: str | None):
    price = BACKEND.price(make_prediction(model=model, **{"input": {}, **facts}))
    assert price == (None if dollars is None else Usd.parse(dollars))


def test_a_quote_of_nothing_known_is_unknown_and_not_free():
    empty: Model = next(model for model in CATALOG if not model.prices)
    assert (
        BACKEND.quote(make_prediction(model=empty.name, input={})) == UNKNOWN_PRICE != Quote.exactly(Usd(0))
    )
