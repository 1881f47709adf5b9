"""Servers on loopback that misbehave as told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Play = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request as it came, and the line on which it is answered."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    number: int

    @property
    def path(self) -> str:
        return self.head.split(b" ")[1].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        given = {
            "content-length": str(len(body)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        await self.send(f"HTTP/1.1 {status} Word\r\n{lines}\r\n".encode() + body)

    def reset(self) -> None:
        """Break the connection off without a word."""
        self.writer.transport.abort()


@dataclass
class RawServer:
    """What came, and how many connections it took."""

    port: int = 0
    tls: bool = False
    connections: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    lines: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{'localhost' if self.tls else '127.0.0.1'}:{self.port}"


@asynccontextmanager
async def raw_server(play: Play, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """A server that plays its part for every request; what it does not say is not said."""
    served = RawServer(tls=tls is not None)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        served.lines.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                exchange = Exchange(head, b"", writer, len(served.exchanges))
                exchange.body = await reader.readexactly(int(exchange.headers.get("content-length", 0)))
                served.exchanges.append(exchange)
                await play(exchange)
                if writer.is_closing():
                    return

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for line in served.lines:
            line.transport.abort()
        await asyncio.sleep(0)
