"""Running the gateway: it listens, it serves, and when it is told to stop it takes its leave in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import msgspec
import uvicorn

from imagen.assembly import GATEWAY, App, build
from imagen.domain.batch import Batch, Control
from imagen.domain.prediction import EMULATOR
from imagen.errors import ConfigError, StoreError
from imagen.ports import Clock
from imagen.server.access import Door
from imagen.server.app import build_server
from imagen.server.context import Context
from imagen.server.memory import settle
from imagen.server.metrics import Metrics
from imagen.service.heed import StoreHeed
from imagen.service.recover import Recovery
from imagen.settings import Settings
from imagen.transport.message import is_loopback

LEAST_ADMIN_KEY = 16
"""Characters of an admin key that others than this machine may try to guess."""
FIRST_RESTART_SECONDS, _LAST_RESTART_SECONDS = 1.0, 60.0
"""What is done in the background and has ended by a fault begins again after such a pause."""
_HOLDS_SECONDS = 5.0
"""What has gone on for so long counts as mended."""
_OPENING_SECONDS = 5.0
"""Who comes first waits for a new database; where it takes longer, or cannot be had, `/ready` says so."""
_LAST_SECONDS = 3.0
"""For answers on their way when everything else is done."""

_log = logging.getLogger(__name__)


class Served(msgspec.Struct, frozen=True):
    """A running gateway; `practises` where pictures are the emulator's."""

    url: str
    app: App
    context: Context
    practises: bool


@asynccontextmanager
async def serving(
    settings: Settings, *, environ: Mapping[str, str] | None = None, clock: Clock | None = None
) -> AsyncIterator[Served]:
    """A gateway that listens while the block runs, and drains at its end.

    Raises:
        ConfigError: it must not listen there without a better admin key, or cannot.
    """
    check_safe(settings)
    metrics = Metrics()
    with _listen(settings.server.host, settings.server.port) as listener:
        async with build(settings, environ=environ, observer=metrics, clock=clock) as app:
            context = Context(
                app,
                door=_door(app),
                metrics=metrics,
                public_url=settings.public_url,
            )
            server = _Server(
                uvicorn.Config(
                    build_server(context),
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    server_header=False,
                    proxy_headers=False,  # who reaches us through a proxy sets public_url
                    timeout_keep_alive=75,
                    timeout_graceful_shutdown=int(_LAST_SECONDS),
                )
            )
            recovery = Recovery(
                gateway=app.gateway,
                store=app.store,
                limits=app.limits,
                owners=app.owners,
                clock=app.clock,
                backend=GATEWAY,
                batches=app.batches,
            )
            app.webhooks.listen()
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_OPENING_SECONDS):
                    await app.database.open()
            listening = asyncio.create_task(server.serve(sockets=[listener]))
            recovering = asyncio.create_task(_kept_up(context, "recovery", recovery.run))
            heed = StoreHeed(
                pulse=app.pulse, troubles=app.worker.troubles, gateway=app.gateway, clock=app.clock
            )
            heeding = asyncio.create_task(_kept_up(context, "the heed of the database", heed.run))
            delivering = asyncio.create_task(_kept_up(context, "delivery", app.courier.deliver))
            mirroring = asyncio.create_task(_kept_up(context, "the sink of the ledger", app.mirror.run))
            work = partial(
                app.queue.run,
                app.worker.work,
                emptied=app.worker.emptied,
                takes=partial(_works_on, app),
            )
            working = asyncio.create_task(_kept_up(context, "durable work", work))
            try:
                yield Served(_url(listener), app, context, app.backends.own().practice)
            finally:
                recovering.cancel()
                app.queue.stop()
                await _drain(context, settings.server.drain.total_seconds())
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                delivering.cancel()
                heeding.cancel()
                mirroring.cancel()
                server.should_exit = True
                await asyncio.gather(
                    listening, recovering, delivering, heeding, mirroring, return_exceptions=True
                )


async def serve(settings: Settings, *, told: Callable[[Served], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: where to listen, and everything else.
        told: called once it listens.
    """
    settle()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        async with serving(settings) as served:
            told(served)
            await ended.wait()
            _log.info("told to stop: no new work is taken")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def check_safe(settings: Settings) -> None:
    """Refuse to listen for others than this machine with an admin key that can be guessed, or with none.

    Raises:
        ConfigError: saying what to set.
    """
    key = settings.admin_api_key
    if is_loopback(settings.server.host) or (key is not None and len(key.reveal()) >= LEAST_ADMIN_KEY):
        return
    wrong = "none is set" if key is None else f"the one that is set has {len(key.reveal())}"
    raise ConfigError(
        f"the gateway listens on {settings.server.host} only with an admin key of at least "
        f"{LEAST_ADMIN_KEY} characters; {wrong}",
        setting="admin_api_key",
        hint="Set CONCURRENT_DOCKER_ADMIN_API_KEY (`openssl rand -hex 24` makes one), or listen on 127.0.0.1.",
    )


def _works_on(app: App, batch: Batch) -> bool:
    """Whether a batch was accepted by a gateway, and can be gone on with.

    Those of commands are for whoever resumes them. Nobody does that with one that is to be canceled: nothing more of it is
    bought, and anybody may end it.
    """
    if batch.details.get("command"):
        return batch.control is Control.CANCEL and app.why_it_cannot_end(batch) is None
    return batch.backend in {GATEWAY, EMULATOR} and app.batches.has_token(batch)


def _door(app: App) -> Door:
    settings = app.settings
    local = is_loopback(settings.server.host)
    public_host = urlsplit(settings.public_url).hostname if settings.public_url else None
    return Door(
        admin_key=settings.admin_api_key,
        accounts=app.backends,
        keys=app.keys,
        # Whoever names a public address serves others, through a proxy, even where only this machine reaches us.
        fallback=settings.allow_env_fallback or (local and (public_host is None or is_loopback(public_host))),
        local_caller=app.caller(),
        local=local,
        clock=app.clock,
        public_host=public_host,
        through_proxies=settings.allow_env_fallback,
    )


async def _kept_up(context: Context, name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Do what is done in the background until cancelled: what ends by a fault begins again after a pause.

    From the fault on until it has held for a while the gateway says that it is not ready.
    """
    loop = asyncio.get_running_loop()
    pause = FIRST_RESTART_SECONDS
    while True:
        holds = loop.call_later(_HOLDS_SECONDS, context.broken.discard, name)
        began = loop.time()
        try:
            await run()
            _log.error("%s has ended, and begins again in %g s", name, pause)
        except Exception as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the process ends: nothing begins again
            _log.error("%s ended by an unexpected %s", name, type(error).__name__)
            _log.debug("its trace", exc_info=error)
        finally:
            holds.cancel()
        if loop.time() - began >= _HOLDS_SECONDS:
            pause = FIRST_RESTART_SECONDS
        context.broken.add(name)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LAST_RESTART_SECONDS)


async def _drain(context: Context, seconds: float) -> None:
    """Take nothing new, give what is under way its time, and hand over the rest: it goes on at the service."""
    context.drains = True
    context.app.line.close()
    if context.under_way:
        await asyncio.wait(set(context.under_way), timeout=seconds)
    if left := set(context.under_way):
        _log.warning("%d requests are handed over unfinished", len(left))
        context.app.finisher.hands_over = True
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_LAST_SECONDS)


class _Server(uvicorn.Server):
    """Signals are `serve`'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: nobody can listen there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(4096)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror or error}",
            setting="server.port",
            hint="Choose another with --port, or stop the program that has it.",
        ) from error
    listener.settimeout(0)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
