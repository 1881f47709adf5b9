"""The tokens of callers whose work outlives their request: kept encrypted or in memory, forgotten when the work has ended."""

from __future__ import annotations

from imagen.domain.batch import Batch
from imagen.domain.secret import Secret
from imagen.errors import InvalidRequest, Unauthenticated
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

        Raises:
            InvalidRequest: it would have to be written down in the clear.
        """
        if self._sealer is not None:
            return self._sealer.seal(token)
        if outlives:
            raise InvalidRequest(
                "this gateway cannot keep your Replicate token while the work runs, because it has no key to encrypt it with",
                hint="Its operator sets IMAGEN_SECRET_KEY; or use a key of the gateway, or ask for each picture by itself.",
            )
        while len(self._in_memory) >= _MOST_IN_MEMORY:
            self._in_memory.pop(next(iter(self._in_memory)))
        self._in_memory[batch_id] = token
        return None

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
