"""A named limit that several services share."""

from __future__ import annotations

import re

import msgspec

from imagen.errors import InvalidInput, NotFound, Problem

MAX_LIMIT = 10_000
MAX_TTL_SECONDS = 86_400.0
"""The longest lease; whoever needs a place for longer renews it."""
MAX_HOLDER_CHARACTERS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


class Holder(msgspec.Struct, frozen=True):
    """Who holds a place: since when, and until when at most. Instants in epoch seconds."""

    holder: str
    since: float
    expires_at: float


class Semaphore(msgspec.Struct, frozen=True):
    """So many at once; `held` places are taken now, `waiting` are in line."""

    name: str
    limit: int
    held: int = 0
    waiting: int = 0


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a semaphore. Whoever knows `id` may renew it and give it back. Instants in epoch seconds."""

    id: str
    semaphore: str
    holder: str
    expires_at: float


def check_semaphore(name: str, limit: int) -> None:
    """Refuse a name or limit that makes no sense.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    problems = []
    if not _NAME.fullmatch(name):
        problems.append(Problem("semaphore", f"{name[:100]!r} must be 1 to 100 letters, digits and . _ : -"))
    if not 1 <= limit <= MAX_LIMIT:
        problems.append(Problem("limit", f"{limit} is not allowed; it must be from 1 to {MAX_LIMIT}"))
    if problems:
        raise InvalidInput(problems)


def check_lease(holder: str, ttl_seconds: float) -> None:
    """Refuse a holder or a length that makes no sense.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    problems = []
    if not (holder and len(holder) <= MAX_HOLDER_CHARACTERS and holder.isprintable()):
        problems.append(Problem("holder", f"it must be 1 to {MAX_HOLDER_CHARACTERS} printable characters"))
    if not 1 <= ttl_seconds <= MAX_TTL_SECONDS:
        problems.append(
            Problem(
                "ttl", f"{ttl_seconds:g} is not allowed; it must be from 1 to {MAX_TTL_SECONDS:g} seconds"
            )
        )
    if problems:
        raise InvalidInput(problems)


def unknown_semaphore(name: str) -> NotFound:
    """The error for a semaphore that nobody has registered."""
    return NotFound(
        f"External semaphore '{name[:100]}' not found",
        hint="`imagen semaphore register NAME LIMIT`, or POST /global-semaphores, makes one.",
    )
