"""One database: a single writer thread that commits in groups, and a few readers beside it.

Writes queue up; the writer takes all that wait, runs them in one transaction and answers only after the commit, so that
whoever is answered is durable. One `fsync` serves many callers (measured: 12-16 µs CPU a row with 60-1,000 waiting). Each
reader keeps a connection of its own, as to take one out of a pool costs more than most reads do.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from imagen.errors import StoreBusy, StoreError
from imagen.store.cells import read_cells
from imagen.store.migrate import migrate

T = TypeVar("T")
BUSY_SECONDS = 10
_MOST_IN_GROUP = 256
_READERS = 4
_SWITCH_PAUSE_SECONDS = 0.02
_CACHE_KIB = 512
"""Of each connection; a dozen of them with SQLite's own 2 MiB would be a third of a gateway's memory."""

Job = tuple[Callable[[Connection], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Database:
    """A SQLite file, opened and migrated at first use. Safe to share between tasks of several loops.

    Args:
        path: the file; its folder is made, private to the user, when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine: Engine | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._opening = threading.Lock()
        self._door = threading.Lock()
        """Held for a moment: what is asked is asked of an open database, and answered before that is closed."""
        self.told: Callable[[Exception | None], None] = _unheard
        """Told what became of each group of writes, and of what failed otherwise: from any thread, and it must not raise.

        Whoever wants to be told says so before the database is used.
        """
        self.writing_since: float | None = None
        """Since when, by the monotonic clock, the writer is at its present group; None while nothing is to be written."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def is_open(self) -> bool:
        """Whether it was used already."""
        return self._engine is not None

    async def open(self) -> None:
        """Open and migrate it now, instead of at its first use.

        Raises:
            StoreBusy, StoreError: it cannot be used.
        """
        if self._engine is None:
            try:
                await asyncio.to_thread(self._open)
            except StoreError as error:
                self.told(error)
                raise

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run `job` in a transaction of the writer; returns after its commit.

        It may run twice, when another job of its group fails, so it must do nothing but talk to the database.

        Raises:
            StoreBusy, StoreError: it was not written.
        """
        # Whoever stops waiting leaves the job where it is: a write that was asked for is made.
        return await asyncio.shield(await self._asked(self._jobs, job))

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run `job` in a transaction that sees one state of the database, beside the writer.

        Raises:
            StoreBusy, StoreError: it could not be read.
        """
        return await (await self._asked(self._reads, job))

    async def cells(self) -> list[tuple[str, bytes]]:
        """Everything that is written there, as `table.column` and bytes; also when it is closed."""
        return await asyncio.to_thread(lambda: list(read_cells(self._path)))

    def close(self) -> None:
        """Do what was asked for, then close."""
        with self._opening:
            with self._door:
                engine, self._engine = self._engine, None
                if engine is None:
                    return
                self._jobs.put(None)
                for _ in range(_READERS):
                    self._reads.put(None)
            for thread in self._threads:
                thread.join()
            engine.dispose()

    async def _asked(
        self, jobs: queue.SimpleQueue[Job | None], job: Callable[[Connection], T]
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        while True:
            await self.open()
            with self._door:
                if self._engine is not None:
                    jobs.put((job, future, loop))
                    return future

    def _open(self) -> None:
        with self._opening:
            if self._engine is not None:
                return
            with _translated(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._path.touch(mode=0o600, exist_ok=True)
                engine = _engine(self._path)
                try:
                    migrate(engine, lock=self._path.with_suffix(".lock"))
                except BaseException:
                    engine.dispose()
                    raise
            self._threads = [
                threading.Thread(
                    target=self._write_in_turn, args=(engine,), name="imagen-writer", daemon=True
                ),
                *(
                    threading.Thread(
                        target=self._read_in_turn, args=(engine,), name="imagen-reader", daemon=True
                    )
                    for _ in range(_READERS)
                ),
            ]
            for thread in self._threads:
                thread.start()
            with self._door:
                self._engine = engine

    def _write_in_turn(self, engine: Engine) -> None:
        ending = False
        with _Kept(engine, self._path) as kept:
            while not ending:
                first = self._jobs.get()
                if first is None:
                    return
                group = [first]
                while len(group) < _MOST_IN_GROUP and not self._jobs.empty():
                    following = self._jobs.get()
                    if following is None:
                        ending = True
                        break
                    group.append(following)
                self._commit(kept, group)

    def _commit(self, kept: _Kept, group: list[Job]) -> None:
        """One transaction for all of a group. When one of them fails, each gets a transaction of its own.

        Where none could begin, as somebody else holds the database, each would only wait as long again.
        """
        self.writing_since = time.monotonic()
        results: list[Any] = [None] * len(group)
        failed = None
        try:
            with kept.begun() as connection:
                results = [job(connection) for job, _, _ in group]
        except Exception as error:  # noqa: BLE001 - handed to the one who asked
            if len(group) > 1 and not isinstance(error, StoreBusy):
                for job in group:
                    self._commit(kept, [job])
                return
            failed = error
        self.writing_since = None  # before anybody is answered, who may ask how long it has been
        self.told(failed)
        _answer(group, results, failed)

    def _read_in_turn(self, engine: Engine) -> None:
        with _Kept(engine, self._path, reading=True) as kept:
            while (asked := self._reads.get()) is not None:
                job, future, _ = asked
                if future.cancelled():
                    continue
                result, failed = None, None
                try:
                    with kept.begun() as connection:
                        result = job(connection)
                except Exception as error:  # noqa: BLE001 - handed to the one who asked
                    failed = error
                    if isinstance(error, StoreError):
                        self.told(error)
                _answer([asked], [result], failed)


class _Kept:
    """A connection of one thread's own, made when it is needed and made anew after a fault.

    Args:
        engine: makes it.
        path: of the database, for what went wrong.
        reading: it writes nothing, and keeps nobody from writing.
    """

    def __init__(self, engine: Engine, path: Path, *, reading: bool = False) -> None:
        self._engine = engine
        self._path = path
        self._reading = reading
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    @contextmanager
    def begun(self) -> Iterator[Connection]:
        """A transaction, which is committed at the end of the block.

        Raises:
            StoreBusy, StoreError: it could not begin, or did not come to its end.
        """
        with _translated(self._path):
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(reading=self._reading)
            connection = self._connection
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                if connection.closed or connection.invalidated or connection.in_transaction():
                    self._drop()
                raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError, sqlite3.Error):
                connection.close()


def _unheard(_: Exception | None) -> None:
    """Nobody wants to know."""


def _answer(group: list[Job], results: list[Any], error: BaseException | None) -> None:
    """Tell those who asked; each loop is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for (_, future, loop), result in zip(group, results, strict=True):
        by_loop.setdefault(loop, []).append((future, result))

    def settle(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
        for future, result in answers:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    for loop, answers in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answers)


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite+pysqlite:///{path}", connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = not connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite waits for nobody there, and two processes may meet on a new file."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
            time.sleep(_SWITCH_PAUSE_SECONDS)
        else:
            return


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What the database and its library raise, as ours."""
    try:
        yield
    except DBAPIError as error:
        raise _ours(str(error.orig), path) from error
    except sqlite3.Error as error:
        raise _ours(str(error), path) from error
    except SQLAlchemyError as error:
        raise StoreError(f"the database {path} failed: {type(error).__name__}") from error
    except OSError as error:
        raise StoreError(
            f"the database {path} cannot be used: {error.strerror}",
            hint=_WRITABLE,
        ) from error


_ROOM = "Free some space, or set IMAGEN_DATA_DIR to another disk."
_WRITABLE = "Set IMAGEN_DATA_DIR to a folder that can be written."
_FAULTS = (
    (("full",), "the disk of {path} is full", _ROOM),
    (("disk I/O",), "the disk of {path} takes nothing more: {text}", f"It may be full or broken. {_ROOM}"),
    (
        ("readonly", "unable to open", "not authorized"),
        "the database {path} cannot be written: {text}",
        _WRITABLE,
    ),
    (
        ("malformed", "not a database"),
        "the file {path} is damaged or no database: {text}",
        "Move it away; a new one is made at the next start.",
    ),
)
"""SQLite's words, what they mean, and what to do."""


def _ours(text: str, path: Path) -> StoreError:
    if "locked" in text or "busy" in text:
        return StoreBusy(
            f"the database {path} has been held by another process for more than {BUSY_SECONDS} s",
            hint="Try again.",
        )
    for words, sentence, hint in _FAULTS:
        if any(word in text for word in words):
            return StoreError(sentence.format(path=path, text=text), hint=hint)
    return StoreError(f"the database {path} failed: {text}")
