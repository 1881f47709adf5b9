"""How a prediction or a training goes: its statuses, the course planned for it, and what time makes of both.

Nothing runs here. A run's status is read from its plan and the clock, by table; what a fault changes
is the course, before the prediction is created.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from imagen.emulator.models import Model

RETENTION_SECONDS = 3600.0
"""Input, output, logs and files of API predictions are removed after an hour (docs, data-retention)."""


class Status(StrEnum):
    """The six statuses of the OpenAPI document."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED})


class Stop(StrEnum):
    """Why a prediction ends before its time."""

    CANCEL = "cancel"
    DEADLINE = "deadline"


# Status when stopped, and why → the status it ends in. `aborted` means that the deadline came before the
# start (changelog 2025-10-16); whoever cancels gets `canceled` in either case (recorded 2024-04).
STOPPED = {
    (Status.STARTING, Stop.CANCEL): Status.CANCELED,
    (Status.STARTING, Stop.DEADLINE): Status.ABORTED,
    (Status.PROCESSING, Stop.CANCEL): Status.CANCELED,
    (Status.PROCESSING, Stop.DEADLINE): Status.CANCELED,
}


@dataclass(frozen=True)
class Course:
    """What is going to happen to a run; faults bend it.

    `queue_seconds` in `starting`, `run_seconds` in `processing`, then `settle_seconds` more in `processing`
    with the output already there. An `error` makes it fail. `pictures` says what the files hold,
    `left_out` which keys its JSON lacks, `hidden_seconds` for how long lists do not show it, and
    `hold_ends_in` with which status a held create call comes back at once. With `output` "given" the output is `given`,
    any JSON value, and `logs` are what it printed, where they are not None.
    """

    queue_seconds: float
    run_seconds: float
    settle_seconds: float = 0.0
    error: str | None = None
    output: Literal["files", "data_uris", "empty", "null", "given"] = "files"
    given: Any = None
    logs: str | None = None
    pictures: Literal["whole", "truncated", "html"] = "whole"
    left_out: frozenset[str] = frozenset()
    hidden_seconds: float = 0.0
    hold_ends_in: Literal["starting", "processing"] | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Run:
    """A prediction or a training of one account. All `_at` are seconds since 1970 on the virtual clock."""

    id: str
    sequence: int
    """Position among all runs, counted up: lists are ordered by it."""
    account: str
    made_by: Model
    """The version that runs."""
    input: dict[str, Any]
    """What was given, keys and passwords in clear: the run needs them."""
    webhook: str | None = None
    webhook_events: tuple[str, ...] = ()
    course: Course
    created_at: float
    starts_at: float
    deadline_at: float | None = None
    canceled_at: float | None = None
    kept: bool = False
    """Whether its data stays; that of API predictions does not."""
    faults: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """`owner/name`."""
        return self.made_by.name

    @property
    def prompt(self) -> str:
        """The prompt, as far as there is one."""
        return str(self.input.get("prompt", ""))

    @property
    def outputs_at(self) -> float:
        """When the output is there, unless it fails or is stopped before."""
        return self.starts_at + self.course.run_seconds

    @property
    def planned_end_at(self) -> float:
        """When it ends if nobody stops it; infinite if it never starts."""
        return self.outputs_at + self.course.settle_seconds

    @property
    def ends_at(self) -> float:
        """When it ends, as far as is known now."""
        return min(self.planned_end_at, self._stop()[1])

    @property
    def ready_at(self) -> float:
        """When a held create call has something to say: the output is there, or it has ended."""
        return min(self.ends_at, self.outputs_at) if self.course.error is None else self.ends_at

    @property
    def removed_at(self) -> float:
        """When its data is removed."""
        return float("inf") if self.kept else self.ends_at + RETENTION_SECONDS

    def status_at(self, now: float) -> Status:
        """The status at an instant; once terminal, it stays what it is."""
        reason, stopped_at = self._stop()
        if stopped_at < self.planned_end_at and now >= stopped_at:
            return STOPPED[self._undisturbed(stopped_at), reason]
        return self._undisturbed(now)

    def has_ended(self, now: float) -> bool:
        """Whether its status is terminal."""
        return self.status_at(now) in TERMINAL

    def has_output(self, now: float) -> bool:
        """Whether its output can be seen: it is there and not yet removed."""
        made = self.course.error is None and self.outputs_at <= min(now, self.ends_at)
        return made and now < self.removed_at

    def started_at(self, now: float) -> float | None:
        """When it began to run, if it has."""
        return self.starts_at if self.starts_at < min(self.ends_at, now) or self._ran(now) else None

    def completed_at(self, now: float) -> float | None:
        """When it ended, if it has."""
        return self.ends_at if self.has_ended(now) else None

    def progress_at(self, now: float) -> float:
        """How much of the run is done, 0 to 1."""
        run_until = min(now, self.ends_at)
        if run_until >= self.outputs_at:
            return 1.0
        return max(0.0, (run_until - self.starts_at) / self.course.run_seconds)

    def _ran(self, now: float) -> bool:
        return self.status_at(now) in {Status.SUCCEEDED, Status.FAILED}

    def _undisturbed(self, now: float) -> Status:
        if now <= self.starts_at and self.planned_end_at > now:
            return Status.STARTING
        if now < self.planned_end_at:
            return Status.PROCESSING
        return Status.SUCCEEDED if self.course.error is None else Status.FAILED

    def _stop(self) -> tuple[Stop, float]:
        deadline = self.deadline_at if self.deadline_at is not None else float("inf")
        if self.canceled_at is not None and self.canceled_at <= deadline:
            return Stop.CANCEL, self.canceled_at
        return Stop.DEADLINE, deadline


@dataclass(eq=False, slots=True, kw_only=True)
class Prediction(Run):
    """One prediction, and what comes out of it: files, or pieces of text."""

    version: str
    """As its JSON says it: the version's id or `hidden`."""
    deployment: str | None = None
    seed: int
    """The seed that was given, or the one that was drawn."""
    steps: int | None = None
    """Denoising steps, for models that have them."""
    key: str
    """What its files' and its stream's addresses are made of; nobody guesses it."""
    files: tuple[str, ...] = ()
    """The URLs of its files, known beforehand, shown when ready."""
    pieces: tuple[str, ...] = ()
    """What a model of text says, piece by piece."""

    def pieces_at(self, now: float) -> tuple[str, ...]:
        """The text that is there: models that print piece by piece show it while they run."""
        if self.course.error is not None or now >= self.removed_at:
            return ()
        until = min(now, self.ends_at)
        if until >= self.outputs_at:
            return self.pieces
        return self.pieces[: bisect_right(range(len(self.pieces)), until, key=self.piece_comes_at)]

    def piece_comes_at(self, index: int) -> float:
        """When piece number `index`, from 0, is there."""
        return self.starts_at + self.course.run_seconds * (index + 1) / len(self.pieces)


@dataclass(eq=False, slots=True, kw_only=True)
class Training(Run):
    """One training: when it succeeds, its destination has a new version."""

    destination: str
    """`owner/name` of the model that gets the version."""
    trained: str
    """The id of that version, 64 hexadecimal digits."""
    weights: str
    """The URL of the weights' file."""
