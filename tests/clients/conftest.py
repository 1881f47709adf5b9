"""Official clients, and the services they are pointed at: started once for each worker that needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from between import Between, between
from pairs import Pair, target_of
from processes import TOKEN, Service, running_emulator, running_gateway
from worker_clients import Client, Target, all_clients

REPLICATES = ("replicate-1", "replicate-2", "replicate-js")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    """Those that were started so far, by name."""
    with ExitStack() as stack:
        yield _Pairs(tmp_path_factory.mktemp("clients"), stack)


class _Pairs(dict[str, Pair]):
    """Starts each when it is first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        super().__init__()
        self._folder = folder
        self._stack = stack

    def __missing__(self, name: str) -> Pair:
        folder = self._folder / name
        emulated = self._stack.enter_context(running_emulator(folder / "emulator"))
        behind = Service(name, emulated.url, TOKEN, emulated)
        if name == "gateway":
            behind = self._stack.enter_context(running_gateway(folder / "gateway", emulated))
        self[name] = Pair(behind, self._stack.enter_context(between(behind.url)))
        return self[name]


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(f"clients {name}")) for name in ("direct", "gateway")
    ]
)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Iterator[Pair]:
    """An emulator alone, and a gateway in front of one. Every answer is as Replicate's document has it."""
    found = pairs[request.param]
    found.seen.passed.clear()
    yield found
    found.behind.emulated.control("DELETE", "faults")
    assert found.seen.complaints() == []


@pytest.fixture
def service(pair: Pair) -> Service:
    """What the client is pointed at."""
    return pair.service


@pytest.fixture
def seen(pair: Pair) -> Between:
    """What went between client and service."""
    return pair.seen


@pytest.fixture(scope="session")
def clients() -> Iterator[dict[str, Client]]:
    """All of them; each starts with its first step."""
    found = all_clients()
    yield found
    for each in found.values():
        each.end()


@pytest.fixture(params=REPLICATES)
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    """Each of Replicate's own clients."""
    return clients[request.param]


@pytest.fixture
def target(client: Client, service: Service) -> Target:
    """The service by the base URL that this client wants: 1.x adds `/v1` itself."""
    return target_of(client, service)
