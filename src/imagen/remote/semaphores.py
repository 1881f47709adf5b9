"""The semaphores of a running gateway, and places in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import msgspec

from imagen.domain.semaphore import (
    Holder,
    Lease,
    Semaphore,
    check_lease,
    check_semaphore,
    unknown_semaphore,
)
from imagen.errors import InvalidInput, RateLimited
from imagen.ports import Clock
from imagen.remote.connection import Connection
from imagen.remote.refusals import shown
from imagen.service.semaphore_lease import MAX_WAIT_SECONDS, Leases, check_wait

LONGEST_ASKED_SECONDS = 600.0
"""So long a gateway lets somebody stand in line at most; whoever has more patience asks again."""
_ANSWER_SECONDS = 30.0
_PATH = "/global-semaphores"

_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._:-]{1,200}\Z")]


class _State(msgspec.Struct, frozen=True):
    semaphore_id: _Id
    limit: int
    held: int
    waiting: int

    def to_semaphore(self) -> Semaphore:
        return Semaphore(self.semaphore_id, self.limit, self.held, self.waiting)


class _List(msgspec.Struct, frozen=True):
    semaphores: list[_State]


class _Holder(msgspec.Struct, frozen=True):
    holder: str
    since: datetime
    expires_at: datetime


class _Detail(_State, frozen=True):
    holders: list[_Holder]


class _Lease(msgspec.Struct, frozen=True):
    lease_id: _Id
    holder: str
    ttl: float


class _Done(msgspec.Struct, frozen=True):
    success: bool


class RemoteSemaphores:
    """`ports.Semaphores` of a running gateway; besides, every method raises what `Connection.ask` raises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def register(self, name: str, limit: int) -> None:
        """See the port."""
        check_semaphore(name, limit)
        body = {"semaphore_id": name, "limit": limit}
        await self._connection.ask("POST", _PATH, _Done, body=body, admin=True)

    async def remove(self, name: str) -> None:
        """See the port."""
        await self._connection.ask("DELETE", path_of(name), _Done, admin=True)

    async def list(self, *, now: float) -> Sequence[Semaphore]:  # noqa: ARG002 - the gateway has its own
        """See the port; the instant is the gateway's."""
        found = await self._connection.ask("GET", _PATH, _List)
        return [one.to_semaphore() for one in found.semaphores]

    async def show(self, name: str, *, now: float) -> tuple[Semaphore, Sequence[Holder]]:  # noqa: ARG002 - as above
        """See the port; the instants are the gateway's."""
        found = await self._connection.ask("GET", path_of(name), _Detail)
        return found.to_semaphore(), [
            Holder(shown(one.holder), one.since.timestamp(), one.expires_at.timestamp())
            for one in found.holders
        ]

    async def renew(self, name: str, lease: str, *, now: float, lasts_seconds: float) -> Lease:
        """See the port; `now` counts as the moment in which it was asked."""
        renewed = await self._connection.ask(
            "POST", f"{_lease_path(name, lease)}/renew", _Lease, body={"ttl": lasts_seconds}, hidden=lease
        )
        return _as_ours(renewed, name, asked_at=now)

    async def release(self, name: str, lease: str) -> None:
        """See the port."""
        await self._connection.ask("DELETE", _lease_path(name, lease), _Done, hidden=lease)


class RemoteLeases(Leases):
    """Places in the semaphores of a running gateway; besides, every method raises what `Connection.ask` raises.

    Clocks differ: a lease ends here so long after it was asked for, whatever instant the gateway tells.
    """

    def __init__(self, connection: Connection, semaphores: RemoteSemaphores, clock: Clock) -> None:
        super().__init__(semaphores=semaphores, clock=clock)
        self._connection = connection

    async def take(
        self,
        semaphore: str,
        *,
        holder: str,
        ttl_seconds: float,
        wait_seconds: float,
        turn: str,  # noqa: ARG002 - the gateway gives turns by the key that is shown
    ) -> Lease:
        """See `Leases.take`. Canceled while it waits, the gateway takes it out of the line."""
        check_wait(wait_seconds, longest_seconds=MAX_WAIT_SECONDS)
        check_lease(holder, ttl_seconds)
        path = f"{path_of(semaphore)}/leases"
        until = self.now() + wait_seconds
        while True:
            wait = min(max(until - self.now(), 0.0), LONGEST_ASKED_SECONDS)
            try:
                lease = await self._connection.ask(
                    "POST",
                    path,
                    _Lease,
                    body={"wait": wait, "ttl": ttl_seconds, "holder": holder},
                    answer_seconds=wait + _ANSWER_SECONDS,
                    lost=f"If a place was taken all the same, it is free again after {ttl_seconds:g} s.",
                )
            except RateLimited as error:
                if self.now() < until:
                    continue
                when = f"became free in {wait_seconds:g} s" if wait_seconds else "is free now"
                error.detail = f"no place in semaphore {semaphore[:100]!r} {when}"
                raise
            # It began when its turn came, after an unknown part of the wait; the first renewal tells it exactly.
            return _as_ours(lease, semaphore, asked_at=self.now())


def path_of(name: str) -> str:
    """Where a semaphore is.

    Raises:
        NotFound: none can be called so.
    """
    try:
        check_semaphore(name, 1)
    except InvalidInput:
        raise unknown_semaphore(name) from None
    return f"{_PATH}/{quote(name, safe='')}"


def _lease_path(name: str, lease: str) -> str:
    return f"{path_of(name)}/leases/{quote(lease, safe='')}"


def _as_ours(lease: _Lease, semaphore: str, *, asked_at: float) -> Lease:
    return Lease(
        id=lease.lease_id, semaphore=semaphore, holder=shown(lease.holder), expires_at=asked_at + lease.ttl
    )
