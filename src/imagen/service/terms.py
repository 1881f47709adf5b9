"""How a create is sent: held open or not, and with an address where the service tells of the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imagen.domain.limits import Lane
from imagen.domain.prediction import Prediction
from imagen.limits.admission import Place
from imagen.ports import Backend, Notify, Plan
from imagen.service.buy import Buyer, Purchase
from imagen.service.prepare import Order
from imagen.service.watch import HeldOpen, Watcher
from imagen.service.webhooks import Webhooks

HOLD_SECONDS = 60.0
"""How long a create is held open: then one call makes a prediction, and its end is known at once."""
WATCHED_HOLD_SECONDS = 2.0
"""How long when somebody watches a slow model: its progress is only seen by looking."""
_QUICK_SECONDS = 5.0
_WORTH_HOLDING_SECONDS = 50.0
"""A batch does not hold open what would hardly end before the service lets go of it."""


class Terms:
    """Decides that for each create.

    Args:
        watcher: knows how long models run.
        webhooks: knows where the service can reach us.
        held_open: has room for so many at once.
    """

    def __init__(self, *, watcher: Watcher, webhooks: Webhooks, held_open: HeldOpen) -> None:
        self._watcher = watcher
        self._webhooks = webhooks
        self._held_open = held_open

    @contextmanager
    def agreed(self, order: Order, plan: Plan) -> Iterator[tuple[float, str | None]]:
        """For how many seconds this create may be held open, and the address that it carries, if any."""
        with self._held_open.hold(self._worth_holding(order, plan), lane=order.lane) as seconds:
            yield seconds, self._address(order.backend, plan, held_seconds=seconds)

    def wakes(self, address: str | None) -> bool:
        """Whether we can rely on being told at that address."""
        return address is not None and self._webhooks.arrive

    def _worth_holding(self, order: Order, plan: Plan) -> float:
        typical = self._typical(order.backend, plan)
        if order.lane is Lane.BATCH and typical is not None and typical > _WORTH_HOLDING_SECONDS:
            return 0.0
        slow = plan.typical_seconds is None or plan.typical_seconds > _QUICK_SECONDS
        hold = WATCHED_HOLD_SECONDS if order.watched and slow else HOLD_SECONDS
        return min(hold, plan.deadline_seconds)

    def _address(self, backend: Backend, plan: Plan, *, held_seconds: float) -> str | None:
        """None for one that is expected to end while its create is held open."""
        typical = self._typical(backend, plan)
        if typical is not None and typical <= held_seconds:
            return None
        return self._webhooks.address(backend.account)

    def _typical(self, backend: Backend, plan: Plan) -> float | None:
        return self._watcher.typical_seconds(backend, plan.model) or plan.typical_seconds


class Buying:
    """Buys one prediction, on the terms of that moment. Written out, as ten thousand of them are in memory at once."""

    __slots__ = ("_buyer", "_notify", "_order", "_place", "_plan", "_terms", "_wakes")

    def __init__(
        self, terms: Terms, buyer: Buyer, order: Order, plan: Plan, *, place: Place, notify: Notify
    ) -> None:
        self._terms = terms
        self._buyer = buyer
        self._order = order
        self._plan = plan
        self._place = place
        self._notify = notify
        self._wakes = False

    async def __call__(self, sent: Prediction) -> Prediction:
        """See `Buyer.buy`."""
        order, plan = self._order, self._plan
        with self._terms.agreed(order, plan) as (hold_seconds, webhook):
            self._wakes = self._terms.wakes(webhook)
            purchase = Purchase(
                hold_seconds=hold_seconds,
                webhook=webhook,
                secrets=plan.secrets,
                repeat_lost=order.request.repeat_lost,
                patience=order.patience,
            )
            return await self._buyer.buy(sent, purchase, place=self._place, notify=self._notify)

    def over(self) -> bool:
        """Nothing is to be bought any more; whether the service was told where it can wake us."""
        self._place.bought()
        return self._wakes
