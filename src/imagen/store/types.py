"""How our values look in the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import BigInteger, DateTime, Dialect, Text
from sqlalchemy.types import TypeDecorator

from imagen.decoding import decode
from imagen.domain.draft import FinalWish
from imagen.domain.inside import without_file
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.quote import UNKNOWN_PRICE, Quote


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite keeps it as text in UTC, always with microseconds, PostgreSQL as timestamptz."""

    impl = DateTime(timezone=True)
    cache_ok = True

    # SQLite gets the text that SQLAlchemy's own type writes, at a fifth of its CPU.

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any]:
        return _to_text if dialect.name == "sqlite" else _to_utc

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        return _from_any


def _to_utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


def _to_text(value: datetime | None) -> str | None:
    return (
        None if value is None else value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    )


def _from_any(value: Any) -> datetime | None:
    if value is None:
        return None
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


class Encoded(TypeDecorator[bytes]):
    """JSON that is handed on as it is: bytes here, text there."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else value.decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else value.encode()


class Json(TypeDecorator[Any]):
    """Anything that JSON can say, as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else msgspec.json.decode(value)


class Addresses(TypeDecorator[tuple[str, ...]]):
    """Addresses of outputs. Pictures that came inside an answer are not kept in the row: they can be looked at again."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str:
        return msgspec.json.encode([without_file(one) for one in value or ()]).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...]:
        return tuple(msgspec.json.decode(value)) if value else ()


class Micros(TypeDecorator[Usd]):
    """Money as whole micro-dollars."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Usd | None, dialect: Dialect) -> int | None:
        return None if value is None else value.micros

    def process_result_value(self, value: int | None, dialect: Dialect) -> Usd | None:
        return None if value is None else Usd(value)


class Quoted(TypeDecorator[Quote]):
    """The ends of a quote and what is likely, in micro-dollars; nothing where no price was known."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Quote | None, dialect: Dialect) -> str | None:
        if value is None or value == UNKNOWN_PRICE:
            return None
        amounts = (value.low, value.likely, value.high)
        return msgspec.json.encode([None if amount is None else amount.micros for amount in amounts]).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Quote:
        if value is None:
            return UNKNOWN_PRICE
        low, likely, high = (None if micros is None else Usd(micros) for micros in msgspec.json.decode(value))
        return Quote(low=low, likely=likely, high=high)


class Wished(TypeDecorator[FinalWish]):
    """What the final of a preview is made of."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: FinalWish | None, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> FinalWish | None:
        return None if value is None else decode(value, FinalWish)


class StatusText(TypeDecorator[Status]):
    """A status as its own word."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Status | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> Status | None:
        return None if value is None else Status(value)
