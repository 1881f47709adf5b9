"""How much one caller may have under way whom nobody knows: anybody has a Replicate token of their own."""

from __future__ import annotations

from imagen.errors import QueueFull
from imagen.ports import BatchStore

MOST_OPEN_BATCHES, MOST_OPEN_ITEMS = 100, 10_000
"""Single predictions count as batches of one."""


async def check_load(store: BatchStore, scope: str, count: int) -> None:
    """Refuse more work of a caller than one may have under way; what a caller without any asks for is never too much.

    Args:
        store: has what is under way.
        scope: of the caller.
        count: how many items more they want.

    Raises:
        QueueFull: so much is not taken.
    """
    batches, items = await store.load(scope)
    if batches >= MOST_OPEN_BATCHES or (items and items + count > MOST_OPEN_ITEMS):
        raise QueueFull(
            f"{batches} requests on this Replicate token are under way, with {items} tasks that have not ended",
            hint=f"At most {MOST_OPEN_BATCHES} with {MOST_OPEN_ITEMS} tasks are; ask again when some have ended.",
            retry_after=30.0,
        )
