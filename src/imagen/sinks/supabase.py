"""The ledger in Supabase, through its REST API (PostgREST)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from imagen.domain.secret import Secret
from imagen.domain.usage import UsageEntry
from imagen.errors import SinkError
from imagen.sinks.refusals import MAKE_IT, is_unfit, missing, redacted
from imagen.sinks.schema import COLUMNS, PAGE, SCHEMA, TABLE, from_row, to_row

if TYPE_CHECKING:
    from postgrest import AsyncPostgrestClient

SECONDS = 10.0
"""What takes longer has failed."""
_SELECTED = tuple(
    # As text: a JSON number of dollars would be read as a float.
    f"{name}::text" if name == "cost_usd_estimate" else name
    for name in COLUMNS
)
_IN_A_HEADER = re.compile(r"[!-~]+")
_HINTS = {
    "PGRST106": f"In the project's API settings, add {SCHEMA} to the exposed schemas.",
    "PGRST204": f"Run it in the SQL editor: {MAKE_IT}.",
    "PGRST205": f"Run it in the SQL editor: {MAKE_IT}.",
    "42P01": f"Run it in the SQL editor: {MAKE_IT}.",
    "42703": f"Run it in the SQL editor: {MAKE_IT}.",
    "42501": "supabase.service_role_key must be the key of the service role; "
    "where it is, run in the SQL editor what `imagen sink schema` prints.",
    "401": "Check supabase.service_role_key (SUPABASE_SERVICE_ROLE_KEY).",
    "PGRST301": "Check supabase.service_role_key (SUPABASE_SERVICE_ROLE_KEY).",
}
"""By codes of PostgREST, of PostgreSQL and of HTTP, what to do. Source: PostgREST's reference of errors."""


class SupabaseSink:
    """`ports.UsageSink` on one Supabase project. Safe to share between tasks of one loop.

    Args:
        url: of the project, such as `https://abc.supabase.co`.
        key: of its service role.
        seconds: how long one call may take.
    """

    def __init__(self, url: str, key: Secret, *, seconds: float = SECONDS) -> None:
        self.name = f"supabase:{Secret(url).fingerprint()}"
        self._base = f"{url}/rest/v1"
        self._key = key
        self._seconds = seconds
        self._client: AsyncPostgrestClient | None = None

    async def write(self, entries: Sequence[UsageEntry]) -> None:
        """See the port."""
        if not entries:
            return
        rows = [{name: _as_json(value) for name, value in to_row(entry).items()} for entry in entries]
        async with self._connected() as client:
            await (
                client.from_(TABLE)
                .upsert(rows, ignore_duplicates=True, on_conflict="id", returning=_minimal())
                .execute()
            )

    async def read(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[UsageEntry]:
        """See the port."""
        found: list[UsageEntry] = []
        after: dict[str, Any] | None = None
        while limit is None or len(found) < limit:
            rows = await self._page(since, after, PAGE if limit is None else min(PAGE, limit - len(found)))
            if not rows:
                break  # a page that is not full says nothing: the server may allow less than was asked for
            found += map(from_row, rows)
            after = rows[-1]
        return found

    async def migrate(self) -> None:
        """See the port: the REST API makes no tables."""
        raise SinkError(
            "Supabase makes no tables through its REST API",
            hint="Run what `imagen sink schema` prints in the project's SQL editor.",
        )

    async def aclose(self) -> None:
        """See the port."""
        client, self._client = self._client, None
        if client is not None:
            await client.session.aclose()

    async def _page(
        self, since: datetime | None, after: dict[str, Any] | None, size: int
    ) -> list[dict[str, Any]]:
        async with self._connected() as client:
            query = client.from_(TABLE).select(*_SELECTED)
            if since is not None:
                query = query.gte("created_at", since.isoformat())
            if after is not None:
                at, last = after["created_at"], after["id"]
                query = query.or_(f'created_at.lt."{at}",and(created_at.eq."{at}",id.lt.{last})')
            ordered = query.order("created_at", desc=True).order("id", desc=True).limit(size)
            answer = await ordered.execute()
        rows: Any = answer.data
        return [dict(row) for row in rows]

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncPostgrestClient]:
        """The client; what fails within becomes an error of ours."""
        try:
            import httpx  # noqa: PLC0415 - an extra, and slow to load
            from postgrest import APIError, AsyncPostgrestClient  # noqa: PLC0415 - as above
        except ImportError:
            raise SinkError(
                "writing to Supabase needs the extra `supabase`, which is not installed",
                hint=missing("supabase"),
            ) from None
        key = self._key.reveal()
        if not _IN_A_HEADER.fullmatch(key):
            # The libraries would quote it in their errors.
            raise SinkError(
                "the key of Supabase has characters that no key has, such as a line break",
                hint="Check supabase.service_role_key (SUPABASE_SERVICE_ROLE_KEY).",
            )
        if self._client is None:
            headers = {"apikey": key, "authorization": f"Bearer {key}"}
            self._client = AsyncPostgrestClient(
                self._base,
                schema=SCHEMA,
                headers=headers,
                # One of our own: it follows nobody elsewhere with our key, and what fails is ours to try again.
                http_client=httpx.AsyncClient(timeout=self._seconds),
                retry_enabled=False,
            )
        try:
            async with asyncio.timeout(self._seconds):
                yield self._client
        except TimeoutError:
            raise SinkError(f"Supabase did not answer within {self._seconds:g} s") from None
        except APIError as error:
            raise _translated(error.message or "it refused", error.code, key=key) from None
        except (httpx.HTTPError, OSError) as error:
            detail = redacted(str(error), secrets=[key]) or type(error).__name__
            raise SinkError(f"Supabase could not be reached: {detail}") from None


def _translated(said: str, code: str | None, *, key: str) -> SinkError:
    detail = redacted(said if code is None else f"{said} ({code})", secrets=[key])
    # What checks keys before PostgREST gives no codes.
    which = "401" if code is None and "API key" in said else code
    return SinkError(f"Supabase: {detail}", hint=_HINTS.get(which or ""), unfit=is_unfit(code))


def _minimal() -> Any:
    from postgrest import ReturnMethod  # noqa: PLC0415 - an extra

    return ReturnMethod.minimal


def _as_json(value: Any) -> Any:
    """Numbers, text and nothing as they are; ids, instants and decimals as their text, which PostgreSQL reads exactly."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, int | float | str | None) else str(value)
