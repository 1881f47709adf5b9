"""Money: US dollars in whole micro-dollars (1 USD = 1,000,000 micros), never a float."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

import msgspec

MICROS = 1_000_000
_ONE_MICRO = Decimal("0.000001")


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
            amount = Decimal(text.strip().removeprefix("$") if isinstance(text, str) else text)
            exact = amount.quantize(_ONE_MICRO, ROUND_HALF_UP)
        except InvalidOperation:
            raise ValueError(f"{_shown(text)} is not an amount in dollars such as 0.05") from None
        if not exact.is_finite():
            raise ValueError(f"{_shown(text)} is not an amount in dollars such as 0.05")
        return cls(int(exact.scaleb(6)))

    @classmethod
    def total(cls, amounts: Iterable[Usd]) -> Usd:
        """Their sum, zero for none."""
        return cls(sum(amount.micros for amount in amounts))

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


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "…"
