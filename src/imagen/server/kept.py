"""Answers of the service that are given again for a short while, instead of asking anew: of bounded size, by account."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from cachetools import TTLCache

from imagen.ports import Clock

MOST_BYTES = 32 * 1024 * 1024
REFUSED_SECONDS = 300.0
MOST_REFUSALS = 10_000
MOST_ANSWERS = 2000
LARGEST_BYTES = MOST_BYTES // 4
"""Of one answer."""


class Question(NamedTuple):
    """What was asked.

    Attributes:
        account: on whose account.
        base: the address by which the gateway was reached, which stands in the answer.
        method, path: with the query.
        body: of a search.
        kind: what else the answer depends on.
    """

    account: str
    base: str
    method: str
    path: str
    body: bytes
    kind: str


class KeptAnswer(NamedTuple):
    """An answer as it goes back: status, header fields and the whole body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class KeptAnswers:
    """The answers that were told not long ago; those that nobody asked for longest go first.

    Args:
        clock: tells the time.
        most_bytes: of all of them together.
    """

    def __init__(self, clock: Clock, *, most_bytes: int = MOST_BYTES) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._bytes = 0
        self._answers: OrderedDict[Question, tuple[KeptAnswer, float, float]] = OrderedDict()

    def find(self, question: Question) -> tuple[KeptAnswer, int] | None:
        """The answer and its age in seconds; None when it is not here, or too old."""
        found = self._answers.get(question)
        if found is None:
            return None
        told, since, until = found
        now = self._clock.monotonic()
        if now >= until:
            self._drop(question)
            return None
        self._answers.move_to_end(question)
        return told, int(now - since)

    def keep(self, question: Question, told: KeptAnswer, *, seconds: float) -> None:
        """Give this answer for so long."""
        self._drop(question)
        size = _size(question, told)
        if size > LARGEST_BYTES:
            return
        now = self._clock.monotonic()
        self._answers[question] = (told, now, now + seconds)
        self._bytes += size
        while self._bytes > self._most_bytes or len(self._answers) > MOST_ANSWERS:
            self._drop(next(iter(self._answers)))

    def forget(self, account: str) -> None:
        """Something of this account was changed."""
        for question in [one for one in self._answers if one.account == account]:
            self._drop(question)

    def _drop(self, question: Question) -> None:
        if (found := self._answers.pop(question, None)) is not None:
            self._bytes -= _size(question, found[0])


def _size(question: Question, told: KeptAnswer) -> int:
    return len(told.content) + len(question.body) + len(question.path)


class Refusals:
    """What was refused a while ago, so that it is not asked for again at once.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._refused: TTLCache[str, None] = TTLCache(MOST_REFUSALS, REFUSED_SECONDS, timer=clock.monotonic)

    def __contains__(self, what: str) -> bool:
        """Whether it was refused within the last minutes."""
        return what in self._refused

    def add(self, what: str) -> None:
        """It was refused just now."""
        self._refused[what] = None
