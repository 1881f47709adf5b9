"""Batches over HTTP: taken on in three forms, looked at, steered, and told of while they go on."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from batch_calls import FLUX, ended, events, items_of, make_batch, written_below
from durable import accepted
from gateway import ADMIN, Answer, RunningGateway, running_gateway

from imagen.emulator import EmulatorThread
from imagen.server.sse import EventStream
from imagen.store.batches import SqlBatches
from waiting import least, until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]
ONE = {"IMAGEN_LIMITS__CONCURRENT": "1"}
SEALED = {"IMAGEN_SECRET_KEY": "a-key-that-is-only-for-tests"}
OWN = {"X-Replicate-Api-Token": "r8_their_own"}


async def get(gateway: RunningGateway, path: str, headers: dict[str, str] | None = None) -> Any:
    answer = await gateway.request("GET", path, headers=headers or ADMIN)
    assert answer.status == 200, answer.body
    return answer.json()


async def post(gateway: RunningGateway, path: str, headers: dict[str, str] | None = None) -> Any:
    answer = await gateway.request("POST", path, headers=headers or ADMIN)
    assert answer.status in {200, 202}, answer.body
    return answer.json()


async def upload(gateway: RunningGateway, content: bytes, media_type: str, query: str = "") -> Answer:
    headers = ADMIN | {"Content-Type": media_type}
    return await gateway.request("POST", f"/batches{query}", data=content, headers=headers)


# --- the three forms -------------------------------------------------------------------------------------


async def test_a_batch_is_accepted_at_once_and_each_of_its_tasks_is_bought_once_and_kept(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await gateway.request(
            "POST",
            "/batches",
            json={
                "name": "spring",
                "model_name": FLUX,
                "tasks": [
                    {"prompt": "a fox", "output_filename": "fox.png"},
                    {"prompt": "two hares", "num_outputs": 2, "output_filename": "hare"},
                    {"prompt": "an owl [fault:fail error=tired]"},
                ],
            },
            headers=ADMIN,
        )
        accepted = answer.json()
        assert answer.status == 202
        assert answer.headers["location"] == accepted["urls"]["get"]
        assert answer.headers["x-imagen-cost-usd"] == "unknown"
        assert (accepted["status"], accepted["name"], accepted["counts"]["total"]) == ("running", "spring", 3)
        assert accepted["cost"] == {"so_far_usd": 0, "quoted_usd": 0.012, "unpriced": 0}
        over = await ended(gateway, accepted["id"])
        assert over["status"] == "partly_failed"
        assert (over["counts"]["succeeded"], over["counts"]["failed"], over["images"]) == (2, 1, 3)
        assert over["cost"]["so_far_usd"] == 0.009
        fox, hares, owl = await items_of(gateway, accepted["id"])
        assert [(one["index"], one["prompt"]) for one in (fox, hares, owl)] == [
            (0, "a fox"), (1, "two hares"), (2, "an owl [fault:fail error=tired]"),
        ]  # fmt: skip
        assert (fox["status"], fox["charged"], fox["cost_usd"], fox["attempts"]) == (
            "succeeded", True, 0.003, 1,
        )  # fmt: skip
        assert [file["filename"] for file in fox["files"] + hares["files"]] == [
            "fox.png", "hare_1.jpg", "hare_2.jpg",
        ]  # fmt: skip
        assert (owl["status"], owl["code"], owl["charged"], owl["files"]) == (
            "failed", "prediction_failed", False, [],
        )  # fmt: skip
        assert "tired" in owl["error"]
        for file in fox["files"] + hares["files"]:
            kept = await gateway.session.get(file["stored_url"])
            assert kept.status == 200
            assert (await kept.read())[:4] in {b"RIFF", b"\x89PNG", b"\xff\xd8\xff\xe0"}
    assert replicate_emulator.purchases == 3


async def test_jsonl_and_csv_make_the_same_batch_with_common_fields_from_the_query(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    lines = [{"prompt": "a fox", "output_filename": "f.png"}, {"prompt": "a hare", "aspect_ratio": "16:9"}]
    jsonl = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(line).encode() for line in lines) + b"\r\n\r\n"
    table = b"prompt,output_filename,aspect_ratio,seed\na fox,f.png,,7\na hare,,16:9,\n"
    query = f"?model_name={FLUX}&aspect_ratio=3:2&name=two"
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        found = []
        for content, kind in ((jsonl, "application/x-ndjson"), (table, "text/csv; charset=utf-8")):
            answer = await upload(gateway, content, kind, query)
            assert answer.status == 202, answer.body
            assert answer.json()["name"] == "two"
            await ended(gateway, answer.json()["id"])
            found.append(await items_of(gateway, answer.json()["id"]))
    sent = [
        entry.body["input"]
        for entry in replicate_emulator.journal.entries(operation="predictions.create", status=201)
    ]
    ratios = sorted((one["prompt"], one["aspect_ratio"]) for one in sent)
    assert ratios == [("a fox", "3:2"), ("a fox", "3:2"), ("a hare", "16:9"), ("a hare", "16:9")]
    assert 7 in [one["seed"] for one in sent]  # a number by the model's own schema, though CSV has only text
    for items in found:
        assert [(one["index"], one["prompt"], one["status"]) for one in items] == [
            (0, "a fox", "succeeded"), (1, "a hare", "succeeded"),
        ]  # fmt: skip
        assert items[0]["output_filename"] == "f.png"


async def test_a_form_with_a_file_makes_a_batch_of_its_name(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("model_name", FLUX)
        form.add_field("store", "false")
        form.add_field("file", b'"a fox"\n{"prompt": "a hare"}\n', filename="my/wishes.jsonl")
        async with gateway.session.post(f"{gateway.url}/batches", data=form, headers=ADMIN) as response:
            assert response.status == 202, await response.text()
            batch = await response.json()
        assert (batch["name"], batch["counts"]["total"]) == ("wishes.jsonl", 2)
        await ended(gateway, batch["id"])
        items = await items_of(gateway, batch["id"])
        assert [one["prompt"] for one in items] == ["a fox", "a hare"]
        assert ["stored_url" in file for one in items for file in one["files"]] == [False, False]


@pytest.mark.parametrize(
    ("content", "media_type", "query", "told"),
    [
        (b'{"prompt": "a"}\n{"prompt": "b", "credentials": {}}', "application/x-ndjson", "", "line 2"),
        (b'{"prompt": "a"}\nnonsense', "application/x-ndjson", "", "line 2"),
        (b'{"prompt": "a", "guidance": "much"}\n{"prompt": "b"}', "application/x-ndjson", "", "line 1"),
        (b"prompt,guidance\na,2\n\nb,much\n", "text/csv", "", "line 4"),
        (b"words\na\n", "text/csv", "", "prompt"),
        (b"prompt\na\n", "text/csv", "&credentials=r8_x", "credentials"),
        (b"prompt\na\n", "text/csv", "&guidance=1&guidance=2", "twice"),
        (b"prompt\na\n", "text/csv", "&timeout=soon", "timeout"),
        (b"", "text/csv", "", "empty"),
        (
            b'{"prompt": "a", "seed": %d}' % 10**30,
            "application/x-ndjson",
            "",
            "line 1, seed: it must be from -",
        ),
        (b"prompt,seed\na,%d\n" % 10**30, "text/csv", "", "line 2, seed: it must be at most"),
        (
            b'{"prompt": "a", "seed": 1e400}',
            "application/x-ndjson",
            "",
            "line 1, seed: it is a number that is too",
        ),
        (b'{"prompt": "a"}', "application/x-ndjson", "&store=maybe", "store: it must be true or false"),
        (b"prompt,cache\na,maybe\n", "text/csv", "", "line 2, cache: it must be true or false"),
        (b'{"prompt": "a", "model": "x"}', "application/x-ndjson", "", "stands in `model_name`"),
        (
            b"a fox",
            "application/x-ndjson",
            "",
            "Each line is an object with `prompt`, or a prompt in quotes.",
        ),
        (b"a fox\na hare\n", "text/plain", "", "application/x-ndjson, or CSV with text/csv"),
        (b"- a fox\n- a hare\n", "application/yaml", "", "application/x-ndjson, or CSV with text/csv"),
        (
            b'{"tasks": [{"prompt": "a", "seed": %d}], "model_name": "flux-dev"}' % 10**30,
            "application/json",
            "",
            "tasks[0].seed: it must be from -",
        ),
        (
            b'{"tasks": [{"prompt": "a", "seed": 1e400}]}',
            "application/json",
            "",
            "a number that is too large",
        ),
        (
            b'{"tasks": [{"prompt": "a", "cache": "yes"}], "model_name": "flux-dev"}',
            "application/json",
            "",
            "tasks[0].cache: it must be true or false",
        ),
        (b'{"prompt": "a", "x": [%s]}' % (b"[]," * 200_001 + b"0"), "application/x-ndjson", "", "200,000"),
        (b"--x", "multipart/form-data; boundary=x", "", "form"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"prompt": "a"}\r\n',
            "multipart/form-data; boundary=x",
            "",
            "ended before its last boundary",
        ),
        (b"nothing", "multipart/form-data", "", "form"),
    ],
)
async def test_a_file_with_a_mistake_is_refused_whole_with_the_place_of_it(
    tmp_path: Path,
    replicate_emulator: EmulatorThread,
    content: bytes,
    media_type: str,
    query: str,
    told: str,
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        common = "" if media_type == "application/json" else f"?model_name=flux-dev{query}"
        answer = await upload(gateway, content, media_type, common)
        assert answer.status == 400, answer.body
        assert told in json.dumps(answer.json()), answer.body
        assert (await get(gateway, "/batches"))["batches"] == []
    assert replicate_emulator.purchases == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"webhook": "http://hooks.example/x"}, "webhook"),
        ({"webhook": "https://127.0.0.1/x"}, "webhook"),
        ({"webhook": 7}, "webhook"),
        ({"webhook": "https://hooks.example/x", "webhook_events_filter": ["start"]}, "webhook_events_filter"),
        ({"webhook_events_filter": ["item"]}, "webhook_events_filter"),
        ({"name": "a\nb"}, "name"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"prompt": "a", "webhook": "https://hooks.example/x"}]}, "tasks[0]"),
        ({"tasks": [{"prompt": "a"}, {"prompt": "b", "guidance": "much"}]}, "tasks[1].guidance"),
        ({"external_semaphore_id": "nobody-has-it"}, "nobody-has-it"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_taken_on(
    tmp_path: Path, replicate_emulator: EmulatorThread, fields: dict[str, Any], told: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        body = {"model_name": "flux-dev", "tasks": [{"prompt": "a fox"}]} | fields
        answer = await gateway.request("POST", "/batches", json=body, headers=ADMIN)
        assert answer.status in {400, 404}, answer.body
        assert told in json.dumps(answer.json())
        assert (await get(gateway, "/batches"))["batches"] == []


# --- events ----------------------------------------------------------------------------------------------


async def test_events_tell_every_end_once_and_go_on_where_a_reader_stopped(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **ONE) as gateway, asyncio.timeout(30):
        batch = await make_batch(gateway, [f"fox {number}" for number in range(6)])
        first = []
        async with aclosing(events(gateway, batch["id"])) as told:
            async for one in told:
                if one.event == "item":
                    first.append(one)
                if len(first) == 2:
                    break
        rest = [one async for one in events(gateway, batch["id"], after=first[-1].id)]
        ends = [*first, *(one for one in rest if one.event == "item")]
        assert [one.id for one in ends] == ["1", "2", "3", "4", "5", "6"]
        assert sorted(one.data["index"] for one in ends) == [0, 1, 2, 3, 4, 5]
        assert [one.event for one in rest].count("end") == 1
        assert (rest[-1].event, rest[-1].data["status"]) == ("end", "succeeded")
        # Of one that has ended all is told again, or what is missing, and the stream ends at once.
        again = [one async for one in events(gateway, batch["id"], after="5")]
        assert [one.event for one in again] == ["item", "end"]


async def test_a_silent_stream_is_kept_alive_and_ends_when_the_gateway_stops(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = EventStream.__init__.__kwdefaults__
    monkeypatch.setitem(given, "heartbeat_seconds", 0.2)
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    async with aiohttp.ClientSession() as session:
        async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
            batch = await make_batch(gateway, ["a slow fox"])
            response = await session.get(f"{gateway.url}/batches/{batch['id']}/events", headers=ADMIN)
            async with asyncio.timeout(10):
                while b": still here" not in await response.content.readline():
                    pass
        async with asyncio.timeout(15):
            rest = await response.content.read()
        response.close()
    assert b"shutting down" in rest
    assert b"event: end" not in rest


async def test_a_reader_who_leaves_is_forgotten(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("slow", run_seconds=30.0)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        batch = await make_batch(gateway, ["a slow fox"])
        watching = gateway.app.batches._news._watching
        async with aclosing(events(gateway, batch["id"])) as told:
            await anext(told)
            assert len(watching) == 1
        await until(lambda: not watching)


async def test_an_id_that_no_stream_has_is_refused(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        batch = await make_batch(gateway, ["a fox"])
        for wrong in ("-1", "x", "9" * 30):
            answer = await gateway.request(
                "GET", f"/batches/{batch['id']}/events", headers=ADMIN | {"Last-Event-ID": wrong}
            )
            assert (answer.status, answer.json()["code"]) == (400, "invalid_input")
            # Who may not ask is told no more than that.
            answer = await gateway.request(
                "GET",
                f"/batches/{batch['id']}/events",
                headers={"X-API-Key": "nobody's", "Last-Event-ID": wrong},
            )
            assert answer.status == 401


async def test_whoever_has_an_id_that_no_event_had_is_told_everything(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        batch = await make_batch(gateway, ["a fox", "a hen"])
        await gateway.app.batches.ended(batch["id"])
        for last, items in ((1, 1), (2, 0), (3, 2), (10**17, 2)):
            answer = await gateway.request(
                "GET", f"/batches/{batch['id']}/events", headers=ADMIN | {"Last-Event-ID": str(last)}
            )
            assert answer.body.count(b"event: item") == items
            assert answer.body.count(b"event: end") == 1


# --- pages -----------------------------------------------------------------------------------------------


async def test_pages_of_items_have_each_item_once_while_items_end(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **ONE) as gateway:
        batch = await make_batch(gateway, [f"fox {number}" for number in range(25)])
        seen: list[int] = []
        cursor = ""

        def as_many_are_bought() -> bool:
            return replicate_emulator.purchases >= len(seen) // 4

        while True:
            page = await get(gateway, f"/batches/{batch['id']}/items?limit=4{cursor}")
            seen += [item["index"] for item in page["items"]]
            assert len(page["items"]) <= 4
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
            await until(as_many_are_bought)
        assert seen == list(range(25))
        await ended(gateway, batch["id"])
        done = await get(gateway, f"/batches/{batch['id']}/items?status=succeeded&limit=500")
        assert (len(done["items"]), done["next_cursor"]) == (25, None)
        none = await get(gateway, f"/batches/{batch['id']}/items?status=queued")
        assert none == {"items": [], "next_cursor": None}


async def test_batches_are_listed_newest_first_by_pages(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = [(await make_batch(gateway, ["a fox"], name=f"b{number}"))["id"] for number in range(5)]
        await gateway.request(
            "POST", "/predictions", json={"model_name": FLUX, "prompt": "alone"}, headers=ADMIN
        )
        listed: list[str] = []
        cursor = ""
        while True:
            page = await get(gateway, f"/batches?limit=2{cursor}")
            listed += [batch["id"] for batch in page["batches"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert listed == made[::-1]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "status=odd", "cursor=x", "cursor=", "limit=%C2%B2"]
)
async def test_a_query_that_makes_no_sense_is_refused(
    tmp_path: Path, replicate_emulator: EmulatorThread, query: str
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        batch = await make_batch(gateway, ["a fox"])
        answer = await gateway.request("GET", f"/batches/{batch['id']}/items?{query}", headers=ADMIN)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_input")


async def test_a_list_of_batches_goes_on_from_its_own_cursors_only(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        batch = await make_batch(gateway, ["a fox"])
        for cursor in ("zzz", "", "7", "batch_", f"{batch['id']}0", batch["id"].replace("batch_", "pred_")):
            answer = await gateway.request("GET", f"/batches?cursor={cursor}", headers=ADMIN)
            assert (answer.status, answer.json()["code"]) == (400, "invalid_input"), cursor
            assert "next_cursor of an earlier answer" in answer.json()["error"], answer.body
        assert await get(gateway, f"/batches?cursor={batch['id']}") == {"batches": [], "next_cursor": None}


# --- steering --------------------------------------------------------------------------------------------


async def test_a_paused_batch_begins_nothing_and_goes_on_when_it_is_resumed(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=0.4)
    async with running_gateway(tmp_path, replicate_emulator, **ONE) as gateway:
        batch = await make_batch(gateway, [f"fox {number}" for number in range(8)])
        await until(lambda: replicate_emulator.purchases >= 1)
        paused = await post(gateway, f"/batches/{batch['id']}/pause")
        assert paused["status"] == "paused"
        async with asyncio.timeout(10):
            async for one in events(gateway, batch["id"]):
                if one.event == "progress" and one.data["counts"]["running"] == 0:
                    break
        stopped = replicate_emulator.purchases
        state = await get(gateway, f"/batches/{batch['id']}")
        assert (state["status"], state["counts"]["queued"]) == ("paused", 8 - stopped)
        assert 0 < stopped < 8
        assert (await post(gateway, f"/batches/{batch['id']}/resume"))["status"] == "running"
        assert (await ended(gateway, batch["id"]))["status"] == "succeeded"
    assert replicate_emulator.purchases == 8


async def test_a_canceled_batch_ends_and_what_was_canceled_can_be_tried_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **ONE) as gateway:
        replicate_emulator.add_fault("slow", run_seconds=60.0)
        batch = await make_batch(gateway, [f"fox {number}" for number in range(4)])
        await until(lambda: replicate_emulator.purchases >= 1)
        await post(gateway, f"/batches/{batch['id']}/cancel")
        over = await ended(gateway, batch["id"])
        assert (over["status"], over["counts"]["canceled"]) == ("canceled", 4)
        assert {one["code"] for one in await items_of(gateway, batch["id"])} == {"prediction_canceled"}
        replicate_emulator.clear_faults()
        again = await post(gateway, f"/batches/{batch['id']}/retry-failed")
        assert again["retried"] == 4
        assert (await ended(gateway, batch["id"]))["status"] == "succeeded"
        assert [one["attempts"] for one in await items_of(gateway, batch["id"])] == [2, 2, 2, 2]
    assert replicate_emulator.purchases == 5


async def test_what_was_accepted_is_made_by_the_next_process(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=0.3)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1", **ONE) as gateway:
        batch = await make_batch(gateway, [f"fox {number}" for number in range(6)])
        await until(lambda: replicate_emulator.purchases >= 1)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await ended(gateway, batch["id"]))["status"] == "succeeded"
        assert [one["prompt"] for one in await items_of(gateway, batch["id"])] == [
            f"fox {number}" for number in range(6)
        ]
    assert replicate_emulator.purchases == 6


# --- who may see it --------------------------------------------------------------------------------------


async def test_a_batch_is_seen_by_its_maker_and_the_admin_alone(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **SEALED) as gateway:
        keys = {}
        for name in ("shop", "blog"):
            made = await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN)
            keys[name] = {"X-API-Key": made.json()["key"]}
        theirs = await make_batch(gateway, ["a fox"], headers=keys["shop"])
        own = await make_batch(gateway, ["a hare"], headers=OWN)
        local = await make_batch(gateway, ["an owl"], headers={"Accept": "*/*"})
        path = f"/batches/{theirs['id']}"
        words = ("", "/items", "/events", "/results.jsonl")
        for headers in (keys["blog"], OWN, {"X-Replicate-Api-Token": "r8_another"}, {"Accept": "*/*"}):
            for word in words:
                assert (await gateway.request("GET", path + word, headers=headers)).status == 404
            for word in ("/cancel", "/pause", "/resume", "/retry-failed"):
                assert (await gateway.request("POST", path + word, headers=headers)).status == 404
        for headers, seen in (
            (keys["shop"], [theirs]),
            (keys["blog"], []),
            (OWN, [own]),
            ({"Accept": "*/*"}, [local]),
            (ADMIN, [local, own, theirs]),
        ):
            listed = await get(gateway, "/batches", headers)
            assert [one["id"] for one in listed["batches"]] == [one["id"] for one in seen]
        for batch, headers in ((theirs, keys["shop"]), (own, OWN), (local, ADMIN)):
            assert (await ended(gateway, batch["id"], headers=headers))["status"] == "succeeded"


async def test_a_batch_on_a_token_of_its_callers_needs_a_key_to_encrypt_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    tasks = {"model_name": FLUX, "tasks": [{"prompt": "a fox"}]}
    own = {"credentials": {"replicate_api_token": "r8_their_own"}}
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        refused = await gateway.request("POST", "/batches", json=tasks | own)
        assert refused.status == 400
        assert "IMAGEN_SECRET_KEY" in refused.json()["hint"]
    async with running_gateway(tmp_path, replicate_emulator, **SEALED) as gateway:
        accepted = await gateway.request("POST", "/batches", json=tasks | own)
        assert accepted.status == 202, accepted.body
        await ended(gateway, accepted.json()["id"], headers=OWN)
    assert replicate_emulator.purchases == 1
    assert b"r8_their_own" not in written_below(tmp_path)


async def test_a_key_for_one_path_or_model_is_good_for_no_other(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = await gateway.request(
            "POST",
            "/keys",
            json={"name": "k", "routes": ["/batches"], "models": ["flux-dev"]},
            headers=ADMIN,
        )
        key = {"X-API-Key": made.json()["key"]}
        tasks = [{"prompt": "a fox"}]
        other = await gateway.request(
            "POST", "/batches", json={"model_name": FLUX, "tasks": tasks}, headers=key
        )
        assert (other.status, other.json()["code"]) == (403, "permission_denied")
        batch = await make_batch(gateway, ["a fox"], headers=key, model_name="flux-dev")
        assert (await ended(gateway, batch["id"], headers=key))["status"] == "succeeded"
        elsewhere = await gateway.request(
            "POST", "/predictions", json={"model_name": "flux-dev", "prompt": "a"}, headers=key
        )
        assert elsewhere.status == 403


@pytest.fixture
def nothing_of_others() -> Iterator[None]:
    """Nothing that other tests have left is gone over by the collector, which takes it a second: a gateway has none of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("nothing_of_others")
async def test_ten_thousand_tasks_are_taken_on_without_keeping_others_waiting(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **ONE) as gateway:
        lines = b"\n".join(b'"fox number %d"' % number for number in range(10_000))

        async def slowest_answer() -> float:
            asked = asyncio.ensure_future(
                upload(gateway, lines, "application/x-ndjson", f"?model_name={FLUX}&name=many")
            )
            slowest = 0.0
            while not asked.done():
                began = asyncio.get_running_loop().time()
                assert (await gateway.request("GET", "/ready")).status == 200
                slowest = max(slowest, asyncio.get_running_loop().time() - began)
            answer = await asked
            assert (answer.status, answer.json()["counts"]["total"]) == (202, 10_000)
            over = await post(gateway, f"/batches/{answer.json()['id']}/cancel")
            assert over["counts"]["total"] == 10_000
            return slowest

        assert await least(slowest_answer, enough=2.0) < 2.0
        too_many = await upload(gateway, lines + b'\n"one more"', "application/x-ndjson")
        assert too_many.status == 400


# --- what is told of what nobody began -------------------------------------------------------------------

NOWHERE = {"IMAGEN_DELIVERIES__PRIVATE": "true"}
HOOK = "https://127.0.0.1:9/hook"
"""Nobody listens there: what is told stays in the outbox."""


async def told(gateway: RunningGateway) -> list[tuple[str, dict[str, Any]]]:
    """Events and their data, in the order in which they were put."""
    found = await gateway.app.outbox.list(limit=20_000)
    return [(one.event, one.body.get("data", one.body)) for one in reversed(found)]


@pytest.mark.replicate_emulator(run_seconds=5)
async def test_the_end_of_every_task_is_told_once_also_of_those_that_were_canceled_in_the_queue(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """Those of which nothing was bought, and those that ran; the end of the batch comes last."""
    async with running_gateway(tmp_path, replicate_emulator, **ONE, **NOWHERE) as gateway:
        batch = await make_batch(
            gateway,
            [f"a fox {number}" for number in range(150)],
            webhook=HOOK,
            webhook_events_filter=["item", "completed"],
        )
        await until(lambda: replicate_emulator.purchases >= 1)
        await post(gateway, f"/batches/{batch['id']}/cancel")
        view = await ended(gateway, batch["id"])
        events = await told(gateway)
    assert view["status"] == "canceled"
    assert [event for event, _ in events] == ["batch.item"] * 150 + ["batch.completed"]
    items = [data for _, data in events[:-1]]
    assert sorted(item["index"] for item in items) == list(range(150))
    assert {item["status"] for item in items} == {"canceled"}
    assert events[-1][1]["counts"]["canceled"] == 150
    assert replicate_emulator.purchases == 1


async def test_only_those_who_want_to_hear_of_tasks_are_told_of_them(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **ONE, **NOWHERE) as gateway:
        batch = await make_batch(gateway, ["a fox"] * 80, webhook=HOOK, webhook_events_filter=["completed"])
        await post(gateway, f"/batches/{batch['id']}/cancel")
        await ended(gateway, batch["id"])
        assert [event for event, _ in await told(gateway)] == ["batch.completed"]


@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("face", [True, False])
@pytest.mark.replicate_emulator(run_seconds=5)
async def test_the_end_of_a_prediction_that_was_canceled_while_it_waited_is_told_once(
    tmp_path: Path, replicate_emulator: EmulatorThread, *, face: bool, paused: bool
) -> None:
    """In line, and put back into the queue by a pause; in our words and in Replicate's."""
    ours = {"model_name": FLUX, "webhook": HOOK, "webhook_events_filter": ["completed"]}
    theirs = {"version": f"black-forest-labs/{FLUX}", "webhook": HOOK, "webhook_events_filter": ["completed"]}
    path = "/v1/predictions" if face else "/predictions"
    event = "replicate.completed" if face else "prediction.completed"

    async def ask(prompt: str) -> str:
        body = theirs | {"input": {"prompt": prompt}} if face else ours | {"prompt": prompt}
        answer = await gateway.request("POST", path, headers=ADMIN, json=body)
        assert answer.status in {201, 202}, answer.body
        return str(answer.json()["id"])

    async with running_gateway(tmp_path, replicate_emulator, **ONE, **NOWHERE) as gateway:
        await ask("first")
        await until(lambda: replicate_emulator.purchases >= 1)
        waits = await ask("second")
        view, _, _ = await gateway.app.batches.of_prediction(waits)
        if paused:
            await gateway.app.batches.pause(view.batch.id)
            async with asyncio.timeout(10):
                while (await gateway.app.batches.view(view.batch.id)).tally.running:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        canceled = await gateway.request("POST", f"{path}/{waits}/cancel", headers=ADMIN)
        assert canceled.status == 200, canceled.body
        async with asyncio.timeout(20):
            await gateway.app.batches.ended(view.batch.id)
        of_it = [one for one in await told(gateway) if one[1].get("id") == waits]
    assert [(one, data["status"]) for one, data in of_it] == [(event, "canceled")]
    assert replicate_emulator.purchases == 1


async def test_ten_thousand_queued_tasks_are_canceled_and_told_of_in_seconds(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, **ONE, **NOWHERE) as gateway:
        batch = await make_batch(
            gateway, ["a fox"] * 10_000, webhook=HOOK, webhook_events_filter=["item", "completed"]
        )
        async with asyncio.timeout(10):
            await gateway.app.batches.pause(batch["id"])
            await gateway.app.batches.cancel(batch["id"])
            await gateway.app.batches.ended(batch["id"])
            assert await gateway.app.outbox.waiting() == 10_001


# --- what a command left behind --------------------------------------------------------------------------


async def test_what_a_killed_command_left_is_ended_by_the_gateway_once_it_is_canceled(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """Not before: it is for whoever resumes it."""
    gone = "1-gone"
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        left, canceled = [await left_by_a_command(gateway, ["a fox", "a hen"], owner=gone) for _ in range(2)]
        other = await make_batch(gateway, ["a cow"])
        await ended(gateway, other["id"])  # by then it has looked at all that is left
        assert [one["status"] for one in [await get(gateway, f"/batches/{canceled}")]] == ["running"]
        await post(gateway, f"/batches/{canceled}/cancel")
        view = await ended(gateway, canceled)
        still = await gateway.app.batches.view(left)
    assert (view["status"], view["counts"]["canceled"]) == ("canceled", 2)
    assert (still.batch.owner, still.tally.running, still.batch.ended_at) == (gone, 1, None)
    assert replicate_emulator.purchases == 1


async def left_by_a_command(gateway: RunningGateway, prompts: list[str], *, owner: str) -> str:
    """A batch of which a process that is gone has claimed one item; its id."""
    app = gateway.app
    batch = await accepted(app, prompts, details={"command": "imagen batch"})
    store = SqlBatches(app.database)
    assert await store.take(batch.id, owner=owner, was=None)
    assert len(await store.claim(batch.id, owner=owner, limit=1)) == 1
    return batch.id


async def test_all_that_is_wrong_with_tasks_is_told_at_once(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        tasks = [{"prompt": "a", "guidance": "much", "num_outputs": 99}, 5, {"prompt": 7, "store": "yes"}, {}]
        body = {"model_name": "flux-dev", "tasks": tasks}
        told = (await gateway.request("POST", "/batches", json=body, headers=ADMIN)).json()
        assert {problem["field"] for problem in told["problems"]} == {
            "tasks[0].guidance",
            "tasks[0].num_outputs",
            "tasks[1]",
            "tasks[2].prompt",
            "tasks[2].store",
            "tasks[3].prompt",
        }
        common = {"model_name": "flux-dev", "guidance": "much", "tasks": [{"prompt": "a"}, {"prompt": "b"}]}
        told = (await gateway.request("POST", "/batches", json=common, headers=ADMIN)).json()
        assert [problem["field"] for problem in told["problems"]] == ["guidance"]
        many = {"model_name": "flux-dev", "tasks": [{}] * 50}
        told = (await gateway.request("POST", "/batches", json=many, headers=ADMIN)).json()
        assert told["error"] == "Task 0 missing required field: prompt"
        assert len(told["problems"]) == 20
        assert "more mistakes" in told["hint"]
    assert replicate_emulator.purchases == 0


async def test_an_unknown_name_in_a_query_is_refused_on_our_own_paths_alone(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await gateway.request("GET", "/batches?stauts=failed", headers=ADMIN)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_input")
        assert answer.json()["problems"][0]["field"] == "stauts"
        assert "cursor, limit" in answer.json()["error"]
        for path in ("/keys?x=1", "/usage?x=1", "/deliveries?x=1", "/budgets?x=1", "/global-semaphores?x=1"):
            assert (await gateway.request("GET", path, headers=ADMIN)).status == 400, path
            # Who may not ask is told no more than that.
            assert (await gateway.request("GET", path, headers={"X-API-Key": "nobody's"})).status == 401, path
        json_too = await gateway.request("POST", "/batches?name=x", json={}, headers=ADMIN)
        assert (json_too.status, json_too.json()["problems"][0]["field"]) == (400, "name")
        for path in (
            "/batches?_=17",
            "/health?utm_source=x",
            "/docs?x=1",
            "/v1/predictions?x=1",
            "/metrics?x=1",
        ):
            assert (await gateway.request("GET", path, headers=ADMIN)).status == 200, path
