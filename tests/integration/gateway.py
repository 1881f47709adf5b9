"""A gateway in this process, on a real socket, in front of the emulator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from imagen.emulator import EmulatorThread
from imagen.server.run import Served, serving
from imagen.settings import load_settings
from waiting import until

ADMIN_KEY = "an-admin-key-for-tests"
ADMIN = {"X-Admin-API-Key": ADMIN_KEY}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def leave(
    asking: Coroutine[Any, Any, Answer] | asyncio.Task[Answer], emulator: EmulatorThread, *, purchases: int
) -> None:
    """Ask, and hang up once it was bought."""
    leaving = asyncio.ensure_future(asking)
    await until(lambda: emulator.purchases == purchases)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)


class RunningGateway:
    """Ask it."""

    def __init__(self, served: Served, session: aiohttp.ClientSession) -> None:
        self.url = served.url
        self.app = served.app
        self.context = served.context
        self.served = served
        self._metrics = served.context.metrics
        self.session = session

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        async with self.session.request(
            method, self.url + path, json=json, data=data, headers=headers, allow_redirects=False
        ) as response:
            body = await response.read()
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, found, body)

    def answered(self, method: str, status: int) -> float:
        """How many requests it has answered so, by now."""
        return sum(
            sample.value
            for family in self._metrics._registry.collect()
            for sample in family.samples
            if sample.name == "imagen_requests_total"
            and (sample.labels["method"], sample.labels["status"]) == (method, str(status))
        )

    async def is_ready(self) -> bool:
        """Whether it says that it takes work."""
        return (await self.request("GET", "/ready")).status == 200

    async def generate(self, *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        wish = {"model_name": "flux-dev", "prompt": "a red fox in the snow"} | fields
        return await self.request(
            "POST", "/generate", json=wish, headers=ADMIN if headers is None else headers
        )


@asynccontextmanager
async def running_gateway(
    tmp_path: Path, emulator: EmulatorThread | None, **environ: str
) -> AsyncIterator[RunningGateway]:
    given = {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
        "FLASK_PORT": "0",
        "REPLICATE_API_TOKEN": "r8_the_servers_own_token",
    } | environ
    if emulator is not None:
        given["IMAGEN_REPLICATE__API_BASE"] = emulator.url
    settings = load_settings(environ=given, cwd=tmp_path)
    async with (
        serving(settings, environ=given) as served,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield RunningGateway(served, session)
        await asyncio.sleep(0)
