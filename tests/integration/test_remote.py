"""What a running gateway does for a process elsewhere: places in semaphores, and pictures from gateways that lie."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway import ADMIN_KEY, RunningGateway, running_gateway
from stories import FOX, Shifted

from fakes.servers import Exchange, raw_server
from imagen.assembly import App, Remote, build
from imagen.domain.events import HungUp, Submitted
from imagen.emulator import EmulatorThread
from imagen.errors import (
    BackendError,
    DeliveryError,
    GarbledResponse,
    ImagenError,
    InvalidInput,
    InvalidResponse,
    NotFound,
    OutputDefective,
    RateLimited,
)
from imagen.ports import Fetched
from imagen.remote import semaphores
from imagen.remote.generate import MadeFile, Outward
from imagen.service.deliver import Destination
from imagen.service.finish import Outcome
from imagen.service.semaphore_lease import HeldSemaphore
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path / "there", replicate_emulator) as one:
        await one.app.semaphores.register("gpu", 1)
        yield one


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    """A process without a token, whose clock goes a day behind."""
    environ = {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "here"),
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
    }
    settings = load_settings(environ=environ, cwd=tmp_path)
    clock = Shifted(-timedelta(days=1))
    async with build(settings, environ=environ, clock=clock) as one:
        yield one


@pytest.fixture
def remote(app: App, gateway: RunningGateway) -> Remote:
    return at(app, gateway.url)


def at(app: App, url: str) -> Remote:
    parts = app.at(url)
    assert isinstance(parts, Remote)
    return parts


def place(remote: Remote, **more: Any) -> HeldSemaphore:
    given: dict[str, Any] = {"holder": "me", "ttl_seconds": 60.0, "wait_seconds": 0.0, "turn": "me"}
    return remote.leases.hold("gpu", **given | more)


async def standing(remote: Remote) -> tuple[int, int]:
    (one,) = await remote.semaphores.list(now=0.0)
    return one.held, one.waiting


# --- semaphores ------------------------------------------------------------------------------------------


async def test_a_place_is_renewed_there_whatever_the_clocks_say(remote: Remote) -> None:
    async with place(remote, ttl_seconds=1.0) as held:
        await asyncio.sleep(2.5)
        assert await standing(remote) == (1, 0)
        assert held.lost is None
    assert await standing(remote) == (0, 0)


async def test_whoever_waits_is_next_and_whoever_leaves_the_line_is_not(remote: Remote) -> None:
    first = place(remote)
    await first.take()
    leaving = asyncio.ensure_future(place(remote, wait_seconds=30.0).take())
    await until(lambda: waits(remote, 1))
    leaving.cancel()
    await until(lambda: waits(remote, 0))
    second = place(remote, wait_seconds=30.0)
    taking = asyncio.ensure_future(second.take())
    await until(lambda: waits(remote, 1))
    await first.give_back()
    await taking
    assert await standing(remote) == (1, 0)
    await second.give_back()


async def waits(remote: Remote, count: int) -> bool:
    return (await standing(remote))[1] == count


async def test_patience_beyond_what_one_request_may_take_asks_again(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semaphores, "LONGEST_ASKED_SECONDS", 0.3)
    first = place(remote)
    await first.take()
    second = place(remote, wait_seconds=20.0)
    taking = asyncio.ensure_future(second.take())
    await asyncio.sleep(1.5)
    assert not taking.done()
    await first.give_back()
    await taking
    with pytest.raises(RateLimited, match=r"no place in semaphore 'gpu' became free in 1\.5 s"):
        await place(remote, wait_seconds=1.5).take()
    await second.give_back()


async def test_a_place_that_somebody_removed_is_lost(remote: Remote) -> None:
    held = place(remote, ttl_seconds=1.0)
    await held.take()
    await remote.semaphores.remove("gpu")
    async with asyncio.timeout(15):
        await held.until_lost()
    with pytest.raises(NotFound, match="the place in semaphore 'gpu' was lost"):
        held.check()
    await held.give_back()


async def test_a_gateway_that_went_away_loses_the_place_when_it_has_ended(
    app: App, tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path / "there", replicate_emulator) as gateway:
        await gateway.app.semaphores.register("gpu", 1)
        held = place(at(app, gateway.url), ttl_seconds=1.0)
        await held.take()
    async with asyncio.timeout(10):
        await held.until_lost()
    assert held.lost is not None
    assert "it could not be renewed for 1 s" in held.lost.detail
    await held.give_back()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"wait_seconds": -1.0}, "wait"),
        ({"wait_seconds": 86_401.0}, "wait"),
        ({"ttl_seconds": 0.5}, "ttl"),
        ({"holder": "\x1b"}, "holder"),
    ],
)
async def test_what_makes_no_sense_is_refused_without_asking(app: App, wrong: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await place(at(app, "http://127.0.0.1:1"), **wrong).take()
    assert [problem.field for problem in caught.value.problems] == [field]


# --- pictures --------------------------------------------------------------------------------------------


def told(**changes: Any) -> dict[str, Any]:
    """What a gateway answers to a wish."""
    return {
        "success": True,
        "generated_files": [{"url": "http://127.0.0.1:1/out-0.png", "filename": "x.jpg"}],
        "prediction_id": "pred_1",
        "replicate_id": "up1",
        "model": "black-forest-labs/flux-schnell",
        "seed": 7,
        "cost_usd": 0.003,
        "seconds": 1.5,
        "practice": False,
    } | changes


async def outcome_of(app: App, answer: Any, *, download: bool = False) -> Outcome:
    """What comes of a wish to a gateway that answers so."""

    async def play(exchange: Exchange) -> None:
        await exchange.answer(json.dumps(answer).encode())

    async with raw_server(play) as server:
        (outcome,) = await at(app, server.url).gateway.generate(
            FOX, destination=Destination() if download else None
        )
    return outcome


async def test_what_is_told_is_what_is_shown(app: App) -> None:
    outcome = await outcome_of(app, told())
    prediction = outcome.prediction
    assert outcome.error is None
    assert (prediction.id, prediction.upstream_id, prediction.seed) == ("pred_1", "up1", 7)
    assert (prediction.latency_ms, str(prediction.cost)) == (1500, "$0.003")
    assert prediction.output == ("http://127.0.0.1:1/out-0.png",)


@pytest.mark.parametrize(
    "lie",
    [
        {"prediction_id": "../../etc/passwd"},
        {"prediction_id": ""},
        {"prediction_id": "pred_1\n"},
        {"replicate_id": "a/b"},
        {"model": "../../x"},
        {"model": "\x1b[2J"},
        {"generated_files": [{"url": "http://x/\x1b[2J"}]},
        {"generated_files": [{"url": "http://x/a b"}]},
        {"generated_files": [{"url": "http://x"}] * 1001},
        {"generated_files": None},
        {"cost_usd": -1},
        {"cost_usd": 1e300},
        {"seconds": 1e300},
        {"seed": "7"},
    ],
    ids=str,
)
async def test_what_can_be_no_answer_becomes_neither_a_file_nor_a_line(app: App, lie: Any) -> None:
    with pytest.raises(GarbledResponse) as caught:
        await outcome_of(app, told(**lie), download=True)
    assert str(caught.value).isprintable()
    assert list(app.settings.data_dir.glob("incoming/*")) == []


@pytest.mark.parametrize(
    "address", ["http://192.0.2.1/x.png", "ftp://h/x.png", "file:///etc/passwd", "//", "x", "http://[::1"]
)
async def test_what_is_no_address_of_a_picture_is_not_fetched(app: App, address: str) -> None:
    outcome = await outcome_of(app, told(generated_files=[{"url": address}]), download=True)
    assert isinstance(outcome.error, OutputDefective)
    assert f"It is at {address}" in str(outcome.error)


async def test_what_is_no_picture_is_not_kept(app: App) -> None:
    page = {"url": "data:text/html;base64,PGh0bWw+"}
    outcome = await outcome_of(app, told(generated_files=[page]), download=True)
    assert isinstance(outcome.error, OutputDefective)
    assert outcome.pictures == ()


async def test_no_picture_at_all_is_told(app: App) -> None:
    outcome = await outcome_of(app, told(generated_files=[]), download=True)
    assert isinstance(outcome.error, OutputDefective)


async def test_a_host_that_is_away_is_told_with_the_address(app: App) -> None:
    outcome = await outcome_of(app, told(), download=True)
    assert isinstance(outcome.error, DeliveryError)
    assert "`curl -O http://127.0.0.1:1/out-0.png` fetches it within the hour" in str(outcome.error)


class Anywhere:
    """A source that has everything."""

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        return Fetched(size_bytes=len(url), media_type=None)


@pytest.mark.parametrize(
    ("gateway", "address", "fetched"),
    [
        ("https://pictures.example", "https://replicate.delivery/x.png", True),
        ("https://pictures.example", "http://127.0.0.1:8080/admin", False),
        ("https://pictures.example", "https://localhost/admin", False),
        ("https://pictures.example", "http://[::1]:8080/admin", False),
        ("http://127.0.0.1:5003", "http://127.0.0.1:8080/x.png", True),
    ],
)
async def test_a_gateway_elsewhere_points_at_nothing_here(
    gateway: str, address: str, fetched: bool, tmp_path: Path
) -> None:
    source = Outward(Anywhere(), gateway)
    if fetched:
        assert (await source.fetch(address, tmp_path / "x", limit_bytes=1)).size_bytes
        return
    with pytest.raises(InvalidResponse, match="this machine"):
        await source.fetch(address, tmp_path / "x", limit_bytes=1)


@pytest.mark.parametrize(
    ("kept", "chosen"),
    [
        ("https://pictures.example/pictures/pic_1", "https://pictures.example/pictures/pic_1"),
        ("http://pictures.example/pictures/pic_1", "https://replicate.delivery/x.png"),
        ("http://127.0.0.1:5003/pictures/pic_1", "https://replicate.delivery/x.png"),
        (None, "https://replicate.delivery/x.png"),
    ],
)
def test_a_kept_picture_is_fetched_where_it_is_kept_if_that_can_be(kept: str | None, chosen: str) -> None:
    source = Outward(Anywhere(), "https://pictures.example")
    assert source.address_of(MadeFile(url="https://replicate.delivery/x.png", stored_url=kept)) == chosen


async def test_whoever_leaves_has_it_canceled_upstream(
    remote: Remote, gateway: RunningGateway, replicate_emulator: EmulatorThread, record: Any
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=50.0, times=None)
    request = msgspec.structs.replace(FOX, count=6)
    asking = asyncio.ensure_future(remote.gateway.generate(request, observer=record))
    await until(lambda: replicate_emulator.purchases >= 2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(record.of(Submitted)) == 2
    assert record.of(HungUp) == [HungUp(gateway.url)]

    async def canceled() -> bool:
        return [str(one.status) for one in await gateway.app.store.list(limit=10)] == ["canceled"] * 2

    await until(canceled)


async def test_an_observer_that_fails_fails_nothing(remote: Remote) -> None:
    class Broken:
        def notify(self, event: Any) -> None:
            raise RuntimeError("no")

    (outcome,) = await remote.gateway.generate(FOX, destination=Destination(), observer=Broken())
    assert outcome.error is None
    assert outcome.pictures[0].path.is_file()


async def test_it_shows_no_token_and_needs_none(app: App, remote: Remote, gateway: RunningGateway) -> None:
    assert app.tokens.find("REPLICATE_API_TOKEN") is None
    (outcome,) = await remote.gateway.generate(FOX, destination=Destination())
    assert outcome.error is None
    assert await app.store.list(limit=10) == []
    (there,) = await gateway.app.store.list(limit=10)
    assert there.id == outcome.prediction.id


async def test_an_error_with_a_prediction_is_told_with_it(app: App) -> None:
    async def play(exchange: Exchange) -> None:
        body = {
            "error": "it ended",
            "code": "prediction_aborted",
            "prediction_id": "pred_9",
            "charged": False,
        }
        await exchange.answer(json.dumps(body).encode(), 504)

    async with raw_server(play) as server:
        (outcome,) = await at(app, server.url).gateway.generate(FOX)
    assert outcome.error is not None
    assert (outcome.prediction.id, outcome.prediction.status) == ("pred_9", "aborted")
    assert outcome.prediction.charged is False


async def test_an_error_without_one_is_raised(app: App) -> None:
    with pytest.raises(BackendError):
        await at(app, "http://127.0.0.1:1").gateway.generate(FOX)
    with pytest.raises(ImagenError, match="acme"):
        await at(app, "http://127.0.0.1:1").gateway.generate(FOX, backend="acme")
