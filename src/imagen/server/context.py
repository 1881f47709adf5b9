"""What the handlers of the gateway share: the application, who may come in, and what is under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from starlette.requests import Request

from imagen.assembly import App
from imagen.errors import Draining
from imagen.limits.line import draining
from imagen.server.access import Door, Visitor
from imagen.server.agent_calls import AgentCalls
from imagen.server.bodies import (
    MOST_BYTES,
    MOST_BYTES_OF_STRANGERS,
    STRANGERS_SECONDS,
    Room,
    read_body,
    read_object,
)
from imagen.server.kept import KeptAnswers, Refusals
from imagen.server.left_runs import LeftRuns
from imagen.server.orphans import Create, Orphans
from imagen.server.queries import check_names
from imagen.server.rates import Rates

if TYPE_CHECKING:
    from imagen.server.metrics import Metrics

T = TypeVar("T")
_MOST_BYTES_OF_WEBHOOKS = 32 * 1024 * 1024
_log = logging.getLogger(__name__)


class Gone(Exception):
    """The caller went away before the answer."""


class Context:
    """One per server.

    Args:
        app: the application.
        door: knows callers.
        metrics: counts.
        public_url: under which callers reach the gateway; None: as they say in `Host`.

    Attributes:
        under_way: tasks that the process waits for before it ends.
        draining: set once the process shuts down.
        broken: what is done in the background and has ended by a fault, until it goes on again.
        streams: how many answers are being streamed that have no end of their own.
        room_of_webhooks: for all that arrive at the same time.
        agent_calls: what agents have called and is under way.
        rates: what is left of the rates of accounts.
        orphans: creates whose callers went away before their answer.
        left_runs: the same of what is not durable.
        looks: looks at predictions that are being taken just now, by the id that was asked for.
        kept: answers of the service's API that are given again for a while.
        unknown_versions: `owner/name:version` that there were not a while ago.
    """

    def __init__(self, app: App, *, door: Door, metrics: Metrics, public_url: str | None = None) -> None:
        self.app = app
        self.door = door
        self.metrics = metrics
        self.public_url = public_url
        self.under_way: set[asyncio.Task[Any]] = set()
        self.draining = asyncio.Event()
        self.broken: set[str] = set()
        self.streams = 0
        self.room_of_webhooks = Room(_MOST_BYTES_OF_WEBHOOKS)
        self.kept = KeptAnswers(app.clock)
        self.unknown_versions = Refusals(app.clock)
        self.looks: dict[str, asyncio.Task[Any]] = {}
        self.rates = Rates(app.limits, app.clock)
        self.orphans = Orphans(app.clock)
        self.left_runs = LeftRuns(app.clock)
        self.agent_calls = AgentCalls(self.under_way, reason=handed_over)
        self._room_of_strangers = Room()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def drains(self) -> bool:
        """Whether the process shuts down; `draining` can be waited for."""
        return self.draining.is_set()

    @drains.setter
    def drains(self, drains: bool) -> None:
        if drains:
            self.draining.set()
        else:
            self.draining.clear()

    def check_open(self) -> None:
        """Refuse new work while the process shuts down.

        Raises:
            Draining: it does.
        """
        if self.drains:
            raise draining()

    async def enter(
        self,
        request: Request,
        *,
        credentials: Any = None,
        leaving: bool = False,
        any_key: bool = False,
        route: str | None = None,
    ) -> Visitor:
        """Let the caller of a request in, and remember for the log who it was.

        Args:
            request: what is asked.
            credentials: of the payload.
            leaving: it looks at something or ends it, which is also done while the process shuts down.
            any_key: every key may ask this, whatever paths it is good for.
            route: the path that a key must be good for, where that is not the one that is asked.

        Raises:
            Unauthenticated, PermissionDenied: they may not.
            InvalidInput: the query has a name that the operation does not know.
            Draining: the process shuts down.
        """
        if not leaving:
            self.check_open()
        visitor = await self.door.admit(
            request.headers,
            credentials=credentials,
            route=None if any_key else route or request.scope["imagen.route"],
        )
        request.scope["imagen.caller"] = visitor.caller.name
        check_names(request)
        return visitor

    def enter_admin(self, request: Request) -> None:
        """Let the admin in, and nobody else.

        Raises:
            Unauthenticated: it is somebody else.
            InvalidInput: the query has a name that the operation does not know.
        """
        self.door.require_admin(request.headers)
        check_names(request)

    async def arrive(self, request: Request, *, any_key: bool = False) -> tuple[Visitor, dict[str, Any]]:
        """Let the caller of a request in, and read what it wants.

        Whoever shows a key is let in, or not, before a byte of the body is read; who shows none may have credentials in
        it, and has less room.

        Args:
            request: what is asked.
            any_key: as in `enter`.

        Raises:
            Unauthenticated, PermissionDenied: they may not.
            Draining: the process shuts down.
            InvalidRequest: the body is no JSON object, or too large.
        """
        if self.door.sees_key(request.headers):
            visitor = await self.enter(request, any_key=any_key)
            return visitor, await read_object(request, limit_bytes=MOST_BYTES)
        fields = await read_object(
            request,
            limit_bytes=MOST_BYTES_OF_STRANGERS,
            room=self._room_of_strangers,
            seconds=STRANGERS_SECONDS,
        )
        credentials = fields.get("credentials")
        return await self.enter(request, credentials=credentials, any_key=any_key), fields

    async def receive(self, request: Request) -> tuple[Visitor, bytes]:
        """Let the caller of a request in, and read a body that is no JSON object, as `arrive` does.

        Raises:
            Unauthenticated, PermissionDenied: they may not.
            Draining: the process shuts down.
            InvalidRequest: the body is too large, or broke off.
        """
        if self.door.sees_key(request.headers):
            return await self.enter(request), await read_body(request, limit_bytes=MOST_BYTES)
        body = await read_body(
            request,
            limit_bytes=MOST_BYTES_OF_STRANGERS,
            room=self._room_of_strangers,
            seconds=STRANGERS_SECONDS,
        )
        return await self.enter(request), body

    async def stay(self, request: Request, work: Coroutine[Any, Any, T], *, goes_on: bool) -> T:
        """Do the work for as long as the caller stays.

        Args:
            request: whose connection is watched.
            work: what to do.
            goes_on: whether it is finished without the caller, as what is stored or part of a batch is.

        Raises:
            Gone: the caller went away; unless it goes on, the work was canceled, upstream too.
            Draining: the process ended first.
        """
        return await (self.attend(request, self.begin(work)) if goes_on else self._here(request, work))

    async def _here(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """In the request's own task, which is canceled when the caller leaves."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is served by a task")
        left = over = False

        def leave(_: object) -> None:
            nonlocal left
            if not over:
                left = True
                task.cancel()

        leaving = asyncio.get_running_loop().create_task(_left(request))
        leaving.add_done_callback(leave)
        self.under_way.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if left:
                task.uncancel()
                raise Gone from None
            if self.drains:
                task.uncancel()
                raise handed_over() from None
            raise
        finally:
            over = True
            self.under_way.discard(task)
            leaving.remove_done_callback(leave)
            leaving.cancel()

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """For what reads its request while it works, and so notices by itself who leaves: the process waits for it.

        Raises:
            Draining: the process ended first.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is served by a task")
        self.under_way.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self.drains:
                raise
            task.uncancel()
            raise handed_over() from None
        finally:
            self.under_way.discard(task)

    def alone(self, name: str) -> asyncio.Lock:
        """Keeps all but one of those who use the same name waiting."""
        return self._locks.setdefault(name, asyncio.Lock())

    @asynccontextmanager
    async def creating(self, request: Request, *, scope: str, fingerprint: str) -> AsyncIterator[Create]:
        """For a create until its answer is on its way: it is known when the caller leaves before, and sends it again.

        Args:
            request: with which it came.
            scope: whose it is.
            fingerprint: of what is asked for.

        Raises:
            Gone: the caller went away.
        """
        create = self.orphans.begin(request.headers, scope=scope, fingerprint=fingerprint)

        async def watch() -> None:
            await _left(request)
            create.leave()

        leaving = asyncio.get_running_loop().create_task(watch())
        try:
            yield create
            await asyncio.sleep(0)  # what has been heard of the connection by now is known after that
        except Gone:
            create.leave()
            raise
        finally:
            leaving.cancel()
            self.orphans.end(create)
        if create.gone:
            raise Gone

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do the work in a task of its own, which the process waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self.under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    async def attend(self, request: Request, task: asyncio.Task[T]) -> T:
        """What a task of `begin` comes to, for as long as the caller stays. It goes on without them.

        Raises:
            Gone: the caller went away.
            Draining: the process ended first.
        """
        leaving = asyncio.get_running_loop().create_task(_left(request))
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if leaving.done() or not task.done():
            raise Gone
        if task.cancelled():
            raise handed_over()
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("what was under way ended with %s", type(error).__name__)

    def url_of(self, request: Request, path: str) -> str:
        """An address of the gateway as the caller of `request` reaches it."""
        base = self.public_url or f"{request.url.scheme}://{request.url.netloc}"
        return f"{base.rstrip('/')}{path}"


def handed_over() -> Draining:
    """The error for work that the process could not finish before its end."""
    return Draining(
        "the process is shutting down; what is under way goes on at the service and is taken up by the next one",
        retry_after=5.0,
    )


async def _left(request: Request) -> None:
    """Until the caller has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
