"""What the outcomes of an item's predictions mean for the item."""

from __future__ import annotations

import msgspec
import pytest

from imagen.domain.batch import Item, ItemStatus
from imagen.service.outcome_of_item import queued_again

DAMAGED = b'{"intents": ['


def test_an_item_whose_order_is_damaged_waits_again_with_the_ids_that_it_has() -> None:
    item = Item(
        batch_id="batch_1",
        index=0,
        order=DAMAGED,
        status=ItemStatus.RUNNING,
        predictions=("pred_a", "pred_b"),
    )
    again = queued_again(item, item.order)
    assert (again.status, again.predictions, again.order) == (ItemStatus.QUEUED, item.predictions, DAMAGED)


def test_another_order_that_cannot_be_read_is_never_given_to_an_item() -> None:
    item = Item(batch_id="batch_1", index=0, order=b"{}", predictions=("pred_a",))
    with pytest.raises(msgspec.DecodeError):
        queued_again(item, DAMAGED)
