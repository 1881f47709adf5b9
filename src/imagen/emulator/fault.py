"""What all faults have in common: which requests they meet, and where on a request's way they strike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

import msgspec

from imagen.emulator.course import Course
from imagen.emulator.journal import same_operation

CREATE = "predictions.create"
TRAIN = "trainings.create"
DELIVERY = "delivery"
WEBHOOK = "webhook"

OPERATIONS = (
    "account.get",
    "collections.get",
    "collections.list",
    "deployments.create",
    "deployments.delete",
    "deployments.get",
    "deployments.list",
    "deployments.predictions.create",
    "deployments.update",
    "files.create",
    "files.delete",
    "files.download",
    "files.get",
    "files.list",
    "hardware.list",
    "models.create",
    "models.delete",
    "models.examples.list",
    "models.get",
    "models.list",
    "models.predictions.create",
    "models.readme.get",
    "models.search",
    "models.update",
    "models.versions.delete",
    "models.versions.get",
    "models.versions.list",
    "predictions.cancel",
    "predictions.create",
    "predictions.get",
    "predictions.list",
    "search",
    TRAIN,
    "trainings.cancel",
    "trainings.get",
    "trainings.list",
    "webhooks.default.secret.get",
    "stream",
    DELIVERY,
    "unknown",
)
"""What `operation` of a fault can name: the OpenAPI document's names, streams, the file host, and unknown paths."""

WEBHOOK_OPERATIONS = tuple(f"{event}.{WEBHOOK}" for event in ("start", "output", "logs", "completed"))
"""What it can name for a fault of webhooks; `webhook` names all of them."""


class Slot(Enum):
    """The places of a request's way where a fault can strike."""

    DELAY = auto()
    INSTEAD = auto()
    """An answer is given, or none, without doing the thing."""
    COURSE = auto()
    """A prediction that is being created takes another course."""
    AFTER = auto()
    """The thing is done, the answer suffers."""
    WEBHOOK = auto()
    """A webhook suffers on its way out."""


@dataclass(frozen=True)
class Subject:
    """What is known of a request when faults are looked for."""

    operation: str
    method: str
    path: str
    model: str = ""
    prompt: str = ""
    account: str = ""


class Fault(
    msgspec.Struct,
    kw_only=True,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="name",
    tag=lambda name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(),
):
    """What every fault has: the requests it meets. The faults themselves are in `faults.py`."""

    slot: ClassVar[Slot] = Slot.INSTEAD

    operation: str | None = None
    """`predictions.create` (on any path), `predictions.get`, `delivery`, …: names of the OpenAPI document."""
    method: str | None = None
    path: str | None = None
    """A regular expression, found anywhere in the path."""
    model: str | None = None
    """`owner/name`."""
    prompt: str | None = None
    """A part of the prompt."""
    times: int | None = 1
    """How many requests it strikes; null: every one."""
    skip: int = 0
    """How many matching requests pass before."""

    def __post_init__(self) -> None:
        if type(self) is Fault:
            raise TypeError("Fault is what all faults have in common: use one of the structs in faults.py")
        if self.skip < 0 or (self.times is not None and self.times < 1):
            raise ValueError("skip must be 0 or more, times 1 or more, or null")
        if self.operation is not None and not self._can_strike(self.operation):
            raise ValueError(f"{self.name} cannot strike the operation {self.operation!r}")
        if self.path is not None:
            _check_pattern(self.path)

    @property
    def name(self) -> str:
        """The name it is posted under."""
        return str(self.__struct_config__.tag)

    def meets(self, subject: Subject) -> bool:
        """Whether a request is one this fault is about; counting is the book's business."""
        return (
            self._meets_operation(subject.operation)
            and (self.method is None or self.method.upper() == subject.method)
            and (self.path is None or re.search(self.path, subject.path) is not None)
            and (self.model is None or self.model == subject.model)
            and (self.prompt is None or self.prompt in subject.prompt)
        )

    def bend(self, course: Course) -> Course:
        """The course a prediction takes under this fault."""
        return course

    def _can_strike(self, wanted: str) -> bool:
        return any(same_operation(operation, wanted) for operation in OPERATIONS)

    def _meets_operation(self, operation: str) -> bool:
        if self.operation is None:
            return self.slot is not Slot.COURSE or same_operation(operation, CREATE)
        return same_operation(operation, self.operation)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as problem:
        raise ValueError(f"path is not a regular expression: {problem}") from problem
