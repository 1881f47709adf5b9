"""`stream: true`: the end of each picture as an event, and comments on the way.

The service gives no partial pictures, so that there are none here. Progress goes out as comments, which clients pass over:
they would take an event that they do not know for a picture.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from imagen.domain.events import Event, Progressed, Submitted
from imagen.errors import ImagenError
from imagen.server.context import Context, Gone
from imagen.server.headers import PREDICTION_ID
from imagen.server.openai.answers import NO_TOKENS, besides, created, facts
from imagen.server.openai.errors import error_object
from imagen.server.openai.job import Job
from imagen.server.openai.making import FailedError, Made, Making, fetch_pictures
from imagen.server.openai.pictures import Part, Whole, close_all, sent
from imagen.server.results import Turn
from imagen.server.sse import HEADERS, HEARTBEAT_SECONDS, MEDIA_TYPE, STILL_HERE, check_room, counted


class Progress(Turn):
    """A `Turn` that can be waited for: for the first purchase, and for news of how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.news = asyncio.Event()
        self.percent: int | None = None

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        super().notify(event)
        if isinstance(event, Submitted):
            self.begun.set()
        elif isinstance(event, Progressed) and event.fraction is not None:
            percent = round(event.fraction * 100)
            if percent != self.percent:
                self.percent = percent
                self.news.set()


async def streamed(context: Context, request: Request, job: Job, making: Making) -> Response:
    """The answer as a stream. What goes wrong before anything is bought is an answer like any other.

    Raises:
        QueueFull: too many streams are open.
        FailedError: there is no picture.
        ImagenError: it was refused.
    """
    check_room(context)
    progress = Progress()
    work = asyncio.get_running_loop().create_task(_whole(context, request, job, making, progress))
    begun = asyncio.get_running_loop().create_task(progress.begun.wait())
    try:
        await asyncio.wait({work, begun}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _ended(work)
        raise
    finally:
        begun.cancel()
    if work.done() and work.exception() is not None:
        work.result()
    return _Stream(context, job, work, progress)


async def _whole(
    context: Context, request: Request, job: Job, making: Making, progress: Progress
) -> tuple[Made, list[Whole]]:
    """What was made, with its pictures here."""
    return await fetch_pictures(context, request, job, await making(progress))


class _Stream(StreamingResponse):
    """Comments until the work has ended, then an event for each picture, or one that tells why there is none."""

    def __init__(
        self,
        context: Context,
        job: Job,
        work: asyncio.Task[tuple[Made, list[Whole]]],
        progress: Progress,
    ) -> None:
        self._context = context
        self._job = job
        self._work = work
        self._progress = progress
        self._kind = "image_generation" if job.asked.given is None else "image_edit"
        self._lines = self._events()
        headers = {**HEADERS, **job.headers()}
        if work.done():
            headers |= work.result()[0].headers
        elif progress.prediction_id is not None:
            headers[PREDICTION_ID] = progress.prediction_id
        super().__init__(self._lines, 200, headers, MEDIA_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the work listens
        """The answer, as ASGI has it."""
        try:
            # Who has left is noticed by the work itself, which listens for that while it goes on.
            with counted(self._context):
                await self.stream_response(send)
        except Gone:
            return
        finally:
            await self._lines.aclose()
            await _ended(self._work)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        yield b": working\n\n"
        while not self._work.done():
            news = asyncio.ensure_future(self._progress.news.wait())
            await asyncio.wait(
                {self._work, news}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            told = news.done()
            news.cancel()
            self._progress.news.clear()
            if not self._work.done():
                yield b": %d%%\n\n" % (self._progress.percent or 0) if told else STILL_HERE
        try:
            made, pictures = self._work.result()
        except FailedError as failed:
            yield _error(failed.error, failed.besides())
            return
        except ImagenError as error:
            yield _error(error, {"cost_usd": 0.0})
            return
        async for piece in sent(self._parts(made, pictures)):
            yield piece

    def _parts(self, made: Made, pictures: Sequence[Whole]) -> list[Part]:
        """All events."""
        kind, wish = f"{self._kind}.completed", self._job.asked.wish
        parts: list[Part] = []
        for index, picture in enumerate(pictures):
            told: dict[str, Any] = {
                "created_at": created(made),
                "background": "auto",
                "quality": "auto",
                "size": wish.size or "auto",
                "output_format": wish.output_format or "png",
                **facts(self._job, [picture]),
                "usage": NO_TOKENS,
                "image_index": index,
                "imagen": besides(self._job, made),
            }
            parts += [
                f'event: {kind}\ndata: {{"type":"{kind}","b64_json":"'.encode(),
                picture,
                b'",' + msgspec.json.encode(told)[1:] + b"\n\n",
            ]
        return parts


def _error(error: ImagenError, besides: Mapping[str, Any]) -> bytes:
    told = error_object(error)
    told["imagen"] |= besides
    return b"event: error\ndata: " + msgspec.json.encode({"type": "error", "error": told}) + b"\n\n"


async def _ended(work: asyncio.Task[tuple[Made, list[Whole]]]) -> None:
    """Break off what goes on, and give back what it has made."""
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        _, pictures = await work
        close_all(pictures)
