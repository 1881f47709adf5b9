"""Practice: the emulator inside this process, spoken to over real HTTP like Replicate itself."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from imagen.backends.registry import BackendContext
from imagen.backends.replicate.backend import ReplicateBackend
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Sighting, Status
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.ports import Fetched, Glance, Passage, Plan, Reply

if TYPE_CHECKING:
    from imagen.emulator import Emulator

RUN_SECONDS = 0.6
"""Long enough to see something happen, short enough not to wait for it."""


class EmulatedBackend:
    """A Replicate of our own, started when it is first needed and gone with the process. Costs nothing."""

    practice = True

    def __init__(self, context: BackendContext) -> None:
        self.name = context.name
        self.type = context.type
        self.model = context.model
        self.account = f"practice-{secrets.token_hex(6)}"
        self._context = context
        self._starting = asyncio.Lock()
        self._emulator: Emulator | None = None
        self._inner: ReplicateBackend | None = None

    async def check(self, request: GenerationRequest) -> Sequence[Plan]:
        """See `ports.Backend.check`."""
        return await (await self._started()).check(request)

    async def submit(
        self,
        prediction: Prediction,
        *,
        hold_seconds: float,
        secrets: Mapping[str, Any],
        webhook: str | None = None,
        on_send: Callable[[], None] | None = None,
    ) -> Sighting:
        """See `ports.Backend.submit`."""
        inner = await self._started()
        return await inner.submit(
            prediction, hold_seconds=hold_seconds, secrets=secrets, webhook=webhook, on_send=on_send
        )

    async def look(self, prediction: Prediction) -> Sighting:
        """See `ports.Backend.look`."""
        return await (await self._started()).look(prediction)

    async def look_many(
        self, known: Mapping[str, Status | None], *, before: datetime | None = None
    ) -> Glance:
        """See `ports.Backend.look_many`."""
        return await (await self._started()).look_many(known, before=before)

    async def find(self, prediction: Prediction, *, ignore: frozenset[str]) -> Sighting | None:
        """See `ports.Backend.find`."""
        return await (await self._started()).find(prediction, ignore=ignore)

    async def cancel(self, prediction: Prediction) -> Sighting:
        """See `ports.Backend.cancel`."""
        return await (await self._started()).cancel(prediction)

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        """See `ports.Backend.fetch`."""
        return await (await self._started()).fetch(url, target, limit_bytes=limit_bytes)

    async def probe(self) -> Mapping[str, Any]:
        """See `ports.Backend.probe`."""
        return await (await self._started()).probe()

    async def relay(self, call: Passage) -> Reply:
        """See `ports.Relay.relay`."""
        return await (await self._started()).relay(call)

    async def address_of(self, path: str) -> str:
        """See `ports.Relay.address_of`."""
        return await (await self._started()).address_of(path)

    def readiness(self) -> str:
        """See `ports.Backend.readiness`."""
        return "ok"

    def quote(self, prediction: Prediction, *, typical_seconds: float | None = None) -> Quote:  # noqa: ARG002 - the port's
        """Practice is free."""
        return Quote.exactly(Usd(0))

    def price(self, prediction: Prediction) -> Usd | None:  # noqa: ARG002 - the port's
        """Practice is free."""
        return Usd(0)

    async def aclose(self) -> None:
        """End the emulator."""
        if self._emulator is not None:
            await self._emulator.__aexit__(None, None, None)
            self._emulator = self._inner = None

    async def _started(self) -> ReplicateBackend:
        async with self._starting:
            if self._inner is None:
                from imagen.emulator import Emulator  # noqa: PLC0415 - only practice needs it

                emulator = Emulator(run_seconds=RUN_SECONDS)
                await emulator.__aenter__()
                self._emulator = emulator
                token = Secret("r8_practice")
                self._inner = ReplicateBackend(
                    msgspec.structs.replace(self._context, api_base=emulator.url, token=token)
                )
                self._inner.account = self.account
            return self._inner


build_backend = EmulatedBackend
