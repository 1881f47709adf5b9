"""What agents have called and is under way: so that they can cancel it, and the process waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from cachetools import FIFOCache

from imagen.agents.open_calls import OpenCalls
from imagen.errors import Draining, ImagenError, PredictionCanceled, WaitTimeout

_MOST_ENDED = 1000
"""Calls that are remembered after their end, as what cancels them may come a little late."""


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

    Attributes:
        open: those that buy something.
    """

    def __init__(self, under_way: set[asyncio.Task[Any]], *, reason: Callable[[], ImagenError]) -> None:
        self._under_way = under_way
        self._reason = reason
        self._tasks: dict[AgentCall, asyncio.Task[Any]] = {}
        self._canceled: set[asyncio.Task[Any]] = set()
        self._ended: FIFOCache[AgentCall, None] = FIFOCache(_MOST_ENDED)
        self.open = OpenCalls()

    def cancel(self, call: AgentCall) -> bool:
        """Cancel a call, if it is one of this process and its client can be told from others.

        Returns:
            Whether it is, or was until just now.
        """
        if not call.session:
            return False
        if (task := self._tasks.get(call)) is None:
            return call in self._ended
        self._canceled.add(task)
        task.cancel()
        return True

    def begin(self, call: AgentCall, task: asyncio.Task[Any]) -> Callable[[Sequence[str]], ImagenError]:
        """A call runs.

        Returns:
            What tells why its task was canceled, given the ids of the predictions that it has sent.
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
            self._ended.setdefault(call, None)

        task.add_done_callback(over)

        def why(sent: Sequence[str]) -> ImagenError:
            if by_client:
                return PredictionCanceled("the client canceled the call")
            reason = self._reason()
            return paid_for(reason, sent) if isinstance(reason, Draining) and sent else reason

        return why


def paid_for(reason: ImagenError, sent: Sequence[str]) -> ImagenError:
    """What is told of a call that the process could not finish, and that has bought something: it must not come again."""
    ids = ", ".join(sent)
    return WaitTimeout(
        f"{reason.detail}: {ids}",
        prediction_id=sent[0],
        hint=f"It is paid for: do not ask for it again; get_prediction tells what became of {ids}.",
    )
