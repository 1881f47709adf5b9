"""Pictures that pass through the gateway: how much of the throughput of going straight to the service is left.

    make bench                       or    .venv/bin/python bench/pictures.py [seconds a round]

Three processes on loopback: the built-in emulator as the service, `imagen serve` in front of it with an admin key, limits,
metrics and its durable ledger on, and this one, which counts bytes and looks at none. Each round asks the emulator and the
gateway in turn, with the same client over connections that stay open; the median of the rounds counts.

Two clients take turns too: a bare one, which shows what the servers themselves cost, and httpx, with which the official
Python clients download. With three processes on two cores the bare one leaves no core to whoever stands in between. Over
loopback bytes cost nothing but CPU, so a second client reads as from a link of 1 Gbit/s: 125 MB a second in all.

- files: `GET /v1/files/{id}/download`, 1 MiB, streamed through.
- kept pictures: `GET /pictures/{id}`, 1 MiB, beside the same download straight from the emulator.
- answers: a create that is held open until its output, 1 MiB as a data URI, stands in the answer; with runs of 1, 2 and 8
  seconds and 60 in flight, as callers have them, and as fast as it goes.
- creates: the same where the output is an address.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import httpx
import uvloop

from imagen.emulator import Emulator
from imagen.pictures.shelf import FolderShelf

MIB = 1 << 20
_LONGEST_HEAD = 4096
KIB_INSIDE = 768
"""Of a picture whose data URI has 1 MiB."""
CREATE = "/v1/models/black-forest-labs/flux-schnell/predictions"
ROUNDS, ROUNDS_OF_RUNS = 5, 3
RUN_SECONDS = (1.0, 2.0, 8.0)
GIGABIT = 125e6
"""Bytes a second."""
_LEAST_PAUSE_SECONDS = 0.002
ADMIN_KEY = "bench-" + secrets.token_hex(12)
TOKEN = "r8_" + "bench"
TICKS = os.sysconf("SC_CLK_TCK")


# --- the client ------------------------------------------------------------------------------------------


class Link:
    """What everything has to come over, at so many bytes a second in all; None for no bound."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._free_at = 0.0

    def pause(self, count: int) -> float:
        """Seconds for which nothing more can come after `count` bytes; zero for a moment that is too short to wait for."""
        if self._speed is None:
            return 0.0
        now = time.perf_counter()
        self._free_at = max(self._free_at, now) + count / self._speed
        left = self._free_at - now
        return left if left >= _LEAST_PAUSE_SECONDS else 0.0


class Getter(asyncio.BufferedProtocol):
    """One connection that stays open: asks, and counts what comes until the answer is whole."""

    def __init__(self, link: Link) -> None:
        self.transport: Any = None
        self._link = link
        self.waiting: asyncio.Future[int]
        self._buffer = bytearray(MIB)
        self._view = memoryview(self._buffer)
        self._left = -1  # of the body; below zero: the head comes first
        self._size = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - one size fits all
        return self._view

    def buffer_updated(self, count: int) -> None:
        if pause := self._link.pause(count):
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(pause, self._go_on)
        if self._left < 0:
            # No more than the head is taken out: to copy the rest would cost more than to receive it.
            head, end, _ = bytes(self._view[: min(count, _LONGEST_HEAD)]).partition(b"\r\n\r\n")
            if not end or not head.split(b" ", 2)[1].startswith(b"2"):
                raise SystemExit(bytes(self._view[: min(count, 600)]).decode(errors="replace"))
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._size = self._left = int(fields[b"content-length"])
            count -= len(head) + len(end)
        self._left -= count
        if self._left == 0:
            self._left = -1
            self.waiting.set_result(self._size)

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.waiting.done():
            self.waiting.set_exception(error or ConnectionError("the answer broke off"))

    async def ask(self, url: str, body: bytes) -> int:
        request = request_of(url, body=body)[2]
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiting


def request_of(url: str, *, body: bytes = b"") -> tuple[str, int, bytes]:
    """Where to, and the bytes of a request."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nx-admin-api-key: {ADMIN_KEY}\r\nauthorization: Bearer {TOKEN}\r\n"
    if body:
        head += f"prefer: wait=60\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return parts.hostname or "", parts.port or 80, head.encode() + b"\r\n" + body


Ask = Callable[[bytes], Awaitable[int]]
"""Makes one request, with a body or without, and gives the bytes of what came back."""


@asynccontextmanager
async def bare(url: str, width: int, link: Link) -> AsyncIterator[list[Ask]]:
    """Connections that do nothing but count: what is left is what the servers and the system take."""
    loop = asyncio.get_running_loop()
    host, port, _ = request_of(url)
    getters = [(await loop.create_connection(partial(Getter, link), host, port))[1] for _ in range(width)]
    yield [partial(getter.ask, url) for getter in getters]
    for getter in getters:
        getter.transport.close()


@asynccontextmanager
async def with_httpx(url: str, width: int, link: Link) -> AsyncIterator[list[Ask]]:
    """The library that the official Python clients download with."""
    headers = {"x-admin-api-key": ADMIN_KEY, "authorization": f"Bearer {TOKEN}", "prefer": "wait=60"}
    limits = httpx.Limits(max_connections=width, max_keepalive_connections=width)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=90, trust_env=False) as client:

        async def ask(body: bytes) -> int:
            kind = {"content-type": "application/json"} if body else {}
            method = "POST" if body else "GET"
            async with client.stream(method, url, content=body or None, headers=kind) as answer:
                answer.raise_for_status()
                size = 0
                async for piece in answer.aiter_raw():
                    size += len(piece)
                    if pause := link.pause(len(piece)):
                        await asyncio.sleep(pause)
            return size

        yield [ask] * width


CLIENTS = {"bare": bare, "httpx": with_httpx}


def nothing() -> bytes:
    return b""


class Way(NamedTuple):
    """How is asked.

    Attributes:
        client: which of `CLIENTS`.
        width: how many requests are in flight.
        seconds: how long new ones are begun.
        body: of a request.
        link: bytes a second that the client takes; None for all that come.
    """

    client: str
    width: int
    seconds: float
    body: Callable[[], bytes] = nothing
    link: float | None = None


async def load(url: str, way: Way) -> tuple[int, float]:
    """How many answers came, and in how many seconds."""
    came = 0
    async with CLIENTS[way.client](url, way.width, Link(way.link)) as asking:
        began = time.perf_counter()

        async def one(ask: Ask) -> None:
            nonlocal came
            while time.perf_counter() - began < way.seconds:
                await ask(way.body())
                came += 1

        await asyncio.gather(*map(one, asking))
        return came, time.perf_counter() - began


NUMBERS = itertools.count(1)


def a_wish() -> bytes:
    """Another one each time: the same again would be made once."""
    wish = {"prompt": f"a red fox in the snow, number {next(NUMBERS)}"}
    return json.dumps({"input": wish}).encode()


# --- the two servers -------------------------------------------------------------------------------------


async def emulate(run_seconds: float, *, inside: bool) -> None:
    """The service, with a file of 1 MiB in it, and perhaps 1 MiB of data URI in the answer to each create; tells where."""
    async with Emulator(run_seconds=run_seconds) as emulator, aiohttp.ClientSession() as session:
        emulator.set_mode(creates_per_minute=0, others_per_minute=0, data_uris=inside, picture_kib=KIB_INSIDE)
        form = aiohttp.FormData()
        form.add_field("content", os.urandom(MIB), filename="picture.png", content_type="image/png")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with session.post(f"{emulator.url}/v1/files", data=form, headers=headers) as answer:
            file = await answer.json()
        print(json.dumps({"url": emulator.url, "file": emulator.download_url(file["id"])}), flush=True)
        await asyncio.Event().wait()


def start(*arguments: str, env: dict[str, str] | None = None) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def start_gateway(upstream: str, folder: str) -> tuple[subprocess.Popen[str], str]:
    many = "1000000"
    process, told = start(
        "-m", "imagen", "serve", "--port", "0", "--json",
        env={
            "HOME": folder, "IMAGEN_DATA_DIR": folder, "IMAGEN_REPLICATE__API_BASE": upstream,
            "REPLICATE_API_TOKEN": TOKEN, "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
            "REPLICATE_CONCURRENT_LIMIT": "20000", "REPLICATE_REQUESTS_PER_MINUTE": many,
            "IMAGEN_LIMITS__CALLS_PER_MINUTE": many,
        },
    )  # fmt: skip
    return process, told["url"]


def shelve(folder: str) -> str:
    """The path of a kept picture of 1 MiB."""
    shelf = FolderShelf(Path(folder) / "kept")
    return f"/pictures/{asyncio.run(shelf.put(os.urandom(MIB), media_type='image/png')).id}"


def cpu_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# --- the rounds ------------------------------------------------------------------------------------------


@contextmanager
def pair(run_seconds: float, *, inside: bool = True) -> Iterator[tuple[dict[str, Any], str, int, str]]:
    """An emulator and a gateway in front of it: what the first tells, the other's address, its process and its folder."""
    upstream, told = start(__file__, "emulator", str(run_seconds), "inside" if inside else "addresses")
    with tempfile.TemporaryDirectory() as folder:
        gateway, url = start_gateway(told["url"], folder)
        try:
            yield told, url, gateway.pid, folder
        finally:
            for process in (gateway, upstream):
                process.send_signal(signal.SIGTERM)
                process.wait()


def compare(name: str, direct: str, through: str, gateway: int, way: Way, *, rounds: int = ROUNDS) -> None:
    """A line of the table."""
    found: dict[str, list[float]] = {direct: [], through: []}
    spent, made = 0.0, 0
    for url in found:
        uvloop.run(load(url, way._replace(seconds=0.5)))  # warm
    for _ in range(rounds):
        for url, rates in found.items():
            before = cpu_of(gateway)
            came, seconds = uvloop.run(load(url, way))
            rates.append(came / seconds)
            if url == through:
                spent += cpu_of(gateway) - before
                made += came
    ratios = [ours / theirs for theirs, ours in zip(*found.values(), strict=True)]
    medians = [statistics.median(rates) for rates in found.values()]
    link = "1 Gbit/s" if way.link else "loopback"
    print(
        f"| {name} | {way.client} | {link} | {way.width} | {medians[0]:.1f} | {medians[1]:.1f} | "
        f"{medians[1] / medians[0]:.2f} | {min(ratios):.2f}-{max(ratios):.2f} | {spent / made * 1000:.2f} ms |",
        flush=True,
    )


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    print(
        f"1 MiB each; rounds in turn, medians; pictures a second; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} before\n"
    )
    print(
        "| | client | link | in flight | direct | gateway | ratio | of single rounds | CPU of the gateway a picture |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for run_seconds in RUN_SECONDS:
        with pair(run_seconds) as (told, url, gateway, _):
            way = Way("httpx", 60, max(seconds, 2 * run_seconds), a_wish)
            name = f"answers, runs of {run_seconds:g} s"
            compare(name, told["url"] + CREATE, url + CREATE, gateway, way, rounds=ROUNDS_OF_RUNS)
    with pair(1.0, inside=False) as (told, url, gateway, _):
        way = Way("httpx", 60, seconds, a_wish)
        compare("creates, runs of 1 s", told["url"] + CREATE, url + CREATE, gateway, way)
    with pair(0.0) as (told, url, gateway, folder):
        way = Way("httpx", 8, seconds, a_wish)
        compare("answers, as fast as it goes", told["url"] + CREATE, url + CREATE, gateway, way)
        link = urlsplit(told["file"])
        file, kept = f"{url}{link.path}?{link.query}", url + shelve(folder)
        for client, width, speed in itertools.product(CLIENTS, (1, 8), (GIGABIT, None)):
            way = Way(client, width, seconds, link=speed)
            compare("files", told["file"], file, gateway, way)
            compare("kept pictures", told["file"], kept, gateway, way)


if __name__ == "__main__":
    if sys.argv[1:2] == ["emulator"]:
        uvloop.run(emulate(float(sys.argv[2]), inside=sys.argv[3] == "inside"))
    else:
        main()
