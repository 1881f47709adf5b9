"""What the gateway adds to a prediction: CPU and time, beside a floor and beside going straight to the service.

    make bench                       or    .venv/bin/python bench/gateway.py [seconds a round] [in flight]

Four processes on loopback. A fast upstream speaks just enough of Replicate and holds each create open for 0.1 s. The floor
is a proxy written by hand on `asyncio.Protocol`: it decodes the wish, asks the upstream over connections that stay open,
and answers; it checks, limits and writes down nothing. The gateway is `imagen serve` with an admin key, limits, metrics and
its durable ledger on. The load keeps so many requests in flight over connections that stay open. CPU is the server
process's own, from /proc, so that what else the machine does hardly matters. Rounds take turns; the median counts.
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
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

HOLD_SECONDS, ROUNDS = 0.1, 3
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


# --- messages, as little of HTTP as both ends need -------------------------------------------------------


class Messages(asyncio.Protocol):
    """Cuts a stream into messages with a content-length; hands each to `take(head, body)`."""

    def __init__(self) -> None:
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            at = head.lower().find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + size:
                return
            body = self.buffer[end + 4 : end + 4 + size]
            self.buffer = self.buffer[end + 4 + size :]
            self.take(head, body)

    def take(self, head: bytes, body: bytes) -> None:
        raise NotImplementedError


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class Caller(Messages):
    """One connection that stays open; one request at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: asyncio.Future[bytes] | None = None

    def take(self, head: bytes, body: bytes) -> None:
        assert self.waiting is not None
        self.waiting.set_result(body if head.split(b" ", 2)[1].startswith(b"2") else b"!" + head + body)

    async def ask(self, request: bytes) -> bytes:
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.waiting


# --- the upstream ----------------------------------------------------------------------------------------


class Upstream(Messages):
    """Answers every create with a prediction that succeeded, after a while."""

    numbers = itertools.count(1)

    def take(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            self.transport.write(answer(b'{"type": "user", "username": "bench"}'))
            return
        one = b"bench%020d" % next(self.numbers)
        given = msgspec.json.decode(body)["input"]
        made = msgspec.json.encode(
            {
                "id": one.decode(), "model": "black-forest-labs/flux-schnell", "version": "hidden", "input": given,
                "logs": "", "output": [f"https://replicate.delivery/xezq/{one.decode()}/out-0.webp"], "error": None,
                "status": "succeeded", "created_at": "2026-11-22T10:00:00.000Z", "metrics": {"predict_time": 0.1},
                "urls": {"get": f"https://api.replicate.com/v1/predictions/{one.decode()}"},
            }
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        loop.call_later(HOLD_SECONDS, self.transport.write, answer(made))


# --- the floor -------------------------------------------------------------------------------------------


class Wish(msgspec.Struct):
    model_name: str
    prompt: str
    output_filename: str = "a"


class Floor(Messages):
    """A proxy by hand: decode, ask, answer."""

    upstream: tuple[str, int]
    idle: deque[Caller]

    def take(self, head: bytes, body: bytes) -> None:  # noqa: ARG002 - a floor looks at nothing
        self.task = asyncio.ensure_future(self.serve(body))

    async def serve(self, body: bytes) -> None:
        wish = msgspec.json.decode(body, type=Wish)
        asked = msgspec.json.encode({"input": {"prompt": wish.prompt, "seed": 7}})
        if self.idle:
            caller = self.idle.pop()
        else:
            _, caller = await asyncio.get_running_loop().create_connection(Caller, *self.upstream)
        made = msgspec.json.decode(
            await caller.ask(
                b"POST /v1/models/black-forest-labs/flux-schnell/predictions HTTP/1.1\r\nhost: x\r\nprefer: wait=60\r\n"
                b"authorization: Bearer r8_x\r\ncontent-length: %d\r\n\r\n%b" % (len(asked), asked)
            )
        )
        self.idle.append(caller)
        files = [{"url": url, "filename": wish.output_filename} for url in made["output"]]
        told = {"success": True, "model_name": wish.model_name, "generated_files": files, "count": len(files)}
        self.transport.write(answer(msgspec.json.encode(told)))


# --- the load --------------------------------------------------------------------------------------------


async def load(
    port: int, width: int, seconds: float, path: str, body: bytes
) -> tuple[int, float, list[float]]:
    """Requests done, seconds they took, and the time of each."""
    request = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nx-admin-api-key: {ADMIN_KEY}\r\nauthorization: Bearer r8_x\r\n"
        f"prefer: wait=60\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    callers = [(await loop.create_connection(Caller, "127.0.0.1", port))[1] for _ in range(width)]
    took: list[float] = []
    began = time.perf_counter()

    async def one(caller: Caller) -> None:
        while time.perf_counter() - began < seconds:
            at = time.perf_counter()
            got = await caller.ask(request)
            if got.startswith(b"!"):
                raise SystemExit(got.decode(errors="replace")[:600])
            took.append(time.perf_counter() - at)

    await asyncio.gather(*map(one, callers))
    passed = time.perf_counter() - began
    for caller in callers:
        caller.transport.close()
    return len(took), passed, took


def cpu_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_of(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE / 2**20


ADMIN_KEY = "bench-" + secrets.token_hex(12)
WISH = msgspec.json.encode(
    {"model_name": "flux-schnell", "prompt": "a red fox in the snow", "output_filename": "a"}
)
CREATE = msgspec.json.encode({"input": {"prompt": "a red fox in the snow", "seed": 7}})


async def serve(protocol: Callable[[], Messages], port: int) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def start(*arguments: str, env: dict[str, str] | None = None) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def start_gateway(upstream: int, folder: str) -> tuple[subprocess.Popen[str], int]:
    many = "1000000"
    process, told = start(
        "-m", "imagen", "serve", "--port", "0", "--json",
        env={
            "HOME": folder, "IMAGEN_DATA_DIR": folder, "IMAGEN_REPLICATE__API_BASE": f"http://127.0.0.1:{upstream}",
            "REPLICATE_API_TOKEN": "r8_bench", "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
            "REPLICATE_CONCURRENT_LIMIT": "20000", "REPLICATE_REQUESTS_PER_MINUTE": many,
        },
    )  # fmt: skip
    return process, int(json.loads(told)["url"].rpartition(":")[2])


def measure(
    process: int | None, port: int, width: int, *, seconds: float, path: str, body: bytes
) -> dict[str, float]:
    before = cpu_of(process) if process else 0.0
    count, passed, took = uvloop.run(load(port, width, seconds, path=path, body=body))
    spent = cpu_of(process) - before if process else 0.0
    took.sort()
    return {
        "cpu_ms": spent / count * 1000,
        "per_second": count / passed,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[int(len(took) * 0.99)] * 1000,
        "resident_mb": resident_of(process) if process else 0.0,
    }


def median(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in rounds)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    width = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    upstream, told = start(__file__, "upstream")
    floor, floor_port = start(__file__, "floor", told)
    with tempfile.TemporaryDirectory() as folder:
        gateway, port = start_gateway(int(told), folder)
        try:
            for each, path in ((int(floor_port), "/"), (port, "/generate")):  # warm
                uvloop.run(load(each, min(width, 100), 1.0, path=path, body=WISH))
            rest = resident_of(gateway.pid)
            found: dict[str, list[dict[str, float]]] = {"direct": [], "floor": [], "gateway": []}
            direct = {"seconds": seconds, "path": "/v1/models/x/y/predictions", "body": CREATE}
            ours = {"seconds": seconds, "path": "/generate", "body": WISH}
            for _ in range(ROUNDS):
                found["direct"].append(measure(None, int(told), width, **direct))
                found["floor"].append(measure(floor.pid, int(floor_port), width, **ours))
                found["gateway"].append(measure(gateway.pid, port, width, **ours))
            alone = measure(gateway.pid, port, 1, **ours)
            straight = measure(None, int(told), 1, **direct)
            held = measure(gateway.pid, port, 60, **ours)
            crowd = measure(gateway.pid, port, 1000, **ours)
        finally:
            for process in (gateway, floor, upstream):
                process.send_signal(signal.SIGTERM)
                process.wait()
    spent, least = median(found["gateway"], "cpu_ms"), median(found["floor"], "cpu_ms")
    print(
        f"{width} in flight, each held {HOLD_SECONDS} s upstream; {ROUNDS} rounds of {seconds:g} s in turn, medians\n"
    )
    print("| | CPU a request | requests a second | p50 | p99 |\n|---|---|---|---|---|")
    for name, rounds in found.items():
        shown = f"{median(rounds, 'cpu_ms'):.3f} ms" if name != "direct" else "-"
        print(
            f"| {name} | {shown} | {median(rounds, 'per_second'):.0f} | {median(rounds, 'p50_ms'):.0f} ms | "
            f"{median(rounds, 'p99_ms'):.0f} ms |"
        )
    print(f"\nCPU of the gateway ÷ floor: {spent / least:.1f}")
    share = median(found["gateway"], "per_second") / median(found["direct"], "per_second")
    print(f"throughput of the gateway ÷ direct: {share:.2f}")
    print(f"CPU a request at {width} in flight ÷ at 60: {spent / held['cpu_ms']:.2f}")
    print(
        f"one at a time: p50 {alone['p50_ms']:.1f} ms, direct {straight['p50_ms']:.1f} ms: added {alone['p50_ms'] - straight['p50_ms']:.1f} ms"
    )
    print(
        f"resident: {rest:.0f} MB after the first requests, {crowd['resident_mb']:.0f} MB after 1,000 in flight"
    )


if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "upstream":
        uvloop.run(serve(Upstream, 0))
    elif role == "floor":
        Floor.upstream, Floor.idle = ("127.0.0.1", int(sys.argv[2])), deque()
        uvloop.run(serve(Floor, 0))
    else:
        main()
