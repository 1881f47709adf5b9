"""Whom we serve."""

from __future__ import annotations

import msgspec


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who asks for pictures, and what they may have.

    Attributes:
        name: whom the ledger names.
        key: the id of the key that was shown; None for callers without one. Equal for those who share a turn.
        concurrent: predictions at the same time; None leaves it to the account.
        per_minute: predictions a minute; None leaves it to the account.
        stranger: they brought an account of their own, which proves nothing about them.
    """

    name: str
    key: str | None = None
    concurrent: int | None = None
    per_minute: int | None = None
    stranger: bool = False

    @property
    def turn(self) -> str:
        """Callers take turns by this name."""
        return self.key or self.name


OWN_TOKEN = "token:"  # noqa: S105 - a prefix
"""How the names of strangers begin: of them the ledger knows no more than a fingerprint of their token."""
ADMIN = "admin"
"""Whom the ledger names for what the admin of a gateway asks for."""
LONGEST_CALLER = 200
"""Characters of a caller's name."""
UNKNOWN = Caller(name="unknown")
"""Somebody of whom nothing is known."""


def is_stranger(key: str | None, caller: str) -> bool:
    """Whether something that was asked for with that key and name came of a stranger, who has no key of ours."""
    return key is None and caller.startswith(OWN_TOKEN)
