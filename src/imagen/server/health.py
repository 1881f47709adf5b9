"""Whether the gateway is alive (`/health`), and whether it can take work (`/ready`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen import __version__
from imagen.domain.limits import AccountState
from imagen.errors import ImagenError, StoreError, Unauthenticated
from imagen.server.answers import DOCUMENTED_MODELS, json_answer
from imagen.server.context import Context
from imagen.server.operation import Operation

SERVICE = "replicate-concurrent-generation"
VERSION = "3.0 (External Semaphore Pattern + URL-Direct-Return)"
"""What clients of this face compare the answer with."""
_DATABASE_SECONDS = 0.7
"""Whoever asks after the health gives up soon; a database that takes longer counts as one that fails."""
_RETRY_AFTER_SECONDS = "5"
_OF_KEYS = frozenset({"x-api-key", "authorization"})


class ConcurrencyStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of the gateway's own account, and for the admin how far they are used.

    Attributes:
        concurrent_limit: predictions that may run at the same time.
        requests_per_minute_limit: predictions that may be created in a minute.
        running: predictions that run now, in all processes of one database.
        available: places that are free now.
        waiting: predictions in line in this process.
    """

    concurrent_limit: int
    requests_per_minute_limit: int
    running: int | None = None
    available: int | None = None
    waiting: int | None = None


class RateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the limiter has learned about one rate of the account.

    Attributes:
        kind: unknown, bucket or window: what the service's limit has turned out to be.
        rate_per_minute: calls a minute that are in force now.
        closed_for_seconds: how long a 429 keeps everybody out still; 0 when the way is free.
        low_credit: what the service allows while its credit runs out; null when it does not.
        refusals: 429s so far.
    """

    kind: str = "unknown"
    rate_per_minute: float = 0.0
    closed_for_seconds: float = 0.0
    low_credit: dict[str, Any] | None = None
    refusals: int = 0


class AccountStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the gateway's own account stands.

    Attributes:
        ready: `ok`, or what is missing in the configuration.
        creates: the rate of predictions.
        calls: the rate of all other calls.
    """

    ready: str
    creates: RateStatus | None = None
    calls: RateStatus | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The gateway is alive. Strangers get the first five fields, the admin and programs of this machine all.

    Attributes:
        status: always healthy: a process that is not does not answer.
        service: the name of the service.
        version: of this face.
        supported_models: the models that this face has names for; others are named owner/name.
        concurrency_status: the limits.
        imagen_version: of the program.
        models: how many models the catalog describes.
        account: how the gateway's own account stands.
        database: ok, or what is wrong with it.
        uptime_seconds: since the start.
        under_way: requests for pictures that this process works on.
        draining: true while the process shuts down.
    """

    status: str
    service: str
    version: str
    supported_models: tuple[str, ...]
    concurrency_status: ConcurrencyStatus
    imagen_version: str | None = None
    models: int | None = None
    account: AccountStatus | None = None
    database: str | None = None
    uptime_seconds: float | None = None
    under_way: int | None = None
    draining: bool | None = None


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether work is taken now; `reason` says why it is not."""

    ready: bool
    reason: str | None = None


async def health(context: Context, request: Request) -> Response:
    """Always 200 while the process can answer at all: whether it can work is told by `ready`."""
    limits = context.app.settings.limits
    answer = Health(
        status="healthy",
        service=SERVICE,
        version=VERSION,
        supported_models=DOCUMENTED_MODELS,
        concurrency_status=ConcurrencyStatus(
            concurrent_limit=limits.concurrent, requests_per_minute_limit=limits.creates_per_minute
        ),
    )
    if await _may_see_inside(context, request.headers):
        answer = await _with_details(context, answer)
    return json_answer(answer, headers={"cache-control": "no-store"})


async def ready(context: Context, request: Request) -> Response:  # noqa: ARG001 - a handler's parameters
    """Whether this process should be sent work."""
    reason = await _why_not_ready(context)
    if reason is None:
        return json_answer(Readiness(ready=True), headers={"cache-control": "no-store"})
    headers = {"cache-control": "no-store", "retry-after": _RETRY_AFTER_SECONDS}
    return json_answer(Readiness(ready=False, reason=reason), status=503, headers=headers)


async def check_insider(context: Context, headers: Mapping[str, str], *, route: str) -> None:
    """Let in the admin; and where callers without credentials are served anyway, any program that is no web page.

    Args:
        context: of the server.
        headers: of the request.
        route: the path that is asked for.

    Raises:
        Unauthenticated: somebody else asks.
    """
    if context.door.fallback:
        # Without the keys of callers: they would be looked up in a database that may be down just now.
        telling = {name: headers[name] for name in headers if name not in _OF_KEYS}
        await context.door.admit(telling, route=route)
    else:
        context.door.require_admin(headers)


async def _may_see_inside(context: Context, headers: Mapping[str, str]) -> bool:
    try:
        await check_insider(context, headers, route="/health")
    except Unauthenticated:
        return False  # also for a wrong key: a stranger asks, and the process is alive all the same
    return True


async def _with_details(context: Context, answer: Health) -> Health:
    app = context.app
    account, told = _own_account(context)
    state, database = None, "ok"
    try:
        state = await _account_state(context, account)
    except StoreError as error:
        database = error.detail
    except TimeoutError:
        database = f"it did not answer within {_DATABASE_SECONDS:g} s"
    limits = answer.concurrency_status
    running = None if state is None else state.running
    return msgspec.structs.replace(
        answer,
        concurrency_status=msgspec.structs.replace(
            limits,
            running=running,
            available=None if running is None else max(0, limits.concurrent_limit - running),
            waiting=app.line.waiting,
        ),
        imagen_version=__version__,
        models=len(app.catalog),
        account=AccountStatus(
            ready=told,
            creates=None if state is None else _rate(state.creates),
            calls=None if state is None else _rate(state.calls),
        ),
        database=database,
        uptime_seconds=round(context.metrics.uptime_seconds, 3),
        under_way=len(context.under_way),
        draining=context.drains,
    )


async def _why_not_ready(context: Context) -> str | None:
    """One sentence that strangers may read; None when there is nothing to say."""
    if context.drains:
        return "the process is shutting down"
    account, told = _own_account(context)
    if told != "ok":
        return told
    try:
        await _account_state(context, account)
    except StoreError:
        return "the database cannot be read"  # its own sentence has a path; /health tells it to the admin
    except TimeoutError:
        return f"the database did not answer within {_DATABASE_SECONDS:g} s"
    return None


def _own_account(context: Context) -> tuple[str, str]:
    """The fingerprint of the gateway's own account, and `ok` or what its configuration lacks."""
    try:
        backend = context.app.backends.own()
        return backend.account, backend.readiness()
    except ImagenError as error:
        return "", error.detail


async def _account_state(context: Context, account: str) -> AccountState:
    """How an account stands: proof that the database can be read.

    Raises:
        StoreError: it cannot.
        TimeoutError: it took too long.
    """
    async with asyncio.timeout(_DATABASE_SECONDS):
        return await context.app.limits.show(account, now=context.app.clock.now().timestamp())


def _rate(facts: Mapping[str, Any]) -> RateStatus:
    return msgspec.convert(facts, RateStatus)


_EXAMPLE = {
    "status": "healthy",
    "service": SERVICE,
    "version": VERSION,
    "supported_models": list(DOCUMENTED_MODELS),
    "concurrency_status": {"concurrent_limit": 60, "requests_per_minute_limit": 600},
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/health",
        handler=health,
        summary="Whether the gateway is alive",
        description=(
            "Always 200. The admin, and programs on the gateway's own machine where it serves no other, see besides "
            "how the account, the line and the database stand."
        ),
        tag="operations",
        access="anyone",
        answers={200: Health},
        example=_EXAMPLE,
    ),
    Operation(
        method="GET",
        path="/ready",
        handler=ready,
        summary="Whether the gateway takes work",
        description="503 while it shuts down, when its database cannot be read, and when it has no token.",
        tag="operations",
        access="anyone",
        answers={200: Readiness, 503: Readiness},
        example={"ready": True},
    ),
)
