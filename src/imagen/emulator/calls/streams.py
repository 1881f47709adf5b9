"""`urls.stream`: what a prediction gives, as server-sent events, while it comes.

Facts (docs, topics/predictions/streaming): the events are `output`, `error` and `done`, their ids are
`timestamp:sequence`; a stream that is silent for 30 seconds ends with the comment `:408: 408 Request Timeout`. The
address itself is the secret: clients send no token there (JS 1.4.0).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.course import Prediction, Status
from imagen.emulator.exchange import Exchange, strike
from imagen.emulator.fault import Slot
from imagen.emulator.shapes import output_values
from imagen.emulator.showing import data_uris

SILENCE_SECONDS = 30.0
"""How long nothing may happen, on the virtual clock."""

_SILENT = b":408: 408 Request Timeout\n\n"
_REASONS = {Status.FAILED: "error", Status.CANCELED: "canceled", Status.ABORTED: "canceled"}


@dataclass(frozen=True)
class Event:
    """One event; `at` is when it happened, in seconds since 1970."""

    at: float
    name: str
    data: str

    def lines(self, sequence: int) -> bytes:
        """As it is sent: the data of several lines goes on as many."""
        data = "".join(f"data: {line}\n" for line in self.data.split("\n"))
        return f"event: {self.name}\nid: {round(self.at * 1000)}:{sequence}\n{data}\n".encode()


async def stream(exchange: Exchange) -> web.StreamResponse:
    """`GET urls.stream`; with `Last-Event-ID` it goes on behind that event."""
    prediction = exchange.world.state.delivered.get(exchange.part("key"))
    if not isinstance(prediction, Prediction):
        raise problems.not_found()
    exchange.prediction = prediction
    is_cut = strike(exchange, Slot.AFTER) is not None
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    with contextlib.suppress(ConnectionError):  # whoever has read enough goes away
        await response.prepare(exchange.request)
        await _send(exchange, prediction, response, is_cut=is_cut)
        await response.write_eof()
    return response


async def _send(
    exchange: Exchange, prediction: Prediction, response: web.StreamResponse, *, is_cut: bool
) -> None:
    clock = exchange.world.clock
    sent, silent_since = _already_had(exchange), clock.time()
    while True:
        now = clock.time()
        events = events_until(prediction, now, await data_uris(exchange.world, prediction, now))
        for sequence, event in enumerate(events[sent:], start=sent):
            await response.write(event.lines(sequence))
            silent_since = now
            if is_cut:
                response.force_close()
                if exchange.request.transport is not None:
                    exchange.request.transport.close()
                return
        sent = max(sent, len(events))
        if prediction.has_ended(now):
            return
        if now >= silent_since + SILENCE_SECONDS:
            await response.write(_SILENT)
            return
        await clock.pause(min(_next_at(prediction, now), silent_since + SILENCE_SECONDS))


def events_until(prediction: Prediction, now: float, inline: Sequence[str] = ()) -> list[Event]:
    """Everything that has happened until `now`, in order; `inline` are the files as data URIs."""
    return [*_outputs(prediction, now, inline), *_end(prediction, now)]


def _outputs(prediction: Prediction, now: float, inline: Sequence[str]) -> Iterator[Event]:
    course = prediction.course
    if course.output in {"empty", "null"}:
        return
    if course.output == "given":
        if prediction.has_output(now):
            given = course.given if isinstance(course.given, list) else [course.given]
            texts = [value if isinstance(value, str) else json.dumps(value) for value in given]
            yield from (Event(prediction.outputs_at, "output", text) for text in texts)
    elif prediction.made_by.makes_files:
        if prediction.has_output(now):
            values = output_values(prediction, inline)
            yield from (Event(prediction.outputs_at, "output", value) for value in values)
    else:
        for index, piece in enumerate(prediction.pieces_at(now)):
            yield Event(prediction.piece_comes_at(index), "output", piece)


def _end(prediction: Prediction, now: float) -> Iterator[Event]:
    if not prediction.has_ended(now):
        return
    status, at = prediction.status_at(now), prediction.ends_at
    if status is Status.FAILED:
        yield Event(at, "error", json.dumps({"detail": prediction.course.error}))
    reason = _REASONS.get(status)
    yield Event(at, "done", json.dumps({} if reason is None else {"reason": reason}))


def _next_at(prediction: Prediction, now: float) -> float:
    """When something may happen next."""
    instants = [prediction.outputs_at, prediction.ends_at]
    there = len(prediction.pieces_at(now))
    if there < len(prediction.pieces):
        instants.append(prediction.piece_comes_at(there))
    return min((instant for instant in instants if instant > now), default=prediction.ends_at)


def _already_had(exchange: Exchange) -> int:
    """How many events the client says it has had."""
    _, _, sequence = exchange.request.headers.get("Last-Event-ID", "").rpartition(":")
    return int(sequence) + 1 if sequence.isdecimal() and len(sequence) < 9 else 0
