"""Named limits over HTTP: who may what, and places for work that the gateway does not do itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.anyio

ALL = "/global-semaphores"
LEASES = f"{ALL}/gpu/leases"
STRANGER = {"Origin": "https://somewhere.example"}
"""A web page: nobody whom the gateway of one's own machine lets in without credentials."""


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as one:
        yield one


@pytest.fixture
async def gpu(gateway: RunningGateway) -> RunningGateway:
    """A gateway with a semaphore of one place."""
    answer = await register(gateway, "gpu", 1)
    assert answer.status == 200, answer.body
    return gateway


async def register(gateway: RunningGateway, name: Any, limit: Any, **more: Any) -> Answer:
    wanted = {"semaphore_id": name, "limit": limit} | more
    return await gateway.request("POST", ALL, json=wanted, headers=ADMIN)


async def take(gateway: RunningGateway, **wish: Any) -> Answer:
    return await gateway.request("POST", LEASES, json=wish)


async def taken(gateway: RunningGateway, **wish: Any) -> str:
    answer = await take(gateway, **wish)
    assert answer.status == 201, answer.body
    return str(answer.json()["lease_id"])


async def give_back(gateway: RunningGateway, lease: str) -> Answer:
    return await gateway.request("DELETE", f"{LEASES}/{lease}")


async def shown(gateway: RunningGateway) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.request("GET", f"{ALL}/gpu")).json()
    return found


async def until(gateway: RunningGateway, **numbers: int) -> None:
    """Until `held` or `waiting` is what is wanted; who goes away is only seen to be gone a moment later."""
    async with asyncio.timeout(10):
        while not numbers.items() <= (await shown(gateway)).items():  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.02)


async def new_key(gateway: RunningGateway, name: str, **more: Any) -> dict[str, str]:
    """A named key, as the header that shows it."""
    answer = await gateway.request("POST", "/keys", json={"name": name} | more, headers=ADMIN)
    assert answer.status == 201, answer.body
    return {"X-API-Key": answer.json()["key"]}


# --- semaphores ------------------------------------------------------------------------------------------


async def test_registered_semaphores_are_listed_by_name(gateway: RunningGateway) -> None:
    empty = await gateway.request("GET", ALL)
    assert (empty.status, empty.json()) == (200, {"count": 0, "global_semaphores": [], "semaphores": []})
    made = await register(gateway, "my-global-semaphore", 20)
    assert made.status == 200
    body = made.json()
    assert isinstance(body.pop("message"), str)
    assert body == {"success": True, "semaphore_id": "my-global-semaphore", "limit": 20}
    await register(gateway, "another", 1)
    assert (await gateway.request("GET", ALL)).json() == {
        "count": 2,
        "global_semaphores": ["another", "my-global-semaphore"],
        "semaphores": [
            {"semaphore_id": "another", "limit": 1, "held": 0, "waiting": 0},
            {"semaphore_id": "my-global-semaphore", "limit": 20, "held": 0, "waiting": 0},
        ],
    }


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"semaphore_id": "gpu", "limit": 0}, ["limit", "1 to 10000"]),
        ({"semaphore_id": "gpu", "limit": 10_001}, ["limit", "1 to 10000"]),
        ({"semaphore_id": "gpu", "limit": "many"}, ["limit", "whole number"]),
        ({"semaphore_id": "gpu"}, ["limit"]),
        ({"limit": 2}, ["semaphore_id"]),
        ({"semaphore_id": "../x", "limit": 2}, ["semaphore_id", "1 to 100 letters"]),
        ({"semaphore_id": "x" * 101, "limit": 2}, ["semaphore_id", "1 to 100 letters"]),
        ({"semaphore_id": "gpu", "limit": 2, "colour": "red"}, ["colour"]),
        (["gpu", 2], ["object"]),
    ],
)
async def test_a_registration_that_makes_no_sense_is_refused_by_field(
    gateway: RunningGateway, body: Any, told: list[str]
) -> None:
    answer = await gateway.request("POST", ALL, json=body, headers=ADMIN)
    assert answer.status == 400
    assert [word for word in told if word not in answer.json()["error"]] == []
    assert (await gateway.request("GET", ALL)).json()["count"] == 0


async def test_only_the_admin_registers_and_removes(gpu: RunningGateway) -> None:
    for headers in (None, {"X-Admin-API-Key": "a-wrong-one"}):
        wanted = {"semaphore_id": "mine", "limit": 5}
        assert (await gpu.request("POST", ALL, json=wanted, headers=headers)).status == 401
        assert (await gpu.request("DELETE", f"{ALL}/gpu", headers=headers)).status == 401
    assert (await gpu.request("GET", ALL)).json()["global_semaphores"] == ["gpu"]
    removed = await gpu.request("DELETE", f"{ALL}/gpu", headers=ADMIN)
    assert (removed.status, removed.json()["success"]) == (200, True)
    again = await gpu.request("DELETE", f"{ALL}/gpu", headers=ADMIN)
    assert (again.status, again.json()["error"]) == (404, "External semaphore 'gpu' not found")


async def test_strangers_see_and_hold_nothing(gpu: RunningGateway) -> None:
    asked = [
        await gpu.request("GET", ALL, headers=STRANGER),
        await gpu.request("GET", f"{ALL}/gpu", headers=STRANGER),
        await gpu.request("POST", LEASES, json={}, headers=STRANGER),
        await gpu.request("POST", f"{LEASES}/lease_x/renew", json={}, headers=STRANGER),
        await gpu.request("DELETE", f"{LEASES}/lease_x", headers=STRANGER),
    ]
    assert [answer.status for answer in asked] == [401] * 5
    token = {"credentials": {"replicate_api_token": "r8_made_up"}}
    assert (await gpu.request("POST", LEASES, json=token, headers=STRANGER)).status == 401
    assert (await shown(gpu))["held"] == 0


async def test_a_key_holds_places_under_its_own_name(gpu: RunningGateway) -> None:
    key = await new_key(gpu, "night-shift", routes=["/global-semaphores"])
    answer = await gpu.request("POST", LEASES, json={}, headers=key | STRANGER)
    assert (answer.status, answer.json().get("holder")) == (201, "night-shift")
    lease = f"{LEASES}/{answer.json()['lease_id']}"
    assert (await gpu.request("POST", f"{lease}/renew", json={}, headers=key | STRANGER)).status == 200
    assert (await gpu.request("DELETE", lease, headers=key | STRANGER)).status == 200
    assert (await gpu.request("GET", ALL, headers=key | STRANGER)).status == 200


async def test_a_key_for_something_else_holds_nothing(gpu: RunningGateway) -> None:
    key = await new_key(gpu, "shop", routes=["/generate"])
    assert (await gpu.request("POST", LEASES, json={}, headers=key)).status == 403
    assert (await shown(gpu))["held"] == 0


async def test_a_limit_that_is_lowered_takes_no_place_away(gpu: RunningGateway) -> None:
    await register(gpu, "gpu", 2)
    first, second = await taken(gpu), await taken(gpu)
    await register(gpu, "gpu", 1)
    state = await shown(gpu)
    assert (state["limit"], state["held"]) == (1, 2)
    await give_back(gpu, first)
    assert (await take(gpu)).status == 429
    await give_back(gpu, second)
    assert (await take(gpu)).status == 201


async def test_a_limit_that_is_raised_lets_in_who_waits(gpu: RunningGateway) -> None:
    await taken(gpu)
    waiting = asyncio.create_task(take(gpu, wait=20))
    await until(gpu, waiting=1)
    await register(gpu, "gpu", 2)
    assert (await waiting).status == 201


# --- leases ----------------------------------------------------------------------------------------------


async def test_a_place_is_taken_shown_renewed_and_given_back(gpu: RunningGateway) -> None:
    before = datetime.now(UTC)
    answer = await take(gpu, ttl=30, holder="nightly-report")
    lease = answer.json()
    assert answer.status == 201
    assert lease["lease_id"].startswith("lease_")
    assert (lease["semaphore_id"], lease["holder"], lease["ttl"]) == ("gpu", "nightly-report", 30)
    ends = datetime.fromisoformat(lease["expires_at"])
    assert timedelta(seconds=25) < ends - before < timedelta(seconds=35)
    assert lease["expires_at"].endswith("Z")

    answer = await gpu.request("GET", f"{ALL}/gpu")
    (holder,) = answer.json().pop("holders")
    assert (holder["holder"], set(holder)) == ("nightly-report", {"holder", "since", "expires_at"})
    assert before <= datetime.fromisoformat(holder["since"]) <= datetime.now(UTC)
    assert lease["lease_id"].encode() not in answer.body

    renewed = await gpu.request("POST", f"{LEASES}/{lease['lease_id']}/renew", json={"ttl": 300})
    assert (renewed.status, renewed.json()["lease_id"]) == (200, lease["lease_id"])
    assert datetime.fromisoformat(renewed.json()["expires_at"]) - ends > timedelta(seconds=200)

    for _ in range(2):
        ended = await give_back(gpu, lease["lease_id"])
        assert (ended.status, ended.json()["success"]) == (200, True)
    assert (await shown(gpu))["held"] == 0
    gone = await gpu.request("POST", f"{LEASES}/{lease['lease_id']}/renew", json={})
    assert (gone.status, gone.json()["code"]) == (404, "not_found")


async def test_without_a_wish_it_is_a_minute_for_the_caller(gpu: RunningGateway) -> None:
    answer = await gpu.request("POST", LEASES, headers=ADMIN)
    assert answer.status == 201
    assert (answer.json()["ttl"], answer.json()["holder"]) == (60, "admin")


async def test_no_place_in_time_is_429_with_retry_after(gpu: RunningGateway) -> None:
    await taken(gpu)
    began = time.perf_counter()
    at_once = await take(gpu)
    assert time.perf_counter() - began < 10
    later = await take(gpu, wait=1)
    assert time.perf_counter() - began > 1
    for answer in (at_once, later):
        assert (answer.status, answer.json()["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
    await until(gpu, held=1, waiting=0)


async def test_who_waits_goes_when_a_place_is_given_back_in_the_order_of_coming(gpu: RunningGateway) -> None:
    first = await taken(gpu)
    order: list[int] = []

    async def visit(number: int) -> None:
        lease = await taken(gpu, wait=30)
        order.append(number)
        await give_back(gpu, lease)

    waiting = []
    for number in range(4):
        waiting.append(asyncio.create_task(visit(number)))
        await until(gpu, waiting=number + 1)
    began = time.perf_counter()
    await give_back(gpu, first)
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3]
    assert time.perf_counter() - began < 15


async def test_a_caller_who_goes_away_while_it_waits_holds_nothing(gpu: RunningGateway) -> None:
    first = await taken(gpu)
    gone = asyncio.create_task(take(gpu, wait=60))
    await until(gpu, waiting=1)
    gone.cancel()
    await asyncio.wait({gone})
    await until(gpu, waiting=0)
    await give_back(gpu, first)
    assert (await shown(gpu))["held"] == 0
    assert (await take(gpu)).status == 201


async def test_callers_who_go_away_as_they_are_let_in_leave_nothing_held(gpu: RunningGateway) -> None:
    """Unless their answer was on its way when they went: what becomes of that, the gateway cannot know."""
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        first = await taken(gpu)
        leaving = asyncio.create_task(take(gpu, wait=60, ttl=86_400))
        await until(gpu, waiting=1)
        before = gpu.answered("POST", 201)
        await give_back(gpu, first)
        await asyncio.sleep(delay)
        leaving.cancel()
        await asyncio.wait({leaving})
        for _ in range(3):  # turns of the loop, until the gateway has seen that the connection is closed
            await asyncio.sleep(0)
        if not leaving.cancelled():
            await give_back(gpu, leaving.result().json()["lease_id"])
        elif gpu.answered("POST", 201) > before:
            await gpu.request("DELETE", f"{ALL}/gpu", headers=ADMIN)
            await register(gpu, "gpu", 1)
        await until(gpu, held=0)


async def test_a_lease_that_is_not_renewed_ends_by_itself(gpu: RunningGateway) -> None:
    await taken(gpu, ttl=1)
    began = time.perf_counter()
    await taken(gpu, wait=20)
    assert 0.7 < time.perf_counter() - began < 6


async def test_a_removed_semaphore_ends_the_wait_with_404(gpu: RunningGateway) -> None:
    await taken(gpu)
    waiting = asyncio.create_task(take(gpu, wait=30))
    await until(gpu, waiting=1)
    await gpu.request("DELETE", f"{ALL}/gpu", headers=ADMIN)
    answer = await waiting
    assert (answer.status, answer.json()["error"]) == (404, "External semaphore 'gpu' not found")


async def test_a_gateway_that_shuts_down_sends_those_who_wait_away(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await register(gateway, "gpu", 1)
        lease = await taken(gateway)
        waiting = asyncio.create_task(take(gateway, wait=60))
        await until(gateway, waiting=1)
        gateway.app.line.close()
        answer = await waiting
        assert (answer.status, answer.json()["code"]) == (503, "draining")
        assert (await give_back(gateway, lease)).status == 200


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"wait": -1}, ["wait", "0 to 600 seconds"]),
        ({"wait": 601}, ["wait", "0 to 600 seconds"]),
        ({"wait": "long"}, ["wait", "number"]),
        ({"ttl": 0}, ["ttl", "1 to 86400 seconds"]),
        ({"ttl": 1e300}, ["ttl", "1 to 86400 seconds"]),
        ({"holder": ""}, ["holder", "1 to 100 printable characters"]),
        ({"holder": "a\nb"}, ["holder", "1 to 100 printable characters"]),
        ({"hodler": "x"}, ["hodler"]),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_by_field(
    gpu: RunningGateway, wish: dict[str, Any], told: list[str]
) -> None:
    answer = await take(gpu, **wish)
    assert answer.status == 400
    assert [word for word in told if word not in answer.json()["error"]] == []
    assert (await shown(gpu))["held"] == 0


async def test_leases_of_unknown_semaphores_are_not_found(gateway: RunningGateway) -> None:
    answer = await gateway.request("POST", f"{ALL}/nope/leases", json={"wait": 5})
    assert (answer.status, answer.json()["error"]) == (404, "External semaphore 'nope' not found")
    assert (await gateway.request("GET", f"{ALL}/nope")).status == 404
    lease = f"{ALL}/nope/leases/lease_x"
    assert (await gateway.request("POST", f"{lease}/renew", json={})).status == 404
    assert (await gateway.request("DELETE", lease)).status == 200


async def test_fifty_services_never_hold_more_than_the_limit(gpu: RunningGateway) -> None:
    await register(gpu, "gpu", 3)
    inside, most = 0, 0

    async def visit() -> None:
        nonlocal inside, most
        lease = await taken(gpu, wait=50)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        await give_back(gpu, lease)

    await asyncio.gather(*(visit() for _ in range(50)))
    assert most == 3
    assert (await shown(gpu))["held"] == 0


async def test_generations_and_leases_share_the_places(
    gpu: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    lease = await taken(gpu)
    making = asyncio.create_task(gpu.generate(external_semaphore_id="gpu"))
    await until(gpu, waiting=1)
    assert replicate_emulator.purchases == 0
    await give_back(gpu, lease)
    answer = await making
    assert (answer.status, replicate_emulator.purchases) == (200, 1)
    assert (await shown(gpu))["held"] == 0
