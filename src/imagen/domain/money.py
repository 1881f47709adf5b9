"""Money: US dollars in whole micro-dollars (1 USD = 1,000,000 micros), never a float."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import overload

import msgspec

from imagen.errors import InvalidInput, Problem

MICROS = 1_000_000
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?")
_ONE_MICRO = Decimal("0.000001")


def read_decimal(text: str) -> Decimal:
    """A number of dollars, exactly as it was written: `5`, `$0.05`, `1e-06`.

    Raises:
        ValueError: not a decimal number in ASCII; `1_000` and the digits of other scripts are none.
    """
    digits = text.strip().removeprefix("$").lstrip()
    if _DECIMAL.fullmatch(digits) is None:
        raise ValueError(f"{_shown(text)} is not an amount in dollars such as 0.05")
    return Decimal(digits)


class Usd(msgspec.Struct, frozen=True, order=True):
    """An exact amount. `Usd(3000)` is $0.003."""

    micros: int = 0

    @classmethod
    def parse(cls, text: str | int | Decimal) -> Usd:
        """Read dollars: `"0.003"`, `"$5"`, `Decimal("0.04")`. Parts of a micro-dollar round half up.

        Raises:
            ValueError: not a finite number, or beyond anything that money can be.
        """
        try:
            amount = read_decimal(text) if isinstance(text, str) else Decimal(text)
            exact = amount.quantize(_ONE_MICRO, ROUND_HALF_UP)
        except (InvalidOperation, ValueError):
            raise ValueError(f"{_shown(text)} is not an amount in dollars such as 0.05") from None
        if not exact.is_finite():
            raise ValueError(f"{_shown(text)} is not an amount in dollars such as 0.05")
        return cls(int(exact.scaleb(6)))

    @classmethod
    def total(cls, amounts: Iterable[Usd]) -> Usd:
        """Their sum, zero for none."""
        return cls(sum(amount.micros for amount in amounts))

    @classmethod
    def total_or_none(cls, amounts: Iterable[Usd | None]) -> Usd | None:
        """Their sum, zero for no amounts at all; None where one of them is not known."""
        found = list(amounts)
        known = [amount for amount in found if amount is not None]
        return cls.total(known) if len(known) == len(found) else None

    def scaled(self, factor: Decimal) -> Usd:
        """This amount times `factor`, rounded half up to a whole micro-dollar."""
        return Usd(int((self.micros * factor).to_integral_value(ROUND_HALF_UP)))

    def to_decimal(self) -> Decimal:
        """Dollars, exact."""
        return Decimal(self.micros) / MICROS

    def to_json(self) -> float:
        """Dollars as the JSON number that faces show. Only for showing: never calculate with it."""
        return self.micros / MICROS

    def __add__(self, other: Usd) -> Usd:
        return Usd(self.micros + other.micros)

    def __sub__(self, other: Usd) -> Usd:
        return Usd(self.micros - other.micros)

    def __mul__(self, times: int) -> Usd:
        return Usd(self.micros * times)

    __rmul__ = __mul__

    def __bool__(self) -> bool:
        return self.micros != 0

    def __str__(self) -> str:
        sign, micros = ("-", -self.micros) if self.micros < 0 else ("", self.micros)
        text = f"{Decimal(micros) / MICROS:f}"
        whole, _, part = text.partition(".")
        return f"{sign}${whole}.{part.rstrip('0'):0<2}"


MOST_BUDGET = Usd.parse("1000000000")
"""No budget is larger: whoever means more has made a mistake."""


def to_dollars(amount: Usd | None) -> float | None:
    """Money as the JSON number that faces show; null where it is not known."""
    return None if amount is None else amount.to_json()


@overload
def from_dollars(told: float) -> Usd: ...
@overload
def from_dollars(told: None) -> None: ...
def from_dollars(told: float | None) -> Usd | None:
    """The way back: an amount that was told as a JSON number, exactly as it was."""
    return None if told is None else Usd.parse(str(told))


def read_dollars(told: str | float, *, field: str) -> Usd:
    """Dollars that somebody gave under the name of `field`.

    Raises:
        InvalidInput: not an amount, or below zero.
    """
    try:
        amount = Usd.parse(str(told))
    except ValueError as error:
        raise InvalidInput([Problem(field, str(error))]) from None
    if amount < Usd(0):
        raise InvalidInput([Problem(field, f"{amount} is below zero")])
    return amount


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "…"
