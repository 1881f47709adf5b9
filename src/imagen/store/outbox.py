"""Deliveries in SQL: those that wait for their turn, those of the past, and what they are signed with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from imagen.domain.delivery import Delivery, SigningSecret
from imagen.errors import NotFound
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
        return await self._database.read(
            lambda connection: [_from_row(row) for row in connection.execute(statement)]
        )

    async def done(self, delivery: Delivery, *, now: datetime) -> Delivery | None:
        """See the port."""
        row = {name: getattr(delivery, name) for name in _CHANGING}
        row |= {"this_id": delivery.id, "attempts_before": delivery.attempts - 1}
        line = {"this_subject": delivery.subject, "this_url": delivery.url}

        def job(connection: Connection) -> Delivery | None:
            connection.execute(_DONE, row)
            head = connection.execute(_HEAD, line).one_or_none()
            return None if head is None else _from_row(head)

        head = await self._database.write(job)
        return None if head is None or head.due_at is None or head.due_at > now else head

    async def list(self, *, limit: int, scope: str | None = None, failed: bool = False) -> Sequence[Delivery]:
        """See the port."""
        statement = select(*_COLUMNS).order_by(deliveries.c.number.desc()).limit(limit)
        if scope is not None:
            statement = statement.where(deliveries.c.scope == scope)
        if failed:
            statement = statement.where(
                or_(deliveries.c.given_up_at.is_not(None), _OPEN & (deliveries.c.attempts > 0))
            )
        return await self._database.read(
            lambda connection: [_from_row(row) for row in connection.execute(statement)]
        )

    async def retry(self, delivery_id: str, *, now: datetime) -> Delivery:
        """See the port. One that was taken is left as it is, and returned so."""
        begun = (
            update(deliveries)
            .where(deliveries.c.id == delivery_id, deliveries.c.delivered_at.is_(None))
            .values(due_at=now, given_up_at=None, attempts=0, tried_since=now)
        )
        found = select(*_COLUMNS).where(deliveries.c.id == delivery_id)

        def job(connection: Connection) -> Row[Any] | None:
            connection.execute(begun)
            return connection.execute(found).one_or_none()

        # What is wrong is told outside: a job that raises makes all others of its group begin again.
        row = await self._database.write(job)
        if row is None:
            raise NotFound(
                f"no delivery has the id {delivery_id[:100]!r}", hint="`imagen deliveries list` shows them."
            )
        return _from_row(row)

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
        .where(deliveries.c.due_at <= now)
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
    return [SigningSecret(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001


def _from_row(row: Row[Any]) -> Delivery:
    return Delivery(**row._mapping)  # noqa: SLF001 - its public name
