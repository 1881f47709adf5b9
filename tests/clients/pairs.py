"""A service with something before it that watches, and its address as each client wants it."""

from __future__ import annotations

from dataclasses import replace

from between import Between
from processes import Service
from worker_clients import Client, Target


class Pair:
    """A service, and what stands before it.

    Attributes:
        service: as clients reach it: through `seen`.
        seen: keeps what went through.
    """

    def __init__(self, behind: Service, seen: Between) -> None:
        self.behind = behind
        self.service = replace(behind, url=seen.url)
        self.seen = seen


def target_of(client: Client, service: Service, *, token: str | None = None) -> Target:
    """The address of a service as a client wants it."""
    suffix = "" if client.name == "replicate-1" else "/v1"
    return Target(service.url + suffix, token or service.token)
