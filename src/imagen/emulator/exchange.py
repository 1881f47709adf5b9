"""The way of one request: read, let in, counted, struck by faults, answered, written down.

`Exchange` is what one request and its answer have in common for both servers, the API's and the file host's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import Any

import msgspec
from aiohttp import web

from imagen.decoding import decode
from imagen.emulator import problems
from imagen.emulator.clock import timestamp
from imagen.emulator.course import Run
from imagen.emulator.fault import CREATE, Fault, Slot, Subject
from imagen.emulator.faults import Delay
from imagen.emulator.journal import (
    KEPT_HEADERS,
    MAX_BODY_BYTES,
    Entry,
    fingerprint,
    legible,
    masked,
    same_operation,
)
from imagen.emulator.mishaps import answer_after, answer_instead
from imagen.emulator.problems import Problem
from imagen.emulator.state import Account
from imagen.emulator.world import World

CONTROL_PREFIX = "/_emulator"
"""Where the control plane is; its calls are not written down."""

UNKNOWN = "unknown"
"""The operation of a path that the API does not have."""

UNSIGNED = frozenset({"files.download", "search", "stream", UNKNOWN})
"""Operations that need no token: the link itself is the secret, or there is nothing to protect."""

MAX_JSON_BYTES = 20 * 1024 * 1024
"""Bodies of JSON above this size are refused with 413."""


@dataclass(eq=False)
class Exchange:
    """One request while it is being answered."""

    world: World
    request: web.Request
    server: str
    operation: str
    body: Any = None
    body_bytes: int = 0
    account: Account | None = None
    model: str = ""
    prompt: str = ""
    prediction: Run | None = None
    """The prediction or training it is about."""
    received_at: float = 0.0
    struck_by: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.received_at = self.world.clock.time()

    @property
    def owner(self) -> Account:
        """The account that asks; there is one on every call of the API."""
        if self.account is None:
            raise problems.no_token()
        return self.account

    @property
    def creates(self) -> bool:
        """Whether this call buys a prediction."""
        return same_operation(self.operation, CREATE)

    @property
    def name(self) -> str:
        """`owner/name` of the model or deployment that the path names."""
        return f"{self.part('owner')}/{self.part('name')}"

    def part(self, name: str) -> str:
        """A part of the path, such as `prediction_id`."""
        return self.request.match_info[name]

    def subject(self) -> Subject:
        """What faults are matched against."""
        return Subject(
            operation=self.operation,
            method=self.request.method,
            path=self.request.path,
            model=self.prediction.model if self.prediction else self.model,
            prompt=self.prediction.prompt if self.prediction else self.prompt,
            account=self.prediction.account if self.prediction else self.account.key if self.account else "",
        )

    def json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        """A JSON answer."""
        return json_response(value, status, headers or {})


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


async def answer(
    exchange: Exchange, prepare: Callable[[Exchange], None], handler: Handler
) -> web.StreamResponse:
    """Answer a request and write it down, whatever happens to it."""
    response: web.StreamResponse | None = None
    try:
        response = await _answer(exchange, prepare, handler)
    except Problem as problem:
        response = problem_response(problem)
        response.headers.update(exchange.headers)
    finally:
        if response is not None and not response.prepared and exchange.world.clock.offset_seconds:
            response.headers["Date"] = format_datetime(exchange.world.clock.now(), usegmt=True)
        if not exchange.request.path.startswith(CONTROL_PREFIX):
            exchange.world.journal.add(_entry(exchange, response))
    return response


async def _answer(
    exchange: Exchange, prepare: Callable[[Exchange], None], handler: Handler
) -> web.StreamResponse:
    if exchange.server == "api":
        _let_in(exchange)
    if exchange.operation == "models.search":
        await read_text(exchange)
    elif exchange.operation != "files.create":
        await read_json(exchange)
    prepare(exchange)
    if exchange.server == "api":
        _count(exchange)
    if exchange.creates:
        exchange.world.faults.read_prompt(exchange.subject())
    if isinstance(delay := strike(exchange, Slot.DELAY), Delay):
        await exchange.world.clock.sleep(delay.seconds)
    if fault := strike(exchange, Slot.INSTEAD):
        return await answer_instead(fault, exchange.request)
    response = await handler(exchange)
    if not isinstance(response, web.Response):  # a stream, which has been sent and struck
        return response
    response.headers.update(exchange.headers)
    if fault := strike(exchange, Slot.AFTER):
        return await answer_after(fault, exchange.request, response)
    return response


async def read_json(exchange: Exchange) -> None:
    """Read a JSON body, if there is one.

    Raises:
        Problem: 413 above 20 MiB, 400 for anything that is not JSON.
    """
    raw = await _read(exchange)
    if not raw:
        return
    try:
        exchange.body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise problems.malformed(f"JSON parse error: {problem}") from problem


async def read_text(exchange: Exchange) -> None:
    """Read a body of text; a JSON string counts as its text.

    Raises:
        Problem: 413 above 20 MiB.
    """
    text = (await _read(exchange)).decode("utf-8", "replace")
    with contextlib.suppress(msgspec.DecodeError):
        text = decode(text, str)
    exchange.body = text


async def _read(exchange: Exchange) -> bytes:
    if not exchange.request.can_read_body:
        return b""
    try:
        raw = await exchange.request.read()
    except web.HTTPRequestEntityTooLarge as too_large:
        raise problems.too_large("The request body is larger than 20 MiB") from too_large
    exchange.body_bytes = len(raw)
    return raw


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    content = msgspec.json.encode(value)
    return web.Response(body=content, status=status, content_type="application/json", headers=headers)


def problem_response(problem: Problem) -> web.Response:
    """An error answer: `application/problem+json`, as recorded."""
    content = msgspec.json.encode(dict(problem.body))
    kind = "application/problem+json"
    return web.Response(body=content, status=problem.status, content_type=kind, headers=problem.headers)


def _let_in(exchange: Exchange) -> None:
    if exchange.operation in UNSIGNED:
        return
    header = exchange.request.headers.get("Authorization")
    if header is None:
        raise problems.no_token()
    scheme, _, token = header.partition(" ")
    if scheme.lower() not in {"bearer", "token"} or not exchange.world.lets_in(token.strip()):
        raise problems.invalid_token()
    exchange.account = exchange.world.state.account(fingerprint(token))


def _count(exchange: Exchange) -> None:
    if exchange.account is None:
        return
    mode = exchange.world.mode
    if exchange.creates and mode.no_credit:
        raise problems.no_credit()
    verdict = exchange.account.limits.take(mode, creates=exchange.creates)
    exchange.headers["ratelimit-remaining"] = str(verdict.remaining)
    exchange.headers["ratelimit-reset"] = str(max(1, math.ceil(verdict.reset_seconds)))
    if not verdict.allowed:
        raise problems.throttled(verdict.reset_seconds, low_credit=exchange.creates and mode.low_credit)


def strike(exchange: Exchange, slot: Slot) -> Fault | None:
    """The fault of a slot that strikes this request, if any; it is written down."""
    fault = exchange.world.faults.strike(slot, exchange.subject())
    if fault is not None:
        exchange.struck_by.append(fault.name)
    return fault


def _entry(exchange: Exchange, response: web.StreamResponse | None) -> Entry:
    request = exchange.request
    unanswered = not {"drop", "drop_after"}.isdisjoint(exchange.struck_by)
    kept = exchange.body_bytes <= MAX_BODY_BYTES
    return Entry(
        at=timestamp(exchange.received_at),
        server=exchange.server,
        operation=exchange.operation,
        method=request.method,
        path=request.path,
        query=dict(request.query),
        headers={name: legible(request.headers[name]) for name in KEPT_HEADERS if name in request.headers},
        authorization=masked(request.headers.get("Authorization")),
        body=exchange.body if kept else {"left_out_bytes": exchange.body_bytes},
        status=0 if unanswered else response.status if response is not None else 500,
        prediction_id=exchange.prediction.id if exchange.prediction else None,
        fault=", ".join(exchange.struck_by) or None,
    )
