"""Batches for tests, complete but for what a test is about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from fakes.clock import BEGINNING
from imagen.domain.batch import Batch, Idempotency, Item
from imagen.domain.delivery import Delivery
from imagen.ports import BatchStore


def make_batch(number: int = 1, **facts: Any) -> Batch:
    """A batch of three items; `number` makes it another one, a minute later."""
    given: dict[str, Any] = {
        "id": f"batch_{number:026}",
        "backend": "fast",
        "account": "account-a",
        "total": 3,
        "created_at": BEGINNING + timedelta(minutes=number),
    }
    return Batch(**{**given, **facts})


def make_item(batch: Batch, index: int, **facts: Any) -> Item:
    """One of its items, with one prediction."""
    given: dict[str, Any] = {
        "batch_id": batch.id,
        "index": index,
        "order": b'{"prompt": "fox %d"}' % index,
        "predictions": (prediction_of(batch, index),),
    }
    return Item(**{**given, **facts})


def prediction_of(batch: Batch, index: int, attempt: int = 1) -> str:
    """The id of the prediction that an item of `make_item` takes."""
    return f"pred_{batch.id[-6:]}_{index}_{attempt}"


def make_mark(batch: Batch, **facts: Any) -> Idempotency:
    """The idempotency key with which it came."""
    given: dict[str, Any] = {
        "scope": "key:a",
        "key": "once",
        "fingerprint": "ab" * 32,
        "created_at": batch.created_at,
        "batch_id": batch.id,
    }
    return Idempotency(**{**given, **facts})


def make_delivery(number: int = 1, **facts: Any) -> Delivery:
    """An event that is due."""
    given: dict[str, Any] = {
        "id": f"msg_{number:026}",
        "subject": "batch_a",
        "url": "https://example.com/hook",
        "scope": "key:a",
        "event": "item.ended",
        "body": {"number": number},
        "created_at": BEGINNING,
        "due_at": BEGINNING,
    }
    return Delivery(**{**given, **facts})


async def accepted(store: BatchStore, batch: Batch, items: Sequence[Item] | None = None) -> Batch:
    """Write a batch down with its items, and accept it."""
    await store.add(batch)
    await store.add_items(
        [make_item(batch, index) for index in range(batch.total)] if items is None else items
    )
    assert await store.accept(batch) == batch.id
    return batch
