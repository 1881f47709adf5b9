"""Everything the emulator remembers: accounts, their predictions, trainings and files, and what was counted.

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
from imagen.emulator.course import Course, Prediction, Run, Training
from imagen.emulator.files import StoredFile
from imagen.emulator.limits import Limits
from imagen.emulator.models import Model
from imagen.emulator.words import pieces_of

MAX_SEED = 2**31 - 1
MOST_PREDICTIONS = 100_000
"""Of all accounts; above it the oldest that has ended is forgotten."""
MOST_TRAININGS = 10_000
MOST_FILE_BYTES = 1024**3
"""Of one account; above it the oldest files are forgotten."""


@dataclass(eq=False)
class Account:
    """What Replicate bills: one per token. The token itself is not kept, `key` is its fingerprint."""

    key: str
    limits: Limits
    predictions: list[Prediction] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
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


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a create call asks for, after everything in it has passed."""

    model: Model
    input: dict[str, Any]
    course: Course
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    id: str = ""
    """The id of what is planted; empty: a new one."""


@dataclass(frozen=True, kw_only=True)
class PredictionOrder(Order):
    """An order of a prediction."""

    count: int = 0
    """Number of files."""
    format: str = ""
    deployment: str | None = None
    cancel_after_seconds: float | None = None
    kept: bool = False
    """Whether its data stays, as that of an example does."""


@dataclass(frozen=True, kw_only=True)
class TrainingOrder(Order):
    """An order of a training."""

    destination: str


class State:
    """Accounts, predictions and trainings by id, what the file host has by key, and counters."""

    def __init__(self, clock: Clock, delivery_url: str) -> None:
        self._clock = clock
        self._delivery_url = delivery_url
        self._ends: list[float] = []
        self._runs = 0
        self.accounts: dict[str, Account] = {}
        self.predictions: dict[str, Prediction] = {}
        self.trainings: dict[str, Training] = {}
        self.delivered: dict[str, Run] = {}
        self.examples: dict[str, Prediction] = {}
        """The example of a model, by its name."""
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

    def remembers(self, run: Run) -> bool:
        """Whether a run is still known."""
        return run in (self.predictions.get(run.id), self.trainings.get(run.id))

    def create(
        self, account: Account, order: PredictionOrder, *, concurrency: int | None = None
    ) -> Prediction:
        """Buy a prediction. With `concurrency` it starts when fewer than so many are running."""
        self.purchases += 1
        prediction = self.make(account.key, order, slot_at=self._slot_free_at(concurrency))
        self.enter(account, prediction)
        self.max_running = max(self.max_running, self.running())
        return prediction

    def make(self, account: str, order: PredictionOrder, *, slot_at: float = 0.0) -> Prediction:
        """A prediction that nobody knows yet; it starts at `slot_at` or later."""
        now = self._clock.time()
        identity, key = order.id or new_id(), secrets.token_urlsafe(24)
        model = order.model
        return Prediction(
            id=identity,
            sequence=self._next_number(),
            account=account,
            made_by=model,
            version=model.public_version,
            deployment=order.deployment,
            input=order.input,
            seed=_seed_of(order.input, identity),
            steps=_steps_of(model, order.input),
            key=key,
            files=tuple(
                f"{self._delivery_url}/xezq/{key}/out-{n}.{order.format}" for n in range(order.count)
            ),
            pieces=pieces_of(model, order.input),
            webhook=order.webhook,
            webhook_events=order.webhook_events,
            course=order.course,
            created_at=now,
            starts_at=max(now + order.course.queue_seconds, slot_at),
            deadline_at=None if order.cancel_after_seconds is None else now + order.cancel_after_seconds,
            kept=order.kept,
            faults=list(order.faults),
        )

    def enter(self, account: Account, prediction: Prediction) -> None:
        """Make a prediction known as one of an account."""
        self.predictions[prediction.id] = self.delivered[prediction.key] = prediction
        account.predictions.append(prediction)
        insort(self._ends, prediction.ends_at)
        if len(self.predictions) > MOST_PREDICTIONS:
            self._forget_the_oldest(self.predictions)

    def train(self, account: Account, order: TrainingOrder) -> Training:
        """Begin a training."""
        now = self._clock.time()
        key = secrets.token_urlsafe(24)
        training = Training(
            id=order.id or new_id(),
            sequence=self._next_number(),
            account=account.key,
            made_by=order.model,
            input=order.input,
            webhook=order.webhook,
            webhook_events=order.webhook_events,
            course=order.course,
            created_at=now,
            starts_at=now + order.course.queue_seconds,
            kept=True,
            faults=list(order.faults),
            destination=order.destination,
            trained=secrets.token_hex(32),
            weights=f"{self._delivery_url}/xezq/{key}/trained_model.tar",
        )
        self.trainings[training.id] = self.delivered[key] = training
        account.trainings.append(training)
        if len(self.trainings) > MOST_TRAININGS:
            self._forget_the_oldest(self.trainings)
        return training

    def keep_file(self, account: Account, stored: StoredFile) -> None:
        """Keep an uploaded file; what has expired goes, and the oldest when there is too much."""
        now = self._clock.time()
        account.files = {key: kept for key, kept in account.files.items() if kept.expires_at > now}
        account.files[stored.id] = stored
        total = sum(len(kept.content) for kept in account.files.values())
        for kept in list(account.files.values())[:-1]:
            if total <= MOST_FILE_BYTES:
                break
            total -= len(account.files.pop(kept.id).content)

    def cancel(self, run: Run) -> None:
        """Stop a run now; one that has ended stays as it is."""
        now = self._clock.time()
        if run.has_ended(now):
            return
        if run.id in self.predictions:
            index = bisect_left(self._ends, run.ends_at)
            if self._ends[index : index + 1] == [run.ends_at]:
                del self._ends[index]
        run.canceled_at = now
        self._clock.wake()

    def forget_version(self, identity: str) -> None:
        """Forget the predictions of a version, with their files."""
        for prediction in [one for one in self.predictions.values() if one.made_by.version_id == identity]:
            self._forget(prediction)

    def forget(self, identity: str) -> None:
        """Forget the prediction and the training of an id, if there are any."""
        for run in (self.predictions.get(identity), self.trainings.get(identity)):
            if run is not None:
                self._forget(run)

    def _next_number(self) -> int:
        self._runs += 1
        return self._runs

    def _forget_the_oldest(self, runs: Mapping[str, Run]) -> None:
        oldest = next(iter(runs.values()))
        if oldest.has_ended(self._clock.time()):
            self._forget(oldest)

    def _forget(self, run: Run) -> None:
        account = self.accounts[run.account]
        if isinstance(run, Training):
            del self.trainings[run.id]
            account.trainings.remove(run)
            self.delivered.pop(run.weights.split("/")[-2], None)
        elif isinstance(run, Prediction):
            del self.predictions[run.id]
            account.predictions.remove(run)
            self.delivered.pop(run.key, None)

    def _slot_free_at(self, concurrency: int | None) -> float:
        running = self.running()
        return self._ends[-concurrency] if concurrency and running >= concurrency else 0.0


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
