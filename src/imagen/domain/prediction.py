"""A prediction: one run of a model, and the table by which its status moves.

    queued ──► starting ──► processing ──► succeeded | failed | canceled
       │           └──────────────┴──────► aborted (its deadline passed before it began)
       └──► unknown      its create's answer was lost and can no longer be looked up

`queued` and `unknown` are ours: the intent is written down, nothing is known upstream. The other six are Replicate's.
A status only moves along this table, and it never leaves a terminal one: a late or reordered answer changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

from imagen.domain.draft import FinalWish
from imagen.domain.money import Usd
from imagen.domain.quote import UNKNOWN_PRICE, Quote
from imagen.domain.secret import Secret
from imagen.errors import FailureCategory

Tier = Literal["preview", "final"]
"""A cheap picture to choose from, or the one that was made of the chosen one."""


class Status(StrEnum):
    """Where a prediction stands."""

    QUEUED = "queued"
    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"
    UNKNOWN = "unknown"

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return not _NEXT[self]


_ENDINGS = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED})
_NEXT: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.STARTING, Status.PROCESSING, Status.UNKNOWN}) | _ENDINGS,
    Status.STARTING: frozenset({Status.PROCESSING}) | _ENDINGS,
    Status.PROCESSING: _ENDINGS,
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
    Status.ABORTED: frozenset(),
    Status.UNKNOWN: frozenset(),
}
EMULATOR = "emulator"
"""The type of the backends that paint by themselves, for nothing, and run no model."""
HIDDEN = "[hidden]"
"""What stands in a stored input where a secret was sent."""
TERMINAL = frozenset(status for status, following in _NEXT.items() if not following)


def next_status(current: Status, seen: Status) -> Status:
    """The status after `seen` was reported: `seen` where the table allows it, else `current` stays."""
    return seen if seen in _NEXT[current] else current


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says about its limit: calls that would pass now."""

    remaining: int


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What upstream said about a prediction at one look.

    Attributes:
        output: the addresses of its files, or the files themselves as data URIs.
        answer: see `Prediction.answer`.
        model: `owner/name` as the service tells it; None where it names none.
        told_at: when the service said it, by its own clock, to which its other instants belong; None where nobody knows.
        allowance: what is left of the account's rate.
    """

    upstream_id: str
    status: Status
    input: dict[str, Any] | None = None
    output: tuple[str, ...] = ()
    answer: Any = None
    model: str | None = None
    version: str | None = None
    error: str | None = None
    category: FailureCategory | None = None
    logs: str = ""
    predict_seconds: float | None = None
    image_count: int | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    data_removed: bool = False
    told_at: datetime | None = None
    allowance: Allowance | None = None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a model as we remember it: written down before it is bought, and after every change.

    Attributes:
        id: ours, `pred_…`; upstream_id: the service's.
        account: fingerprint of the account that pays; predictions are only looked for in their own.
        request_key: equal for equal requests whose seed we chose; how a repeated command finds its own work.
        input: exactly what is sent, seed included: how a lost answer is recognised upstream.
        owner: the process that follows it; None when nobody does.
        output: the addresses of its files; what came inside an answer is there as a data URI until it is written down.
        answer: its output as the service tells it, where that is not just the list in `output`: one address, an object, a
            text. `data:` stands for each file that came inside the answer. None too for what is too long to be kept.
        charged: whether it is billed; None while that is open.
        cost: what it costs by our price book; None when the price is not known.
        files: where its pictures were put; delivered_at: when that was complete.
        settled_at: when the ledger had it.
        key: the id of the key with which it was asked for; None for callers without one.
        quote: what it was to cost, told before it was bought.
        tier: `preview` for a cheap one to choose from, `final` for one made of that; None for all others.
        parent: the prediction of which it was made: the preview of a final.
        preset: the named set of inputs that it was made with.
        draft: what the previews of one wish, and the finals made of them, have in common.
        wished: of a preview: what its final is made of.
        ran_as: the model that it ran, `owner/name`, where `model` is a deployment or a version alone and the service has
            told it.
        prompt_hash: all that the ledger knows of the prompt; None in what older releases wrote, then its sha256 counts.
    """

    id: str
    backend: str
    backend_type: str
    account: str
    model: str
    prompt: str
    input: dict[str, Any]
    request_key: str
    caller: str
    created_at: datetime
    deadline_seconds: float
    seed: int | None = None
    status: Status = Status.QUEUED
    sent_at: datetime | None = None
    upstream_id: str | None = None
    version: str | None = None
    output: tuple[str, ...] = ()
    answer: Any = None
    error: str | None = None
    category: FailureCategory | None = None
    logs: str = ""
    predict_seconds: float | None = None
    image_count: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    owner: str | None = None
    charged: bool | None = None
    cost: Usd | None = None
    destination: dict[str, Any] | None = None
    files: tuple[str, ...] = ()
    delivered_at: datetime | None = None
    settled_at: datetime | None = None
    key: str | None = None
    quote: Quote = UNKNOWN_PRICE
    tier: Tier | None = None
    parent: str | None = None
    preset: str | None = None
    draft: str | None = None
    wished: FinalWish | None = None
    prompt_hash: str | None = None
    ran_as: str | None = None

    @property
    def unheard(self) -> bool:
        """Nothing is known of it but the intent: neither what upstream calls it, nor an end."""
        return self.upstream_id is None and not self.status.terminal

    @property
    def unsent(self) -> bool:
        """Its create surely is not at the service: it never left, or was refused, and is sent later if at all."""
        return self.unheard and self.sent_at is None

    @property
    def finished(self) -> bool:
        """Nothing is left to do: it ended, and its pictures, if it made any, were delivered or given up."""
        return self.status.terminal and (self.delivered_at is not None or self.status is not Status.SUCCEEDED)

    @property
    def reused(self) -> bool:
        """Its pictures are those of an equal prediction, and nothing was bought for it."""
        return self.status is Status.SUCCEEDED and self.upstream_id is None and self.charged is False

    @property
    def practice(self) -> bool:
        """Whether the emulator painted it, and no model was run."""
        return self.backend_type == EMULATOR

    @property
    def spent(self) -> Usd | None:
        """What it cost; None while it may still cost something, or nobody knows the price."""
        if self.charged is False:
            return Usd(0)
        if self.charged is None and self.upstream_id is None:
            return Usd(0) if self.sent_at is None else None
        return self.cost

    @property
    def latency_ms(self) -> int | None:
        """Milliseconds from the moment it was sent until we knew its end."""
        if self.ended_at is None:
            return None
        return round((self.ended_at - (self.sent_at or self.created_at)).total_seconds() * 1000)

    def observe(self, sighting: Sighting, *, now: datetime) -> Prediction:
        """The prediction after a look at it. Facts only get richer; an ended prediction keeps its end."""
        status = next_status(self.status, sighting.status)
        if self.status.terminal:
            return self
        return msgspec.structs.replace(
            self,
            status=status,
            upstream_id=sighting.upstream_id,
            version=sighting.version or self.version,
            ran_as=self.ran_as or (sighting.model if self._is_unnamed else None),
            output=sighting.output or self.output,
            answer=self.answer if sighting.answer is None else sighting.answer,
            error=sighting.error or self.error,
            category=sighting.category or self.category,
            logs=sighting.logs or self.logs,
            predict_seconds=self.predict_seconds
            if sighting.predict_seconds is None
            else sighting.predict_seconds,
            image_count=self.image_count if sighting.image_count is None else sighting.image_count,
            started_at=sighting.started_at or self.started_at,
            ended_at=now if status.terminal else None,
            charged=is_charged(
                status,
                started=self._has_started(sighting),
                deployment=self.model.startswith("deployments/"),
            ),
        )

    @property
    def _is_unnamed(self) -> bool:
        """Whether only the service knows which model it is."""
        return "/" not in self.model or self.model.startswith("deployments/")

    def _has_started(self, sighting: Sighting) -> bool:
        """Whether the run ever began; recorded answers do not always tell `started_at`."""
        return (
            self.status is Status.PROCESSING
            or bool(sighting.started_at or self.started_at)
            or bool(sighting.predict_seconds)
        )


def is_charged(status: Status, *, started: bool, deployment: bool = False) -> bool | None:
    """Whether a run is billed: succeeded and canceled-while-running are, failed and aborted ones are not.

    A deployment bills its machines' time, so that what failed there cost something too. Source: Replicate's billing
    page and its changelog of 2025-10-16. None while the run is open or its end unknown.
    """
    match status:
        case Status.SUCCEEDED:
            return True
        case Status.CANCELED:
            return started
        case Status.FAILED:
            return deployment
        case Status.ABORTED:
            return False
        case _:
            return None


def request_key(account: str, model: str, fields: dict[str, Any], *, index: int = 0) -> str:
    """The same for the same wish: sha256 over account, model, the input without a seed of ours, and the index of several."""
    canonical = msgspec.json.encode([account, model, fields, index], order="sorted")
    return hashlib.sha256(canonical).hexdigest()


def hash_prompt(prompt: str) -> str:
    """sha256 of the prompt in hex: all that the ledger ever knows of it."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def prompt_hasher(key: Secret | None) -> Callable[[str], str]:
    """What the ledger gets of a prompt: its sha256, or with a key its HMAC-SHA256, by which nobody else can guess it."""
    if key is None:
        return hash_prompt
    secret = key.reveal().encode()
    return lambda prompt: hmac.digest(secret, prompt.encode(), "sha256").hex()


def any_charged(told: Iterable[bool | None]) -> bool | None:
    """Whether any of several is billed, by what is known of each; None when nobody can tell."""
    known = set(told)
    return True if True in known else None if None in known else False
