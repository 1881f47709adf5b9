"""What the gateway remembers of work: typed where it is read, and only what is said where it is written."""

from __future__ import annotations

import msgspec

from fakes.batches import make_batch, make_item
from imagen.domain.batch import Remembered, promised_id


def test_only_what_was_said_is_written_and_it_is_read_as_it_was() -> None:
    said = Remembered(face="replicate", prediction_id="pred_1", cancel_after=30, exact=True)
    details = said.to_details()
    assert details == {"face": "replicate", "prediction_id": "pred_1", "cancel_after": 30, "exact": True}
    stored = msgspec.json.decode(msgspec.json.encode(details))
    assert make_batch(details=stored).remembered == said


def test_what_others_remember_beside_it_is_left_alone() -> None:
    assert make_batch(details={"command": "batch", "folder": "x"}).remembered == Remembered()


def test_the_promised_id_stays_with_another_attempt() -> None:
    batch = make_batch(details=Remembered(prediction_id="pred_1").to_details())
    assert promised_id(batch, make_item(batch, 0, predictions=("pred_2",))) == "pred_1"
    assert promised_id(make_batch(), make_item(batch, 0, predictions=("pred_2",))) == "pred_2"
