"""Whose a prediction is: no two processes work on one, and what a dead one had is free to be taken."""

from __future__ import annotations

import asyncio
import logging
from typing import Self

from imagen.domain.prediction import Prediction
from imagen.errors import ImagenError
from imagen.ports import Owners, PredictionStore
from imagen.service.finish import Outcome

_log = logging.getLogger(__name__)


class Owned:
    """What is ours while a block runs. Written out, as ten thousand of them are in memory at once."""

    __slots__ = ("_ownership", "_prediction_id", "finished")

    def __init__(self, ownership: Ownership, prediction_id: str) -> None:
        self._ownership = ownership
        self._prediction_id = prediction_id
        self.finished = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.finished:
            await asyncio.shield(self._ownership.release(self._prediction_id))

    def ended(self, outcome: Outcome) -> Outcome:
        """Take note of how it went."""
        self.finished = outcome.prediction.finished
        return outcome


class Ownership:
    """Takes predictions and lets go of them.

    Args:
        store: says whose they are.
        owners: tells the living from the dead.
    """

    def __init__(self, *, store: PredictionStore, owners: Owners) -> None:
        self._store = store
        self._owners = owners

    def is_held(self, prediction: Prediction) -> bool:
        """Whether a living process works on it, this one or another."""
        return prediction.owner is not None and self._owners.alive(prediction.owner)

    async def take(self, prediction: Prediction) -> bool:
        """Make it ours; False when a living process has it, or was quicker."""
        if self.is_held(prediction):
            return False
        return await self._store.take(prediction.id, owner=self._owners.me, was=prediction.owner)

    def held(self, prediction: Prediction) -> Owned:
        """Ours while the block runs. What is left unfinished is nobody's then, so that others may take it up."""
        return Owned(self, prediction.id)

    async def release(self, prediction_id: str) -> None:
        """Let go of it."""
        try:
            await self._store.release(prediction_id, owner=self._owners.me)
        except ImagenError as error:
            _log.debug("releasing %s failed: %s", prediction_id, error.code)
