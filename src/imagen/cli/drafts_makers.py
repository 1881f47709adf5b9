"""Who makes previews and finals: this process, or a running gateway. Both look the same to `cli.drafts`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from imagen.domain.draft import Spent
from imagen.domain.events import LeftOut
from imagen.domain.money import Usd
from imagen.domain.quote import Quote
from imagen.errors import BudgetExceeded, GarbledResponse
from imagen.service.drafts import check_picked, final_of, spent_on

if TYPE_CHECKING:
    from imagen.assembly import App, Remote
    from imagen.domain.prediction import Prediction
    from imagen.domain.request import GenerationRequest
    from imagen.ports import Observer
    from imagen.remote.generate import Run
    from imagen.service.deliver import Destination
    from imagen.service.finish import Outcome
    from imagen.service.prepare import Order

FIELD = "preview"
"""How errors name what asked for previews."""


class RoundQuote(msgspec.Struct, frozen=True, kw_only=True):
    """What a round of previews would cost, and a final after it.

    Attributes:
        model: makes the previews.
        final_model: makes the final.
        previews, final: what they would cost.
    """

    model: str
    final_model: str
    previews: Quote
    final: Quote


class FinalQuote(msgspec.Struct, frozen=True, kw_only=True):
    """What a final would be and cost.

    Attributes:
        model, seed: of the final; None where its model takes no seed.
        notes: what was to be carried over, or offered by a preset, and its model does not take.
        saved: what choosing was likely to save; None where a price is not known.
    """

    model: str
    seed: int | None
    quote: Quote
    notes: Sequence[LeftOut]
    saved: Usd | None


class Maker(Protocol):
    """Makes previews, and finals of those that are picked."""

    @property
    def practice(self) -> bool:
        """Whether the emulator paints and no model is run."""

    async def plan_round(
        self, request: GenerationRequest, *, seeds: Sequence[int], draft: str, places: Sequence[Destination]
    ) -> RoundQuote:
        """Check a wish and its previews; nothing is bought.

        Raises:
            InvalidRequest, Refused, ConfigError: it cannot be carried out, or costs more than it may.
        """

    async def make_round(self, observer: Observer, *, watched: bool) -> Sequence[Outcome]:
        """Buy the previews that were planned; one outcome for each, in order."""

    async def plan_final(
        self, preview_id: str, said: GenerationRequest, *, destination: Destination | None
    ) -> FinalQuote:
        """Check the final of a preview; nothing is bought.

        Raises:
            InvalidRequest, Refused, ConfigError: it cannot be carried out, or costs more than it may.
        """

    async def make_final(self, observer: Observer, *, watched: bool) -> Sequence[Outcome]:
        """Buy the final that was planned."""

    async def spent(self, made: Sequence[Prediction]) -> Spent | None:
        """What the previews and finals came to that belong to these predictions; None where nobody can tell."""


class Here:
    """`Maker` by this process.

    Args:
        app: its parts.
        backend: a name of the configuration; None for the default one, or that of the preview.
    """

    def __init__(self, app: App, backend: str | None) -> None:
        self._app = app
        self._name = backend
        self._round: list[Order] = []
        self._final: Order | None = None

    @property
    def practice(self) -> bool:
        """See the protocol."""
        return self._app.backends.get(self._name).practice

    async def plan_round(
        self, request: GenerationRequest, *, seeds: Sequence[int], draft: str, places: Sequence[Destination]
    ) -> RoundQuote:
        """See the protocol."""
        drafts, caller = self._app.drafts, self._app.caller()
        # The seed is the previews'; a final takes over that of the one that is picked.
        wish = msgspec.structs.replace(request, seed=None)
        final = await drafts.check_final(wish, backend=self._app.backends.get(self._name), caller=caller)
        self._round = [
            await drafts.prepare_preview(
                msgspec.structs.replace(wish, max_cost=None),
                final,
                caller=caller,
                destination=place,
                draft=draft,
                seed=seed,
                field=FIELD,
            )
            for seed, place in zip(seeds, places, strict=True)
        ]
        quote = RoundQuote(
            model=self._round[0].intents[0][0].model,
            final_model=final.intents[0][0].model,
            previews=Quote.total(order.quote for order in self._round),
            final=final.quote,
        )
        check_whole(request.max_cost, quote)
        await self._app.estimator.check_room([*self._round, final])
        return quote

    async def make_round(self, observer: Observer, *, watched: bool) -> Sequence[Outcome]:
        """See the protocol."""
        orders = [msgspec.structs.replace(order, watched=watched) for order in self._round]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._app.gateway.carry_out(order, observer=observer)) for order in orders
            ]
        return [outcome for task in tasks for outcome in task.result()]

    async def plan_final(
        self, preview_id: str, said: GenerationRequest, *, destination: Destination | None
    ) -> FinalQuote:
        """See the protocol."""
        preview = await self._app.store.get(preview_id)
        check_picked(preview)
        request = final_of(preview, said)
        order = await self._app.gateway.prepare(
            request,
            backend=self._app.backends.get(self._name or preview.backend),
            caller=self._app.caller(),
            destination=destination,
        )
        self._final = order
        quote, intent = order.quote, order.intents[0][0]
        expected = await self._app.drafts.expected(preview, quote, order.images)
        return FinalQuote(
            model=intent.model,
            seed=intent.seed,
            quote=quote,
            notes=order.notes,
            saved=None if expected is None else expected.saved,
        )

    async def make_final(self, observer: Observer, *, watched: bool) -> Sequence[Outcome]:
        """See the protocol."""
        if self._final is None:
            raise RuntimeError("a final is planned before it is made")
        order = msgspec.structs.replace(self._final, watched=watched)
        return await self._app.gateway.carry_out(order, observer=observer)

    async def spent(self, made: Sequence[Prediction]) -> Spent | None:
        """See the protocol."""
        return await self._app.drafts.spent(made[-1])


class There:
    """`Maker` by a running gateway.

    Args:
        remote: its parts.
        app: this process, for what we are called.
        backend: a name of our configuration, for what it says where a wish says nothing.
    """

    practice = False

    def __init__(self, remote: Remote, app: App, backend: str | None) -> None:
        self._remote = remote
        self._app = app
        self._backend = backend
        self._round: list[Run] = []
        self._final: Run | None = None

    async def plan_round(
        self, request: GenerationRequest, *, seeds: Sequence[int], draft: str, places: Sequence[Destination]
    ) -> RoundQuote:
        """See the protocol. Which model makes the previews, and so what they cost, the gateway tells."""
        self._round = await self._remote.drafts.plan_previews(
            request, backend=self._backend, caller=self._app.caller(), seeds=seeds, draft=draft, places=places
        )
        told = await self._remote.drafts.quote_previews(self._round)
        if told.final is None:
            raise GarbledResponse(f"{self._remote.gateway.url} tells no price of the final")
        quote = RoundQuote(
            model=told.model,
            final_model=told.final.model,
            previews=told.quote.to_quote(),
            final=told.final.quote.to_quote(),
        )
        check_whole(request.max_cost, quote)
        if told.short_of is not None and not told.short_of.waits:
            raise told.short_of.to_error(Quote.total([quote.previews, quote.final]))
        if request.max_cost is not None:
            # Prices may change until they are bought: each may cost its part of what the final leaves.
            left = request.max_cost - (quote.final.high or Usd(0))
            each = Usd(left.micros // len(seeds))
            limit = {"max_cost": f"{each.to_decimal():f}"}
            self._round = [msgspec.structs.replace(run, body={**run.body, **limit}) for run in self._round]
        return quote

    async def make_round(self, observer: Observer, *, watched: bool) -> Sequence[Outcome]:  # noqa: ARG002 - a gateway tells no progress
        """See the protocol."""
        return await self._remote.gateway.carry_out(self._round, observer=observer)

    async def plan_final(
        self, preview_id: str, said: GenerationRequest, *, destination: Destination | None
    ) -> FinalQuote:
        """See the protocol."""
        final = await self._remote.drafts.plan_final(
            preview_id, said, caller=self._app.caller(), destination=destination
        )
        self._final = final.run
        return FinalQuote(
            model=final.run.intent.model,
            seed=final.run.intent.seed,
            quote=final.quote,
            notes=final.run.notes,
            saved=final.saved,
        )

    async def make_final(self, observer: Observer, *, watched: bool) -> Sequence[Outcome]:  # noqa: ARG002
        """See the protocol."""
        if self._final is None:
            raise RuntimeError("a final is planned before it is made")
        run = msgspec.structs.replace(self._final, notes=())
        return await self._remote.gateway.carry_out([run], observer=observer)

    async def spent(self, made: Sequence[Prediction]) -> Spent | None:
        """See the protocol; of what was made elsewhere before, the gateway alone knows."""
        finals = [one for one in made if one.tier == "final" and one.cost is not None]
        if not any(one.tier == "preview" for one in made) or not finals:
            return None
        if any(one.practice for one in made):
            return None
        last = finals[-1]
        each = None if last.cost is None else Usd(last.cost.micros // max(len(last.output), 1))
        return spent_on(made, each=each)


def check_whole(most: Usd | None, quote: RoundQuote) -> None:
    """Refuse previews whose final could not be paid for any more.

    Raises:
        BudgetExceeded: all of it would cost more than it may, or nobody knows.
    """
    if most is None:
        return
    whole = Quote.total([quote.previews, quote.final])
    if whole.high is None:
        raise BudgetExceeded(
            f"the price of previews and final is not known, so it cannot be held below {most}",
            hint="Leave --max-cost away to buy them all the same.",
        )
    if whole.high > most:
        raise BudgetExceeded(
            f"previews and final cost up to {whole.high}, more than the {most} that you allow; nothing was bought",
            quote_micros=whole.high.micros,
        )
