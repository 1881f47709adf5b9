"""When a prediction is looked at again, and what is known of how long a model runs."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

import msgspec

from imagen.errors import StoreError
from imagen.ports import Clock, RunTimes

SAVE_EVERY_SECONDS = 30.0
"""What was learned is written down no more often than that."""
_CLOSING_SECONDS = 2.0

_RATIO = 1.08
_LEAST_SECONDS, _MOST_SECONDS = 0.05, 86_400.0
_KEEPS = 0.999
"""What an observation weighs after one more: about the last thousand count."""
_ENOUGH = 5
_HEAVY = 1e9
_MOST_MODELS = 500
_PRACTICE = "practice:"

_log = logging.getLogger(__name__)


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Where nothing better is known: looked at after 0.5 s, then half as long again each time, at most every 5 s."""

    first_seconds: float = 0.5
    factor: float = 1.5
    cap_seconds: float = 5.0

    def after(self, seconds: float) -> float:
        """The pause after a pause of `seconds`."""
        return min(seconds * self.factor, self.cap_seconds)


class RunTime:
    """How long one model takes, from the create to the end, queue included.

    A histogram over the logarithm of the seconds, which slowly forgets: a few dozen numbers, whatever was seen.

    Args:
        weights: as `weights` gave them; what makes no sense in them is left out.
    """

    __slots__ = ("_marks", "_unit", "_weights")

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._unit = 1.0
        self._weights: dict[int, float] = {}
        self._marks: tuple[float, float, float] | None = None
        for name, weight in (weights or {}).items():
            if name.lstrip("-").isdecimal() and len(name) <= len("-999") and 0 < weight < _HEAVY:
                self._weights[int(name)] = float(weight)

    @property
    def known(self) -> bool:
        """Whether enough was seen to go by."""
        return sum(self._weights.values()) >= _ENOUGH * self._unit * _KEEPS**_ENOUGH

    @property
    def early(self) -> float:
        """Seconds within which one of fifty has ended."""
        return self._quantiles()[0]

    @property
    def median(self) -> float:
        """Seconds within which half of them have ended."""
        return self._quantiles()[1]

    @property
    def late(self) -> float:
        """Seconds within which all but one of a hundred have ended."""
        return self._quantiles()[2]

    def add(self, seconds: float) -> None:
        """One more run was seen to its end."""
        place = math.floor(math.log(min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS), _RATIO))
        self._unit /= _KEEPS
        self._weights[place] = self._weights.get(place, 0.0) + self._unit
        self._marks = None
        if self._unit > _HEAVY:
            self._weights = {int(name): weight for name, weight in self.weights().items()}
            self._unit = 1.0

    def merge(self, other: RunTime) -> None:
        """Add what another one knows."""
        for name, weight in other.weights().items():
            place = int(name)
            self._weights[place] = self._weights.get(place, 0.0) + weight * self._unit
        self._marks = None

    def weights(self) -> dict[str, float]:
        """What is to be kept of it; what hardly counts any more is left out."""
        scaled = {place: weight / self._unit for place, weight in self._weights.items()}
        return {str(place): round(weight, 4) for place, weight in scaled.items() if weight >= 1e-3}

    def _quantiles(self) -> tuple[float, float, float]:
        if self._marks is None:
            self._marks = self._at(0.02), self._at(0.5), self._at(0.99)
        return self._marks

    def _at(self, share: float) -> float:
        left = sum(self._weights.values()) * share
        for place in sorted(self._weights):
            weight = self._weights[place]
            if weight >= left:
                return float(_RATIO ** (place + left / weight))
            left -= weight
        return float(_RATIO ** (max(self._weights) + 1)) if self._weights else 0.0


class RunTimeBook:
    """What is known of every model. Read once, in the background; written down now and then. Never waited for.

    Args:
        store: keeps it.
        clock: tells the time.
    """

    def __init__(self, store: RunTimes, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._models: dict[str, RunTime] = {}
        self._changed: set[str] = set()
        self._recalling: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    def of(self, model: str, *, practice: bool) -> RunTime | None:
        """What is known of a model; None while that is too little to go by.

        Args:
            model: its ref; versions of one model count as one.
            practice: nothing real was run: that is kept apart, and forgotten with the process.
        """
        self._recall()
        found = self._models.get(_name(model, practice=practice))
        return found if found is not None and found.known else None

    async def recall(self) -> None:
        """Read what is known, once, and wait for it."""
        self._recall()
        if self._recalling is not None:
            await asyncio.wait([self._recalling])

    def learn(self, model: str, seconds: float, *, practice: bool) -> None:
        """A run of a model has taken so long, from the create to its end."""
        self._recall()
        name = _name(model, practice=practice)
        if name not in self._models and len(self._models) >= _MOST_MODELS:
            forgotten = next(iter(self._models))  # the one that came first
            self._models.pop(forgotten)
            self._changed.discard(forgotten)
        self._models.setdefault(name, RunTime()).add(seconds)
        if practice:
            return
        self._changed.add(name)
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save_later())

    async def aclose(self) -> None:
        """Write down what was learned since, unless that takes long."""
        recalling, saving = self._recalling, self._saving
        if saving is not None:
            saving.cancel()
            await asyncio.wait([saving])
        if recalling is not None:
            await asyncio.wait([recalling], timeout=_CLOSING_SECONDS)
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._save()
        except TimeoutError:
            _log.debug("how long models run was not written down in time")

    def _recall(self) -> None:
        if self._recalling is None:
            self._recalling = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            told = await self._store.recall()
        except StoreError as error:
            _log.debug("how long models run could not be read: %s", error)
            return
        for name, weights in list(told.items())[:_MOST_MODELS]:
            kept = RunTime(weights)
            if name in self._models:
                self._models[name].merge(kept)
            else:
                self._models[name] = kept

    async def _save_later(self) -> None:
        while self._changed:
            await asyncio.sleep(SAVE_EVERY_SECONDS)
            await self._save()
        self._saving = None

    async def _save(self) -> None:
        if self._recalling is not None:
            await asyncio.wait([self._recalling])  # what is written replaces what was there
        changed, self._changed = self._changed, set()
        if not changed:
            return
        try:
            await self._store.remember({name: self._models[name].weights() for name in changed})
        except StoreError as error:
            _log.debug("how long models run was not written down: %s", error)
            self._changed |= changed


def _name(model: str, *, practice: bool) -> str:
    return (_PRACTICE if practice else "") + model.partition(":")[0]
