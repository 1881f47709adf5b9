"""One exchange and the connections it runs on, over both event loops: what is used again, and what an answer may look like."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.servers import Exchange, Play, RawServer, raw_server
from imagen.domain.secret import Secret
from imagen.errors import ConnectFailed, ExchangeFailed, InvalidResponse
from imagen.transport.client import HttpClient
from imagen.transport.exchange import ConnectionPool
from imagen.transport.loop import new_event_loop
from imagen.transport.message import HttpRequest, HttpResponse

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
MIB = 1 << 20


@pytest.fixture(params=["stock", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def client(anyio_backend: object) -> AsyncIterator[HttpClient]:
    async with HttpClient(connect_seconds=5.0, user_agent="imagen/test") as opened:
        yield opened


def get(url: str, **facts: Any) -> HttpRequest:
    return post(url, **{"method": "GET", "body": None, "repeatable": True, **facts})


def post(url: str, **facts: Any) -> HttpRequest:
    usual = {"method": "POST", "body": b"{}", "response_seconds": 5.0, "limit_bytes": MIB}
    return HttpRequest(url=url, **{**usual, **facts})


async def hello(exchange: Exchange) -> None:
    await exchange.answer(b"hello")


def saying(*pieces: bytes, then_close: bool = False) -> Play:
    """A server that says this, piece by piece, whatever it was asked."""

    async def play(exchange: Exchange) -> None:
        for piece in pieces:
            await exchange.send(piece)
            await asyncio.sleep(0.002)
        if then_close:
            exchange.writer.close()

    return play


@asynccontextmanager
async def accepting(
    play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    host: str = "127.0.0.1",
) -> AsyncIterator[int]:
    """A server that does with each connection what it is told; yields its port."""
    lines: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        await play(reader, writer)

    server = await asyncio.start_server(accept, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for line in lines:
            line.transport.abort()
        await asyncio.sleep(0.01)


Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[str, asyncio.Queue[Line]]]:
    """A server that accepts and leaves the rest to the test: its address, and the lines that came."""
    came: asyncio.Queue[Line] = asyncio.Queue()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await came.put((reader, writer))

    async with accepting(note) as port:
        yield f"127.0.0.1:{port}", came


# --- which connections are used again ---


async def test_requests_at_the_same_time_have_connections_of_their_own(client: HttpClient):
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await exchange.answer(exchange.path.encode())

    async with raw_server(slow) as server:
        answers = await asyncio.gather(*(client.send(get(f"{server.url}/{n}")) for n in range(30)))
    assert [answer.body for answer in answers] == [b"/%d" % n for n in range(30)]
    assert server.connections == 30


async def test_the_warmest_connection_is_taken_first(client: HttpClient):
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        await exchange.answer()

    async with raw_server(slow) as server:
        await asyncio.gather(*(client.send(get(server.url)) for _ in range(5)))
        for _ in range(6):
            await client.send(get(server.url))
    assert server.connections == 5
    assert len({exchange.writer for exchange in server.exchanges[5:]}) == 1


async def test_each_origin_has_connections_of_its_own(client: HttpClient):
    async with raw_server(hello) as one, raw_server(hello) as other:
        for server in (one, other, one, other):
            await client.send(get(server.url))
    assert (one.connections, other.connections) == (1, 1)


async def test_a_connection_without_work_is_closed_after_a_while(anyio_backend: object):
    pool = ConnectionPool(connect_seconds=5.0, keep_alive_seconds=0.2)
    async with raw_server(hello) as server:
        for _ in range(2):
            await pool.exchange(get(server.url), patience_seconds=5.0)
        assert server.connections == 1
        await asyncio.sleep(0.5)
        assert pool._open == set()
        await pool.exchange(get(server.url), patience_seconds=5.0)
    assert server.connections == 2
    await pool.aclose()


async def test_a_connection_at_work_is_not_taken_for_an_idle_one(anyio_backend: object):
    pool = ConnectionPool(connect_seconds=5.0, keep_alive_seconds=0.05)

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.0 if exchange.number == 0 else 0.2)
        await exchange.answer(b"late")

    async with raw_server(slow) as server:
        for _ in range(2):
            assert (await pool.exchange(get(server.url), patience_seconds=5.0)).body == b"late"
    assert server.connections == 1
    await pool.aclose()


async def test_a_short_patience_counts_on_a_connection_that_had_a_long_one(client: HttpClient):
    async def once(exchange: Exchange) -> None:
        if exchange.number == 0:
            await exchange.answer()

    async with raw_server(once) as server:
        await client.send(post(server.url, response_seconds=60.0))
        started = asyncio.get_running_loop().time()
        with pytest.raises(ExchangeFailed, match="no answer came in time"):
            await client.send(post(server.url, response_seconds=0.1))
    assert asyncio.get_running_loop().time() - started < 5.0
    assert server.connections == 1


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"],
    ids=["connection: close", "HTTP/1.0"],
)
async def test_a_server_that_wants_to_close_is_believed(client: HttpClient, head: bytes):
    async with raw_server(saying(head + b"content-length: 2\r\n\r\nok")) as server:
        for _ in range(3):
            assert (await client.send(post(server.url))).body == b"ok"
    assert server.connections == 3


@pytest.mark.parametrize("unasked", [b"x", b"\r\n", OK + b"content-length: 4\r\n\r\nevil", b"\0"])
async def test_a_connection_that_says_something_unasked_is_not_used_again(client: HttpClient, unasked: bytes):
    said = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"%d" % exchange.number)
        await asyncio.sleep(0.01)  # by now the answer is read
        await exchange.send(unasked)
        said.set()

    async with raw_server(play) as server:
        for number in range(3):
            assert (await client.send(post(server.url))).body == b"%d" % number
            await said.wait()
            said.clear()
            await asyncio.sleep(0.01)
    assert server.connections == 3


@pytest.mark.parametrize("behind", [b"x", b"\0\xff", OK + b"content-length: 4\r\n\r\nevil", OK])
async def test_what_stands_behind_an_answer_is_not_the_next_answer(client: HttpClient, behind: bytes):
    async def play(exchange: Exchange) -> None:
        await exchange.send(OK + b"content-length: 1\r\n\r\n%d" % exchange.number + behind)

    async with raw_server(play) as server:
        for number in range(3):
            assert (await client.send(post(server.url))).body == b"%d" % number
    assert server.connections == 3


def deaf_to_the_second(how: str) -> Play:
    async def play(exchange: Exchange) -> None:
        if exchange.number != 1:
            await exchange.answer(b"hello")
        elif how == "reset":
            line = exchange.writer.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            exchange.reset()
        else:
            exchange.writer.close()

    return play


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_purchase_on_a_connection_that_just_ended_is_not_made_again(client: HttpClient, how: str):
    async with raw_server(deaf_to_the_second(how)) as server:
        await client.send(post(server.url))
        with pytest.raises(ExchangeFailed) as told:
            await client.send(post(server.url))
    assert told.value.delivered == "unknown"
    assert len(server.exchanges) == 2


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_look_on_a_connection_that_just_ended_is_made_again(client: HttpClient, how: str):
    async with raw_server(deaf_to_the_second(how)) as server:
        await client.send(get(server.url))
        assert (await client.send(get(server.url))).body == b"hello"
    assert (len(server.exchanges), server.connections) == (3, 2)


async def test_a_look_that_was_half_answered_is_left_to_whoever_asked(client: HttpClient):
    async def play(exchange: Exchange) -> None:
        if exchange.number == 0:
            await exchange.answer()
        else:
            await exchange.send(b"HTTP/1.1 ")
            exchange.writer.close()

    async with raw_server(play) as server:
        await client.send(get(server.url))
        with pytest.raises(ExchangeFailed, match="closed before an answer came"):
            await client.send(get(server.url))
    assert len(server.exchanges) == 2


async def test_closing_the_client_ends_what_is_under_way(client: HttpClient):
    async with listening() as (address, came):
        asking = asyncio.ensure_future(client.send(post(f"http://{address}/")))
        reader, _ = await came.get()
        await reader.readuntil(b"\r\n\r\n{}")
        await client.aclose()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        with pytest.raises(ExchangeFailed, match="closed before an answer came"):
            await asking


async def test_closing_the_client_closes_what_waits(client: HttpClient):
    async with listening() as (address, came):
        asking = asyncio.ensure_future(client.send(post(f"http://{address}/")))
        reader, writer = await came.get()
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(OK + b"content-length: 0\r\n\r\n")
        await asking
        await client.aclose()
        assert await asyncio.wait_for(reader.read(), 5) == b""


# --- who goes away ---


async def test_whoever_goes_away_takes_only_his_own_connection_along(client: HttpClient):
    asked = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        asked.set()
        await asyncio.sleep(10.0 if exchange.path == "/slow" else 0.0)
        await exchange.answer(b"quick")

    async with raw_server(play) as server:
        slow = asyncio.ensure_future(client.send(post(f"{server.url}/slow")))
        await asked.wait()
        await client.send(post(f"{server.url}/quick"))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert (await client.send(post(f"{server.url}/quick"))).body == b"quick"
    assert server.connections == 2


async def test_an_answer_to_somebody_who_just_left_goes_to_nobody(client: HttpClient):
    """The answer and the cancelling meet: the connection must not be handed to two."""

    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"%d" % exchange.number)

    async with raw_server(play) as server:
        for turns in range(25):
            leaving = asyncio.ensure_future(client.send(post(server.url)))
            for _ in range(turns % 8):
                await asyncio.sleep(0)
            leaving.cancel()
            staying = [asyncio.ensure_future(client.send(post(server.url))) for _ in range(2)]
            await asyncio.gather(leaving, return_exceptions=True)
            one, other = await asyncio.gather(*staying)
            assert one.body != other.body


async def test_whoever_goes_away_when_the_answer_is_there_leaves_the_connection_to_others(
    anyio_backend: object,
):
    pool = ConnectionPool(connect_seconds=5.0, keep_alive_seconds=5.0)
    async with raw_server(hello) as server:
        for _ in range(5):
            leaving = asyncio.ensure_future(pool.exchange(post(server.url), patience_seconds=5.0))
            begun = answered = False
            while not answered:
                await asyncio.sleep(0)
                waits = any(pool._idle.values())
                begun, answered = begun or (bool(pool._open) and not waits), begun and waits
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
    assert (len(server.exchanges), server.connections) == (5, 1)
    await pool.aclose()


async def test_whoever_goes_away_while_connecting_leaves_no_connection(client: HttpClient):
    async with listening() as (address, came):
        asking = asyncio.ensure_future(client.send(post(f"https://{address}/")))
        reader, _ = await came.get()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(reader.read(), 5)
        assert reader.at_eof()


async def test_whoever_goes_away_while_sending_closes_the_line(client: HttpClient):
    async with listening() as (address, came):
        asking = asyncio.ensure_future(client.send(post(f"http://{address}/", body=b"x" * (32 * MIB))))
        reader, _ = await came.get()
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        whole = await asyncio.wait_for(reader.read(), 5)
    assert 0 < len(whole) < 32 * MIB


# --- what an answer may look like ---


@pytest.mark.parametrize("status", [100, 102, 103])
async def test_interim_answers_are_skipped(client: HttpClient, status: int):
    interim = b"HTTP/1.1 %d Interim\r\nlink: </x>\r\nx-only: here\r\n\r\n" % status
    async with raw_server(saying(interim * 2, OK + b"content-length: 5\r\nx: y\r\n\r\nhello")) as server:
        for _ in range(2):
            response = await client.send(post(server.url))
            assert response == HttpResponse(200, {"content-length": "5", "x": "y"}, b"hello")
    assert server.connections == 1


async def test_interim_answers_without_end_are_not_waited_for(anyio_backend: object):
    async def play(exchange: Exchange) -> None:
        while not exchange.writer.is_closing():
            await exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.sleep(0.02)

    pool = ConnectionPool(connect_seconds=5.0, keep_alive_seconds=5.0)
    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed, match="no answer came in time"):
            await asyncio.wait_for(pool.exchange(post(server.url), patience_seconds=0.3), 10)
    await pool.aclose()


@pytest.mark.parametrize("fields", [b"", b"connection: upgrade\r\nupgrade: websocket\r\n"])
async def test_a_switch_of_protocols_that_nobody_asked_for_is_an_answer_and_the_last_one(
    client: HttpClient, fields: bytes
):
    async with raw_server(saying(b"HTTP/1.1 101 Switching\r\n" + fields + b"\r\n\x81\x02hi")) as server:
        for _ in range(2):
            response = await client.send(post(server.url))
            assert (response.status, response.body) == (101, b"")
    assert server.connections == 2


async def test_chunks_with_extensions_and_trailers_are_read(client: HttpClient):
    async with raw_server(
        saying(
            OK + b"Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n",
            b"5;name=value\r\nhello\r\n6\r\n",
            b" world\r\n",
            b"0\r\nx-sum: 1\r\ntrailer: x\r\n\r\n",
        )
    ) as server:
        for _ in range(2):
            response = await client.send(post(server.url))
            assert response.body == b"hello world"
            assert response.headers == {"transfer-encoding": "chunked", "trailer": "x-sum"}
    assert server.connections == 1


@pytest.mark.parametrize("head", [OK, b"HTTP/1.0 200 OK\r\n", OK + b"transfer-encoding: gzip\r\n"])
async def test_a_body_may_end_with_the_connection(client: HttpClient, head: bytes):
    async with raw_server(saying(head + b"\r\nhel", b"lo", then_close=True)) as server:
        for _ in range(2):
            assert (await client.send(post(server.url))).body == b"hello"
    assert server.connections == 2


async def test_a_body_that_a_reset_ends_is_not_whole(client: HttpClient):
    async def play(exchange: Exchange) -> None:
        await exchange.send(OK + b"\r\nhello")
        await asyncio.sleep(0.02)
        line = exchange.writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.reset()

    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed, match="broke off before its end"):
            await client.send(post(server.url))


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_that_have_no_body_end_with_their_head(client: HttpClient, status: int):
    async with raw_server(saying(b"HTTP/1.1 %d Word\r\netag: x\r\n\r\n" % status)) as server:
        for _ in range(2):
            assert (await client.send(post(server.url))) == HttpResponse(status, {"etag": "x"}, b"")
    assert server.connections == 1


async def test_an_answer_to_head_has_no_body_whatever_it_says(client: HttpClient):
    async with raw_server(saying(OK + b"content-length: 1000\r\n\r\n")) as server:
        response = await client.send(get(server.url, method="HEAD"))
    assert (response.body, response.headers["content-length"]) == (b"", "1000")


async def test_header_fields_come_in_lower_case_and_the_last_of_several_counts(client: HttpClient):
    said = OK + "Content-Length: 0\r\nX-A: one\r\nx-a:  two \t\r\nX-Empty: \r\nx-word: ü\r\n\r\n".encode()
    async with raw_server(saying(said)) as server:
        response = await client.send(get(server.url))
    assert response.headers == {"content-length": "0", "x-a": "two", "x-empty": "", "x-word": "ü"}


async def test_an_answer_may_come_byte_by_byte(client: HttpClient):
    said = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        + OK
        + b"x: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    )
    async with raw_server(saying(*(said[at : at + 1] for at in range(len(said))))) as server:
        response = await client.send(post(server.url))
    assert response == HttpResponse(200, {"x": "y", "transfer-encoding": "chunked"}, b"hi")


async def test_an_answer_that_comes_before_the_question_is_all_said_counts(client: HttpClient):
    """A server may refuse an upload from its head alone, and close."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        lines.append(writer)

    lines: list[asyncio.StreamWriter] = []
    async with accepting(refuse) as port:
        for _ in range(2):
            response = await client.send(post(f"http://127.0.0.1:{port}/", body=b"x" * (32 * MIB)))
            assert (response.status, response.body) == (413, b"no")
    assert len(lines) == 2, "what is half sent on the first is not waited for"


# --- answers that lie ---


async def test_a_length_that_is_too_short_cuts_the_answer_and_ends_the_connection(client: HttpClient):
    async with raw_server(saying(OK + b"content-length: 3\r\n\r\nhello")) as server:
        for _ in range(2):
            assert (await client.send(post(server.url))).body == b"hel"
    assert server.connections == 2


async def test_a_length_that_is_too_long_is_a_broken_answer(client: HttpClient):
    async with raw_server(saying(OK + b"content-length: 9\r\n\r\nhello")) as server:
        with pytest.raises(ExchangeFailed, match="no answer came in time"):
            await client.send(post(server.url, response_seconds=0.1))
    async with raw_server(saying(OK + b"content-length: 9\r\n\r\nhello", then_close=True)) as server:
        with pytest.raises(ExchangeFailed, match="broke off before its end"):
            await client.send(post(server.url))


@pytest.mark.parametrize(
    "fields",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: -5\r\n",
        b"content-length: +5\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"transfer-encoding: chunked, chunked\r\n\r\nzz\r\n",
        b"a b: c\r\n",
        b"a: b\0c\r\n",
    ],
)
async def test_answers_of_two_minds_are_none(client: HttpClient, fields: bytes):
    async with raw_server(saying(OK + fields + b"\r\n5\r\nhello\r\n0\r\n\r\n")) as server:
        with pytest.raises(ExchangeFailed, match="the connection failed"):
            await client.send(post(server.url))


async def test_a_length_larger_than_allowed_is_refused_before_anything_of_it_comes(client: HttpClient):
    async with raw_server(saying(OK + b"content-length: 999999999999\r\n\r\n")) as server:
        with pytest.raises(InvalidResponse, match="larger than 1 MiB"):
            await client.send(post(server.url))


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (OK, b"x: y\r\n"),
        (OK + b"x: ", b"xxxx"),
        (OK + b"x", b"xxxx"),
        (b"HTTP/1.1 200 ", b"OK OK "),
        (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
        (OK + b"transfer-encoding: chunked\r\n\r\n5;", b"x=y;"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"\r\n"),
    ],
    ids=["fields", "value", "name", "reason", "trailers", "extension", "interim", "empty lines"],
)
@pytest.mark.parametrize("piece", [1_000, 1_000_000])
async def test_a_head_without_end_is_left_early(client: HttpClient, start: bytes, more: bytes, piece: int):
    sent = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(start)
        while sent < 32 * MIB and not exchange.writer.is_closing():
            await exchange.send(more * (piece // len(more)))
            sent += piece

    async with raw_server(flood) as server:
        with pytest.raises(ExchangeFailed, match="more than 64 KiB beside its body"):
            await client.send(post(server.url, limit_bytes=64 * MIB))
    assert sent < 24 * MIB


async def test_a_head_of_many_fields_that_ends_is_read(client: HttpClient):
    fields = b"".join(b"x-%d: y\r\n" % number for number in range(1000))
    async with raw_server(saying(OK + fields + b"content-length: 0\r\n\r\n")) as server:
        assert len((await client.send(get(server.url))).headers) == 1001


async def test_a_whole_head_that_is_too_large_is_refused_too(client: HttpClient):
    fields = b"".join(b"x-%d: %b\r\n" % (number, b"y" * 10_930) for number in range(6))
    async with raw_server(saying(OK + fields + b"content-length: 0\r\n\r\n")) as server:
        with pytest.raises(ExchangeFailed, match="more than 64 KiB beside its body"):
            await client.send(get(server.url))


# --- packed answers ---

HELLO = b"hello" * 1000
PACKED = gzip.compress(HELLO, mtime=0)


@pytest.mark.parametrize(
    ("coding", "packed", "body"),
    [
        ("gzip", PACKED, HELLO),
        ("GZIP", PACKED, HELLO),
        ("gzip", PACKED + gzip.compress(b"!"), HELLO + b"!"),
        ("deflate", zlib.compress(HELLO), HELLO),
        ("deflate", zlib.compress(HELLO)[2:-4], HELLO),
        ("gzip", b"", b""),
        ("identity", HELLO, HELLO),
        ("br", b"as it is", b"as it is"),
    ],
    ids=["gzip", "capitals", "two members", "zlib", "raw", "nothing", "identity", "unknown"],
)
async def test_packed_answers_are_unpacked(client: HttpClient, coding: str, packed: bytes, body: bytes):
    async def play(exchange: Exchange) -> None:
        assert exchange.headers["accept-encoding"] == "identity"
        await exchange.answer(packed, content_encoding=coding)

    async with raw_server(play) as server:
        for _ in range(2):
            assert (await client.send(get(server.url))).body == body
    assert server.connections == 1


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", PACKED[:-1]),
        ("gzip", PACKED[:20]),
        ("gzip", PACKED + PACKED[:5]),
        ("gzip", b"hello"),
        ("gzip", PACKED[:-6] + b"\0\0\0\0\0\0"),
        ("deflate", zlib.compress(HELLO)[:-1]),
        ("deflate", b"\xffhello"),
    ],
    ids=["cut", "cut early", "second cut", "no gzip", "wrong sum", "zlib cut", "no deflate"],
)
async def test_what_cannot_be_unpacked_whole_is_a_broken_answer(
    client: HttpClient, coding: str, packed: bytes
):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(packed, content_encoding=coding)

    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed, match="broke off before its end"):
            await client.send(post(server.url))


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
async def test_the_limit_counts_what_was_unpacked(client: HttpClient, size: int, fits: bool):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(gzip.compress(b"\0" * size), content_encoding="gzip")

    async with raw_server(play) as server:
        asking = client.send(get(server.url, limit_bytes=1000))
        if fits:
            assert len((await asking).body) == 1000
        else:
            with pytest.raises(InvalidResponse):
                await asking


# --- what is sent ---


@pytest.mark.parametrize(
    "facts",
    [
        {"headers": {"x-a": "b\r\nx-c: d"}},
        {"headers": {"x-a": "b\nx-c: d"}},
        {"headers": {"x-a": "b\rx-c: d"}},
        {"headers": {"x-a": "b\0"}},
        {"headers": {"x-a\r\nx-b": "c"}},
        {"headers": {"x a": "b"}},
        {"headers": {"": "b"}},
        {"headers": {"x-ü": "b"}},
        {"headers": {"x-a": "\ud800"}},
        {"headers": {"Content-Length": "7"}},
        {"headers": {"transfer-encoding": "chunked"}},
        {"headers": {"host": "evil.example"}},
        {"bearer": Secret("r8\r\nx-c: d")},
        {"method": "GET / HTTP/1.1\r\nx-c: d\r\n\r\nGET"},
        {"method": "P OST"},
        {"method": ""},
    ],
)
async def test_no_request_says_more_than_it_should(client: HttpClient, facts: dict[str, Any]):
    async with raw_server(hello) as server:
        with pytest.raises(InvalidResponse, match=r"the connection failed \(ValueError\)"):
            await client.send(post(server.url, **facts))
    assert server.connections == 0


async def test_a_refused_request_keeps_its_token_to_itself(client: HttpClient):
    with pytest.raises(InvalidResponse) as told:
        await client.send(post("http://127.0.0.1:9/", headers={"x-a": "\ud800"}, bearer=Secret("r8_token")))
    error: BaseException | None = told.value
    while error is not None:
        assert "r8_token" not in repr((error, error.args))
        error = error.__cause__ or error.__context__


async def test_the_user_agent_says_no_second_line_either(anyio_backend: object):
    async with raw_server(hello) as server, HttpClient(user_agent="a\r\nx-c: d") as client:
        with pytest.raises(InvalidResponse):
            await client.send(get(server.url))


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "/"),
        ("?x=1", "/?x=1"),
        ("/v1/a%2Fb?x=1%2B2", "/v1/a%2Fb?x=1%2B2"),
        ("/a b/\u00fc?q=\u00fc", "/a%20b/%C3%BC?q=%C3%BC"),
        ('/100%/"<>', "/100%25/%22%3C%3E"),
        ("/x#fragment", "/x"),
        ("/x\r\nx-c: d", "/xx-c:%20d"),
        ("/x\0", "/x%00"),
    ],
)
async def test_every_address_fits_into_the_first_line(client: HttpClient, path: str, sent: str):
    async with raw_server(hello) as server:
        await client.send(get(server.url + path))
    assert server.exchanges[0].path == sent


@pytest.mark.parametrize(
    ("facts", "length", "kind"),
    [
        ({"method": "GET", "body": None}, None, None),
        ({"method": "POST", "body": None}, "0", None),
        ({"method": "POST", "body": b""}, "0", None),
        ({"method": "POST", "body": b"abc"}, "3", "application/octet-stream"),
        ({"method": "POST", "body": b"abc", "headers": {"Content-Type": "a/b"}}, "3", "a/b"),
    ],
)
async def test_the_head_tells_how_long_the_body_is(
    client: HttpClient, facts: dict[str, Any], length: str | None, kind: str | None
):
    async with raw_server(hello) as server:
        await client.send(HttpRequest(url=server.url, **facts))
    told = server.exchanges[0].headers
    assert (told.get("content-length"), told.get("content-type")) == (length, kind)
    assert told["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 3_000_000])
async def test_bodies_of_every_size_arrive_whole(client: HttpClient, size: int):
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    async with raw_server(hello) as server:
        for _ in range(2):
            await client.send(post(server.url, body=body))
    assert [exchange.body == body for exchange in server.exchanges] == [True, True]
    assert server.connections == 1


# --- how a connection is made ---


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


async def test_a_certificate_that_the_environment_names_is_trusted(
    trusted: None, client: HttpClient, self_signed: ssl.SSLContext
):
    self_signed.set_alpn_protocols(["h2", "http/1.1"])
    chosen: list[str | None] = []
    named: list[str | None] = []
    self_signed.sni_callback = lambda _line, name, _context: named.append(name)

    async def play(exchange: Exchange) -> None:
        chosen.append(exchange.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await exchange.answer(b"x" * 300_000)

    async with raw_server(play, tls=self_signed) as server:
        for _ in range(2):
            assert len((await client.send(post(server.url, body=b"y" * 300_000))).body) == 300_000
    assert (server.connections, chosen, named) == (1, ["http/1.1"] * 2, ["localhost"])


async def test_a_trusted_certificate_of_another_host_is_not_trusted(
    trusted: None, client: HttpClient, self_signed: ssl.SSLContext
):
    async with raw_server(hello, tls=self_signed) as server:
        with pytest.raises(ConnectFailed, match="certificate of the host is not trusted"):
            await client.send(post(f"https://127.0.0.1:{server.port}/"))
    assert server.exchanges == []


def answer_names(monkeypatch: pytest.MonkeyPatch, *ports: int) -> list[str]:
    """From now on every name has these ports on this machine as its addresses; returns the names asked for."""
    asked: list[str] = []
    really = asyncio.get_running_loop().getaddrinfo

    async def find(host: str, port: int, **facts: Any) -> list[tuple[Any, ...]]:
        if host[0].isdigit():  # uvloop asks again about the numbers that it is given
            return await really(host, port, **facts)
        asked.append(host)
        await asyncio.sleep(0.02)
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, ("127.0.0.1", each)) for each in ports]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", find)
    return asked


async def test_a_host_with_two_addresses_is_reached_on_the_second(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        refused = held.getsockname()[1]
    async with raw_server(hello) as server:
        answer_names(monkeypatch, refused, server.port)
        assert (await client.send(post("http://localhost:1234/"))).body == b"hello"
    assert server.exchanges[0].headers["host"] == "localhost:1234"


async def test_an_address_that_fails_at_tls_leaves_the_turn_to_the_next(
    trusted: None, client: HttpClient, monkeypatch: pytest.MonkeyPatch, self_signed: ssl.SSLContext
):
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    async with accepting(greet) as other, raw_server(hello, tls=self_signed) as server:
        answer_names(monkeypatch, other, server.port)
        assert (await client.send(post("https://localhost/"))).body == b"hello"
    assert server.exchanges[0].headers["host"] == "localhost"


async def test_many_who_ask_for_one_host_share_the_look_up(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
):
    async with raw_server(hello) as server:
        asked = answer_names(monkeypatch, server.port)
        first, *others = [asyncio.ensure_future(client.send(get("http://localhost/"))) for _ in range(20)]
        await asyncio.sleep(0.005)
        first.cancel()
        assert [answer.body for answer in await asyncio.gather(*others)] == [b"hello"] * 19
        await client.send(get("http://localhost/"))
    assert asked == ["localhost"]


async def test_a_look_up_that_failed_is_not_remembered(client: HttpClient, monkeypatch: pytest.MonkeyPatch):
    async def nothing(*arguments: object, **keywords: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    with monkeypatch.context() as patched:
        patched.setattr(asyncio.get_running_loop(), "getaddrinfo", nothing)
        with pytest.raises(ConnectFailed, match="could not be resolved"):
            await client.send(get("http://localhost/"))
    async with raw_server(hello) as server:
        answer_names(monkeypatch, server.port)
        assert (await client.send(get("http://localhost/"))).body == b"hello"


async def test_hosts_are_asked_by_number_too(client: HttpClient):
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK + b"content-length: 0\r\n\r\n")

    asked: list[bytes] = []
    try:
        async with accepting(play, "::1") as port:
            await client.send(get(f"http://[::1]:{port}/"))
    except OSError:
        pytest.skip("no IPv6 here")
    assert b"\r\nhost: [::1]:%d\r\n" % port in asked[0]


async def test_a_connection_that_ended_before_anything_was_sent_surely_carried_nothing(anyio_backend: object):
    pool = ConnectionPool(connect_seconds=5.0, keep_alive_seconds=5.0)
    async with raw_server(hello) as server:
        request = post(server.url)
        connection = await pool._connect((False, "127.0.0.1", server.port), request)
        connection.close()
        with pytest.raises(ConnectFailed, match="closed before an answer came"):
            await connection.exchange(request, b"", patience_ends=asyncio.get_running_loop().time() + 5)
    assert server.exchanges == []
    await pool.aclose()


# --- any valid answer, in any pieces ---

bodies = st.binary(max_size=300)
fields = st.dictionaries(
    st.from_regex(r"x-[a-z]{1,8}", fullmatch=True), st.from_regex(r"[!-~]{0,12}", fullmatch=True), max_size=4
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, HttpResponse]:
    """The bytes of an answer, and what they say."""
    status, said, body = draw(st.sampled_from([200, 201, 404, 500])), draw(fields), draw(bodies)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    packed = gzip.compress(body) if draw(st.booleans()) else None
    if packed is not None:
        said = {**said, "content-encoding": "gzip"}
    carried = body if packed is None else packed
    if framing == "length":
        said = {**said, "content-length": str(len(carried))}
    elif framing == "chunked":
        said = {**said, "transfer-encoding": "chunked"}
        cuts = sorted(draw(st.sets(st.integers(0, len(carried)), max_size=4)) | {0, len(carried)})
        parts = [carried[start:end] for start, end in itertools.pairwise(cuts)]
        trailer = draw(st.sampled_from([b"", b"x-trailer: 1\r\n"]))
        carried = (
            b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
        )
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n"]))
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items()).encode()
    return interim + b"HTTP/1.1 %d Word\r\n%b\r\n%b" % (status, lines, carried), HttpResponse(
        status, said, body
    )


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, new_event_loop], ids=["stock", "uvloop"])
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    script: list[bytes] = []

    async def play(exchange: Exchange) -> None:
        for piece in script:
            await exchange.send(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if exchange.headers["x-ends"] == "close":
            exchange.writer.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        scene = Scene(play)
        server = runner.run(scene.open())

        @given(answer=answers(), cuts=st.sets(st.integers(0, 700), max_size=12))
        @settings(max_examples=150)
        def check(answer: tuple[bytes, HttpResponse], cuts: set[int]) -> None:
            said, meant = answer
            ends = [*sorted(cut for cut in cuts if cut < len(said)), len(said)]
            script[:] = [
                said[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if start < end
            ]
            framed = {"content-length", "transfer-encoding"} & set(meant.headers)
            headers = {"x-ends": "kept" if framed else "close"}
            assert runner.run(scene.client.send(get(server.url, headers=headers))) == meant

        check()
        runner.run(scene.close())


class Scene:
    """A server and a client that outlive the single run of a loop."""

    def __init__(self, play: Play) -> None:
        self._server = raw_server(play)
        self.client = HttpClient()

    async def open(self) -> RawServer:
        return await self._server.__aenter__()

    async def close(self) -> None:
        await self.client.aclose()
        await self._server.__aexit__(None, None, None)
