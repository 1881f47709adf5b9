"""Whether the gateway is alive (`/health`), and whether it can take work (`/ready`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen import __version__
from imagen.decoding import convert
from imagen.domain.limits import AccountState, budget_limit
from imagen.errors import ImagenError, StoreError, Unauthenticated
from imagen.ports import WorkStanding
from imagen.server.answers import DOCUMENTED_MODELS, json_answer
from imagen.server.context import Context
from imagen.server.operation import Operation
from imagen.service.troubles import STORE

SERVICE = "replicate-concurrent-generation"
VERSION = "3.0 (External Semaphore Pattern + URL-Direct-Return)"
"""What clients of this face compare the answer with."""
_DATABASE_SECONDS = 0.7
"""Whoever asks after the health gives up soon; a database that takes longer counts as one that fails."""
_RETRY_AFTER_SECONDS = "5"
_PATIENCE = timedelta(seconds=5)
_NOT_WRITABLE = {
    "busy": "the database is held by another process",
    "full": "the disk of the database is full",
    "failing": "the database cannot be written",
}
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


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the database takes what is to be written down.

    Attributes:
        state: ok, busy (another process holds it), full (its disk has no room) or failing.
        since: when that was noticed first.
        detail: one sentence, where it is not well.
        unreadable: predictions that are left out everywhere, as their rows are damaged; `imagen doctor` names them.
    """

    state: str
    since: datetime
    detail: str | None = None
    unreadable: int = 0


class TroubleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Why durable work waits.

    Attributes:
        of: store, own_account, a_callers_account or budget.
        reason: for people.
        since: when it began.
        next_try: when one item tries again.
    """

    of: str
    reason: str
    since: datetime
    next_try: datetime


class DeliveryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Events for callers.

    Attributes:
        waiting: how many are still to be taken; null when the database could not tell.
        failing: how many of them failed before.
        trouble: why something cannot be sent or signed, with the next step.
    """

    waiting: int | None = None
    failing: int | None = None
    trouble: str | None = None


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The place that has the ledger's entries besides the gateway's own database.

    Attributes:
        kind: postgresql or supabase.
        waiting: entries that it does not have yet; null when the database could not tell.
        trouble: why they wait, where something is wrong.
        since: when that began.
    """

    kind: str
    waiting: int | None = None
    trouble: str | None = None
    since: datetime | None = None


class WatcherStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions that this process waits for.

    Attributes:
        watched: those that are looked at, or told of by a webhook.
        held_open: creates whose answer is held back until the run has ended.
    """

    watched: int
    held_open: int


class WorkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Durable work: batches and predictions that outlive a process. Counts are null when the database could not tell.

    Attributes:
        batches_running: batches that have something left to do.
        batches_paused: batches that wait for somebody to resume them.
        items_queued: items that nobody works on yet.
        items_running: items that some process works on.
        worked_on: items that this process works on.
        troubles: why work waits, the oldest first.
        deliveries: events for callers.
        watcher: what this process waits for.
    """

    batches_running: int | None
    batches_paused: int | None
    items_queued: int | None
    items_running: int | None
    worked_on: int
    troubles: tuple[TroubleStatus, ...]
    deliveries: DeliveryStatus
    watcher: WatcherStatus


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
        store: whether it takes what is to be written down.
        work: durable work.
        sink: the other place of the ledger, where one is configured.
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
    store: StoreStatus | None = None
    work: WorkStatus | None = None
    sink: SinkStatus | None = None
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
    state, database, standing, unreadable, unsunk = None, "ok", None, 0, None
    feeling = asyncio.create_task(app.pulse.feel(within_seconds=_DATABASE_SECONDS))
    try:
        state = await _account_state(context, account)
        async with asyncio.timeout(_DATABASE_SECONDS):
            standing = await app.standings.count_left()
            unreadable = len(await app.store.unreadable())
            unsunk = await app.mirror.waiting()
    except StoreError as error:
        database = error.detail
    except TimeoutError:
        database = f"it did not answer within {_DATABASE_SECONDS:g} s"
    condition = await feeling
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
        store=StoreStatus(
            state=condition.state, since=condition.since, detail=condition.detail, unreadable=unreadable
        ),
        work=_work(context, account, standing),
        sink=_sink(context, unsunk),
        uptime_seconds=round(context.metrics.uptime_seconds, 3),
        under_way=len(context.under_way),
        draining=context.drains,
    )


def _work(context: Context, account: str, standing: WorkStanding | None) -> WorkStatus:
    app = context.app
    whose = {STORE: STORE, account: "own_account"}
    return WorkStatus(
        batches_running=None if standing is None else standing.batches_running,
        batches_paused=None if standing is None else standing.batches_paused,
        items_queued=None if standing is None else standing.items_queued,
        items_running=None if standing is None else standing.items_running,
        worked_on=app.queue.busy,
        troubles=tuple(
            TroubleStatus(
                of="budget"
                if trouble.subject.startswith(budget_limit(""))
                else whose.get(trouble.subject, "a_callers_account"),
                reason=trouble.reason,
                since=trouble.since,
                next_try=trouble.next_try,
            )
            for trouble in app.worker.troubles.now()
        ),
        deliveries=DeliveryStatus(
            waiting=None if standing is None else standing.deliveries_waiting,
            failing=None if standing is None else standing.deliveries_failing,
            trouble=app.courier.trouble,
        ),
        watcher=WatcherStatus(watched=app.watcher.watching, held_open=app.held_open.held),
    )


def _sink(context: Context, waiting: int | None) -> SinkStatus | None:
    sink, trouble = context.app.mirror.sink, context.app.mirror.trouble
    if sink is None:
        return None
    return SinkStatus(
        kind=sink.name.partition(":")[0],
        waiting=waiting,
        trouble=None if trouble is None else trouble.detail,
        since=None if trouble is None else trouble.since,
    )


async def _why_not_ready(context: Context) -> str | None:
    """One sentence that strangers may read; None when there is nothing to say."""
    if context.drains:
        return "the process is shutting down"
    if context.broken:
        return f"{', '.join(sorted(context.broken))} has ended by a fault, and begins again"
    account, told = _own_account(context)
    if told != "ok":
        return told
    try:
        await _account_state(context, account)
    except StoreError:
        return "the database cannot be read"  # its own sentence has a path; /health tells it to the admin
    except TimeoutError:
        return f"the database did not answer within {_DATABASE_SECONDS:g} s"
    condition = await context.app.pulse.feel(within_seconds=_DATABASE_SECONDS)
    held_for = context.app.clock.now() - condition.since
    if condition.state == "busy" and held_for < _PATIENCE:
        return None  # a moment's wait is no reason to send work elsewhere
    return _NOT_WRITABLE.get(condition.state)


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
    return convert(facts, RateStatus)


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
            "how the account, the line, the database and durable work stand."
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
        description=(
            "503 while it shuts down, when its database cannot be read or written, as when its disk is full, when it has "
            "no token, and while durable work or something else in the background has ended by a fault."
        ),
        tag="operations",
        access="anyone",
        answers={200: Readiness, 503: Readiness},
        example={"ready": True},
    ),
)
