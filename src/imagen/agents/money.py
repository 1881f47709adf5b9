"""What an agent may buy without asking, and what one connection of it may spend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imagen.domain.money import Usd
from imagen.domain.quote import Quote
from imagen.errors import BudgetExceeded


def needs_consent(quote: Quote, *, is_estimate: bool, above: Usd, consented: Usd | None) -> bool:
    """Whether something is bought only once it is confirmed.

    Args:
        quote: what it will cost.
        is_estimate: nobody stands by that, so that it is bought for no amount without asking.
        above: so much is bought without asking.
        consented: up to so much was confirmed; None: nothing was. What nobody knows the price of is confirmed by any amount.
    """
    if quote.high is None:
        return consented is None
    asked = is_estimate or quote.high > above
    return asked and (consented is None or quote.high > consented)


class Charge:
    """What one call costs; None as long as nobody knows."""

    def __init__(self) -> None:
        self.cost: Usd | None = None


class Purse:
    """What one connection has spent, and may spend. For one event loop.

    Args:
        budget: US dollars; None: there is no limit.
    """

    def __init__(self, budget: Usd | None = None) -> None:
        self._budget = budget
        self._spent = Usd(0)
        self._held = Usd(0)

    @property
    def left(self) -> Usd | None:
        """What may still be spent, what is under way counted at the most that it can cost; None where there is no limit."""
        return None if self._budget is None else max(Usd(0), self._budget - self._spent - self._held)

    @contextmanager
    def charge(self, quote: Quote) -> Iterator[Charge]:
        """Hold what something may cost while it is made, and count what it did cost.

        What was made and has no cost in the end (it broke off, or its end is not known) is counted at the most that it can cost.

        Raises:
            BudgetExceeded: there is no room for it, or nobody knows what it costs.
        """
        self._check(quote)
        most = quote.high or Usd(0)
        self._held += most
        charge = Charge()
        try:
            yield charge
        finally:
            self._held -= most
            self._spent += most if charge.cost is None else charge.cost

    def _check(self, quote: Quote) -> None:
        if self._budget is None:
            return
        hint = "Nothing was bought. Whoever runs `imagen mcp` can start it with a larger --budget."
        if quote.high is None:
            raise BudgetExceeded(
                f"nobody knows what this costs, and this connection may spend {self._budget} at most",
                hint=hint,
            )
        if self._spent + self._held + quote.high > self._budget:
            raise BudgetExceeded(
                f"this connection may spend {self._budget}: {self._spent + self._held} is spent or under way, "
                f"and this costs up to {quote.high}",
                hint=hint,
                quote_micros=quote.high.micros,
            )
