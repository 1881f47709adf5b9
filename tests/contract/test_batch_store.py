"""What `ports.BatchStore` promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fakes.batches import accepted, make_batch, make_delivery, make_item, make_mark, prediction_of
from fakes.clock import BEGINNING
from fakes.make import make_prediction
from imagen.domain.batch import Batch, Control, Item, ItemStatus, Remembered, Tally
from imagen.domain.caller import Caller
from imagen.domain.delivery import Delivery
from imagen.domain.limits import Lane
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.errors import IdempotencyConflict, NotFound, StoreError
from imagen.ports import OpenWork, Stretch
from imagen.store.batches import SqlBatches
from imagen.store.database import Database
from imagen.store.outbox import SqlOutbox
from imagen.store.predictions import SqlPredictionStore

pytestmark = pytest.mark.anyio

AT = BEGINNING + timedelta(hours=1)
LONG_AGO = BEGINNING - timedelta(days=1)
ENDS = [status for status in ItemStatus if status.terminal]


class House:
    """What one process has of a database."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.batches = SqlBatches(self.database)
        self.predictions = SqlPredictionStore(self.database)
        self.outbox = SqlOutbox(self.database)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "imagen.db")
    yield house
    house.database.close()


@pytest.fixture
def store(house: House) -> SqlBatches:
    return house.batches


def ended(item: Item, status: ItemStatus = ItemStatus.SUCCEEDED, **facts: Any) -> Item:
    given: dict[str, Any] = {"status": status, "ended_at": AT, "charged": True, "cost": Usd(3000)}
    return replace(item, **{**given, **facts})


def again(item: Item, attempt: int = 2) -> Item:
    prediction = prediction_of(make_batch(int(item.batch_id[-6:])), item.index, attempt)
    return replace(item, attempt=attempt, predictions=(prediction,), order=b'{"attempt": %d}' % attempt)


def indexes(items: Sequence[Item]) -> list[int]:
    return [item.index for item in items]


async def working(store: SqlBatches, total: int = 3, number: int = 1) -> Sequence[Item]:
    """A batch of which all items run, by `me`."""
    batch = await accepted(store, make_batch(number, total=total, owner="me"))
    return await store.claim(batch.id, owner="me", limit=total)


# --- acceptance ----------------------------------------------------------------------------------------------


async def test_an_accepted_batch_comes_back_whole(store: SqlBatches):
    told = make_batch(
        kind="single",
        name="größer 水.jsonl",
        caller=Caller(name="kai", key="key_1", concurrent=3, per_minute=60, stranger=True),
        scope="key:key_1",
        lane=Lane.INTERACTIVE,
        quoted=Usd(9001),
        unpriced=1,
        images=7,
        own_token=True,
        sealed_token="gAAAA",
        webhook="https://example.com/hook",
        webhook_events=("item.ended", "batch.ended"),
        details={"a": [1, {"b": None}]},
        owner="me",
        total=0,
    )
    await store.add(told)
    await store.accept(told)
    assert await store.get(told.id) == told


async def test_an_item_comes_back_whole_in_the_order_of_indexes(store: SqlBatches):
    batch = make_batch(total=2)
    told = make_item(
        batch,
        0,
        order='{"größe": [1.5, null]}'.encode(),
        note={"name": "x.png"},
        status=ItemStatus.EXPIRED,
        attempt=3,
        predictions=("pred_a", "pred_b"),
        error="gone",
        code="expired",
        hint="again",
        problem={"category": "x"},
        charged=False,
        cost=None,
        files=("shelf:pic_1", ""),
        urls=("https://replicate.delivery/a.png",),
        seed=2**63 - 1,
        images=2,
        ended_at=AT + timedelta(microseconds=1),
    )
    plain = make_item(batch, 1)
    await accepted(store, batch, [plain, told])
    assert list(await store.items(batch.id)) == [told, plain]


async def test_what_is_known_late_is_written_down_when_it_is_accepted(store: SqlBatches):
    await store.add(make_batch(total=0, sealed_token="sealed"))
    late = make_batch(
        quoted=Usd(5), unpriced=2, images=4, owner="me", details={"x": 1}, total=1, sealed_token="sealed"
    )
    await store.add_items([make_item(late, 0)])
    await store.accept(late)
    assert await store.get(late.id) == late


async def test_nobody_sees_a_batch_before_it_is_accepted(store: SqlBatches):
    batch = make_batch()
    await store.add(batch)
    await store.add_items([make_item(batch, index) for index in range(3)])
    assert (list(await store.list(limit=9)), list(await store.open())) == ([], [])
    assert not await store.take(batch.id, owner="me", was=None)
    assert not await store.claim(batch.id, owner="me", limit=9)
    assert not await store.close(batch.id, at=AT)
    for asked in (
        store.get(batch.id),
        store.get(batch.id[:9]),
        store.of_prediction(prediction_of(batch, 0)),
        store.control(batch.id, Control.PAUSE, at=AT),
        store.retry(batch.id, [], at=AT),
    ):
        with pytest.raises(NotFound):
            await asked


async def test_what_was_never_added_cannot_be_accepted(store: SqlBatches):
    with pytest.raises(NotFound):
        await store.accept(make_batch(total=0))


@pytest.mark.parametrize("there", [2, 4])
async def test_a_batch_is_accepted_with_all_of_its_items_or_not_at_all(store: SqlBatches, there: int):
    batch = make_batch(total=3)
    await store.add(batch)
    await store.add_items([make_item(batch, index) for index in range(there)])
    with pytest.raises(StoreError, match=f"has {there} items in place of 3"):
        await store.accept(batch)
    assert list(await store.open()) == []


async def test_accepting_twice_is_accepting_once(store: SqlBatches):
    batch = await accepted(store, make_batch())
    await store.take(batch.id, owner="me", was=None)
    assert await store.accept(replace(batch, owner="other", quoted=Usd(1))) == batch.id
    assert await store.get(batch.id) == replace(batch, owner="me")


@pytest.mark.parametrize("batch", [make_batch(1), make_batch(2)])
async def test_items_are_added_to_what_is_there_and_not_accepted(store: SqlBatches, batch: Any):
    await accepted(store, make_batch(1, total=1))
    with pytest.raises(StoreError, match="takes no items"):
        await store.add_items([make_item(batch, 7)])
    assert indexes(await store.items(batch.id)) == ([0] if batch.id == make_batch(1).id else [])


async def test_neither_a_batch_nor_an_item_is_added_twice(store: SqlBatches):
    batch = make_batch()
    await store.add(batch)
    await store.add_items([make_item(batch, 0)])
    with pytest.raises(StoreError, match="already"):
        await store.add(replace(batch, name="other"))
    with pytest.raises(StoreError, match="already"):
        await store.add_items([make_item(batch, 1), make_item(batch, 0, note={"other": 1})])
    assert list(await store.items(batch.id)) == [make_item(batch, 0)]


async def test_a_prediction_belongs_to_one_item(store: SqlBatches):
    await accepted(store, make_batch(1, total=1), [make_item(make_batch(1), 0, predictions=("pred_a",))])
    other = make_batch(2, total=1)
    await store.add(other)
    await store.add_items([make_item(other, 0, predictions=("pred_b", "pred_a"))])
    with pytest.raises(StoreError, match="belongs to another item"):
        await store.accept(other)
    assert (await store.of_prediction("pred_a")).batch_id == make_batch(1).id
    with pytest.raises(NotFound):
        await store.of_prediction("pred_b")


# --- idempotency keys ----------------------------------------------------------------------------------------


async def test_of_fifty_equal_requests_at_once_one_counts_and_the_others_are_forgotten(store: SqlBatches):
    batches = [make_batch(number, total=2) for number in range(1, 51)]
    for batch in batches:
        await store.add(batch)
        await store.add_items([make_item(batch, index) for index in range(2)])
    mark = make_mark(batches[0])
    counts = await asyncio.gather(*(store.accept(batch, mark=mark) for batch in batches))
    assert len(set(counts)) == 1
    assert [batch.id for batch in await store.list(limit=99)] == [counts[0]]
    for batch in batches:
        kept = batch.id == counts[0]
        assert len(await store.items(batch.id)) == (2 if kept else 0)
    known = await store.known(mark.scope, mark.key, since=LONG_AGO)
    assert known == replace(mark, batch_id=counts[0])


async def test_the_same_key_with_another_body_is_refused_and_its_batch_forgotten(store: SqlBatches):
    first = make_batch(1, total=0)
    await store.add(first)
    await store.accept(first, mark=make_mark(first))
    other = make_batch(2, total=1)
    await store.add(other)
    await store.add_items([make_item(other, 0)])
    with pytest.raises(IdempotencyConflict, match="once"):
        await store.accept(other, mark=make_mark(other, fingerprint="cd" * 32))
    assert [batch.id for batch in await store.open()] == [first.id]
    assert list(await store.items(other.id)) == []
    with pytest.raises(NotFound):
        await store.accept(other)


@pytest.mark.parametrize("difference", [{"scope": "key:b"}, {"key": "twice"}])
async def test_keys_of_others_and_other_keys_mean_other_requests(store: SqlBatches, difference: Any):
    for number in (1, 2):
        batch = make_batch(number, total=0)
        await store.add(batch)
        mark = make_mark(batch, fingerprint=str(number), **(difference if number == 2 else {}))
        assert await store.accept(batch, mark=mark) == batch.id


@pytest.mark.parametrize(("hours", "counts"), [(0, 1), (23.99, 1), (24, 2), (48, 2)])
async def test_a_key_stands_for_a_day(store: SqlBatches, hours: float, counts: int):
    for number in (1, 2):
        batch = make_batch(number, total=0)
        at = BEGINNING + timedelta(hours=hours if number == 2 else 0)
        await store.add(batch)
        last = await store.accept(batch, mark=make_mark(batch, created_at=at))
    assert last == make_batch(counts).id
    since = BEGINNING + timedelta(hours=hours - 24)
    known = await store.known("key:a", "once", since=since)
    assert known is not None
    assert known.batch_id == last


async def test_what_was_answered_is_kept_with_the_key(store: SqlBatches):
    batch = make_batch(total=0)
    mark = make_mark(batch, answer={"status": 202, "x": [1]})
    await store.add(batch)
    await store.accept(batch, mark=mark)
    assert await store.known("key:a", "once", since=LONG_AGO) == mark
    assert await store.known("key:a", "once", since=mark.created_at) is None
    assert await store.known("key:a", "never", since=LONG_AGO) is None


async def test_sweeping_forgets_old_keys_and_what_was_never_accepted(store: SqlBatches):
    young, old, kept = make_batch(9, total=1), make_batch(1, total=1), make_batch(2, total=1)
    for batch in (young, old, kept):
        await store.add(batch)
        await store.add_items([make_item(batch, 0)])
    await store.accept(kept, mark=make_mark(kept))
    await store.sweep(before=make_batch(5).created_at)
    assert await store.known("key:a", "once", since=LONG_AGO) is None
    assert [len(await store.items(batch.id)) for batch in (young, old, kept)] == [1, 0, 1]
    assert await store.accept(young) == young.id
    with pytest.raises(NotFound):
        await store.accept(replace(old, total=0))
    assert [batch.id for batch in await store.open()] == [kept.id, young.id]


# --- looking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["batch_a1", " batch_a1\n", "batch_a"])
async def test_get_by_id_and_by_unique_beginning(store: SqlBatches, given: str):
    for identity in ("batch_a1", "batch_b1", "batch_b2"):
        await accepted(store, make_batch(id=identity, total=0))
    assert (await store.get(given)).id == "batch_a1"


async def test_a_whole_id_wins_over_beginnings(store: SqlBatches):
    for identity in ("batch_a11", "batch_a1", "batch_a12"):
        await accepted(store, make_batch(id=identity, total=0))
    assert (await store.get("batch_a1")).id == "batch_a1"


@pytest.mark.parametrize(
    "given", ["batch_", "batch_c", "", "  ", "%", "_", "batch%", "' OR 1=1 --", "\0", "ü", "\ud800"]
)
async def test_get_refuses_what_names_none_or_several(store: SqlBatches, given: str):
    for identity in ("batch_a1", "batch_b2"):
        await accepted(store, make_batch(id=identity, total=0))
    with pytest.raises(NotFound):
        await store.get(given)


async def test_list_is_newest_first_of_one_kind_and_scope_page_by_page(store: SqlBatches):
    for number in range(1, 7):
        kind, scope = ("single" if number == 3 else "batch"), ("mine" if number % 2 else "theirs")
        await accepted(store, make_batch(number, total=0, kind=kind, scope=scope))

    async def listed(**asked: Any) -> list[int]:
        return [int(batch.id[-1]) for batch in await store.list(**{"limit": 9, **asked})]

    assert await listed() == [6, 5, 4, 2, 1]
    assert await listed(limit=2) == [6, 5]
    assert await listed(limit=2, before=make_batch(5).id) == [4, 2]
    assert await listed(scope="mine") == [5, 1]
    assert await listed(scope="mine", before=make_batch(5).id) == [1]
    assert await listed(kind="single") == [3]
    assert await listed(scope="nobody") == []


async def test_open_is_what_has_not_ended_of_every_kind_oldest_first(store: SqlBatches):
    for number in (2, 1, 3):
        await accepted(store, make_batch(number, total=0, kind="single" if number == 1 else "batch"))
    assert await store.close(make_batch(2).id, at=AT)
    assert [batch.id[-1] for batch in await store.open()] == ["1", "3"]


async def test_items_come_page_by_page_and_of_one_status_if_wanted(store: SqlBatches):
    items = await working(store, 6)
    for item in (items[4], items[1]):
        await store.end(ended(item, ItemStatus.FAILED))
    batch = items[0].batch_id
    assert indexes(await store.items(batch, limit=4)) == [0, 1, 2, 3]
    assert indexes(await store.items(batch, after=3)) == [4, 5]
    assert indexes(await store.items(batch, status=ItemStatus.FAILED)) == [1, 4]
    assert indexes(await store.items(batch, after=1, status=ItemStatus.FAILED)) == [4]
    assert indexes(await store.items(batch, status=ItemStatus.RUNNING, limit=3)) == [0, 2, 3]
    assert indexes(await store.items("batch_none")) == []


async def test_ends_are_told_in_their_order(store: SqlBatches):
    items = await working(store, 4)
    for item in (items[2], items[0], items[3]):
        await store.end(ended(item))
    batch = items[0].batch_id
    assert indexes(await store.ended_since(batch, 0, limit=9)) == [2, 0, 3]
    assert indexes(await store.ended_since(batch, 1, limit=9)) == [0, 3]
    assert indexes(await store.ended_since(batch, 1, limit=1)) == [0]
    assert indexes(await store.ended_since(batch, 3, limit=9)) == []


async def test_a_tally_counts_items_their_cost_and_their_pictures(store: SqlBatches):
    items = await working(store, 9)
    batch = items[0].batch_id
    assert await store.tally(batch, recent_since=LONG_AGO) == Tally(running=9)
    ends = [
        ended(items[0], images=2, ended_at=AT),
        ended(items[1], cost=None, images=1, ended_at=AT + timedelta(seconds=1)),
        ended(items[2], ItemStatus.FAILED, cost=Usd(0), charged=False, ended_at=AT + timedelta(seconds=2)),
        ended(items[3], ItemStatus.CANCELED, cost=Usd(1)),
        ended(
            items[4], ItemStatus.EXPIRED, cost=Usd(5), ended_at=AT.astimezone(timezone(timedelta(hours=9)))
        ),
    ]
    for item in ends:
        await store.end(item)
    await store.requeue(replace(items[5], cost=Usd(7)))
    told = await store.tally(batch, recent_since=AT + timedelta(seconds=1))
    assert told == Tally(
        queued=1,
        running=3,
        succeeded=2,
        failed=1,
        canceled=1,
        expired=1,
        cost=Usd(3013),
        unpriced=1,
        images=3,
        recent=2,
        recent_from=AT + timedelta(seconds=1),
    )
    assert (await store.tally(batch, recent_since=AT)).recent == 5
    assert await store.tally("batch_none", recent_since=AT) == Tally()


@pytest.mark.parametrize("asked", ["pred_none", "", "pred_%", "ü", "\ud800"])
async def test_a_prediction_of_no_batch_is_not_found(store: SqlBatches, asked: str):
    await accepted(store, make_batch())
    with pytest.raises(NotFound):
        await store.of_prediction(asked)


# --- owners --------------------------------------------------------------------------------------------------


async def test_of_fifty_takers_one_wins(store: SqlBatches):
    batch = await accepted(store, make_batch(owner="dead"))
    won = await asyncio.gather(*(store.take(batch.id, owner=f"taker-{n}", was="dead") for n in range(50)))
    assert won.count(True) == 1
    assert (await store.get(batch.id)).owner == f"taker-{won.index(True)}"


async def test_take_wants_the_owner_to_be_whom_one_thinks(store: SqlBatches):
    batch = await accepted(store, make_batch())
    assert not await store.take(batch.id, owner="me", was="somebody")
    assert await store.take(batch.id, owner="me", was=None)
    assert not await store.take(batch.id, owner="other", was=None)
    assert not await store.take("batch_none", owner="me", was=None)


async def test_what_a_dead_owner_had_claimed_is_queued_again(store: SqlBatches):
    items = await working(store, 4)
    batch = items[0].batch_id
    await store.end(ended(items[1]))
    assert await store.take(batch, owner="you", was="me")
    assert indexes(await store.claim(batch, owner="you", limit=9)) == [0, 2, 3]
    assert not await store.claim(batch, owner="me", limit=9)


async def test_only_the_owner_releases_and_what_it_had_claimed_is_queued_again(store: SqlBatches):
    items = await working(store)
    batch = items[0].batch_id
    await store.release(batch, owner="you")
    assert (await store.tally(batch, recent_since=AT)).running == 3
    await store.release(batch, owner="me")
    assert (await store.tally(batch, recent_since=AT)).queued == 3
    assert (await store.get(batch)).owner is None


async def test_nobody_takes_what_has_ended(store: SqlBatches):
    batch = await accepted(store, make_batch(total=0))
    await store.close(batch.id, at=AT)
    assert not await store.take(batch.id, owner="me", was=None)


# --- claims --------------------------------------------------------------------------------------------------


async def test_claims_hand_out_each_item_once_in_order(store: SqlBatches):
    batch = await accepted(store, make_batch(total=10, owner="me"))
    got = await asyncio.gather(*(store.claim(batch.id, owner="me", limit=3) for _ in range(5)))
    assert [indexes(some) for some in got] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9], []]
    assert {item.status for some in got for item in some} == {ItemStatus.RUNNING}
    assert [item for some in got for item in some] == list(await store.items(batch.id))


async def test_claims_give_nothing_to_others_or_while_it_is_paused(store: SqlBatches):
    batch = await accepted(store, make_batch(owner="me"))
    assert not await store.claim(batch.id, owner="you", limit=9)
    await store.control(batch.id, Control.PAUSE, at=AT)
    assert not await store.claim(batch.id, owner="me", limit=9)
    await store.control(batch.id, Control.RUN, at=AT)
    assert not await store.claim(batch.id, owner="me", limit=9, to_finish=True)
    assert indexes(await store.claim(batch.id, owner="me", limit=9)) == [0, 1, 2]


async def test_two_batches_are_claimed_apart(store: SqlBatches):
    for number in (1, 2):
        await accepted(store, make_batch(number, owner="me"))
    got = await store.claim(make_batch(2).id, owner="me", limit=9)
    assert {item.batch_id for item in got} == {make_batch(2).id}
    assert (await store.tally(make_batch(1).id, recent_since=AT)).queued == 3


async def test_of_a_paused_batch_only_what_runs_at_the_service_is_handed_out(house: House):
    """A process died and the batch is paused: what it bought is followed all the same, as pictures do not wait."""
    batch = await accepted(house.batches, make_batch(total=4, owner="me"))
    for index, facts in ((1, {"status": Status.PROCESSING}), (3, {"status": Status.SUCCEEDED})):
        await house.predictions.add(
            make_prediction(index, id=prediction_of(batch, index), upstream_id=f"up-{index}", **facts)
        )
    over = make_prediction(2, id=prediction_of(batch, 2), upstream_id="up-2", status=Status.FAILED)
    await house.predictions.add(over)
    await house.batches.control(batch.id, Control.PAUSE, at=AT)
    assert not await house.batches.claim(batch.id, owner="me", limit=9)
    got = await house.batches.claim(batch.id, owner="me", limit=9, to_finish=True)
    assert indexes(got) == [1, 3]
    assert not await house.batches.claim(batch.id, owner="you", limit=9, to_finish=True)


# --- ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ENDS)
async def test_an_end_is_written_with_its_number_and_what_is_to_be_told(house: House, status: ItemStatus):
    items = await working(house.batches)
    told = ended(
        items[1],
        status,
        predictions=("pred_a", "pred_b"),
        error="no",
        code="x",
        hint="y",
        problem={"z": 1},
        files=("a.png",),
        urls=("https://a.b/c.png",),
        seed=7,
        images=1,
    )
    written = await house.batches.end(told, deliveries=[make_delivery(1), make_delivery(2)])
    assert written == replace(told, sequence=1)
    assert (await house.batches.items(told.batch_id))[1] == written
    assert (await house.batches.get(told.batch_id)).sequence == 1
    assert [each.id[-1] for each in await house.outbox.list(limit=9)] == ["2", "1"]


async def test_an_item_ends_once_whoever_says_so(house: House):
    items = await working(house.batches)
    ends = [ended(items[0], ENDS[n % len(ENDS)], error=str(n)) for n in range(20)]
    written = await asyncio.gather(
        *(house.batches.end(end, deliveries=[make_delivery(n)]) for n, end in enumerate(ends))
    )
    won = [each for each in written if each is not None]
    assert len(won) == 1
    assert (await house.batches.items(items[0].batch_id))[0] == won[0]
    assert (await house.batches.get(items[0].batch_id)).sequence == 1
    assert len(await house.outbox.list(limit=99)) == 1


async def test_an_end_of_an_earlier_or_later_attempt_is_no_end(store: SqlBatches):
    items = await working(store)
    await store.requeue(again(items[0], 2))
    for attempt in (1, 3):
        assert await store.end(ended(replace(items[0], attempt=attempt))) is None
    assert (await store.items(items[0].batch_id))[0].status is ItemStatus.QUEUED
    assert await store.end(ended(again(items[0], 2))) is not None


async def test_ends_of_many_at_once_are_numbered_without_gaps(store: SqlBatches):
    items = await working(store, 300)
    written = await asyncio.gather(*(store.end(ended(item)) for item in items))
    assert sorted(each.sequence for each in written if each) == list(range(1, 301))
    assert (await store.get(items[0].batch_id)).sequence == 300


@pytest.mark.parametrize("status", [ItemStatus.QUEUED, ItemStatus.RUNNING])
async def test_what_is_no_end_is_not_written_as_one(store: SqlBatches, status: ItemStatus):
    items = await working(store)
    with pytest.raises(ValueError, match="no end"):
        await store.end(replace(items[0], status=status))


async def test_an_end_that_cannot_be_told_is_not_written(house: House, tmp_path: Path):
    """The end and its deliveries are one transaction: when one fails, so does the other."""
    items = await working(house.batches)
    broken = make_delivery(1, body={"x": object()})
    with pytest.raises(TypeError):
        await house.batches.end(ended(items[0]), deliveries=[broken])
    assert (await house.batches.items(items[0].batch_id))[0].status is ItemStatus.RUNNING
    assert (await house.batches.get(items[0].batch_id)).sequence == 0


# --- the end of a batch --------------------------------------------------------------------------------------


async def test_a_batch_ends_once_when_no_item_is_left(house: House):
    batch = await accepted(
        house.batches, make_batch(total=2, owner="me", own_token=True, sealed_token="sealed")
    )
    items = await house.batches.claim(batch.id, owner="me", limit=1)
    await house.batches.end(ended(items[0]))
    assert not await house.batches.close(batch.id, at=AT, deliveries=[make_delivery(1)])
    items = await house.batches.claim(batch.id, owner="me", limit=1)
    assert not await house.batches.close(batch.id, at=AT, deliveries=[make_delivery(2)])
    await house.batches.end(ended(items[0]))
    assert (await house.batches.get(batch.id)).ended_at is None
    closed = await asyncio.gather(
        *(house.batches.close(batch.id, at=AT, deliveries=[make_delivery(n)]) for n in range(3, 13))
    )
    assert closed.count(True) == 1
    assert len(await house.outbox.list(limit=99)) == 1
    kept = await house.batches.get(batch.id)
    assert (kept.ended_at, kept.sealed_token, kept.owner, kept.own_token) == (AT, None, None, True)
    assert list(await house.batches.open()) == []
    assert not await house.batches.close("batch_none", at=AT)


# --- back into the queue -------------------------------------------------------------------------------------


async def test_a_running_item_is_queued_again_as_it_is_given(store: SqlBatches):
    items = await working(store)
    back = replace(
        again(items[0], 2), note={"n": 1}, cost=Usd(9), status=ItemStatus.RUNNING, error="no", images=3
    )
    await store.requeue(back)
    kept = (await store.items(back.batch_id))[0]
    assert kept == replace(back, status=ItemStatus.QUEUED, error=None, images=0)
    for prediction in (items[0].predictions[0], back.predictions[0]):
        assert await store.of_prediction(prediction) == kept
    assert list(await store.claim(back.batch_id, owner="me", limit=1)) == [
        replace(kept, status=ItemStatus.RUNNING)
    ]


async def test_only_what_runs_in_this_attempt_or_an_earlier_one_is_queued_again(store: SqlBatches):
    items = await working(store)
    await store.end(ended(items[0]))
    await store.requeue(items[0])
    await store.requeue(again(items[1], 3))
    await store.claim(items[1].batch_id, owner="me", limit=9)
    await store.requeue(again(items[1], 2))
    await store.requeue(replace(items[2], batch_id="batch_none"))
    told = [(item.status.value, item.attempt) for item in await store.items(items[0].batch_id)]
    assert told == [("succeeded", 1), ("running", 3), ("running", 1)]


async def test_what_failed_is_tried_again_and_the_batch_is_open_again(store: SqlBatches):
    items = await working(store, 6)
    batch = items[0].batch_id
    for item, status in zip(items, [*ENDS, ItemStatus.FAILED, ItemStatus.FAILED], strict=True):
        await store.end(ended(item, status, error="no", files=("a",), urls=("b",), hint="h", seed=3))
    await store.control(batch, Control.CANCEL, at=AT)
    await store.close(batch, at=AT)
    given = [again(item) for item in (await store.items(batch))[:5]]
    assert await store.retry(batch, given, at=AT) == 4
    reopened = await store.get(batch)
    assert (reopened.ended_at, reopened.control, reopened.sequence) == (None, Control.RUN, 6)
    kept = await store.items(batch)
    assert [item.status.value for item in kept] == ["succeeded", *["queued"] * 4, "failed"]
    new = replace(make_item(reopened, 1), cost=Usd(3000), attempt=2, order=b'{"attempt": 2}')
    assert kept[1] == replace(new, predictions=given[1].predictions)
    assert (await store.of_prediction(given[1].predictions[0])).index == 1
    assert indexes(await store.ended_since(batch, 0, limit=9)) == [0, 5]
    await store.take(batch, owner="me", was=None)
    for item in await store.claim(batch, owner="me", limit=9):
        assert await store.end(ended(item)) is not None
    assert [item.sequence for item in await store.ended_since(batch, 6, limit=9)] == [7, 8, 9, 10]
    assert await store.close(batch, at=AT)


async def test_a_retry_needs_a_new_attempt_of_an_item_that_has_failed(store: SqlBatches):
    items = await working(store)
    await store.end(ended(items[0], ItemStatus.FAILED))
    batch = items[0].batch_id
    await store.control(batch, Control.PAUSE, at=AT, reason="no credit")
    strange = make_item(make_batch(2), 0, attempt=2)
    assert await store.retry(batch, [items[0], again(items[1]), strange], at=AT) == 0
    assert (await store.get(batch)).control is Control.PAUSE
    assert await store.retry(batch, [again(items[0]), again(items[0])], at=AT) == 1
    reopened = await store.get(batch)
    assert (reopened.control, reopened.reason) == (Control.RUN, None)


async def test_a_retry_that_comes_again_changes_nothing_and_says_the_same(store: SqlBatches):
    items = await working(store)
    for item in items:
        await store.end(ended(item, ItemStatus.FAILED))
    batch = await store.get(items[0].batch_id)
    mark = make_mark(batch)
    asked = [store.retry(batch.id, [again(item) for item in items], at=AT, mark=mark) for _ in range(5)]
    assert await asyncio.gather(*asked) == [3] * 5
    for item in await store.claim(batch.id, owner="me", limit=9):
        await store.end(ended(item, ItemStatus.FAILED))
    assert await store.retry(batch.id, [again(item, 3) for item in items], at=AT, mark=mark) == 3
    assert (await store.tally(batch.id, recent_since=AT)).failed == 3
    known = await store.known(mark.scope, mark.key, since=LONG_AGO)
    assert known is not None
    assert known.batch_id == batch.id
    with pytest.raises(IdempotencyConflict):
        await store.retry(batch.id, [], at=AT, mark=replace(mark, fingerprint="cd"))


# --- what is wanted ------------------------------------------------------------------------------------------


async def test_pausing_tells_why_and_running_again_forgets_it(store: SqlBatches):
    batch = await accepted(store, make_batch())
    paused = await store.control(batch.id, Control.PAUSE, at=AT, reason="no credit")
    assert paused == replace(batch, control=Control.PAUSE, reason="no credit") == await store.get(batch.id)
    running = await store.control(batch.id, Control.RUN, at=AT)
    noted = Remembered(resumed_at=AT).to_details()
    assert running == replace(batch, details=noted) == await store.get(batch.id)
    with pytest.raises(NotFound):
        await store.control("batch_none", Control.RUN, at=AT)


async def test_cancelling_ends_what_is_queued_in_order_and_leaves_what_runs(store: SqlBatches):
    batch = await accepted(store, make_batch(total=5, owner="me"))
    items = await store.claim(batch.id, owner="me", limit=2)
    await store.end(ended(items[0]))
    canceled = await store.control(batch.id, Control.CANCEL, at=AT)
    assert (canceled.control, canceled.sequence, canceled.ended_at) == (Control.CANCEL, 4, None)
    kept = await store.items(batch.id)
    assert [item.status.value for item in kept] == ["succeeded", "running", *["canceled"] * 3]
    assert kept[4] == make_item(
        batch,
        4,
        status=ItemStatus.CANCELED,
        code="prediction_canceled",
        error="canceled before it was bought",
        charged=False,
        sequence=4,
        ended_at=AT,
    )
    assert indexes(await store.ended_since(batch.id, 1, limit=9)) == [2, 3, 4]
    assert not await store.close(batch.id, at=AT)
    await store.end(ended(items[1], ItemStatus.CANCELED))
    assert await store.close(batch.id, at=AT)


async def test_what_is_canceled_stays_canceled_and_cancelling_again_changes_nothing(store: SqlBatches):
    batch = await accepted(store, make_batch())
    canceled = await store.control(batch.id, Control.CANCEL, at=AT)
    for wanted in (Control.RUN, Control.PAUSE, Control.CANCEL):
        assert await store.control(batch.id, wanted, at=AT + timedelta(hours=1)) == canceled
    assert {item.ended_at for item in await store.items(batch.id)} == {AT}


async def test_cancelling_again_ends_what_was_put_back_since(store: SqlBatches):
    items = await working(store)
    batch = items[0].batch_id
    await store.control(batch, Control.CANCEL, at=AT)
    await store.requeue(items[1])
    assert (await store.control(batch, Control.CANCEL, at=AT)).sequence == 1
    assert [item.status.value for item in await store.items(batch)] == ["running", "canceled", "running"]


@pytest.mark.parametrize("wanted", list(Control))
async def test_what_has_ended_is_not_controlled_any_more(store: SqlBatches, wanted: Control):
    batch = await accepted(store, make_batch(total=0))
    await store.close(batch.id, at=AT)
    before = await store.get(batch.id)
    assert await store.control(batch.id, wanted, at=AT, reason="late") == before == await store.get(batch.id)


async def test_cancelling_ends_nothing_that_may_have_been_bought(house: House):
    """Its owner died after the purchase: whoever comes next has to stop it, and to tell what it cost."""
    items = await working(house.batches)
    batch = items[0].batch_id
    await house.predictions.add(make_prediction(id=items[1].predictions[0], upstream_id="up-1"))
    await house.batches.take(batch, owner="you", was="me")
    assert (await house.batches.control(batch, Control.CANCEL, at=AT)).sequence == 2
    assert not await house.batches.claim(batch, owner="you", limit=9)
    assert not await house.batches.close(batch, at=AT)
    left = await house.batches.claim(batch, owner="you", limit=9, to_finish=True)
    assert indexes(left) == [1]
    await house.batches.requeue(left[0])
    left = await house.batches.claim(batch, owner="you", limit=9, to_finish=True)
    assert await house.batches.end(ended(left[0], ItemStatus.CANCELED)) is not None
    assert await house.batches.close(batch, at=AT)


# --- everything ----------------------------------------------------------------------------------------------


async def test_values_of_sql_are_only_values(store: SqlBatches):
    nasty = "'; DROP TABLE items; --"
    batch = make_batch(total=1, name=nasty, scope=nasty, owner=nasty, details={nasty: nasty})
    await accepted(store, batch, [make_item(batch, 0, note={nasty: nasty}, predictions=(nasty,))])
    items = await store.claim(batch.id, owner=nasty, limit=1)
    await store.end(ended(items[0], error=nasty))
    assert (await store.of_prediction(nasty)).error == nasty
    assert [each.name for each in await store.list(limit=1, scope=nasty)] == [nasty]


async def test_what_was_written_is_there_after_the_process(tmp_path: Path):
    first = House(tmp_path / "imagen.db")
    items = await working(first.batches)
    await first.batches.end(ended(items[2]))
    before = list(await first.batches.items(items[0].batch_id))
    first.database.close()
    second = House(tmp_path / "imagen.db")
    assert list(await second.batches.items(items[0].batch_id)) == before
    assert (await second.batches.get(items[0].batch_id)).owner == "me"
    second.database.close()


def plans(connection: Any, statement: Any) -> str:
    """How the database goes about it."""
    compiled = statement.compile(dialect=connection.dialect)
    text = str(compiled)
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", (0,) * len(compiled.positiontup or ()))
    return " | ".join(row[3] for row in rows)


async def test_recovery_reads_only_what_is_left_to_do(house: House):
    from sqlalchemy import select  # noqa: PLC0415

    from imagen.store.predictions import _IN_ORDER, _OF_OTHERS  # noqa: PLC0415
    from imagen.store.tables import UNSETTLED, predictions  # noqa: PLC0415

    unsettled = select(predictions).where(UNSETTLED)
    found = await house.database.read(
        lambda connection: [plans(connection, each) for each in (_IN_ORDER, _OF_OTHERS, unsettled)]
    )
    assert "predictions_unfinished" in found[0]
    assert "predictions_unfinished" in found[1]
    assert "predictions_unsettled" in found[2]


async def test_no_statement_of_batches_reads_a_whole_table(house: House):
    from imagen.store import batches, items  # noqa: PLC0415
    from imagen.store.statement import Statement  # noqa: PLC0415

    named = {
        f"{module.__name__}.{name}": value._expression if isinstance(value, Statement) else value
        for module in (batches, items)
        for name, value in vars(module).items()
        if isinstance(value, Statement) or name in {"_GET", "_BEGIN_SO", "_ALL_OPEN", "_MARK", "_STALE"}
    }
    reading = {
        name: each
        for name, each in named.items()
        if name.rpartition(".")[2] not in {"_ADD", "_BELONG", "_SET_MARK"}
    }
    assert len(reading) > 25

    def read(connection: Any) -> dict[str, str]:
        return {name: plans(connection, each) for name, each in reading.items()}

    # What is scanned is an index of few rows, the answer of a subquery, or a list inside of one row.
    harmless = ("USING INDEX batches_open", "predictions_unfinished", "SCAN each", "SCAN unbought", "SCAN (")
    found = await house.database.read(read)
    assert "USING INDEX batches_owed" in found["imagen.store.batches._OWED"]
    for name, plan in found.items():
        steps = [step for step in plan.split(" | ") if step.startswith("SCAN")]
        assert all(any(word in step for word in harmless) for step in steps), f"{name}: {plan}"


# --- what whoever works on them asks each second -------------------------------------------------------------


async def test_an_answer_is_owed_by_one_process_until_it_is_given_or_taken_over(store: SqlBatches):
    said = {"scope": "key:a", "fingerprint": "ab" * 32, "owed_by": "gone", "owner": "gone", "total": 1}
    first = await accepted(store, make_batch(1, **said))
    second = await accepted(store, make_batch(2, **said))
    others = [{"scope": "key:b"}, {"fingerprint": "cd" * 32}, {"owed_by": "me"}, {"owed_by": None}]
    for number, other in enumerate(others, start=3):
        await accepted(store, make_batch(number, **said | other))

    async def owed(since: datetime = BEGINNING) -> list[str]:
        found = await store.owed("key:a", "ab" * 32, besides="me", since=since)
        return [each.id for each in found]

    assert await owed() == [first.id, second.id]
    assert await owed(first.created_at) == [second.id]
    assert await store.owe(first.id, "me", was="gone")
    assert not await store.owe(first.id, "me", was="gone")  # somebody was quicker
    assert await owed() == [second.id]
    assert await store.owe(first.id, None, was="me")
    assert not await store.owe(first.id, "me", was="me")
    # Who sees its end has told it; who sees it for another has not.
    for batch, owner in ((second, "gone"), (await accepted(store, make_batch(9, **said)), "heir")):
        assert await store.take(batch.id, owner=owner, was="gone")
        (item,) = await store.claim(batch.id, owner=owner, limit=1)
        await store.end(ended(item))
        assert await store.close(batch.id, at=AT)
    assert await owed() == [f"batch_{9:026}"]


async def test_open_work_tells_what_waits_and_what_is_left(store: SqlBatches):
    first = await accepted(store, make_batch(1, total=2, owner="me", sealed_token="gAAAA"))
    second = await accepted(store, make_batch(2, total=1, owner="me"))
    assert list(await store.open_work()) == [
        OpenWork(first.id, "me", Control.RUN, waits=True, left=True, sealed_token="gAAAA"),
        OpenWork(second.id, "me", Control.RUN, waits=True, left=True),
    ]
    (item,) = await store.claim(second.id, owner="me", limit=1)
    assert [(one.waits, one.left) for one in await store.open_work()] == [(True, True), (False, True)]
    await store.end(ended(item))
    assert [(one.waits, one.left) for one in await store.open_work()] == [(True, True), (False, False)]
    await store.close(second.id, at=AT)
    assert [one.batch_id for one in await store.open_work()] == [first.id]


async def test_of_a_paused_batch_waits_what_is_under_way(house: House):
    batch = await accepted(house.batches, make_batch(total=2, owner="me"))
    await house.batches.control(batch.id, Control.PAUSE, at=AT)
    assert [one.waits for one in await house.batches.open_work()] == [False]
    await house.predictions.add(make_prediction(id=prediction_of(batch, 1)))
    assert [one.waits for one in await house.batches.open_work()] == [True]
    claimed = await house.batches.claim(batch.id, owner="me", limit=2, to_finish=True)
    assert indexes(claimed) == [1]
    assert [one.waits for one in await house.batches.open_work()] == [False]


async def test_what_is_queued_is_canceled_once_more_only_while_the_batch_is_to_be_canceled(store: SqlBatches):
    first, second, _ = await working(store)
    await store.control(first.batch_id, Control.CANCEL, at=AT)
    await store.requeue(first)
    assert await store.cancel_queued(first.batch_id, at=AT) == 1
    await store.requeue(second)
    assert await store.retry(first.batch_id, [again(first)], at=AT) == 1
    assert await store.cancel_queued(first.batch_id, at=AT) == 0
    found = await store.items(first.batch_id)
    assert [item.status for item in found] == [ItemStatus.QUEUED, ItemStatus.QUEUED, ItemStatus.RUNNING]


async def test_what_ends_while_it_is_queued_is_told_in_its_transaction(tmp_path: Path):
    """Once for each end, in their order; nobody is asked where nothing ended, and a fault of one keeps nobody."""
    database = Database(tmp_path / "imagen.db")
    asked: list[str] = []

    def tells(batch: Batch) -> Callable[[Item], Sequence[Delivery]] | None:
        asked.append(batch.id)

        def told(item: Item) -> Sequence[Delivery]:
            assert (item.status, item.ended_at, item.code) == (
                ItemStatus.CANCELED,
                AT,
                "prediction_canceled",
            )
            if item.index == 2:
                raise ValueError("a damaged row")
            return [make_delivery(id=f"msg_{item.index}_{item.sequence}")]

        return told if batch.webhook else None

    store, outbox = SqlBatches(database, tells=tells), SqlOutbox(database)
    try:
        batch = await accepted(store, make_batch(total=5, owner="me", webhook="https://shop.example/hook"))
        silent = await accepted(store, make_batch(2, total=2))
        (running,) = await store.claim(batch.id, owner="me", limit=1)
        await store.control(batch.id, Control.PAUSE, at=AT)
        assert asked == []
        for _ in range(2):
            await store.control(batch.id, Control.CANCEL, at=AT)
        assert [one.id for one in await outbox.list(limit=9)] == ["msg_4_4", "msg_3_3", "msg_1_1"]
        await store.requeue(running)
        assert await store.cancel_queued(batch.id, at=AT) == 1
        assert await store.cancel_queued(batch.id, at=AT) == 0
        assert [one.id for one in await outbox.list(limit=1)] == ["msg_0_5"]
        await store.control(silent.id, Control.CANCEL, at=AT)
        assert asked == [batch.id, batch.id, silent.id]
        assert len(await outbox.list(limit=9)) == 4
        assert (await store.tally(silent.id, recent_since=AT)).canceled == 2
    finally:
        database.close()


async def test_it_is_known_since_when_a_batch_is_let_run(store: SqlBatches):
    """After a pause, not where it ran all the time; and since when items of it are tried again."""
    batch = await accepted(store, make_batch(total=1, owner="me"))
    later = [AT + timedelta(seconds=number) for number in range(4)]
    assert (await store.control(batch.id, Control.RUN, at=later[0])).remembered.resumed_at is None
    await store.control(batch.id, Control.PAUSE, at=later[0])
    assert (await store.control(batch.id, Control.RUN, at=later[1])).remembered.resumed_at == later[1]
    assert (await store.control(batch.id, Control.RUN, at=later[2])).remembered.resumed_at == later[1]
    (item,) = await store.claim(batch.id, owner="me", limit=1)
    await store.end(ended(item, ItemStatus.FAILED))
    assert await store.retry(batch.id, [again(item)], at=later[3]) == 1
    remembered = (await store.get(batch.id)).remembered
    assert (remembered.resumed_at, remembered.retried_at) == (later[1], later[3])


async def test_what_ended_lately_was_begun_when_the_first_of_it_was_sent(house: House):
    """What took no purchase began when it ended; what nobody can read keeps nobody from counting."""
    store = house.batches
    items = await working(store, 3)
    for item, seconds in zip(items, (10, 4, 1), strict=True):
        if item.index != 2:
            sent = make_prediction(
                id=item.predictions[0],
                upstream_id=f"up-{item.index}",
                sent_at=AT - timedelta(seconds=seconds),
            )
            await house.predictions.add(sent)
        await store.end(ended(item, ended_at=AT + timedelta(seconds=item.index)))
    batch = items[0].batch_id
    since = [AT + timedelta(seconds=number) for number in range(4)]
    assert [(await store.tally(batch, recent_since=at)).recent_from for at in since] == [
        AT - timedelta(seconds=10),
        AT - timedelta(seconds=4),
        AT + timedelta(seconds=2),
        None,
    ]
    broken = "UPDATE items SET predictions = '{broken' WHERE \"index\" = 0"
    await house.database.write(lambda connection: connection.exec_driver_sql(broken))
    assert (await store.tally(batch, recent_since=AT)).recent_from == AT - timedelta(seconds=4)


async def test_an_item_of_which_nobody_can_tell_what_was_bought_keeps_no_other_from_being_canceled(
    house: House,
):
    batch = await accepted(house.batches, make_batch(total=3, owner="me"))
    broken = "UPDATE items SET predictions = '{broken' WHERE \"index\" = 1"
    await house.database.write(lambda connection: connection.exec_driver_sql(broken))
    await house.batches.control(batch.id, Control.CANCEL, at=AT)
    assert (await house.batches.tally(batch.id, recent_since=AT)).canceled == 2
    assert indexes(await house.batches.claim(batch.id, owner="me", limit=9, to_finish=True)) == [1]


async def test_a_damaged_item_is_read_as_far_as_it_can_be(house: House):
    batch = await accepted(house.batches, make_batch(total=2, owner="me"))
    broken = "UPDATE items SET note = '{broken', problem = '[', cost = 'x' WHERE \"index\" = 0"
    await house.database.write(lambda connection: connection.exec_driver_sql(broken))
    claimed = await house.batches.claim(batch.id, owner="me", limit=2)
    assert [(item.index, item.note, item.predictions) for item in claimed] == [
        (index, {}, (prediction_of(batch, index),)) for index in range(2)
    ]
    assert indexes(await house.batches.items(batch.id)) == [0, 1]


async def test_what_was_promised_is_told_newest_first(house: House, store: SqlBatches) -> None:
    """Of everybody, or of one caller: what waits, what is written down, and what ended before it was bought."""
    mine = await accepted(store, make_batch(1, scope="key:a"))
    theirs = await accepted(store, make_batch(2, scope="key:b", total=1))
    over = await accepted(store, make_batch(3, scope="key:a", total=1))
    await store.control(over.id, Control.CANCEL, at=AT)
    await store.close(over.id, at=AT)
    await house.predictions.add(make_prediction(id=prediction_of(mine, 1)))
    await store.add(draft := make_batch(4, scope="key:a", total=1))
    await store.add_items([make_item(draft, 0)])
    first, second, third = (prediction_of(mine, index) for index in range(3))
    other, last = prediction_of(theirs, 0), prediction_of(over, 0)
    assert await store.promised(Stretch(limit=10)) == [last, other, third, second, first]
    assert await store.promised(Stretch(limit=10), scope="key:a") == [last, third, second, first]
    assert await store.promised(Stretch(limit=1, rising=True)) == [first]
    assert await store.promised(Stretch(limit=10, above=first, below=other)) == [third, second]


@pytest.mark.parametrize("one_id", [False, True])
async def test_another_attempt_takes_the_place_of_the_first_but_not_of_an_id_that_was_promised(
    house: House, store: SqlBatches, one_id: bool
) -> None:
    batch = make_batch(total=1, owner="me")
    if one_id:
        batch = replace(batch, details=Remembered(prediction_id=prediction_of(batch, 0)).to_details())
    await accepted(store, batch)
    (item,) = await store.claim(batch.id, owner="me", limit=1)
    for attempt in (2, 3):
        await store.requeue(again(item, attempt))
        shown = prediction_of(batch, 0, 1 if one_id else attempt)
        assert await store.promised(Stretch(limit=10)) == [shown]
        assert await store.promised(Stretch(limit=10), scope=batch.scope) == [shown]
        await store.claim(batch.id, owner="me", limit=1)
    damaged = "UPDATE items SET predictions = '[broken'"
    await house.database.write(lambda connection: connection.exec_driver_sql(damaged))
    await store.requeue(again(item, 4))
    assert prediction_of(batch, 0, 1 if one_id else 4) in await store.promised(Stretch(limit=10))


async def test_a_page_of_what_was_promised_is_read_from_an_index_in_its_order(house: House) -> None:
    """However many there are, a page costs as much as it has: nothing is sorted, and no table read."""
    from imagen.store.batches import _promised  # noqa: PLC0415

    pages = [_promised(Stretch(below="x", limit=9), scope) for scope in ("key:a", None)]
    found = await house.database.read(lambda connection: [plans(connection, page) for page in pages])
    assert found[0].startswith("SEARCH item_predictions USING COVERING INDEX item_predictions_by_scope")
    assert found[1].startswith("SEARCH item_predictions USING INDEX sqlite_autoindex_item_predictions_1")
    assert not any(" | " in plan for plan in found)


async def test_predictions_are_found_in_their_places(store: SqlBatches) -> None:
    batch = await accepted(store, make_batch())
    wanted = [prediction_of(batch, index) for index in (2, 0)]
    found = await store.places([*wanted, "pred_of_nobody"])
    assert {this: (batch.id, item.index) for this, (batch, item) in found.items()} == {
        wanted[0]: (batch.id, 2), wanted[1]: (batch.id, 0),
    }  # fmt: skip


# --- accepted in one piece ---------------------------------------------------------------------------------


async def test_a_batch_is_written_down_and_accepted_in_one(store: SqlBatches):
    batch = make_batch(total=2, owner="me", details={"x": 1})
    items = [make_item(batch, index) for index in range(2)]
    assert await store.accept(batch, items=items) == batch.id
    assert await store.get(batch.id) == batch
    assert list(await store.items(batch.id)) == items
    assert await store.of_prediction(prediction_of(batch, 1)) == items[1]


@pytest.mark.parametrize("there", [0, 2])
async def test_in_one_it_has_all_of_its_items_or_is_not_there(store: SqlBatches, there: int):
    batch = make_batch(total=1)
    with pytest.raises(StoreError, match=f"has {there} items in place of 1"):
        await store.accept(batch, items=[make_item(batch, index) for index in range(there)])
    assert list(await store.open()) == []


async def test_what_is_there_is_not_accepted_in_one_again(store: SqlBatches):
    batch = await accepted(store, make_batch(total=1))
    with pytest.raises(StoreError, match="written down already"):
        await store.accept(batch, items=[make_item(batch, 0)])
    assert list(await store.items(batch.id)) == [make_item(batch, 0)]


async def test_of_equal_requests_that_are_accepted_in_one_the_first_counts(store: SqlBatches):
    batches = [make_batch(number, total=1) for number in range(1, 9)]
    counts = await asyncio.gather(
        *(store.accept(batch, mark=make_mark(batch), items=[make_item(batch, 0)]) for batch in batches)
    )
    assert set(counts) == {counts[0]}
    assert [batch.id for batch in await store.open()] == [counts[0]]
    late = make_batch(9, total=1)
    with pytest.raises(IdempotencyConflict):
        await store.accept(late, mark=make_mark(late, fingerprint="another"), items=[make_item(late, 0)])
    assert [batch.id for batch in await store.open()] == [counts[0]]
