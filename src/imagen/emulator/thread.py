"""The same emulator on a thread of its own, for tests and programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from imagen.emulator.clock import Clock
from imagen.emulator.fault import Fault
from imagen.emulator.fault_book import Posted
from imagen.emulator.journal import Journal
from imagen.emulator.limits import Mode
from imagen.emulator.models import Model
from imagen.emulator.server import Emulator

Result = TypeVar("Result")


class EmulatorThread:
    """An `Emulator` that runs on its own thread while the `with` block lasts; takes the same arguments.

    Every method may be called from any thread; what changes the emulator runs on its loop.
    """

    def __init__(self, **arguments: Any) -> None:
        self._emulator = Emulator(**arguments)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="imagen-emulator", daemon=True)

    @property
    def url(self) -> str:
        """`http://HOST:PORT` of the API, without `/v1`."""
        return self._emulator.url

    @property
    def delivery_url(self) -> str:
        """`http://HOST:PORT` of the file host."""
        return self._emulator.delivery_url

    @property
    def clock(self) -> Clock:
        """The virtual clock; it may be advanced from any thread."""
        return self._emulator.clock

    @property
    def journal(self) -> Journal:
        """What was asked and answered; reading takes a snapshot."""
        return self._emulator.journal

    @property
    def purchases(self) -> int:
        """How many predictions were bought since the start or the last reset."""
        return self._emulator.purchases

    def add_fault(self, fault: Fault | str, **attributes: Any) -> Posted:
        """Post a fault; see `Emulator.add_fault`."""
        return self._call(lambda: self._emulator.add_fault(fault, **attributes))

    def clear_faults(self) -> None:
        """Withdraw every fault."""
        self._call(self._emulator.clear_faults)

    def set_mode(self, **changes: Any) -> Mode:
        """Change limits and credit; see `Emulator.set_mode`."""
        return self._call(lambda: self._emulator.set_mode(**changes))

    def rotate_webhook_secrets(self) -> None:
        """Replace the webhook secret of every account; see `Emulator.rotate_webhook_secrets`."""
        self._call(self._emulator.rotate_webhook_secrets)

    def add_model(self, model: Model) -> None:
        """Make a model known; the same name replaces."""
        self._call(lambda: self._emulator.add_model(model))

    def plant(self, **kinds: Any) -> None:
        """Plant things with chosen ids; see `Emulator.plant`."""
        self._call(lambda: self._emulator.plant(**kinds))

    def reset(self) -> None:
        """Forget what was made, planted, asked and posted; the clock and added models stay."""
        self._call(self._emulator.reset)

    def state(self) -> dict[str, Any]:
        """Counts, as `GET /_emulator/state` answers them."""
        return self._call(self._emulator.state)

    def download_url(self, file_id: str, *, expires_in_seconds: int = 3600) -> str:
        """A signed link to an uploaded file; see `Emulator.download_url`."""
        return self._call(lambda: self._emulator.download_url(file_id, expires_in_seconds=expires_in_seconds))

    def start(self) -> None:
        """Start the thread and return when both ports listen; `with` does it.

        Raises:
            OSError: a port is taken.
        """
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Close both ports and end the thread. Does no harm when done twice."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._emulator.start()
        except BaseException as problem:  # noqa: BLE001 - it is raised where the thread was started
            self._started.set_exception(problem)
            return
        self._started.set_result(None)
        await self._stopping.wait()
        await self._emulator.stop()

    def _call(self, action: Callable[[], Result]) -> Result:
        if self._loop is None:
            raise RuntimeError("the emulator has not been started")
        done: Future[Result] = Future()

        def act() -> None:
            try:
                done.set_result(action())
            except Exception as problem:  # noqa: BLE001 - it is raised where the call was made
                done.set_exception(problem)

        self._loop.call_soon_threadsafe(act)
        return done.result()
