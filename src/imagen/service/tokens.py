"""The tokens of callers whose work outlives their request: kept encrypted or in memory, forgotten when the work has ended."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from imagen.domain.batch import Batch
from imagen.domain.secret import Secret
from imagen.errors import ConfigError, InvalidRequest, QueueFull, Unauthenticated
from imagen.ports import Sealer

_MOST_IN_MEMORY = 10_000


class TokenVault:
    """Keeps them.

    Args:
        sealer: encrypts what goes to the disk; None where nothing may go there.
    """

    def __init__(self, sealer: Sealer | None) -> None:
        self._sealer = sealer
        self._in_memory: dict[str, Secret] = {}

    def keep(self, batch_id: str, token: Secret, *, outlives: bool) -> str | None:
        """Keep a token for as long as a batch runs; what is to be written down with it.

        Args:
            batch_id: of the batch.
            token: of its caller.
            outlives: it must be there after a restart; else it is kept in memory where there is no key.

        Returns:
            The token, encrypted; None where there is no key, so that it is in the memory of this process only.

        Raises:
            InvalidRequest: it would have to be written down in the clear.
            QueueFull: too many are kept in memory, each for work that has not ended.
        """
        if self._sealer is None and outlives:
            raise InvalidRequest(
                "this gateway cannot keep your Replicate token while the work runs, because it has no key to encrypt it with",
                hint="Its operator sets IMAGEN_SECRET_KEY; or use a key of the gateway, or ask for each picture by itself.",
            )
        if len(self._in_memory) < _MOST_IN_MEMORY or batch_id in self._in_memory:
            self._in_memory[batch_id] = token
        elif self._sealer is None:
            # None of the others can be let go of: their work would never end.
            raise QueueFull(
                "too much work on callers' own Replicate tokens is under way already", retry_after=60.0
            )
        return None if self._sealer is None else self._sealer.seal(token)

    def has(self, batch: Batch) -> bool:
        """Whether this process has what a batch is made on: always, where that is no token of its caller's."""
        return not batch.own_token or batch.sealed_token is not None or batch.id in self._in_memory

    def is_readable(self, batch: Batch) -> bool:
        """Whether the token of a batch is written down, encrypted with the key that is set now."""
        if batch.sealed_token is None or self._sealer is None:
            return False
        try:
            self._sealer.unseal(batch.sealed_token)
        except ConfigError:
            return False
        return True

    def is_usable(self, batch: Batch) -> bool:
        """Whether `of` would give it: it is in memory, or can be read."""
        return batch.id in self._in_memory or self.is_readable(batch)

    def of(self, batch: Batch) -> Secret:
        """The token of a batch.

        Raises:
            Unauthenticated: it was kept in memory by a process that has ended.
            ConfigError: it was encrypted with another key.
        """
        if (known := self._in_memory.get(batch.id)) is not None:
            return known
        if batch.sealed_token is not None and self._sealer is not None:
            return self._sealer.unseal(batch.sealed_token)
        raise Unauthenticated(
            f"{batch.id} is made on its caller's own Replicate token, which is not at hand any more",
            hint="Its caller sends the same request again, with the token.",
        )

    def forget(self, batch_id: str) -> None:
        """The work has ended."""
        self._in_memory.pop(batch_id, None)

    def forget_all_but(self, batch_ids: AbstractSet[str]) -> None:
        """Forget those of all other work: it ended in another process, or never began."""
        for batch_id in self._in_memory.keys() - batch_ids:
            del self._in_memory[batch_id]
