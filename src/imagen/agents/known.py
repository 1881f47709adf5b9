"""What workshops have in common: this process knows the catalog, its prices and the usual models."""

from __future__ import annotations

from pathlib import Path

import msgspec

from imagen.assembly import App
from imagen.catalog import Catalog
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.request import GenerationRequest
from imagen.errors import NotFound
from imagen.pictures import OutputPattern
from imagen.service.deliver import Destination


class Knowing:
    """The part of `Workshop` that is answered by what is known here.

    Args:
        app: the application.
        usual: the model where none is named.
    """

    def __init__(self, app: App, *, usual: str) -> None:
        self.app = app
        self._usual = usual

    @property
    def catalog(self) -> Catalog:
        """See `Workshop.catalog`."""
        return self.app.catalog

    def model(self, name: str | None, *, edits: bool) -> ModelRef:
        """See `Workshop.model`.

        Raises:
            NotFound, InvalidModelRef: none is called so.
        """
        if name is not None:
            return self.catalog.resolve(name)
        ref = self.catalog.resolve(self._usual)
        known = self.catalog.find(ref.base)
        if edits and known is not None and "edit" not in known.abilities:
            return self.catalog.resolve(self.app.settings.mcp.edit_model)
        return ref

    async def price(self, model: ModelRef) -> Quote:
        """See `Workshop.price`."""
        known = self.catalog.find(model.base)
        return UNKNOWN_PRICE if known is None else self.app.prices.picture(known)

    def is_estimate(self, intent: Prediction, quote: Quote) -> bool:
        """Whether a quote is an estimate, and no price that somebody stands by.

        Args:
            intent: what it is for.
            quote: what it would cost; nothing is no estimate.
        """
        if quote.high is None or not quote.high:
            return False
        known = self.catalog.find(ModelRef.parse(intent.model).base)
        fact = None if known is None else known.price_for(intent.input)
        return fact is None or fact.confidence == "weak" or quote.likely is None

    def unknown_model(self, model: ModelRef) -> NotFound:
        """The refusal of a model that nobody here knows."""
        near = self.catalog.suggest(model.base)
        meant = f"Did you mean {' or '.join(near)}?" if near else "list_models tells those that are."
        return NotFound(f"{model} is not in the catalog", hint=meant)


def as_named(request: GenerationRequest, place: Destination) -> GenerationRequest:
    """The request with the format that the name of its file asks for, where it names none itself."""
    if place.output is None or request.output_format is not None:
        return request
    wanted = OutputPattern.parse(place.output, default_folder=Path()).wanted_format
    return msgspec.structs.replace(request, output_format=wanted)
