"""`Client.semaphore` and `AsyncClient.semaphore`: a place in a shared limit for as long as a block runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from imagen import AsyncClient, Client
from imagen.assembly import App
from imagen.domain.semaphore import Semaphore
from imagen.errors import InvalidInput, NotFound, RateLimited


@pytest.fixture
def app(open_app: Any) -> Iterator[App]:
    """Another process's worth of the same house, with a semaphore of one place."""
    one: App = open_app()
    asyncio.run(one.semaphores.register("gpu", 1))
    yield one
    one.database.close()
    one.owners.close()


@pytest.fixture
def client(app: App, environ: dict[str, str]) -> Iterator[Client]:
    with Client(environ=environ, caller="tests") as one:
        yield one


def state(app: App) -> Semaphore:
    async def look() -> Semaphore:
        return (await app.semaphores.show("gpu", now=time.time()))[0]

    return asyncio.run(look())


def holders(app: App) -> list[str]:
    async def look() -> list[str]:
        return [one.holder for one in (await app.semaphores.show("gpu", now=time.time()))[1]]

    return asyncio.run(look())


def test_a_place_is_held_while_the_block_runs(client: Client, app: App) -> None:
    with client.semaphore("gpu") as held:
        assert holders(app) == ["tests"]
        held.check()
        assert held.lost is None
        with (
            pytest.raises(RateLimited, match="no place in semaphore 'gpu' is free now"),
            client.semaphore("gpu", wait=0),
        ):
            pytest.fail("two were inside")
    assert state(app).held == 0
    with client.semaphore("gpu", holder="somebody else"):
        assert holders(app) == ["somebody else"]


def test_it_is_renewed_however_busy_the_block_is(client: Client, app: App) -> None:
    with client.semaphore("gpu", ttl=1):
        time.sleep(2.5)
        assert state(app).held == 1
    assert state(app).held == 0


def test_a_block_that_fails_gives_its_place_back(client: Client, app: App) -> None:
    with pytest.raises(ZeroDivisionError), client.semaphore("gpu"):
        raise ZeroDivisionError
    assert state(app).held == 0


def test_what_makes_no_sense_is_refused_on_entering(client: Client, app: App) -> None:
    for given, field in (({"wait": -1}, "wait"), ({"ttl": 0}, "ttl"), ({"holder": ""}, "holder")):
        with pytest.raises(InvalidInput) as caught, client.semaphore("gpu", **given):  # type: ignore[arg-type]
            pytest.fail("it was let in")
        assert [problem.field for problem in caught.value.problems] == [field]
    with pytest.raises(NotFound, match="External semaphore 'nope' not found"), client.semaphore("nope"):
        pytest.fail("it was let in")
    assert state(app).held == 0


def test_threads_of_one_client_take_turns(client: Client, app: App) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with client.semaphore("gpu"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert state(app).held == 0


def test_two_clients_share_the_limit(client: Client, app: App, environ: dict[str, str]) -> None:
    with Client(environ=environ) as other, client.semaphore("gpu"):
        began = time.perf_counter()
        with pytest.raises(RateLimited, match=r"became free in 0\.5 s"), other.semaphore("gpu", wait=0.5):
            pytest.fail("two were inside")
        assert time.perf_counter() - began < 15


def test_a_place_that_was_taken_away_is_told(client: Client, app: App) -> None:
    def work() -> None:
        with client.semaphore("gpu", ttl=1) as held:
            asyncio.run(app.semaphores.remove("gpu"))
            end = time.monotonic() + 5
            while held.lost is None and time.monotonic() < end:
                time.sleep(0.02)
            with pytest.raises(NotFound):
                held.check()

    with pytest.raises(NotFound, match="was lost"):
        work()


def test_closing_the_client_gives_its_places_back(client: Client, app: App) -> None:
    with client.semaphore("gpu"):
        client.close()
        assert state(app).held == 0


def test_ctrl_c_while_it_waits_leaves_nothing_held(client: Client, app: App, environ: dict[str, str]) -> None:
    program = (
        "import os, signal, threading\nfrom imagen import Client\n"
        "with Client() as client:\n"
        "    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "    try:\n        with client.semaphore('gpu'):\n            print('inside')\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n"
    )
    with client.semaphore("gpu"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environ,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    assert (state(app).held, state(app).waiting) == (0, 0)


def test_a_client_that_nobody_keeps_lives_as_long_as_the_block(app: App, environ: dict[str, str]) -> None:
    with Client(environ=environ, caller="passing by").semaphore("gpu"):
        assert holders(app) == ["passing by"]
    assert state(app).held == 0


def test_a_program_that_ends_inside_the_block_gives_its_place_back(app: App, environ: dict[str, str]) -> None:
    program = (
        "import sys\nfrom imagen import Client\nheld = Client().semaphore('gpu')\nheld.__enter__()\n"
        "print('inside')\nsys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "inside\n", "")
    assert state(app).held == 0


@pytest.mark.anyio
async def test_the_async_client_is_the_same(open_app: Any, environ: dict[str, str]) -> None:
    inside, most = 0, 0
    async with open_app() as app, AsyncClient(environ=environ) as client:
        await app.semaphores.register("gpu", 2)

        async def work() -> None:
            nonlocal inside, most
            async with client.semaphore("gpu", wait=30):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.02)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(10)))
        assert most == 2
        async with client.semaphore("gpu"), client.semaphore("gpu"):
            with pytest.raises(RateLimited):
                async with client.semaphore("gpu", wait=0):
                    pytest.fail("three were inside")
        shown, _ = await app.semaphores.show("gpu", now=time.time())
        assert shown.held == 0
