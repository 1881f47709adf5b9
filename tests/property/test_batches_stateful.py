"""Whatever is accepted, claimed, ended, queued again, taken over, canceled or retried: nothing ends twice or is lost.

A model of the batches in plain Python runs beside two stores on one file, as two processes have them. Workers say what
they have to say also when they should not any more: when their batch was taken over, canceled, or tried again.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Container, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from fakes.batches import make_batch, make_delivery, make_mark
from fakes.clock import BEGINNING
from fakes.make import make_prediction
from imagen.domain.batch import Batch, Control, Idempotency, Item, ItemStatus, Remembered, Tally
from imagen.domain.delivery import Delivery
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.errors import IdempotencyConflict, NotFound
from imagen.ports import Stretch
from imagen.store.batches import SqlBatches
from imagen.store.database import Database
from imagen.store.outbox import SqlOutbox
from imagen.store.predictions import SqlPredictionStore

T = TypeVar("T")
OWNERS = ("one", "two")
OWNER = st.sampled_from((None, *OWNERS))
PROCESS = st.integers(0, 1)
WHICH = st.integers(0, 1000)
ENDS = [status for status in ItemStatus if status.terminal]
MAY_BE_RETRIED = {ItemStatus.FAILED, ItemStatus.CANCELED, ItemStatus.EXPIRED}
KEYS, FINGERPRINTS = ("key 1", "key 2"), ("aa", "bb")
MOST_BATCHES = 3
WEBHOOK = "https://shop.example/hook"
SENT_AT = make_prediction().sent_at


class Process:
    """What one process has of a shared file."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.batches = SqlBatches(self.database, tells=lambda batch: told_of if batch.webhook else None)
        self.predictions = SqlPredictionStore(self.database)
        self.outbox = SqlOutbox(self.database)


def told_of(item: Item) -> list[Delivery]:
    """What is told of an item that was canceled before anybody worked on it: of each end another thing."""
    return [make_delivery(id=f"msg_{item.batch_id}_{item.index}_{item.attempt}")]


@dataclass
class Work:
    """How a batch should be."""

    batch: Batch
    items: list[Item]

    def change(self, index: int, **facts: Any) -> None:
        self.items[index] = replace(self.items[index], **facts)

    def end(self, index: int, **facts: Any) -> None:
        self.batch = replace(self.batch, sequence=self.batch.sequence + 1)
        self.change(index, **facts, sequence=self.batch.sequence)

    def queue(self, index: int, given: Item) -> None:
        plain = Item(batch_id=given.batch_id, index=index, order=given.order, note=given.note)
        self.items[index] = replace(
            plain, attempt=given.attempt, predictions=given.predictions, cost=given.cost
        )

    def note(self, noted: Remembered) -> None:
        self.batch = replace(self.batch, details=self.batch.details | noted.to_details())

    def let_go(self) -> None:
        for item in self.of(ItemStatus.RUNNING):
            self.change(item.index, status=ItemStatus.QUEUED)

    def of(self, *statuses: ItemStatus) -> list[Item]:
        return [item for item in self.items if item.status in statuses]

    @property
    def left(self) -> list[Item]:
        return self.of(ItemStatus.QUEUED, ItemStatus.RUNNING)

    def tally(self, since: datetime, bought: Container[str]) -> Tally:
        recent = [item for item in self.items if item.ended_at is not None and item.ended_at >= since]
        began = [SENT_AT if item.predictions[0] in bought else item.ended_at for item in recent]
        counts = Counter(item.status.value for item in self.items)
        return Tally(
            **counts,
            cost=Usd.total(item.cost for item in self.items if item.cost is not None),
            unpriced=sum(item.cost is None for item in self.items),
            images=sum(item.images for item in self.items),
            recent=len(recent),
            recent_from=min((at for at in began if at is not None), default=None),
        )


@dataclass
class Model:
    """How everything should be."""

    now: datetime = BEGINNING
    works: dict[str, Work] = field(default_factory=dict)
    marks: dict[str, Idempotency] = field(default_factory=dict)
    bought: dict[str, bool] = field(default_factory=dict)
    """Predictions that are written down, and whether something of them is left to do."""
    belongs: dict[str, tuple[str, int]] = field(default_factory=dict)
    ends: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    told: int = 0

    def standing(self, key: str) -> Idempotency | None:
        mark = self.marks.get(key)
        young = mark is not None and mark.created_at > self.now - timedelta(hours=24)
        return mark if young else None

    def under_way(self, item: Item) -> bool:
        return any(
            self.bought.get(prediction, False)
            for prediction, where in self.belongs.items()
            if where == (item.batch_id, item.index)
        )


class NothingEndsTwice(RuleBasedStateMachine):
    """Two processes, one file, a clock that is moved by hand."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "imagen.db"
        shutil.copy(self.template, self.path)
        self.loop = asyncio.new_event_loop()
        self.processes = [Process(self.path), Process(self.path)]
        self.model = Model()
        self.handed: list[Item] = []
        self.drafts: list[Batch] = []
        self.number = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def store(self, process: int) -> SqlBatches:
        return self.processes[process].batches

    def work(self, which: int) -> Work:
        return list(self.model.works.values())[which % len(self.model.works)]

    def new_prediction(self, batch_id: str, index: int) -> str:
        self.number += 1
        prediction = f"pred_{self.number:026}"
        self.model.belongs[prediction] = (batch_id, index)
        return prediction

    # --- what may happen ---------------------------------------------------------------------------------

    @initialize(total=st.integers(2, 4), limit=st.integers(1, 4))
    def work_has_begun(self, total: int, limit: int) -> None:
        self.something_is_asked_for(total, OWNERS[0], None, FINGERPRINTS[0], finish=True, process=0)
        self.claim(0, None, limit, usual=True, process=0)

    @precondition(lambda self: len(self.model.works) < MOST_BATCHES)
    @rule(
        total=st.integers(1, 3),
        owner=OWNER,
        key=st.sampled_from((None, None, *KEYS)),
        fingerprint=st.sampled_from(FINGERPRINTS),
        finish=st.sampled_from((True, True, True, False)),
        process=PROCESS,
    )
    def something_is_asked_for(
        self, total: int, owner: str | None, key: str | None, fingerprint: str, finish: bool, process: int
    ) -> None:
        self.number += 1
        batch = make_batch(
            self.number,
            total=total,
            owner=owner,
            created_at=self.model.now,
            sealed_token="sealed",
            webhook=WEBHOOK if self.number % 2 else None,
        )
        items = [
            Item(
                batch_id=batch.id,
                index=index,
                order=b'{"wish": %d}' % index,
                predictions=(self.new_prediction(batch.id, index),),
            )
            for index in range(total)
        ]
        self.run(self.store(process).add(batch))
        self.run(self.store(process).add_items(items))
        if not finish:
            self.drafts.append(batch)
            return
        if key is None:
            assert self.run(self.store(process).accept(batch)) == batch.id
        else:
            mark = make_mark(batch, key=key, fingerprint=fingerprint, created_at=self.model.now)
            first = self.model.standing(key)
            if first is not None:
                self._comes_again(process, batch, mark, first)
                return
            assert self.run(self.store(process).accept(batch, mark=mark)) == batch.id
            self.model.marks[key] = mark
        self.model.works[batch.id] = Work(batch, items)

    def _comes_again(self, process: int, batch: Batch, mark: Idempotency, first: Idempotency) -> None:
        work = self.store(process).accept(batch, mark=mark)
        if first.fingerprint == mark.fingerprint:
            assert self.run(work) == first.batch_id
        else:
            with pytest.raises(IdempotencyConflict):
                self.run(work)
        assert list(self.run(self.store(process).items(batch.id))) == []

    @precondition(lambda self: self.model.works)
    @rule(which=WHICH, owner=st.sampled_from(OWNERS), was=OWNER, process=PROCESS)
    def take(self, which: int, owner: str, was: str | None, process: int) -> None:
        work = self.work(which)
        taken = work.batch.owner == was and work.batch.ended_at is None
        assert self.run(self.store(process).take(work.batch.id, owner=owner, was=was)) is taken
        if taken:
            work.batch = replace(work.batch, owner=owner)
            work.let_go()

    @precondition(lambda self: self.model.works)
    @rule(which=WHICH, owner=st.sampled_from(OWNERS), process=PROCESS)
    def release(self, which: int, owner: str, process: int) -> None:
        work = self.work(which)
        self.run(self.store(process).release(work.batch.id, owner=owner))
        if work.batch.owner == owner:
            work.batch = replace(work.batch, owner=None)
            work.let_go()

    @precondition(lambda self: self.model.works)
    @rule(
        which=WHICH,
        owner=st.sampled_from((None, None, None, None, None, *OWNERS)),
        limit=st.integers(1, 4),
        usual=st.sampled_from((True, True, True, False)),
        process=PROCESS,
    )
    def claim(self, which: int, owner: str | None, limit: int, usual: bool, process: int) -> None:
        work = self.work(which)
        owner = owner or work.batch.owner or "nobody"
        to_finish = (work.batch.control is not Control.RUN) is usual
        queued = work.of(ItemStatus.QUEUED)
        if owner != work.batch.owner or to_finish is (work.batch.control is Control.RUN):
            queued = []
        elif work.batch.control is Control.PAUSE:
            queued = [item for item in queued if self.model.under_way(item)]
        for item in queued[:limit]:
            work.change(item.index, status=ItemStatus.RUNNING)
        got = self.run(
            self.store(process).claim(work.batch.id, owner=owner, limit=limit, to_finish=to_finish)
        )
        assert list(got) == [work.items[item.index] for item in queued[:limit]]
        self.handed.extend(got)

    @precondition(lambda self: self.handed)
    @rule(
        which=WHICH,
        status=st.sampled_from(ENDS),
        cost=st.sampled_from((Usd(0), Usd(3000), None)),
        images=st.integers(0, 2),
        times=st.integers(1, 3),
        process=PROCESS,
    )
    def a_worker_says_the_end(
        self, which: int, status: ItemStatus, cost: Usd | None, images: int, times: int, process: int
    ) -> None:
        given = self.handed[which % len(self.handed)]
        facts: dict[str, Any] = {
            "status": status,
            "cost": cost,
            "images": images,
            "predictions": given.predictions,
            "charged": True,
            "files": ("a.png",) * images,
            "ended_at": self.model.now,
        }
        work = self.model.works[given.batch_id]
        item = work.items[given.index]
        counts = item.attempt == given.attempt and not item.status.terminal
        if counts:
            work.end(given.index, **facts)
            self.model.ends[given.batch_id, given.index, given.attempt] += 1

        async def say() -> list[Item | None]:
            said = []
            for time in range(times):
                store = self.store((process + time) % 2)
                self.number += 1
                said.append(store.end(replace(given, **facts), deliveries=[make_delivery(self.number)]))
            return list(await asyncio.gather(*said))

        written = [each for each in self.run(say()) if each is not None]
        assert len(written) == counts
        self.model.told += counts
        if counts:
            assert written[0].sequence == work.batch.sequence

    @precondition(lambda self: self.handed)
    @rule(which=WHICH, another=st.booleans(), process=PROCESS)
    def a_worker_puts_it_back(self, which: int, another: bool, process: int) -> None:
        given = self.handed[which % len(self.handed)]
        work = self.model.works[given.batch_id]
        item = work.items[given.index]
        counts = item.status is ItemStatus.RUNNING and item.attempt <= given.attempt + another
        if another:
            prediction = f"pred_{self.number + 1:026}"
            if counts:
                prediction = self.new_prediction(given.batch_id, given.index)
            given = replace(given, attempt=given.attempt + 1, predictions=(prediction,), cost=Usd(7))
        if counts:
            work.queue(given.index, given)
        self.run(self.store(process).requeue(given))

    @precondition(lambda self: self.model.works)
    @rule(
        which=WHICH,
        index=WHICH,
        status=st.sampled_from((Status.PROCESSING, Status.SUCCEEDED, Status.FAILED)),
        process=PROCESS,
    )
    def something_is_bought(self, which: int, index: int, status: Status, process: int) -> None:
        work = self.work(which)
        items = work.left or work.items
        prediction = items[index % len(items)].predictions[0]
        if prediction not in self.model.bought:
            bought = make_prediction(id=prediction, upstream_id=f"up-{prediction}", status=status)
            self.run(self.processes[process].predictions.add(bought))
            self.model.bought[prediction] = not bought.finished

    @precondition(lambda self: self.model.works)
    @rule(which=WHICH, process=PROCESS)
    def close(self, which: int, process: int) -> None:
        work = self.work(which)
        counts = work.batch.ended_at is None and not work.left
        self.number += 1
        store, told = self.store(process), [make_delivery(self.number)]
        assert self.run(store.close(work.batch.id, at=self.model.now, deliveries=told)) is counts
        self.model.told += counts
        if counts:
            work.batch = replace(work.batch, ended_at=self.model.now, owner=None, sealed_token=None)

    @precondition(lambda self: self.model.works)
    @rule(which=WHICH, wanted=st.sampled_from((Control.PAUSE, Control.RUN)), process=PROCESS)
    def pause_or_resume(self, which: int, wanted: Control, process: int) -> None:
        self._control(self.work(which), wanted, process)

    @precondition(lambda self: self.model.works)
    @rule(which=WHICH, process=PROCESS)
    def cancel(self, which: int, process: int) -> None:
        self._control(self.work(which), Control.CANCEL, process)

    def _control(self, work: Work, wanted: Control, process: int) -> None:
        store = self.store(process)
        told = self.run(store.control(work.batch.id, wanted, at=self.model.now, reason="because"))
        sticks = work.batch.control is Control.CANCEL and wanted is not Control.CANCEL
        if work.batch.ended_at is None and not sticks:
            resumed = work.batch.control is Control.PAUSE and wanted is Control.RUN
            work.note(Remembered(resumed_at=self.model.now if resumed else None))
            work.batch = replace(work.batch, control=wanted, reason="because")
            if wanted is Control.CANCEL:
                self._canceled(work)
        assert told == work.batch

    def _canceled(self, work: Work) -> None:
        for item in work.of(ItemStatus.QUEUED):
            if not any(prediction in self.model.bought for prediction in item.predictions):
                work.end(
                    item.index,
                    status=ItemStatus.CANCELED,
                    code="prediction_canceled",
                    error="canceled before it was bought",
                    charged=False,
                    ended_at=self.model.now,
                )
                self.model.ends[item.batch_id, item.index, item.attempt] += 1
                self.model.told += work.batch.webhook is not None

    @precondition(lambda self: self.model.works)
    @rule(
        which=WHICH,
        some=st.one_of(st.just({0, 1, 2, 3}), st.sets(st.integers(0, 3))),
        raised=st.sampled_from((1, 1, 1, 1, 0)),
        process=PROCESS,
    )
    def retry(self, which: int, some: set[int], raised: int, process: int) -> None:
        work = self.work(which)
        count = 0
        again = []
        for item in [item for item in work.items if item.index in some]:
            counts = item.status in MAY_BE_RETRIED and raised > 0
            given = replace(item, attempt=item.attempt + raised)
            if counts:
                prediction = self.new_prediction(item.batch_id, item.index)
                given = replace(given, predictions=(prediction,))
                work.queue(item.index, given)
                count += 1
            again.append(given)
        assert self.run(self.store(process).retry(work.batch.id, again, at=self.model.now)) == count
        if count:
            work.batch = replace(work.batch, ended_at=None, control=Control.RUN, reason=None)
            work.note(Remembered(retried_at=self.model.now))

    @rule(hours=st.sampled_from((0.01, 1, 12, 24)))
    def time_passes(self, hours: float) -> None:
        self.model.now += timedelta(hours=hours)

    @rule(process=PROCESS)
    def it_is_swept(self, process: int) -> None:
        before = self.model.now - timedelta(hours=24)
        self.run(self.store(process).sweep(before=before))
        for key, mark in list(self.model.marks.items()):
            if mark.created_at < before:
                del self.model.marks[key]
        for batch in self.drafts:
            left = self.run(self.store(process).items(batch.id))
            assert len(left) == (0 if batch.created_at < before else batch.total)
        self.drafts = [batch for batch in self.drafts if batch.created_at >= before]

    @rule(process=PROCESS)
    def a_process_starts_anew(self, process: int) -> None:
        self.processes[process].database.close()
        self.processes[process] = Process(self.path)

    # --- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        self.run(self._compared())

    async def _compared(self) -> None:
        store = self.store(0)
        since = self.model.now - timedelta(hours=1)
        for work in self.model.works.values():
            assert await store.get(work.batch.id) == work.batch
            assert list(await store.items(work.batch.id)) == work.items
            assert await store.tally(work.batch.id, recent_since=since) == work.tally(
                since, self.model.bought
            )
            told = [item for item in work.items if item.status.terminal]
            assert list(await store.ended_since(work.batch.id, 0, limit=99)) == sorted(
                told, key=lambda item: item.sequence
            )
            assert work.batch.sequence == sum(self._ends_of(work))
        shown = [
            this for work in self.model.works.values() for item in work.items for this in item.predictions
        ]
        for scope in (None, ""):
            assert await self.promised(scope) == sorted(shown, reverse=True)
        opened = [work.batch for work in self.model.works.values() if work.batch.ended_at is None]
        assert list(await store.open()) == sorted(opened, key=lambda batch: batch.id)
        for key in KEYS:
            known = await store.known("key:a", key, since=self.model.now - timedelta(hours=24))
            assert known == self.model.standing(key)
        assert set(self.model.ends.values()) <= {1}

    async def promised(self, scope: str | None) -> list[str]:
        """All that is shown, page by page."""
        found: list[str] = []
        while page := await self.store(0).promised(
            Stretch(below=found[-1] if found else None, limit=2), scope=scope
        ):
            found += page
        return found

    def _ends_of(self, work: Work) -> Iterator[int]:
        return (count for (batch, *_), count in self.model.ends.items() if batch == work.batch.id)

    def teardown(self) -> None:
        try:
            self._end_everything()
        finally:
            for process in self.processes:
                process.database.close()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()

    def _end_everything(self) -> None:
        """Whoever takes up what is there brings it to its end, and nothing ends that has ended."""
        self.run(self._ended())
        for prediction, (batch_id, index) in self.model.belongs.items():
            if batch_id in self.model.works:
                assert self.run(self.store(0).of_prediction(prediction)).index == index
            else:
                with pytest.raises(NotFound):
                    self.run(self.store(0).of_prediction(prediction))
        assert len(self.run(self.processes[0].outbox.list(limit=9999))) == self.model.told

    async def _ended(self) -> None:
        store = self.store(1)
        for work in self.model.works.values():
            batch = work.batch
            if batch.ended_at is not None:
                continue
            batch = await store.control(batch.id, Control.RUN, at=self.model.now)
            assert await store.take(batch.id, owner="last", was=batch.owner)
            left = [item.index for item in work.left]
            to_finish = work.batch.control is Control.CANCEL
            assert batch.control is (Control.CANCEL if to_finish else Control.RUN)
            got = await store.claim(batch.id, owner="last", limit=99, to_finish=to_finish)
            assert [item.index for item in got] == left
            ends = [replace(item, status=ItemStatus.SUCCEEDED, ended_at=self.model.now) for item in got]
            written = await asyncio.gather(*(store.end(end) for end in [*ends, *ends]))
            assert sum(each is not None for each in written) == len(left)
            assert (await store.tally(batch.id, recent_since=self.model.now)).left == 0
            assert await store.close(batch.id, at=self.model.now)
            assert not await store.close(batch.id, at=self.model.now)
        assert list(await store.open()) == []


@pytest.fixture(scope="module", autouse=True)
def an_empty_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Made once and copied for each run: its migrations take longer than a run does."""
    path = tmp_path_factory.mktemp("batches") / "empty.db"

    async def make() -> None:
        process = Process(path)
        await process.batches.open()
        process.database.close()

    asyncio.run(make())
    NothingEndsTwice.template = path


@pytest.mark.slow
@pytest.mark.timeout(240)  # of many short runs together
class TestNothingEndsTwice(NothingEndsTwice.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=20,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
    )
