"""Dollars in whole micro-dollars."""

from __future__ import annotations

import typing
from decimal import Decimal

import msgspec
import pytest

from imagen.domain.money import Usd, from_dollars, read_dollars, to_dollars
from imagen.errors import InvalidInput


@pytest.mark.parametrize(
    ("given", "micros"),
    [
        ("0.003", 3000),
        ("$5", 5_000_000),
        (" $0.04 ", 40_000),
        ("$ 1", 1_000_000),
        ("-0.5", -500_000),
        ("1e-6", 1),
        (".5", 500_000),
        (3, 3_000_000),
        (Decimal("0.025"), 25_000),
        ("0.0000005", 1),
        ("0.00000049999999999999999999999999999999999", 0),
        ("-0.0000005", -1),
        ("123456789012345.678901", 123_456_789_012_345_678_901),
        ("0", 0),
    ],
)
def test_reading_dollars_is_exact_and_rounds_half_up(given: str | int | Decimal, micros: int):
    assert Usd.parse(given) == Usd(micros)


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "$",
        "five",
        "1,5",
        "0x10",
        "nan",
        "NaN",
        "sNaN",
        "inf",
        "-Infinity",
        "1e400",
        "1e999999999",
        "-$5",
        "9" * 40,
    ],
)
def test_what_is_no_amount_is_refused_by_name(given: str):
    with pytest.raises(ValueError, match=r"is not an amount in dollars such as 0\.05") as told:
        Usd.parse(given)
    assert len(str(told.value)) < 150


@pytest.mark.parametrize("given", [Decimal("nan"), Decimal("inf"), Decimal("1e99999")])
def test_impossible_decimals_are_refused(given: Decimal):
    with pytest.raises(ValueError, match="is not an amount"):
        Usd.parse(given)


@pytest.mark.parametrize(
    ("micros", "shown"),
    [
        (0, "$0.00"),
        (3000, "$0.003"),
        (1, "$0.000001"),
        (40_000, "$0.04"),
        (500_000, "$0.50"),
        (5_000_000, "$5.00"),
        (30_000_000, "$30.00"),
        (100_000_000_000, "$100000.00"),
        (-1_500_000, "-$1.50"),
        (1_234_567, "$1.234567"),
    ],
)
def test_dollars_are_shown_with_two_places_or_as_many_as_it_takes(micros: int, shown: str):
    assert str(Usd(micros)) == shown


def test_sums_are_exact_where_floats_are_not():
    assert Usd.parse("0.1") + Usd.parse("0.2") == Usd.parse("0.3")
    assert Usd.total([Usd(1)] * 10**5) == Usd(10**5)
    assert Usd.total([]) == Usd(0)
    assert Usd(5) - Usd(7) == Usd(-2)
    assert Usd(5) * 3 == 3 * Usd(5) == Usd(15)
    assert Usd(3).scaled(Decimal("0.5")) == Usd(2)
    assert max(Usd(1), Usd(3), Usd(2)) == Usd(3)


def test_nothing_is_false_and_anything_is_true():
    assert not Usd(0)
    assert Usd(1)
    assert Usd(-1)


def test_an_amount_cannot_be_changed_and_counts_as_itself():
    with pytest.raises(AttributeError):
        Usd(1).micros = 2  # type: ignore[misc]
    assert len({Usd(1), Usd(1), Usd(2)}) == 2


def test_money_is_never_a_float():
    assert typing.get_type_hints(Usd)["micros"] is int
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"micros": 0.5}', type=Usd)
    assert isinstance(Usd(3000).to_decimal(), Decimal)
    assert str(Usd(3000).to_decimal()) == "0.003"
    assert msgspec.json.encode(Usd(3000).to_json()) == b"0.003"


def test_one_unknown_part_makes_the_sum_unknown():
    assert Usd.total_or_none([]) == Usd(0)
    assert Usd.total_or_none(iter([Usd(3), Usd(4)])) == Usd(7)
    assert Usd.total_or_none([Usd(3), None]) is None


@pytest.mark.parametrize("micros", [None, 0, 1, 3000, 40_000, 999_999_999_999_999])
def test_dollars_in_json_come_back_exactly(micros: int | None):
    amount = None if micros is None else Usd(micros)
    assert from_dollars(to_dollars(amount)) == amount


@pytest.mark.parametrize(("given", "told"), [("much", "not an amount"), (-0.5, "-$0.50 is below zero")])
def test_dollars_that_make_no_sense_name_their_field(given: str | float, told: str):
    with pytest.raises(InvalidInput) as refused:
        read_dollars(given, field="budget")
    (problem,) = refused.value.problems
    assert problem.field == "budget"
    assert told in problem.message
