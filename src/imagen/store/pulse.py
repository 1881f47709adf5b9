"""How the database is: noticed at every write, and asked with a small one where nothing is written."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
import time
from datetime import timedelta
from typing import Literal

from sqlalchemy import Connection, delete
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from imagen.errors import StoreBusy, StoreError
from imagen.ports import Clock, StoreCondition
from imagen.store.database import BUSY_SECONDS, Database
from imagen.store.tables import gates

FRESH_SECONDS = 10.0
"""So long a write proves that others would pass."""
_AGAIN_SECONDS = 1.0
_MOMENT_SECONDS = 0.5
"""A write that takes longer waits for somebody: one of a thousand rows takes a tenth of that."""
_PROBE = "probe"
_PROBE_BYTES = 16 << 10
"""More than a page: the file, or its log, has to find room for it."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

State = Literal["ok", "busy", "full", "failing"]


class DatabasePulse:
    """`ports.Pulse` of one database.

    Args:
        database: tells from now on what becomes of its writes.
        clock: tells the time.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._condition = StoreCondition(state="ok", since=clock.now())
        self._written_at = self._probed_at = float("-inf")
        self._probe: asyncio.Task[None] | None = None
        database.told = self._note

    @property
    def last(self) -> StoreCondition:
        """See the port."""
        return self._condition

    async def feel(self, *, within_seconds: float) -> StoreCondition:
        """See the port."""
        now = self._clock.monotonic()
        known = self._condition.state == "ok" and now - self._written_at < FRESH_SECONDS
        if self._probe is None or self._probe.done():
            # A write that waits already tells as much as one of ours.
            waits = self._waits() >= _MOMENT_SECONDS
            if not (known or waits or now - self._probed_at < _AGAIN_SECONDS):
                self._probed_at = now
                self._probe = asyncio.create_task(self._ask())
        if self._probe is not None and not self._probe.done():
            await asyncio.wait({self._probe}, timeout=within_seconds)
        waited = self._waits()
        if self._condition.state == "ok" and waited >= _MOMENT_SECONDS:
            return StoreCondition(
                state="busy",
                since=self._clock.now() - timedelta(seconds=waited),
                detail=f"a write to {self._database.path} waits for another process",
            )
        return self._condition

    def _waits(self) -> float:
        """For how many seconds the writer is at what it writes now."""
        since = self._database.writing_since
        return 0.0 if since is None else time.monotonic() - since

    async def _ask(self) -> None:
        try:
            await self._database.write(_rehearse)
        except StoreError:
            return  # noted by then
        except Exception as error:  # noqa: BLE001 - whatever it is, the database takes nothing
            self._become("failing", type(error).__name__)
        else:
            self._written_at = self._clock.monotonic()
            self._become("ok", None)

    def _note(self, error: Exception | None) -> None:
        """What became of a write, or why something else failed; from any thread."""
        if error is None:
            self._written_at = self._clock.monotonic()
            # What is full takes small things now and then; that it has room again shows where it is asked for some.
            if self._condition.state not in {"ok", "full"}:
                self._become("ok", None)
        elif (state := _state_of(error)) is not None:
            self._become(state, str(error))

    def _become(self, state: State, detail: str | None) -> None:
        with self._lock:
            since = self._condition.since
            if self._condition.state != state:
                # Whoever is told that it is busy has waited for it.
                since = self._clock.now() - timedelta(seconds=BUSY_SECONDS if state == "busy" else 0)
            self._condition = StoreCondition(state=state, since=since, detail=detail)


def _rehearse(connection: Connection) -> None:
    """Write something that takes room, and take it back in the same transaction: nobody ever sees it."""
    row = insert(gates).values(name=_PROBE, state="." * _PROBE_BYTES, used_at=0.0)
    connection.execute(row.on_conflict_do_update(set_={"state": row.excluded["state"]}))
    connection.execute(delete(gates).where(gates.c.name == _PROBE))


def _state_of(error: Exception) -> State | None:
    """What an error says of the database; None where it was no fault of the database."""
    if isinstance(error, StoreBusy):
        return "busy"
    cause = error.__cause__
    origin = cause.orig if isinstance(cause, DBAPIError) else cause
    if not isinstance(error, StoreError) or cause is None or isinstance(origin, sqlite3.IntegrityError):
        return None
    if (isinstance(origin, OSError) and origin.errno in _NO_ROOM) or "is full" in str(origin):
        return "full"
    known = isinstance(origin, sqlite3.Error | OSError) or isinstance(cause, DBAPIError)
    return "failing" if known else None
