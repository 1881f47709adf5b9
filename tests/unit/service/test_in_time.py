"""Items whose time runs while they wait, and what is remembered of what their callers were told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from fakes.batches import make_batch, make_item
from fakes.clock import BEGINNING, ManualClock
from fakes.make import make_prediction
from imagen.domain.batch import Batch, Remembered
from imagen.domain.caller import UNKNOWN
from imagen.domain.delivery import Delivery
from imagen.domain.events import Event, Progressed, Submitted
from imagen.domain.limits import Lane, Patience
from imagen.domain.prediction import Prediction, Status
from imagen.domain.request import GenerationRequest
from imagen.errors import PredictionAborted
from imagen.ports import Begun
from imagen.service.finish import Outcome
from imagen.service.fresh import FreshOutputs
from imagen.service.in_time import Beginning, in_time, seconds_left
from imagen.service.orders import StoredIntent, StoredOrder
from imagen.service.prepare import Order
from imagen.service.replicate_events import NOTHING, ReplicateEvents, Tellings, Told
from waiting import until

pytestmark = pytest.mark.anyio
FACE = Remembered(face="replicate", prediction_id="pred_1", cancel_after=30)
BATCH = make_batch(
    total=1,
    kind="single",
    details=FACE.to_details(),
    webhook="https://shop.example/hook",
    webhook_events=("start", "completed"),
)
ITEM = make_item(
    BATCH,
    0,
    order=msgspec.json.encode(
        StoredOrder(
            prompt="x",
            intents=(
                StoredIntent(
                    id="pred_1",
                    model="a/b",
                    input={},
                    request_key="k",
                    created_at=BEGINNING,
                    deadline_seconds=60,
                ),
            ),
        )
    ),
)
INTENT = make_prediction()


def an_order() -> Order:
    backend: Any = None  # nobody asks it
    plan: Any = None
    return Order(
        request=GenerationRequest(prompt="x"),
        backend=backend,
        intents=((INTENT, plan),),
        caller=UNKNOWN,
        lane=Lane.INTERACTIVE,
        patience=Patience(),
        watched=False,
    )


def beginning(begun: Begun, patience: asyncio.Timeout) -> Beginning:
    return Beginning(
        ITEM, begun=begun, tells=lambda *_: None, clock=ManualClock(), patience=patience, hears=None
    )


def test_time_runs_from_acceptance_on_and_only_where_somebody_said_so() -> None:
    later = BATCH.created_at + timedelta(seconds=12)
    assert seconds_left(BATCH, later) == 18
    assert seconds_left(BATCH, later + timedelta(hours=1)) == 0
    assert seconds_left(make_batch(), later) is None
    again = msgspec.structs.replace(FACE, retried_at=later + timedelta(hours=1))
    retried = msgspec.structs.replace(BATCH, details=again.to_details())
    assert seconds_left(retried, later + timedelta(hours=1, seconds=5)) == 25


async def test_what_has_not_begun_in_time_is_over_and_costs_nothing() -> None:
    async def wait(order: Order, patience: asyncio.Timeout) -> Sequence[Outcome]:
        await asyncio.Event().wait()
        return []

    (outcome,) = await in_time(an_order(), 0.01, wait)
    assert isinstance(outcome.error, PredictionAborted)
    assert outcome.prediction.charged is False


@pytest.mark.parametrize(("seconds", "deadline"), [(None, 120.0), (0.05, 5.0), (40.0, 40.0)])
async def test_what_has_begun_has_what_is_left_for_its_run_and_is_waited_for(
    seconds: float | None, deadline: float
) -> None:
    begun: list[Order] = []

    async def carry_out(order: Order, patience: asyncio.Timeout) -> Sequence[Outcome]:
        ((intent, _),) = order.intents
        beginning(lambda: begun.append(order), patience).notify(Submitted(intent))
        await asyncio.sleep(0.1)
        return [Outcome(intent)]

    (outcome,) = await in_time(an_order(), seconds, carry_out)
    assert outcome.error is None
    assert outcome.prediction.deadline_seconds == deadline
    assert len(begun) == 1


async def test_a_limit_in_time_of_the_work_itself_is_no_deadline() -> None:
    async def fail(order: Order, patience: asyncio.Timeout) -> Sequence[Outcome]:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await in_time(an_order(), 10, fail)


class Kept:
    """An outbox."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def put(self, deliveries: Sequence[Delivery]) -> None:
        self.events += [delivery.event for delivery in deliveries]


def tellings(outbox: Any) -> Tellings:
    clock = ManualClock()
    events = ReplicateEvents(clock=clock, public_url="https://gateway.example", fresh=FreshOutputs())
    return Tellings(events=events, outbox=outbox, clock=clock)


def runs() -> Event:
    prediction: Prediction = msgspec.structs.replace(
        INTENT, id="pred_1", status=Status.PROCESSING, upstream_id="up-1"
    )
    return Progressed(prediction, fraction=None)


async def told_of(batch: Batch, told: Tellings, outbox: Kept) -> None:
    """It runs, and then it is put back."""
    before = len(outbox.events)
    async with told.of(batch, ITEM) as telling:
        assert telling is not None
        telling.notify(runs())
        await until(lambda: len(outbox.events) > before)
        await asyncio.sleep(0)


async def test_what_was_told_before_it_was_put_back_is_not_told_again() -> None:
    outbox = Kept()
    told = tellings(outbox)
    await told_of(BATCH, told, outbox)
    async with told.of(BATCH, ITEM) as telling:
        assert telling is not None
        telling.notify(runs())
        await asyncio.sleep(0.01)
    assert outbox.events == ["replicate.start"]
    assert told.take(BATCH) == Told(start=True)
    assert told.take(BATCH) == NOTHING


async def test_nothing_is_kept_of_what_was_put_back_untold_and_little_of_what_ends_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imagen.service.replicate_events.MOST_KEPT", 2)
    outbox = Kept()
    told = tellings(outbox)
    batches = [msgspec.structs.replace(BATCH, id=f"batch_{number}") for number in range(5)]
    for batch in batches[:3]:
        await told_of(batch, told, outbox)
    for batch in batches[3:]:
        async with told.of(batch, ITEM) as telling:
            assert telling is not None  # canceled while it is queued, nobody asks for it any more
    async with told.of(make_batch(), ITEM) as telling:
        assert telling is None
    assert [told.take(batch).start for batch in batches] == [False, True, True, False, False]
