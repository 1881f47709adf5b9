"""Quotes, recommendations and feedback as the gateway answers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]
CREATE = "predictions.create"
WISH = {"model_name": "flux-dev", "prompt": "a red fox in the snow"}
PHOTO = "a photo of a red fox, bokeh"


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, replicate_emulator) as found:
        yield found


async def key_for(gateway: RunningGateway, name: str, **facts: Any) -> dict[str, str]:
    made = await gateway.request("POST", "/keys", json={"name": name} | facts, headers=ADMIN)
    assert made.status == 201, made.body
    return {"X-API-Key": made.json()["key"]}


async def quote(gateway: RunningGateway, *, headers: dict[str, str] = ADMIN, **fields: Any) -> Answer:
    return await gateway.request("POST", "/quote", json=WISH | fields, headers=headers)


async def recommend(gateway: RunningGateway, *, headers: dict[str, str] = ADMIN, **fields: Any) -> Answer:
    body = {"budget": 5, "iterations": 40} | fields
    return await gateway.request("POST", "/recommend", json=body, headers=headers)


async def judge(
    gateway: RunningGateway, prediction: str, verdict: str, headers: dict[str, str] = ADMIN
) -> Answer:
    path = f"/predictions/{prediction}/feedback"
    return await gateway.request("POST", path, json={"verdict": verdict}, headers=headers)


@asynccontextmanager
async def place_held(gateway: RunningGateway, name: str) -> AsyncIterator[None]:
    """A semaphore of one place, which is taken while the block runs."""
    body = {"semaphore_id": name, "limit": 1}
    await gateway.request("POST", "/global-semaphores", json=body, headers=ADMIN)
    path = f"/global-semaphores/{name}/leases"
    taken = await gateway.request("POST", path, json={"ttl": 60}, headers=ADMIN)
    assert taken.status == 201
    yield
    await gateway.request("DELETE", f"{path}/{taken.json()['lease_id']}", headers=ADMIN)


# --- quotes ----------------------------------------------------------------------------------------------


async def test_a_quote_tells_the_price_and_buys_nothing(
    gateway: RunningGateway, replicate_emulator: EmulatorThread
) -> None:
    told = (await quote(gateway, num_outputs=4, runs=2)).json()
    assert (told["model"], told["images"], told["predictions"]) == ("black-forest-labs/flux-dev", 8, 2)
    assert told["quote"]["high_usd"] == 0.2
    assert told["listed"] == told["quote"]
    assert (told["position"], told["limit"], told["starts_in"], told["short_of"]) == (0, None, 0.0, None)
    assert replicate_emulator.journal.entries(operation=CREATE) == ()
    health = (await gateway.request("GET", "/health")).json()
    assert health["concurrency_status"]["running"] == 0


async def test_cheaper_models_are_cheaper_and_say_what_is_lost(gateway: RunningGateway) -> None:
    told = (await quote(gateway, model_name="flux-1.1-pro-ultra", aspect_ratio="21:9", runs=3)).json()
    assert 0 < len(told["cheaper"]) <= 3
    for one in told["cheaper"]:
        assert one["quote"]["likely_usd"] < told["quote"]["likely_usd"] == 0.18
    ours = gateway.app.catalog.find("flux-1.1-pro-ultra")
    assert ours is not None
    for one in told["cheaper"]:
        if one["quality"] is None:
            assert "its quality is not known" in one["lost"]
        elif ours.quality is not None and one["quality"] < ours.quality:
            assert f"quality {one['quality']} of 5 instead of {ours.quality}" in one["lost"]
    assert len(told["cheaper"][0]["lost"]) <= len(told["cheaper"][-1]["lost"]), "the least loss comes first"
    lossy = (await quote(gateway, model_name="qwen-image", negative_prompt="snow", seed=7)).json()
    assert all(one["quote"]["likely_usd"] < lossy["quote"]["likely_usd"] for one in lossy["cheaper"])
    for one in lossy["cheaper"]:
        found = gateway.app.catalog.find(one["model"])
        assert found is not None
        assert ("no seed" in one["lost"]) == ("seed" not in found.abilities)
        assert ("no negative prompt" in one["lost"]) == ("negative_prompt" not in found.abilities)


async def test_an_edit_is_replaced_by_models_that_edit_only(gateway: RunningGateway) -> None:
    told = (
        await quote(gateway, model_name="flux-kontext-max", input_image="https://example.com/fox.png")
    ).json()
    assert told["cheaper"]
    for one in told["cheaper"]:
        found = gateway.app.catalog.find(one["model"])
        assert found is not None
        assert "edit" in found.abilities


async def test_a_full_semaphore_gives_a_position_and_binds(gateway: RunningGateway) -> None:
    async with place_held(gateway, "gpu"):
        told = (await quote(gateway, external_semaphore_id="gpu", model_name="flux-schnell")).json()
        assert (told["limit"], told["position"]) == ("semaphore:gpu", 1)
        assert told["seconds"] is not None
        assert told["starts_in"] == told["seconds"]
        assert told["ends_in"] == 2 * told["seconds"]
        waiting = asyncio.create_task(gateway.generate(external_semaphore_id="gpu"))

        async def is_second() -> bool:
            told = await quote(gateway, external_semaphore_id="gpu", model_name="flux-schnell")
            return bool(told.json()["position"] == 2)

        await until(is_second)
    assert (await waiting).status == 200
    free = (await quote(gateway, external_semaphore_id="gpu")).json()
    assert (free["limit"], free["position"]) == (None, 0)


async def test_a_full_account_and_a_full_key_bind(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="2") as gateway:
        shop = await key_for(gateway, "shop", concurrent=1)

        async def stands(headers: dict[str, str], limit: str) -> bool:
            told = (await quote(gateway, headers=headers, model_name="flux-schnell")).json()
            return bool((told["limit"], told["position"]) == (limit, 1))

        busy = [asyncio.create_task(gateway.generate(headers=shop))]
        await until(lambda: stands(shop, "key"))
        assert (await quote(gateway, model_name="flux-schnell")).json()["limit"] is None
        busy.append(asyncio.create_task(gateway.generate()))
        await until(lambda: stands(ADMIN, "account"))
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def test_a_budget_without_room_is_told_and_nothing_is_refused(gateway: RunningGateway) -> None:
    budget = {"name": "tiny", "usd": 0.06, "per": "day", "all": True}
    made = await gateway.request("POST", "/budgets", json=budget, headers=ADMIN)
    assert made.status in {200, 201}, made.body
    assert (await quote(gateway, runs=2)).json()["short_of"] is None
    told = (await quote(gateway, runs=3)).json()
    assert (told["short_of"]["budget"], told["short_of"]["left_usd"], told["short_of"]["waits"]) == (
        "tiny",
        0.06,
        False,
    )
    assert told["short_of"]["renews_at"] is not None
    assert (told["limit"], told["starts_in"]) == (None, None)
    assert told["quote"]["high_usd"] == 0.075


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"prompt": ""}, 400, "Missing required field: prompt"),
        ({"aspect_ratio": "7:5"}, 400, "aspect_ratio"),
        ({"model_name": "nonsense"}, 400, "not supported"),
        ({"max_cost": 0.001}, 402, "more than the $0.001"),
        ({"runs": 0}, 400, "runs"),
        ({"runs": "many"}, 400, "runs"),
        ({"external_semaphore_id": "nope"}, 404, "nope"),
    ],
)
async def test_what_generate_refuses_is_refused(
    gateway: RunningGateway, fields: dict[str, Any], status: int, said: str
) -> None:
    told = await quote(gateway, **fields)
    assert told.status == status, told.body
    assert said in told.body.decode()
    if "runs" not in fields:
        assert (await gateway.generate(**fields)).status == status


async def test_a_key_asks_whatever_its_paths_and_learns_of_its_own_models_only(
    gateway: RunningGateway,
) -> None:
    narrow = await key_for(gateway, "narrow", routes=["/predictions"], models=["flux-dev", "flux-schnell"])
    told = await quote(gateway, headers=narrow)
    assert told.status == 200
    assert [one["model"] for one in told.json()["cheaper"]] == ["black-forest-labs/flux-schnell"]
    assert (await quote(gateway, headers=narrow, model_name="qwen-image")).status == 403
    found = (await recommend(gateway, headers=narrow, budget=100, iterations=1)).json()
    models = {found["model"], *(one["model"] for one in found["alternatives"])}
    assert models == {"black-forest-labs/flux-dev", "black-forest-labs/flux-schnell"}
    assert "may not be used here" in found["sentence"]
    assert (await quote(gateway, headers={"X-API-Key": "imk_wrong"})).status == 401


# --- recommendations and feedback ------------------------------------------------------------------------


async def test_the_rule_is_told_and_followed(gateway: RunningGateway) -> None:
    told = (await recommend(gateway, quality="high")).json()
    assert told["model"] == told["rule"] == "black-forest-labs/flux-1.1-pro-ultra"
    assert told["each_usd"] == 0.125
    assert "$5.00 for 40 pictures is $0.125 each" in told["sentence"]
    assert told["choice"]["parts"]["rule"] == 20
    scores = [one["score"] for one in told["alternatives"]]
    assert scores == sorted(scores, reverse=True)
    assert all(one["price_usd"] <= 0.125 for one in told["alternatives"])
    assert (await recommend(gateway)).json()["rule"] == "bytedance/seedream-4"
    assert (await recommend(gateway, budget="0.4")).json()["model"] == "black-forest-labs/flux-schnell"


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"budget": 0}, 400, "budget"),
        ({"budget": "much"}, 400, "budget"),
        ({"iterations": 0}, 400, "iterations"),
        ({"quality": "best"}, 400, "quality"),
        ({"needs": ["magic"]}, 400, "needs"),
        ({"within": -1}, 400, "within"),
        ({"prompt": ""}, 400, "prompt"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    gateway: RunningGateway, fields: dict[str, Any], status: int, said: str
) -> None:
    told = await recommend(gateway, **fields)
    assert (told.status, said in told.body.decode()) == (status, True), told.body


async def test_what_was_kept_changes_what_is_recommended_and_the_sentence_says_so(
    gateway: RunningGateway,
) -> None:
    shop, other = await key_for(gateway, "shop"), await key_for(gateway, "other")
    wish = {"prompt": PHOTO, "budget": 2, "iterations": 40}
    before = (await recommend(gateway, headers=shop, **wish)).json()
    favourite = "qwen/qwen-image"
    assert before["model"] != favourite

    async def make(model: str) -> str:
        made = await gateway.generate(headers=shop, model_name=model, prompt=PHOTO)
        assert made.status == 200, made.body
        return str(made.json()["prediction_id"])

    for _ in range(5):
        assert (await judge(gateway, await make(favourite), "keep", shop)).status == 200
        assert (await judge(gateway, await make(before["model"]), "reject", shop)).status == 200
    after = (await recommend(gateway, headers=shop, **wish)).json()
    assert after["model"] == favourite
    assert "you kept 5 of 5 pictures of kind photo" in after["sentence"]
    assert "0 of 5 pictures of kind photo" in after["sentence"]
    assert (after["choice"]["kept"], after["choice"]["judged"]) == (5, 5)
    untouched = (await recommend(gateway, headers=other, **wish)).json()
    assert untouched["model"] == before["model"], "it is this caller's taste, and nobody else's"

    shown = (await gateway.request("GET", "/preferences", headers=shop)).json()
    assert (shown["caller"], shown["learning"], shown["count"]) == ("shop", True, 2)
    assert shown["preferences"][0] | {"chance": 0, "sureness": 0} == {
        "kind": "photo",
        "model": favourite,
        "kept": 5,
        "rejected": 0,
        "chance": 0,
        "sureness": 0,
    }
    assert len(shown["feedback"]) == 10
    assert "fox" not in str(shown), "no prompt is told"
    assert (await gateway.request("DELETE", "/preferences", headers=shop)).json()["erased"] == 10
    assert (await recommend(gateway, headers=shop, **wish)).json()["model"] == before["model"]


async def test_feedback_is_for_the_owner_and_the_admin_and_the_last_word_counts(
    gateway: RunningGateway,
) -> None:
    shop, other = await key_for(gateway, "shop"), await key_for(gateway, "other")
    made = (await gateway.generate(headers=shop)).json()["prediction_id"]
    assert (await judge(gateway, made, "keep", other)).status == 404
    assert (await judge(gateway, made[:-2], "keep", shop)).status == 404, "no part of an id"
    assert (await judge(gateway, "pred_nothing", "keep", shop)).status == 404
    assert (await judge(gateway, made, "love", shop)).status == 400
    for _ in range(2):
        first = (await judge(gateway, made, "keep", shop)).json()
    assert (first["verdict"], first["caller"], first["kind"]) == ("keep", "shop", "other")
    assert (await judge(gateway, made, "reject")).json()["caller"] == "shop"
    of_shop = await gateway.request("GET", "/preferences?caller=shop", headers=ADMIN)
    assert [one["verdict"] for one in of_shop.json()["feedback"]] == ["reject"]
    assert (await gateway.request("GET", "/preferences?caller=shop", headers=other)).status == 403
    assert (await gateway.request("DELETE", "/preferences?caller=shop", headers=other)).status == 403


async def test_what_did_not_succeed_cannot_be_kept(gateway: RunningGateway) -> None:
    failed = await gateway.generate(prompt="[fault:fail] a fox")
    assert failed.status != 200
    told = await judge(gateway, failed.json()["prediction_id"], "keep")
    assert told.status == 400
    assert "only pictures of one that succeeded" in told.json()["error"]


async def test_switched_off_nothing_is_written_and_nothing_read(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = (await gateway.generate()).json()["prediction_id"]
        assert (await judge(gateway, made, "keep")).status == 200
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LEARNING="false") as gateway:
        told = await judge(gateway, made, "reject")
        assert told.status == 403
        assert "switched off" in told.json()["error"]
        found = (await recommend(gateway)).json()
        assert found["learning"] is False
        assert all(one["judged"] == 0 for one in [found["choice"], *found["alternatives"]])
        shown = (await gateway.request("GET", "/preferences", headers=ADMIN)).json()
        assert (shown["learning"], [one["verdict"] for one in shown["feedback"]]) == (False, ["keep"])
        assert (await gateway.request("DELETE", "/preferences", headers=ADMIN)).json()["erased"] == 1
