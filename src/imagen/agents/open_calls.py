"""Calls of this process that buy something, so that one can be stopped before the service has told its id."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from imagen.agents.progress import Progress
from imagen.errors import PredictionCanceled


class OpenCalls:
    """Those that are under way. For one event loop."""

    def __init__(self) -> None:
        self._calls: dict[asyncio.Task[Any], Progress] = {}
        self._stopped: dict[asyncio.Task[Any], str] = {}

    @contextmanager
    def under_way(self, progress: Progress) -> Iterator[None]:
        """The task that runs the block buys what `progress` is told of.

        Raises:
            PredictionCanceled: `stop` was called for one of its predictions.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._calls[task] = progress
        try:
            yield
        except asyncio.CancelledError:
            if (prediction_id := self._stopped.get(task)) is None:
                raise
            raise PredictionCanceled("cancel_prediction stopped it", prediction_id=prediction_id) from None
        finally:
            del self._calls[task]
            self._stopped.pop(task, None)

    async def stop(self, prediction_id: str) -> bool:
        """Stop the call that a prediction belongs to, with all that it makes, and wait for its end.

        Returns:
            Whether there is one.
        """
        task = next((task for task, told in self._calls.items() if prediction_id in told.sent), None)
        if task is None:
            return False
        self._stopped.setdefault(task, prediction_id)
        task.cancel()
        await asyncio.wait({task})
        return True
