"""The emulator itself: two listening ports on the running event loop, and what Python tests call."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from imagen.decoding import convert
from imagen.emulator.api import build_api_app
from imagen.emulator.catalog import DEPLOYMENTS, known_models
from imagen.emulator.clock import Clock
from imagen.emulator.control import add_control, state_json
from imagen.emulator.delivery import build_delivery_app
from imagen.emulator.fault import Fault
from imagen.emulator.fault_book import Posted
from imagen.emulator.faults import fault_from_json
from imagen.emulator.files import signature
from imagen.emulator.journal import Journal
from imagen.emulator.limits import Mode
from imagen.emulator.models import Model
from imagen.emulator.plant import Plant, plant
from imagen.emulator.webhooks import Webhooks
from imagen.emulator.world import World


class Emulator:
    """Replicate on localhost, on the current event loop, while its `async with` block lasts.

    Args:
        host: Address to listen on; loopback only, unless `allow_non_loopback`.
        port: Port of the API; 0 takes a free one.
        delivery_port: Port of the file host; 0 takes a free one.
        run_seconds: How long each prediction runs; None: as long as its model says, else 0.2.
        queue_seconds: How long each waits before; None: as long as its model says, else 0.
        models: Models to know besides those of `catalog.py`; the same name replaces.
        deployments: Deployments to know besides `emulated/flux-deployment`: `owner/name` → model name.
        accepted_tokens: The tokens that are let in; None: every one without "invalid" in it.
        mode: Limits and credit; see `Mode`.
        public_url: The API's address as clients reach it, where that is not `http://host:port`.
        public_delivery_url: The same for the file host.
        allow_non_loopback: Whether other machines may reach it: control has no password.

    Raises:
        ValueError: `host` is not a loopback address and `allow_non_loopback` is not given.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        delivery_port: int = 0,
        run_seconds: float | None = None,
        queue_seconds: float | None = None,
        models: Iterable[Model] = (),
        deployments: Mapping[str, str] | None = None,
        accepted_tokens: Iterable[str] | None = None,
        mode: Mode | None = None,
        public_url: str | None = None,
        public_delivery_url: str | None = None,
        allow_non_loopback: bool = False,
    ) -> None:
        if not allow_non_loopback and not is_loopback(host):
            raise ValueError(f"{host} is not a loopback address: say allow_non_loopback=True if you mean it")
        self._host = host
        self._ports = (port, delivery_port)
        self._public_urls = (public_url, public_delivery_url)
        self._runners: list[web.AppRunner] = []
        self.world = World(
            (*known_models(), *models),
            {**DEPLOYMENTS, **(deployments or {})},
            mode=mode or Mode(),
            run_seconds=run_seconds,
            queue_seconds=queue_seconds,
            accepted_tokens=accepted_tokens,
        )
        self._webhooks = Webhooks(self.world)
        self.world.changed = self._webhooks.look

    @property
    def url(self) -> str:
        """`http://HOST:PORT` of the API, without `/v1`."""
        return self.world.api_url

    @property
    def delivery_url(self) -> str:
        """`http://HOST:PORT` of the file host."""
        return self.world.delivery_url

    @property
    def clock(self) -> Clock:
        """The virtual clock: `clock.advance(seconds=3600)`."""
        return self.world.clock

    @property
    def journal(self) -> Journal:
        """What was asked and answered: `journal.entries(operation="predictions.create")`."""
        return self.world.journal

    @property
    def purchases(self) -> int:
        """How many predictions were accepted since the start or the last reset: what was bought."""
        return self.world.state.purchases

    def add_fault(self, fault: Fault | str, **attributes: Any) -> Posted:
        """Post a fault, as a struct of `faults.py` or by name: `add_fault("status", status=503, times=2)`.

        Raises:
            ValueError: no such fault, or no such attribute.
        """
        if isinstance(fault, str):
            fault = fault_from_json({"name": fault, **attributes})
        elif attributes:
            raise ValueError("attributes go with the name of a fault; a struct has its own")
        return self.world.faults.post(fault)

    def clear_faults(self) -> None:
        """Withdraw every fault."""
        self.world.faults.clear()

    def set_mode(self, **changes: Any) -> Mode:
        """Change limits and credit: `set_mode(low_credit=True)`; the rest stays.

        Raises:
            ValueError: no such attribute, or a value it cannot have.
        """
        self.world.mode = convert({**msgspec.to_builtins(self.world.mode), **changes}, Mode)
        return self.world.mode

    def rotate_webhook_secrets(self) -> None:
        """Replace the webhook secret of every account; what is sent from now on is signed with the new one."""
        self.world.state.rotate_webhook_secrets()

    def add_model(self, model: Model) -> None:
        """Make a model known; the same name replaces."""
        self.world.models.add(model)

    def plant(self, **kinds: Any) -> None:
        """Plant things with chosen ids: `plant(token="r8_any", predictions=[{"id": "p1", "model": "a/b"}])`.

        The kinds and their keys are those of `plant.Plant`.

        Raises:
            ValueError: no such kind or key, or something refers to what is not there.
        """
        plant(self.world, convert(kinds, Plant))

    def reset(self) -> None:
        """Forget what was made, planted, asked and posted; the clock and added models stay."""
        self.world.reset()

    def state(self) -> dict[str, Any]:
        """Counts, as `GET /_emulator/state` answers them."""
        return state_json(self.world)

    def download_url(self, file_id: str, *, expires_in_seconds: int = 3600) -> str:
        """A signed link to an uploaded file, as its owner can make one with the signing secret.

        Raises:
            KeyError: no account has such a file.
        """
        for account in self.world.state.accounts.values():
            if file_id in account.files:
                expiry = int(self.clock.time()) + expires_in_seconds
                signed = signature(account.files_secret, account.username, file_id, expiry)
                query = f"owner={account.username}&expiry={expiry}&signature={_quoted(signed)}"
                return f"{self.url}/v1/files/{file_id}/download?{query}"
        raise KeyError(file_id)

    async def start(self) -> None:
        """Listen; `async with` does it.

        Raises:
            OSError: a port is taken.
        """
        api = build_api_app(self.world)
        add_control(api, self.world)
        try:
            api_url = await self._listen(api, self._ports[0])
            delivery_url = await self._listen(build_delivery_app(self.world), self._ports[1])
        except BaseException:
            await self.stop()
            raise
        self.world.open(self._public_urls[0] or api_url, self._public_urls[1] or delivery_url)

    async def stop(self) -> None:
        """Close both ports; requests that are still held, and webhooks on their way, are broken off.

        Does no harm when done twice.
        """
        await self._webhooks.aclose()
        while self._runners:
            await self._runners.pop().cleanup()

    async def _listen(self, app: web.Application, port: int) -> str:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handle_signals=False)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, self._host, port, backlog=1024)
        await site.start()
        return f"http://{_reachable(self._host)}:{runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; names are not looked up, `localhost` is known."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(host: str) -> str:
    if host in {"0.0.0.0", ""}:  # noqa: S104 - it is compared, not listened on
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _quoted(text: str) -> str:
    return text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
