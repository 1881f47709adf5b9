"""A named limit that several services share."""

from __future__ import annotations

import re

import msgspec

from imagen.errors import InvalidInput, Problem

MAX_LIMIT = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


class Semaphore(msgspec.Struct, frozen=True):
    """So many at once; `held` places are taken now."""

    name: str
    limit: int
    held: int = 0


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
