"""The laws of money."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.money import Usd

amounts = st.integers(-(10**18), 10**18).map(Usd)


@given(amounts)
def test_what_is_shown_reads_back(amount: Usd):
    assert Usd.parse(str(amount).replace("-$", "-")) == amount
    assert Usd.parse(amount.to_decimal()) == amount


@given(st.decimals(min_value=-(10**12), max_value=10**12, allow_nan=False, allow_infinity=False))
def test_reading_is_off_by_half_a_micro_at_most(dollars: Decimal):
    off = abs(Fraction(Usd.parse(dollars).micros) - Fraction(dollars) * 1_000_000)
    assert off <= Fraction(1, 2)


@given(st.lists(amounts), st.lists(amounts))
def test_adding_up_does_not_depend_on_the_order(some: list[Usd], more: list[Usd]):
    assert Usd.total(some) + Usd.total(more) == Usd.total([*more, *some])


@given(amounts, amounts)
def test_subtracting_undoes_adding(one: Usd, other: Usd):
    assert one + other - other == one


@given(st.text())
def test_any_text_is_an_amount_or_refused(text: str):
    try:
        assert isinstance(Usd.parse(text).micros, int)
    except ValueError as refused:
        assert "is not an amount" in str(refused)  # noqa: PT017 - both are fine
