"""Deliveries in SQL: those that wait for their turn, those of the past, and what they are signed with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Row,
    Select,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from imagen.decoding import convert
from imagen.domain.delivery import Delivery, SigningSecret
from imagen.errors import NotFound, StoreError
from imagen.store.damage import DAMAGE, is_damage
from imagen.store.database import Database
from imagen.store.statement import Statement
from imagen.store.tables import deliveries, signing_secrets

MOST_OF_ONE_HOST = 16
"""Of the deliveries that are due, those to one host beyond so many are left for later."""
_FIELDS = Delivery.__struct_fields__
_COLUMNS = tuple(deliveries.c[name] for name in _FIELDS)
_SECRET_COLUMNS = tuple(signing_secrets.c[name] for name in SigningSecret.__struct_fields__)
_CHANGING = ("attempts", "tried_since", "due_at", "delivered_at", "given_up_at", "answer")
_OPEN = deliveries.c.due_at.is_not(None)

_T = TypeVar("_T", bound=msgspec.Struct)
_EPOCH = datetime.fromtimestamp(0, UTC)
_UNKNOWN = "?"
_DAMAGED = "it cannot be read in the database"
# What stands for a field that cannot be read; None for all others.
_INSTEAD_OF_DELIVERY: Mapping[str, Any] = {
    "id": _UNKNOWN,
    "subject": _UNKNOWN,
    "url": _UNKNOWN,
    "scope": _UNKNOWN,
    "event": _UNKNOWN,
    "body": {},
    "created_at": _EPOCH,
    "attempts": 0,
}
_INSTEAD_OF_SECRET: Mapping[str, Any] = {"secret": "", "created_at": _EPOCH}

_log = logging.getLogger(__name__)

_NEXT_NUMBER = select(func.coalesce(func.max(deliveries.c.number), 0) + 1).scalar_subquery()
_PUT = Statement(
    insert(deliveries)
    .values(
        {name: bindparam(name, type_=deliveries.c[name].type) for name in _FIELDS} | {"number": _NEXT_NUMBER}
    )
    .on_conflict_do_nothing(index_elements=["id"])
)
_DONE = (
    update(deliveries)
    .where(
        deliveries.c.id == bindparam("this_id"),
        deliveries.c.delivered_at.is_(None),
        # An attempt that began before somebody asked for a new day says nothing about that day, unless it was taken.
        or_(
            deliveries.c.attempts == bindparam("attempts_before"),
            bindparam("delivered_at", type_=deliveries.c.delivered_at.type).is_not(None),
        ),
    )
    .values({name: bindparam(name) for name in _CHANGING})
)
_HEAD = (
    select(*_COLUMNS)
    .where(
        _OPEN,
        deliveries.c.subject == bindparam("this_subject"),
        deliveries.c.url == bindparam("this_url"),
    )
    .order_by(deliveries.c.number)
    .limit(1)
)


class SqlOutbox:
    """`ports.Outbox` on one database: the tables `deliveries` and `signing_secrets`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, deliveries: Sequence[Delivery]) -> None:
        """See the port. Putting one twice is the same as putting it once."""
        if deliveries:
            await self._database.write(lambda connection: put_deliveries(connection, deliveries))

    async def due(self, *, now: datetime, limit: int) -> Sequence[Delivery]:
        """See the port. Those of many hosts take turns, so that a slow one with many leaves room for the others."""
        statement = _due(now, limit)
        found = await self._database.read(lambda connection: _deliveries(connection, statement))
        if damaged := {number: one for number, one in found if number is not None}:
            await self._give_up(damaged, now)
        return [one for number, one in found if number is None]

    async def _give_up(self, damaged: Mapping[int, Delivery], now: datetime) -> None:
        """End those that cannot be read, so that they hold up nobody behind them. What they say stays as it is."""
        ended = dict.fromkeys(_CHANGING) | {"attempts": 0, "given_up_at": now, "answer": _DAMAGED}
        statement = update(deliveries).where(deliveries.c.number.in_(damaged)).values(ended)
        await self._database.write(lambda connection: connection.execute(statement))
        for number, one in damaged.items():
            _log.error("%s, number %d, was given up: %s", one.id, number, _DAMAGED)

    async def done(self, delivery: Delivery, *, now: datetime) -> Delivery | None:
        """See the port."""
        row = {name: getattr(delivery, name) for name in _CHANGING}
        row |= {"this_id": delivery.id, "attempts_before": delivery.attempts - 1}
        line = {"this_subject": delivery.subject, "this_url": delivery.url}

        def job(connection: Connection) -> Delivery | None:
            connection.execute(_DONE, row)
            # One that cannot be read is given up by the next look at what is due.
            return next((one for number, one in _deliveries(connection, _HEAD, line) if number is None), None)

        head = await self._database.write(job)
        return None if head is None or head.due_at is None or head.due_at > now else head

    async def list(self, *, limit: int, scope: str | None = None, failed: bool = False) -> Sequence[Delivery]:
        """See the port. Of one that is damaged it has what can be read."""
        statement = select(*_COLUMNS).order_by(deliveries.c.number.desc()).limit(limit)
        if scope is not None:
            statement = statement.where(deliveries.c.scope == scope)
        if failed:
            statement = statement.where(
                or_(deliveries.c.given_up_at.is_not(None), _OPEN & (deliveries.c.attempts > 0))
            )
        found = await self._database.read(lambda connection: _deliveries(connection, statement))
        return [one for _, one in found]

    async def retry(self, delivery_id: str, *, now: datetime) -> Delivery:
        """See the port. One that was taken is left as it is, and returned so.

        Raises:
            StoreError: it cannot be read, so it cannot be sent.
        """
        begun = (
            update(deliveries)
            .where(deliveries.c.id == delivery_id, deliveries.c.delivered_at.is_(None))
            .values(due_at=now, given_up_at=None, attempts=0, tried_since=now)
        )
        found = select(*_COLUMNS).where(deliveries.c.id == delivery_id)

        def job(connection: Connection) -> list[tuple[int | None, Delivery]]:
            before = _deliveries(connection, found)
            if any(number is not None for number, _ in before):
                return before
            connection.execute(begun)
            return _deliveries(connection, found)

        # What is wrong is told outside: a job that raises makes all others of its group begin again.
        rows = await self._database.write(job)
        if not rows:
            raise NotFound(
                f"no delivery has the id {delivery_id[:100]!r}", hint="`imagen deliveries list` shows them."
            )
        ((number, one),) = rows
        if number is not None:
            error = StoreError(
                f"the delivery {delivery_id[:100]!r} cannot be sent: {_DAMAGED}",
                hint="Ask for what it is about: `imagen deliveries list` tells that, as `subject`.",
            )
            error.of_one_row = True
            raise error
        return one

    async def waiting(self) -> int:
        """See the port."""
        statement = select(func.count()).select_from(deliveries).where(_OPEN)
        return await self._database.read(lambda connection: connection.execute(statement).scalar_one())

    async def secrets(self, *, now: datetime) -> Sequence[SigningSecret]:
        """See the port."""
        return await self._database.read(lambda connection: _signing(connection, now))

    async def rotate(
        self, secret: str, *, now: datetime, overlap_seconds: float, first: bool = False
    ) -> SigningSecret:
        """See the port."""
        until = now + timedelta(seconds=overlap_seconds)
        retire = (
            update(signing_secrets)
            .where(or_(signing_secrets.c.retires_at.is_(None), signing_secrets.c.retires_at > until))
            .values(retires_at=until)
        )
        forget = delete(signing_secrets).where(signing_secrets.c.retires_at <= now)
        add = insert(signing_secrets).values(secret=secret, created_at=now).returning(*_SECRET_COLUMNS)

        def job(connection: Connection) -> SigningSecret:
            if first and (there := _signing(connection, now)):
                return there[0]
            connection.execute(retire)
            # The newest one stays until there is another, so that ids rise.
            row = connection.execute(add).one()
            connection.execute(forget)
            return SigningSecret(**row._mapping)  # noqa: SLF001 - its public name

        return await self._database.write(job)

    async def sweep(self, *, before: datetime) -> None:
        """See the port."""
        statement = delete(deliveries).where(
            or_(deliveries.c.delivered_at < before, deliveries.c.given_up_at < before),
            deliveries.c.due_at.is_(None),
        )
        await self._database.write(lambda connection: connection.execute(statement))


def put_deliveries(connection: Connection, deliveries: Iterable[Delivery]) -> None:
    """Write down deliveries that are due, in the transaction of `connection`; those that are there stay as they are."""
    for delivery in deliveries:
        row = {name: getattr(delivery, name) for name in _FIELDS}
        if delivery.due_at is None and delivery.status == "waiting":
            row["due_at"] = delivery.created_at
        _PUT.run(connection, row)


def _due(now: datetime, limit: int) -> Select[Any]:
    """The heads of all lines whose pause is over: first the oldest one of each host, then the second of each, and so on."""
    heads = (
        select(func.min(deliveries.c.number).label("number"))
        .where(_OPEN)
        .group_by(deliveries.c.subject, deliveries.c.url)
        .subquery()
    )
    turn = (
        func.row_number()
        .over(partition_by=_host(deliveries.c.url), order_by=deliveries.c.number)
        .label("turn")
    )
    ready = (
        select(deliveries.c.number, turn)
        .join(heads, heads.c.number == deliveries.c.number)
        # What is no instant would never come, and hold up all that is behind it.
        .where(or_(deliveries.c.due_at <= now, func.julianday(deliveries.c.due_at).is_(None)))
        .subquery()
    )
    return (
        select(*_COLUMNS)
        .join(ready, ready.c.number == deliveries.c.number)
        .where(ready.c.turn <= MOST_OF_ONE_HOST)
        .order_by(ready.c.turn, deliveries.c.number)
        .limit(limit)
    )


def _host(url: Any) -> Any:
    """Scheme and authority of an address, as far as SQL can tell."""
    behind_scheme = func.substr(func.replace(url, "?", "/"), len("https://") + 1)
    return func.substr(url, 1, len("https://") + func.instr(behind_scheme + literal("/"), "/") - 1)


def _signing(connection: Connection, now: datetime) -> list[SigningSecret]:
    statement = (
        select(*_SECRET_COLUMNS)
        .where(or_(signing_secrets.c.retires_at.is_(None), signing_secrets.c.retires_at > now))
        .order_by(signing_secrets.c.id.desc())
    )
    # A damaged one is there, too: else another would be made in its place, which no receiver knows.
    return [
        one
        for _, one in _rows(
            connection, statement, SigningSecret, key=signing_secrets.c.id, instead=_INSTEAD_OF_SECRET
        )
    ]


def _deliveries(
    connection: Connection, statement: Select[Any], values: Mapping[str, Any] | None = None
) -> list[tuple[int | None, Delivery]]:
    """See `_rows`; before a damaged one stands its number."""
    return _rows(
        connection, statement, Delivery, key=deliveries.c.number, instead=_INSTEAD_OF_DELIVERY, values=values
    )


def _rows(
    connection: Connection,
    statement: Select[Any],
    kind: type[_T],
    *,
    key: Column[int],
    instead: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
) -> list[tuple[int | None, _T]]:
    """What a statement selects, in its order: None and all of a sound row, the key and what can be read of a damaged one."""
    try:
        return [(None, _from_row(kind, row)) for row in connection.execute(statement, values or {})]
    except DAMAGE as error:
        if not is_damage(error):
            raise
    keys = connection.execute(statement.with_only_columns(key), values or {}).scalars().all()
    return [_row(connection, kind, key, this, instead) for this in keys]


def _row(
    connection: Connection, kind: type[_T], key: Column[int], this: int, instead: Mapping[str, Any]
) -> tuple[int | None, _T]:
    fields = msgspec.structs.fields(kind)
    columns = [key.table.c[field.name] for field in fields]
    try:
        return None, _from_row(kind, connection.execute(select(*columns).where(key == this)).one())
    except DAMAGE as error:
        if not is_damage(error):
            raise
    values = {}
    for field, column in zip(fields, columns, strict=True):
        try:
            value = connection.execute(select(column).where(key == this)).scalar_one()
            values[field.name] = convert(value, field.type)
        except DAMAGE as error:
            if not is_damage(error):
                raise
            values[field.name] = instead.get(field.name)
    return this, kind(**values)


def _from_row(kind: type[_T], row: Row[Any]) -> _T:
    # SQLite keeps whatever it is given, so that a number may be a word in a damaged row.
    return convert(dict(zip(kind.__struct_fields__, row, strict=True)), kind)
