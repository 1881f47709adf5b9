"""What `ports.Relay` promises, of the backends that speak with Replicate, against the emulator over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import ManualClock
from fakes.servers import Exchange, raw_server
from imagen.backends.registry import BackendContext, build_backend
from imagen.catalog import Catalog
from imagen.domain.events import Called
from imagen.domain.secret import Secret
from imagen.emulator import Emulator
from imagen.errors import ConnectFailed, ExchangeFailed, Unauthenticated
from imagen.ports import Passage, Relay, Reply
from imagen.transport.client import HttpClient

pytestmark = pytest.mark.anyio

TOKEN = "r8_contract"


class Heard:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def notify(self, event: Any) -> None:
        self.events.append(event)


class Counted:
    """A call budget that lets everything pass, and counts."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.refusals: list[float | None] = []

    async def enter(self, account: str) -> None:
        self.entered.append(account)

    async def refused(self, account: str, *, retry_after: float | None, detail: str) -> None:
        self.refusals.append(retry_after)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def calls() -> Counted:
    return Counted()


@pytest.fixture
async def emulator(anyio_backend: str) -> AsyncIterator[Emulator]:
    async with Emulator() as running:
        yield running


@pytest.fixture
async def make(
    anyio_backend: str, heard: Heard, calls: Counted, tmp_path: Path
) -> AsyncIterator[Callable[..., Relay]]:
    async with HttpClient() as client:

        def made(url: str, **changes: Any) -> Relay:
            given: dict[str, Any] = {
                "name": "fast",
                "type": "replicate",
                "model": "flux-schnell",
                "api_base": url,
                "token": Secret(TOKEN),
                "token_env": "REPLICATE_API_TOKEN",
                "default_steps": None,
                "default_aspect_ratio": "1:1",
                "deadline_seconds": None,
                "read_seconds": 2.0,
                "extra": {},
                "cache_folder": tmp_path / "cache",
                "client": client,
                "catalog": Catalog.load(),
                "clock": ManualClock(),
                "observer": heard,
                "calls": calls,
            }
            built = build_backend(BackendContext(**given | changes))
            assert isinstance(built, Relay)
            return built

        yield made


@pytest.fixture
def relay(make: Callable[..., Relay], emulator: Emulator) -> Relay:
    return make(emulator.url)


async def whole(reply: Reply) -> bytes:
    content = b"".join([piece async for piece in reply.pieces])
    await reply.close()
    await reply.close()
    return content


def get(path: str = "/account", **facts: Any) -> Passage:
    return Passage(method="GET", path=path, **facts)


async def test_practice_passes_calls_on_too(make: Callable[..., Relay]) -> None:
    practising = make("", type="emulator", token=None)
    reply = await practising.relay(get())
    assert reply.status == 200
    assert json.loads(await whole(reply))["type"] == "user"
    assert (await practising.address_of("/files/abc")).endswith("/v1/files/abc")
    await practising.aclose()  # type: ignore[attr-defined]


async def test_a_call_is_made_on_the_account_and_counted(
    relay: Relay, emulator: Emulator, calls: Counted, heard: Heard
) -> None:
    reply = await relay.relay(get("/models?sort_by=model_created_at", headers={"accept": "application/json"}))
    assert (reply.status, reply.headers["content-type"].partition(";")[0]) == (200, "application/json")
    assert "results" in json.loads(await whole(reply))
    assert calls.entered == [relay.account]  # type: ignore[attr-defined]
    assert heard.events == [Called("other", 200)]
    assert await relay.address_of("/files/x") == f"{emulator.url}/v1/files/x"


async def test_a_body_goes_whole_or_in_pieces(relay: Relay) -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="content"; filename="a"\r\n\r\n',
        b"bytes" * 100_000,
        b"\r\n--b--\r\n",
    )
    kind = {"content-type": "multipart/form-data; boundary=b"}

    async def pieces() -> AsyncIterator[bytes]:
        for piece in form:
            yield piece

    total = sum(map(len, form))
    for body, size in ((b"".join(form), None), (pieces(), total), (pieces(), None)):
        call = Passage(method="POST", path="/files", headers=kind, body=body, size_bytes=size)
        reply = await relay.relay(call)
        assert (reply.status, json.loads(await whole(reply))["size"]) == (201, 500_000)


async def test_a_refusal_is_an_answer_and_has_no_token_in_it(make: Callable[..., Relay]) -> None:
    async def play(exchange: Exchange) -> None:
        told = {"detail": f"you sent {exchange.headers['authorization']}", "status": 403}
        await exchange.answer(json.dumps(told).encode(), 403, content_type="application/problem+json")

    async with raw_server(play) as server:
        reply = await make(server.url).relay(get())
        assert (reply.status, reply.headers["content-type"]) == (403, "application/problem+json")
        told = json.loads(await whole(reply))
    assert told["status"] == 403
    assert TOKEN not in told["detail"]


async def test_only_reading_is_made_again(make: Callable[..., Relay], calls: Counted) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b"down", 503 if exchange.number % 2 == 0 else 200)

    async with raw_server(play) as server:
        relay = make(server.url)
        for method, status, made in (("GET", 200, 2), ("QUERY", 200, 4), ("POST", 503, 5), ("PATCH", 200, 6)):
            reply = await relay.relay(Passage(method=method, path="/models", body=b"x"))
            assert (reply.status, len(server.exchanges)) == (status, made)
            await whole(reply)
        hurried = await relay.relay(get(hurried=True))
        assert (hurried.status, len(server.exchanges)) == (503, 7)
    assert len(calls.entered) == 7


async def test_a_throttled_account_is_told_of(make: Callable[..., Relay], calls: Counted) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(b'{"detail": "throttled", "status": 429, "retry_after": 4}', 429)

    async with raw_server(play) as server:
        reply = await make(server.url).relay(Passage(method="DELETE", path="/models/a/b"))
        assert (reply.status, json.loads(await whole(reply))["retry_after"]) == (429, 4)
    assert calls.refusals == [4.0]


async def test_a_body_that_fails_ends_the_call_as_it_ended(make: Callable[..., Relay]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"the beginning"
        raise LookupError("the caller is gone")

    ended = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came = await reader.read()
        assert not came.endswith(b"0\r\n\r\n")  # that would be a whole one
        ended.set()
        writer.close()

    async with await asyncio.start_server(play, "127.0.0.1", 0) as server:
        relay = make(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(LookupError):
            await relay.relay(Passage(method="POST", path="/files", body=pieces()))
        await asyncio.wait_for(ended.wait(), 5)


async def test_no_answer_is_an_error(make: Callable[..., Relay]) -> None:
    async def play(exchange: Exchange) -> None:
        exchange.reset()

    async with raw_server(play) as server:
        with pytest.raises(ExchangeFailed) as lost:
            await make(server.url).relay(Passage(method="POST", path="/models", body=b"{}"))
        assert lost.value.backend == "fast"
        assert len(server.exchanges) == 1
    with pytest.raises(ConnectFailed):
        await make(server.url).relay(get(hurried=True))
    with pytest.raises(Unauthenticated):
        await make(server.url, token=None).relay(get())
