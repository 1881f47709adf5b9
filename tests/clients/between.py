"""Stands between a client and a service: passes everything on, and holds each answer against Replicate's document."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

import replicate_document

_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"}
_MOST_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class Passed:
    """One answer that went through.

    Attributes:
        method, path: as the client asked, with the query.
        request_headers, headers: of the request and the answer, names in lower case.
        complaints: what Replicate's document has against it; None where it has no such path, or is not here.
    """

    method: str
    path: str
    request_headers: dict[str, str]
    status: int
    headers: dict[str, str]
    body: bytes
    complaints: list[str] | None


class Between:
    """A server that passes on to another.

    Args:
        target: `http://HOST:PORT` of the other.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.url = ""
        self.passed: list[Passed] = []

    def complaints(self) -> list[str]:
        """What the document has against the answers so far."""
        return [
            f"{one.method} {one.path} → {one.status}: {complaint}"
            for one in self.passed
            for complaint in one.complaints or ()
        ]

    async def serve(self, ready: threading.Event, ending: asyncio.Event) -> None:
        """Listen until it is to end."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as session:
            self._session = session
            app = web.Application(client_max_size=_MOST_BYTES)
            app.router.add_route("*", "/{path:.*}", self._pass_on)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await ending.wait()
            await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in _OF_ONE_CONNECTION
        }
        headers["Accept-Encoding"] = "identity"
        body = await request.read()
        url = URL(self._target + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, allow_redirects=False
        ) as found:
            if found.content_type == "text/event-stream":
                return await self._stream(request, found)
            raw = await found.read()
            self._note(request, found, raw)
            # The emulator knows one address of itself, where the gateway goes by the name it was called.
            mine = raw.replace(self._target.encode(), self.url.encode())
            return web.Response(status=found.status, body=mine, headers=self._headers(found))

    async def _stream(self, request: web.Request, found: aiohttp.ClientResponse) -> web.StreamResponse:
        answer = web.StreamResponse(status=found.status, headers=self._headers(found))
        await answer.prepare(request)
        self._note(request, found, b"")
        async for piece in found.content.iter_any():
            await answer.write(piece)
        await answer.write_eof()
        return answer

    def _headers(self, found: aiohttp.ClientResponse) -> dict[str, str]:
        return {
            name: value.replace(self._target, self.url)
            for name, value in found.headers.items()
            if name.lower() not in _OF_ONE_CONNECTION
        }

    def _note(self, request: web.Request, found: aiohttp.ClientResponse, raw: bytes) -> None:
        self.passed.append(
            Passed(
                method=request.method,
                path=request.raw_path,
                request_headers={name.lower(): value for name, value in request.headers.items()},
                status=found.status,
                headers={name.lower(): value for name, value in found.headers.items()},
                body=raw,
                complaints=_judged(request, found, raw),
            )
        )


def _judged(request: web.Request, found: aiohttp.ClientResponse, raw: bytes) -> list[str] | None:
    if replicate_document.find_document() is None:
        return None
    path, method = request.rel_url.raw_path, request.method.lower()
    while path.startswith("/v1/"):
        path = path.removeprefix("/v1")
    template = replicate_document.template_of(path, method)
    if template is None or found.content_type == "text/event-stream":
        return None
    return replicate_document.complaints(
        method=method, template=template, status=found.status, kind=_kind(found), raw=raw
    )


def _kind(found: Any) -> str:
    """The media type as it was sent: aiohttp would tell one where there is none."""
    return str(found.headers.get("Content-Type", "")).partition(";")[0].strip()


@contextmanager
def between(target: str) -> Iterator[Between]:
    """One in a thread of its own until the block ends."""
    found, ready, loop = Between(target), threading.Event(), asyncio.new_event_loop()
    ending = asyncio.Event()

    def work() -> None:
        try:
            loop.run_until_complete(found.serve(ready, ending))
        finally:
            loop.close()

    thread = threading.Thread(target=work, name="between")
    thread.start()
    assert ready.wait(10)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
