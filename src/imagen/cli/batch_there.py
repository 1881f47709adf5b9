"""Batches of a gateway: checked here as far as that can be done, accepted and worked off there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagen.cli.batch_check import Pace, Prepared

if TYPE_CHECKING:
    from imagen.assembly import Remote
    from imagen.domain.request import GenerationRequest
    from imagen.remote.generate import Run
    from imagen.service.deliver import Destination


class There:
    """`cli.batch_check.Maker` by a running gateway.

    Args:
        remote: its parts.
        backend: a name of our configuration, for what it says where rows say nothing; None for the default one.
    """

    practice = False

    def __init__(self, remote: Remote, backend: str | None) -> None:
        self._remote = remote
        self._backend = backend
        self._runs: list[list[Run]] = []

    async def prepare(self, request: GenerationRequest, destination: Destination | None) -> Prepared:
        """See the protocol."""
        runs = await self._remote.gateway.plan(request, backend=self._backend, destination=destination)
        self._runs.append(runs)
        return Prepared(
            intents=tuple((run.intent, run.images, run.typical_seconds) for run in runs),
            semaphore=request.semaphore,
            notes=runs[0].notes,
        )

    async def pace(self, semaphores: Sequence[str]) -> Pace:
        """See the protocol; the limits of its account the gateway keeps to itself."""
        known = await self._remote.semaphores.list(now=0.0) if semaphores else ()
        return Pace(semaphores={one.name: one.limit for one in known if one.name in semaphores})

    async def unfinished(self, fingerprint: str) -> str | None:
        """The batch of a file of the same content that has not ended, if there is one."""
        return await self._remote.batches.unfinished(fingerprint)

    async def accept(self, *, name: str, notes: Sequence[dict[str, Any]], details: dict[str, Any]) -> str:
        """Have the gateway promise to make all that was prepared; the id under which it goes on."""
        return await self._remote.batches.accept(self._runs, name=name, notes=notes, details=details)

    async def work(self, batch_id: str) -> None:  # noqa: ARG002 - the gateway knows which
        """Wait until cancelled: the gateway works."""
        await asyncio.Event().wait()

    in_line = None
    """Nobody here knows which of its tasks stand in line there."""

    def hold(self) -> None:
        """The gateway begins nothing more as soon as the batch is paused."""
