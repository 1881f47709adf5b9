"""Rate limits per account: token buckets on the virtual clock, and what an account may spend.

Facts: creating predictions 600 a minute, every other call 3000 a minute, short bursts allowed (docs, topics/
predictions/rate-limits). Under $5 of credit: 6 creates a minute, burst 1 (429 bodies of 2026).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from imagen.emulator.clock import Clock

LOW_CREDIT_PER_MINUTE = 6.0
LOW_CREDIT_BURST = 1


class Mode(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What every account is held to; changed through control's `POST mode` or `Emulator.set_mode`.

    Rates are calls a minute and bursts are calls at once, both per account; 0 a minute lifts a limit.
    `concurrency` is how many predictions run at once, the others stay `starting`; None: all of them.
    `webhooks_via` (`http://127.0.0.1:8080`) is where webhooks are sent, whatever host their address names, as if a proxy
    that ends TLS stood there; None: none is sent, because an emulator calls nobody unasked.
    With `data_uris` predictions whose create call is held (`Prefer: wait`) have their files inside the answers, as recorded
    in October 2024. Pictures have at least `picture_kib` KiB, for measuring; they then show the same scene.
    """

    low_credit: bool = False
    no_credit: bool = False
    creates_per_minute: float = 600.0
    creates_burst: int = 600
    others_per_minute: float = 3000.0
    others_burst: int = 3000
    concurrency: int | None = None
    webhooks_via: str | None = None
    data_uris: bool = False
    picture_kib: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0

    def __post_init__(self) -> None:
        if self.webhooks_via is not None and not _is_origin(self.webhooks_via):
            raise ValueError("webhooks_via must be an address without a path, such as http://127.0.0.1:8080")
        if min(self.creates_per_minute, self.others_per_minute) < 0:
            raise ValueError("rates a minute must be 0 (no limit) or more")
        concurrency = 1 if self.concurrency is None else self.concurrency
        if min(self.creates_burst, self.others_burst, concurrency) < 1:
            raise ValueError("bursts and concurrency must be 1 or more")


@dataclass(frozen=True)
class Verdict:
    """What a bucket says of one call."""

    allowed: bool
    remaining: int
    """Calls that would pass at this instant, after this one: the header `ratelimit-remaining`."""
    reset_seconds: float
    """Seconds until the next call passes, at least 1 in the header `ratelimit-reset`."""


class Bucket:
    """Calls flow in at a rate and are held up to a burst; one call takes one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used = 0.0
        self._at = clock.time()

    def take(self, per_minute: float, burst: int) -> Verdict:
        """Take one call if there is one; a refused call costs nothing."""
        if per_minute == 0:
            return Verdict(allowed=True, remaining=burst, reset_seconds=0.0)
        per_second = per_minute / 60
        now = self._clock.time()
        self._used = max(0.0, self._used - (now - self._at) * per_second)
        self._at = now
        if self._used + 1 > burst + 1e-9:
            return Verdict(allowed=False, remaining=0, reset_seconds=(self._used + 1 - burst) / per_second)
        self._used += 1
        return Verdict(
            allowed=True,
            remaining=math.floor(burst - self._used + 1e-9),
            reset_seconds=max(0.0, self._used + 1 - burst) / per_second,
        )


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    rest = (parts.path.strip("/"), parts.query, parts.fragment)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and has_port and not any(rest)


class Limits:
    """The two buckets of one account."""

    def __init__(self, clock: Clock) -> None:
        self._creates = Bucket(clock)
        self._low_credit = Bucket(clock)
        self._others = Bucket(clock)

    def take(self, mode: Mode, *, creates: bool) -> Verdict:
        """Count one call against the limit that it falls under."""
        if not creates:
            return self._others.take(mode.others_per_minute, mode.others_burst)
        if mode.low_credit:
            return self._low_credit.take(LOW_CREDIT_PER_MINUTE, LOW_CREDIT_BURST)
        return self._creates.take(mode.creates_per_minute, mode.creates_burst)
