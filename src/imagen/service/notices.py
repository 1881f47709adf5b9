"""What is told to the addresses of callers when durable work begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Any

import msgspec

from imagen.domain.batch import Batch, Item, Tally, promised_id
from imagen.domain.delivery import Delivery
from imagen.domain.identifiers import new_id
from imagen.domain.inside import is_inside
from imagen.domain.money import Usd, to_dollars
from imagen.domain.prediction import Prediction
from imagen.ports import Clock
from imagen.service.fresh import FreshOutputs
from imagen.service.orders import see_order
from imagen.service.replicate_events import NOTHING, ReplicateEvents, Told
from imagen.service.replicate_shapes import is_of_face

START, ITEM, COMPLETED = "start", "item", "completed"
"""What a caller may ask to be told of."""


class Notices:
    """Makes deliveries.

    Args:
        clock: tells the time.
        public_url: where callers reach the kept pictures; None leaves addresses without a host.
        fresh: has files that came inside answers, for a while.
    """

    def __init__(self, *, clock: Clock, public_url: str | None, fresh: FreshOutputs) -> None:
        self.replicate = ReplicateEvents(clock=clock, public_url=public_url, fresh=fresh)
        self._clock = clock
        self._base = (public_url or "").rstrip("/")

    def of_start(self, batch: Batch, item: Item) -> Sequence[Delivery]:
        """That a prediction was begun. Made again it is the same delivery."""
        if batch.webhook is None or batch.kind != "single" or START not in batch.webhook_events:
            return ()
        if is_of_face(batch):
            return ()  # those are told when it runs
        subject = promised_id(batch, item)
        data = {"id": subject, "status": "starting"}
        return (self._made(batch, subject, "prediction.started", data, message=f"msg_start_{subject}"),)

    def of_item(
        self, batch: Batch, item: Item, predictions: Sequence[Prediction], *, told: Told = NOTHING
    ) -> Sequence[Delivery]:
        """That an item has ended; of how it went on before, `told` was told."""
        if not self._tells_of_items(batch):
            return ()
        if is_of_face(batch):
            return self.replicate.of_end(batch, item, predictions, told)
        data = self._item(batch, item, predictions)
        if batch.kind == "single":
            subject = promised_id(batch, item)
            del data["batch_id"], data["index"]  # those of the batch of one that nobody asked for
            return (self._made(batch, subject, "prediction.completed", {"id": subject} | data),)
        return (self._made(batch, batch.id, "batch.item", data),)

    def of_unbegun(self, batch: Batch) -> Callable[[Item], Sequence[Delivery]] | None:
        """What makes the deliveries for items that end before anybody works on them; see `ports.TellsEnds`."""
        if not self._tells_of_items(batch):
            return None
        return lambda item: self.of_item(batch, item, ())

    def _tells_of_items(self, batch: Batch) -> bool:
        """Whether somebody wants to be told how its items end."""
        if batch.webhook is None:
            return False
        return is_of_face(batch) or (COMPLETED if batch.kind == "single" else ITEM) in batch.webhook_events

    def of_batch(self, batch: Batch, tally: Tally) -> Sequence[Delivery]:
        """That a batch has ended."""
        if batch.webhook is None or batch.kind == "single" or COMPLETED not in batch.webhook_events:
            return ()
        data = {
            "id": batch.id,
            "name": batch.name,
            "status": batch.status(tally),
            "counts": counts_of(tally),
            "cost_usd": tally.cost.to_json(),
            "quoted_usd": batch.quoted.to_json(),
            "unpriced": tally.unpriced,
        }
        return (self._made(batch, batch.id, "batch.completed", data),)

    def _item(self, batch: Batch, item: Item, predictions: Sequence[Prediction]) -> dict[str, Any]:
        first = predictions[0] if predictions else None
        return {
            "batch_id": batch.id,
            "index": item.index,
            "status": item.status,
            "model": None if first is None else first.model,
            "prediction_ids": list(item.predictions),
            # What came inside the answer is no address, and too much for an event.
            "output": [url for url in item.urls if not is_inside(url)],
            "stored": [self._address(batch, name) for name in item.files if name.startswith("shelf:")],
            "seed": item.seed,
            "error": item.error,
            "code": item.code,
            "charged": item.charged,
            "cost_usd": to_dollars(item.cost),
            "quoted_usd": to_dollars(_quoted(item)),
            **({"output_filename": item.note["output_filename"]} if "output_filename" in item.note else {}),
        }

    def _address(self, batch: Batch, shelved: str) -> str:
        """Where a kept picture is reached: as the settings tell, else as the caller reached us."""
        base = self._base or batch.remembered.reached_at
        return f"{base}/pictures/{shelved.removeprefix('shelf:')}"

    def _made(
        self, batch: Batch, subject: str, event: str, data: dict[str, Any], *, message: str | None = None
    ) -> Delivery:
        now = self._clock.now()
        return Delivery(
            id=message or new_id("msg", now),
            subject=subject,
            url=batch.webhook or "",
            scope=batch.scope,
            event=event,
            body={"type": event, "timestamp": now.astimezone(UTC).isoformat(), "data": data},
            created_at=now,
            due_at=now,
        )


def _quoted(item: Item) -> Usd | None:
    """What it was likely to cost; unknown where its order is damaged, which keeps nobody from being told of its end."""
    try:
        return see_order(item.order).quote.likely
    except msgspec.DecodeError:
        return None


def counts_of(tally: Tally) -> dict[str, int]:
    """The items of a batch by status, for faces and events."""
    names = ("queued", "running", "succeeded", "failed", "canceled", "expired")
    return {"total": tally.left + tally.ended} | {name: getattr(tally, name) for name in names}
