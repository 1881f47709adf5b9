"""The output of a prediction as server-sent events: `urls.stream`."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.prediction import Status
from imagen.errors import NotFound
from imagen.server.access import Visitor
from imagen.server.context import Context
from imagen.server.operation import Operation
from imagen.server.replicate.predictions import find
from imagen.server.replicate.problems import NOT_FOUND, problem_answer
from imagen.server.replicate.relay import PREFIX, TAG
from imagen.server.sse import EventStream, Sent, read_last_event_id
from imagen.service.replicate_shapes import STREAM_KEY, Known, Output, output_so_far, shape, standing

_LOOK_SECONDS = 1.0
"""So often it is looked at without news: another process may follow it."""
_KEY = "key"
_ADDRESSES = ("https:", "http:", "data:")


async def stream(context: Context, request: Request) -> Response:
    """`GET /predictions/{prediction_id}/stream`: what it puts out, as it comes, and its end."""
    wanted = request.path_params["prediction_id"]
    visitor = await _let_in(context, request, wanted)
    found = await _looked_at(context, visitor, wanted)
    last = read_last_event_id(request)
    return EventStream(context, _events(context, request, visitor, found, position=last))


async def _let_in(context: Context, request: Request, wanted: str) -> Visitor | None:
    """Who reads it; None for whoever shows the key of its address, as official clients send no token there.

    Raises:
        Unauthenticated, PermissionDenied: they may not come in.
    """
    if (shown := request.query_params.get(_KEY)) is not None:
        place = (await context.app.batches.places([wanted])).get(wanted)
        kept = "" if place is None else str(place[0].details.get(STREAM_KEY, ""))
        if place is not None and kept and hmac.compare_digest(shown.encode(), kept.encode()):
            request.scope["imagen.caller"] = place[0].caller.name
            return None
    return await context.enter(request)


async def _looked_at(context: Context, visitor: Visitor | None, wanted: str) -> Known:
    """The prediction as it stands.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    found = await find(context, visitor, wanted)
    if found is None:
        raise NotFound(NOT_FOUND)
    return found


async def _events(
    context: Context, request: Request, visitor: Visitor | None, found: Known, *, position: int
) -> AsyncIterator[Sent]:
    """Each part of the output as it comes, from a position on, and how it ended.

    The position is that of a part of a list, or that of a character of a text: it is the id of each event.
    """
    base = context.url_of(request, "")
    own = visitor.backend if visitor is not None and visitor.own_token else None
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
            found = await _looked_at(context, visitor, found.id)
    body = shape(found, output, base=base, now=context.app.clock.now()).body
    for event in _ending(body, position):
        yield event


def _parts(value: Any, position: int) -> Iterator[tuple[str, int]]:
    """What an output has behind a position, each with the position after it."""
    if value is None:
        return
    if isinstance(value, str) and not value.startswith(_ADDRESSES):
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
