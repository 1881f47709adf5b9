"""What agents have called and is under way: so that they can cancel it, and the process waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from imagen.errors import ImagenError, PredictionCanceled


class AgentCall(msgspec.Struct, frozen=True):
    """One call among all: whose it is, in which session, by which id of the client's.

    There are no sessions here; the id that a client is given only tells its calls from those of others.
    """

    scope: str
    session: str
    request: str


class AgentCalls:
    """The calls of one process.

    Args:
        under_way: tasks that the process waits for before it ends.
        reason: why it cancels what is left then.
    """

    def __init__(self, under_way: set[asyncio.Task[Any]], *, reason: Callable[[], ImagenError]) -> None:
        self._under_way = under_way
        self._reason = reason
        self._tasks: dict[AgentCall, asyncio.Task[Any]] = {}
        self._canceled: set[asyncio.Task[Any]] = set()

    def cancel(self, call: AgentCall) -> None:
        """Cancel a call, if it is one of this process and its client can be told from others."""
        if call.session and (task := self._tasks.get(call)) is not None:
            self._canceled.add(task)
            task.cancel()

    def begin(self, call: AgentCall, task: asyncio.Task[Any]) -> Callable[[], ImagenError]:
        """A call runs.

        Returns:
            What tells why its task was canceled.
        """
        self._under_way.add(task)
        self._tasks[call] = task
        by_client = False

        def over(_: object) -> None:
            nonlocal by_client
            by_client = task in self._canceled
            self._canceled.discard(task)
            self._under_way.discard(task)
            if self._tasks.get(call) is task:
                del self._tasks[call]

        task.add_done_callback(over)
        return lambda: PredictionCanceled("the client canceled the call") if by_client else self._reason()
