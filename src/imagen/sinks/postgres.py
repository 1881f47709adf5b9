"""The ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from imagen.domain.secret import Secret, is_secret_name
from imagen.domain.usage import UsageEntry
from imagen.errors import SinkError
from imagen.sinks.refusals import MAKE_IT, is_unfit, missing, redacted
from imagen.sinks.schema import COLUMNS, SCHEMA, TABLE, from_row, schema_sql, to_row

if TYPE_CHECKING:
    from psycopg import AsyncConnection

SECONDS = 10.0
"""What takes longer has failed."""
IDLE_SECONDS = 30.0
"""A connection that was not used for so long is made anew: servers and firewalls end idle ones without a word."""
_NO_SUCH_TABLE = frozenset({"42P01", "3F000", "42703"})
_NOT_ALLOWED = "42501"
_WRITE = (
    f"insert into {SCHEMA}.{TABLE} ({', '.join(COLUMNS)}) "  # noqa: S608 - names of ours
    f"values ({', '.join(f'%({name})s' for name in COLUMNS)}) on conflict (id) do nothing"
)
_READ = (
    f"select {', '.join(COLUMNS)} from {SCHEMA}.{TABLE} "  # noqa: S608 - names of ours
    "where %(since)s::timestamptz is null or created_at >= %(since)s "
    "order by created_at desc, id desc limit %(limit)s"
)


class PostgresSink:
    """`ports.UsageSink` on a PostgreSQL database. Keeps one connection; safe to share between tasks of one loop.

    Args:
        url: `postgresql://user:password@host/database`, with what libpq allows besides.
        seconds: how long one call may take.
    """

    def __init__(self, url: Secret, *, seconds: float = SECONDS) -> None:
        parts = urlsplit(url.reveal())
        where = Secret(f"{parts.netloc.rpartition('@')[2]}{parts.path}?{parts.query}")
        self.name = f"postgresql:{where.fingerprint()}"
        self._url = url
        self._secrets = _secrets(url.reveal())
        self._seconds = seconds
        self._kept: AsyncConnection[Any] | None = None
        self._used_at = 0.0
        self._one_by_one = asyncio.Lock()

    async def write(self, entries: Sequence[UsageEntry]) -> None:
        """See the port."""
        if not entries:
            return
        rows = [to_row(entry) for entry in entries]
        async with self._connected() as connection, connection.transaction(), connection.cursor() as cursor:
            await cursor.executemany(_WRITE, rows)

    async def read(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[UsageEntry]:
        """See the port."""
        async with self._connected() as connection, connection.cursor() as cursor:
            await cursor.execute(_READ, {"since": since, "limit": limit})
            rows = await cursor.fetchall()
        return [from_row(dict(zip(COLUMNS, row, strict=True))) for row in rows]

    async def migrate(self) -> None:
        """See the port."""
        async with self._connected() as connection, connection.transaction():
            await connection.execute(schema_sql().encode())

    async def aclose(self) -> None:
        """See the port."""
        connection, self._kept = self._kept, None
        if connection is not None:
            await connection.close()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection[Any]]:
        """The connection, to one task after the other; what fails within becomes an error of ours."""
        try:
            import psycopg  # noqa: PLC0415 - an extra, and slow to load
        except ImportError:
            raise SinkError(
                "writing to PostgreSQL needs the extra `postgres`, which is not installed",
                hint=missing("postgres"),
            ) from None
        loop = asyncio.get_running_loop()
        async with self._one_by_one:
            try:
                async with asyncio.timeout(self._seconds):
                    if loop.time() - self._used_at > IDLE_SECONDS:
                        await self._drop()
                    if self._kept is None or self._kept.closed:
                        # Nothing is prepared: a pooler in front may give each transaction another connection.
                        self._kept = await psycopg.AsyncConnection.connect(
                            self._url.reveal(),
                            autocommit=True,
                            application_name="imagen",
                            prepare_threshold=None,
                        )
                    yield self._kept
                    self._used_at = loop.time()
            except TimeoutError:
                await self._drop()
                raise SinkError(f"PostgreSQL did not answer within {self._seconds:g} s") from None
            except psycopg.DataError as error:  # the transaction was undone, and the connection is well
                raise self._translated(error, unfit=True) from None
            except psycopg.ProgrammingError as error:
                await self._drop()
                if error.sqlstate is None:
                    # The library could not read the address, and quotes of it what may be a part of the password.
                    raise SinkError(
                        "the address in sink.postgres_url cannot be read as one of PostgreSQL",
                        hint="Write postgresql://user:password@host:5432/database, odd characters as %40 and so on.",
                    ) from None
                raise self._translated(error) from None
            except (psycopg.Error, OSError) as error:
                await self._drop()
                # Without its cause: the text of the library may hold the address with its password.
                raise self._translated(error) from None
            except asyncio.CancelledError:
                await self._drop()
                raise

    async def _drop(self) -> None:
        """Give up a connection of which nobody knows how it stands."""
        connection, self._kept = self._kept, None
        if connection is not None:
            await connection.close()

    def _translated(self, error: Exception, *, unfit: bool = False) -> SinkError:
        state = getattr(error, "sqlstate", None)
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        detail = redacted(said, secrets=self._secrets) or type(error).__name__
        hint = None
        if state in _NO_SUCH_TABLE:
            hint = f"Run: imagen sink migrate ({MAKE_IT})."
        elif state == _NOT_ALLOWED:
            hint = f"Let that user read and write {SCHEMA}.{TABLE}, or apply the migration as that user."
        return SinkError(f"PostgreSQL: {detail}", hint=hint, unfit=unfit or is_unfit(state))


def _secrets(url: str) -> frozenset[str]:
    """What of an address nobody may see: all of it, and its password however it is written."""
    parts = urlsplit(url)
    asked = [value for name, value in parse_qsl(parts.query) if is_secret_name(name)]
    password = parts.password or ""
    return frozenset({url, password, unquote(password), *asked})
