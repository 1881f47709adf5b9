"""The output of a prediction as server-sent events: `urls.stream`."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.inside import is_file
from imagen.domain.prediction import Status
from imagen.errors import NotFound
from imagen.server.access import Visitor, owns
from imagen.server.context import Context
from imagen.server.operation import Operation
from imagen.server.replicate.finding import find, sees
from imagen.server.replicate.problems import NOT_FOUND, problem_answer
from imagen.server.replicate.relay import PREFIX, TAG
from imagen.server.sse import EventStream, Sent, read_last_event_id
from imagen.service.replicate_shapes import Known, Output, output_so_far, shape, standing

_LOOK_SECONDS = 1.0
"""So often it is looked at without news: another process may follow it."""
_KEY = "key"


class _Stamp(NamedTuple):
    """What changes with all that is written down of a prediction on its way, and can be had without its input."""

    status: Status | None
    ended: int


class _Look(NamedTuple):
    """A prediction as it stood not before a stamp; without one it is looked at once more."""

    found: Known
    stamp: _Stamp | None


async def stream(context: Context, request: Request) -> Response:
    """`GET /predictions/{prediction_id}/stream`: what it puts out, as it comes, and its end."""
    wanted = request.path_params["prediction_id"]
    visitor, look = await _let_in(context, request, wanted)
    last = read_last_event_id(request)
    return EventStream(context, _events(context, request, visitor, look, position=last))


async def _let_in(context: Context, request: Request, wanted: str) -> tuple[Visitor | None, _Look]:
    """Who reads it; None for whoever shows the key of its address, as official clients send no token there.

    Raises:
        Unauthenticated, PermissionDenied: they may not come in.
        NotFound: there is no such prediction, or it is somebody else's.
    """
    shown = request.query_params.get(_KEY)
    visitor = await context.enter(request) if shown is None else None
    try:
        look = await _look(context, wanted)
    except NotFound:
        if visitor is None:
            await context.enter(request)
        raise
    batch, prediction = look.found.batch, look.found.prediction
    if visitor is None:
        kept = "" if batch is None else batch.remembered.stream_key or ""
        if batch is not None and kept and hmac.compare_digest((shown or "").encode(), kept.encode()):
            request.scope["imagen.caller"] = batch.caller.name
            return None, look
        visitor = await context.enter(request)
    if batch is not None:
        theirs = sees(visitor, batch)
    else:
        theirs = prediction is not None and owns(visitor, prediction)
    if not theirs:
        raise NotFound(NOT_FOUND)
    return visitor, look


async def _look(context: Context, wanted: str, before: Known | None = None) -> _Look:
    """The whole prediction, which may be megabytes: whoever wants it at the same time has the same look.

    Raises:
        NotFound: there is none.
    """
    task = context.looks.get(wanted)
    if task is None:

        async def look() -> _Look:
            stamp = None if before is None else await _stamp(context, before)
            found = await find(context, None, wanted)
            if found is None:
                raise NotFound(NOT_FOUND)
            return _Look(found, stamp)

        context.looks[wanted] = task = asyncio.get_running_loop().create_task(look())
        task.add_done_callback(lambda _: context.looks.pop(wanted, None))
    told: _Look = await asyncio.shield(task)
    return told


async def _stamp(context: Context, found: Known) -> _Stamp:
    attempt = found.called if found.prediction is None else found.prediction.id
    status = await context.app.store.status(attempt)
    if found.batch is None:
        return _Stamp(status, 0)
    return _Stamp(status, (await context.app.batches.view(found.batch.id)).batch.sequence)


async def _looked_again(context: Context, last: _Look) -> _Look:
    """As it stands now; loaded anew only where something was written down since the last look."""
    found = last.found
    if last.stamp is None or _between_attempts(found) or await _stamp(context, found) != last.stamp:
        return await _look(context, found.id, found)
    if found.prediction is None:
        return last
    newer = context.app.live.newer(found.prediction)
    return _Look(msgspec.structs.replace(found, prediction=newer), last.stamp)


def _between_attempts(found: Known) -> bool:
    """Whether it goes on in another prediction than the one that is known."""
    return found.prediction is not None and found.prediction.status.terminal


async def _events(
    context: Context, request: Request, visitor: Visitor | None, look: _Look, *, position: int
) -> AsyncIterator[Sent]:
    """Each part of the output as it comes, from a position on, and how it ended.

    The position is that of a part of a list, or that of a character of a text: it is the id of each event.
    """
    base = context.url_of(request, "")
    own = visitor.backend if visitor is not None and visitor.own_token else None
    found = look.found
    # An earlier attempt is looked at under the id that was promised; looks are told under that of the present one.
    with context.app.live.watch(found.prediction.id if found.prediction else found.id) as changes:
        while True:
            over = standing(found).terminal
            output = Output(output_so_far(found.prediction))
            if over:
                output = await context.app.outputs.find(found, base=base, backend=own)
            for part, after in _parts(output.value, position):
                yield Sent(event="output", data=part, id=after, plain=True)
                position = after
            if over:
                break
            await changes.wait(seconds=_LOOK_SECONDS)
            look = await _looked_again(context, look)
            found = look.found
    body = shape(found, output, base=base, now=context.app.clock.now()).body
    for event in _ending(body, position):
        yield event


def _parts(value: Any, position: int) -> Iterator[tuple[str, int]]:
    """What an output has behind a position, each with the position after it."""
    if value is None:
        return
    if isinstance(value, str) and not is_file(value):
        if len(value) > position:
            yield value[position:], len(value)
        return
    parts = value if isinstance(value, list) else [value]
    for index in range(position, len(parts)):
        part = parts[index]
        yield part if isinstance(part, str) else msgspec.json.encode(part).decode(), index + 1


def _ending(body: dict[str, Any], position: int) -> Iterator[Sent]:
    """The last events, in the words of the service; with an id, because one client drops those that come without any."""
    status = body["status"]
    if status == Status.SUCCEEDED:
        yield Sent(event="done", data={}, id=position)
    elif status == Status.CANCELED:
        yield Sent(event="done", data={"reason": "canceled"}, id=position)
    else:
        yield Sent(event="error", data={"detail": body["error"]}, id=position)
        yield Sent(event="done", data={"reason": "error"}, id=position)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path=f"{PREFIX}/predictions/{{prediction_id}}/stream",
        handler=stream,
        summary="Stream the output of a prediction",
        tag=TAG,
        access="caller",
        answers={200: None},
        aliases=("/predictions/{prediction_id}/stream",),
        documented=False,
        media_type="text/event-stream",
        tells=problem_answer,
    ),
)
