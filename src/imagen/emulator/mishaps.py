"""How the faults of the wire are played: answers that are wrong, cut off, or never come."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus

import msgspec
from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.fault import Fault
from imagen.emulator.faults import (
    Cut,
    Drop,
    DropAfter,
    Garbage,
    Huge,
    PaymentRequired,
    RateLimit,
    Redirect,
    Status,
    StatusAfter,
)

CHUNK_BYTES = 65_536

_GARBAGE = {
    "html": ("text/html", b"<!doctype html><title>Just a moment...</title><h1>Checking your browser</h1>"),
    "text": ("text/plain", b"upstream connect error or disconnect/reset before headers"),
    "empty": ("application/json", b""),
    "half_json": ("application/json", b'{"id": "gm3qorzdhgbfurvjtvhg6dckhu", "status": "succ'),
}


async def answer_instead(fault: Fault, request: web.Request) -> web.StreamResponse:
    """Play a fault without doing what was asked."""
    match fault:
        case Status():
            return _with_status(fault.status, fault.body, fault.headers)
        case RateLimit():
            return _rate_limit(fault)
        case PaymentRequired():
            return _problem(problems.no_credit())
        case Garbage():
            return _garbage(fault)
        case Redirect():
            return web.Response(status=fault.status, headers={"Location": fault.location})
        case Huge():
            return await _huge(fault, request)
        case Drop():
            return _closed(request)
    raise AssertionError(f"{fault.name} does not answer instead")


async def answer_after(fault: Fault, request: web.Request, response: web.Response) -> web.StreamResponse:
    """Play a fault on the answer of what has been done."""
    match fault:
        case StatusAfter():
            return _with_status(fault.status, fault.body, fault.headers)
        case Garbage():
            return _garbage(fault)
        case DropAfter():
            return _closed(request)
        case Cut():
            return await _cut(request, response)
    raise AssertionError(f"{fault.name} does not answer after")


def _with_status(status: int, body: object, headers: dict[str, str]) -> web.Response:
    if body is None and status == HTTPStatus.NOT_FOUND:
        body = dict(problems.not_found().body)
    if body is None:
        known = status in HTTPStatus.__members__.values()
        body = {
            "title": HTTPStatus(status).phrase if known else "Error",
            "detail": "Emulated fault",
            "status": status,
        }
    if isinstance(body, str):
        return web.Response(text=body, status=status, content_type="text/html", headers=headers)
    kind = "application/json" if status < HTTPStatus.BAD_REQUEST else "application/problem+json"
    return web.Response(body=msgspec.json.encode(body), status=status, content_type=kind, headers=headers)


def _problem(problem: problems.Problem) -> web.Response:
    return _with_status(problem.status, dict(problem.body), dict(problem.headers))


def _rate_limit(fault: RateLimit) -> web.Response:
    body = dict(problems.throttled(fault.retry_after).body)
    body["detail"] = f"Request was throttled. Your rate limit resets in ~{fault.retry_after}s."
    body["retry_after"] = fault.retry_after
    if fault.where != "body":
        del body["retry_after"]
    if fault.where in {"header", "none"}:
        body["detail"] = "Request was throttled."
    headers = {"Retry-After": str(fault.retry_after)} if fault.where == "header" else {}
    return _with_status(429, body, headers)


def _garbage(fault: Garbage) -> web.Response:
    kind, content = _GARBAGE[fault.kind]
    return web.Response(body=content, content_type=kind)


async def _huge(fault: Huge, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # whoever has read enough goes away
        for start in range(0, fault.size, CHUNK_BYTES):
            await response.write(b" " * min(CHUNK_BYTES, fault.size - start))
        await response.write_eof()
    return response


async def _cut(request: web.Request, response: web.Response) -> web.StreamResponse:
    whole = response.body if isinstance(response.body, bytes) else b""
    headers = {**response.headers, "Content-Length": str(len(whole))}
    cut = web.StreamResponse(status=response.status, headers=headers)
    cut.force_close()
    with contextlib.suppress(ConnectionError):
        await cut.prepare(request)
        await cut.write(whole[: len(whole) // 2])
        await _flushed(request)
    _closed(request)
    return cut


async def _flushed(request: web.Request) -> None:
    while request.transport is not None and request.transport.get_write_buffer_size():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def _closed(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
