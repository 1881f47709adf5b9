"""One HTTP/1.1 exchange over connections that stay open: the one file that knows the parser (httptools).

It does what calls to one API need and no more: no redirects, no cookies, no proxies. Bodies are whole, or pass through piece
by piece. A request costs one write, one future and no task; the limits in time share one timer a connection, which is set
anew only when it has run out.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, cast
from urllib.parse import quote, urlsplit

import aiohappyeyeballs
import httptools
import msgspec

from imagen.errors import ConnectFailed, ExchangeFailed, InvalidResponse, TransportError
from imagen.transport.inflow import Inflow
from imagen.transport.message import HttpRequest, HttpResponse

BROKE_OFF = "the answer broke off before its end"
CLOSED = "the connection was closed before an answer came"
NO_ANSWER = "no answer came in time"
NO_TLS = "no TLS connection could be made"
NOT_CONNECTED = "no connection could be made in time"
REFUSED = "the connection was refused"
UNRESOLVED = "the host name could not be resolved"
UNTRUSTED = "the certificate of the host is not trusted"

_MOST_HEAD = 64 * 1024
"""Bytes of a head, and of anything else that may come without a byte of body: chunk sizes, trailers, interim answers."""
_PART = 64 * 1024
"""Bytes of a body that are handed on at once."""
_ADDRESS_SECONDS = 10.0
"""How long a looked-up address is used again."""
_SECOND_ADDRESS_SECONDS = 0.25
"""How long the first address of a host is tried alone (RFC 8305)."""

_ROUNDS = 100
"""Of the loop, within which it has told every connection of its end; a TLS one needs three."""

_HEAD = re.compile(
    r"[A-Z]+ [!-~]+ HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\r\n\0\ud800-\udfff]*\r\n)+"
)
_SENT_AS_IT_IS = "-._~!$&'()*+,;=:@%/?"
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FRAMING = frozenset({"connection", "content-length", "host", "transfer-encoding", "upgrade"})
"""Header fields that say where a message ends or whom it is for: only this file writes them."""
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_SWITCHING = 101

_Address = tuple[Any, ...]
"""What getaddrinfo tells of one address."""
_Place = tuple[bool, str, int]
"""Whether TLS is spoken, host, port: what a connection leads to."""


def sentence(request: HttpRequest, reason: str) -> str:
    """What is told of a failed exchange: method, host and path, never the query."""
    where = urlsplit(request.url)
    return f"{request.method} {where.hostname}{where.path}: {reason}"


def failure(error: BaseException) -> str:
    """The reason that is told where nothing better is known."""
    return f"the connection failed ({type(error).__name__})"


class Target(msgspec.Struct, frozen=True):
    """What an address says about the way there and about the first lines of a request.

    Attributes:
        place: where to connect to; the host as DNS and TLS know it.
        host: the header field: the port only where it is not the scheme's own.
        path: path and query as they are sent.
    """

    place: _Place
    host: str
    path: str


class Outflow(msgspec.Struct, frozen=True):
    """A body that is sent piece by piece; what it raises ends the exchange.

    Attributes:
        pieces: the body.
        size_bytes: of all of them; None where nobody knows: then each goes out as a chunk.
    """

    pieces: AsyncIterator[bytes]
    size_bytes: int | None = None


@lru_cache(maxsize=1024)
def read_target(url: str) -> Target:
    """The parts of an http or https address.

    Raises:
        ValueError: it has no host, an impossible one, or a user's name in front.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    if not parts.hostname or "@" in parts.netloc:
        raise ValueError("an address with a host and without a user")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    own = 443 if secure else 80
    port = parts.port or own
    named = f"[{host}]" if ":" in host else host
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path = _STRAY_PERCENT.sub("%25", quote(path, safe=_SENT_AS_IT_IS))
    return Target((secure, host, port), named if port == own else f"{named}:{port}", path)


def build_head(
    request: HttpRequest, target: Target, *, user_agent: str, outflow: Outflow | None = None
) -> bytes:
    """Request line and header fields, up to and with the empty line. `outflow` has the body where the request has none.

    Raises:
        ValueError: a method, name or value would say more than one line, or a field is not for the caller to set.
    """
    fields = {"user-agent": user_agent, "accept": "*/*", "accept-encoding": "identity"}
    for name, value in request.headers.items():
        fields[name.lower()] = value
    if not _FRAMING.isdisjoint(fields):
        raise ValueError("a header field that is not for the caller to set")
    if request.bearer:
        fields["authorization"] = f"Bearer {request.bearer.reveal()}"
    if request.body:
        fields.setdefault("content-type", "application/octet-stream")
    if outflow is not None and outflow.size_bytes is None:
        fields["transfer-encoding"] = "chunked"
    elif outflow is not None:
        fields["content-length"] = str(outflow.size_bytes)
    elif request.body is not None or request.method not in _WITHOUT_BODY:
        fields["content-length"] = str(len(request.body or b""))
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    head = f"{request.method} {target.path} HTTP/1.1\r\nhost: {target.host}\r\n{lines}"
    # The count as well: a value may hold a line break and a second field that looks as it should.
    if head.count("\n") != len(fields) + 2 or not _HEAD.fullmatch(head):
        raise ValueError("a line break, or another character that no head has")
    return f"{head}\r\n".encode()


def decode_body(body: bytes, coding: str, *, limit_bytes: int) -> bytes | None:
    """The body as it was before the server packed it; None when that is larger than `limit_bytes`.

    Other codings than gzip and deflate are left as they are: nobody asked for them, and what comes of it is no JSON.

    Raises:
        zlib.error: it is not whole, or no such thing.
    """
    coding = coding.strip().lower()
    if coding not in {"gzip", "deflate"} or not body:
        return body
    # Much of what is called deflate comes without the envelope of zlib, whose first byte ends in 8.
    bits = 31 if coding == "gzip" else zlib.MAX_WBITS if body[0] & 15 == 8 else -zlib.MAX_WBITS
    unpacked = bytearray()
    while body:
        unpacker = zlib.decompressobj(bits)
        unpacked += unpacker.decompress(body, limit_bytes + 1 - len(unpacked))
        if len(unpacked) > limit_bytes:
            return None
        if not unpacker.eof:
            raise zlib.error("it is not whole")
        # gzip may be several, one behind the other; deflate has one.
        body = unpacker.unused_data if coding == "gzip" else b""
    return bytes(unpacked)


class Connection(asyncio.Protocol):
    """One connection, and the exchange that runs on it.

    Args:
        pool: where it waits between two exchanges.
        place: where it leads.

    Attributes:
        usable: whether another exchange may begin.
        unheard: whether its exchange ended with the connection, before a single byte of an answer came.
    """

    def __init__(self, pool: ConnectionPool, place: _Place) -> None:
        self.usable = False
        self.unheard = False
        self.place = place
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[HttpResponse | TransportError] | None = None
        self._inflow: Inflow | None = None
        self._request: HttpRequest
        # One timer for all limits: when it rings before the deadline, which moved meanwhile, it is set again.
        self._deadline = self._rings = 0.0
        self._patience = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._writable: asyncio.Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        """Forget the last answer."""
        self._headers: dict[str, str] = {}
        self._status = 0  # 0: the head is not whole yet
        self._body: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._quiet = 0  # bytes since the last one of a body
        self._sent = False
        self._whole = False
        self._keep = False
        self._left: int | None = None  # of a body that passes by the parser

    # --- the caller's side ---

    async def exchange(
        self,
        request: HttpRequest,
        head: bytes,
        *,
        patience_ends: float,
        inflow: Inflow | None = None,
        outflow: Outflow | None = None,
    ) -> HttpResponse:
        """Send `head` and the body of `request`, and wait for the answer.

        Args:
            request: what `head` was built from.
            head: see `build_head`.
            patience_ends: on the clock of the loop, when the head of the answer has to be there at the latest.
            inflow: is given the body of the answer, which is then empty itself and returned as soon as its head is there.
            outflow: the body of the request, where it has none.

        Raises:
            ConnectFailed: the connection ended before anything was sent.
            ExchangeFailed: it ended later, or no answer came in time.
            InvalidResponse: the answer is larger than allowed.
        """
        if not self.usable:
            raise ConnectFailed(sentence(request, CLOSED))
        self.usable = False
        self._request = request
        self._patience = patience_ends
        if request.on_send is not None:
            request.on_send()
        waiter: asyncio.Future[HttpResponse | TransportError] = self._loop.create_future()
        self._waiter = waiter
        self._inflow = inflow
        if inflow is not None:
            inflow.begin(self)
        try:
            body = request.body
            if outflow is not None:
                self._transport.write(head)
                await self._pour(outflow, waiter)
            elif body is None or len(body) <= _PART:
                self._transport.write(head + body if body else head)
            else:
                self._set_deadline(patience_ends)
                self._transport.write(head)
                await self._upload(body, waiter)
            if self._waiter is waiter:
                # An answer that came before the end of the body leaves the rest of that unsent.
                self._sent = self._sent or outflow is None
                self._await_more()
            outcome = await waiter
        except BaseException:
            if self._waiter is waiter:
                self._end(None)
            raise
        if isinstance(outcome, TransportError):
            raise outcome
        return outcome

    async def _upload(self, body: bytes, waiter: asyncio.Future[HttpResponse | TransportError]) -> None:
        """Hand the body on as fast as it is taken, until it is sent or the exchange has ended without it."""
        view = memoryview(body)
        for start in range(0, len(view), _PART):
            while self._paused and self._waiter is waiter:
                self._writable = self._loop.create_future()
                await self._writable
            if self._waiter is not waiter or self._transport.is_closing():
                return
            self._transport.write(view[start : start + _PART])

    async def _pour(self, outflow: Outflow, waiter: asyncio.Future[HttpResponse | TransportError]) -> None:
        """Hand the pieces on until the last one is sent, or the answer is there before it.

        Whoever gives the pieces may take their time; the server is waited for no longer than for anything else.
        """
        pouring = self._loop.create_task(self._pour_all(outflow, waiter))
        try:
            either: set[asyncio.Future[Any]] = {pouring, waiter}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if pouring.done():
                pouring.result()
        finally:
            if not pouring.done():
                pouring.cancel()
                with suppress(asyncio.CancelledError):
                    await pouring

    async def _pour_all(
        self, outflow: Outflow, waiter: asyncio.Future[HttpResponse | TransportError]
    ) -> None:
        chunked, left = outflow.size_bytes is None, outflow.size_bytes or 0
        self._set_deadline(math.inf)
        async for piece in outflow.pieces:
            left -= len(piece)
            if not chunked and left < 0:
                raise ValueError("the body has more bytes than were told")
            if piece and not self._transport.is_closing():
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self._set_deadline(self._loop.time() + self._request.response_seconds)
            while self._paused and self._waiter is waiter:
                self._writable = self._loop.create_future()
                await self._writable
            if self._waiter is not waiter:
                return
            self._set_deadline(math.inf)
        if not chunked and left:
            raise ValueError("the body has less bytes than were told")
        if chunked and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
        self._sent = True
        self._patience = self._loop.time() + self._request.response_seconds

    def close(self) -> None:
        """End it, and with it what is under way."""
        self._end(self._fault(CLOSED))

    # --- what the reader of an inflow tells ---

    def pause(self) -> None:
        """See `inflow.Source`. Nobody waits for the server meanwhile."""
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._set_deadline(math.inf)

    def go_on(self) -> None:
        """See `inflow.Source`."""
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._await_more()

    def stop(self) -> None:
        """See `inflow.Source`."""
        self._end(self._fault(CLOSED))

    # --- limits in time ---

    def _await_more(self) -> None:
        """From now on the next bytes may take as long as the request says; a head, no longer than patience lasts."""
        limit = self._loop.time() + self._request.response_seconds
        self._set_deadline(limit if self._status else min(limit, self._patience))

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline == math.inf:
            return  # whatever rings before is of no consequence
        if self._timer is None or self._rings > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._rings = deadline
            self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline:
            self._set_deadline(self._deadline)  # none, where there is no end to it
        else:
            self._end(self._fault(NO_ANSWER))

    # --- what the transport tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self.usable = True
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._waiter is None:
            # Nobody asked for this. Kept, it would be taken for the answer to whatever is asked next.
            self._end(None)
            return
        if self._left is not None:
            self._pass_by(data)
            return
        self._quiet += len(data)
        if not self._parse(data):
            return
        if self._is_too_large():
            self._end(self._too_large())
        elif self._head_size > _MOST_HEAD or (self._quiet > _MOST_HEAD and not self._whole):
            self._end(self._fault(f"the answer has more than {_MOST_HEAD >> 10} KiB beside its body"))
        elif self._whole:
            self._finish()
        elif self._inflow is not None:
            self._measure()
            self._await_piece(self._inflow)
        elif self._sent:
            self._await_more()

    def _await_piece(self, inflow: Inflow) -> None:
        if (self._sent or self._status) and not inflow.paused:
            self._await_more()

    def _parse(self, data: bytes) -> bool:
        """Give the parser what came; False where that has ended the exchange."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # nobody asked for that, but it is an answer, and whole already
        except httptools.HttpParserError as error:
            self._keep = False
            if not self._whole and not self._is_too_large():
                self._end(self._fault(failure(error), error))
                return False
        return True

    def _measure(self) -> None:
        """Let the rest of a body of known length pass by the parser, which would only copy it."""
        declared = self._headers.get("content-length", "")
        if self._status and declared.isdecimal() and "transfer-encoding" not in self._headers:
            self._left = int(declared) - self._size
            self._keep = self._parser.should_keep_alive()

    def _pass_by(self, data: bytes) -> None:
        """A part of a body whose length is known."""
        inflow, left = self._inflow, self._left
        if inflow is None or left is None or len(data) > left:
            self._end(self._fault("more came than the answer had told"))
            return
        inflow.feed(data)
        self._left = left - len(data)
        if not self._left:
            self._parser = httptools.HttpResponseParser(self)
            self._whole = True
            self._finish()
        else:
            self._await_piece(inflow)

    def eof_received(self) -> None:
        """See asyncio.Protocol; the transport closes itself."""
        self.usable = False
        self._pool.forget(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._waiter is not None and self._ends_with_connection() and error is None:
            self._whole = True
            self._finish()
        self.unheard = self._waiter is not None and not self._quiet and not self._status
        self._end(self._fault(self._loss(error), error))
        self._pool.closed(self)
        del self._parser  # it holds this object, and this object held it

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._paused = True

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._paused = False
        self._wake_upload()

    # --- what the parser tells ---

    def on_message_begin(self) -> None:
        """A head begins: that of the answer, that of another one after an interim answer, or one too many."""
        if self._whole:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field, or one trailer; of those that are repeated the last one counts."""
        self._head_size += len(name) + len(value)
        if not self._status and self._head_size <= _MOST_HEAD:
            self._headers[name.decode("latin-1").lower()] = value.strip(b" \t").decode(
                "utf-8", "surrogateescape"
            )

    def on_headers_complete(self) -> None:
        """The head is whole."""
        status = self._parser.get_status_code()
        if status >= 200 or status == _SWITCHING:
            self._status = status
            declared = self._headers.get("content-length", "")
            if self._request.method == "HEAD":
                self._whole = (
                    True  # the parser does not know that no body follows, so this is its last answer
                )
            elif self._inflow is None and declared.isdecimal() and int(declared) > self._request.limit_bytes:
                self._size = int(declared)
            if self._inflow is not None and self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(HttpResponse(status, self._headers, b""))

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._quiet = 0
        self._size += len(body)
        if self._inflow is not None:
            self._inflow.feed(body)
        elif not self._is_too_large():
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one."""
        if self._status:
            self._whole = True
            self._keep = self._status != _SWITCHING and self._parser.should_keep_alive()
        else:
            self._headers.clear()

    # --- how an exchange ends ---

    def _ends_with_connection(self) -> bool:
        """Whether the body of this answer is what comes until the connection is closed."""
        coding = self._headers.get("transfer-encoding", "").lower()
        return bool(self._status) and "content-length" not in self._headers and not coding.endswith("chunked")

    def _is_too_large(self) -> bool:
        return self._inflow is None and self._size > self._request.limit_bytes

    def _too_large(self) -> InvalidResponse:
        request = self._request
        return InvalidResponse(
            f"the answer to {request.method} {request.path} is larger than {request.limit_bytes >> 20} MiB and was not read"
        )

    def _fault(self, reason: str, cause: BaseException | None = None) -> ExchangeFailed | None:
        if self._waiter is None:
            return None
        error = ExchangeFailed(sentence(self._request, reason))
        error.__cause__ = cause
        return error

    def _loss(self, error: Exception | None) -> str:
        if self._status:
            return BROKE_OFF
        return CLOSED if error is None else failure(error)

    def _finish(self) -> None:
        """Hand the whole answer over, and wait for the next exchange where the connection is fit for one."""
        if self._inflow is not None:
            self._finish_inflow(self._inflow)
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        coding = self._headers.get("content-encoding")
        if coding is not None:
            try:
                decoded = decode_body(body, coding, limit_bytes=self._request.limit_bytes)
            except zlib.error as error:
                self._end(self._fault(BROKE_OFF, error))
                return
            if decoded is None:
                self._end(self._too_large())
                return
            body = decoded
        outcome = HttpResponse(self._status, self._headers, body)
        waiter = self._waiter
        if not (self._keep and self._sent) or waiter is None or waiter.done() or self._transport.is_closing():
            self._end(outcome)
            return
        waiter.set_result(outcome)
        self._rest()

    def _finish_inflow(self, inflow: Inflow) -> None:
        """Its reader has, or will have, all of it."""
        self._inflow = None
        if inflow.paused and not self._transport.is_closing():
            self._transport.resume_reading()
        inflow.end()
        if self._keep and self._sent and not self._transport.is_closing():
            self._rest()
        else:
            self._end(None)

    def _rest(self) -> None:
        """Wait for the next exchange."""
        self._waiter = None
        del self._request  # it may be large, and it holds a token
        self._clear()
        self.usable = True
        self._set_deadline(self._loop.time() + self._pool.keep_alive_seconds)
        self._pool.keep(self)

    def _end(self, outcome: HttpResponse | TransportError | None) -> None:
        """End the connection; whoever waits is given `outcome`, unless it was the waiting itself that ended."""
        self.usable = False
        self._pool.forget(self)
        waiter, self._waiter = self._waiter, None
        inflow, self._inflow = self._inflow, None
        if waiter is not None and outcome is not None and not waiter.done():
            waiter.set_result(outcome)
        if inflow is not None:
            inflow.end(outcome if isinstance(outcome, TransportError) else None)
        self._wake_upload()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._body = []
        self._transport.abort()

    def _wake_upload(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)


class ConnectionPool:
    """Connections by where they lead; as many as are needed, and the warmest is taken first, so that few stay open.

    Args:
        connect_seconds: limit for DNS, TCP and TLS together.
        keep_alive_seconds: how long a connection waits for its next exchange.
        user_agent: sent with every request.
    """

    def __init__(
        self, *, connect_seconds: float, keep_alive_seconds: float, user_agent: str = "imagen"
    ) -> None:
        self.keep_alive_seconds = keep_alive_seconds
        self._connect_seconds = connect_seconds
        self._user_agent = user_agent
        self._idle: dict[_Place, dict[Connection, None]] = {}
        self._open: set[Connection] = set()
        self._found: dict[tuple[str, int], tuple[float, asyncio.Future[list[_Address]]]] = {}
        self._tls: ssl.SSLContext | None = None

    async def exchange(
        self,
        request: HttpRequest,
        *,
        patience_seconds: float,
        inflow: Inflow | None = None,
        outflow: Outflow | None = None,
    ) -> HttpResponse:
        """One request and its answer.

        A warm connection may have been closed by the server just now. What may be sent twice is then sent once more.

        Args:
            request: to an address of http or https that may be asked.
            patience_seconds: how long everything up to the head of the answer may take.
            inflow: see `Connection.exchange`.
            outflow: likewise.

        Raises:
            ConnectFailed: it did not arrive.
            ExchangeFailed: it may have arrived.
            InvalidResponse: the answer is larger than allowed, or the request cannot be said in HTTP.
        """
        try:
            target = read_target(request.url)
            head = build_head(request, target, user_agent=self._user_agent, outflow=outflow)
        except ValueError as error:
            raise InvalidResponse(sentence(request, failure(error))) from error
        patience_ends = asyncio.get_running_loop().time() + patience_seconds
        warm = self._take(target.place)
        if warm is not None:
            try:
                return await warm.exchange(
                    request, head, patience_ends=patience_ends, inflow=inflow, outflow=outflow
                )
            except ExchangeFailed:
                if not (request.repeatable and warm.unheard):
                    raise
        connection = await self._connect(target.place, request)
        return await connection.exchange(
            request, head, patience_ends=patience_ends, inflow=inflow, outflow=outflow
        )

    async def aclose(self) -> None:
        """End every connection, and whatever runs on them."""
        for _, looking in self._found.values():
            looking.cancel()
        self._found.clear()
        for connection in list(self._open):
            connection.close()
        for _ in range(_ROUNDS):
            if not self._open:
                return
            await asyncio.sleep(0)

    # --- what connections tell ---

    def opened(self, connection: Connection) -> None:
        """It is there."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        self._open.discard(connection)

    def keep(self, connection: Connection) -> None:
        """It has nothing to do."""
        self._idle.setdefault(connection.place, {})[connection] = None

    def forget(self, connection: Connection) -> None:
        """It is not to be used again."""
        waiting = self._idle.get(connection.place)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._idle[connection.place]

    def _take(self, place: _Place) -> Connection | None:
        waiting = self._idle.get(place)
        while waiting:
            connection, _ = waiting.popitem()
            if connection.usable:
                return connection
        return None

    # --- how one is made ---

    async def _connect(self, place: _Place, request: HttpRequest) -> Connection:
        try:
            async with asyncio.timeout(self._connect_seconds) as limit:
                try:
                    addresses = await self._look_up(place)
                except (OSError, UnicodeError) as error:
                    raise ConnectFailed(sentence(request, UNRESOLVED)) from error
                return await self._open_one(place, addresses)
        except OSError as error:  # TimeoutError is one, and the system has one of its own
            if limit.expired():
                reason = NOT_CONNECTED
            elif isinstance(error, ssl.SSLCertVerificationError):
                reason = UNTRUSTED
            elif isinstance(error, ssl.SSLError):
                reason = NO_TLS
            else:
                reason = REFUSED
            raise ConnectFailed(sentence(request, reason)) from error

    async def _open_one(self, place: _Place, addresses: list[_Address]) -> Connection:
        """A connection to whichever address answers first; one that fails at TLS leaves the turn to the others."""
        loop = asyncio.get_running_loop()
        secure, host, _ = place
        while True:
            # Not left to the loop: uvloop tries one address after the other, however long each takes.
            line = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_SECOND_ADDRESS_SECONDS, interleave=1, loop=loop
            )
            try:
                _, connection = await loop.create_connection(
                    partial(Connection, self, place),
                    sock=line,
                    ssl=self._live_tls() if secure else None,
                    server_hostname=host.rstrip(".") if secure else None,
                )
            except OSError:
                aiohappyeyeballs.pop_addr_infos_interleave(addresses, 1)
                if not addresses:
                    raise
            else:
                return connection

    async def _look_up(self, place: _Place) -> list[_Address]:
        """The addresses of a host, the same look-up for all who ask at the same time."""
        _, host, port = place
        loop = asyncio.get_running_loop()
        until, looking = self._found.get((host, port), (0.0, None))
        if looking is None or until < loop.time():
            looking = asyncio.ensure_future(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            looking.add_done_callback(partial(self._looked_up, (host, port)))
            self._found[host, port] = (loop.time() + _ADDRESS_SECONDS, looking)
        return list(await asyncio.shield(looking))

    def _looked_up(self, name: tuple[str, int], looking: asyncio.Future[list[_Address]]) -> None:
        failed = looking.cancelled() or looking.exception() is not None
        if failed and self._found.get(name, (0.0, None))[1] is looking:
            del self._found[name]

    def _live_tls(self) -> ssl.SSLContext:
        """Made when it is first needed: it reads the certificates of the system, or those that SSL_CERT_FILE names."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls
