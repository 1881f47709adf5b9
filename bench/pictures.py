"""Pictures that pass through the gateway: how much of the throughput of going straight to the service is left.

    make bench                       or    .venv/bin/python bench/pictures.py [seconds a round]

Three processes on loopback: the built-in emulator as the service, `imagen serve` in front of it with an admin key, limits,
metrics and its durable ledger on, and this one, which counts bytes and looks at none. Each round asks the emulator and the
gateway in turn, with the same client over connections that stay open; the median of the rounds counts.

Two clients take turns too: a bare one, which shows what the servers themselves cost, and httpx, with which the official
Python clients download. With three processes on two cores the bare one leaves no core to whoever stands in between.

- files: `GET /v1/files/{id}/download`, 1 MiB, streamed through.
- kept pictures: `GET /pictures/{id}`, 1 MiB, beside the same download straight from the emulator.
- answers: a create that is held open until its output, 1 MiB as a data URI, stands in the answer; as fast as it goes, and
  with runs of a second and 60 in flight.
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
from pathlib import Path
from typing import Any
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
ROUNDS = 5
ADMIN_KEY = "bench-" + secrets.token_hex(12)
TOKEN = "r8_" + "bench"
TICKS = os.sysconf("SC_CLK_TCK")


# --- the client ------------------------------------------------------------------------------------------


class Getter(asyncio.BufferedProtocol):
    """One connection that stays open: asks, and counts what comes until the answer is whole."""

    def __init__(self) -> None:
        self.transport: Any = None
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

    def connection_lost(self, error: Exception | None) -> None:
        if not self.waiting.done():
            self.waiting.set_exception(error or ConnectionError("the answer broke off"))

    async def ask(self, request: bytes) -> int:
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
async def bare(url: str, width: int) -> AsyncIterator[list[Ask]]:
    """Connections that do nothing but count: what is left is what the servers and the system take."""
    loop = asyncio.get_running_loop()
    host, port, _ = request_of(url)
    getters = [(await loop.create_connection(Getter, host, port))[1] for _ in range(width)]
    yield [lambda body, one=one: one.ask(request_of(url, body=body)[2]) for one in getters]
    for getter in getters:
        getter.transport.close()


@asynccontextmanager
async def with_httpx(url: str, width: int) -> AsyncIterator[list[Ask]]:
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
            return size

        yield [ask] * width


CLIENTS = {"bare": bare, "httpx": with_httpx}


async def load(client: str, url: str, width: int, seconds: float, body: Callable[[], bytes]) -> float:
    """MiB a second."""
    came = 0
    async with CLIENTS[client](url, width) as asking:
        began = time.perf_counter()

        async def one(ask: Ask) -> None:
            nonlocal came
            while time.perf_counter() - began < seconds:
                size = await ask(body())
                came += size

        await asyncio.gather(*map(one, asking))
        return came / MIB / (time.perf_counter() - began)


def nothing() -> bytes:
    return b""


NUMBERS = itertools.count(1)


def a_wish() -> bytes:
    """Another one each time: the same again would be made once."""
    wish = {"prompt": f"a red fox in the snow, number {next(NUMBERS)}"}
    return json.dumps({"input": wish}).encode()


# --- the two servers -------------------------------------------------------------------------------------


async def emulate(run_seconds: float) -> None:
    """The service, with a file of 1 MiB in it, and 1 MiB of data URI in the answer to each create; tells where."""
    async with Emulator(run_seconds=run_seconds) as emulator, aiohttp.ClientSession() as session:
        emulator.set_mode(creates_per_minute=0, others_per_minute=0, data_uris=True, picture_kib=KIB_INSIDE)
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
def pair(run_seconds: float) -> Iterator[tuple[dict[str, Any], str, int, str]]:
    """An emulator and a gateway in front of it: what the first tells, the other's address, its process and its folder."""
    upstream, told = start(__file__, "emulator", str(run_seconds))
    with tempfile.TemporaryDirectory() as folder:
        gateway, url = start_gateway(told["url"], folder)
        try:
            yield told, url, gateway.pid, folder
        finally:
            for process in (gateway, upstream):
                process.send_signal(signal.SIGTERM)
                process.wait()


def compare(
    name: str,
    direct: str,
    through: str,
    gateway: int,
    *,
    client: str,
    width: int,
    seconds: float,
    body: Callable[[], bytes] = nothing,
) -> None:
    """A line of the table."""
    found: dict[str, list[float]] = {direct: [], through: []}
    spent = came = 0.0
    for url in found:
        uvloop.run(load(client, url, width, 0.5, body))  # warm
    for _ in range(ROUNDS):
        for url, rounds in found.items():
            before, began = cpu_of(gateway), time.perf_counter()
            rounds.append(uvloop.run(load(client, url, width, seconds, body)))
            if url == through:
                spent += cpu_of(gateway) - before
                came += rounds[-1] * (time.perf_counter() - began)
    ratios = [ours / theirs for theirs, ours in zip(*found.values(), strict=True)]
    medians = [statistics.median(rounds) for rounds in found.values()]
    print(
        f"| {name} | {client} | {width} | {medians[0]:.0f} | {medians[1]:.0f} | {medians[1] / medians[0]:.2f} | "
        f"{min(ratios):.2f}-{max(ratios):.2f} | {spent / came * 1000:.2f} ms |",
        flush=True,
    )


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    print(
        f"1 MiB each; {ROUNDS} rounds of {seconds:g} s in turn, medians; MiB a second; {os.cpu_count()} cores\n"
    )
    print("| | client | in flight | direct | gateway | ratio | of single rounds | CPU of the gateway a MiB |")
    print("|---|---|---|---|---|---|---|---|")
    with pair(0.0) as (told, url, gateway, folder):
        link = urlsplit(told["file"])
        file, kept = f"{url}{link.path}?{link.query}", url + shelve(folder)
        for client, width in itertools.product(CLIENTS, (1, 8)):
            shape = {"client": client, "width": width, "seconds": seconds}
            compare("files", told["file"], file, gateway, **shape)
            compare("kept pictures", told["file"], kept, gateway, **shape)
        shape = {"client": "httpx", "width": 8, "seconds": seconds, "body": a_wish}
        compare("answers, at once", told["url"] + CREATE, url + CREATE, gateway, **shape)
    with pair(1.0) as (told, url, gateway, _):
        shape = {"client": "httpx", "width": 60, "seconds": 2 * seconds, "body": a_wish}
        compare("answers, runs of 1 s", told["url"] + CREATE, url + CREATE, gateway, **shape)


if __name__ == "__main__":
    if sys.argv[1:2] == ["emulator"]:
        uvloop.run(emulate(float(sys.argv[2])))
    else:
        main()
