"""Batches accepted and worked off by an application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from imagen.assembly import GATEWAY, App
from imagen.domain.batch import Batch, Item
from imagen.domain.caller import Caller
from imagen.domain.limits import Lane
from imagen.domain.request import GenerationRequest
from imagen.service.accept import Entry, NewBatch
from imagen.service.deliver import Destination

ADMIN = Caller(name="admin")


async def accepted(app: App, prompts: Sequence[str], *, keep: bool = False, **facts: Any) -> Batch:
    """A batch of the admin's, with an item for each prompt; with `keep` its pictures go on the shelf."""
    backend = app.backends.get(GATEWAY)
    model = app.catalog.resolve("flux-schnell")
    entries = []
    for prompt in prompts:
        order = await app.gateway.prepare(
            GenerationRequest(prompt=prompt, model=model, resume=False, plain=True),
            backend=backend,
            caller=ADMIN,
            lane=Lane.BATCH,
            destination=Destination(shelf=True) if keep else None,
        )
        entries.append(Entry(order, {"output_filename": f"{prompt}.png"}))
    new = NewBatch(backend=backend, caller=ADMIN, scope="admin", **facts)
    return await app.acceptance.accept(new, entries)


async def items(app: App, batch: Batch) -> list[Item]:
    """All of it, in order."""
    return [item async for item in app.batches.all_items(batch.id)]


@asynccontextmanager
async def worked_off(app: App) -> AsyncIterator[None]:
    """While the block runs this process works on every batch that no other does."""
    working = asyncio.create_task(
        app.queue.run(app.worker.work, emptied=app.worker.emptied, takes=lambda _: True)
    )
    try:
        yield
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
