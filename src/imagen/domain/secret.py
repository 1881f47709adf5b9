"""A value that must not be seen."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NoReturn

_SECRET_NAME = re.compile(r"(?:^|_)(?:api_?key|key|token|secret|password|credentials?)$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a parameter of this name holds somebody's key or password, as far as its name tells."""
    return _SECRET_NAME.search(name) is not None


class Secret:
    """A token, key or password. Its text leaves only through `reveal()`; printing, logging and encoding hide it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Call it where it is sent, and nowhere else."""
        return self._text

    def fingerprint(self) -> str:
        """Sixteen hex digits that tell one secret from another without telling what it is."""
        return hashlib.sha256(b"imagen-account\0" + self._text.encode()).hexdigest()[:16]

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(("secret", self.fingerprint()))

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")
