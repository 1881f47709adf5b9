"""One prediction on its way to its end, and what that takes."""

from __future__ import annotations

from imagen.domain.prediction import Prediction
from imagen.ports import Backend, Notify
from imagen.service.deliver import PictureSource
from imagen.service.terms import Buying


class Errand:
    """One prediction on its way. Those who work on it share this; ten thousand of them are in memory at once.

    Args:
        backend: the one it belongs to.
        prediction: as it is stored, owned by this process.
        notify: told about everything on the way.
        leaves_running: whoever breaks it off wants it to go on upstream.
        closely: somebody looks at the progress.
        paused: nothing is bought now, but later.

    Attributes:
        prediction: as it stands.
        fresh: it was written down just now: there is nothing to look for.
        buying: buys it, where it turns out that it was not bought yet; None where nothing may be bought.
        expects_webhook: the watcher is woken when there is something to see.
        source: where its pictures are fetched; None means the backend.
    """

    __slots__ = (
        "backend",
        "buying",
        "closely",
        "expects_webhook",
        "fresh",
        "leaves_running",
        "notify",
        "paused",
        "prediction",
        "source",
    )

    def __init__(
        self,
        backend: Backend,
        prediction: Prediction,
        notify: Notify,
        *,
        leaves_running: bool,
        closely: bool = False,
        paused: bool = False,
    ) -> None:
        self.backend = backend
        self.prediction = prediction
        self.notify = notify
        self.leaves_running = leaves_running
        self.closely = closely
        self.paused = paused
        self.fresh = False
        self.buying: Buying | None = None
        self.expects_webhook = False
        self.source: PictureSource | None = None

    def bought(self) -> None:
        """Nothing of it is to be bought any more, and what only that took is let go of."""
        if self.buying is not None:
            self.expects_webhook = self.buying.over()
            self.buying = None
