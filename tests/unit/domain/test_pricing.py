from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.money import Usd
from imagen.domain.pricing import (
    STALE_AFTER,
    Expected,
    PerImage,
    PerMegapixel,
    PerRun,
    PerSecond,
    Price,
    PriceFact,
    Span,
    cost,
    is_stale,
    megapixels,
    quote_run,
)
from imagen.domain.quote import Quote

FLUX_2_PRO = PerMegapixel(output=Usd(15_000), input=Usd(15_000), per_run=Usd(15_000))
OUTPUT_ONLY = PerMegapixel(output=Usd(60_000))
L40S = PerSecond(hardware="gpu-l40s", usd_per_second=Usd(975))


@pytest.mark.parametrize(
    ("rule", "known", "dollars"),
    [
        (PerImage(Usd(3_000)), {"images": 1}, "0.003"),
        (PerImage(Usd(3_000)), {"images": 4}, "0.012"),
        (PerImage(Usd(3_000)), {"images": 0}, "0"),
        # one megapixel from text: the run and the picture
        (FLUX_2_PRO, {"images": 1, "output_megapixels": 1, "input_megapixels": ()}, "0.03"),
        # each picture rounds up by itself: 2.25 MP in counts as 3
        (FLUX_2_PRO, {"images": 1, "output_megapixels": 1, "input_megapixels": [Decimal("2.25")]}, "0.075"),
        (
            FLUX_2_PRO,
            {"images": 2, "output_megapixels": Decimal("1.01"), "input_megapixels": [Decimal("0.1")] * 2},
            "0.105",
        ),
        # what is free may be unknown
        (OUTPUT_ONLY, {"images": 1, "output_megapixels": Decimal("0.25")}, "0.06"),
        # nothing came out: only the run is left
        (FLUX_2_PRO, {"images": 0, "input_megapixels": ()}, "0.015"),
        # once a run, whatever comes out of it
        (PerRun(Usd(20_000)), {"images": 0}, "0.02"),
        (PerRun(Usd(20_000)), {"images": 9}, "0.02"),
        (L40S, {"images": 1, "predict_seconds": 2}, "0.00195"),
        (L40S, {"images": 0, "predict_seconds": Decimal("0.0005")}, "0"),
        (L40S, {"images": 1, "predict_seconds": Decimal("0.0006")}, "0.000001"),
    ],
)
def test_examples(rule: Price, known: dict[str, object], dollars: str):
    assert cost(rule, **known) == Usd.parse(dollars)


@pytest.mark.parametrize(
    ("rule", "known"),
    [
        (FLUX_2_PRO, {}),
        (FLUX_2_PRO, {"output_megapixels": 1}),
        (FLUX_2_PRO, {"input_megapixels": ()}),
        (OUTPUT_ONLY, {"input_megapixels": ()}),
        (L40S, {"output_megapixels": 1}),
    ],
)
def test_what_is_unknown_costs_none_and_not_nothing(rule: Price, known: dict[str, object]):
    assert cost(rule, images=1, **known) is None


@pytest.mark.parametrize(
    "known",
    [
        {"images": -1},
        {"images": 1, "output_megapixels": -1, "input_megapixels": ()},
        {"images": 1, "output_megapixels": Decimal("inf"), "input_megapixels": ()},
        {"images": 1, "output_megapixels": 1, "input_megapixels": [Decimal("nan")]},
    ],
)
def test_impossible_amounts_are_refused(known: dict[str, object]):
    with pytest.raises(ValueError, match=r"cannot make|neither a size"):
        cost(FLUX_2_PRO, **known)


sizes = st.decimals(min_value=Decimal("0.01"), max_value=64, places=4)
prices = st.integers(1, 1_000_000).map(Usd)
rules = st.one_of(
    st.builds(PerImage, prices),
    st.builds(PerRun, prices),
    st.builds(PerMegapixel, prices, prices, prices),
    st.builds(PerSecond, st.just("gpu-t4"), prices),
)


@given(sizes, prices)
def test_a_megapixel_begun_is_a_megapixel_paid(size: Decimal, price: Usd):
    paid = cost(PerMegapixel(output=price), images=1, output_megapixels=size)
    assert paid is not None
    whole, rest = divmod(paid.micros, price.micros)
    assert rest == 0
    assert size <= whole < size + 1


@given(rules, st.integers(0, 50), st.integers(0, 50), sizes, st.lists(sizes, max_size=4))
def test_more_images_never_cost_less(rule: Price, few: int, more: int, size: Decimal, inputs: list[Decimal]):
    few, more = sorted((few, more))
    bill = [
        cost(rule, images=images, output_megapixels=size, input_megapixels=inputs, predict_seconds=size)
        for images in (few, more)
    ]
    assert bill[0] is not None
    assert bill[1] is not None
    assert Usd(0) <= bill[0] <= bill[1]


@given(prices, sizes, st.lists(sizes, max_size=4), sizes)
def test_another_input_image_costs_exactly_its_own_price(
    price: Usd, size: Decimal, inputs: list[Decimal], one: Decimal
):
    rule = PerMegapixel(output=price, input=price)
    before = cost(rule, images=1, output_megapixels=size, input_megapixels=inputs)
    after = cost(rule, images=1, output_megapixels=size, input_megapixels=[*inputs, one])
    alone = cost(rule, images=0, input_megapixels=[one])
    assert before is not None
    assert after is not None
    assert after - before == alone


@pytest.mark.parametrize(
    ("width", "height", "charged"),
    [(1024, 1024, 1), (1440, 1440, 2), (1344, 768, 1), (1536, 1536, 3), (2048, 2048, 4), (1, 1, 1)],
)
def test_megapixels_of_usual_sizes(width: int, height: int, charged: int):
    paid = cost(PerMegapixel(output=Usd(1)), images=1, output_megapixels=megapixels(width, height))
    assert paid == Usd(charged)


def quoted(low: str | None, likely: str | None, high: str | None) -> Quote:
    ends = (None if text is None else Usd.parse(text) for text in (low, likely, high))
    return Quote(**dict(zip(("low", "likely", "high"), ends, strict=True)))


@pytest.mark.parametrize(
    ("rule", "expected", "quote"),
    [
        (PerImage(Usd(3_000)), Expected(), quoted("0.003", "0.003", "0.003")),
        (PerImage(Usd(3_000)), Expected(images=Span(1, 3, 4)), quoted("0.003", "0.009", "0.012")),
        (PerImage(Usd(3_000)), Expected(images=Span(1)), quoted("0.003", None, None)),
        (PerRun(Usd(3_000)), Expected(images=Span(1)), quoted("0.003", "0.003", "0.003")),
        # the largest that it may be is not known, and so the most that it may cost is not
        (FLUX_2_PRO, Expected(), quoted("0.03", "0.03", None)),
        (FLUX_2_PRO, Expected(output_megapixels=Span(1, 1, 4)), quoted("0.03", "0.03", "0.075")),
        (
            FLUX_2_PRO,
            Expected(
                output_megapixels=Span.exactly(1),
                input_megapixels=(Span.exactly(Decimal("2.25")), Span(1, 1, 2)),
            ),
            quoted("0.09", "0.09", "0.105"),
        ),
        (L40S, Expected(predict_seconds=Span(0, None, 120)), quoted("0", None, "0.117")),
        (L40S, Expected(predict_seconds=Span(0, Decimal("2.5"), 60)), quoted("0", "0.002438", "0.0585")),
        (L40S, Expected(), quoted("0", None, None)),
    ],
)
def test_quotes(rule: Price, expected: Expected, quote: Quote):
    assert quote_run(rule, expected) == quote


def test_a_span_that_is_clamped_lies_within_both_bounds():
    assert Span(1, 5, None).clamped(2, 4) == Span(2, 4, 4)
    assert Span(1, None, 3).clamped(2, 4) == Span(2, None, 3)
    assert Span.exactly(9).clamped(2, 4).exact == 4
    assert Span(1, 1, 2).exact is None
    assert Span(1, 1, None).exact is None


def test_prices_grow_stale_after_ninety_days():
    checked_on = date(2026, 10, 7)
    fact = PriceFact(rule=PerImage(Usd(1)), source="somewhere", checked_on=checked_on)
    assert timedelta(days=90) == STALE_AFTER
    assert not is_stale(fact, checked_on)
    assert not is_stale(fact, checked_on + STALE_AFTER)
    assert is_stale(fact, checked_on + STALE_AFTER + timedelta(days=1))


@given(rules)
def test_rules_survive_json(rule: Price):
    fact = PriceFact(
        rule=rule, source="somewhere", checked_on=date(2026, 1, 1), when=(("size", ("4K", "2K")),)
    )
    assert msgspec.json.decode(msgspec.json.encode(fact), type=PriceFact) == fact
