"""What callers of Replicate's API are told at their addresses: the prediction object itself, at each of four events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from cachetools import FIFOCache

from imagen.domain.batch import Batch, Item, ItemStatus
from imagen.domain.delivery import Delivery
from imagen.domain.events import Event, Progressed
from imagen.domain.inside import is_inside
from imagen.domain.prediction import Prediction, Status
from imagen.errors import NotFound, StoreError
from imagen.ports import BatchStore, Clock, Observer, Outbox, PredictionStore
from imagen.service.fresh import FreshOutputs
from imagen.service.replicate_shapes import (
    Known,
    Output,
    intent_of,
    is_of_face,
    kept_files,
    output_so_far,
    shape,
    with_files,
    without_files,
)

START, OUTPUT, LOGS, COMPLETED = "start", "output", "logs", "completed"
EVENTS = (START, OUTPUT, LOGS, COMPLETED)
BY_DEFAULT = (OUTPUT, COMPLETED)
"""Those of a caller who names an address and no events."""
LEAST_APART_SECONDS = 0.5
"""Between two of `output`, and two of `logs`."""
MOST_KEPT = 10_000
"""Of so many predictions it is known what was told of them; of others some of it is made once more for another attempt."""
_EVENT = "replicate."


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What was told of a prediction by now: whether it has begun, how many outputs, and how much of its logs."""

    start: bool = False
    outputs: int = 0
    logs: int = 0


NOTHING = Told()


class ReplicateEvents:
    """Makes deliveries in Replicate's words. No input and no file that came inside an answer is in them: see `Bodies`.

    Args:
        clock: tells the time.
        public_url: where callers reach the gateway; None: as each of them did.
        fresh: has those files for a while.
    """

    def __init__(self, *, clock: Clock, public_url: str | None, fresh: FreshOutputs) -> None:
        self._clock = clock
        self._base = (public_url or "").rstrip("/")
        self._fresh = fresh

    def of_progress(
        self, batch: Batch, item: Item, prediction: Prediction, told: Told
    ) -> tuple[list[Delivery], Told]:
        """What is new of one that runs, and what is told then. Made again of the same state, it is the same deliveries."""
        known = Known(batch=batch, item=item, prediction=prediction)
        found: list[Delivery] = []
        if not told.start and _has_begun(prediction):
            told = msgspec.structs.replace(told, start=True)
            found += self._made(START, known, message=f"msg_start_{known.id}")
        if (count := count_of(prediction)) > told.outputs:
            told = msgspec.structs.replace(told, outputs=count)
            found += self._made(OUTPUT, known, message=f"msg_output_{item.attempt}_{count}_{known.id}")
        if (length := len(prediction.logs)) > told.logs:
            told = msgspec.structs.replace(told, logs=length)
            found += self._made(LOGS, known, message=f"msg_logs_{item.attempt}_{length}_{known.id}")
        return found, told

    def of_end(
        self, batch: Batch, item: Item, predictions: Sequence[Prediction], told: Told
    ) -> Sequence[Delivery]:
        """That it has ended, after whatever was not told before. Made again, it is the same deliveries."""
        prediction = predictions[0] if predictions else None
        ended = Known(batch=batch, item=item, prediction=prediction)
        found: list[Delivery] = []
        if prediction is not None and _has_run(prediction):
            # As it stood the moment before.
            running = msgspec.structs.replace(prediction, status=Status.PROCESSING, ended_at=None)
            open_item = msgspec.structs.replace(item, status=ItemStatus.RUNNING, ended_at=None)
            found, _ = self.of_progress(batch, open_item, running, told)
        return [*found, *self._made(COMPLETED, ended, message=f"msg_completed_{item.attempt}_{ended.id}")]

    def _made(self, event: str, known: Known, *, message: str) -> list[Delivery]:
        batch = known.batch
        if batch is None or batch.webhook is None or event not in batch.webhook_events:
            return []
        now = self._clock.now()
        base = self._base or batch.remembered.reached_at
        if known.prediction is not None and any(map(is_inside, known.prediction.output)):
            self._fresh.keep(known.id, known.prediction.output)  # under the id that was promised, too
        output = without_files(output_so_far(_with_kept(known, base)))
        body = shape(known, Output(output), base=base, now=now, exact=known.exact).body
        body["input"] = {}  # megabytes, perhaps, which every event would have again
        return [
            Delivery(
                id=message,
                subject=known.id,
                url=batch.webhook,
                scope=batch.scope,
                event=f"{_EVENT}{event}",
                body=body,
                created_at=now,
                due_at=now,
            )
        ]


class Bodies:
    """What is sent of a delivery: with all that is not written down in each of them once more.

    Args:
        fresh: has the files that came inside answers, for a while.
        store: has the inputs of what was begun; batches: of what was not.
    """

    def __init__(self, *, fresh: FreshOutputs, store: PredictionStore, batches: BatchStore) -> None:
        self._fresh = fresh
        self._store = store
        self._batches = batches

    async def of(self, delivery: Delivery) -> Mapping[str, Any]:
        """The body of a delivery as it is sent now.

        Raises:
            StoreError: the input could not be read.
        """
        body = delivery.body
        if not delivery.event.startswith(_EVENT):
            return body
        files = self._fresh.find(delivery.subject) or ()
        told = body.get("input") or await self._input(delivery.subject)
        return {**body, "input": told, "output": with_files(body.get("output"), files)}

    async def _input(self, prediction_id: str) -> Mapping[str, Any]:
        """What was asked for; nothing where that was removed since."""
        try:
            return (await self._store.get(prediction_id)).input
        except NotFound:
            place = (await self._batches.places([prediction_id])).get(prediction_id)
        return {} if place is None else intent_of(place[1], prediction_id).input


class Telling:
    """An observer that tells how one prediction goes on, at most twice a second, while it runs.

    Args:
        batch, item: what it belongs to.
        events: makes what is told; outbox: keeps it.
        clock: tells the time.
        told: what was told before.
    """

    def __init__(
        self,
        batch: Batch,
        item: Item,
        *,
        events: ReplicateEvents,
        outbox: Outbox,
        clock: Clock,
        told: Told = NOTHING,
    ) -> None:
        self.told = told
        self._batch = batch
        self._item = item
        self._events = events
        self._outbox = outbox
        self._clock = clock
        self._latest: Prediction | None = None
        self._task: asyncio.Task[None] | None = None

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, Progressed) and not event.prediction.status.terminal:
            self._latest = event.prediction
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._tell())

    async def over(self) -> Told:
        """It tells no more; what was told by then. The rest is told with the end."""
        if self._task is not None:
            self._latest = None
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        return self.told

    async def _tell(self) -> None:
        while (latest := self._latest) is not None:
            self._latest = None
            deliveries, told = self._events.of_progress(self._batch, self._item, latest, self.told)
            if deliveries:
                try:
                    await asyncio.shield(self._outbox.put(deliveries))
                except StoreError:
                    pass  # it is told with the next look, or the end
                else:
                    self.told = told
            await self._clock.sleep(LEAST_APART_SECONDS)
        self._task = None


class Tellings:
    """Who is told how their predictions go on. What was told of one that is put back is not told again by the next try.

    Args:
        events: makes what is told; outbox: keeps it.
        clock: tells the time.
    """

    def __init__(self, *, events: ReplicateEvents, outbox: Outbox, clock: Clock) -> None:
        self._events = events
        self._outbox = outbox
        self._clock = clock
        self._told: FIFOCache[str, Told] = FIFOCache(MOST_KEPT)

    @asynccontextmanager
    async def of(self, batch: Batch, item: Item) -> AsyncIterator[Observer | None]:
        """Tell of an item while the block runs; None where nobody wants to be told."""
        if not _wants_progress(batch):
            yield None
            return
        told = self.take(batch)
        telling = Telling(batch, item, events=self._events, outbox=self._outbox, clock=self._clock, told=told)
        try:
            yield telling
        finally:
            self._keep(batch, await telling.over())

    def take(self, batch: Batch) -> Told:
        """What was told by now of a prediction, which ends or is tried again; it is forgotten here."""
        return self._told.pop(batch.id, NOTHING)

    def _keep(self, batch: Batch, told: Told) -> None:
        if told == NOTHING:
            return  # it may end where nobody asks for that: canceled while it waits
        self._told[batch.id] = told


def _wants_progress(batch: Batch) -> bool:
    """Whether somebody is told how it goes on, besides how it ends."""
    return is_of_face(batch) and batch.webhook is not None and set(batch.webhook_events) != {COMPLETED}


def count_of(prediction: Prediction) -> int:
    """How much it has put out: files, parts of a list, or characters of a text."""
    answer = prediction.answer
    return max(len(prediction.output), len(answer) if isinstance(answer, list | str) else answer is not None)


def _has_begun(prediction: Prediction) -> bool:
    return prediction.status is not Status.STARTING and prediction.upstream_id is not None


def _has_run(prediction: Prediction) -> bool:
    """Whether one that has ended ever ran; recorded answers do not always tell when it began."""
    ended = prediction.status in {Status.SUCCEEDED, Status.FAILED}
    return prediction.upstream_id is not None and (ended or prediction.started_at is not None)


def _with_kept(known: Known, base: str) -> Prediction | None:
    """The prediction with the addresses of its kept pictures in the places of files that came inside its answer."""
    prediction, kept = known.prediction, kept_files(known.item, base)
    if prediction is None or not any(kept):
        return prediction
    output = tuple(
        address if is_inside(file) and address else file
        for file, address in zip(prediction.output, [*kept, *[None] * len(prediction.output)], strict=False)
    )
    return msgspec.structs.replace(prediction, output=output)
