"""Names for things: sortable by time, unguessable, safe in a path and in a URL."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from uuid import UUID

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: no i, l, o, u
_DIGITS = 26


def new_id(prefix: str, now: datetime) -> str:
    """`prefix_` and 26 characters: 48 bits of milliseconds, then 80 random bits (the layout of a ULID)."""
    number = int(now.timestamp() * 1000) << 80 | secrets.randbits(80)
    return f"{prefix}_{_digits(number)}"


def id_at(prefix: str, instant: datetime) -> str:
    """What comes before every id that `new_id` makes at an instant or later, and after all earlier ones."""
    return f"{prefix}_{_digits(max(int(instant.timestamp() * 1000), 0) << 80)}"


def instant_of(identifier: str) -> datetime | None:
    """When `new_id` made an id, to the millisecond; None for what is none of ours."""
    try:
        return datetime.fromtimestamp((to_uuid(identifier).int >> 80) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def new_secret(prefix: str) -> str:
    """`prefix_` and 32 characters of 160 random bits: whoever knows it may use what it names."""
    number = secrets.randbits(160)
    return f"{prefix}_{''.join(_ALPHABET[number >> shift & 31] for shift in range(155, -1, -5))}"


def to_uuid(identifier: str) -> UUID:
    """The 128 bits of what `new_id` made, without its prefix.

    Raises:
        ValueError: it is none of ours.
    """
    digits = identifier.rpartition("_")[2]
    if len(digits) != _DIGITS or not set(digits) <= set(_ALPHABET):
        raise ValueError(f"{identifier[:60]!r} is no id of ours")
    number = 0
    for digit in digits:
        number = number << 5 | _ALPHABET.index(digit)
    return UUID(int=number)


def from_uuid(prefix: str, found: UUID) -> str:
    """The id that has these 128 bits."""
    return f"{prefix}_{_digits(found.int)}"


def _digits(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
