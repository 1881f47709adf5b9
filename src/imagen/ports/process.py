"""What a process knows of itself and its surroundings: time, its name, how its store is, who looks on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from imagen.domain.events import Event


class Clock(Protocol):
    """Time as an argument."""

    def now(self) -> datetime:
        """Aware, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Owners(Protocol):
    """Tells living processes from dead ones, so that nobody takes up work that another still does."""

    @property
    def me(self) -> str:
        """The name of this process."""

    def alive(self, owner: str) -> bool:
        """Whether that process still runs. Exact on one machine, also after kill -9 and reused process ids."""


class Observer(Protocol):
    """Is told what happens on the way. Must not raise, must not block; what it raises is swallowed and logged."""

    def notify(self, event: Event) -> None:
        """Take note."""


Notify = Callable[[Event], None]
"""Tells whoever looks on what happens on the way. It must not raise and must not block."""


class StoreCondition(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the store takes what is to be written down.

    Attributes:
        state: ok. busy: another process holds it. full: its disk, or its quota, has no room. failing: it fails for another
            reason.
        since: when that was noticed first.
        detail: one sentence, where it is not well.
    """

    state: Literal["ok", "busy", "full", "failing"]
    since: datetime
    detail: str | None = None


class Pulse(Protocol):
    """Knows how the store is: from what is written anyway, and from a write of its own where that was too long ago."""

    @property
    def last(self) -> StoreCondition:
        """How it was when it was used last. Asks nothing."""

    async def feel(self, *, within_seconds: float) -> StoreCondition:
        """How it is now. A write that has no answer within that time counts as one that waits for another process."""
