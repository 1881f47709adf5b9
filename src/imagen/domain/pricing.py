"""What a run costs: rules of price, facts about prices, and the two pure functions that apply a rule.

A rule says how Replicate counts, a fact says who told us so and when. Replicate has no price endpoint: prices
are what somebody read somewhere on some day, and they grow stale. What is unknown is None, never zero.

`quote_run` tells before what `cost` will find after: both apply the same rule, the one to what may run, the other to
what ran, so that a cost lies within its quote whenever the run kept within what was expected of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import msgspec

from imagen.domain.money import Usd
from imagen.domain.quote import Quote

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


class PerRun(msgspec.Struct, frozen=True, tag="per_run"):
    """So much a run, however many images come out of it."""

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


Price = PerImage | PerRun | PerMegapixel | PerSecond


class PriceFact(msgspec.Struct, frozen=True):
    """A price, who says so, and when it was last seen to be so.

    Args:
        rule: how the run is charged.
        source: where the price was read, in words that a person can follow.
        checked_on: the day on which the source said so; of an undated source the earliest it may be.
        note: what contradicts it, or what to mind.
        confidence: how well it is known.
        when: values of the input under which it holds: of each parameter the values that it may have; none means
            always.
    """

    rule: Price
    source: str
    checked_on: date
    note: str = ""
    confidence: Confidence = "reported"
    when: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()


class Span(msgspec.Struct, frozen=True):
    """Within which bounds an amount will lie.

    Args:
        low: it is at least that.
        likely: what it is as a rule; None when nobody knows.
        high: it is at most that; None when nobody knows.
    """

    low: Decimal | int
    likely: Decimal | int | None = None
    high: Decimal | int | None = None

    @classmethod
    def exactly(cls, amount: Decimal | int) -> Span:
        """One amount that is known."""
        return cls(amount, amount, amount)

    @property
    def exact(self) -> Decimal | int | None:
        """The amount, where it is known before."""
        return self.high if self.low == self.high else None

    def clamped(self, least: Decimal | int, most: Decimal | int) -> Span:
        """As it is once whatever lies outside of two bounds is moved to the nearer one."""
        return Span(
            min(max(self.low, least), most),
            None if self.likely is None else min(max(self.likely, least), most),
            most if self.high is None else min(max(self.high, least), most),
        )


ONE_MEGAPIXEL = Span(1, 1, None)
"""A picture of which nobody knows the size: one megapixel is the least that is charged and the most usual."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a run may make, take and last, told before it is bought.

    Args:
        images: how many images come out.
        output_megapixels: size of each of them.
        input_megapixels: size of every image that goes in; `()` when none does.
        predict_seconds: how long the model runs.
    """

    images: Span = Span.exactly(1)
    output_megapixels: Span = ONE_MEGAPIXEL
    input_megapixels: tuple[Span, ...] = ()
    predict_seconds: Span = Span(0)


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
        case PerRun(usd):
            return usd
        case PerMegapixel(output, input_, per_run):
            sizes_out = None if output_megapixels is None else [output_megapixels]
            made = _times(output * images, _whole_megapixels(sizes_out))
            given = _times(input_, _whole_megapixels(input_megapixels))
            return None if made is None or given is None else per_run + made + given
        case PerSecond(_, usd_per_second):
            return None if predict_seconds is None else usd_per_second.scaled(_amount(predict_seconds))


def quote_run(rule: Price, expected: Expected) -> Quote:
    """What a run will cost by `rule`: the least, the usual and the most of all that is expected of it.

    An end is None when the rule needs something of which nobody knows that end.

    Raises:
        ValueError: as `cost`.
    """
    return Quote(
        low=_cost_at(rule, expected, "low"),
        likely=_cost_at(rule, expected, "likely"),
        high=_cost_at(rule, expected, "high"),
    )


def _cost_at(rule: Price, expected: Expected, end: Literal["low", "likely", "high"]) -> Usd | None:
    images: Decimal | int | None = getattr(expected.images, end)
    if images is None:
        return rule.usd if isinstance(rule, PerRun) else None
    sizes: list[Decimal | int | None] = [getattr(span, end) for span in expected.input_megapixels]
    known = [size for size in sizes if size is not None]
    return cost(
        rule,
        images=int(images),
        output_megapixels=getattr(expected.output_megapixels, end),
        input_megapixels=known if len(known) == len(sizes) else None,
        predict_seconds=getattr(expected.predict_seconds, end),
    )


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
