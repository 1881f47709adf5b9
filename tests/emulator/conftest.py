"""A running emulator on the test's own loop, and a caller that speaks plain HTTP to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from imagen.emulator import Emulator

SCHNELL = "black-forest-labs/flux-schnell"
TOKEN = "r8_emulated_test_token"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "").split(";")[0]


class Caller:
    """Asks the emulator and keeps nothing: one connection per request, no redirects."""

    def __init__(self, emulator: Emulator, session: aiohttp.ClientSession) -> None:
        self.emulator = emulator
        self._session = session

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        headers: dict[str, str] | None = None,
        data: Any = None,
    ) -> Reply:
        url = path if path.startswith("http") else self.emulator.url + path
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token}")
        async with self._session.request(
            method, url, json=body, data=data, headers=sent, allow_redirects=False
        ) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, found, await response.read())

    async def create(
        self,
        prompt: str = "a red fox",
        *,
        model: str = SCHNELL,
        headers: dict[str, str] | None = None,
        token: str | None = TOKEN,
        **inputs: Any,
    ) -> Reply:
        body = {"version": model, "input": {"prompt": prompt, **inputs}}
        return await self("POST", "/v1/predictions", body, headers=headers, token=token)

    async def get(self, prediction: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = (await self("GET", prediction["urls"]["get"])).json
        return result

    async def finished(self, prompt: str = "a red fox", **inputs: Any) -> dict[str, Any]:
        """A prediction that has ended, by letting a virtual minute pass."""
        created = await self.create(prompt, **inputs)
        assert created.status == 201, created.raw
        self.emulator.clock.advance(60)
        return await self.get(created.json)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def emulator(anyio_backend: str) -> AsyncIterator[Emulator]:
    async with Emulator(run_seconds=30) as running:
        yield running


@pytest.fixture
async def call(emulator: Emulator) -> AsyncIterator[Caller]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Caller(emulator, session)
