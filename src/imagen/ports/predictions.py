"""Predictions as they are written down, and what was learned of how long they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from imagen.domain.prediction import Prediction, Status
from imagen.domain.usage import UsageEntry


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """Whose predictions are meant: those of which all holds that is said here; everybody's where nothing is.

    Attributes:
        account: who pays.
        key: the id of the key that asked for them.
        caller: who asked for them without a key.
    """

    account: str | None = None
    key: str | None = None
    caller: str | None = None


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a long list of predictions, whose ids rise with time.

    Attributes:
        above, below: ids between which it lies; None for no bound.
        limit: how many at most: the newest, or with `rising` the oldest of them.
    """

    above: str | None = None
    below: str | None = None
    limit: int
    rising: bool = False


class PredictionStore(Protocol):
    """Remembers predictions. Each method is one durable transaction: when it returns, kill -9 changes nothing.

    Raises:
        StoreBusy: somebody else held the database too long.
        StoreError: disk full, no permission, damaged file.
    """

    async def add(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> None:
        """Write down a new intent, or one that ended without being bought, with its entry of the ledger.

        Raises:
            StoreError: one of that id is written down already.
        """

    async def save(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> Prediction:
        """Write its present state. A stored terminal status is never left: the stored row wins and is returned.

        Whatever places it held are free from the moment in which its end is written down.

        Args:
            prediction: as it is now.
            entry: of the ledger, written in the same transaction; the prediction counts as settled then.

        Raises:
            UpstreamTaken: its upstream id belongs to another of our predictions.
        """

    async def get(self, prediction_id: str) -> Prediction:
        """By our id, its unique beginning, or the upstream id.

        Raises:
            NotFound: none, or several, begin like that.
        """

    async def status(self, prediction_id: str) -> Status | None:
        """Where the one of exactly this id of ours stands; None when there is none. Cheap, however large its input is."""

    async def unfinished(
        self, *, request_key: str | None = None, besides: str | None = None
    ) -> Sequence[Prediction]:
        """Predictions with something left to do, oldest first.

        Args:
            request_key: only those of one request.
            besides: leave out what this owner follows, and what belongs to batches that have not ended.
        """

    async def promised(self, request_key: str) -> Sequence[Prediction]:
        """Unfinished ones of one request that items of batches are made of which have not ended, oldest first."""

    async def take(self, prediction_id: str, *, owner: str, was: str | None) -> bool:
        """Become the owner, if the owner still is `was`. False when somebody was quicker."""

    async def release(self, prediction_id: str, *, owner: str) -> None:
        """Stop being the owner."""

    async def list(self, *, limit: int, status: Status | None = None) -> Sequence[Prediction]:
        """Newest first."""

    async def stretch(self, sight: Sight, stretch: Stretch) -> Sequence[str]:
        """The ids of a part of those that somebody may see, newest first; with `rising` oldest first."""

    async def of_draft(self, draft: str) -> Sequence[Prediction]:
        """The previews of one wish and the finals made of them, oldest first, 1000 at most. Whose they are, the caller checks."""

    async def unsettled(self) -> Sequence[Prediction]:
        """Ended predictions that the ledger does not have yet."""

    async def known_upstream_ids(self, account: str, *, since: datetime) -> frozenset[str]:
        """Upstream ids of this account that are ours already, of what was sent since then; accepted it may be much longer."""

    async def of_upstream(self, account: str, upstream_ids: Sequence[str]) -> Sequence[Prediction]:
        """Those of ours, in any order, that have one of these upstream ids: some hundreds at most."""

    async def unreadable(self) -> Sequence[str]:
        """Ids of predictions that the other methods left out because their rows are damaged, as far as that was noticed."""


class RunTimes(Protocol):
    """What was learned about how long models run. Each method is one durable transaction."""

    async def recall(self) -> Mapping[str, Mapping[str, float]]:
        """What is known, by model: names and numbers as `remember` had them."""

    async def remember(self, learned: Mapping[str, Mapping[str, float]]) -> None:
        """Replace what is known of these models."""
