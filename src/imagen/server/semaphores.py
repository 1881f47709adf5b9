"""Named limits that services share: who may go now, also for work that imagen does not do itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.semaphore import (
    MAX_HOLDER_CHARACTERS,
    MAX_LIMIT,
    MAX_TTL_SECONDS,
    Lease,
    Semaphore,
    check_semaphore,
)
from imagen.errors import InvalidInput, Problem
from imagen.server.access import Visitor
from imagen.server.answers import json_answer
from imagen.server.bodies import read_json
from imagen.server.context import Context, Gone
from imagen.server.operation import Operation, Parameter
from imagen.service.semaphore_lease import SemaphoreLeases

LONGEST_WAIT_SECONDS = 600.0
"""A connection is held open for so long at most; whoever has more patience asks again."""
_TAG = "semaphores"
_ALL = "/global-semaphores"
_ONE = f"{_ALL}/{{semaphore_id}}"
_LEASES = f"{_ONE}/leases"
_LEASE = f"{_LEASES}/{{lease_id}}"

# For readers of the document alone: the domain refuses with sentences of its own.
_Name = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$"})]
_Limit = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_LIMIT})]
_Wait = Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": LONGEST_WAIT_SECONDS})]
_Ttl = Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_TTL_SECONDS})]
_Holder = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_HOLDER_CHARACTERS})]


class SemaphoreState(msgspec.Struct, frozen=True):
    """A named limit.

    Attributes:
        semaphore_id: its name.
        limit: how many places it has.
        held: how many of them are held now; more than `limit` for a while when that was lowered.
        waiting: how many stand in line for one.
    """

    semaphore_id: str
    limit: int
    held: int
    waiting: int


class SemaphoreList(msgspec.Struct, frozen=True):
    """All named limits.

    Attributes:
        count: how many there are.
        global_semaphores: their names, in order.
        semaphores: each of them, in the same order.
    """

    count: int
    global_semaphores: list[str]
    semaphores: list[SemaphoreState]


class PlaceHolder(msgspec.Struct, frozen=True):
    """Who holds a place.

    Attributes:
        holder: the name that was given, or the caller's.
        since: when it was taken, UTC.
        expires_at: when it ends unless it is renewed, UTC.
    """

    holder: str
    since: datetime
    expires_at: datetime


class SemaphoreDetail(msgspec.Struct, frozen=True):
    """A named limit and who holds its places.

    Attributes:
        semaphore_id: its name.
        limit: how many places it has.
        held: how many of them are held now.
        waiting: how many stand in line for one.
        holders: who holds them, the oldest first.
    """

    semaphore_id: str
    limit: int
    held: int
    waiting: int
    holders: list[PlaceHolder]


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named limit to make or to change.

    Attributes:
        semaphore_id: 1 to 100 letters, digits and . _ : -
        limit: places, 1 to 10000. Places that are held stay held.
    """

    semaphore_id: _Name
    limit: _Limit


class Registered(msgspec.Struct, frozen=True):
    """A named limit was made or changed.

    Attributes:
        success: always true.
        semaphore_id: its name.
        limit: its places from now on.
        message: the same for people.
    """

    success: bool
    semaphore_id: str
    limit: int
    message: str


class Removed(msgspec.Struct, frozen=True):
    """A named limit is no more.

    Attributes:
        success: always true.
        semaphore_id: its name.
        message: the same for people.
    """

    success: bool
    semaphore_id: str
    message: str


class PlaceWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place that is asked for.

    Attributes:
        wait: seconds to stand in line, 0 to 600; 0 takes what is free now.
        ttl: seconds after which the place ends unless it is renewed, 1 to 86400.
        holder: whom others see, 1 to 100 printable characters; by default the caller's name.
    """

    wait: _Wait = 0.0
    ttl: _Ttl = 60.0
    holder: _Holder | None = None


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lease that shall last longer.

    Attributes:
        ttl: seconds from now, 1 to 86400.
    """

    ttl: _Ttl = 60.0


class PlaceLease(msgspec.Struct, frozen=True):
    """A place that is held.

    Attributes:
        lease_id: renews it and gives it back. Whoever knows it may; nobody else is told.
        semaphore_id: the semaphore's name.
        holder: whom others see.
        ttl: seconds that it lasts.
        expires_at: when it ends unless it is renewed, UTC.
    """

    lease_id: str
    semaphore_id: str
    holder: str
    ttl: float
    expires_at: datetime


class GivenBack(msgspec.Struct, frozen=True):
    """A place is held no more, whether it was given back now or had ended before.

    Attributes:
        success: always true.
        semaphore_id: the semaphore's name.
        lease_id: the lease that has ended.
    """

    success: bool
    semaphore_id: str
    lease_id: str


async def list_semaphores(context: Context, request: Request) -> Response:
    """All of them."""
    await _admit(context, request)
    found = [_state(one) for one in await context.app.semaphores.list(now=_leases(context).now())]
    return json_answer(SemaphoreList(len(found), [one.semaphore_id for one in found], found))


async def register_semaphore(context: Context, request: Request) -> Response:
    """Make one, or change its limit."""
    context.enter_admin(request)
    given = await read_json(request, Registration)
    _check(given)
    await context.app.semaphores.register(given.semaphore_id, given.limit)
    _leases(context).look_again()
    message = f"Semaphore '{given.semaphore_id}' lets {given.limit} go at the same time"
    return json_answer(
        Registered(success=True, semaphore_id=given.semaphore_id, limit=given.limit, message=message)
    )


async def show_semaphore(context: Context, request: Request) -> Response:
    """One of them with its holders."""
    await _admit(context, request)
    found, holders = await context.app.semaphores.show(_name(request), now=_leases(context).now())
    return json_answer(
        SemaphoreDetail(
            found.name,
            found.limit,
            found.held,
            found.waiting,
            [PlaceHolder(one.holder, _instant(one.since), _instant(one.expires_at)) for one in holders],
        )
    )


async def remove_semaphore(context: Context, request: Request) -> Response:
    """Remove one with its leases; who waits for it is told that there is none."""
    context.enter_admin(request)
    name = _name(request)
    await context.app.semaphores.remove(name)
    _leases(context).look_again()
    return json_answer(Removed(success=True, semaphore_id=name, message=f"Semaphore '{name}' was removed"))


async def take_place(context: Context, request: Request) -> Response:
    """Take a place, waiting for it in line."""
    context.check_open()
    visitor = await _admit(context, request)
    wish = await read_json(request, PlaceWish)
    leases = _leases(context)
    default = visitor.caller.name[:MAX_HOLDER_CHARACTERS]
    lease = await context.stay(
        request,
        leases.take(
            _name(request),
            holder=default if wish.holder is None else wish.holder,
            ttl_seconds=wish.ttl,
            wait_seconds=wish.wait,
            turn=visitor.caller.turn,
            longest_wait_seconds=LONGEST_WAIT_SECONDS,
        ),
        goes_on=False,
    )
    if await request.is_disconnected():  # in the very moment in which it was let in
        await leases.give_back(lease.semaphore, lease.id)
        raise Gone
    return json_answer(_lease(lease, wish.ttl), status=201)


async def renew_lease(context: Context, request: Request) -> Response:
    """Let a lease last longer."""
    await _admit(context, request)
    renewal = await read_json(request, Renewal)
    renewed = await _leases(context).renew(_name(request), _lease_id(request), ttl_seconds=renewal.ttl)
    return json_answer(_lease(renewed, renewal.ttl))


async def give_back(context: Context, request: Request) -> Response:
    """End a lease."""
    await _admit(context, request)
    name, lease = _name(request), _lease_id(request)
    await _leases(context).give_back(name, lease)
    return json_answer(GivenBack(success=True, semaphore_id=name, lease_id=lease))


async def _admit(context: Context, request: Request) -> Visitor:
    """Let a caller in. Keys are good for all that is under this path, or for nothing of it."""
    return await context.enter(request, leaving=True, route=_ALL)


def _leases(context: Context) -> SemaphoreLeases:
    app = context.app
    return SemaphoreLeases(admission=app.admission, semaphores=app.semaphores, clock=app.clock)


def _check(given: Registration) -> None:
    """Refuse what makes no sense, by the names that the fields have here."""
    try:
        check_semaphore(given.semaphore_id, given.limit)
    except InvalidInput as error:
        raise InvalidInput(
            [
                Problem("semaphore_id" if one.field == "semaphore" else one.field, one.message)
                for one in error.problems
            ]
        ) from None


def _name(request: Request) -> str:
    return str(request.path_params["semaphore_id"])


def _lease_id(request: Request) -> str:
    return str(request.path_params["lease_id"])


def _state(one: Semaphore) -> SemaphoreState:
    return SemaphoreState(one.name, one.limit, one.held, one.waiting)


def _lease(lease: Lease, ttl: float) -> PlaceLease:
    return PlaceLease(lease.id, lease.semaphore, lease.holder, ttl, _instant(lease.expires_at))


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_SEMAPHORE_ID = Parameter(
    name="semaphore_id", place="path", description="The semaphore's name.", required=True
)
_LEASE_ID = Parameter(
    name="lease_id", place="path", description="As it was told when the place was taken.", required=True
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path=_ALL,
        handler=list_semaphores,
        summary="List the named limits",
        tag=_TAG,
        access="caller",
        answers={200: SemaphoreList},
        errors=(401, 403),
    ),
    Operation(
        method="POST",
        path=_ALL,
        handler=register_semaphore,
        summary="Make a named limit, or change one",
        description="Places that are held stay held: after the limit was lowered nobody new goes until fewer are held.",
        tag=_TAG,
        access="admin",
        body=Registration,
        answers={200: Registered},
        errors=(401,),
        example={"semaphore_id": "my-global-semaphore", "limit": 20},
    ),
    Operation(
        method="GET",
        path=_ONE,
        handler=show_semaphore,
        summary="Show a named limit and who holds its places",
        tag=_TAG,
        access="caller",
        answers={200: SemaphoreDetail},
        errors=(401, 403, 404),
        parameters=(_SEMAPHORE_ID,),
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        handler=remove_semaphore,
        summary="Remove a named limit",
        description="Its leases end, and whoever waits for a place in it is answered with 404.",
        tag=_TAG,
        access="admin",
        answers={200: Removed},
        errors=(401, 404),
        parameters=(_SEMAPHORE_ID,),
    ),
    Operation(
        method="POST",
        path=_LEASES,
        handler=take_place,
        summary="Take a place in a named limit",
        description=(
            "Waits in line for up to `wait` seconds; 429 when no place became free. A caller that goes away while it waits "
            "holds nothing. The place ends by itself after `ttl` seconds: renew it every third of that while you work, "
            "and give it back at the end."
        ),
        tag=_TAG,
        access="caller",
        body=PlaceWish,
        answers={201: PlaceLease},
        errors=(401, 403, 404, 429, 503),
        parameters=(_SEMAPHORE_ID,),
        example={"wait": 30, "ttl": 60, "holder": "nightly-report"},
    ),
    Operation(
        method="POST",
        path=f"{_LEASE}/renew",
        handler=renew_lease,
        summary="Let a lease last longer",
        description="404 when it has ended: then somebody else may hold the place.",
        tag=_TAG,
        access="caller",
        body=Renewal,
        answers={200: PlaceLease},
        errors=(401, 403, 404),
        parameters=(_SEMAPHORE_ID, _LEASE_ID),
        example={"ttl": 60},
    ),
    Operation(
        method="DELETE",
        path=_LEASE,
        handler=give_back,
        summary="Give a place back",
        description="Giving back what has ended already is no mistake.",
        tag=_TAG,
        access="caller",
        answers={200: GivenBack},
        errors=(401, 403),
        parameters=(_SEMAPHORE_ID, _LEASE_ID),
    ),
)
