"""What tools ask of whoever makes pictures for one caller."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from imagen.agents.progress import Progress
from imagen.catalog import Catalog
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.service.choice_shapes import QuoteAnswer, RecommendAnswer
from imagen.service.deliver import Kept
from imagen.service.finish import Outcome
from imagen.service.usage import UsageReport

MOST_REMEMBERED = 200


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was checked and can be bought. Nothing of it is written down yet.

    Attributes:
        model: as it would be run.
        quote: what it will cost; nothing where it is practice.
        is_estimate: nobody stands by that price.
        runs: how many predictions it takes.
        work: the same as its workshop knows it.
    """

    model: str
    quote: Quote
    is_estimate: bool
    runs: int
    work: Any


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """How a prediction stands.

    Attributes:
        id: ours; status: as faces call it.
        model: as it is run.
        seed: None where the model takes none.
        cost_usd: None while that is open, or where nobody knows the price.
        charged: whether it is billed; None while that is open.
        error: why it has no picture.
        outcome: it with its pictures, as far as they are at hand; links: their addresses where they are elsewhere.
    """

    id: str
    status: str
    model: str
    seed: int | None
    cost_usd: float | None
    charged: bool | None
    error: str | None = None
    outcome: Outcome | None = None
    links: tuple[str, ...] = ()


class Workshop(Protocol):
    """Makes pictures, and tells of them, for one caller. Every method raises `ImagenError` for what it refuses."""

    @property
    def catalog(self) -> Catalog:
        """What is known of models."""

    def model(self, name: str | None, *, edits: bool) -> ModelRef:
        """The model of that name; without one the usual one, which can work on a picture where that is wanted."""

    def permits(self, model: ModelRef) -> bool:
        """Whether the caller may use a model."""

    async def image(self, told: str) -> Any:
        """A picture to start from, as a request has it: an address, or a file."""

    async def offer(self, request: GenerationRequest, *, output: str | None, watched: bool) -> Offer:
        """Check a request; nothing is bought.

        Args:
            request: what for, with its model.
            output: where its pictures go, where callers may say so.
            watched: somebody looks at the progress.
        """

    async def carry_out(self, offer: Offer, *, progress: Progress) -> list[Outcome]:
        """Buy, follow and keep; canceled, it cancels upstream too."""

    async def estimate(self, request: GenerationRequest) -> QuoteAnswer:
        """What a request would cost, and when it would be ready."""

    async def recommend(self, **asked: Any) -> RecommendAnswer:
        """Which model to take; see `service.recommend.Recommender.recommend`."""

    async def price(self, model: ModelRef) -> Quote:
        """What a picture of a model of the catalog costs as a rule."""

    async def describe(self, model: ModelRef) -> dict[str, Any] | None:
        """JSON Schema of a model's input; None where nobody tells it."""

    async def look(self, prediction_id: str) -> Sight:
        """How one prediction of the caller's stands. Asks nobody."""

    async def cancel(self, prediction_id: str) -> Sight:
        """Stop one, upstream too. One that has ended stays as it is."""

    async def usage(self, *, since: str | None, until: str | None, by: str | None) -> UsageReport:
        """What the caller has spent."""

    def place(self, picture: Kept) -> dict[str, str]:
        """Where the caller finds a picture: its `path`, or its `url`."""


def sight_of_prediction(prediction: Prediction, outcome: Outcome | None) -> Sight:
    """How a prediction stands, by what is written down of it."""
    spent = prediction.spent if prediction.status.terminal else None
    error = None if outcome is None or outcome.error is None else str(outcome.error)
    return Sight(
        id=prediction.id,
        status=str(prediction.status.value),
        model=prediction.model,
        seed=prediction.seed,
        cost_usd=None if spent is None else spent.to_json(),
        charged=prediction.charged,
        error=error,
        outcome=outcome,
        links=() if outcome is None or outcome.pictures else _addresses(prediction),
    )


def _addresses(prediction: Prediction) -> tuple[str, ...]:
    """Where the service has its pictures, for an hour."""
    return tuple(address for address in prediction.output if urlsplit(address).scheme in {"https", "http"})
