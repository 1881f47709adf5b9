"""Pictures for an agent, made by this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import msgspec

from imagen.agents.workshop import Offer, Sight, sight_of_prediction
from imagen.assembly import App
from imagen.catalog import Catalog
from imagen.domain.caller import Caller
from imagen.domain.key import check_scope
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.usage import UsageQuery
from imagen.errors import NotFound, PermissionDenied
from imagen.pictures import OutputPattern
from imagen.ports import Backend, ModelSource, Observer
from imagen.service.choice_shapes import QuoteAnswer, RecommendAnswer
from imagen.service.deliver import Destination, Kept
from imagen.service.finish import Outcome
from imagen.service.prepare import Order
from imagen.service.usage import UsageReport, make_query


class AppWorkshop(ABC):
    """`Workshop` of an application; hosts say in classes of their own what their callers may see, and where pictures go.

    Args:
        app: the application.
        backend: makes the pictures.
        caller: whom the ledger names.
        usual: the model where none is named.
        models: that the caller may use; empty for all.
        local: whether days are those of this machine.
    """

    def __init__(
        self,
        app: App,
        *,
        backend: Backend,
        caller: Caller,
        usual: str,
        models: frozenset[str] = frozenset(),
        local: bool,
    ) -> None:
        self.app = app
        self.backend = backend
        self.caller = caller
        self._usual = usual
        self._models = models
        self._local = local

    # --- what hosts say ----------------------------------------------------------------------------------

    @abstractmethod
    def destination(self, output: str | None) -> Destination:
        """Where pictures go."""

    @abstractmethod
    async def image(self, told: str) -> Any:
        """See `Workshop.image`."""

    @abstractmethod
    def place(self, picture: Kept) -> dict[str, str]:
        """See `Workshop.place`."""

    def sees(self, prediction: Prediction) -> bool:  # noqa: ARG002 - whoever runs the process sees all
        """Whether the caller may look at a prediction."""
        return True

    async def of_caller(self, query: UsageQuery) -> UsageQuery:
        """A query of what the caller may see."""
        return query

    async def prepare(
        self, request: GenerationRequest, *, destination: Destination | None, watched: bool
    ) -> Order:
        """Check a request against its model, the key and the money; nothing is bought yet."""
        return await self.app.gateway.prepare(
            request, backend=self.backend, caller=self.caller, destination=destination, watched=watched
        )

    # --- what tools ask ----------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """See `Workshop.catalog`."""
        return self.app.catalog

    def model(self, name: str | None, *, edits: bool) -> ModelRef:
        """See `Workshop.model`."""
        edit_model = self.app.settings.mcp.edit_model
        ref = choose_model(self.catalog, name, usual=self._usual, edit_model=edit_model, edits=edits)
        check_scope(self._models, ref)
        return ref

    def permits(self, model: ModelRef) -> bool:
        """See `Workshop.permits`."""
        try:
            check_scope(self._models, model)
        except PermissionDenied:
            return False
        return True

    async def offer(self, request: GenerationRequest, *, output: str | None, watched: bool) -> Offer:
        """See `Workshop.offer`."""
        place = self.destination(output)
        order = await self.prepare(as_named(request, place), destination=place, watched=watched)
        return Offer(model=order.intents[0][0].model, quote=order.quote, runs=len(order.intents), work=order)

    async def carry_out(self, offer: Offer, *, observer: Observer) -> list[Outcome]:
        """See `Workshop.carry_out`."""
        return list(await self.app.gateway.carry_out(offer.work, observer=observer))

    async def estimate(self, request: GenerationRequest) -> QuoteAnswer:
        """See `Workshop.estimate`."""
        order = await self.prepare(request, destination=None, watched=False)
        return await self.app.estimator.weigh(order, models=self._models)

    async def recommend(self, **asked: Any) -> RecommendAnswer:
        """See `Workshop.recommend`."""
        return await self.app.recommender.recommend(**asked, caller=self.caller, models=self._models)

    async def price(self, model: ModelRef) -> Quote:
        """See `Workshop.price`."""
        known = self.catalog.find(model.base)
        return UNKNOWN_PRICE if known is None else self.app.prices.picture(known)

    async def describe(self, model: ModelRef) -> dict[str, Any] | None:
        """See `Workshop.describe`."""
        known = None if model.deployment or model.version else self.catalog.find(model.base)
        if known is not None:
            return self.catalog.input_schema(known)
        if isinstance(self.backend, ModelSource) and self.backend.readiness() == "ok":
            return (await self.backend.describe(model)).input_schema
        near = self.catalog.suggest(model.base)
        meant = f"Did you mean {' or '.join(near)}?" if near else "list_models tells those that are."
        raise NotFound(f"{model} is not in the catalog", hint=meant)

    async def look(self, prediction_id: str) -> Sight:
        """See `Workshop.look`."""
        prediction = await self._found(prediction_id)
        outcome = await self.app.gateway.recount(prediction.id)
        return sight_of_prediction(prediction, outcome)

    async def cancel(self, prediction_id: str) -> Sight:
        """See `Workshop.cancel`."""
        prediction = await self._found(prediction_id)
        seen = await self.app.gateway.cancel(prediction.id, backend=self._bought_by(prediction))
        return await self.look(seen.id)

    async def usage(self, *, since: str | None, until: str | None, by: str | None) -> UsageReport:
        """See `Workshop.usage`."""
        now = self.app.clock.now()
        query = make_query(since=since, until=until, by=by, now=now, local=self._local)
        return await self.app.usage.report(await self.of_caller(query))

    async def _found(self, prediction_id: str) -> Prediction:
        unknown = NotFound(
            f"no prediction is called {prediction_id[:80]!r}", hint="generate_image tells the ids."
        )
        try:
            prediction = await self.app.gateway.show(prediction_id)
        except NotFound:
            raise unknown from None
        if not self.sees(prediction):
            raise unknown
        return prediction

    def _bought_by(self, prediction: Prediction) -> Backend | None:
        """The caller's own account, where it was bought on that."""
        return self.backend if prediction.account == self.backend.account else None


def choose_model(catalog: Catalog, name: str | None, *, usual: str, edit_model: str, edits: bool) -> ModelRef:
    """The model that is named, else the usual one, else, where a picture is to be worked on, one that can.

    Raises:
        NotFound, InvalidModelRef: none is called so.
    """
    if name is not None:
        return catalog.resolve(name)
    ref = catalog.resolve(usual)
    known = catalog.find(ref.base)
    if edits and known is not None and "edit" not in known.abilities:
        return catalog.resolve(edit_model)
    return ref


def as_named(request: GenerationRequest, place: Destination) -> GenerationRequest:
    """The request with the format that the name of its file asks for, where it names none itself."""
    if place.output is None or request.output_format is not None:
        return request
    wanted = OutputPattern.parse(place.output, default_folder=Path()).wanted_format
    return msgspec.structs.replace(request, output_format=wanted)
