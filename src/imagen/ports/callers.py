"""What is kept of those who call: their keys, their secrets, and what they thought of their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from imagen.domain.feedback import Feedback
from imagen.domain.key import Key
from imagen.domain.secret import Secret


class Keys(Protocol):
    """Named keys of the gateway, kept by the hash of what is shown. Each method is one durable transaction.

    Raises:
        StoreError: they could not be read or written; nothing changed.
    """

    async def add(self, key: Key, *, digest: str) -> None:
        """Write down a new key.

        Args:
            key: the key.
            digest: sha256 of what its holder shows, in hex.

        Raises:
            IdempotencyConflict: a key that is not revoked has that name.
        """

    async def list(self) -> Sequence[Key]:
        """All that are not revoked, by name."""

    async def ever(self) -> Sequence[Key]:
        """All that there ever were, the revoked ones too, oldest first."""

    async def revoke(self, name: str, *, at: datetime) -> Key:
        """Let a key be good for nothing from now on; its name may be given again.

        Raises:
            NotFound: no key is called so, or it is revoked already.
        """

    async def find(self, digest: str) -> Key | None:
        """The key of that digest, as it is now; None when there is none, or it is revoked."""


class Sealer(Protocol):
    """Encrypts what must be kept and read by nobody else."""

    def seal(self, secret: Secret) -> str:
        """Encrypted, and sure to be noticed when somebody changes it."""

    def unseal(self, sealed: str) -> Secret:
        """What was sealed.

        Raises:
            ConfigError: it was sealed with another key, or changed since.
        """


class FeedbackStore(Protocol):
    """What callers thought of their pictures.

    Raises:
        StoreError: the store could not be read or written.
    """

    async def put(self, feedback: Feedback) -> Feedback:
        """Write one down in the place of an earlier one of the same prediction, unless that said the same.

        Returns:
            The one that counts.
        """

    async def list(self, *, caller: str | None = None) -> Sequence[Feedback]:
        """Of one caller or of all, the newest first."""

    async def erase(self, *, caller: str | None = None) -> int:
        """Forget all of one caller, or everything; how many that were."""
