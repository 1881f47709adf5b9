"""The book of posted faults: which of them strikes which request, and how often it has."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

import msgspec

from imagen.emulator.course import Course
from imagen.emulator.fault import CREATE, WEBHOOK, Fault, Slot, Subject
from imagen.emulator.faults import fault_from_json, fault_names
from imagen.emulator.problems import InvalidField, Problem, invalid_request

_IN_PROMPT = re.compile(r"\[fault:([^\]]*)\]")


@dataclass(eq=False)
class Posted:
    """A fault in the book: how many requests it met, how many it struck."""

    id: int
    fault: Fault
    only: tuple[str, str] | None = None
    """Account and whole prompt, for a fault that a prompt carries."""
    met: int = 0
    struck: int = 0

    def strikes(self, subject: Subject) -> bool:
        """Whether this request is struck; counts it."""
        if self.only is not None and self.only != (subject.account, subject.prompt):
            return False
        if not self.fault.meets(subject):
            return False
        self.met += 1
        if self.met <= self.fault.skip:
            return False
        if self.fault.times is not None and self.struck >= self.fault.times:
            return False
        self.struck += 1
        return True

    def to_json(self) -> dict[str, Any]:
        """As control shows it."""
        attributes: dict[str, Any] = msgspec.to_builtins(self.fault)
        return {"id": self.id, **attributes, "met": self.met, "struck": self.struck}


class FaultBook:
    """Faults in the order they were posted; the first that fits strikes."""

    def __init__(self) -> None:
        self._posted: dict[int, Posted] = {}
        self._read: set[tuple[str, str]] = set()
        self._next_id = 1

    def post(self, fault: Fault, only: tuple[str, str] | None = None) -> Posted:
        """Add a fault."""
        posted = Posted(self._next_id, fault, only)
        self._posted[posted.id] = posted
        self._next_id += 1
        return posted

    def withdraw(self, posted_id: int) -> bool:
        """Remove one; False if there is none of this id."""
        return self._posted.pop(posted_id, None) is not None

    def clear(self) -> None:
        """Remove all, and forget which prompts were read."""
        self._posted.clear()
        self._read.clear()

    def posted(self) -> tuple[Posted, ...]:
        """All of them, those that have struck often enough as well."""
        return tuple(self._posted.values())

    def read_prompt(self, subject: Subject) -> None:
        """Post the faults that a prompt carries, once for each account and prompt.

        Raises:
            Problem: 422, a fault in the prompt cannot be read.
        """
        only = (subject.account, subject.prompt)
        if "[fault:" not in subject.prompt or only in self._read:
            return
        faults = [_fault_in_prompt(text) for text in _IN_PROMPT.findall(subject.prompt)]
        self._read.add(only)
        for fault in faults:
            self.post(fault, only)

    def strike(self, slot: Slot, subject: Subject) -> Fault | None:
        """The one fault of this slot that strikes the request, if any."""
        for posted in self._posted.values():
            if posted.fault.slot is slot and posted.strikes(subject):
                return posted.fault
        return None

    def bend(self, course: Course, subject: Subject) -> tuple[Course, tuple[str, ...]]:
        """The course under all faults that strike it, one of each kind, and their names."""
        names: list[str] = []
        for posted in self._posted.values():
            fault = posted.fault
            if fault.slot is Slot.COURSE and fault.name not in names and posted.strikes(subject):
                course = fault.bend(course)
                names.append(fault.name)
        return course, tuple(names)


def _fault_in_prompt(text: str) -> Fault:
    try:
        name, *pairs = shlex.split(text)
        attributes: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
        operation = WEBHOOK if name.startswith(f"{WEBHOOK}_") else CREATE
        fault = fault_from_json({"operation": operation, **attributes, "name": name}, lax=True)
        if fault.slot is Slot.COURSE and "times" not in attributes:
            return msgspec.structs.replace(fault, times=None)
    except ValueError as problem:
        raise _unreadable(text, str(problem)) from problem
    return fault


def _unreadable(text: str, reason: str) -> Problem:
    description = f"[fault:{text}] cannot be read ({reason}); the faults are {', '.join(fault_names())}"
    return invalid_request([InvalidField("emulator_fault", "input.prompt", description)])
