"""What is told of one prediction in Replicate's words has the same id whenever it is made of the same state."""

from __future__ import annotations

from msgspec.structs import replace

from fakes.batches import make_batch, make_item
from fakes.clock import ManualClock
from fakes.make import make_prediction
from imagen.domain.prediction import Prediction, Status
from imagen.service.fresh import FreshOutputs
from imagen.service.replicate_events import EVENTS, NOTHING, ReplicateEvents, Told


def test_ids_tell_states_apart_and_nothing_else() -> None:
    clock = ManualClock()
    events = ReplicateEvents(clock=clock, public_url=None, fresh=FreshOutputs())
    batch = replace(make_batch(), webhook="https://shop.example/", webhook_events=EVENTS)
    item = make_item(batch, 0)
    first = make_prediction(
        status=Status.PROCESSING, upstream_id="abc", output=("https://replicate.delivery/1",), logs="one"
    )
    later = replace(first, output=(*first.output, "https://replicate.delivery/2"), logs="one two")

    def ids(prediction: Prediction, told: Told = NOTHING, attempt: int = 1) -> list[str]:
        tried = replace(item, attempt=attempt)
        return [one.id for one in events.of_progress(batch, tried, prediction, told)[0]]

    begun = ids(first)
    clock.advance(60)
    assert ids(first) == begun
    assert len(set(begun)) == 3
    _, told = events.of_progress(batch, item, first, NOTHING)
    assert ids(first, told) == []
    assert len(ids(later, told)) == 2
    assert not {*ids(later, told)} & {*begun}
    assert ids(later, told) == ids(later)[1:]
    assert {*ids(first, attempt=2)} & {*begun} == {begun[0]}  # that it begins is told once
    ended = replace(later, status=Status.SUCCEEDED)
    end = [one.id for one in events.of_end(batch, item, [ended], told)]
    assert end[:-1] == ids(later, told)
    assert end == [one.id for one in events.of_end(batch, item, [ended], told)]
