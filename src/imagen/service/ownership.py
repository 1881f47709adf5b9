"""Whose a prediction is: no two processes work on one, and what a dead one had is free to be taken."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Self

from imagen.domain.prediction import Prediction
from imagen.errors import ImagenError
from imagen.ports import Owners, PredictionStore
from imagen.service.finish import Outcome

_MOST_UNRELEASED = 10_000

_log = logging.getLogger(__name__)


class Owned:
    """What is ours while a block runs. Written out, as ten thousand of them are in memory at once."""

    __slots__ = ("_ownership", "_prediction_id", "finished")

    def __init__(self, ownership: Ownership, prediction_id: str) -> None:
        self._ownership = ownership
        self._prediction_id = prediction_id
        self.finished = False

    async def __aenter__(self) -> Self:
        self._ownership.begin(self._prediction_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.finished:
            self._ownership.leave(self._prediction_id)
        else:
            await asyncio.shield(self._ownership.let_go(self._prediction_id))

    def ended(self, outcome: Outcome) -> Outcome:
        """Take note of how it went."""
        self.finished = outcome.prediction.finished
        return outcome


class Ownership:
    """Takes predictions and lets go of them.

    That the database names this process says little: it may have been unable to write down that it let go. So it also
    remembers what it really works on.

    Args:
        store: says whose they are.
        owners: tells the living from the dead.
    """

    def __init__(self, *, store: PredictionStore, owners: Owners) -> None:
        self._store = store
        self._owners = owners
        self._working: Counter[str] = Counter()
        self._unreleased: set[str] = set()

    def is_held(self, prediction: Prediction) -> bool:
        """Whether a living process works on it, this one or another."""
        if prediction.owner is None:
            return False
        if prediction.owner == self._owners.me:
            return prediction.id in self._working
        return self._owners.alive(prediction.owner)

    async def take(self, prediction: Prediction) -> bool:
        """Make it ours, until `leave`; False when a living process has it, or was quicker."""
        if self.is_held(prediction):
            return False
        self.begin(prediction.id)
        taken = False
        try:
            taken = await self._store.take(prediction.id, owner=self._owners.me, was=prediction.owner)
        finally:
            if not taken:
                self.leave(prediction.id)
        return taken

    def begin(self, prediction_id: str) -> None:
        """Work on one, until `leave`. Who works on it more than once leaves it as often."""
        self._working[prediction_id] += 1

    def leave(self, prediction_id: str) -> None:
        """Work on it no more."""
        self._working[prediction_id] -= 1
        if self._working[prediction_id] <= 0:
            del self._working[prediction_id]

    def held(self, prediction: Prediction) -> Owned:
        """Ours while the block runs. What is left unfinished is nobody's then, so that others may take it up."""
        return Owned(self, prediction.id)

    async def let_go(self, prediction_id: str) -> None:
        """Work on it no more, and leave it to others. Until that is written down it is ours: nobody takes it between."""
        try:
            await self._release(prediction_id)
        finally:
            self.leave(prediction_id)

    async def _release(self, prediction_id: str) -> None:
        """Write down that it is nobody's; what cannot be written down now is remembered for `release_what_waits`."""
        try:
            await self._store.release(prediction_id, owner=self._owners.me)
        except ImagenError as error:
            if len(self._unreleased) < _MOST_UNRELEASED:
                self._unreleased.add(prediction_id)
            _log.debug("releasing %s failed: %s", prediction_id, error.code)

    async def release_what_waits(self) -> None:
        """Let go of what could not be let go of while the store took nothing.

        Raises:
            StoreError: it still takes nothing.
        """
        for prediction_id in list(self._unreleased):
            if prediction_id not in self._working:
                self.begin(prediction_id)
                try:
                    await self._store.release(prediction_id, owner=self._owners.me)
                finally:
                    self.leave(prediction_id)
            self._unreleased.discard(prediction_id)
