"""Rows that cannot be read, told from a database that cannot be."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, DBAPIError)
"""What reading a damaged row raises, or may also raise for other reasons: see `is_damage`."""


def is_damage(error: Exception) -> bool:
    """Whether it was a row that could not be read, and not the database."""
    return not isinstance(error, DBAPIError) or "decode" in str(error.orig)
