"""What a run costs: rules of price, facts about prices, and one pure function that applies a rule.

A rule says how Replicate counts, a fact says who told us so and when. Replicate has no price endpoint: prices
are what somebody read somewhere on some day, and they grow stale. What is unknown is None, never zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import msgspec

from imagen.domain.money import Usd

STALE_AFTER = timedelta(days=90)
"""A price that nobody has looked at for longer than this deserves a warning."""

PIXELS_PER_MEGAPIXEL = 1024 * 1024
"""FLUX sells 1024 x 1024 as its "1 MP"; with a million pixels the most usual picture would count as two."""

Confidence = Literal["configured", "published", "reported", "weak"]
"""How well a price is known.

`configured`: our user set it. `published`: it stood on Replicate's own price page. `reported`: others who pay
it wrote it down. `weak`: one unsure table, or tables that contradict each other.
"""

Scalar = str | int | float | bool
"""A simple value of a model's input."""


class PerImage(msgspec.Struct, frozen=True, tag="per_image"):
    """So much for every image that comes out."""

    usd: Usd


class PerMegapixel(msgspec.Struct, frozen=True, tag="per_megapixel"):
    """So much a megapixel, each image rounded up to whole ones, and perhaps so much a run.

    Args:
        output: for each megapixel of each image that comes out.
        input: for each megapixel of each image that goes in.
        per_run: once a run, whatever its size.
    """

    output: Usd
    input: Usd = Usd(0)
    per_run: Usd = Usd(0)


class PerSecond(msgspec.Struct, frozen=True, tag="per_second"):
    """So much a second of running on named hardware, e.g. `gpu-h100`. Waiting and setting up are free."""

    hardware: str
    usd_per_second: Usd


Price = PerImage | PerMegapixel | PerSecond


class PriceFact(msgspec.Struct, frozen=True):
    """A price, who says so, and when it was last seen to be so.

    Args:
        rule: how the run is charged.
        source: where the price was read, in words that a person can follow.
        checked_on: the day on which the source said so; of an undated source the earliest it may be.
        note: what contradicts it, or what to mind.
        confidence: how well it is known.
        when: values of the input under which it holds, as pairs of parameter and value; none means always.
    """

    rule: Price
    source: str
    checked_on: date
    note: str = ""
    confidence: Confidence = "reported"
    when: tuple[tuple[str, Scalar], ...] = ()


def cost(
    rule: Price,
    *,
    images: int,
    output_megapixels: Decimal | int | None = None,
    input_megapixels: Sequence[Decimal | int] | None = None,
    predict_seconds: Decimal | int | None = None,
) -> Usd | None:
    """What a run costs by `rule`, exact to the micro-dollar, or None when the rule needs something unknown.

    Args:
        rule: how the run is charged.
        images: how many images come out.
        output_megapixels: size of each of them.
        input_megapixels: size of every image that goes in; `()` when none does, None when nobody knows.
        predict_seconds: how long the model runs.

    Raises:
        ValueError: a count, size or duration is negative or not finite.
    """
    if images < 0:
        raise ValueError(f"a run cannot make {images} images")
    match rule:
        case PerImage(usd):
            return usd * images
        case PerMegapixel(output, input_, per_run):
            sizes_out = None if output_megapixels is None else [output_megapixels]
            made = _times(output * images, _whole_megapixels(sizes_out))
            given = _times(input_, _whole_megapixels(input_megapixels))
            return None if made is None or given is None else per_run + made + given
        case PerSecond(_, usd_per_second):
            return None if predict_seconds is None else usd_per_second.scaled(_amount(predict_seconds))


def is_stale(fact: PriceFact, today: date) -> bool:
    """Whether the price was last checked longer ago than `STALE_AFTER`."""
    return today - fact.checked_on > STALE_AFTER


def megapixels(width: int, height: int) -> Decimal:
    """The size of a picture in the megapixels that Replicate charges, not yet rounded up."""
    return Decimal(width * height) / PIXELS_PER_MEGAPIXEL


def _times(price: Usd, amount: int | None) -> Usd | None:
    """`price` for each of `amount`; what is free stays free, however much of it there is."""
    if not price:
        return price
    return None if amount is None else price * amount


def _whole_megapixels(sizes: Sequence[Decimal | int] | None) -> int | None:
    if sizes is None:
        return None
    return sum(int(_amount(size).to_integral_value(ROUND_CEILING)) for size in sizes)


def _amount(number: Decimal | int) -> Decimal:
    amount = Decimal(number)
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{number} is neither a size nor a duration")
    return amount
