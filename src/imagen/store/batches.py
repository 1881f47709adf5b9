"""Batches in SQL: what was accepted, who works on it, what is wanted of it. `store.items` has the items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace
from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine.default import DefaultDialect

from imagen.decoding import decoder
from imagen.domain.batch import KEY_LIVES, Batch, Control, Idempotency, Item, ItemStatus, Remembered, Tally
from imagen.domain.caller import Caller
from imagen.domain.delivery import Delivery
from imagen.domain.limits import Lane
from imagen.domain.money import Usd
from imagen.errors import IdempotencyConflict, ImagenError, NotFound, StoreError
from imagen.ports import OpenWork, Stretch, TellsEnds
from imagen.store.database import Database
from imagen.store.items import (
    LEFT,
    OF_BATCH,
    UNDER_WAY,
    WAITS,
    cancel_items,
    claim_items,
    count_items,
    end_item,
    ended_items,
    forget_items,
    item_of,
    let_go,
    list_items,
    note_predictions,
    requeue_item,
    retry_items,
    tally,
    write_items,
)
from imagen.store.outbox import put_deliveries
from imagen.store.predictions import cut
from imagen.store.statement import Statement
from imagen.store.tables import batches, idempotency, item_predictions, items
from imagen.store.types import Instant

T = TypeVar("T")
_log = logging.getLogger(__name__)
_RETRIED = "retried"
"""In the answer of a mark: how many items its request queued again."""
_FIELDS = Batch.__struct_fields__
_KNOWN_LATE = ("total", "quoted", "unpriced", "images", "owner", "details")
_MOST_OWED = 20
_PAGE = 200
_MARK_FIELDS = Idempotency.__struct_fields__
_AFTER_ALL = "\U0010ffff"

_READERS: dict[str, Callable[[Any], Any]] = {
    "caller": decoder(Caller).decode,
    "lane": Lane,
    "quoted": Usd,
    "control": Control,
    "own_token": bool,
    "webhook_events": decoder(tuple[str, ...]).decode,
    "details": msgspec.json.decode,
    "created_at": (_instant := Instant().result_processor(DefaultDialect(), None)),
    "ended_at": _instant,
}
_READ = tuple((name, _READERS.get(name)) for name in _FIELDS)
_COLUMNS = tuple(batches.c[name] for name in _FIELDS)
_THIS = batches.c.id == bindparam("this_batch")
_ACCEPTED, _NOT_ACCEPTED = batches.c.accepted == true(), batches.c.accepted == false()
_OPEN = batches.c.ended_at.is_(None)

_ADD = Statement(insert(batches), columns=[*_FIELDS, "accepted"])
_TAKES_ITEMS = Statement(select(batches.c.id).where(_THIS, _NOT_ACCEPTED))
_ACCEPT = Statement(
    update(batches)
    .where(_THIS, _NOT_ACCEPTED)
    .values({name: bindparam(name) for name in _KNOWN_LATE} | {"accepted": True})
)
_FORGET = Statement(delete(batches).where(_THIS, _NOT_ACCEPTED))
_STALE = select(batches.c.id).where(_OPEN, _NOT_ACCEPTED, batches.c.created_at < bindparam("before"))
_OLD_MARKS = Statement(delete(idempotency).where(idempotency.c.created_at < bindparam("before")))
_MARK = select(*(idempotency.c[name] for name in _MARK_FIELDS)).where(
    idempotency.c.scope == bindparam("scope"),
    idempotency.c.key == bindparam("key"),
    idempotency.c.created_at > bindparam("since"),
)
_ROW = insert(idempotency)
_SET_MARK = Statement(
    _ROW.on_conflict_do_update(
        set_={name: _ROW.excluded[name] for name in ("fingerprint", "batch_id", "answer", "created_at")}
    ),
    columns=_MARK_FIELDS,
)
_GET = Statement(select(*_COLUMNS).where(_THIS, _ACCEPTED))
_BEGIN_SO = Statement(
    select(*_COLUMNS)
    # A range, as LIKE would read the whole table.
    .where(batches.c.id >= bindparam("begins"), batches.c.id < bindparam("ends"), _ACCEPTED)
    .limit(2)
)
_ALL_OPEN = Statement(select(*_COLUMNS).where(_OPEN, _ACCEPTED).order_by(batches.c.id))
_OPEN_WORK = Statement(
    select(
        batches.c.id,
        batches.c.owner,
        batches.c.control,
        batches.c.sealed_token,
        exists(select(1).where(items.c.batch_id == batches.c.id, WAITS)),
        exists(select(1).where(items.c.batch_id == batches.c.id, LEFT)),
    )
    .where(_OPEN, _ACCEPTED)
    .order_by(batches.c.id)
)
_UNDER_WAY = Statement(UNDER_WAY)
_TAKE = Statement(
    update(batches)
    .where(
        _THIS,
        _OPEN,
        _ACCEPTED,
        batches.c.owner.is_not_distinct_from(bindparam("was")),
    )
    .values(owner=bindparam("this_owner"))
)
_RELEASE = Statement(
    update(batches).where(_THIS, batches.c.owner == bindparam("this_owner")).values(owner=null())
)
_WANTED = Statement(
    select(batches.c.control).where(_THIS, _ACCEPTED, batches.c.owner == bindparam("this_owner"))
)
_COUNT_ENDS = Statement(update(batches).where(_THIS).values(sequence=batches.c.sequence + bindparam("count")))
_CLOSE = Statement(
    update(batches)
    .where(_THIS, _OPEN, _ACCEPTED, ~exists(select(1).select_from(items).where(OF_BATCH, LEFT)))
    .values(
        ended_at=bindparam("at"),
        sealed_token=null(),
        owner=null(),
        # Whoever has seen its end has told it to those who wait; another process owes them an answer still.
        owed_by=case((batches.c.owed_by == batches.c.owner, null()), else_=batches.c.owed_by),
    )
)
_OWED = Statement(
    select(*_COLUMNS)
    .where(
        batches.c.scope == bindparam("this_scope"),
        batches.c.fingerprint == bindparam("this_fingerprint"),
        batches.c.owed_by != bindparam("besides"),
        batches.c.created_at > bindparam("since"),
        _ACCEPTED,
    )
    .order_by(batches.c.id)
    .limit(_MOST_OWED)
)
_OWE = Statement(
    update(batches).where(_THIS, batches.c.owed_by == bindparam("was")).values(owed_by=bindparam("by"))
)
_CONTROL = Statement(
    update(batches)
    .where(
        _THIS,
        _OPEN,
        _ACCEPTED,
        # What is canceled stays so, until somebody asks for another attempt of its items.
        or_(batches.c.control != Control.CANCEL.value, bindparam("wanted") == Control.CANCEL.value),
    )
    .values(control=bindparam("wanted"), reason=bindparam("reason"))
)
_DETAIL = Statement(update(batches).where(_THIS).values(details=bindparam("details")))
_SEAL = Statement(update(batches).where(_THIS, _OPEN, _ACCEPTED).values(sealed_token=bindparam("sealed")))
_OPEN_OF = select(batches.c.id).where(_OPEN, _ACCEPTED, batches.c.scope == bindparam("this_scope"))
_LOAD = select(
    select(func.count()).select_from(_OPEN_OF.subquery()).scalar_subquery(),
    select(func.count()).select_from(items).where(items.c.batch_id.in_(_OPEN_OF), LEFT).scalar_subquery(),
)
_REOPEN = Statement(
    update(batches)
    .where(_THIS)
    .values(control=Control.RUN.value, reason=null(), ended_at=null(), details=bindparam("details"))
)


class SqlBatches:
    """`ports.BatchStore` on one database.

    Args:
        database: has them.
        tells: what is to be told of items that end here, without anybody who works on them.
    """

    def __init__(self, database: Database, *, tells: TellsEnds = lambda _: None) -> None:
        self._database = database
        self._tells = tells

    # --- acceptance --------------------------------------------------------------------------------------

    async def add(self, batch: Batch) -> None:
        """See the port."""
        await self._database.write(lambda connection: _add(connection, batch, accepted=False))

    async def add_items(self, items: Sequence[Item]) -> None:
        """See the port."""
        wanted = sorted({item.batch_id for item in items})

        def job(connection: Connection) -> None:
            for batch_id in wanted:
                if _TAKES_ITEMS.run(connection, {"this_batch": batch_id}).fetchone() is None:
                    raise StoreError(f"{batch_id} takes no items, as it was accepted or never added")
            write_items(connection, items)

        if items:
            await self._database.write(job)

    async def accept(
        self, batch: Batch, *, mark: Idempotency | None = None, items: Sequence[Item] | None = None
    ) -> str:
        """See the port."""
        if items is not None:
            return await self._accept_whole(batch, items, mark)
        row = {"this_batch": batch.id} | {name: getattr(batch, name) for name in _KNOWN_LATE}

        def job(connection: Connection) -> str | ImagenError:
            first = None if mark is None else _first(connection, mark)
            if mark is not None and first is not None and first.batch_id != batch.id:
                _forget(connection, batch.id)
                return first.batch_id if first.fingerprint == mark.fingerprint else _conflict(mark)
            if _TAKES_ITEMS.run(connection, row).fetchone() is None:
                return batch.id if _find(connection, batch.id) else _unknown(batch.id)
            there = count_items(connection, batch.id)
            if there != batch.total:
                return _incomplete(batch, there)
            _ACCEPT.run(connection, row)
            note_predictions(connection, batch.id)
            if mark is not None:
                _set(connection, replace(mark, batch_id=batch.id))
            return batch.id

        return _raised(await self._database.write(job))

    async def _accept_whole(self, batch: Batch, items: Sequence[Item], mark: Idempotency | None) -> str:
        if len(items) != batch.total:
            raise _incomplete(batch, len(items))

        def job(connection: Connection) -> str | ImagenError:
            first = None if mark is None else _first(connection, mark)
            if mark is not None and first is not None:
                return first.batch_id if first.fingerprint == mark.fingerprint else _conflict(mark)
            _add(connection, batch, accepted=True)
            write_items(connection, items)
            note_predictions(connection, batch.id)
            if mark is not None:
                _set(connection, replace(mark, batch_id=batch.id))
            return batch.id

        return _raised(await self._database.write(job))

    async def known(self, scope: str, key: str, *, since: datetime) -> Idempotency | None:
        """See the port."""
        return await self._database.read(lambda connection: _mark(connection, scope, key, since))

    async def owed(self, scope: str, fingerprint: str, *, besides: str, since: datetime) -> Sequence[Batch]:
        """See the port."""
        row = {"this_scope": scope, "this_fingerprint": fingerprint, "besides": besides, "since": since}
        return await self._database.read(
            lambda connection: [_from_row(found) for found in _OWED.run(connection, row).fetchall()]
        )

    async def owe(self, batch_id: str, by: str | None, *, was: str) -> bool:
        """See the port."""
        row = {"this_batch": batch_id, "by": by, "was": was}
        return await self._database.write(lambda connection: bool(_OWE.run(connection, row).rowcount))

    async def load(self, scope: str) -> tuple[int, int]:
        """See the port."""
        row = await self._database.read(
            lambda connection: connection.execute(_LOAD, {"this_scope": scope}).one()
        )
        return row[0], row[1]

    async def sweep(self, *, before: datetime) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            _OLD_MARKS.run(connection, {"before": before})
            for batch_id in connection.execute(_STALE, {"before": before}).scalars().all():
                _forget(connection, batch_id)

        await self._database.write(job)

    # --- looking -----------------------------------------------------------------------------------------

    async def get(self, batch_id: str) -> Batch:
        """See the port."""
        wanted = batch_id.strip()
        begins = {"begins": wanted, "ends": wanted + _AFTER_ALL}

        def job(connection: Connection) -> Batch:
            found = _find(connection, wanted)
            if found is not None:
                return found
            rows = _BEGIN_SO.run(connection, begins).fetchall()
            if len(rows) != 1:
                raise _unknown(wanted, several=bool(rows))
            return _from_row(rows[0])

        if not wanted or not wanted.isascii():
            raise _unknown(wanted)
        return await self._database.read(job)

    async def of_prediction(self, prediction_id: str) -> Item:
        """See the port. Predictions of earlier attempts belong to it too."""
        found = None
        if prediction_id.isascii():
            found = await self._database.read(lambda connection: item_of(connection, prediction_id))
        if found is None:
            raise NotFound(f"no prediction that was taken on here is called {prediction_id[:80]!r}")
        return found

    async def promised(self, stretch: Stretch, *, scope: str | None = None) -> Sequence[str]:
        """See the port."""
        statement = _promised(stretch, scope)
        return await self._database.read(
            lambda connection: [str(one) for one in connection.execute(statement).scalars()]
        )

    async def places(self, prediction_ids: Sequence[str]) -> Mapping[str, tuple[Batch, Item]]:
        """See the port."""

        def job(connection: Connection) -> Mapping[str, tuple[Batch, Item]]:
            found, known = {}, dict[str, Batch | None]()
            for prediction_id in prediction_ids:
                item = item_of(connection, prediction_id)
                if item is None:
                    continue
                if item.batch_id not in known:
                    known[item.batch_id] = _find(connection, item.batch_id)
                if (batch := known[item.batch_id]) is not None:
                    found[prediction_id] = (batch, item)
            return found

        return await self._database.read(job)

    async def list(
        self, *, limit: int, scope: str | None = None, kind: str = "batch", before: str | None = None
    ) -> Sequence[Batch]:
        """See the port."""
        statement = _listing(scoped=scope is not None, goes_on=before is not None)
        row = {"this_kind": kind, "this_scope": scope, "before": before, "most": limit}
        return await self._database.read(
            lambda connection: [_from_row(found) for found in statement.run(connection, row)]
        )

    async def open(self) -> Sequence[Batch]:
        """See the port."""
        return await self._database.read(
            lambda connection: [_from_row(row) for row in _ALL_OPEN.run(connection, {})]
        )

    async def open_work(self) -> Sequence[OpenWork]:
        """See the port."""

        def job(connection: Connection) -> Sequence[OpenWork]:
            rows = _OPEN_WORK.run(connection, {}).fetchall()
            paused = any(control == Control.PAUSE for _, _, control, *_ in rows)
            under_way = {row[0] for row in _UNDER_WAY.run(connection, {})} if paused else set()
            return [
                OpenWork(
                    batch_id=batch_id,
                    owner=owner,
                    control=Control(control),
                    waits=batch_id in under_way if control == Control.PAUSE else bool(queued),
                    left=bool(left),
                    sealed_token=sealed,
                )
                for batch_id, owner, control, sealed, queued, left in rows
            ]

        return await self._database.read(job)

    async def tally(self, batch_id: str, *, recent_since: datetime) -> Tally:
        """See the port."""
        return await self._database.read(lambda connection: tally(connection, batch_id, recent_since))

    async def items(
        self, batch_id: str, *, after: int = -1, limit: int = 100, status: ItemStatus | None = None
    ) -> Sequence[Item]:
        """See the port."""
        return await self._database.read(
            lambda connection: list_items(connection, batch_id, after=after, limit=limit, status=status)
        )

    async def ended_since(self, batch_id: str, sequence: int, *, limit: int) -> Sequence[Item]:
        """See the port."""
        return await self._database.read(
            lambda connection: ended_items(connection, batch_id, after=sequence, limit=limit)
        )

    # --- work --------------------------------------------------------------------------------------------

    async def take(self, batch_id: str, *, owner: str, was: str | None) -> bool:
        """See the port."""
        row = {"this_batch": batch_id, "this_owner": owner, "was": was}

        def job(connection: Connection) -> bool:
            if not _TAKE.run(connection, row).rowcount:
                return False
            let_go(connection, batch_id)
            return True

        return await self._database.write(job)

    async def release(self, batch_id: str, *, owner: str) -> None:
        """See the port."""
        row = {"this_batch": batch_id, "this_owner": owner}

        def job(connection: Connection) -> None:
            if _RELEASE.run(connection, row).rowcount:
                let_go(connection, batch_id)

        await self._database.write(job)

    async def claim(
        self, batch_id: str, *, owner: str, limit: int, to_finish: bool = False
    ) -> Sequence[Item]:
        """See the port."""
        row = {"this_batch": batch_id, "this_owner": owner}

        def job(connection: Connection) -> Sequence[Item]:
            found = _WANTED.run(connection, row).fetchone()
            if found is None or to_finish is (found[0] == Control.RUN):
                return []
            return claim_items(connection, batch_id, limit, under_way=found[0] == Control.PAUSE)

        return await self._database.write(job)

    async def requeue(self, item: Item) -> None:
        """See the port."""
        await self._database.write(lambda connection: requeue_item(connection, item))

    async def end(self, item: Item, *, deliveries: Sequence[Delivery] = ()) -> Item | None:
        """See the port."""
        if not item.status.terminal:
            raise ValueError(f"{item.status} is no end")
        count = {"this_batch": item.batch_id, "count": 1}

        def job(connection: Connection) -> Item | None:
            sequence = end_item(connection, item)
            if sequence is None:
                return None
            _COUNT_ENDS.run(connection, count)
            put_deliveries(connection, deliveries)
            return replace(item, sequence=sequence)

        return await self._database.write(job)

    async def close(self, batch_id: str, *, at: datetime, deliveries: Sequence[Delivery] = ()) -> bool:
        """See the port."""

        def job(connection: Connection) -> bool:
            if not _CLOSE.run(connection, {"this_batch": batch_id, "at": at}).rowcount:
                return False
            put_deliveries(connection, deliveries)
            return True

        return await self._database.write(job)

    async def seal(self, batch_id: str, sealed_token: str) -> None:
        """See the port."""
        row = {"this_batch": batch_id, "sealed": sealed_token}
        await self._database.write(lambda connection: _SEAL.run(connection, row))

    # --- what is wanted ----------------------------------------------------------------------------------

    async def control(
        self,
        batch_id: str,
        wanted: Control,
        *,
        at: datetime,
        reason: str | None = None,
        code: str | None = None,
    ) -> Batch:
        """See the port."""
        row = {"this_batch": batch_id, "wanted": wanted.value, "reason": reason}

        def job(connection: Connection) -> Batch | ImagenError:
            before = _find(connection, batch_id)
            if before is None:
                return _unknown(batch_id)
            steered = bool(_CONTROL.run(connection, row).rowcount)
            if steered and wanted is Control.CANCEL:
                _cancel_queued(connection, before, at, self._tells)
            found = _find(connection, batch_id) or before
            resumed = steered and wanted is Control.RUN and before.control is Control.PAUSE
            noted = Remembered(
                stopped_by=code if found.reason == reason else None, resumed_at=at if resumed else None
            ).to_details()
            if not noted:
                return found
            details = found.details | noted
            _DETAIL.run(connection, {"this_batch": found.id, "details": details})
            return replace(found, details=details)

        return _raised(await self._database.write(job))

    async def cancel_queued(self, batch_id: str, *, at: datetime) -> int:
        """See the port."""

        def job(connection: Connection) -> int:
            found = _find(connection, batch_id)
            if found is None or found.ended_at is not None or found.control is not Control.CANCEL:
                return 0
            return _cancel_queued(connection, found, at, self._tells)

        return await self._database.write(job)

    async def retry(
        self, batch_id: str, items: Sequence[Item], *, at: datetime, mark: Idempotency | None = None
    ) -> int:
        """See the port. How many it were is kept in the answer of the mark."""

        def job(connection: Connection) -> int | ImagenError:
            first = None if mark is None else _first(connection, mark)
            if mark is not None and first is not None:
                same = first.fingerprint == mark.fingerprint
                return int((first.answer or {}).get(_RETRIED, 0)) if same else _conflict(mark)
            found = _find(connection, batch_id)
            if found is None:
                return _unknown(batch_id)
            count = retry_items(connection, [item for item in items if item.batch_id == batch_id])
            if count:
                details = found.details | Remembered(retried_at=at).to_details()
                _REOPEN.run(connection, {"this_batch": batch_id, "details": details})
            if mark is not None:
                answer = (mark.answer or {}) | {_RETRIED: count}
                _set(connection, replace(mark, batch_id=batch_id, answer=answer))
            return count

        return _raised(await self._database.write(job))


def _add(connection: Connection, batch: Batch, *, accepted: bool) -> None:
    row = {name: getattr(batch, name) for name in _FIELDS}
    row |= {"lane": int(batch.lane), "control": batch.control.value, "accepted": accepted}
    try:
        _ADD.run(connection, row)
    except connection.dialect.loaded_dbapi.IntegrityError as error:
        raise StoreError(f"{batch.id} is written down already") from error


def _forget(connection: Connection, batch_id: str) -> None:
    if _FORGET.run(connection, {"this_batch": batch_id}).rowcount:
        forget_items(connection, batch_id)


def _cancel_queued(connection: Connection, batch: Batch, at: datetime, tells: TellsEnds) -> int:
    """End what is queued of a batch as it stands, and write down what is to be told of that."""
    count = cancel_items(connection, batch.id, at)
    _COUNT_ENDS.run(connection, {"this_batch": batch.id, "count": count})
    if count and (tell := tells(batch)) is not None:
        _tell_ends(connection, batch, tell)
    return count


def _tell_ends(connection: Connection, batch: Batch, tell: Callable[[Item], Sequence[Delivery]]) -> None:
    """Write down what is to be told of the ends since `batch` was read, in their order."""
    after = batch.sequence
    while page := ended_items(connection, batch.id, after=after, limit=_PAGE):
        after = page[-1].sequence
        for item in page:
            try:
                deliveries = tell(item)
            except Exception as error:  # noqa: BLE001 - of a damaged row nothing can be told; the others end all the same
                _log.error(
                    "the end of item %d of %s is not told: %s", item.index, batch.id, type(error).__name__
                )
                continue
            put_deliveries(connection, deliveries)


def _find(connection: Connection, batch_id: str) -> Batch | None:
    row = _GET.run(connection, {"this_batch": batch_id}).fetchone()
    return None if row is None else _from_row(row)


def _first(connection: Connection, mark: Idempotency) -> Idempotency | None:
    """The mark of that key that still stands."""
    return _mark(connection, mark.scope, mark.key, mark.created_at - KEY_LIVES)


def _mark(connection: Connection, scope: str, key: str, since: datetime) -> Idempotency | None:
    row = connection.execute(_MARK, {"scope": scope, "key": key, "since": since}).one_or_none()
    return None if row is None else Idempotency(**row._mapping)  # noqa: SLF001 - its public name


def _set(connection: Connection, mark: Idempotency) -> None:
    _SET_MARK.run(connection, {name: getattr(mark, name) for name in _MARK_FIELDS})


# What is wrong is returned by the jobs and raised here: a job that raises makes all others of its group begin again.


def _raised(found: T | ImagenError) -> T:
    if isinstance(found, ImagenError):
        raise found
    return found


def _conflict(mark: Idempotency) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"the Idempotency-Key {mark.key[:80]!r} came with another request before",
        hint="Choose a new key for a new request; a key stands for its first request for 24 hours.",
    )


def _incomplete(batch: Batch, there: int) -> StoreError:
    return StoreError(f"{batch.id} has {there} items in place of {batch.total}")


def _unknown(wanted: str, *, several: bool = False) -> NotFound:
    reason = "several batches begin with" if several else "no batch here is called"
    return NotFound(f"{reason} {wanted[:80]!r}", hint="`imagen batches list` shows them.")


@cache
def _listing(*, scoped: bool, goes_on: bool) -> Statement:
    """The newest batches of a kind."""
    wanted = select(*_COLUMNS).where(_ACCEPTED, batches.c.kind == bindparam("this_kind"))
    if scoped:
        wanted = wanted.where(batches.c.scope == bindparam("this_scope"))
    if goes_on:
        wanted = wanted.where(batches.c.id < bindparam("before"))
    return Statement(wanted.order_by(batches.c.id.desc()).limit(bindparam("most")))


def _promised(stretch: Stretch, scope: str | None) -> Select[Any]:
    """The ids of predictions that are shown, from an index that has them in their order."""
    shown, whose = item_predictions.c.prediction_id, item_predictions.c.scope
    wanted = select(shown).where(whose.is_not(None) if scope is None else whose == scope)
    return cut(wanted, shown, stretch)


def _from_row(row: Sequence[Any]) -> Batch:
    return Batch(
        **{
            name: value if read is None or value is None else read(value)
            for (name, read), value in zip(_READ, row, strict=True)
        }
    )
