"""Items of batches in SQL, within the transactions of `store.batches`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, bindparam, case, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine.default import DefaultDialect

from imagen.decoding import decoder
from imagen.domain.batch import Item, ItemStatus, Tally
from imagen.domain.money import Usd
from imagen.errors import PredictionCanceled, StoreError
from imagen.store.statement import Statement
from imagen.store.tables import UNFINISHED, batches, item_predictions, items, predictions
from imagen.store.types import Instant

_FIELDS = Item.__struct_fields__
_WISH = ("order", "note", "attempt", "predictions", "cost")
_END_OF_ONE = tuple(
    name for name in _FIELDS if name not in {"batch_id", "index", "status", "sequence", *_WISH}
)
_RESULT = ("predictions", "cost", *_END_OF_ONE)
_NO_END = {name: getattr(Item(batch_id="", index=0, order=b""), name) for name in _END_OF_ONE}
"""What an item has that has not ended."""
_NAMES = decoder(tuple[str, ...])
_instant = Instant().result_processor(DefaultDialect(), None)
_READERS: dict[str, Callable[[Any], Any]] = {
    "status": ItemStatus,
    "order": str.encode,
    "note": msgspec.json.decode,
    "predictions": _NAMES.decode,
    "problem": msgspec.json.decode,
    "charged": bool,
    "cost": Usd,
    "files": _NAMES.decode,
    "urls": _NAMES.decode,
    "ended_at": _instant,
}
_READ = tuple((name, _READERS.get(name)) for name in _FIELDS)
_IN_PLACE = {name: getattr(Item(batch_id="", index=0, order=b"{}", cost=None), name) for name in _READERS}
"""What an item has in place of what cannot be read."""
_log = logging.getLogger(__name__)


def _is(*statuses: ItemStatus) -> Any:
    return or_(*(items.c.status == status.value for status in statuses))


def _scope(batch_id: Any, *conditions: Any) -> Any:
    """Whose the batch is, where that holds."""
    return select(batches.c.scope).where(batches.c.id == batch_id, *conditions).scalar_subquery()


OF_BATCH = items.c.batch_id == bindparam("this_batch")
LEFT = _is(ItemStatus.QUEUED, ItemStatus.RUNNING)
WAITS = _is(ItemStatus.QUEUED)
_THIS = and_(OF_BATCH, items.c.index == bindparam("this_index"))
_RUNNING = _is(ItemStatus.RUNNING)
_COLUMNS = tuple(items.c[name] for name in _FIELDS)

_ADD = Statement(insert(items), columns=_FIELDS)
_COUNT = Statement(select(func.count()).where(OF_BATCH))
_FORGET = Statement(delete(items).where(OF_BATCH))
_READABLE = func.json_valid(items.c.predictions) == 1
_each = func.json_each(case((_READABLE, items.c.predictions), else_="[]")).table_valued("value", name="each")
"""The predictions of an item; none where that is damaged, which keeps nobody from the others."""
_BELONG_ALL = Statement(
    insert(item_predictions).from_select(
        ["prediction_id", "batch_id", "index", "scope"],
        select(_each.c.value, items.c.batch_id, items.c.index, _scope(OF_BATCH.right))
        .select_from(items.join(_each, literal(1) == literal(1)))
        .where(OF_BATCH),
    )
)
_PROMISED = func.json_extract(batches.c.details, "$.prediction_id")
_BELONG = Statement(
    insert(item_predictions)
    .values(
        prediction_id=bindparam("this_prediction"),
        batch_id=bindparam("this_batch"),
        index=bindparam("this_index"),
        # A single one goes on being shown under the id by which it was promised.
        scope=_scope(bindparam("this_batch"), _PROMISED.is_(None)),
    )
    .on_conflict_do_nothing()
)
_REPLACED = Statement(
    update(item_predictions)
    .where(
        item_predictions.c.prediction_id == bindparam("this_prediction"),
        exists(select(1).where(batches.c.id == item_predictions.c.batch_id, _PROMISED.is_(None))),
    )
    .values(scope=None)
)
_PRESENT = Statement(select(items.c.predictions).where(_THIS))
_next = items.alias("next")
_NEXT = (
    select(_next.c.index)
    .where(_next.c.batch_id == bindparam("this_batch"), _next.c.status == ItemStatus.QUEUED.value)
    .order_by(_next.c.index)
    .limit(bindparam("most"))
)
_UNDER_WAY = select(item_predictions.c.index).where(
    item_predictions.c.batch_id == bindparam("this_batch"),
    item_predictions.c.prediction_id.in_(select(predictions.c.id).where(UNFINISHED)),
)
UNDER_WAY = (
    select(item_predictions.c.batch_id)
    .distinct()
    .where(
        item_predictions.c.prediction_id.in_(select(predictions.c.id).where(UNFINISHED)),
        exists(
            select(1).where(
                items.c.batch_id == item_predictions.c.batch_id,
                items.c.index == item_predictions.c.index,
                WAITS,
            )
        ),
    )
)
"""The batches with queued items of which something runs, or is to be fetched."""
_RUN = update(items).values(status=ItemStatus.RUNNING.value).returning(*_COLUMNS)
_CLAIM = Statement(_RUN.where(OF_BATCH, items.c.index.in_(_NEXT)))
_CLAIM_UNDER_WAY = Statement(
    _RUN.where(OF_BATCH, items.c.index.in_(_NEXT.where(_next.c.index.in_(_UNDER_WAY))))
)
_END = Statement(
    update(items)
    .where(_THIS, items.c.attempt == bindparam("this_attempt"), LEFT)
    .values(
        {name: bindparam(name) for name in ("status", *_RESULT)}
        | {"sequence": select(batches.c.sequence + 1).where(batches.c.id == OF_BATCH.right).scalar_subquery()}
    )
    .returning(items.c.sequence)
)
_QUEUE = update(items).values(
    {name: bindparam(name) for name in _WISH} | _NO_END | {"status": ItemStatus.QUEUED.value, "sequence": 0}
)
_REQUEUE = Statement(_QUEUE.where(_THIS, items.c.attempt <= bindparam("this_attempt"), _RUNNING))
_RETRY = Statement(
    _QUEUE.where(
        _THIS,
        items.c.attempt < bindparam("this_attempt"),
        _is(ItemStatus.FAILED, ItemStatus.CANCELED, ItemStatus.EXPIRED),
    )
)
_LET_GO = Statement(update(items).where(OF_BATCH, _RUNNING).values(status=ItemStatus.QUEUED.value))
_BEGUN = exists(
    select(1).select_from(_each.join(predictions, predictions.c.id == _each.c.value)).correlate(items)
)
"""A prediction of its present attempt is written down: it may have been bought."""
_unbought = (
    select(items.c.index, func.row_number().over(order_by=items.c.index).label("number"))
    # What nobody can tell of is handed out to whoever finds out.
    .where(OF_BATCH, WAITS, _READABLE, ~_BEGUN)
    .subquery("unbought")
)
_CANCEL = Statement(
    update(items)
    .where(OF_BATCH, items.c.index == _unbought.c.index)
    .values(
        {
            "status": ItemStatus.CANCELED.value,
            "code": PredictionCanceled.code,
            "error": "canceled before it was bought",
            "charged": False,
            "ended_at": bindparam("at"),
            "sequence": _unbought.c.number
            + select(batches.c.sequence).where(batches.c.id == OF_BATCH.right).scalar_subquery(),
        }
    )
)
_TALLY = Statement(
    select(
        items.c.status,
        func.count(),
        func.count(items.c.cost),
        func.sum(items.c.cost),
        func.sum(items.c.images),
        func.count().filter(items.c.ended_at >= bindparam("recent_since")),
    )
    .where(OF_BATCH)
    .group_by(items.c.status)
)
_BEGAN = Statement(
    select(func.min(func.coalesce(predictions.c.sent_at, items.c.ended_at)))
    .select_from(
        items.outerjoin(_each, literal(1) == literal(1)).outerjoin(
            predictions, predictions.c.id == _each.c.value
        )
    )
    .where(OF_BATCH, items.c.ended_at >= bindparam("recent_since"))
)
"""When the first of what has ended lately was begun; what took no purchase, or none of ours, took no time."""
_SOME = (
    select(*_COLUMNS)
    .where(OF_BATCH, items.c.index > bindparam("after"))
    .order_by(items.c.index)
    .limit(bindparam("most"))
)
_LIST = Statement(_SOME)
_LIST_OF = Statement(_SOME.where(items.c.status == bindparam("this_status")))
_ENDED_SINCE = Statement(
    select(*_COLUMNS)
    .where(OF_BATCH, items.c.sequence > bindparam("after"))
    .order_by(items.c.sequence)
    .limit(bindparam("most"))
)
_OF_PREDICTION = Statement(
    select(*_COLUMNS)
    .join(
        item_predictions,
        and_(items.c.batch_id == item_predictions.c.batch_id, items.c.index == item_predictions.c.index),
    )
    .where(item_predictions.c.prediction_id == bindparam("this_prediction"))
)


def write_items(connection: Connection, given: Sequence[Item]) -> None:
    """Write down new items.

    Raises:
        StoreError: one is written down already.
    """
    try:
        _ADD.run_many(connection, [_row(item, _FIELDS) for item in given])
    except connection.dialect.loaded_dbapi.IntegrityError as error:
        raise StoreError(f"an item of {given[0].batch_id} is written down already") from error


def count_items(connection: Connection, batch_id: str) -> int:
    """How many items of a batch are written down."""
    return int(_COUNT.run(connection, {"this_batch": batch_id}).fetchone()[0])


def forget_items(connection: Connection, batch_id: str) -> None:
    """Delete the items of a batch that was never accepted."""
    _FORGET.run(connection, {"this_batch": batch_id})


def note_predictions(connection: Connection, batch_id: str) -> None:
    """From now on the items of a batch are found by their predictions.

    Raises:
        StoreError: a prediction belongs to two items.
    """
    try:
        _BELONG_ALL.run(connection, {"this_batch": batch_id})
    except connection.dialect.loaded_dbapi.IntegrityError as error:
        raise StoreError(f"a prediction of {batch_id} belongs to another item already") from error


def claim_items(connection: Connection, batch_id: str, limit: int, *, under_way: bool = False) -> list[Item]:
    """Let the next queued items run; with `under_way` only those of which something runs, or is to be fetched."""
    statement = _CLAIM_UNDER_WAY if under_way else _CLAIM
    rows = statement.run(connection, {"this_batch": batch_id, "most": limit}).fetchall()
    return sorted(map(_from_row, rows), key=lambda item: item.index)


def end_item(connection: Connection, item: Item) -> int | None:
    """Write down an end; its number in its batch, None when the item, or its attempt, has ended before."""
    row = _row(item, _RESULT) | _named(item) | {"status": item.status.value}
    found = _END.run(connection, row).fetchone()
    return None if found is None else int(found[0])


def requeue_item(connection: Connection, item: Item) -> None:
    """Queue a running item again."""
    _queue_again(connection, _REQUEUE, item)


def retry_items(connection: Connection, given: Sequence[Item]) -> int:
    """Queue those again that have ended and not succeeded; how many that were."""
    return sum(_queue_again(connection, _RETRY, item) for item in given)


def let_go(connection: Connection, batch_id: str) -> None:
    """Queue everything again that runs."""
    _LET_GO.run(connection, {"this_batch": batch_id})


def cancel_items(connection: Connection, batch_id: str, at: datetime) -> int:
    """End what is queued and of which nothing was bought; how many items that were."""
    return int(_CANCEL.run(connection, {"this_batch": batch_id, "at": at}).rowcount)


def tally(connection: Connection, batch_id: str, recent_since: datetime) -> Tally:
    """The items of a batch, counted."""
    row = {"this_batch": batch_id, "recent_since": recent_since}
    rows = _TALLY.run(connection, row).fetchall()
    recent = sum(count for *_, count in rows)
    counts: dict[str, int] = {status: count for status, count, *_ in rows}
    return Tally(
        **counts,
        unpriced=sum(count - priced for _, count, priced, *_ in rows),
        cost=Usd(sum(cost or 0 for *_, cost, _, _ in rows)),
        images=sum(images for *_, images, _ in rows),
        recent=recent,
        recent_from=_instant(_BEGAN.run(connection, row).fetchone()[0]) if recent else None,
    )


def list_items(
    connection: Connection, batch_id: str, *, after: int, limit: int, status: ItemStatus | None
) -> list[Item]:
    """Items of a batch by index."""
    row = {"this_batch": batch_id, "after": after, "most": limit}
    if status is None:
        return list(map(_from_row, _LIST.run(connection, row)))
    return list(map(_from_row, _LIST_OF.run(connection, row | {"this_status": status.value})))


def ended_items(connection: Connection, batch_id: str, *, after: int, limit: int) -> list[Item]:
    """Ended items of a batch, in the order of their ends."""
    row = {"this_batch": batch_id, "after": max(after, 0), "most": limit}
    return list(map(_from_row, _ENDED_SINCE.run(connection, row)))


def item_of(connection: Connection, prediction_id: str) -> Item | None:
    """The item to which a prediction belongs, or belonged in an earlier attempt."""
    row = _OF_PREDICTION.run(connection, {"this_prediction": prediction_id}).fetchone()
    return None if row is None else _from_row(row)


def _queue_again(connection: Connection, statement: Statement, item: Item) -> int:
    row = _row(item, _WISH) | _named(item)
    before = _PRESENT.run(connection, row).fetchone()
    if statement.run(connection, row).rowcount != 1:
        return 0
    place = {"this_batch": item.batch_id, "this_index": item.index}
    _BELONG.run_many(connection, [{"this_prediction": each} | place for each in item.predictions])
    replaced = _names(before[0]) - set(item.predictions)
    _REPLACED.run_many(connection, [{"this_prediction": each} for each in sorted(replaced)])
    return 1


def _names(stored: str) -> set[str]:
    """Predictions of an item as they are stored; none where that is damaged: it goes on all the same."""
    try:
        return set(_NAMES.decode(stored))
    except msgspec.DecodeError:
        return set()


def _named(item: Item) -> dict[str, Any]:
    return {"this_batch": item.batch_id, "this_index": item.index, "this_attempt": item.attempt}


def _row(item: Item, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names}


def _from_row(row: Sequence[Any]) -> Item:
    try:
        return Item(
            **{
                name: value if read is None or value is None else read(value)
                for (name, read), value in zip(_READ, row, strict=True)
            }
        )
    except (TypeError, ValueError):
        return _as_far_as_it_can_be_read(row)


def _as_far_as_it_can_be_read(row: Sequence[Any]) -> Item:
    """A damaged row keeps nobody from the others, and its own item still ends."""
    found, damaged = {}, []
    for (name, read), value in zip(_READ, row, strict=True):
        try:
            found[name] = value if read is None or value is None else read(value)
        except (TypeError, ValueError):
            found[name] = _IN_PLACE[name]
            damaged.append(name)
    _log.warning(
        "item %s of %s is damaged in the database: %s", found["index"], found["batch_id"], ", ".join(damaged)
    )
    return Item(**found)
