"""Predictions in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from imagen.domain.prediction import TERMINAL, Prediction, Status
from imagen.domain.usage import UsageEntry
from imagen.errors import NotFound, StoreError, UpstreamTaken
from imagen.store.database import Database
from imagen.store.ledger import write_entries
from imagen.store.statement import Statement
from imagen.store.tables import leases, predictions

_COLUMNS = tuple(column.name for column in predictions.columns)
_NEVER_CHANGING = frozenset(
    {
        "id", "backend", "backend_type", "account", "model", "prompt", "input", "request_key", "caller", "created_at",
        "deadline_seconds", "seed",
    }
)  # fmt: skip
"""What an intent says once and for all. Left out of updates, which also leaves the indexes on it alone."""
_CHANGING = tuple(name for name in _COLUMNS if name not in _NEVER_CHANGING | {"owner"})
_KEPT = ("upstream_id", "delivered_at", "settled_at")
_UNFINISHED = or_(
    predictions.c.status.not_in(TERMINAL),
    and_(predictions.c.status == Status.SUCCEEDED, predictions.c.delivered_at.is_(None)),
)

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
_BY_ID = select(predictions).where(predictions.c.id == bindparam("this_id"))
_IN_ORDER = select(predictions).where(_UNFINISHED).order_by(predictions.c.created_at, predictions.c.id)
_OF_OTHERS = _IN_ORDER.where(
    or_(predictions.c.owner.is_(None), predictions.c.owner != bindparam("this_owner"))
)
_OF_REQUEST = _IN_ORDER.where(predictions.c.request_key == bindparam("this_key"))
_RELEASE = Statement(
    update(predictions)
    .where(predictions.c.id == bindparam("this_id"), predictions.c.owner == bindparam("this_owner"))
    .values(owner=None)
)


class SqlPredictionStore:
    """`ports.PredictionStore` on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, prediction: Prediction) -> None:
        """See the port."""
        await self._database.write(lambda connection: write_intents(connection, [prediction]))

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
        whole = or_(predictions.c.id == wanted, predictions.c.upstream_id == wanted)
        begins = predictions.c.id.startswith(wanted, autoescape=True) if wanted else false()
        statement = select(predictions).where(or_(whole, begins)).order_by(case((whole, 0), else_=1)).limit(2)
        return await self._database.read(lambda connection: _one(connection, statement, wanted))

    async def unfinished(
        self, *, request_key: str | None = None, besides: str | None = None
    ) -> Sequence[Prediction]:
        """See the port."""
        if request_key is not None:
            return await self._many(_OF_REQUEST, {"this_key": request_key})
        if besides is not None:
            return await self._many(_OF_OTHERS, {"this_owner": besides})
        return await self._many(_IN_ORDER)

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

    async def unsettled(self) -> Sequence[Prediction]:
        """See the port."""
        return await self._many(
            select(predictions).where(
                predictions.c.settled_at.is_(None),
                predictions.c.upstream_id.is_not(None),
                predictions.c.status.in_(TERMINAL),
            )
        )

    async def known_upstream_ids(self, account: str, *, since: datetime) -> frozenset[str]:
        """See the port."""
        statement = select(predictions.c.upstream_id).where(
            predictions.c.account == account,
            predictions.c.upstream_id.is_not(None),
            predictions.c.created_at >= since,
        )
        return await self._database.read(
            lambda connection: frozenset(connection.execute(statement).scalars())
        )

    async def _many(
        self, statement: Select[Any], values: Mapping[str, Any] | None = None
    ) -> Sequence[Prediction]:
        return await self._database.read(
            lambda connection: [_from_row(row) for row in connection.execute(statement, values or {})]
        )


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


def _one(
    connection: Connection, statement: Select[Any], wanted: str, values: Mapping[str, Any] | None = None
) -> Prediction:
    rows = connection.execute(statement, values or {}).all()
    exact = [row for row in rows if wanted in {row.id, row.upstream_id}] or rows
    if len(exact) != 1:
        reason = "several predictions begin with" if rows else "no prediction here is called"
        raise NotFound(f"{reason} {wanted[:80]!r}", hint="`imagen predictions list` shows them.")
    return _from_row(exact[0])
