"""A batch while somebody looks: how far it is, and what Ctrl-C means."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from imagen.domain.batch import BatchStatus
from imagen.errors import StoreError

if TYPE_CHECKING:
    from imagen.cli.batch_view import BatchView
    from imagen.service.batches import BatchNews, View

End = Literal["ended", "paused", "left"]
"""How it went: `left` means that what runs goes on without us."""


class Desk(Protocol):
    """Where a batch is looked at and steered; here, or at a gateway."""

    async def view(self, batch_id: str) -> View:
        """How it stands."""

    def events(self, batch_id: str, *, after: int = 0) -> AsyncIterator[BatchNews]:
        """What happens in it from now on."""

    async def pause(self, batch_id: str) -> View:
        """Begin nothing more of it."""


class Interrupts:
    """Signals of whoever runs this: the first Ctrl-C asks, the second one and SIGTERM leave."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen while the block runs."""
        loop = asyncio.get_running_loop()
        signals = ((signal.SIGINT, self._on_interrupt), (signal.SIGTERM, self.left.set))
        heard = [number for number, _ in signals if signal.getsignal(number) is not signal.SIG_IGN]
        for number, action in signals:
            if number in heard:
                loop.add_signal_handler(number, action)
        try:
            yield
        finally:
            for number in heard:
                loop.remove_signal_handler(number)

    def _on_interrupt(self) -> None:
        (self.left if self.asked.is_set() else self.asked).set()


class Session:
    """One batch, watched to its end.

    Args:
        desk: where it is.
        batch_id: which.
        shown: what a person sees of it.
        interrupts: what they want.
        work: does the work until cancelled; None where somebody else does it: then Ctrl-C only ends the looking.
        hold: called when nothing more shall be bought.
    """

    def __init__(
        self,
        desk: Desk,
        batch_id: str,
        shown: BatchView,
        interrupts: Interrupts,
        *,
        work: Callable[[], Awaitable[None]] | None,
        hold: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._batch_id = batch_id
        self._shown = shown
        self._interrupts = interrupts
        self._work = work
        self._hold = hold

    async def run(self, *, after: int) -> End:
        """Look on until it has ended, is paused with nothing running, or nobody wants to look any more.

        Args:
            after: ends up to this number are known already.

        Raises:
            ImagenError: it cannot be looked at.
        """
        watching = asyncio.ensure_future(self._watch(after))
        asking = asyncio.ensure_future(self._interrupts.asked.wait())
        leaving = asyncio.ensure_future(self._interrupts.left.wait())
        waited: set[asyncio.Future[Any]] = {watching, asking, leaving}
        if self._work is not None:
            waited.add(asyncio.ensure_future(self._work()))
        everything = set(waited)
        try:
            while True:
                done, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    return watching.result()
                if leaving.done() or (asking.done() and self._work is None):
                    return "left"
                for other in done - {asking}:
                    other.result()  # work that ended did so by a fault
                if asking in done:
                    await self._pause()
        finally:
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    async def _watch(self, after: int) -> End:
        from imagen.service.batches import ItemEnded

        async for news in self._desk.events(self._batch_id, after=after):
            if isinstance(news, ItemEnded):
                self._shown.ended(news.item)
                continue
            view = news.view
            self._shown.show(view)
            if view.status is not BatchStatus.PAUSED:
                continue
            if not view.tally.running:
                return "paused"
            if view.batch.reason is not None:
                self._hold()  # it cannot go on: what stands in line would only find out the same
        return "ended"

    async def _pause(self) -> None:
        """Buy nothing more, and wait for what is on its way."""
        self._shown.note(
            "pausing: what runs is waited for, and nothing more is bought; Ctrl-C again leaves at once"
        )
        self._hold()
        try:
            self._shown.show(await self._desk.pause(self._batch_id))
        except StoreError as error:  # nothing more is bought here all the same
            self._shown.say(f"imagen: {error}")
