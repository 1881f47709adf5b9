"""What observers are told about a prediction on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from imagen.domain.budget import Shortage
from imagen.domain.prediction import Prediction


class Submitted(msgspec.Struct, frozen=True):
    """The intent is written down; it is about to be bought."""

    prediction: Prediction
    typical_seconds: float | None = None


class Resumed(msgspec.Struct, frozen=True):
    """An unfinished prediction of the same request is taken up instead of buying a new one."""

    prediction: Prediction


class CacheHit(msgspec.Struct, frozen=True):
    """It has the pictures of the equal prediction `made_as`, and nothing was bought for it.

    `shared`: that one was being made just then; otherwise they were in the cache.
    """

    prediction: Prediction
    made_as: str
    shared: bool = False


class Progressed(msgspec.Struct, frozen=True):
    """It was looked at. `fraction` is from 0.0 to 1.0, None while the model tells nothing."""

    prediction: Prediction
    fraction: float | None


class AnswerLost(msgspec.Struct, frozen=True):
    """The create's answer was lost; what it bought is being looked for, for at most `seconds`."""

    prediction: Prediction
    seconds: float


class Adopted(msgspec.Struct, frozen=True):
    """What a lost answer had bought was found."""

    prediction: Prediction


class Waiting(msgspec.Struct, frozen=True):
    """A repeat is due in `seconds`, because of `reason`."""

    reason: str
    seconds: float


class InLine(msgspec.Struct, frozen=True):
    """It waits for a place or a turn. `position` counts from 1; `limit` says for what, such as `semaphore:ID`."""

    limit: str
    position: int


class LetIn(msgspec.Struct, frozen=True):
    """It holds all that it needs, after waiting for so long."""

    waited_seconds: float


class BudgetPassed(msgspec.Struct, frozen=True):
    """It is bought although a budget that only warns has no room for it."""

    shortage: Shortage


class Throttled(msgspec.Struct, frozen=True):
    """The service said 429: nobody of this account goes for about `seconds`."""

    reason: str
    seconds: float


class Called(msgspec.Struct, frozen=True):
    """One exchange with the service; `status` is None when no answer came."""

    operation: str
    status: int | None


class Fetching(msgspec.Struct, frozen=True):
    """Picture `index` (from 1) of `count` is being fetched."""

    prediction: Prediction
    index: int
    count: int


class Saved(msgspec.Struct, frozen=True):
    """A picture was written, perhaps under another name than wished because that was taken meanwhile."""

    prediction: Prediction
    path: Path
    renamed: bool = False


class LedgerDelayed(msgspec.Struct, frozen=True):
    """The ledger could not be written; the entry is kept and tried again."""

    prediction_id: str
    reason: str


class GivenUp(msgspec.Struct, frozen=True):
    """An unfinished prediction of the same request can no longer be recovered; a new one is bought."""

    prediction: Prediction
    reason: str


class Canceled(msgspec.Struct, frozen=True):
    """It was canceled upstream because whoever asked for it went away."""

    prediction: Prediction


class CancelUnconfirmed(msgspec.Struct, frozen=True):
    """It should be canceled, but whether it was is not known; its deadline ends it in any case."""

    prediction: Prediction
    reason: str


class LeftUnfetched(msgspec.Struct, frozen=True):
    """Whoever asked for it went away when it was already made: its pictures wait upstream, for an hour."""

    prediction: Prediction


class HungUp(msgspec.Struct, frozen=True):
    """Whoever asked the gateway at `server` went away, and the connection with them.

    `made` are the predictions that it had told of before; whatever else it was making, it cancels.
    """

    server: str
    made: tuple[Prediction, ...] = ()


class LeftOut(msgspec.Struct, frozen=True):
    """What a preset offered, or was taken over from another picture, and is not sent: the model does not take it.

    Attributes:
        model: that model.
        fields: by the names that they were offered under.
        preset: that offered them; None where they were taken over.
    """

    model: str
    fields: tuple[str, ...]
    preset: str | None = None


class Ended(msgspec.Struct, frozen=True):
    """It ended, one way or the other."""

    prediction: Prediction


class Delivered(msgspec.Struct, frozen=True):
    """An event was sent to the address of a caller: it was taken, it failed and is tried again, or it was given up."""

    outcome: Literal["taken", "failed", "given_up"]


Event = (
    Submitted
    | Resumed
    | CacheHit
    | Progressed
    | AnswerLost
    | Adopted
    | Waiting
    | InLine
    | LetIn
    | BudgetPassed
    | Throttled
    | Called
    | Fetching
    | Saved
    | LedgerDelayed
    | GivenUp
    | Canceled
    | CancelUnconfirmed
    | LeftUnfetched
    | HungUp
    | LeftOut
    | Ended
    | Delivered
)
