"""What the handlers of the gateway share: the application, who may come in, and what is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from imagen.assembly import App
from imagen.errors import Draining
from imagen.limits.line import draining
from imagen.server.access import Door, Visitor

if TYPE_CHECKING:
    from imagen.server.metrics import Metrics

T = TypeVar("T")


class Gone(Exception):
    """The caller went away before the answer."""


class Context:
    """One per server.

    Args:
        app: the application.
        door: knows callers.
        metrics: counts.
        public_url: under which callers reach the gateway; None: as they say in `Host`.
    """

    def __init__(self, app: App, *, door: Door, metrics: Metrics, public_url: str | None = None) -> None:
        self.app = app
        self.door = door
        self.metrics = metrics
        self.public_url = public_url
        self.under_way: set[asyncio.Task[Any]] = set()
        self.drains = False

    def check_open(self) -> None:
        """Refuse new work while the process shuts down.

        Raises:
            Draining: it does.
        """
        if self.drains:
            raise draining()

    async def enter(self, request: Request, *, credentials: Any = None, leaving: bool = False) -> Visitor:
        """Let the caller of a request in, and remember for the log who it was.

        Args:
            request: what is asked.
            credentials: of the payload.
            leaving: it ends something, which is also done while the process shuts down.

        Raises:
            Unauthenticated, PermissionDenied: they may not.
            Draining: the process shuts down.
        """
        if not leaving:
            self.check_open()
        visitor = await self.door.admit(
            request.headers, credentials=credentials, route=request.scope["imagen.route"]
        )
        request.scope["imagen.caller"] = visitor.caller.name
        return visitor

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
        task = asyncio.get_running_loop().create_task(work)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        leaving = asyncio.get_running_loop().create_task(_left(request))
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return _result(task)
            if not goes_on:
                task.cancel()
            raise Gone
        except asyncio.CancelledError:
            if not goes_on:
                task.cancel()
            raise
        finally:
            leaving.cancel()

    def url_of(self, request: Request, path: str) -> str:
        """An address of the gateway as the caller of `request` reaches it."""
        base = self.public_url or f"{request.url.scheme}://{request.url.netloc}"
        return f"{base.rstrip('/')}{path}"


def _result(task: asyncio.Task[T]) -> T:
    try:
        return task.result()
    except asyncio.CancelledError:
        raise Draining(
            "the process is shutting down; what is under way goes on at the service and is taken up by the next one",
            retry_after=5.0,
        ) from None


async def _left(request: Request) -> None:
    """Until the caller has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
