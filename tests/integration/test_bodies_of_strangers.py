"""Who has shown nothing yet: what all of them together may send, and how long the others wait for it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from imagen.server import bodies, context
from waiting import least, longest_pause, until

pytestmark = pytest.mark.anyio
MIB = 1 << 20
ROOM = 4
"""MiB, for all of them."""
WISH = b'{"model_name": "flux-schnell", "prompt": "%s"}'


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> bodies.Room:
    """That of the gateway, which is small here."""
    small = bodies.Room(ROOM * MIB)
    monkeypatch.setattr(context, "Room", lambda *_: small)
    return small


async def is_taken(room: bodies.Room, mebibytes: int) -> None:
    """Until so much of it is taken by bodies whose end has not come."""
    await until(lambda: room._left <= (ROOM - mebibytes) * MIB)


@asynccontextmanager
async def half_sent(
    gateway: RunningGateway, mebibytes: int, *, chunked: bool = False
) -> AsyncIterator[asyncio.StreamReader]:
    """A stranger who sends so much of a body that is longer, and then nothing."""
    where = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (15 * MIB)
    writer.write(b"POST /generate HTTP/1.1\r\nhost: %s\r\n%s\r\n\r\n" % (where.netloc.encode(), framing))
    part = b"x" * MIB
    for _ in range(mebibytes):
        writer.write(b"%x\r\n%s\r\n" % (MIB, part) if chunked else part)
        await writer.drain()
    try:
        yield reader
    finally:
        writer.close()


async def post(gateway: RunningGateway, size: int, *, headers: dict[str, str] | None = None) -> Answer:
    """A whole wish of about `size` bytes; its prompt is too long when that is large."""
    body = io.BytesIO(WISH % (b"x" * size))  # aiohttp warns of large bytes, and not of a large file
    return await gateway.request("POST", "/generate", data=body, headers=headers)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunked", [False, True])
async def test_half_sent_bodies_fill_the_room_until_they_go(
    tmp_path: Path, replicate_emulator: EmulatorThread, room: bodies.Room, chunked: bool
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        async with half_sent(gateway, ROOM - 1, chunked=chunked):
            await is_taken(room, ROOM - 1)
            refused = await post(gateway, 2 * MIB)
            assert (refused.status, refused.json()["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            # There is room for small ones, and whoever shows a key has room of its own.
            assert (await post(gateway, 100)).status == 200
            assert (await post(gateway, 2 * MIB, headers=ADMIN)).json()["code"] == "invalid_input"
        await until(lambda: room._left == ROOM * MIB)
        assert (await post(gateway, 2 * MIB)).json()["code"] == "invalid_input"
    assert replicate_emulator.purchases == 1


async def test_of_many_strangers_only_so_many_are_listened_to(
    tmp_path: Path, replicate_emulator: EmulatorThread, room: bodies.Room
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def knock() -> bytes:
            """The first line of an answer; nothing while the gateway waits for the rest."""
            async with half_sent(gateway, 1) as reader:
                try:
                    async with asyncio.timeout(1.5):
                        return await reader.readline()
                except TimeoutError:
                    return b""

        lines = await asyncio.gather(*(knock() for _ in range(4 * ROOM)))
        assert set(lines) == {b"", b"HTTP/1.1 429 Too Many Requests\r\n"}
        assert 1 <= lines.count(b"") <= ROOM
        # All of it is given back, also that of the refused.
        async with half_sent(gateway, ROOM - 1):
            await is_taken(room, ROOM - 1)
            assert (await post(gateway, 100)).status == 200


async def test_who_is_slow_for_too_long_gives_its_room_back(
    tmp_path: Path, replicate_emulator: EmulatorThread, room: bodies.Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "STRANGERS_SECONDS", 3.0)
    async with (
        running_gateway(tmp_path, replicate_emulator) as gateway,
        half_sent(gateway, ROOM - 1) as reader,
    ):
        await is_taken(room, ROOM - 1)
        assert (await post(gateway, 2 * MIB)).status == 429
        async with asyncio.timeout(10):
            assert await reader.readline() == b"HTTP/1.1 400 Bad Request\r\n"
        assert (await post(gateway, 2 * MIB)).json()["code"] == "invalid_input"


LARGE: dict[str, Callable[[], bytes]] = {
    "objects": lambda: b'{"a":[%s]}' % b",".join(b'{"%d":[],"b":"x"}' % number for number in range(80_000)),
    "numbers": lambda: b'{"a":[%s]}' % b",".join([b"1"] * 1_900_000),
    "names": lambda: b"{%s}" % b",".join(b'"%d":1' % number for number in range(499_000)),
    "depth": lambda: b'{"a":%s' % (b"[" * 400_000),
}


@pytest.mark.parametrize("kind", LARGE)
async def test_no_body_of_a_stranger_stops_the_others_for_long(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(context, "Room", bodies.Room)

    async def asking(gateway: RunningGateway) -> None:
        body = io.BytesIO(LARGE[kind]())
        answer = await gateway.request("POST", "/generate", data=body)  # type: ignore[arg-type]
        assert answer.status in {400, 401}

    async with running_gateway(
        tmp_path, replicate_emulator, IMAGEN_PUBLIC_URL="https://pictures.example"
    ) as gateway:
        await gateway.request("GET", "/health")
        assert await least(lambda: longest_pause(asking(gateway)), enough=1.0) < 1.0
