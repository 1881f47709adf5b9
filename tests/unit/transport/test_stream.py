"""Bodies that come and go piece by piece: limits in time on both sides, ends of every kind."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes.servers import Exchange, raw_server
from imagen.domain.secret import Secret
from imagen.errors import ConnectFailed, ExchangeFailed, InvalidResponse
from imagen.transport.client import HttpClient
from imagen.transport.message import HttpRequest, HttpStream
from waiting import until

pytestmark = pytest.mark.anyio

TOKEN = Secret("r8_token")
MIB = 1 << 20


@pytest.fixture(params=["by itself", "as through a proxy"])
async def client(
    request: pytest.FixtureRequest, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[HttpClient]:
    if request.param != "by itself":
        monkeypatch.setattr(HttpClient, "_begin", HttpClient._begin_through_proxy)
    async with HttpClient(connect_seconds=5.0, user_agent="imagen/test") as opened:
        yield opened


def get(url: str, **facts: Any) -> HttpRequest:
    return HttpRequest(method="GET", url=url, **{"response_seconds": 5.0, "bearer": TOKEN, **facts})


def post(url: str, **facts: Any) -> HttpRequest:
    return HttpRequest(method="POST", url=url, **{"response_seconds": 5.0, **facts})


async def whole(stream: HttpStream) -> bytes:
    content = b"".join([piece async for piece in stream.pieces])
    await stream.close()
    return content


async def test_the_head_is_there_before_the_body(client: HttpClient) -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\nX-One: 1\r\n\r\nhello")
        await go_on.wait()
        await exchange.send(b"world")

    async with raw_server(play) as server:
        stream = await client.stream(get(f"{server.url}/a"))
        assert (stream.status, stream.headers["x-one"]) == (200, "1")
        assert await anext(stream.pieces) == b"hello"
        go_on.set()
        assert await whole(stream) == b"world"
        assert await whole(await client.stream(get(f"{server.url}/b"))) == b"helloworld"
        assert server.connections == 1  # a body that was read to its end leaves the line good
    assert server.exchanges[0].headers["accept-encoding"] == "identity"


async def test_closing_ends_the_exchange(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            await exchange.send(b"x" * MIB)

    async with raw_server(play) as server:
        stream = await client.stream(get(f"{server.url}/a"))
        await anext(stream.pieces)
        await stream.close()
        await until(server.lines[0].transport.is_closing)


@pytest.mark.parametrize("end", ["breaks off", "stops"])
async def test_a_body_that_does_not_come_to_its_end_is_an_error(client: HttpClient, end: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        if end == "breaks off":
            exchange.writer.close()
        else:
            await asyncio.sleep(60)

    async with raw_server(play) as server:
        stream = await client.stream(get(f"{server.url}/a", response_seconds=0.3))
        with pytest.raises(ExchangeFailed):
            await whole(stream)
        await stream.close()


async def test_the_token_stays_with_its_origin_wherever_a_file_moves(client: HttpClient) -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.answer(b"bytes")

    async def play(exchange: Exchange) -> None:
        there = f"{other.url}/there" if exchange.path == "/here" else "/here"
        await exchange.answer(b"", 302, location=there)

    async with raw_server(elsewhere) as other, raw_server(play) as server:
        assert await whole(await client.stream(get(f"{server.url}/first"))) == b"bytes"
    assert [one.headers.get("authorization") for one in server.exchanges] == ["Bearer r8_token"] * 2
    assert "authorization" not in other.exchanges[0].headers


async def test_a_file_that_moves_for_ever_is_not_followed(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"", 302, location="/again")

    async with raw_server(play) as server:
        with pytest.raises(InvalidResponse):
            await client.stream(get(f"{server.url}/again"))


async def test_what_changes_something_follows_nobody(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"", 307, location="https://elsewhere.example/")

    async with raw_server(play) as server:
        assert (await client.stream(post(f"{server.url}/a", body=b"{}"))).status == 307


async def test_pieces_arrive_as_one_body_with_its_length_where_that_is_known(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(exchange.body)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        await asyncio.sleep(0.4)  # the caller may take longer than the server
        yield b"two"

    async with raw_server(play) as server:
        request = post(f"{server.url}/a", response_seconds=0.2, headers={"content-type": "text/plain"})
        assert await whole(await client.stream(request, pieces=pieces(), size_bytes=7)) == b"one two"
    assert "transfer-encoding" not in server.exchanges[0].headers


async def test_a_server_that_takes_nothing_is_not_waited_for(client: HttpClient) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.transport.abort()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * MIB

    over = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        request = post(f"http://127.0.0.1:{port}/a", response_seconds=0.3)
        with pytest.raises(ExchangeFailed):
            async with asyncio.timeout(10):
                await client.stream(request, pieces=pieces(), size_bytes=100 * MIB)
        over.set()
        await asyncio.sleep(0)


async def test_an_answer_that_comes_before_the_end_of_the_body_is_the_answer(client: HttpClient) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
        await writer.drain()
        await reader.read(1000)
        writer.close()

    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 100
            await asyncio.sleep(30)
            yield b"never"
        finally:
            closed.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        stream = await client.stream(post(f"http://127.0.0.1:{port}/a"), pieces=pieces(), size_bytes=10_000)
        assert stream.status == 413
        assert await whole(stream) == b"no"
        await asyncio.wait_for(closed.wait(), 5)  # nobody is asked for more of it


async def test_nobody_there_is_nobody_reached(client: HttpClient) -> None:
    with pytest.raises(ConnectFailed):
        await client.stream(get("http://127.0.0.1:9/a"))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_what_was_packed_unasked_is_unpacked(client: HttpClient, coding: str) -> None:
    content = os.urandom(1000) + b"x" * 3 * MIB
    packed = gzip.compress(content) if coding == "gzip" else zlib.compress(content)

    async def play(exchange: Exchange) -> None:
        await exchange.answer(packed, content_encoding=coding)

    async with raw_server(play) as server:
        stream = await client.stream(get(f"{server.url}/a"))
        assert {"content-encoding", "content-length"}.isdisjoint(stream.headers)
        assert await whole(stream) == content


async def test_a_body_without_a_length_ends_with_its_last_chunk_or_with_the_line(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.path == "/chunks":
            await exchange.send(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            )
        else:
            await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
            exchange.writer.close()

    async with raw_server(play) as server:
        for path in ("/chunks", "/line", "/chunks"):
            assert await whole(await client.stream(get(f"{server.url}{path}"))) == b"hello"
        assert server.connections == 2


async def test_nothing_but_the_head_is_an_answer_too(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        status = {"/none": b"204 No Content", "/same": b"304 Not Modified"}.get(exchange.path)
        if status is None:
            await exchange.answer(b"")
        else:
            await exchange.send(b"HTTP/1.1 %b\r\netag: x\r\n\r\n" % status)

    async with raw_server(play) as server:
        for path, status in (("/none", 204), ("/same", 304), ("/empty", 200)):
            stream = await client.stream(get(f"{server.url}{path}"))
            assert (stream.status, await whole(stream)) == (status, b"")
        assert server.connections == 1


async def test_a_line_that_was_closed_meanwhile_is_made_anew(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"hello")
        if exchange.number == 0:
            exchange.writer.close()

    async with raw_server(play) as server:
        for _ in range(2):
            request = get(f"{server.url}/a", repeatable=True)
            assert await whole(await client.stream(request)) == b"hello"
        assert server.connections == 2


async def test_many_at_once_do_not_get_each_others_bodies(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(exchange.path.encode() * 40_000)

    async with raw_server(play) as server:

        async def one(number: int) -> None:
            for again in range(3):
                path = f"/{number}-{again}"
                assert await whole(await client.stream(get(server.url + path))) == path.encode() * 40_000

        await asyncio.gather(*map(one, range(8)))
        assert server.connections <= 8
