"""How a sink's failures are told: in one line, without what is secret."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST = 300
_STATE_LENGTH = 5
_UNFIT_CLASSES = frozenset({"22", "23", "54"})


def redacted(text: str, *, secrets: Iterable[str]) -> str:
    """What a server or a library said, on one line, with each of `secrets` hidden."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"\s+", " ", text).strip()[:_LONGEST]


def is_unfit(state: str | None) -> bool:
    """Whether PostgreSQL refused what a row says: it cannot be stored so, breaks a rule of the table, or is too large.

    By the class of its SQLSTATE. Source: appendix A of PostgreSQL's documentation.
    """
    return state is not None and len(state) == _STATE_LENGTH and state[:2] in _UNFIT_CLASSES


def missing(extra: str) -> str:
    """What to do when the library of a sink is not installed."""
    return f"Run: pip install 'imagen-gateway[{extra}]'"


MAKE_IT = "`imagen sink schema` prints the SQL that makes the table"
