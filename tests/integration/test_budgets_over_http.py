"""Budgets of the gateway: who sets them, who sees them, what is refused and told for them, and what every answer cost."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from batch_calls import ended, items_of, make_batch
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from imagen.emulator.models import Model
from waiting import until

pytestmark = pytest.mark.anyio

FLUX = "flux-schnell"
PRICE = 0.003
COST = "x-imagen-cost-usd"


async def put(gateway: RunningGateway, name: str, **fields: Any) -> Answer:
    answer = await gateway.request("PUT", f"/budgets/{name}", json=fields, headers=ADMIN)
    assert answer.status == 200, answer.body
    return answer


async def key_of(gateway: RunningGateway, name: str, **scope: Any) -> dict[str, str]:
    answer = await gateway.request("POST", "/keys", json={"name": name} | scope, headers=ADMIN)
    return {"X-API-Key": str(answer.json()["key"])}


async def budgets(gateway: RunningGateway, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    answer = await gateway.request("GET", "/budgets", headers=ADMIN if headers is None else headers)
    assert answer.status == 200, answer.body
    told = answer.json()
    assert told["count"] == len(told["budgets"])
    found: list[dict[str, Any]] = told["budgets"]
    return found


async def one_picture(
    gateway: RunningGateway, headers: dict[str, str] | None = None, **fields: Any
) -> Answer:
    return await gateway.generate(headers=headers, **{"model_name": FLUX} | fields)


def refused(answer: Answer, budget: str | None) -> dict[str, Any]:
    """The body of a 402, for which nothing was bought."""
    assert answer.status == 402, answer.body
    assert answer.headers[COST] == "0"
    told: dict[str, Any] = answer.json()
    assert (told["success"], told["code"], told["budget"]) == (False, "budget_exceeded", budget)
    assert told["error"]
    assert told["cost_usd"] == 0
    return told


# --- setting and seeing ----------------------------------------------------------------------------------


async def test_a_budget_is_set_seen_and_removed(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = (await put(gateway, "shop", usd=1.5, per="day", model="flux-dev")).json()
        assert made == {
            "name": "shop", "usd": 1.5, "per": "day", "key": None, "caller": None, "model": "black-forest-labs/flux-dev",
            "all": False, "warn": False, "count": "charged",
        }  # fmt: skip
        again = {
            "name": "shop",
            "usd": "0.5",
            "per": "total",
            "all": True,
            "warn": True,
            "count": "succeeded",
        }
        posted = await gateway.request("POST", "/budgets", json=again, headers=ADMIN)
        assert (posted.status, posted.json()["usd"], posted.json()["all"]) == (200, 0.5, True)
        (listed,) = await budgets(gateway)
        assert listed == posted.json() | {
            "subject": "", "settled_usd": 0, "reserved_usd": 0, "left_usd": 0.5, "renews_at": None,
        }  # fmt: skip
        removed = await gateway.request("DELETE", "/budgets/shop", headers=ADMIN)
        assert (removed.status, removed.json()) == (200, {"name": "shop", "success": True})
        assert (await gateway.request("DELETE", "/budgets/shop", headers=ADMIN)).status == 404
        assert await budgets(gateway) == []


async def test_what_makes_no_sense_is_refused_by_field(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    good = {"usd": 1, "per": "day", "all": True}
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for change, told in (
            ({"usd": 0}, "usd"),
            ({"usd": 0.0000001}, "6 decimals"),
            ({"usd": True}, "usd"),
            ({"per": "week"}, "day, month, total"),
            ({"per": None}, "per"),
            ({"all": False}, "exactly one of key, caller, model, all"),
            ({"key": "nobody", "all": False}, "nobody"),
            ({"model": "flux-devv", "all": False}, "flux-dev"),
            ({"count": "never"}, "charged, succeeded"),
            ({"limit": 5}, "limit"),
        ):
            answer = await gateway.request("PUT", "/budgets/b", json=good | change, headers=ADMIN)
            assert answer.status == 400, (change, answer.body)
            assert told in answer.json()["error"], change
        odd = await gateway.request("PUT", "/budgets/two%20words", json=good, headers=ADMIN)
        assert (odd.status, odd.json()["problems"][0]["field"]) == (400, "name")
        assert await budgets(gateway) == []


async def test_only_the_admin_sets_them_and_callers_see_what_they_are_held_to(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    own = {"X-Replicate-Api-Token": "r8_somebodys_own_token"}
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        shop, app = (
            await key_of(gateway, "shop"),
            await key_of(gateway, "app", models=["flux-dev"], routes=["/generate"]),
        )
        await put(gateway, "all", usd=9, per="month", all=True)
        await put(gateway, "each", usd=1, per="day", key="*")
        await put(gateway, "of-app", usd=1, per="day", key="app")
        await put(gateway, "schnell", usd=1, per="day", model=FLUX)
        assert (await one_picture(gateway, shop)).status == 200

        assert [(one["name"], one["key"], one["subject"]) for one in await budgets(gateway)] == [
            ("all", None, ""), ("each", "*", "shop"), ("of-app", "app", "app"),
            ("schnell", None, "black-forest-labs/flux-schnell"),
        ]  # fmt: skip
        seen = {one["name"]: (one["subject"], one["settled_usd"]) for one in await budgets(gateway, shop)}
        assert seen == {
            "all": ("", PRICE), "each": ("shop", PRICE), "schnell": ("black-forest-labs/flux-schnell", PRICE),
        }  # fmt: skip
        seen = {one["name"]: (one["subject"], one["settled_usd"]) for one in await budgets(gateway, app)}
        assert seen == {"all": ("", PRICE), "each": ("app", 0), "of-app": ("app", 0)}
        assert await budgets(gateway, own) == []

        page = {"Origin": "https://somewhere.example"}
        for headers in (shop, own, page, {}):
            for method, path in (("PUT", "/budgets/x"), ("POST", "/budgets"), ("DELETE", "/budgets/all")):
                body = {"name": "x", "usd": 1, "per": "day", "all": True}
                assert (await gateway.request(method, path, json=body, headers=headers)).status == 401
        assert (await gateway.request("GET", "/budgets", headers=page)).status == 401
        assert len(await budgets(gateway)) == 4


# --- refusing --------------------------------------------------------------------------------------------


async def test_what_does_not_fit_is_refused_with_the_budget_the_quote_and_when_it_renews(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        shop, app = await key_of(gateway, "shop"), await key_of(gateway, "app")
        await put(gateway, "small", usd=0.005, per="day", key="shop")
        assert (await one_picture(gateway, shop)).status == 200
        told = refused(await one_picture(gateway, shop), "small")
        assert told["quote"] == told["quote_usd"] == PRICE
        renews = datetime.fromisoformat(told["renews_at"])
        assert (renews.hour, renews.minute, renews.utcoffset().total_seconds()) == (0, 0, 0)  # type: ignore[union-attr]
        assert "$0.003" in told["error"]
        assert "$0.002" in told["error"]
        assert "UTC" in told["hint"]
        assert (await one_picture(gateway, app)).status == 200
        await put(gateway, "small", usd=0.006, per="total", key="shop")
        assert (await one_picture(gateway, shop)).status == 200
        assert refused(await one_picture(gateway, shop), "small")["renews_at"] is None
        await gateway.request("DELETE", "/budgets/small", headers=ADMIN)
        assert (await one_picture(gateway, shop)).status == 200
    assert replicate_emulator.purchases == 4


async def test_a_price_that_nobody_knows_fits_no_budget_that_refuses(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_model(Model(name="acme/unpriced", run_seconds=0.01))
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await put(gateway, "all", usd=100, per="day", all=True)
        told = refused(await one_picture(gateway, model_name="acme/unpriced"), "all")
        assert told["quote"] is None
        await put(gateway, "all", usd=100, per="day", all=True, warn=True)
        made = await one_picture(gateway, model_name="acme/unpriced")
        assert (made.status, made.headers[COST], made.json()["quoted_usd"]) == (200, "unknown", None)


async def test_whatever_buys_refuses_what_may_cost_more_than_max_cost(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    wish = {"model_name": FLUX, "prompt": "a fox", "max_cost": 0.001}
    many = {"model_name": FLUX, "tasks": [{"prompt": "a fox"}], "max_cost": "0.001"}
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for path, body in (
            ("/generate", wish),
            ("/generate-batch", many),
            ("/predictions", wish),
            ("/batches", many),
        ):
            for key in ({}, {"Idempotency-Key": f"k{path}"}):
                answer = await gateway.request("POST", path, json=body, headers=ADMIN | key)
                assert refused(answer, None)["quote"] == PRICE
    assert replicate_emulator.purchases == 0


async def test_tasks_that_no_budget_has_room_for_are_told_with_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await put(gateway, "two", usd=0.007, per="month", all=True)
        body = {"model_name": FLUX, "tasks": [{"prompt": f"fox {number}"} for number in range(4)]}
        answer = await gateway.request("POST", "/generate-batch", json=body, headers=ADMIN)
        told = answer.json()
        assert (answer.status, told["successful_count"], told["failed_count"]) == (200, 2, 2)
        for one in told["failed_results"]:
            assert (one["code"], one["budget"], one["quote_usd"]) == ("budget_exceeded", "two", PRICE)
            assert datetime.fromisoformat(one["renews_at"]).day == 1
            assert (one["cost_usd"], one["quoted_usd"]) == (0, PRICE)
            assert one["hint"]
        assert all("budget" not in one for one in told["successful_results"])
        assert (answer.headers[COST], told["cost_usd"]) == ("0.006", 0.006)
        assert told["quoted_usd"] == pytest.approx(4 * PRICE)
    assert replicate_emulator.purchases == 2


async def test_durable_work_is_refused_before_it_is_accepted(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await put(gateway, "two", usd=0.007, per="month", all=True)
        tasks = {"model_name": FLUX, "tasks": [{"prompt": f"fox {number}"} for number in range(3)]}
        told = refused(await gateway.request("POST", "/batches", json=tasks, headers=ADMIN), "two")
        assert told["quote"] == pytest.approx(3 * PRICE)
        batch = await make_batch(gateway, ["fox 1", "fox 2"])
        assert (await ended(gateway, batch["id"]))["status"] == "succeeded"
        wish = {"model_name": FLUX, "prompt": "a fox"}
        refused(await gateway.request("POST", "/predictions", json=wish, headers=ADMIN), "two")
        again = ADMIN | {"Idempotency-Key": "once"}
        refused(await gateway.request("POST", "/generate", json=wish, headers=again), "two")
        await put(gateway, "two", usd=1, per="month", all=True)
        assert (await gateway.request("POST", "/generate", json=wish, headers=again)).status == 200


async def test_one_that_was_accepted_and_can_not_be_paid_any_more_says_so(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    wish = {"model_name": FLUX, "prompt": "a fox", "external_semaphore_id": "gate"}
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await put(gateway, "b", usd=1, per="day", all=True)
        await gateway.app.semaphores.register("gate", 1)
        held = await gateway.request("POST", "/global-semaphores/gate/leases", json={}, headers=ADMIN)
        made = await gateway.request("POST", "/predictions", json=wish, headers=ADMIN)
        assert (made.status, made.headers[COST], made.json()["quoted_usd"]) == (202, "unknown", PRICE)
        await put(gateway, "b", usd=0.001, per="day", all=True)
        lease = held.json()["lease_id"]
        await gateway.request("DELETE", f"/global-semaphores/gate/leases/{lease}", headers=ADMIN)
        path = f"/predictions/{made.json()['id']}"

        async def over() -> dict[str, Any] | None:
            answer = await gateway.request("GET", path, headers=ADMIN)
            told: dict[str, Any] = answer.json()
            return told if told["status"] == "failed" else None

        told = await until(over)
        assert (told["code"], told["budget"], told["quote_usd"]) == ("budget_exceeded", "b", PRICE)
        assert datetime.fromisoformat(told["renews_at"]).hour == 0
        assert (told["cost_usd"], told["quoted_usd"]) == (0, PRICE)
    assert replicate_emulator.purchases == 0


# --- warning ---------------------------------------------------------------------------------------------


async def test_a_budget_that_only_warns_is_told_in_a_header(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await put(gateway, "a", usd=0.004, per="day", all=True, warn=True)
        await put(gateway, "b", usd=0.004, per="day", model=FLUX, warn=True)
        first, second = await one_picture(gateway), await one_picture(gateway)
        assert "x-imagen-budget-warning" not in first.headers
        assert second.headers["x-imagen-budget-warning"] == "a, b"
        body = {"model_name": FLUX, "tasks": [{"prompt": "fox 1"}, {"prompt": "fox 2"}]}
        many = await gateway.request("POST", "/generate-batch", json=body, headers=ADMIN)
        assert many.headers["x-imagen-budget-warning"] == "a, b"
        assert (await budgets(gateway))[0]["left_usd"] == pytest.approx(-0.008)
    assert replicate_emulator.purchases == 4


# --- what it cost ----------------------------------------------------------------------------------------


async def test_every_answer_that_made_or_tried_to_make_a_picture_tells_what_it_cost(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_model(Model(name="acme/unpriced", run_seconds=0.01))
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = await one_picture(gateway)
        assert (made.headers[COST], made.json()["cost_usd"], made.json()["quoted_usd"]) == (
            "0.003",
            PRICE,
            PRICE,
        )
        for key in ({}, {"Idempotency-Key": "failing"}):
            failed = await one_picture(gateway, ADMIN | key, prompt="a fox [fault:fail preset=nsfw]")
            assert (failed.status, failed.headers[COST], failed.json()["cost_usd"]) == (422, "0", 0)
        wrong = await one_picture(gateway, guidance="a lot")
        assert (wrong.status, wrong.headers[COST]) == (400, "0")
        unknown = await one_picture(gateway, model_name="acme/unpriced")
        assert (unknown.headers[COST], unknown.json()["cost_usd"]) == ("unknown", None)
        first, second = [await one_picture(gateway, seed=5, cache=True) for _ in range(2)]
        assert (first.headers[COST], second.headers[COST], second.json()["cost_usd"]) == ("0.003", "0", 0)

        replicate_emulator.add_fault("slow", run_seconds=60.0)
        late = await one_picture(gateway, timeout=5.0)
        assert (late.status, late.json()["charged"]) == (504, True)
        (entry,) = [one for one in await gateway.app.ledger.entries() if one.outcome == "canceled"]
        told = "unknown" if entry.cost is None else f"{entry.cost.to_decimal():f}"
        assert late.headers[COST] == told


async def test_both_forms_of_a_batch_in_one_answer_tell_the_sum(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    prompts = ["a fox", "a hare", "a fox [fault:fail preset=nsfw]"]
    body = {"model_name": FLUX, "tasks": [{"prompt": prompt} for prompt in prompts]}
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for key in ({}, {"Idempotency-Key": "once"}):
            answer = await gateway.request("POST", "/generate-batch", json=body, headers=ADMIN | key)
            told = answer.json()
            assert (answer.headers[COST], told["cost_usd"]) == ("0.006", 0.006)
            assert told["quoted_usd"] == pytest.approx(3 * PRICE)
            assert [one["cost_usd"] for one in told["results"]] == [PRICE, PRICE, 0]
            assert [one["quoted_usd"] for one in told["results"]] == [PRICE] * 3


async def test_durable_work_tells_what_it_has_cost_so_far(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        wish = {"model_name": FLUX, "prompt": "a fox"}
        made = await gateway.request("POST", "/predictions", json=wish, headers=ADMIN)
        assert (made.headers[COST], made.json()["cost_usd"]) == ("unknown", None)

        async def shown(headers: dict[str, str] = ADMIN) -> Answer:
            return await gateway.request("GET", f"/predictions/{made.json()['id']}", headers=headers)

        async def over() -> bool:
            return bool((await shown()).json()["status"] == "succeeded")

        await until(over)
        done = await shown()
        assert (done.headers[COST], done.json()["cost_usd"], done.json()["quoted_usd"]) == (
            "0.003",
            PRICE,
            PRICE,
        )

        batch = await gateway.request(
            "POST", "/batches", json={"model_name": FLUX, "prompts": ["fox 1", "fox 2"]}, headers=ADMIN
        )
        assert batch.headers[COST] == "unknown"
        await ended(gateway, batch.json()["id"])
        whole = await gateway.request("GET", f"/batches/{batch.json()['id']}", headers=ADMIN)
        assert (whole.headers[COST], whole.json()["cost"]["so_far_usd"]) == ("0.006", 0.006)
        assert [item["quoted_usd"] for item in await items_of(gateway, batch.json()["id"])] == [PRICE] * 2

        replicate_emulator.add_fault("slow", run_seconds=60.0)
        made = await gateway.request("POST", "/predictions", json=wish, headers=ADMIN)

        async def runs() -> bool:
            return bool((await shown()).json()["status"] in {"starting", "processing"})

        await until(runs)
        open_ = await shown()
        assert (open_.headers[COST], open_.json()["cost_usd"]) == ("unknown", None)
        await gateway.request("POST", f"/predictions/{made.json()['id']}/cancel", headers=ADMIN)


# --- a quota for each user -------------------------------------------------------------------------------


async def test_a_quota_holds_each_user_and_counts_only_what_succeeded(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        alice, bob = await key_of(gateway, "alice"), await key_of(gateway, "bob")
        await put(gateway, "quota", usd=0.006, per="month", caller="*", count="succeeded")
        replicate_emulator.add_fault("slow", run_seconds=60.0, times=1)
        canceled = await one_picture(gateway, alice, timeout=5.0)
        assert (canceled.status, canceled.json()["charged"]) == (504, True)
        assert (await budgets(gateway, alice))[0]["settled_usd"] == 0
        assert [(await one_picture(gateway, alice)).status for _ in range(2)] == [200, 200]
        refused(await one_picture(gateway, alice), "quota")
        assert (await one_picture(gateway, bob)).status == 200
        found = await budgets(gateway)
        assert [(one["subject"], one["settled_usd"], one["caller"]) for one in found] == [
            ("alice", 0.006, "*"),
            ("bob", 0.003, "*"),
        ]


async def test_a_hundred_at_once_never_pass_a_quota(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        alice = await key_of(gateway, "alice")
        await put(gateway, "quota", usd=0.03, per="day", caller="*")
        answers = await asyncio.gather(*(one_picture(gateway, alice, prompt=f"fox {n}") for n in range(30)))
        assert sorted({answer.status for answer in answers}) == [200, 402]
        assert sum(answer.status == 200 for answer in answers) == 10
        (quota,) = await budgets(gateway, alice)
        assert (quota["settled_usd"], quota["reserved_usd"], quota["left_usd"]) == (0.03, 0, 0)
    assert replicate_emulator.purchases == 10


async def test_a_refusal_names_the_key_and_not_its_id(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await put(gateway, "each", usd=PRICE / 3, per="day", key="*")
        mine = await key_of(gateway, "web-shop")
        told = refused(await one_picture(gateway, mine), "each")
        assert "'each' (web-shop) of" in told["error"]
        assert "key_" not in told["error"]
