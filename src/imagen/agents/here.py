"""Pictures for an agent, made by this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from imagen.agents.known import Knowing, as_named
from imagen.agents.open_calls import OpenCalls
from imagen.agents.progress import Progress
from imagen.agents.workshop import Offer, Sight, sight_of_prediction
from imagen.assembly import App
from imagen.domain.caller import Caller
from imagen.domain.key import check_scope
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction
from imagen.domain.request import GenerationRequest
from imagen.domain.usage import UsageQuery
from imagen.errors import NotFound, PermissionDenied
from imagen.ports import Backend, ModelSource
from imagen.service.choice_shapes import QuoteAnswer, RecommendAnswer
from imagen.service.deliver import Destination, Kept
from imagen.service.finish import Outcome
from imagen.service.prepare import Order
from imagen.service.usage import UsageReport, make_query


class AppWorkshop(Knowing, ABC):
    """`Workshop` of an application; hosts say in classes of their own what their callers may see, and where pictures go.

    Args:
        app: the application.
        backend: makes the pictures.
        caller: whom the ledger names.
        usual: the model where none is named.
        models: that the caller may use; empty for all.
        local: whether days are those of this machine.
        open_calls: of this process.
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
        open_calls: OpenCalls,
    ) -> None:
        super().__init__(app, usual=usual)
        self.backend = backend
        self.caller = caller
        self._models = models
        self._local = local
        self._open_calls = open_calls

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

    def model(self, name: str | None, *, edits: bool) -> ModelRef:
        """See `Workshop.model`; refused are those that the caller may not use."""
        ref = super().model(name, edits=edits)
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
        first = order.intents[0][0]
        return Offer(
            model=first.model,
            quote=order.quote,
            is_estimate=self.is_estimate(first, order.quote),
            runs=len(order.intents),
            work=order,
        )

    async def carry_out(self, offer: Offer, *, progress: Progress) -> list[Outcome]:
        """See `Workshop.carry_out`."""
        with self._open_calls.under_way(progress):
            return list(await self.app.gateway.carry_out(offer.work, observer=progress))

    async def estimate(self, request: GenerationRequest) -> QuoteAnswer:
        """See `Workshop.estimate`."""
        order = await self.prepare(request, destination=None, watched=False)
        return await self.app.estimator.weigh(order, models=self._models)

    async def recommend(self, **asked: Any) -> RecommendAnswer:
        """See `Workshop.recommend`."""
        return await self.app.recommender.recommend(**asked, caller=self.caller, models=self._models)

    async def describe(self, model: ModelRef) -> dict[str, Any] | None:
        """See `Workshop.describe`."""
        known = None if model.deployment or model.version else self.catalog.find(model.base)
        if known is not None:
            return self.catalog.input_schema(known)
        if isinstance(self.backend, ModelSource) and self.backend.readiness() == "ok":
            return (await self.backend.describe(model)).input_schema
        raise self.unknown_model(model)

    async def look(self, prediction_id: str) -> Sight:
        """See `Workshop.look`."""
        prediction = await self._found(prediction_id)
        outcome = await self.app.gateway.recount(prediction.id)
        return sight_of_prediction(prediction, outcome)

    async def cancel(self, prediction_id: str) -> Sight:
        """See `Workshop.cancel`. One whose create is still held open here is stopped with the whole call that makes it."""
        prediction = await self._found(prediction_id)
        if prediction.upstream_id is None and await self._open_calls.stop(prediction.id):
            return await self.look(prediction.id)
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
