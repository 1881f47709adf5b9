"""A connection never spends more than it may, whatever its calls come to and however they overlap."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.agents.money import Charge, Purse, needs_consent
from imagen.domain.money import Usd
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.errors import BudgetExceeded

CENTS = st.integers(0, 300).map(lambda cents: Usd(cents * 10_000))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), CENTS),
        st.tuples(st.just("end"), st.none() | st.integers(0, 100)),
    ),
    max_size=40,
)


@given(CENTS, STEPS)
def test_it_is_never_overspent(budget: Usd, steps: list[tuple[str, Usd | int | None]]) -> None:
    purse, spent = Purse(budget), Usd(0)
    running: list[tuple[ExitStack, Charge, Usd]] = []
    for what, told in steps:
        if what == "begin":
            assert isinstance(told, Usd)
            stack = ExitStack()
            held = Usd.total(most for _, _, most in running)
            if spent + held + told > budget:
                with pytest.raises(BudgetExceeded) as raised:
                    stack.enter_context(purse.charge(Quote.exactly(told)))
                assert raised.value.quote_micros == told.micros
                continue
            charge = stack.enter_context(purse.charge(Quote.exactly(told)))
            running.append((stack, charge, told))
        elif running:
            stack, charge, most = running.pop(0)
            cost = None if told is None else Usd(most.micros * int(told) // 100)  # type: ignore[arg-type,call-overload]
            charge.cost = cost
            stack.close()
            spent = spent + (most if cost is None else cost)
        held = Usd.total(most for _, _, most in running)
        assert spent + held <= budget
        assert purse.left == budget - spent - held
    for stack, _, _ in running:
        stack.close()


def test_what_breaks_off_counts_at_the_most_that_it_can_cost() -> None:
    purse = Purse(Usd.parse("1"))
    with pytest.raises(RuntimeError), purse.charge(Quote.exactly(Usd.parse("0.4"))):
        raise RuntimeError
    assert purse.left == Usd.parse("0.6")


def test_what_nobody_knows_the_price_of_has_no_place_in_a_budget() -> None:
    with pytest.raises(BudgetExceeded), Purse(Usd.parse("1000")).charge(UNKNOWN_PRICE):
        pass
    free = Purse()
    with free.charge(UNKNOWN_PRICE):
        assert free.left is None


@given(CENTS, CENTS, st.none() | CENTS, st.booleans())
def test_consent(price: Usd, above: Usd, consented: Usd | None, is_estimate: bool) -> None:
    quote = Quote.exactly(price)
    asked = needs_consent(quote, is_estimate=is_estimate, above=above, consented=consented)
    assert asked == ((is_estimate or price > above) and (consented is None or price > consented))
    unknown = needs_consent(UNKNOWN_PRICE, is_estimate=is_estimate, above=above, consented=consented)
    assert unknown == (consented is None)
    nothing = Quote.exactly(Usd(0))
    assert not needs_consent(nothing, is_estimate=False, above=Usd(0), consented=None)
