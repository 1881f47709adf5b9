"""Messages to addresses that strangers have named: where they go, where they do not, and what is taken of an answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.servers import Exchange, raw_server
from imagen.errors import ConnectFailed, ExchangeFailed, InvalidResponse, TransportError
from imagen.transport.client import NOT_PUBLIC, PublicPoster

pytestmark = pytest.mark.anyio

BODY = b'{"type":"prediction.completed"}'
SECONDS = 3.0


class Names:
    """A name server that says what it is told to."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in self.names[host]
        ]


async def say_ok(exchange: Exchange) -> None:
    await exchange.answer(b"thanks")


async def posted(url: str, **facts: Any) -> tuple[int, dict[str, str]]:
    poster = PublicPoster(**facts)
    try:
        answer = await poster.post(url, headers={"webhook-id": "msg_1"}, body=BODY)
    finally:
        await poster.aclose()
    assert answer.body == b""
    return answer.status, dict(answer.headers)


async def test_a_message_arrives_whole_and_its_status_is_told():
    async with raw_server(say_ok) as server:
        status, headers = await posted(f"{server.url}/hook?x=1", private=True, user_agent="imagen/9")
        (came,) = server.exchanges
    assert (status, headers["content-length"]) == (200, "6")
    assert came.head.startswith(b"POST /hook?x=1 HTTP/1.1\r\n")
    assert came.body == BODY
    assert came.headers["webhook-id"] == "msg_1"
    assert came.headers["user-agent"] == "imagen/9"
    assert {"cookie", "authorization", "proxy-authorization", "referer"}.isdisjoint(came.headers)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"])
async def test_a_name_that_leads_inside_is_not_called(address: str):
    names = Names(**{"inside.example": [address]})
    with pytest.raises(InvalidResponse, match=NOT_PUBLIC):
        await posted("https://inside.example/hook", look_up=names)
    assert names.asked == ["inside.example"]


async def test_of_a_name_that_leads_to_both_only_the_public_address_is_called():
    """Whoever offers one address for the check and another for the call gets no call at the other."""
    async with raw_server(say_ok) as server:
        names = Names(**{"both.example": ["2001:db8::1", "127.0.0.1", "240.0.0.1"]})
        with pytest.raises(InvalidResponse, match=NOT_PUBLIC):
            await posted(f"https://both.example:{server.port}/hook", look_up=names)
        assert server.connections == 0


async def test_a_name_is_asked_once_so_that_what_was_checked_is_what_is_called():
    async with raw_server(say_ok) as server:
        names = Names(**{"rebound.example": ["127.0.0.1"]})

        def rebinding(host: str, port: int) -> list[tuple[Any, ...]]:
            found = names(host, port)
            names.names[host] = ["127.0.0.9"]
            return found

        url = f"http://rebound.example:{server.port}/"
        assert (await posted(url, private=True, look_up=rebinding))[0] == 200
        assert names.asked == ["rebound.example"]
        with pytest.raises(ConnectFailed):
            await posted(url, private=True, look_up=rebinding)
        assert len(server.exchanges) == 1


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0",
    ],
)
async def test_an_address_without_a_name_is_not_called_either_however_it_is_written(host: str):
    """These never meet the name server of the test: the system itself would take most of them for this machine."""
    async with raw_server(say_ok) as server:
        with pytest.raises(TransportError) as raised:
            await posted(f"https://{host}:{server.port}/hook")
        assert server.connections == 0
    assert raised.value.delivered != "yes"


async def test_the_system_itself_would_have_connected():
    """So that the test above says something: with everything allowed the same addresses lead here."""
    async with raw_server(say_ok) as server:
        for host in ("127.0.0.1", "0x7f.1", "localhost"):
            assert (await posted(f"http://{host}:{server.port}/", private=True))[0] == 200
        assert server.connections == 3


@pytest.mark.parametrize("url", ["http://a.example/", "ftp://a.example/", "a.example", ""])
async def test_plain_http_and_other_schemes_are_not_spoken(url: str):
    names = Names(**{"a.example": ["8.8.8.8"]})
    with pytest.raises(InvalidResponse, match="https"):
        await posted(url, look_up=names)
    assert names.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_nobody_goes_there(status: int):
    async with raw_server(say_ok) as other:

        async def send_away(exchange: Exchange) -> None:
            await exchange.answer(b"", status, location=f"{other.url}/elsewhere")

        async with raw_server(send_away) as server:
            assert (await posted(f"{server.url}/hook", private=True))[0] == status
            assert len(server.exchanges) == 1
        assert other.connections == 0


async def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch):
    async with raw_server(say_ok) as proxy, raw_server(say_ok) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://user:password@127.0.0.1:{proxy.port}")
        assert (await posted(server.url, private=True))[0] == 200
        assert (len(server.exchanges), proxy.connections) == (1, 0)


async def test_an_endless_answer_is_not_read_to_its_end():
    sent = 0

    async def talk(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n")
        while True:
            await exchange.send(b"x" * 65536)
            sent += 65536

    async with raw_server(talk) as server:
        began = time.monotonic()
        assert (await posted(server.url, private=True))[0] == 200
        assert time.monotonic() - began < 5
        await asyncio.sleep(0)
        assert sent < 20_000_000


async def test_what_unpacks_to_much_stays_packed():
    async def bomb(exchange: Exchange) -> None:
        await exchange.answer(b"this is no gzip", content_encoding="gzip")

    async with raw_server(bomb) as server:
        assert (await posted(server.url, private=True))[0] == 200
        assert server.exchanges[0].headers["accept-encoding"] == "identity"


async def test_who_says_nothing_is_not_waited_for():
    async def hang(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    async with raw_server(hang) as server:
        with pytest.raises(ExchangeFailed, match="in time"):
            await posted(server.url, private=True, seconds=0.2)


async def test_a_status_counts_though_the_rest_of_the_answer_does_not_come():
    async def stop(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of")
        await asyncio.Event().wait()

    async with raw_server(stop) as server:
        assert (await posted(server.url, private=True, seconds=0.2))[0] == 200


async def test_a_line_is_used_again_while_it_is_fresh():
    async with raw_server(say_ok) as server:
        poster = PublicPoster(private=True)
        try:
            for _ in range(3):
                await poster.post(server.url, headers={}, body=BODY)
        finally:
            await poster.aclose()
        assert (server.connections, len(server.exchanges)) == (1, 3)


async def test_nobody_there_is_surely_not_arrived():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConnectFailed) as raised:
        await posted(f"http://127.0.0.1:{port}/secret-path?token=abc", private=True)
    assert "secret-path" not in str(raised.value)
    with pytest.raises(ConnectFailed, match="resolved"):
        await posted("https://nowhere.example/", look_up=Names())


async def test_slow_name_servers_take_no_threads_of_others():
    held = threading.Event()

    def slow(host: str, port: int) -> list[tuple[Any, ...]]:
        held.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    poster = PublicPoster(look_up=slow, seconds=SECONDS)
    try:
        waiting = [
            asyncio.create_task(poster.post(f"https://slow-{number}.example/", headers={}, body=BODY))
            for number in range(32)
        ]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await asyncio.gather(*(asyncio.to_thread(bool) for _ in range(20)))
        assert time.monotonic() - began < SECONDS / 2
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in ended} == {ExchangeFailed}
        assert sum(thread.name == "imagen-look-up" for thread in threading.enumerate()) <= 16
    finally:
        held.set()
        await poster.aclose()


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(tmp_path: Path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(  # noqa: ASYNC221 - a moment, before anything else happens
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=localhost",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with raw_server(say_ok, tls=context) as server:
        with pytest.raises(ConnectFailed, match="not trusted"):
            await posted(server.url, private=True)
        assert server.exchanges == []
