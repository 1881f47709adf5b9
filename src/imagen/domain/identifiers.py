"""Names for things: sortable by time, unguessable, safe in a path and in a URL."""

from __future__ import annotations

import secrets
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: no i, l, o, u


def new_id(prefix: str, now: datetime) -> str:
    """`prefix_` and 26 characters: 48 bits of milliseconds, then 80 random bits (the layout of a ULID)."""
    number = int(now.timestamp() * 1000) << 80 | secrets.randbits(80)
    digits = [_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(digits)}"


def new_secret(prefix: str) -> str:
    """`prefix_` and 32 characters of 160 random bits: whoever knows it may use what it names."""
    number = secrets.randbits(160)
    return f"{prefix}_{''.join(_ALPHABET[number >> shift & 31] for shift in range(155, -1, -5))}"
