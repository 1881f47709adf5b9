"""Batches of this process: checked, accepted and worked off here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagen.cli.batch_check import Pace, Prepared
from imagen.domain.limits import Lane

if TYPE_CHECKING:
    from imagen.assembly import App
    from imagen.domain.request import GenerationRequest
    from imagen.service.deliver import Destination
    from imagen.service.prepare import Order

LOCAL = "local"
"""The scope of what is asked for on this machine."""


class Here:
    """`cli.batch_check.Maker` by this process.

    Args:
        app: the parts.
        backend: a name of the configuration; None for the default one.
    """

    def __init__(self, app: App, backend: str | None) -> None:
        self._app = app
        self._backend = app.backends.get(backend)
        self._orders: list[Order] = []

    @property
    def practice(self) -> bool:
        """See the protocol."""
        return self._backend.practice

    async def prepare(self, request: GenerationRequest, destination: Destination | None) -> Prepared:
        """See the protocol."""
        from imagen.service.orders import PATIENT

        order = await self._app.gateway.prepare(
            request,
            backend=self._backend,
            caller=self._app.caller(),
            lane=Lane.BATCH,
            patience=PATIENT,
            destination=destination,
        )
        self._orders.append(order)
        intents = tuple(
            (intent, plan.expected_images, plan.typical_seconds) for intent, plan in order.intents
        )
        return Prepared(intents=intents, semaphore=request.semaphore, notes=order.notes)

    async def pace(self, semaphores: Sequence[str]) -> Pace:
        """See the protocol."""
        limits, now = self._app.settings.limits, self._app.clock.now().timestamp()
        known = await self._app.semaphores.list(now=now) if semaphores else ()
        places = {one.name: one.limit for one in known if one.name in semaphores}
        return Pace(
            creates_per_minute=limits.creates_per_minute, concurrent=limits.concurrent, semaphores=places
        )

    async def unfinished(self, fingerprint: str) -> str | None:
        """The batch of a file of the same content that has not ended, if there is one."""
        for view in await self._app.batches.list(limit=200):
            if not view.status.terminal and view.batch.details.get("fingerprint") == fingerprint:
                return view.batch.id
        return None

    async def accept(self, *, name: str, notes: Sequence[dict[str, Any]], details: dict[str, Any]) -> str:
        """Promise to make all that was prepared; the id under which it goes on after any crash."""
        from imagen.service.accept import Entry, NewBatch

        new = NewBatch(
            backend=self._backend,
            caller=self._app.caller(),
            scope=LOCAL,
            name=name,
            details=details,
            mine=True,
        )
        entries = [Entry(order, note) for order, note in zip(self._orders, notes, strict=True)]
        batch = await self._app.acceptance.accept(new, entries)
        self._orders.clear()
        return batch.id

    async def work(self, batch_id: str) -> None:
        """Work on that batch, and on no other, until cancelled; what runs at the service goes on there then."""
        worker = self._app.worker
        worker.watched = True
        await self._app.queue.run(
            worker.work, emptied=worker.emptied, takes=lambda batch: batch.id == batch_id
        )

    def in_line(self) -> int:
        """How many items that are under way stand in line now; the others are being made."""
        return self._app.queue.in_line

    def hold(self) -> None:
        """Buy nothing more: what stands in line goes back to where it waited."""
        self._app.queue.stop()
        self._app.line.close()
