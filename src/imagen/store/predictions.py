"""Predictions in SQL."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from imagen.domain.batch import ItemStatus
from imagen.domain.prediction import TERMINAL, Prediction, Status
from imagen.domain.usage import UsageEntry
from imagen.errors import NotFound, StoreError, UpstreamTaken
from imagen.ports import Sight, Stretch
from imagen.store.budgets import void
from imagen.store.damage import DAMAGE, is_damage
from imagen.store.database import Database
from imagen.store.ledger import write_entries
from imagen.store.statement import Statement
from imagen.store.tables import UNFINISHED, UNSETTLED, batches, item_predictions, items, leases, predictions

_COLUMNS = tuple(column.name for column in predictions.columns)
_NEVER_CHANGING = frozenset(
    {
        "id", "backend", "backend_type", "account", "model", "prompt", "input", "request_key", "caller", "created_at",
        "deadline_seconds", "seed", "draft", "wished",
    }
)  # fmt: skip
"""What an intent says once and for all. Left out of updates, which also leaves the indexes on it alone."""
_CHANGING = tuple(name for name in _COLUMNS if name not in _NEVER_CHANGING | {"owner"})
_KEPT = ("upstream_id", "delivered_at", "settled_at")

# The statements of every request are compiled once and run straight on the driver.
_ADD = Statement(insert(predictions), columns=_COLUMNS)
_SAVE = Statement(
    update(predictions)
    .where(
        predictions.c.id == bindparam("this_id"),
        or_(
            and_(*(predictions.c.status != ended for ended in sorted(TERMINAL))),
            predictions.c.status == bindparam("this_status"),
        ),
    )
    .values(
        {name: bindparam(name) for name in _CHANGING}
        | {
            # A writer that has seen less takes nothing back.
            **{
                name: func.coalesce(bindparam(name, type_=predictions.c[name].type), predictions.c[name])
                for name in _KEPT
            },
            "status": case(
                (bindparam("this_status") == Status.QUEUED, predictions.c.status),
                else_=bindparam("this_status"),
            ),
        }
    )
    .returning(predictions.c.status, *(predictions.c[name] for name in _KEPT))
)
_SAVED = Statement(
    select(
        bindparam("this_status", type_=predictions.c.status.type),
        *(bindparam(name, type_=predictions.c[name].type) for name in _KEPT),
    )
)
"""What `_SAVE` returns when nobody else has written, as the database has it."""
_FREE = Statement(delete(leases).where(leases.c.lease == bindparam("this_id")))
_OUR_ID = re.compile("pred_[0-9a-z]{26}")
_BY_ID = select(predictions).where(predictions.c.id == bindparam("this_id"))
_STATUS = select(predictions.c.status).where(predictions.c.id == bindparam("this_id"))
_IN_ORDER = select(predictions).where(UNFINISHED).order_by(predictions.c.created_at, predictions.c.id)
_OF_OPEN_BATCH = (
    exists()
    .where(
        item_predictions.c.prediction_id == predictions.c.id,
        batches.c.id == item_predictions.c.batch_id,
        batches.c.ended_at.is_(None),
    )
    .correlate(predictions)
)
_OF_OTHERS = _IN_ORDER.where(
    or_(predictions.c.owner.is_(None), predictions.c.owner != bindparam("this_owner")), ~_OF_OPEN_BATCH
)
_OF_REQUEST = _IN_ORDER.where(predictions.c.request_key == bindparam("this_key"))
_OF_OPEN_ITEM = (
    exists()
    .where(
        item_predictions.c.prediction_id == predictions.c.id,
        items.c.batch_id == item_predictions.c.batch_id,
        items.c.index == item_predictions.c.index,
        items.c.status.in_([ItemStatus.QUEUED.value, ItemStatus.RUNNING.value]),
    )
    .correlate(predictions)
)
_PROMISED = _OF_REQUEST.where(_OF_OPEN_ITEM)
_RELEASE = Statement(
    update(predictions)
    .where(predictions.c.id == bindparam("this_id"), predictions.c.owner == bindparam("this_owner"))
    .values(owner=None)
)
_CHUNK = 100
_MOST_OF_DRAFT = 1000

_log = logging.getLogger(__name__)


class SqlPredictionStore:
    """`ports.PredictionStore` on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._damaged: set[str] = set()

    async def add(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> None:
        """See the port."""

        def job(connection: Connection) -> None:
            write_intents(connection, [prediction])
            if entry is not None:
                write_entries(connection, [entry])

        await self._database.write(job)

    async def save(self, prediction: Prediction, *, entry: UsageEntry | None = None) -> Prediction:
        """See the port. Owner and input stay as they are: `take` and `release` move the one, nothing the other."""
        settled_at = prediction.settled_at if entry is None else entry.created_at
        row = {name: getattr(prediction, name) for name in _CHANGING}
        row |= {"this_id": prediction.id, "this_status": prediction.status, "settled_at": settled_at}

        def job(connection: Connection) -> Prediction:
            try:
                kept = _SAVE.run(connection, row).fetchone()
            except connection.dialect.loaded_dbapi.IntegrityError as error:
                raise UpstreamTaken(
                    f"upstream prediction {prediction.upstream_id} belongs to another prediction here"
                ) from error
            if prediction.status.terminal:
                _FREE.run(connection, {"this_id": prediction.id})
            if kept is None:
                return _one(connection, _BY_ID, prediction.id, {"this_id": prediction.id})
            if prediction.status.terminal and prediction.charged is False:
                void(connection, prediction.id, prediction.ended_at or datetime.now(UTC))
            if entry is not None:
                write_entries(connection, [entry])
            stored = msgspec.structs.replace(prediction, settled_at=settled_at)
            if tuple(kept) == _SAVED.bound(connection, row):
                return stored
            facts = _one(connection, _BY_ID, prediction.id, {"this_id": prediction.id})
            return msgspec.structs.replace(
                stored, status=facts.status, **{name: getattr(facts, name) for name in _KEPT}
            )

        return await self._database.write(job)

    async def get(self, prediction_id: str) -> Prediction:
        """See the port."""
        wanted = prediction_id.strip()
        return await self._database.read(lambda connection: _find(connection, wanted))

    async def status(self, prediction_id: str) -> Status | None:
        """See the port."""
        return await self._database.read(
            lambda connection: connection.execute(_STATUS, {"this_id": prediction_id}).scalar_one_or_none()
        )

    async def unfinished(
        self, *, request_key: str | None = None, besides: str | None = None
    ) -> Sequence[Prediction]:
        """See the port."""
        if request_key is not None:
            return await self._many(_OF_REQUEST, {"this_key": request_key})
        if besides is not None:
            return await self._many(_OF_OTHERS, {"this_owner": besides})
        return await self._many(_IN_ORDER)

    async def promised(self, request_key: str) -> Sequence[Prediction]:
        """See the port."""
        return await self._many(_PROMISED, {"this_key": request_key})

    async def take(self, prediction_id: str, *, owner: str, was: str | None) -> bool:
        """See the port."""
        same = predictions.c.owner.is_(None) if was is None else predictions.c.owner == was
        statement = update(predictions).where(predictions.c.id == prediction_id, same).values(owner=owner)
        return await self._database.write(lambda connection: connection.execute(statement).rowcount == 1)

    async def release(self, prediction_id: str, *, owner: str) -> None:
        """See the port."""
        row = {"this_id": prediction_id, "this_owner": owner}
        await self._database.write(lambda connection: _RELEASE.run(connection, row))

    async def list(self, *, limit: int, status: Status | None = None) -> Sequence[Prediction]:
        """See the port."""
        statement = (
            select(predictions)
            .order_by(predictions.c.created_at.desc(), predictions.c.id.desc())
            .limit(limit)
        )
        if status is not None:
            statement = statement.where(predictions.c.status == status)
        return await self._many(statement)

    async def stretch(self, sight: Sight, stretch: Stretch) -> Sequence[str]:
        """See the port."""
        statement = cut(select(predictions.c.id), predictions.c.id, stretch)
        if sight.key is not None:
            statement = statement.where(predictions.c.key == sight.key)
        if sight.account is not None:
            statement = statement.where(predictions.c.account == sight.account)
        if sight.caller is not None:
            statement = statement.where(predictions.c.key.is_(None), predictions.c.caller == sight.caller)
        return await self._database.read(lambda connection: connection.execute(statement).scalars().all())

    async def of_draft(self, draft: str) -> Sequence[Prediction]:
        """See the port."""
        statement = select(predictions).where(predictions.c.draft == draft)
        return await self._many(
            statement.order_by(predictions.c.created_at, predictions.c.id).limit(_MOST_OF_DRAFT)
        )

    async def unsettled(self) -> Sequence[Prediction]:
        """See the port."""
        return await self._many(select(predictions).where(UNSETTLED))

    async def known_upstream_ids(self, account: str, *, since: datetime) -> frozenset[str]:
        """See the port."""
        statement = select(predictions.c.upstream_id).where(
            predictions.c.account == account,
            predictions.c.upstream_id.is_not(None),
            predictions.c.sent_at >= since,
        )
        return await self._database.read(
            lambda connection: frozenset(connection.execute(statement).scalars())
        )

    async def of_upstream(self, account: str, upstream_ids: Sequence[str]) -> Sequence[Prediction]:
        """See the port."""
        if not upstream_ids:
            return []
        return await self._many(
            select(predictions).where(
                predictions.c.account == account, predictions.c.upstream_id.in_(tuple(upstream_ids))
            )
        )

    async def unreadable(self) -> Sequence[str]:
        """See the port. Those that were mended since are not among them."""
        if not self._damaged:
            return []
        known = tuple(self._damaged)
        await self._database.read(lambda connection: self._sound(connection, known))
        return sorted(self._damaged)

    async def _many(
        self, statement: Select[Any], values: Mapping[str, Any] | None = None
    ) -> Sequence[Prediction]:
        """All that can be read: a damaged row keeps nobody from the others."""

        def job(connection: Connection) -> Sequence[Prediction]:
            try:
                return [_from_row(row) for row in connection.execute(statement, values or {})]
            except DAMAGE as error:
                if not is_damage(error):
                    raise
            ids = connection.execute(statement.with_only_columns(predictions.c.id), values or {}).scalars()
            return self._sound(connection, tuple(ids))

        return await self._database.read(job)

    def _sound(self, connection: Connection, ids: Sequence[str]) -> Sequence[Prediction]:
        """Those of these predictions whose rows can be read, in this order; it is noted which cannot."""
        if len(ids) > _CHUNK:
            parts = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
            return [one for part in parts for one in self._sound(connection, part)]
        try:
            rows = connection.execute(select(predictions).where(predictions.c.id.in_(ids)))
            found = {one.id: one for one in map(_from_row, rows)}
        except DAMAGE as error:
            if not is_damage(error):
                raise
            if len(ids) > 1:
                return [one for this in ids for one in self._sound(connection, [this])]
            if ids[0] not in self._damaged:
                self._damaged.add(ids[0])
                _log.error("%s is left out: its row in the database cannot be read", ids[0])
            return []
        self._damaged.difference_update(found)
        return [found[this] for this in ids if this in found]


def cut(statement: Select[Any], ids: ColumnElement[str], stretch: Stretch) -> Select[Any]:
    """Only that part of what a statement selects, by its ids."""
    if stretch.above is not None:
        statement = statement.where(ids > stretch.above)
    if stretch.below is not None:
        statement = statement.where(ids < stretch.below)
    return statement.order_by(ids if stretch.rising else ids.desc()).limit(stretch.limit)


def write_intents(connection: Connection, intents: Sequence[Prediction]) -> None:
    """Write down new predictions, in the transaction of `connection`.

    Raises:
        StoreError: one is written down already.
    """
    try:
        _ADD.run_many(connection, map(_to_row, intents))
    except connection.dialect.loaded_dbapi.IntegrityError as error:
        raise StoreError(f"prediction {intents[0].id} is written down already") from error


def _to_row(prediction: Prediction) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in _COLUMNS}


def _from_row(row: Row[Any]) -> Prediction:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
    return Prediction(**{**values, "files": tuple(values["files"])})


def _find(connection: Connection, wanted: str) -> Prediction:
    """By our whole id, as every item of a batch is looked up twice; else by whatever people write of it."""
    if _OUR_ID.fullmatch(wanted):
        return _one(connection, _BY_ID, wanted, {"this_id": wanted})
    whole = or_(predictions.c.id == wanted, predictions.c.upstream_id == wanted)
    begins = predictions.c.id.startswith(wanted, autoescape=True) if wanted else false()
    statement = select(predictions).where(or_(whole, begins)).order_by(case((whole, 0), else_=1)).limit(2)
    return _one(connection, statement, wanted)


def _one(
    connection: Connection, statement: Select[Any], wanted: str, values: Mapping[str, Any] | None = None
) -> Prediction:
    try:
        rows = connection.execute(statement, values or {}).all()
    except DAMAGE as error:
        if not is_damage(error):
            raise
        raise _damaged(wanted) from error
    exact = [row for row in rows if wanted in {row.id, row.upstream_id}] or rows
    if len(exact) != 1:
        reason = "several predictions begin with" if rows else "no prediction here is called"
        raise NotFound(f"{reason} {wanted[:80]!r}", hint="`imagen predictions list` shows them.")
    try:
        return _from_row(exact[0])
    except DAMAGE as error:
        raise _damaged(wanted) from error


def _damaged(wanted: str) -> StoreError:
    error = StoreError(
        f"the prediction {wanted[:80]!r} cannot be read: its row in the database is damaged",
        hint="`imagen doctor` tells which rows are.",
    )
    error.of_one_row = True
    return error
