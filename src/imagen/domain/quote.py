"""A quote: what something will cost, told before it is bought."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from imagen.domain.money import Usd


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """The range in which a cost will lie. What is not known is None, never zero.

    Attributes:
        low: it costs at least that.
        likely: what it costs as a rule.
        high: it costs at most that; this is what is reserved against budgets.
    """

    low: Usd | None = None
    likely: Usd | None = None
    high: Usd | None = None

    @classmethod
    def exactly(cls, cost: Usd | None) -> Quote:
        """One amount that is known, or nothing at all."""
        return cls(low=cost, likely=cost, high=cost)

    @classmethod
    def total(cls, quotes: Iterable[Quote]) -> Quote:
        """Their sum, zero for none; an end of it is not known where one of them is not."""
        found = list(quotes)
        return cls(
            low=Usd.total_or_none(quote.low for quote in found),
            likely=Usd.total_or_none(quote.likely for quote in found),
            high=Usd.total_or_none(quote.high for quote in found),
        )

    @property
    def known(self) -> bool:
        """Whether it cannot cost more than some amount."""
        return self.high is not None

    def __str__(self) -> str:
        if self.high is None:
            return "unknown" if self.likely is None else f"about {self.likely}"
        if self.low == self.high:
            return str(self.high)
        return f"{self.low} to {self.high}, likely {self.likely}"


UNKNOWN_PRICE = Quote()
"""Of what nobody knows the price."""
