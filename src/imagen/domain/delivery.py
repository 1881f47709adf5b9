"""A delivery: one event that is told to an address of a caller's, again and again until it is taken."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one address. Its id stays the same over all attempts, so that its receiver can tell repeats.

    Attributes:
        id: `msg_…`, sent as `webhook-id`.
        subject: what it is about, a prediction or a batch; deliveries of one subject to one address keep their order.
        url: where it goes.
        scope: whose it is: by it the secret is chosen that signs it.
        event: its type, such as `prediction.completed`.
        body: what is sent, as JSON.
        created_at: when it happened.
        attempts: how often it was sent.
        tried_since: when its day of attempts began: with the first one, or when somebody asked for more.
        due_at: when it is sent next; None once it was taken or given up.
        delivered_at: when it was taken; given_up_at: when no more is tried.
        answer: what came of the last attempt, for people.
    """

    id: str
    subject: str
    url: str
    scope: str
    event: str
    body: dict[str, Any]
    created_at: datetime
    attempts: int = 0
    tried_since: datetime | None = None
    due_at: datetime | None = None
    delivered_at: datetime | None = None
    given_up_at: datetime | None = None
    answer: str | None = None

    @property
    def status(self) -> Literal["waiting", "taken", "given_up"]:
        """Where it stands."""
        if self.delivered_at is not None:
            return "taken"
        return "waiting" if self.given_up_at is None else "given_up"


class SigningSecret(msgspec.Struct, frozen=True, kw_only=True):
    """What the secrets of all callers are derived from.

    Attributes:
        id: rising with each rotation.
        secret: random bytes in base64, sealed where there is a key for that.
        created_at: since when it signs; retires_at: until when it signs beside its successor, None for the newest.
    """

    id: int
    secret: str
    created_at: datetime
    retires_at: datetime | None = None
