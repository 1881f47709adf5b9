"""What models of the catalog cost and how long they take, for a wish that nobody has made yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagen.catalog import Catalog
from imagen.catalog.model import Model
from imagen.domain.prediction import Prediction
from imagen.domain.quote import Quote
from imagen.ports import Backend, Clock
from imagen.service.watch import Watcher

_PICTURE = "https://example.com/picture.png"
"""Stands for whatever picture a model is to work on."""


class PriceBook:
    """Prices of whole models, and how long they take.

    Args:
        catalog: knows the models.
        backend: knows prices; it is asked for nothing else and needs no account.
        watcher: has learned how long models run.
        clock: tells the time.
    """

    def __init__(self, *, catalog: Catalog, backend: Backend, watcher: Watcher, clock: Clock) -> None:
        self.catalog = catalog
        self._backend = backend
        self._watcher = watcher
        self._clock = clock

    async def recall(self) -> None:
        """Read what was learned, once. Call it before the others."""
        await self._watcher.recall()

    def seconds(self, backend: Backend, model: str, otherwise: float | None) -> float | None:
        """How long a run of a model takes as a rule: learned from its runs, else what is said otherwise."""
        learned = self._watcher.typical_seconds(backend, model)
        return otherwise if learned is None else learned

    def seconds_of(self, model: Model) -> float | None:
        """How long a run of a model of the catalog takes at the service."""
        return self.seconds(self._backend, model.name, model.typical_seconds)

    def quote(self, prediction: Prediction) -> Quote:
        """What a prediction costs with an account, also one that is made for practice."""
        return self._backend.quote(prediction)

    def picture(self, model: Model, *, edits: bool = False, given: Mapping[str, Any] | None = None) -> Quote:
        """What one picture of a model costs.

        Args:
            model: of the catalog.
            edits: it works on a picture.
            given: parameters that it is to have besides; those that it does not take are left out.
        """
        values: dict[str, Any] = {"prompt": "a picture"}
        values |= {name: value for name, value in (given or {}).items() if takes(model, name, value)}
        if model.count_key is not None:
            values[model.count_key] = 1
        image = model.image_input
        if edits and image is not None:
            values[image.key] = [_PICTURE] if image.is_list else _PICTURE
        intent = Prediction(
            id="",
            backend=self._backend.name,
            backend_type=self._backend.type,
            account=self._backend.account,
            model=str(model.ref),
            prompt="",
            input=values,
            request_key="",
            caller="",
            created_at=self._clock.now(),
            deadline_seconds=model.deadline_seconds,
        )
        return self._backend.quote(intent, typical_seconds=self.seconds_of(model))


def takes(model: Model, name: str, value: Any) -> bool:
    """Whether a model has a parameter of that name that may have that value."""
    parameter = model.parameter(name)
    return parameter is not None and (parameter.enum is None or value in parameter.enum)
