"""Creates whose callers went away before their answer: asked for again, they are the same prediction.

Official clients send a create once more when its connection breaks, with nothing that tells it from a new one.
"""

from __future__ import annotations

from collections import OrderedDict

from imagen.ports import Clock

LIVES_SECONDS = 120.0
MOST = 1000


class Orphans:
    """What was taken on and never answered, in this process.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[str, str, float]] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._left)

    def leave(self, batch_id: str, *, scope: str, fingerprint: str) -> None:
        """Nobody waits for the answer any more.

        Args:
            batch_id: what the create became.
            scope: whose it is.
            fingerprint: of what was asked for.
        """
        self._left[batch_id] = (scope, fingerprint, self._clock.monotonic() + LIVES_SECONDS)
        while len(self._left) > MOST:
            self._left.popitem(last=False)

    def take(self, *, scope: str, fingerprint: str) -> str | None:
        """What the very same create became for the same caller, the oldest first; it has somebody to be answered to then."""
        now = self._clock.monotonic()
        for batch_id, (whose, what, until) in list(self._left.items()):
            if until <= now:
                del self._left[batch_id]
            elif (whose, what) == (scope, fingerprint):
                del self._left[batch_id]
                return batch_id
        return None
