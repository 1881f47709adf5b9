"""An estimate: what a wish would cost, which limit it would wait for, when it would be ready, and what costs less. Buys nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from imagen.catalog.model import EDIT_KEYS, GUIDE_KEYS, Model
from imagen.domain.budget import Shortage
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.key import scope_of
from imagen.domain.limits import Need, budget_limit
from imagen.domain.money import Usd
from imagen.domain.outlook import Outlook, look_ahead
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.semaphore import unknown_semaphore
from imagen.limits.line import Line
from imagen.ports import Backends, Budgets, Clock
from imagen.service.charges import charge_of
from imagen.service.choice_shapes import BudgetRefusal, CheaperModel, FinalQuote, QuoteAnswer, quote_range
from imagen.service.gateway import Gateway
from imagen.service.prepare import Order
from imagen.service.prices import PriceBook, takes

MOST_CHEAPER = 3
_SHAPE = (
    "aspect_ratio",
    "width",
    "height",
    "size",
    "resolution",
    "image_size",
    "megapixels",
    "quality",
    "output_format",
)
"""Parameters that say how the picture is to be, and that other models may have under the same name."""


class Estimator:
    """Tells what would become of a wish. Reserves nothing and stands in no line.

    Args:
        gateway: checks the wish exactly as if it were to be made.
        backends: of the settings.
        budgets: know what is left.
        line: knows who waits.
        prices: knows other models.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        backends: Backends,
        budgets: Budgets,
        line: Line,
        prices: PriceBook,
        clock: Clock,
    ) -> None:
        self._gateway = gateway
        self._backends = backends
        self._budgets = budgets
        self._line = line
        self._prices = prices
        self._clock = clock

    async def estimate(
        self, request: GenerationRequest, *, backend: str | None = None, caller: Caller = UNKNOWN
    ) -> QuoteAnswer:
        """What would become of a request, checked as `Gateway.generate` does.

        Raises:
            InvalidRequest, Refused, ConfigError: it would not be carried out.
        """
        order = await self._gateway.prepare(request, backend=self._backends.get(backend), caller=caller)
        return await self.weigh(order)

    async def check_room(self, orders: Sequence[Order]) -> None:
        """Refuse what the budgets do not hold together.

        Raises:
            BudgetExceeded: naming the budget.
        """
        shortage = await self._shortage(orders)
        if shortage is not None and not shortage.may_pass:
            raise shortage.to_error()

    async def weigh(
        self,
        order: Order,
        *,
        times: int = 1,
        models: frozenset[str] = frozenset(),
        final: Order | None = None,
    ) -> QuoteAnswer:
        """What would become of an order.

        Args:
            order: checked, and not to be carried out.
            times: so many of them at once.
            models: that the caller may use; empty for all.
            final: is to be made after them: the budgets need room for it too.

        Raises:
            NotFound: it names a semaphore that there is not.
        """
        await self._prices.recall()
        intents = [intent for intent, _ in order.intents]
        first, plan = order.intents[0]
        quote = Quote.total([order.quote] * times)
        listed = (
            Quote.total([self._prices.quote(intent) for intent in intents] * times)
            if order.backend.practice
            else quote
        )
        images = times * order.images
        seconds = self._prices.seconds(order.backend, first.model, plan.typical_seconds)
        shortage = await self._shortage([order] * times + ([] if final is None else [final]))
        now = self._clock.now()
        outlook = await self._look_ahead(order, len(intents) * times, seconds)
        if shortage is not None:
            # Only what would wait for a budget is in its line; what would be refused is in none.
            limit = budget_limit(shortage.balance.budget.name) if shortage.may_pass else None
            outlook = Outlook(limit=limit, position=0, starts_in=None, ends_in=None)
        return QuoteAnswer(
            model=first.model,
            quote=quote_range(quote),
            listed=quote_range(listed),
            images=images,
            predictions=len(intents) * times,
            position=outlook.position,
            limit=None if outlook.limit is None else _shown_limit(outlook.limit),
            seconds=_rounded(seconds),
            starts_in=_rounded(outlook.starts_in),
            ends_in=_rounded(outlook.ends_in),
            starts_at=_instant(now, outlook.starts_in),
            ends_at=_instant(now, outlook.ends_in),
            short_of=None if shortage is None else _refusal(shortage),
            cheaper=self._cheaper(order, listed, images, models),
            preset=order.request.preset,
            left_out=list(order.left_out),
            practice=order.backend.practice,
            final=None if final is None else _final(final),
        )

    # --- money and limits --------------------------------------------------------------------------------

    async def _shortage(self, orders: Sequence[Order]) -> Shortage | None:
        charges = [
            charge
            for order in orders
            for intent, plan in order.intents
            if (charge := charge_of(order, intent, plan)) is not None
        ]
        return await self._budgets.shortage(charges, now=self._clock.now()) if charges else None

    async def _look_ahead(self, order: Order, count: int, seconds: float | None) -> Outlook:
        need = Need(
            lease="",
            holder=order.caller.name,
            lasts_seconds=0.0,
            account=order.intents[0][0].account,
            caller=order.caller,
            semaphore=order.request.semaphore,
            lane=order.lane,
        )
        standings = await self._line.standing(need, count=count)
        if any(one.missing for one in standings):
            raise unknown_semaphore(order.request.semaphore or "")
        return look_ahead(standings, count=count, typical_seconds=seconds)

    # --- what costs less ---------------------------------------------------------------------------------

    def _cheaper(
        self, order: Order, listed: Quote, images: int, models: frozenset[str]
    ) -> list[CheaperModel]:
        """Models with the needed abilities and a lower price that is known, the least loss first.

        Each step of quality is a loss, and so is everything else that is named.
        """
        ours = self._prices.catalog.find(order.intents[0][0].model)
        if listed.likely is None or ours is None:
            return []
        allowed = {one.lower() for one in models}
        found: list[tuple[int, Usd, CheaperModel]] = []
        for model in self._prices.catalog:
            if model.name == ours.name or (allowed and scope_of(model.ref).lower() not in allowed):
                continue
            if (price := self._price_of_same(order, ours, model)) is None:
                continue
            total = Quote.total([price] * images)
            if total.likely is None or total.likely >= listed.likely:
                continue
            lost = _lost(order, ours, model)
            shown = CheaperModel(
                model=model.name,
                quote=quote_range(total),
                seconds=_rounded(self._prices.seconds_of(model)),
                quality=model.quality,
                lost=lost,
            )
            found.append((len(lost) + max(0, _steps_lost(ours, model) - 1), total.likely, shown))
        found.sort(key=lambda each: (each[0], each[1], each[2].model))
        return [shown for _, _, shown in found[:MOST_CHEAPER]]

    def _price_of_same(self, order: Order, ours: Model, model: Model) -> Quote | None:
        """What a picture costs that is as much the same as it can be; None where it cannot do what is needed."""
        given = order.intents[0][1].input
        image = next((name for name in (*EDIT_KEYS, *GUIDE_KEYS) if given.get(name)), None)
        needed: set[str] = set()
        if image is not None:
            needed.add("edit")
        if given.get("mask"):
            needed.add("mask")
        if given.get("background") == "transparent":
            needed.add("transparent_background")
        if "vector" in ours.abilities:
            needed.add("vector")
        if not needed <= model.abilities or not makes_pictures(model, edits=image is not None):
            return None
        shape = {name: given[name] for name in _SHAPE if name in given}
        return self._prices.picture(model, edits=image is not None, given=shape)


def makes_pictures(model: Model, *, edits: bool) -> bool:
    """Whether a model makes a picture of a prompt, and of a picture only where there is one."""
    if model.accepts("prompt") is False:
        return False
    image = model.image_input
    return edits or image is None or not image.required


def _lost(order: Order, ours: Model, model: Model) -> list[str]:
    """What is lost with another model, in words."""
    given = order.intents[0][1].input
    lost = []
    if "seed" in ours.abilities and "seed" not in model.abilities:
        lost.append("no seed")
    if given.get("negative_prompt") and "negative_prompt" not in model.abilities:
        lost.append("no negative prompt")
    if "typography" in ours.abilities and "typography" not in model.abilities:
        lost.append("not known for text in pictures")
    if "aspect_ratio" in given and not takes(model, "aspect_ratio", given["aspect_ratio"]):
        lost.append(f"no aspect ratio {given['aspect_ratio']}")
    if ours.quality is not None and model.quality is None:
        lost.append("its quality is not known")
    if _steps_lost(ours, model):
        lost.append(f"quality {model.quality} of 5 instead of {ours.quality}")
    return lost


def _steps_lost(ours: Model, model: Model) -> int:
    """How many steps of quality are lost, as far as that is known."""
    if ours.quality is None or model.quality is None:
        return 0
    return max(0, ours.quality - model.quality)


def _refusal(shortage: Shortage) -> BudgetRefusal:
    error, balance = shortage.to_error(), shortage.balance
    return BudgetRefusal(
        budget=balance.budget.name,
        left_usd=balance.left.to_json(),
        renews_at=balance.renews_at,
        waits=shortage.may_pass,
        detail=error.detail,
        hint=error.hint,
    )


def _final(order: Order) -> FinalQuote:
    return FinalQuote(model=order.intents[0][0].model, quote=quote_range(order.quote))


def _shown_limit(limit: str) -> str:
    """A limit as people know it: neither an account's fingerprint nor a key's id is of use to them."""
    kind = limit.partition(":")[0]
    return kind if kind in {"account", "key"} else limit


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _instant(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=round(seconds, 1))


def combined(answers: Sequence[QuoteAnswer]) -> QuoteAnswer:
    """Several answers for the parts of one wish as one: the later end counts, and the first budget without room."""
    last = max(answers, key=lambda one: (one.ends_in is None, one.ends_in or 0.0))
    return msgspec.structs.replace(
        answers[0],
        quote=quote_range(Quote.total(one.quote.to_quote() for one in answers)),
        listed=quote_range(Quote.total(one.listed.to_quote() for one in answers)),
        images=sum(one.images for one in answers),
        predictions=sum(one.predictions for one in answers),
        ends_in=last.ends_in,
        ends_at=last.ends_at,
        short_of=next((one.short_of for one in answers if one.short_of is not None), None),
    )
