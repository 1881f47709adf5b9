"""Pictures for an agent, made by a running gateway and fetched by this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from cachetools import FIFOCache

from imagen.agents.known import Knowing, as_named
from imagen.agents.progress import Progress
from imagen.agents.workshop import MOST_REMEMBERED, Offer, Sight, sight_of_prediction
from imagen.assembly import App, Remote
from imagen.domain.model_ref import ModelRef
from imagen.domain.request import GenerationRequest
from imagen.remote.predictions import RemotePrediction
from imagen.service.choice_shapes import QuoteAnswer, RecommendAnswer
from imagen.service.deliver import Destination, Kept
from imagen.service.finish import Outcome
from imagen.service.usage import UsageReport, make_query


class RemoteWorkshop(Knowing, ABC):
    """`Workshop` of a running gateway.

    Args:
        app: this process, which knows the catalog.
        remote: the gateway.
        backend: of our configuration, whose habits count; None for the default one.
    """

    def __init__(self, app: App, remote: Remote, *, backend: str | None) -> None:
        super().__init__(app, usual=app.backends.habits(backend).model)
        self._remote = remote
        self._backend = backend
        self._made: FIFOCache[str, Outcome] = FIFOCache(MOST_REMEMBERED)

    @abstractmethod
    def destination(self, output: str | None) -> Destination:
        """Where pictures go."""

    @abstractmethod
    async def image(self, told: str) -> Any:
        """See `Workshop.image`."""

    @abstractmethod
    def place(self, picture: Kept) -> dict[str, str]:
        """See `Workshop.place`."""

    def permits(self, model: ModelRef) -> bool:  # noqa: ARG002 - only the gateway knows
        """See `Workshop.permits`."""
        return True

    async def offer(
        self,
        request: GenerationRequest,
        *,
        output: str | None,
        watched: bool,  # noqa: ARG002 - a gateway tells no progress
    ) -> Offer:
        """See `Workshop.offer`."""
        place = self.destination(output)
        request = as_named(request, place)
        told = await self._remote.estimator.estimate(request, backend=self._backend)
        runs = await self._remote.gateway.plan(request, backend=self._backend, destination=place)
        quote = told.quote.to_quote()
        return Offer(
            model=told.model,
            quote=quote,
            is_estimate=self.is_estimate(runs[0].intent, quote),
            runs=len(runs),
            work=runs,
        )

    async def carry_out(self, offer: Offer, *, progress: Progress) -> list[Outcome]:
        """See `Workshop.carry_out`."""
        outcomes = list(await self._remote.gateway.carry_out(offer.work, observer=progress))
        self._made.update({outcome.prediction.id: outcome for outcome in outcomes})
        return outcomes

    async def estimate(self, request: GenerationRequest) -> QuoteAnswer:
        """See `Workshop.estimate`."""
        return await self._remote.estimator.estimate(request, backend=self._backend)

    async def recommend(self, **asked: Any) -> RecommendAnswer:
        """See `Workshop.recommend`."""
        return await self._remote.recommender.recommend(**asked)

    async def describe(self, model: ModelRef) -> dict[str, Any] | None:
        """See `Workshop.describe`."""
        known = None if model.deployment or model.version else self.catalog.find(model.base)
        if known is None:
            raise self.unknown_model(model)
        return self.catalog.input_schema(known)

    async def look(self, prediction_id: str) -> Sight:
        """See `Workshop.look`. A gateway tells of what it has taken on; what it has made for us is remembered."""
        if (made := self._made.get(prediction_id)) is not None:
            return sight_of_prediction(made.prediction, made)
        return _sight(await self._remote.predictions.show(prediction_id))

    async def cancel(self, prediction_id: str) -> Sight:
        """See `Workshop.cancel`."""
        if (made := self._made.get(prediction_id)) is not None:
            return sight_of_prediction(made.prediction, made)
        return _sight(await self._remote.predictions.cancel(prediction_id))

    async def usage(self, *, since: str | None, until: str | None, by: str | None) -> UsageReport:
        """See `Workshop.usage`."""
        now = self.app.clock.now()
        return await self._remote.usage.report(
            make_query(since=since, until=until, by=by, now=now, local=False)
        )


def _sight(told: RemotePrediction) -> Sight:
    return Sight(
        id=told.id,
        status=told.status,
        model=told.model,
        seed=told.seed,
        cost_usd=told.cost_usd,
        charged=told.charged,
        error=told.error,
        links=tuple(file.stored_url or file.url for file in told.files),
    )
