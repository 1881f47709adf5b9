"""Making an order of a request: what is bought, complete to the last parameter, before anything is sent."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from imagen.domain.caller import Caller
from imagen.domain.events import LeftOut
from imagen.domain.identifiers import new_id
from imagen.domain.limits import Lane, Patience
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, hash_prompt, request_key
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.errors import BudgetExceeded, InvalidRequest
from imagen.ports import Backend, Clock, Owners, Plan, PredictionStore
from imagen.service.deliver import Deliverer, Destination, to_stored


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was checked and can be carried out. Nothing of it is written down yet.

    Attributes:
        intents: the predictions that it takes, each with its plan.
        caller, lane, patience: whose turn it is, and how long it waits for it.
        watched: somebody looks at the progress, so a slow model is looked at rather than held open.
        accepted: its intents were promised to somebody under their ids, and may be under way or done already. When it
            is broken off it goes on upstream.
        paused: nothing of it is to be bought now: what is under way comes to its end, and the rest is bought later.
    """

    request: GenerationRequest
    backend: Backend
    intents: tuple[tuple[Prediction, Plan], ...]
    caller: Caller
    lane: Lane
    patience: Patience
    watched: bool
    accepted: bool = False
    paused: bool = False

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was offered or carried over and is not sent; the same for all of its predictions."""
        return self.intents[0][1].left_out

    @property
    def notes(self) -> Sequence[LeftOut]:
        """The same as it is told: what of it the preset offered, and what was carried over."""
        return left_out_of(self.request, self.left_out, model=self.intents[0][0].model)

    @property
    def quote(self) -> Quote:
        """What all of its predictions together would cost."""
        return Quote.total(intent.quote for intent, _ in self.intents)

    @property
    def images(self) -> int:
        """How many pictures are expected of all of its predictions together."""
        return sum(plan.expected_images for _, plan in self.intents)


class Preparation:
    """Chooses what a backend's plans leave open.

    Args:
        store: knows what is unfinished.
        deliverer: knows whether pictures could be put somewhere.
        owners: says who we are.
        clock: tells the time.
        hash_prompt: what the ledger will know of a prompt.
    """

    def __init__(
        self,
        *,
        store: PredictionStore,
        deliverer: Deliverer,
        owners: Owners,
        clock: Clock,
        hash_prompt: Callable[[str], str] = hash_prompt,
    ) -> None:
        self._hash_prompt = hash_prompt
        self._store = store
        self._deliverer = deliverer
        self._owners = owners
        self._clock = clock

    async def intend(
        self,
        backend: Backend,
        request: GenerationRequest,
        plans: Sequence[Plan],
        *,
        caller: Caller,
        destination: Destination | None,
    ) -> Sequence[Prediction]:
        """The intents: complete, seeds chosen, and sure to find room for their pictures, before anything is sent.

        Raises:
            InvalidInput, ConfigError: their pictures could not be put where they are to go.
        """
        total = sum(plan.expected_images for plan in plans)
        first, intents = 1, []
        for index, plan in enumerate(plans):
            place = (
                None
                if destination is None
                else msgspec.structs.replace(destination, first=first, total=total)
            )
            now = self._clock.now()
            values = dict(plan.input)
            if plan.seed_field is not None:
                values.setdefault(plan.seed_field, secrets.randbelow(plan.seed_maximum) + 1)
            seed = values.get("seed")
            intent = Prediction(
                id=new_id("pred", now),
                backend=backend.name,
                backend_type=backend.type,
                account=backend.account,
                model=plan.model,
                prompt=request.prompt,
                input=values,
                request_key=request_key(backend.account, plan.model, plan.identity, index=index),
                caller=caller.name,
                created_at=now,
                deadline_seconds=plan.deadline_seconds,
                seed=seed if isinstance(seed, int) else None,
                owner=self._owners.me,
                destination=None if place is None else to_stored(place),
                key=caller.key,
                tier=request.tier,
                parent=request.parent,
                preset=request.preset,
                draft=request.draft,
                wished=request.wished,
                prompt_hash=self._hash_prompt(request.prompt),
            )
            intent = msgspec.structs.replace(
                intent, quote=backend.quote(intent, typical_seconds=plan.typical_seconds)
            )
            if place is not None:
                await self._check_place(place, intent, plan, request)
            first += plan.expected_images
            intents.append(intent)
        return intents

    async def _check_place(
        self, place: Destination, intent: Prediction, plan: Plan, request: GenerationRequest
    ) -> None:
        """Refuse a place that cannot take the pictures, unless they may lie there already.

        That is so when a process died between putting them there and writing it down.
        """
        try:
            self._deliverer.check(place, intent, images=plan.expected_images)
        except InvalidRequest:
            if not (request.resume and await self._store.unfinished(request_key=intent.request_key)):
                raise


def left_out_of(request: GenerationRequest, names: Sequence[str], *, model: str) -> Sequence[LeftOut]:
    """What of a request is not sent, told by where it came from."""
    offered = tuple(name for name in names if name in request.offers)
    carried = tuple(name for name in names if name not in request.offers)
    told = ((offered, request.preset), (carried, None))
    return [LeftOut(model, fields, preset) for fields, preset in told if fields]


def check_cost(order: Order) -> None:
    """Refuse an order that could cost more than it may.

    Raises:
        BudgetExceeded: it would, or nobody knows what it costs.
    """
    check_most(order.quote, order.request.max_cost, model=order.intents[0][0].model)


def check_most(quote: Quote, most: Usd | None, *, model: str) -> None:
    """Refuse what could cost more than `most`; None allows everything.

    Raises:
        BudgetExceeded: it could, or nobody knows what `model` costs.
    """
    if most is None:
        return
    if quote.high is None:
        raise BudgetExceeded(
            f"the price of {model} is not known, so it cannot be held below {most}",
            hint="Leave --max-cost away to buy it all the same.",
        )
    if quote.high > most:
        raise BudgetExceeded(
            f"this costs {'' if quote.low == quote.high else 'up to '}{quote.high}, more than the {most} "
            "that you allow; nothing was bought",
            quote_micros=quote.high.micros,
        )
