"""Everything the emulator remembers: accounts, their predictions and files, and what was counted.

One `State` belongs to one event loop; `reset` throws it away and makes a new one.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imagen.emulator.clock import Clock
from imagen.emulator.course import Course, Prediction
from imagen.emulator.files import StoredFile
from imagen.emulator.limits import Limits
from imagen.emulator.models import Model

MAX_SEED = 2**31 - 1


@dataclass(eq=False)
class Account:
    """What Replicate bills: one per token. The token itself is not kept, `key` is its fingerprint."""

    key: str
    limits: Limits
    predictions: list[Prediction] = field(default_factory=list)
    files: dict[str, StoredFile] = field(default_factory=dict)
    rotations: int = 0
    """How often its webhook secret was replaced."""

    @property
    def username(self) -> str:
        """The account's name in `GET /account` and in download links."""
        return f"emulated-{self.key}"

    @property
    def webhooks_secret(self) -> str:
        """The secret of `GET /webhooks/default/secret`: the same for the same token, until it is rotated."""
        rotated = f" {self.rotations}" if self.rotations else ""
        digest = hashlib.sha256(f"webhook {self.key}{rotated}".encode()).digest()[:24]
        return f"whsec_{base64.b64encode(digest).decode()}"

    @property
    def files_secret(self) -> str:
        """The Files API signing secret, for download links."""
        return hashlib.sha256(f"files {self.key}".encode()).hexdigest()


@dataclass(frozen=True)
class Order:
    """What a create call asks for, after everything in it has passed."""

    model: Model
    input: dict[str, Any]
    course: Course
    count: int
    """Number of files."""
    format: str
    deployment: str | None = None
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()
    cancel_after_seconds: int | None = None
    faults: tuple[str, ...] = ()


class State:
    """Accounts, predictions by id and by delivery key, and counters."""

    def __init__(self, clock: Clock, delivery_url: str) -> None:
        self._clock = clock
        self._delivery_url = delivery_url
        self._ends: list[float] = []
        self.accounts: dict[str, Account] = {}
        self.predictions: dict[str, Prediction] = {}
        self.delivered: dict[str, Prediction] = {}
        self.purchases = 0
        self.max_running = 0

    def account(self, key: str) -> Account:
        """The account of a token's fingerprint; the first use opens it."""
        if key not in self.accounts:
            self.accounts[key] = Account(key, Limits(self._clock))
        return self.accounts[key]

    def rotate_webhook_secrets(self) -> None:
        """Replace the webhook secret of every account; what is sent from now on is signed with the new one."""
        for account in self.accounts.values():
            account.rotations += 1

    def running(self) -> int:
        """How many predictions are accepted and not ended, of all accounts."""
        del self._ends[: bisect_right(self._ends, self._clock.time())]
        return len(self._ends)

    def by_status(self) -> Mapping[str, int]:
        """How many predictions are in which status now."""
        now = self._clock.time()
        return Counter(prediction.status_at(now).value for prediction in self.predictions.values())

    def create(self, account: Account, order: Order, *, concurrency: int | None = None) -> Prediction:
        """Buy a prediction. With `concurrency` it starts when fewer than so many are running."""
        now = self._clock.time()
        starts_at = max(now + order.course.queue_seconds, self._slot_free_at(concurrency, now))
        identity = new_id()
        key = secrets.token_urlsafe(24)
        self.purchases += 1
        prediction = Prediction(
            id=identity,
            sequence=self.purchases,
            account=account.key,
            model=order.model.name,
            version=order.model.public_version,
            deployment=order.deployment,
            input=order.input,
            secret_inputs=order.model.secret_inputs,
            seed=_seed_of(order.input, identity),
            steps=_steps_of(order.model, order.input),
            files=tuple(
                f"{self._delivery_url}/xezq/{key}/out-{n}.{order.format}" for n in range(order.count)
            ),
            many=order.model.output == "uris",
            webhook=order.webhook,
            webhook_events=order.webhook_events,
            course=order.course,
            created_at=now,
            starts_at=starts_at,
            deadline_at=now + order.cancel_after_seconds if order.cancel_after_seconds else None,
            faults=list(order.faults),
        )
        self.predictions[identity] = self.delivered[key] = prediction
        account.predictions.append(prediction)
        insort(self._ends, prediction.ends_at)
        self.max_running = max(self.max_running, self.running())
        return prediction

    def cancel(self, prediction: Prediction) -> None:
        """Stop a prediction now; one that has ended stays as it is."""
        now = self._clock.time()
        if prediction.has_ended(now):
            return
        index = bisect_left(self._ends, prediction.ends_at)
        if index < len(self._ends):
            del self._ends[index]
        prediction.canceled_at = now
        self._clock.wake()

    def _slot_free_at(self, concurrency: int | None, now: float) -> float:
        running = self.running()
        return self._ends[-concurrency] if concurrency and running >= concurrency else now


def new_id() -> str:
    """An id as the API makes them: 26 characters of base32 in lower case."""
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def _seed_of(given: Mapping[str, Any], identity: str) -> int:
    seed = given.get("seed")
    if isinstance(seed, int | float):
        return int(seed)
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") & MAX_SEED


def _steps_of(model: Model, given: Mapping[str, Any]) -> int | None:
    steps = model.with_defaults(given).get("num_inference_steps")
    return int(steps) if isinstance(steps, int | float) else None
