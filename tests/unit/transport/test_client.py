"""Bytes over real sockets: what goes wrong on a line, and what that says about the request having arrived."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.servers import Exchange, Play, raw_server
from imagen.domain.secret import Secret
from imagen.errors import ConnectFailed, DeliveryError, ExchangeFailed, InvalidResponse, TransportError
from imagen.transport import client as client_module
from imagen.transport.client import HttpClient, follow_redirect
from imagen.transport.message import HttpRequest, is_loopback, origin

pytestmark = pytest.mark.anyio

TOKEN = Secret("r8_token")
MIB = 1 << 20


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[HttpClient]:
    async with HttpClient(connect_seconds=5.0, user_agent="imagen/test") as opened:
        yield opened


def get(url: str, **facts: Any) -> HttpRequest:
    return HttpRequest(method="GET", url=url, **{"response_seconds": 5.0, **facts})


def post(url: str, **facts: Any) -> HttpRequest:
    return HttpRequest(method="POST", url=url, **{"response_seconds": 5.0, "body": b"{}", **facts})


async def hello(exchange: Exchange) -> None:
    await exchange.answer(b"hello")


# --- the good case ---


async def test_a_request_arrives_as_it_was_built(client: HttpClient):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b'{"a": 1}', 201, X_Request_Id="req-1")

    async with raw_server(play) as server:
        request = post(
            f"{server.url}/v1/a%2Fb?x=1%2B2", headers={"prefer": "wait=5"}, body=b"bytes", bearer=TOKEN
        )
        response = await client.send(request)
    assert (response.status, response.body, response.headers["x-request-id"]) == (201, b'{"a": 1}', "req-1")
    (exchange,) = server.exchanges
    assert exchange.head.startswith(b"POST /v1/a%2Fb?x=1%2B2 HTTP/1.1\r\n")
    assert exchange.body == b"bytes"
    assert exchange.headers["authorization"] == "Bearer r8_token"
    assert exchange.headers["user-agent"] == "imagen/test"
    assert exchange.headers["prefer"] == "wait=5"


async def test_without_a_token_there_is_no_authorization(client: HttpClient):
    async with raw_server(hello) as server:
        await client.send(get(server.url))
    assert "authorization" not in server.exchanges[0].headers


@pytest.mark.parametrize("status", [200, 301, 404, 429, 500])
async def test_every_status_is_an_answer(client: HttpClient, status: int):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"said", status, location="/elsewhere")

    async with raw_server(play) as server:
        response = await client.send(get(server.url))
    assert (response.status, response.body) == (status, b"said")
    assert len(server.exchanges) == 1, "no redirect is followed"


async def test_one_connection_carries_many_requests(client: HttpClient):
    async with raw_server(hello) as server:
        for _ in range(20):
            await client.send(post(server.url))
        assert server.connections == 1
        await asyncio.gather(*(client.send(post(server.url)) for _ in range(10)))
        warm = server.connections
        for _ in range(3):
            await asyncio.gather(*(client.send(post(server.url)) for _ in range(10)))
        assert warm <= 11
        assert server.connections == warm, "a warm client opens nothing new"


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again(client: HttpClient):
    async with raw_server(hello) as server:
        await client.send(post(server.url))
        server.lines[0].close()
        await server.lines[0].wait_closed()
        await asyncio.sleep(0.01)  # the end of the line is on its way to the client
        assert (await client.send(post(server.url))).body == b"hello"
    assert server.connections == 2


async def test_a_closed_client_opens_again_and_closing_twice_does_no_harm(client: HttpClient):
    async with raw_server(hello) as server:
        await client.aclose()
        assert (await client.send(get(server.url))).body == b"hello"
        await client.aclose()
        await client.aclose()


async def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    async with raw_server(hello) as server, HttpClient() as client:
        assert (await client.send(get(server.url))).body == b"hello"
        with pytest.raises(ConnectFailed):
            await client.send(get("https://api.replicate.com/v1/account"))


# --- what goes wrong before anything was sent ---


def unused_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def is_certain(error: TransportError) -> bool:
    return error.delivered == "no" and error.retryable


async def test_a_request_is_told_to_leave_before_its_first_byte(client: HttpClient):
    told: list[int] = []
    async with raw_server(hello) as server:
        for _ in range(2):  # on a fresh connection, and on one that is open already
            await client.send(post(server.url, on_send=lambda: told.append(len(server.exchanges))))
    assert told == [0, 1]


async def test_a_refused_connection_surely_did_not_arrive(client: HttpClient):
    with pytest.raises(ConnectFailed, match=r"^POST 127\.0\.0\.1/v1/x: the connection was refused") as told:
        await client.send(post(f"http://127.0.0.1:{unused_port()}/v1/x?secret=1"))
    assert is_certain(told.value)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("way", ["send", "download"])
async def test_a_name_that_cannot_be_resolved_is_told(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
):
    async def nothing(*arguments: object, **keywords: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nothing)
    request = get("https://api.replicate.com/v1/account")
    with pytest.raises(ConnectFailed, match="could not be resolved") as told:
        await (client.send(request) if way == "send" else client.download(request, tmp_path / "x"))
    assert is_certain(told.value)


@pytest.mark.parametrize("way", ["send", "download"])
async def test_a_name_server_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
):
    async def forever(*arguments: object, **keywords: object) -> None:
        await asyncio.Event().wait()

    async with HttpClient(connect_seconds=0.05) as client:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", forever)
        request = get("https://api.replicate.com/v1/account")
        with pytest.raises(ConnectFailed, match="no connection could be made in time") as told:
            await (client.send(request) if way == "send" else client.download(request, tmp_path / "x"))
    assert is_certain(told.value)


async def ended(server: asyncio.Server, lines: list[asyncio.StreamWriter]) -> None:
    """See the server and every line to it closed, so that nothing of them is left to the next test."""
    server.close()
    for line in lines:
        line.transport.abort()
    await asyncio.sleep(0.01)


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The https address of a server that never shakes hands, and when it was reached."""
    lines: list[asyncio.StreamWriter] = []
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        reached.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", reached
    await ended(server, lines)


async def test_a_host_that_does_not_finish_connecting_is_not_waited_for():
    async with silent_server() as (url, _), HttpClient(connect_seconds=0.1) as client:
        with pytest.raises(ConnectFailed, match="no connection could be made in time") as told:
            await client.send(get(url))
    assert is_certain(told.value)


async def test_what_is_canceled_while_it_connects_never_left():
    told: list[bool] = []
    async with silent_server() as (url, reached), HttpClient(connect_seconds=5.0) as client:
        sending = asyncio.create_task(client.send(post(url, on_send=lambda: told.append(True))))
        await reached.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert told == []


async def test_a_certificate_that_nobody_signed_is_not_trusted(
    client: HttpClient, self_signed: ssl.SSLContext
):
    async with raw_server(hello, tls=self_signed) as server:
        with pytest.raises(ConnectFailed, match="certificate of the host is not trusted") as told:
            await client.send(post(f"{server.url}/", bearer=TOKEN))
    assert is_certain(told.value)
    assert server.exchanges == []


async def test_a_host_that_speaks_no_tls_is_told(client: HttpClient):
    lines: list[asyncio.StreamWriter] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    with pytest.raises(ConnectFailed, match="no TLS connection could be made"):
        await client.send(get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    await ended(server, lines)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.replicate.com/v1",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost.evil.example/",
        "http://127.0.0.1.evil.example/",
        "http://127.0.0.1@evil.example/",
        "http://127.0.0.256/",
        "http://127.0.0.\u00b2/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1/",
        "data:image/png;base64,AAAA",
        "//127.0.0.1/",
        "/etc/passwd",
        "https://",
        "https:///x",
        "https://[",
        "https://a:port/",
        "",
        "\0",
    ],
)
@pytest.mark.parametrize("way", ["send", "download"])
async def test_unsafe_addresses_are_not_asked_at_all(client: HttpClient, tmp_path: Path, url: str, way: str):
    with pytest.raises(InvalidResponse):
        await (client.send(get(url)) if way == "send" else client.download(get(url), tmp_path / "x"))


# --- what goes wrong after it was sent ---


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def close(exchange: Exchange) -> None:
    exchange.writer.close()


async def cut_body(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 50)
    exchange.writer.close()


async def cut_chunks(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
    exchange.writer.close()


async def cut_head(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    exchange.writer.close()


async def no_http(exchange: Exchange) -> None:
    await exchange.send(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n\r\n")
    exchange.writer.close()


async def binary(exchange: Exchange) -> None:
    await exchange.send(bytes(range(256)) * 8)
    exchange.writer.close()


async def wrong_length(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\nhello")
    exchange.writer.close()


async def endless_header(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000 + b"\r\n\r\n")
    exchange.writer.close()


async def wrong_chunks(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n")
    exchange.writer.close()


BROKEN = [
    (reset, "."),
    (close, "closed before an answer came"),
    (cut_body, "broke off before its end"),
    (cut_chunks, "broke off before its end"),
    (cut_head, "."),
    (no_http, "."),
    (binary, "."),
    (wrong_length, "."),
    (endless_header, "."),
    (wrong_chunks, "."),
]


@pytest.mark.parametrize(("play", "said"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
async def test_a_line_that_breaks_leaves_it_unknown_whether_it_arrived(
    client: HttpClient, play: Play, said: str
):
    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed, match=said) as told:
            await client.send(post(f"{server.url}/v1/predictions"))
    assert told.value.delivered == "unknown"
    assert "POST 127.0.0.1/v1/predictions" in told.value.detail
    assert len(server.exchanges) == 1, "a POST is never sent twice by itself"


@pytest.mark.parametrize(("play", "said"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
async def test_a_download_that_breaks_is_no_download(
    client: HttpClient, tmp_path: Path, play: Play, said: str
):
    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed, match=said):
            await client.download(get(f"{server.url}/a.png"), tmp_path / "x")


async def say_nothing(exchange: Exchange) -> None:
    await asyncio.Event().wait()


async def stop_in_head(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    await asyncio.Event().wait()


async def stop_in_body(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 50)
    await asyncio.Event().wait()


@pytest.mark.parametrize("play", [say_nothing, stop_in_head, stop_in_body])
async def test_whoever_stops_talking_is_not_waited_for(client: HttpClient, tmp_path: Path, play: Play):
    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed, match="no answer came in time") as told:
            await client.send(post(server.url, response_seconds=0.1))
        assert told.value.delivered == "unknown"
        with pytest.raises(ExchangeFailed, match="no answer came in time"):
            await client.download(get(server.url, response_seconds=0.1), tmp_path / "x")


async def test_an_answer_may_take_longer_in_all_than_between_its_parts(client: HttpClient):
    async def trickle(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.1)
            await exchange.send(b"x")

    async with raw_server(trickle) as server:
        assert (await client.send(get(server.url, response_seconds=0.4))).body == b"xxxxxx"


async def test_a_server_that_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        writer.transport.pause_reading()

    lines: list[asyncio.StreamWriter] = []
    monkeypatch.setattr(client_module, "_SLOWEST_UPLOAD", 1 << 40)
    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with HttpClient(connect_seconds=0.2) as client:
        with pytest.raises(ExchangeFailed, match="no answer came in time") as told:
            await client.send(post(f"http://127.0.0.1:{port}/", body=b"x" * (32 * MIB), response_seconds=0.2))
    assert told.value.delivered == "unknown"
    await ended(server, lines)


async def test_whoever_goes_away_closes_the_line(client: HttpClient):
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        asked.set()
        ended.set_result(await reader.read())
        writer.close()

    asked, ended = asyncio.Event(), asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    asking = asyncio.ensure_future(client.send(post(f"http://127.0.0.1:{port}/")))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await asyncio.wait_for(ended, 5) == b""
    server.close()


async def test_a_large_upload_arrives_whole(client: HttpClient):
    content = bytes(range(256)) * 16_384
    async with raw_server(hello) as server:
        await client.send(
            post(server.url, body=content, headers={"content-type": "multipart/form-data; boundary=x"})
        )
    (exchange,) = server.exchanges
    assert exchange.body == content
    assert exchange.headers["content-type"] == "multipart/form-data; boundary=x"


# --- answers that are too large ---


class Flood:
    """Sends `size` bytes, as far as anybody takes them."""

    def __init__(self, head: bytes, size: int = 200 * MIB) -> None:
        self.sent = 0
        self._head = head
        self._size = size

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + self._head + b"\r\n")
        while self.sent < self._size:
            await exchange.send(b"x" * 65_536)
            self.sent += 65_536
        exchange.writer.close()


@pytest.mark.parametrize("head", [b"", b"content-length: 209715200\r\n"])
@pytest.mark.parametrize("way", ["send", "download"])
async def test_an_answer_that_is_too_large_is_left_early(
    client: HttpClient, tmp_path: Path, way: str, head: bytes
):
    flood = Flood(head)
    async with raw_server(flood) as server:
        request = get(server.url, limit_bytes=2 * MIB)
        tracemalloc.start()
        with pytest.raises(InvalidResponse, match=r"2 MiB"):
            await (client.send(request) if way == "send" else client.download(request, tmp_path / "x"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert flood.sent < 32 * MIB
    assert peak < 24 * MIB


@pytest.mark.parametrize("way", ["send", "download"])
async def test_an_answer_that_unpacks_to_something_too_large_is_left_early(
    client: HttpClient, tmp_path: Path, way: str
):
    bomb = gzip.compress(b"\0" * (100 * MIB), 9)

    async def play(exchange: Exchange) -> None:
        await exchange.answer(bomb, content_encoding="gzip")

    async with raw_server(play) as server:
        request = get(server.url, limit_bytes=2 * MIB)
        tracemalloc.start()
        with pytest.raises(InvalidResponse, match=r"2 MiB"):
            await (client.send(request) if way == "send" else client.download(request, tmp_path / "x"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 24 * MIB


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
async def test_the_limit_itself_still_fits(client: HttpClient, tmp_path: Path, size: int, fits: bool):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"x" * size)

    async with raw_server(play) as server:
        for way in (client.send(get(server.url, limit_bytes=1000)), client.download(get(server.url, limit_bytes=1000), tmp_path / "x")):  # fmt: skip
            if fits:
                await way
            else:
                with pytest.raises(InvalidResponse):
                    await way


# --- downloads ---


async def test_a_download_lands_whole_in_its_file(client: HttpClient, tmp_path: Path):
    content = bytes(range(256)) * 4096

    async def play(exchange: Exchange) -> None:
        await exchange.answer(content, content_type="image/png")

    (tmp_path / "x").write_bytes(b"old and longer" * 100_000)
    async with raw_server(play) as server:
        got = await client.download(get(server.url), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    assert (got.status, got.size_bytes, got.headers["content-type"]) == (200, len(content), "image/png")
    assert content.startswith(got.head)
    assert len(got.head) == 512


async def test_a_refused_download_is_told_by_its_status(client: HttpClient, tmp_path: Path):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"gone", 410)

    async with raw_server(play) as server:
        assert (await client.download(get(server.url), tmp_path / "x")).status == 410


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_download_follows_five_moves_and_no_sixth(client: HttpClient, tmp_path: Path, status: int):
    async def play(exchange: Exchange) -> None:
        left = int(exchange.path.strip("/"))
        if left:
            await exchange.answer(b"", status, location=f"/{left - 1}")
        else:
            await exchange.answer(b"picture")

    async with raw_server(play) as server:
        assert (await client.download(get(f"{server.url}/5"), tmp_path / "x")).size_bytes == 7
        with pytest.raises(InvalidResponse, match="moved more than 5 times"):
            await client.download(get(f"{server.url}/6"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"picture"


async def test_a_move_without_an_address_ends(client: HttpClient, tmp_path: Path):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"", 302)

    async with raw_server(play) as server:
        with pytest.raises(InvalidResponse):
            await client.download(get(server.url), tmp_path / "x")
    assert len(server.exchanges) <= 6


async def test_the_token_stays_with_its_own_origin(client: HttpClient, tmp_path: Path):
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.answer(b"picture")

    async with raw_server(elsewhere) as other:

        async def play(exchange: Exchange) -> None:
            moved = "/second" if exchange.path == "/first" else f"{other.url}/third"
            await exchange.answer(b"", 302, location=moved)

        async with raw_server(play) as server:
            await client.download(get(f"{server.url}/first", bearer=TOKEN), tmp_path / "x")
            assert [one.headers.get("authorization") for one in server.exchanges] == ["Bearer r8_token"] * 2
    assert [one.path for one in other.exchanges] == ["/third"]
    assert "authorization" not in other.exchanges[0].headers


@pytest.mark.parametrize(
    "location",
    [
        "http://replicate.delivery/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:text/plain,x",
        "https://[",
        "http://h:port/",
    ],
)
async def test_a_move_to_an_unsafe_place_is_not_made(client: HttpClient, tmp_path: Path, location: str):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"", 302, location=location)

    async with raw_server(play) as server:
        with pytest.raises(InvalidResponse):
            await client.download(get(server.url), tmp_path / "x")


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:8080/", "https://localhost/", "http://[::1]/", "//127.0.0.1/"]
)
def test_the_world_outside_does_not_lead_to_this_machine(location: str):
    with pytest.raises(InvalidResponse, match="this machine"):
        follow_redirect(get("https://replicate.delivery/a.png"), location)


@pytest.mark.parametrize(
    ("location", "url", "keeps_token"),
    [
        ("b.png", "https://api.replicate.com/files/b.png", True),
        ("https://API.replicate.com:443/x", "https://API.replicate.com:443/x", True),
        ("https://replicate.delivery/x", "https://replicate.delivery/x", False),
        ("http://api.replicate.com/x", "http://api.replicate.com/x", False),
        ("https://api.replicate.com:444/x", "https://api.replicate.com:444/x", False),
    ],
)
def test_where_a_move_leads_and_what_it_takes_along(location: str, url: str, keeps_token: bool):
    asked = get("https://api.replicate.com/files/a.png", bearer=TOKEN, limit_bytes=5)
    moved = follow_redirect(asked, location)
    assert (moved.url, moved.bearer, moved.limit_bytes) == (url, TOKEN if keeps_token else None, 5)


@pytest.mark.parametrize("size", [1, 5000, 300_000, 3_000_000])
async def test_a_full_disk_is_not_taken_for_a_broken_line(client: HttpClient, size: int):
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"x" * size)

    async with raw_server(play) as server:
        with pytest.raises(DeliveryError, match=r"^/dev cannot be written: No space left on device"):
            await client.download(get(server.url), Path("/dev/full"))


async def test_a_folder_that_is_not_there_is_told(client: HttpClient, tmp_path: Path):
    async with raw_server(hello) as server:
        with pytest.raises(DeliveryError, match="No such file or directory"):
            await client.download(get(server.url), tmp_path / "no" / "x")
        with pytest.raises(DeliveryError, match="Is a directory"):
            await client.download(get(server.url), tmp_path)
        assert (await client.send(get(server.url))).body == b"hello"


# --- addresses ---


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("127.0.0.256", False),
        ("127.1", False),
        ("127.0.0.\u00b2", False),
        ("127.0.0.", False),
        ("0.0.0.0", False),  # noqa: S104 - only looked at
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("", False),
        (None, False),
    ],
)
def test_which_hosts_can_only_mean_this_machine(host: str | None, own: bool):
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.b", "https://A.B:443/x?y", True),
        ("http://a.b:80/", "http://a.b", True),
        ("https://a.b", "http://a.b", False),
        ("https://a.b", "https://a.b:444", False),
        ("https://a.b", "https://a.b.c", False),
        ("https://a.b", "https://a.b@c", False),
        ("https://a.b", "https://[", False),
    ],
)
def test_what_an_origin_is(one: str, other: str, same: bool):
    assert (origin(one) == origin(other)) is same
