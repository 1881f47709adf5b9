"""What a gateway is shown, and what comes of whatever answers in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from fakes.servers import Exchange, Play, raw_server
from imagen.domain.secret import Secret
from imagen.errors import (
    BackendRejected,
    ConnectFailed,
    ExchangeFailed,
    GarbledResponse,
    ImagenError,
    InvalidResponse,
    Unauthenticated,
)
from imagen.remote.connection import Connection
from imagen.remote.keys import RemoteKeys
from imagen.remote.semaphores import RemoteSemaphores
from imagen.transport.client import HttpClient

pytestmark = pytest.mark.anyio

KEY, ADMIN = Secret("imk_key"), Secret("the-admins")


class Wanted(msgspec.Struct):
    number: int


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[HttpClient]:
    async with HttpClient(connect_seconds=5.0) as opened:
        yield opened


async def ask(client: HttpClient, play: Play, **more: Any) -> tuple[Any, list[Exchange]]:
    """What comes of a question, and what was asked."""
    async with raw_server(play) as server:
        connection = Connection(
            server.url, client=client, key=more.pop("key", None), admin_key=more.pop("admin_key", None)
        )
        answer: Any
        try:
            answer = await connection.ask("POST", "/some/where", Wanted, **more)
        except ImagenError as error:
            answer = error
        return answer, server.exchanges


async def seven(exchange: Exchange) -> None:
    await exchange.answer(b'{"number": 7, "more": true}')


@pytest.mark.parametrize(
    ("key", "admin_key", "admin", "shown"),
    [
        (None, None, False, {}),
        (None, None, True, {}),
        (KEY, None, False, {"x-api-key": "imk_key"}),
        (KEY, None, True, {"x-api-key": "imk_key"}),
        (None, ADMIN, False, {"x-admin-api-key": "the-admins"}),
        (None, ADMIN, True, {"x-admin-api-key": "the-admins"}),
        (KEY, ADMIN, False, {"x-api-key": "imk_key"}),
        (KEY, ADMIN, True, {"x-admin-api-key": "the-admins"}),
    ],
)
async def test_the_key_that_is_good_for_least_is_shown(
    client: HttpClient, key: Secret | None, admin_key: Secret | None, admin: bool, shown: dict[str, str]
) -> None:
    answer, (asked,) = await ask(client, seven, key=key, admin_key=admin_key, admin=admin, body={"a": 1})
    assert answer == Wanted(7)
    assert asked.body == b'{"a":1}'
    assert asked.path == "/some/where"
    sent = {name: value for name, value in asked.headers.items() if "key" in name or name == "authorization"}
    assert sent == shown


async def test_a_redirect_is_not_followed_and_takes_no_key_along(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"", 308, location="/else/where")

    error, asked = await ask(client, play, key=KEY)
    assert isinstance(error, InvalidResponse)
    assert "leads elsewhere" in error.detail
    assert len(asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"number": "7"}', b"{}", b"[" * 100_000])
async def test_an_answer_that_no_gateway_gives(client: HttpClient, body: bytes) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(body)

    error, _ = await ask(client, play)
    assert isinstance(error, GarbledResponse)
    assert error.hint == "Is it one, and of this version?"


async def test_an_answer_without_end_is_not_read_to_its_end(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 Word\r\ncontent-length: 10000000000\r\n\r\n")
        while not exchange.writer.is_closing():
            await exchange.send(b" " * 1_000_000)

    error, _ = await ask(client, play)
    assert isinstance(error, InvalidResponse)
    assert "larger than 64 MiB" in error.detail


async def test_a_line_that_breaks_tells_what_to_do(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        exchange.reset()

    error, asked = await ask(client, play, lost="Look there.")
    assert isinstance(error, ExchangeFailed)
    assert str(error).endswith("Look there.")
    assert len(asked) == 1  # nothing that may cost money is sent twice


async def test_nobody_there_is_told_with_the_address(client: HttpClient) -> None:
    connection = Connection("http://127.0.0.1:1", client=client, key=KEY, admin_key=None)
    with pytest.raises(ConnectFailed) as caught:
        await connection.ask("GET", "/x", Wanted)
    assert caught.value.hint == "Is `imagen serve` running at http://127.0.0.1:1?"


async def test_no_key_travels_in_clear(client: HttpClient) -> None:
    connection = Connection("http://192.0.2.1:5003", client=client, key=KEY, admin_key=ADMIN)
    with pytest.raises(InvalidResponse, match="only https, or http to this machine"):
        await connection.ask("GET", "/x", Wanted)


@pytest.mark.parametrize(
    ("key", "hint", "admin", "said"),
    [
        (None, None, False, "Set IMAGEN_API_KEY to a key of that gateway."),
        (KEY, None, False, "Set IMAGEN_API_KEY to a key of that gateway."),
        (KEY, "`imagen keys list` shows.", False, "`imagen keys list` shows."),
        (KEY, "Send the header.", True, "Set CONCURRENT_DOCKER_ADMIN_API_KEY to its admin key."),
    ],
)
async def test_whoever_is_not_let_in_learns_what_to_set(
    client: HttpClient, key: Secret | None, hint: str | None, admin: bool, said: str
) -> None:
    async def play(exchange: Exchange) -> None:
        told = {"error": "Who are you?", "code": "unauthenticated", "hint": hint}
        await exchange.answer(msgspec.json.encode(told), 401)

    error, _ = await ask(client, play, key=key, admin=admin)
    assert isinstance(error, Unauthenticated)
    assert (error.detail, error.hint) == ("Who are you?", said)


async def test_a_lease_is_in_no_error(client: HttpClient) -> None:
    semaphores = RemoteSemaphores(Connection("http://127.0.0.1:1", client=client, key=None, admin_key=None))
    for asked in (
        semaphores.release("gpu", "lease_secret"),
        semaphores.renew("gpu", "lease_secret", now=0.0, lasts_seconds=5.0),
    ):
        with pytest.raises(ConnectFailed) as caught:
            await asked
        assert "lease_secret" not in str(caught.value)
        assert "/global-semaphores/gpu/leases/…" in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../keys/x", "?", "a b", "%2e%2e", "x" * 101, "né"])
async def test_a_name_that_none_has_is_never_part_of_an_address(client: HttpClient, name: str) -> None:
    asked: list[Exchange] = []

    async def play(exchange: Exchange) -> None:
        asked.append(exchange)
        await exchange.answer(b"{}")

    async with raw_server(play) as server:
        connection = Connection(server.url, client=client, key=None, admin_key=None)
        semaphores, keys = RemoteSemaphores(connection), RemoteKeys(connection)
        for work in (semaphores.show(name, now=0.0), semaphores.remove(name), keys.revoke(name)):
            with pytest.raises(ImagenError) as caught:
                await work
            assert caught.value.code == "not_found"
    assert asked == []


async def test_a_key_with_odd_characters_is_not_taken_over(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        made = {"name": "web", "id": "key_1", "models": [], "routes": [], "concurrent": None, "rpm": None,
                "created_at": "2026-11-01T12:00:00Z", "key": "imk_\x1b[2J"}  # fmt: skip
        await exchange.answer(msgspec.json.encode(made), 201)

    async with raw_server(play) as server:
        keys = RemoteKeys(Connection(server.url, client=client, key=None, admin_key=ADMIN))
        with pytest.raises(GarbledResponse):
            await keys.create("web")


async def test_another_service_is_no_gateway(client: HttpClient) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b'{"title": "Not Found", "status": 404}', 404)

    error, _ = await ask(client, play)
    assert isinstance(error, BackendRejected)
    assert "not as an imagen gateway does" in error.detail
