"""Durable work: a batch of items, each a wish that ends exactly once.

    queued ──► running ──► succeeded | failed | canceled | expired
       └──────────────────────────────► canceled

An item that fails for a passing reason goes back to `queued`; one that has ended never moves again, unless somebody
asks for another attempt, which is a new wish with a new purchase.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

from imagen.decoding import convert
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.limits import Lane
from imagen.domain.money import Usd


class ItemStatus(StrEnum):
    """Where an item stands. `expired`: it was made and paid for, but its pictures were gone before they were fetched."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self not in {ItemStatus.QUEUED, ItemStatus.RUNNING}


class BatchStatus(StrEnum):
    """Where a batch stands."""

    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    PARTLY_FAILED = "partly_failed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def terminal(self) -> bool:
        """Whether nothing of it is left to do."""
        return self not in {BatchStatus.RUNNING, BatchStatus.PAUSED}


class Control(StrEnum):
    """What is wanted of a batch."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


KEY_LIVES = timedelta(hours=24)
"""How long an idempotency key stands for the request that it came with first."""


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may come again.

    Attributes:
        scope: whose key it is; keys of different callers have nothing to do with each other.
        key: what the caller sent as `Idempotency-Key`.
        fingerprint: sha256 of method, path and body, in hex.
        created_at: when it came first.
        batch_id: what it became.
        answer: what was answered, where that cannot be told from the batch.
    """

    scope: str
    key: str
    fingerprint: str
    created_at: datetime
    batch_id: str = ""
    answer: dict[str, Any] | None = None


class Remembered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the gateway itself remembers of work that it took on: its part of `Batch.details`.

    Attributes:
        prediction_id: of a single prediction: the id under which it was promised.
        deadline_seconds: of a single prediction: how long it may run, for whoever waits for it.
        reached_at: the address under which its caller reached the gateway.
        watched: somebody looks at how it goes on.
        face: by whose words it was asked for; None where these are ours.
        exact: nothing is told in another form than that face's own.
        stream_key: who shows it may read the stream; clients read that one without their token.
        cancel_after: seconds from its acceptance after which it is to end, in line too; None where nobody said so.
        fails_with_account: what its account does not let through fails, instead of waiting until somebody mends that.
        held: its caller waits for its end, so that nothing was answered before that.
        stopped_by: the code of the error that it was paused for, where it was paused for a reason.
        resumed_at: when it was let run last after a pause; retried_at: when items of it were tried again last.
    """

    prediction_id: str | None = None
    deadline_seconds: float | None = None
    reached_at: str = ""
    watched: bool = False
    face: str | None = None
    exact: bool = False
    stream_key: str | None = None
    cancel_after: float | None = None
    fails_with_account: bool = False
    held: bool = False
    stopped_by: str | None = None
    resumed_at: datetime | None = None
    retried_at: datetime | None = None

    def to_details(self) -> dict[str, Any]:
        """As `Batch.details` has it."""
        details: dict[str, Any] = msgspec.to_builtins(self)
        return details


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Many items, accepted together. A single prediction that was asked for durably is a batch of one.

    Attributes:
        id: `batch_…`.
        kind: `batch`, or `single` for one prediction; those are not listed among the batches.
        name: what its maker calls it, such as the name of a file; may be empty.
        caller: who asked for it, with the limits of their key.
        scope: who may see it besides the admin: equal for all requests of the same key or token.
        backend: the name of the configured backend; account: who pays.
        lane: whose turn it is first.
        total: how many items it has.
        quoted: what all items are expected to cost as far as prices are known; unpriced: items without a known price.
        images: pictures that are expected.
        control: what is wanted of it; reason: why it was paused, where it was not its maker who did it.
        own_token: it is made on a token of its caller's.
        sealed_token: that token, encrypted; None when it has none, it is kept in memory only, or the batch has ended.
        webhook: where its events are delivered; webhook_events: which.
        details: what a face wants to remember of it; what the gateway itself reads of that is `remembered`.
        sequence: how many items have ended so far, those that ended again after a retry counted again.
        owner: the process that works on it; None when nobody does.
        fingerprint: sha256 of method, path and body, in hex, of a request that may come again with nothing that tells it from
            a new one; None for others.
        owed_by: the process that owes whoever sent that the first answer; None once it was given.
    """

    id: str
    backend: str
    account: str
    total: int
    created_at: datetime
    kind: Literal["batch", "single"] = "batch"
    name: str = ""
    caller: Caller = UNKNOWN
    scope: str = ""
    lane: Lane = Lane.BATCH
    quoted: Usd = Usd(0)
    unpriced: int = 0
    images: int = 0
    control: Control = Control.RUN
    reason: str | None = None
    own_token: bool = False
    sealed_token: str | None = None
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()
    details: dict[str, Any] = {}
    sequence: int = 0
    owner: str | None = None
    fingerprint: str | None = None
    owed_by: str | None = None
    ended_at: datetime | None = None

    @property
    def remembered(self) -> Remembered:
        """What the gateway itself remembers of it."""
        return convert(self.details, Remembered)

    def status(self, tally: Tally) -> BatchStatus:
        """Where it stands, with its items as counted."""
        if tally.left:
            return BatchStatus.PAUSED if self.control is Control.PAUSE else BatchStatus.RUNNING
        if self.control is Control.CANCEL and tally.canceled:
            return BatchStatus.CANCELED
        if tally.succeeded == self.total:
            return BatchStatus.SUCCEEDED
        return BatchStatus.PARTLY_FAILED if tally.succeeded else BatchStatus.FAILED


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The items of a batch, counted.

    Attributes:
        cost: of all attempts so far; unpriced: ended items that cost something nobody knows.
        images: pictures made.
        recent: ends within the last `recent_seconds`, for a forecast; none while nothing has ended.
        recent_from: when the first of those was begun, at the service where it was bought; None while there are none.
    """

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0
    cost: Usd = Usd(0)
    unpriced: int = 0
    images: int = 0
    recent: int = 0
    recent_from: datetime | None = None
    recent_seconds: float = 0.0

    @property
    def left(self) -> int:
        """Items that have not ended."""
        return self.queued + self.running

    @property
    def ended(self) -> int:
        """Items that have."""
        return self.succeeded + self.failed + self.canceled + self.expired


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One wish of a batch.

    Attributes:
        index: from 0, in the order in which they were given.
        order: the checked request as `service.orders` stores it, in JSON: the exact predictions that it takes, with their
            ids. Ten thousand of them are in memory at once, so that only who needs it reads it.
        note: what the face that took it wants to remember, such as the name of the file it is to become.
        attempt: from 1.
        predictions: the ids of the predictions of this attempt.
        error, code: why it has no picture, for people and for programs; hint: what to do next.
        problem: further fields of the error that faces show.
        charged: whether any of it is billed; None while open, or when nobody can tell.
        cost: of all attempts; None when a part of it has no known price.
        files: where its pictures are: paths, or `shelf:pic_…` for those on the shelf; "" for one that is missing.
        urls: where the service has them, for an hour.
        seed: of its first prediction.
        images: how many pictures it made.
        sequence: the how-manieth end in its batch this was; 0 while it has not ended.
    """

    batch_id: str
    index: int
    order: bytes
    note: dict[str, Any] = {}
    status: ItemStatus = ItemStatus.QUEUED
    attempt: int = 1
    predictions: tuple[str, ...] = ()
    error: str | None = None
    code: str | None = None
    hint: str | None = None
    problem: dict[str, Any] = {}
    charged: bool | None = None
    cost: Usd | None = Usd(0)
    files: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    seed: int | None = None
    images: int = 0
    sequence: int = 0
    ended_at: datetime | None = None


def promised_id(batch: Batch, item: Item) -> str:
    """The id under which a single prediction was promised, also after another attempt."""
    return batch.remembered.prediction_id or item.predictions[0]
