"""What stories about unfinished predictions share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from imagen.assembly import App
from imagen.domain.prediction import Prediction
from imagen.domain.request import GenerationRequest
from imagen.instrumentation.clock import SystemClock
from imagen.service.deliver import Destination
from imagen.service.finish import Outcome

FOX = GenerationRequest(prompt="a fox")


class Shifted(SystemClock):
    """The real time, from elsewhere."""

    def __init__(self, by: timedelta = timedelta(0)) -> None:
        self.by = by

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


async def die(app: App, when: Callable[[], object], request: GenerationRequest = FOX) -> Prediction:
    """Start a request, and vanish like a killed process when `when` holds: nothing is cleaned up but the lock."""
    task = asyncio.ensure_future(app.gateway.generate(request, destination=Destination()))
    while not when():
        assert not task.done(), task
        await asyncio.sleep(0.005)
    (left,) = await app.store.unfinished()
    app.gateway._finisher._cancel_quietly = _nothing  # type: ignore[method-assign,assignment]
    app.store.save = _nothing  # type: ignore[method-assign,assignment]
    app.store.release = _nothing  # type: ignore[method-assign,assignment]
    app.limits.give_back = _nothing  # type: ignore[method-assign,assignment]
    task.cancel()
    await asyncio.wait([task])
    await app.__aexit__(None, None, None)
    return left


async def _nothing(*_args: Any, **_more: Any) -> None:
    return None


def stuck(backend: Any, moment: str) -> list[str]:
    """Creates that get no further than a moment, as those of a process that is gone then; the ids of those there.

    Args:
        backend: whose creates; of one application, so that the next process is none the wiser.
        moment: "before it left", "on its way" (where it stays) or "arrived".
    """
    submit, there = backend.submit, list[str]()

    async def stops(prediction: Prediction, **more: Any) -> Any:
        if moment != "before it left":
            more["on_send"]()
        if moment == "arrived":
            await submit(prediction, **more)
        there.append(prediction.id)
        await asyncio.Event().wait()

    backend.submit = stops
    return there


async def again(app: App, request: GenerationRequest = FOX, record: Any = None) -> Outcome:
    async with app:
        (outcome,) = await app.gateway.generate(request, destination=Destination(), observer=record)
        return outcome
