"""Requests to an API, and files from anywhere: the one file that knows the HTTP library (aiohttp).

Calls to the API take the short way of `exchange.py`; downloads, and whatever goes through a proxy, go through the library.
"""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec.structs import replace

from imagen.errors import ConnectFailed, DeliveryError, ExchangeFailed, InvalidResponse, TransportError
from imagen.transport.exchange import (
    BROKE_OFF,
    CLOSED,
    NO_ANSWER,
    NO_TLS,
    NOT_CONNECTED,
    REFUSED,
    UNRESOLVED,
    UNTRUSTED,
    ConnectionPool,
    Outflow,
    failure,
    sentence,
)
from imagen.transport.inflow import Inflow, is_packed, unpacked
from imagen.transport.message import (
    Download,
    HttpRequest,
    HttpResponse,
    HttpStream,
    is_loopback,
    origin,
)
from imagen.transport.public import is_public

KEEP_ALIVE_SECONDS = 50.0
MAX_REDIRECTS = 5
_CHUNK = 128 * 1024
_SLOWEST_UPLOAD = 64 * 1024
"""Bytes a second; whoever takes them slower than that takes none."""
_HEAD = 512
_OF_PACKED = frozenset({"content-encoding", "content-length"})
"""Header fields that are not those of what was unpacked."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
POST_SECONDS = 10.0
"""For all of a message to a stranger's address, from the name to the answer."""
_MOST_OF_AN_ANSWER = 64 * 1024
"""Bytes of a stranger's answer that are passed over so that the line can be used again."""
_STRANGERS_LINES_SECONDS = 2.0
"""How long such a line is kept: shorter than servers do, because a message on one that was just closed fails."""
_MOST_LOOK_UPS = 16
NOT_PUBLIC = "the address is not public"

FOREIGN_ERRORS: tuple[tuple[type[BaseException], type[TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, ConnectFailed),
    (aiohttp.ClientConnectorError, ConnectFailed),
    (aiohttp.InvalidURL, ConnectFailed),
    (aiohttp.ClientProxyConnectionError, ConnectFailed),
    (aiohttp.ClientPayloadError, ExchangeFailed),
    (aiohttp.ServerTimeoutError, ExchangeFailed),
    (aiohttp.ClientError, ExchangeFailed),
    (TimeoutError, ExchangeFailed),
    (OSError, ExchangeFailed),
    (ValueError, InvalidResponse),
)
"""First match wins: what aiohttp and the system raise, and what that says about the request having arrived."""


class HttpClient:
    """Carries requests to one API and downloads from anywhere. One per process; connections are kept and reused.

    Args:
        connect_seconds: limit for DNS, TCP and TLS together.
        user_agent: sent with everything.
    """

    def __init__(self, *, connect_seconds: float = 10.0, user_agent: str = "imagen") -> None:
        self._connect_seconds = connect_seconds
        self._user_agent = user_agent
        self._connections = ConnectionPool(
            connect_seconds=connect_seconds, keep_alive_seconds=KEEP_ALIVE_SECONDS, user_agent=user_agent
        )
        self._session: aiohttp.ClientSession | None = None
        self._proxies = urllib.request.getproxies()

    async def send(self, request: HttpRequest) -> HttpResponse:
        """One exchange. No redirect is followed: an API that redirects is an API that moved.

        Raises:
            ConnectFailed: it did not arrive.
            ExchangeFailed: it may have arrived.
            InvalidResponse: the answer is larger than allowed, or the request or its address is none that is sent.
        """
        _require_safe(request.url)
        if self._proxy_for(request.url) is not None:
            return await self._send_through_proxy(request)
        return await self._connections.exchange(request, patience_seconds=self._patience(request))

    async def _send_through_proxy(self, request: HttpRequest) -> HttpResponse:
        async with _translated(request), self._open(request) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > request.limit_bytes:
                    response.close()
                    raise InvalidResponse(
                        f"the answer to {request.method} {request.path} is larger than {request.limit_bytes >> 20} MiB and was not read"
                    )
            return HttpResponse(response.status, _headers(response), bytes(body))

    async def download(self, request: HttpRequest, target: Path) -> Download:
        """Stream a GET's body into `target`, following redirects; the token stays with its own origin.

        Raises:
            ConnectFailed, ExchangeFailed: it did not come, or not whole.
            InvalidResponse: larger than `limit_bytes`, or a redirect to a place that is not fetched.
            DeliveryError: the file could not be written.
        """
        for _ in range(MAX_REDIRECTS + 1):
            async with _translated(request), self._open(request) as response:
                if response.status not in _REDIRECTS:
                    return await _stream(response, request, target)
                request = follow_redirect(request, response.headers.get("location", ""))
        raise InvalidResponse(f"the file moved more than {MAX_REDIRECTS} times")

    async def stream(
        self,
        request: HttpRequest,
        *,
        pieces: AsyncIterator[bytes] | None = None,
        size_bytes: int | None = None,
    ) -> HttpStream:
        """Send a request, and hand its answer on from the head on. What is in between waits in buffers of bounded size.

        Redirects of what is only read are followed; the token stays with its own origin.

        Args:
            request: without a body where `pieces` has it.
            pieces: the body; taken as fast as the server takes it. What it raises ends the request, and is raised here.
            size_bytes: of all pieces; None where nobody knows.

        Raises:
            ConnectFailed: it did not arrive.
            ExchangeFailed: it may have arrived.
            InvalidResponse: a redirect to a place that is not fetched, or an address that is none.
        """
        for _ in range(MAX_REDIRECTS + 1):
            stream = await self._begin(request, pieces, size_bytes)
            if stream.status not in _REDIRECTS or request.method != "GET":
                return stream
            await stream.close()
            request = follow_redirect(request, stream.headers.get("location", ""))
        raise InvalidResponse(f"the file moved more than {MAX_REDIRECTS} times")

    async def _begin(
        self, request: HttpRequest, pieces: AsyncIterator[bytes] | None, size_bytes: int | None
    ) -> HttpStream:
        """The answer to a request, as soon as its head is there."""
        _require_safe(request.url)
        if self._proxy_for(request.url) is not None:
            return await self._begin_through_proxy(request, pieces, size_bytes)
        inflow = Inflow()
        response = await self._connections.exchange(
            request,
            patience_seconds=self._patience(request),
            inflow=inflow,
            outflow=None if pieces is None else Outflow(pieces, size_bytes),
        )
        coming, headers = inflow.read(), response.headers
        coding = headers.get("content-encoding", "").strip().lower()
        if is_packed(coding):
            coming = unpacked(coming, coding)
            headers = {name: value for name, value in headers.items() if name not in _OF_PACKED}
        return HttpStream(response.status, headers, coming, inflow.close)

    async def _begin_through_proxy(
        self, request: HttpRequest, pieces: AsyncIterator[bytes] | None, size_bytes: int | None
    ) -> HttpStream:
        headers = {"accept-encoding": "identity"}
        if size_bytes is not None:
            headers["content-length"] = str(size_bytes)
        body = None if pieces is None else _Feed(pieces, seconds=request.response_seconds)
        try:
            async with _translated(request), asyncio.timeout(self._patience(request)) as limit:
                if body is not None:
                    body.limit = limit
                response = await self._ask(request, headers=headers, body=body)
        except TransportError:
            if body is not None and body.failure is not None:
                raise body.failure from None
            raise
        return _handed_on(response, request)

    @asynccontextmanager
    async def _open(self, request: HttpRequest) -> AsyncIterator[aiohttp.ClientResponse]:
        async with asyncio.timeout(self._patience(request)):
            response = await self._ask(request)
        async with response:
            yield response

    async def _ask(
        self, request: HttpRequest, *, headers: Mapping[str, str] | None = None, body: _Feed | None = None
    ) -> aiohttp.ClientResponse:
        _require_safe(request.url)
        if request.on_send is not None:
            request.on_send()  # the library does not tell when it has connected
        given = {"user-agent": self._user_agent, **(headers or {}), **request.headers}
        if request.bearer:
            given["authorization"] = f"Bearer {request.bearer.reveal()}"
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self._connect_seconds,
            sock_connect=self._connect_seconds,
            sock_read=request.response_seconds,
        )
        return await self._live_session().request(
            request.method,
            request.url,
            headers=given,
            data=_payload(request.body) if body is None else aiter(body),
            timeout=timeout,
            allow_redirects=False,
            proxy=self._proxy_for(request.url),
            read_bufsize=_CHUNK,
        )

    def _patience(self, request: HttpRequest) -> float:
        """Seconds until the head of an answer has to be there.

        The pause that `response_seconds` limits begins when the body is sent; this one also ends a body that nobody reads.
        """
        return self._connect_seconds + request.response_seconds + len(request.body or b"") / _SLOWEST_UPLOAD

    def _live_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _proxy_for(self, url: str) -> str | None:
        if not self._proxies:
            return None
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme)
        if proxy is None or is_loopback(parts.hostname) or urllib.request.proxy_bypass(parts.hostname or ""):
            return None
        return proxy

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connections.aclose()
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Feed:
    """A body in pieces on its way to a server: tells a server that takes nothing from a caller who gives nothing.

    Args:
        pieces: the body.
        seconds: how long the server may take for a piece, and for the head of its answer after the last one.

    Attributes:
        limit: of the exchange; runs only while it is the server that is waited for.
        failure: what the pieces ended with, where that was no end.
    """

    def __init__(self, pieces: AsyncIterator[bytes], *, seconds: float) -> None:
        self.limit: asyncio.Timeout
        self.failure: Exception | None = None
        self._pieces = pieces
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        self._set(None)
        try:
            async for piece in self._pieces:
                self._set(loop.time() + self._seconds)
                yield piece
                self._set(None)
        except Exception as failure:
            self.failure = failure
            raise
        self._set(loop.time() + self._seconds)

    def _set(self, deadline: float | None) -> None:
        with suppress(RuntimeError):  # the answer was there before the end of the body
            self.limit.reschedule(deadline)


def _handed_on(response: aiohttp.ClientResponse, request: HttpRequest) -> HttpStream:
    async def close() -> None:
        response.close()

    headers = _headers(response)
    if is_packed(headers.get("content-encoding", "").lower()):  # the library has unpacked it
        headers = {name: value for name, value in headers.items() if name not in _OF_PACKED}
    return HttpStream(response.status, headers, _pieces_of(response, request), close)


async def _pieces_of(response: aiohttp.ClientResponse, request: HttpRequest) -> AsyncIterator[bytes]:
    async with _translated(request):
        async for piece in response.content.iter_any():
            yield piece


LookUp = Callable[[str, int], list[tuple[Any, ...]]]
"""As `socket.getaddrinfo` is called and answers; it may block."""


class PublicPoster:
    """Sends small messages to addresses that strangers have named, and tells how they were answered.

    The address that a connection really goes to is checked, whatever the name said before. No redirect is followed, no
    proxy is used, no cookie and no password is sent, and of the answer nothing but its head is kept.

    Args:
        private: whether addresses that are not public are called too, and plain HTTP is spoken.
        user_agent: sent with everything.
        look_up: asks for the addresses of a host; the system by default.
        seconds: for all of a message.
    """

    def __init__(
        self,
        *,
        private: bool = False,
        user_agent: str = "imagen",
        look_up: LookUp | None = None,
        seconds: float = POST_SECONDS,
    ) -> None:
        self._private = private
        self._user_agent = user_agent
        self._look_up = look_up or _system_look_up
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        """Send a message, once.

        Returns:
            Status and header fields, without the body.

        Raises:
            ConnectFailed: it did not arrive.
            ExchangeFailed: it may have arrived, but no answer came.
            InvalidResponse: the address is none that is called.
        """
        scheme = url.partition(":")[0].lower()
        if scheme != "https" and not (self._private and scheme == "http"):
            raise InvalidResponse("only https addresses are called")
        until = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(until):
                response = await self._live_session().post(
                    url, data=body, headers=headers, allow_redirects=False
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if isinstance(getattr(error, "os_error", None), _NotPublicError):
                raise InvalidResponse(NOT_PUBLIC) from error
            ours = next(ours for foreign, ours in FOREIGN_ERRORS if isinstance(error, foreign))
            raise ours(_reason(error)) from error
        # The line is used again only when the rest of the answer is short and comes in time.
        async with response:
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with asyncio.timeout_at(until):
                    await _pass_over(response, _MOST_OF_AN_ANSWER)
            return HttpResponse(response.status, _headers(response), b"")

    def _live_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=_STRANGERS_LINES_SECONDS,
                resolver=_StrangersResolver(self._look_up, private=self._private),
                socket_factory=None if self._private else _socket_to_public,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                headers={"user-agent": self._user_agent, "accept-encoding": "identity"},
            )
        return self._session

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()


class _NotPublicError(OSError):
    """That place is not called."""


class _StrangersResolver(AbstractResolver):
    """Finds public addresses of hosts that strangers have named.

    Such a name server may be as slow as it likes, so each look-up has a thread of its own: those of the loop are needed
    by others. What nobody waits for any more goes on in its thread, and keeps its place among those that are allowed.
    """

    def __init__(self, look_up: LookUp, *, private: bool) -> None:
        self._look_up = look_up
        self._private = private
        self._places = asyncio.Semaphore(_MOST_LOOK_UPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = [(entry[0], entry[2], entry[4][0]) for entry in await self._ask(host, port)]
        allowed = [entry for entry in found if self._private or is_public(entry[2])]
        if found and not allowed:
            raise _NotPublicError(NOT_PUBLIC)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=protocol, flags=0)
            for kind, protocol, address in allowed
            if family in {socket.AF_UNSPEC, kind}
        ]

    async def _ask(self, host: str, port: int) -> list[tuple[Any, ...]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()
        await self._places.acquire()

        def settle(found: list[tuple[Any, ...]] | Exception) -> None:
            self._places.release()
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            try:
                found: list[tuple[Any, ...]] | Exception = self._look_up(host, port)
            except (OSError, ValueError) as error:  # ValueError: a name that cannot be encoded
                found = error if isinstance(error, OSError) else OSError(str(error))
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, found)

        threading.Thread(target=work, name="imagen-look-up", daemon=True).start()
        return await answer

    async def close(self) -> None:
        """Nothing is kept."""


def _system_look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))


def _socket_to_public(info: tuple[Any, ...]) -> socket.socket:
    """The last look before a connection is made: also at what was no name and was never looked up."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise _NotPublicError(NOT_PUBLIC)
    return socket.socket(family, kind, protocol)


async def _pass_over(response: aiohttp.ClientResponse, most: int) -> None:
    async for chunk in response.content.iter_any():
        most -= len(chunk)
        if most < 0:
            return


@asynccontextmanager
async def _translated(request: HttpRequest) -> AsyncIterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        ours = next(ours for foreign, ours in FOREIGN_ERRORS if isinstance(error, foreign))
        raise ours(sentence(request, _reason(error))) from error


def _reason(error: BaseException) -> str:
    match error:
        case aiohttp.ConnectionTimeoutError():
            return NOT_CONNECTED
        case aiohttp.ClientConnectorDNSError():
            return UNRESOLVED
        case aiohttp.ClientConnectorCertificateError():
            return UNTRUSTED
        case aiohttp.ClientSSLError():
            return NO_TLS
        case aiohttp.ClientConnectorError():
            return REFUSED
        case aiohttp.ServerDisconnectedError():
            return CLOSED
        case aiohttp.ClientPayloadError():
            return BROKE_OFF
        case asyncio.TimeoutError():
            return NO_ANSWER
        case _:
            return failure(error)


def follow_redirect(request: HttpRequest, location: str) -> HttpRequest:
    """The request for where a file has moved to; the token stays with its origin.

    Raises:
        InvalidResponse: it is no address, or the world outside points at this machine.
    """
    try:
        moved = urljoin(request.url, location)
        inward = is_loopback(urlsplit(moved).hostname) and not is_loopback(urlsplit(request.url).hostname)
    except ValueError:
        raise InvalidResponse("the file was moved to something that is no address") from None
    if inward:
        raise InvalidResponse("the file was moved to an address of this machine, which is not fetched")
    bearer = request.bearer if origin(moved) == origin(request.url) else None
    return replace(request, method="GET", url=moved, body=None, bearer=bearer, repeatable=True)


# The same few addresses are asked again and again; what is refused is not remembered.
@lru_cache(maxsize=1024)
def _require_safe(url: str) -> None:
    if not origin(url):
        raise InvalidResponse("an output is named by something that is no address")
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and is_loopback(parts.hostname):
        return
    raise InvalidResponse(
        f"{parts.scheme or 'a relative'} address at host {parts.hostname or '?'} is not fetched: only https, or http to this machine, is"
    )


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """Large bodies go out in parts, so that the loop has time for others."""
    return io.BytesIO(body) if body is not None and len(body) > _CHUNK else body


def _headers(response: aiohttp.ClientResponse) -> Mapping[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


async def _stream(response: aiohttp.ClientResponse, request: HttpRequest, target: Path) -> Download:
    size, head = 0, b""
    declared = response.content_length
    if response.status < 300 and declared is not None and declared > request.limit_bytes:
        response.close()
        raise InvalidResponse(
            f"the file has {declared >> 20} MiB, more than the {request.limit_bytes >> 20} MiB that are allowed"
        )
    with _filing(target):
        file = target.open("wb", buffering=0)
    try:
        async for chunk in response.content.iter_chunked(_CHUNK):
            size += len(chunk)
            if size > request.limit_bytes:
                response.close()
                raise InvalidResponse(
                    f"the file is larger than the {request.limit_bytes >> 20} MiB that are allowed"
                )
            head = head or chunk[:_HEAD]
            with _filing(target):
                left = memoryview(chunk)
                while left:
                    left = left[file.write(left) :]
    finally:
        with _filing(target):
            file.close()
    return Download(response.status, _headers(response), size, head)


@contextmanager
def _filing(target: Path) -> Iterator[None]:
    """Tell a full disk from a broken line: both are OSError, but only the disk's are raised in here."""
    try:
        yield
    except OSError as error:
        raise DeliveryError(f"{target.parent} cannot be written: {error.strerror}") from error
