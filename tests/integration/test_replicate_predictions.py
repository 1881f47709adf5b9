"""Predictions in the words of Replicate's API, asked of the gateway over HTTP, each answer held against its document."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway import ADMIN, ADMIN_KEY, Answer, RunningGateway, leave, running_gateway

from imagen.domain.prediction import Status
from imagen.emulator import EmulatorThread
from replicate_document import complaints, find_document
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]

SCHNELL = "black-forest-labs/flux-schnell"
SDXL = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"
CREATE, ONE = "/predictions", "/predictions/{prediction_id}"
OF_MODEL = "/models/{model_owner}/{model_name}/predictions"
ENDS = ("succeeded", "failed", "canceled", "aborted")


def judged(answer: Answer, method: str, template: str) -> Answer:
    """The answer, which is as the document says, where that is here."""
    if find_document() is not None:
        kind = answer.headers.get("content-type", "").partition(";")[0]
        assert (
            complaints(method=method, template=template, status=answer.status, kind=kind, raw=answer.body)
            == []
        )
    return answer


class Caller:
    """Asks a gateway in Replicate's words."""

    def __init__(self, gateway: RunningGateway, headers: dict[str, str] | None = None) -> None:
        self.gateway = gateway
        self.headers = ADMIN if headers is None else headers

    async def create(
        self, version: str | None = SCHNELL, *, body: dict[str, Any] | None = None, **facts: Any
    ) -> Answer:
        told = {"version": version, "input": {"prompt": "a fox"}} | (body or {})
        answer = await self.gateway.request(
            "POST", "/v1/predictions", json=told, headers=self.headers | facts.pop("headers", {})
        )
        return judged(answer, "post", CREATE)

    async def get(self, prediction_id: str, **headers: str) -> Answer:
        answer = await self.gateway.request(
            "GET", f"/v1/predictions/{prediction_id}", headers=self.headers | headers
        )
        return judged(answer, "get", ONE)

    async def cancel(self, prediction_id: str) -> Answer:
        answer = await self.gateway.request(
            "POST", f"/v1/predictions/{prediction_id}/cancel", headers=self.headers
        )
        return judged(answer, "post", f"{ONE}/cancel")

    async def ended(self, prediction_id: str) -> dict[str, Any]:
        """As it stands once it has ended."""

        async def look() -> dict[str, Any] | None:
            found: dict[str, Any] = (await self.get(prediction_id)).json()
            return found if found["status"] in ENDS else None

        return await until(look)

    async def page(self, query: str = "") -> dict[str, Any]:
        answer = await self.gateway.request("GET", f"/v1/predictions{query}", headers=self.headers)
        return judged(answer, "get", CREATE).json()


async def test_a_prediction_is_made_and_told_as_the_service_tells_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        answer = await caller.create(headers={"Cancel-After": "1m30s"})
        made = answer.json()
        assert (answer.status, made["status"], made["output"]) == (201, "starting", None)
        assert (made["input"]["prompt"], made["model"], made["source"]) == ("a fox", SCHNELL, "api")
        assert made["urls"]["get"] == f"{gateway.url}/v1/predictions/{made['id']}"
        assert answer.headers["location"] == made["urls"]["get"]
        assert int(answer.headers["ratelimit-remaining"]) > 100
        over = await caller.ended(made["id"])
        assert (over["status"], over["error"], over["data_removed"]) == ("succeeded", None, False)
        assert over["output"][0].startswith("http")
        assert over["metrics"]["predict_time"] > 0
        assert over["completed_at"] >= over["created_at"]
        assert over["deadline"] > over["created_at"]
        seen = await caller.get(made["id"])
        assert (seen.headers["x-imagen-cost-usd"], seen.headers["x-imagen-prediction-id"]) == (
            "0.003",
            made["id"],
        )
        written = await gateway.app.store.get(made["id"])
        by_theirs = await caller.get(str(written.upstream_id))
        assert by_theirs.json() == over
    (entry,) = replicate_emulator.journal.entries(operation="predictions.create")
    assert entry.headers["cancel-after"].rstrip("s") in {"89", "90"}
    assert replicate_emulator.purchases == 1


async def test_whoever_waits_gets_the_end_in_one_answer(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        answer = await caller.create(headers={"Prefer": "wait=10"})
        assert (answer.status, answer.headers["preference-applied"]) == (201, "wait=10")
        assert (answer.json()["status"], len(answer.json()["output"])) == ("succeeded", 1)
        replicate_emulator.add_fault("slow", run_seconds=60.0)
        slow = await caller.create(headers={"Prefer": "wait=1"})
        assert (slow.status, slow.json()["output"]) == (202, None)
        assert slow.json()["status"] in {"starting", "processing"}
        stopped = await caller.cancel(slow.json()["id"])
        assert (stopped.status, stopped.json()["status"]) == (200, "canceled")
        again = await caller.cancel(slow.json()["id"])
        assert again.json()["status"] == "canceled"
    assert len(replicate_emulator.journal.entries(operation="predictions.cancel")) == 1


async def test_every_way_to_name_a_model(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    """By name, by name and version, by a version alone, by path, and by a deployment; at the root and twice below /v1."""
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller, body = Caller(gateway), {"input": {"prompt": "a fox"}}
        for version, model in ((SCHNELL, SCHNELL), (f"stability-ai/sdxl:{SDXL}", "stability-ai/sdxl")):
            answer = await caller.create(version, headers={"Prefer": "wait"})
            assert (answer.status, answer.json()["model"], answer.json()["status"]) == (
                201,
                model,
                "succeeded",
            )
        for path, template in (
            (f"/v1/models/{SCHNELL}/predictions", OF_MODEL),
            (f"/models/{SCHNELL}/predictions", OF_MODEL),
            ("/v1/v1/models/stability-ai/sdxl/predictions", OF_MODEL),
            (
                "/v1/deployments/emulated/flux-deployment/predictions",
                "/deployments/{deployment_owner}/{deployment_name}/predictions",
            ),
        ):
            headers = ADMIN | {"Prefer": "wait"}
            answer = judged(await gateway.request("POST", path, json=body, headers=headers), "post", template)
            assert (answer.status, answer.json()["status"]) == (201, "succeeded"), answer.body
            if "deployment" in path:
                assert answer.json()["deployment"] == "emulated/flux-deployment"
                assert answer.json()["model"] == "black-forest-labs/flux-dev"


async def test_a_version_alone_runs_and_is_known_from_then_on(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        answer = await caller.create(SDXL, headers={"Prefer": "wait"})
        assert (answer.status, answer.json()["status"], answer.json()["version"]) == (201, "succeeded", SDXL)
        assert answer.json()["model"] == "stability-ai/sdxl"
        wrong = {"input": {"prompt": "a fox", "no_such": 1}}
        refused = await caller.create(SDXL, body=wrong)
        assert refused.status == 422
        assert refused.json()["invalid_fields"][0]["field"] == "input.no_such"
    assert replicate_emulator.purchases == 1


async def test_what_does_not_fit_is_refused_in_the_words_of_the_service(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        cases: list[tuple[dict[str, Any], dict[str, str], str, str]] = [
            (
                {"model": "x"},
                {},
                "additional_property_not_allowed",
                "- Additional property model is not allowed\n",
            ),
            ({"input": 5}, {}, "invalid_type", "- input: Invalid type. Expected: object, given: integer\n"),
            (
                {"stream": "yes"},
                {},
                "invalid_type",
                "- stream: Invalid type. Expected: boolean, given: string\n",
            ),
            (
                {"webhook": "https://x.example", "webhook_events_filter": ["end"]},
                {},
                "enum",
                "webhook_events_filter.0",
            ),
            ({}, {"Prefer": "wait=0"}, "header", "Must be wait"),
            ({}, {"Prefer": "waiting"}, "header", "Must be wait"),
            ({}, {"Cancel-After": "4s"}, "header", "Must be from 5 seconds to 24 hours"),
            ({}, {"Cancel-After": "soon"}, "header", "Must be a duration"),
            ({"input": {}}, {}, "required", "- input.prompt"),
            ({"input": {"prompt": "a\0b"}}, {}, "invalid", "- input.prompt: it holds a NUL character"),
            ({"input": {"prompt": "x", "output_format": "bmp"}}, {}, "enum", "- input.output_format"),
        ]
        for body, headers, kind, detail in cases:
            answer = await caller.create(body=body, headers=headers)
            told = answer.json()
            assert (answer.status, told["status"], told["title"]) == (422, 422, "Input validation failed"), (
                told
            )
            assert answer.headers["content-type"] == "application/problem+json"
            assert told["invalid_fields"][0]["type"] == kind, told
            assert detail in told["detail"], told
            assert len(told["invalid_fields"]) == 1, told
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("PUT", "/v1/predictions", 405),
            ("DELETE", "/v1/predictions/x", 405),
            ("GET", "/v1", 404),
        ):
            nothing = await gateway.request(method, path, headers=ADMIN)
            told = nothing.json()
            assert (nothing.status, told["status"], told["code"]) == (status, status, "not_found"), told
            assert nothing.headers["content-type"] == "application/problem+json"
            assert path in told["detail"]
            assert ("allow" in nothing.headers) is (status == 405)
        ours = (await gateway.request("PUT", "/v1nothing", headers=ADMIN)).json()
        assert (ours["success"], ours["error"]) == (False, "PUT /v1nothing was not found")
        pictures = await gateway.request("GET", "/v1/images/generations", headers=ADMIN)
        assert (pictures.status, pictures.json()["error"]["type"]) == (405, "invalid_request_error")
        agents = await gateway.request("GET", "/mcp", headers=ADMIN)
        assert (agents.status, agents.json()["error"]["message"]) == (
            405,
            "GET /mcp is not supported. GET /docs lists what is.",
        )
        missing = await gateway.request("POST", "/v1/predictions", json={}, headers=ADMIN)
        assert [each["description"] for each in missing.json()["invalid_fields"]] == [
            "version is required", "input is required",
        ]  # fmt: skip
        unknown = await caller.create("nobody/no-such-model")
        assert unknown.status == 404
        for version in ("5" * 63, "nobody", f"stability-ai/sdxl:{'0' * 64}"):
            answer = await caller.create(version)
            assert (answer.status, answer.json()["title"]) == (422, "Invalid version or not permitted")
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /v1/predictions HTTP/1.1\r\nHost: {host}\r\nX-Admin-API-Key: {ADMIN_KEY}\r\n"
            f"Content-Length: {65 << 20}\r\n\r\n".encode()
        )
        assert b" 413 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        denied = await gateway.request(
            "POST", "/v1/predictions", json={}, headers={"Authorization": "Bearer imk_wrong"}
        )
        assert (denied.status, denied.json()["title"]) == (401, "Unauthenticated")
    assert replicate_emulator.purchases == 0


async def test_what_the_service_refuses_is_told_to_whoever_waits_and_is_an_end_for_others(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        replicate_emulator.add_fault("payment_required", times=2, operation="predictions.create")
        refused = await caller.create(headers={"Prefer": "wait"})
        assert (refused.status, refused.json()["title"]) == (402, "Insufficient credit")
        assert ". Add credit at" in refused.json()["detail"]
        assert ".. Add" not in refused.json()["detail"]
        made = (await caller.create()).json()
        over = await caller.ended(made["id"])
        assert (over["status"], over["output"]) == ("failed", None)
        assert "credit" in over["error"]
        replicate_emulator.clear_faults()
        failed = await caller.create(
            body={"input": {"prompt": "a fox [fault:fail preset=nsfw]"}}, headers={"Prefer": "wait"}
        )
        assert (failed.status, failed.json()["status"]) == (201, "failed")
        assert "NSFW" in failed.json()["error"]
    assert replicate_emulator.purchases == 1


async def test_forms_that_clients_do_not_survive_are_adapted_and_that_is_told(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        replicate_emulator.add_fault("never_starts")
        made = (await caller.create(headers={"Cancel-After": "5"})).json()
        await until(lambda: replicate_emulator.purchases == 1)
        replicate_emulator.clock.advance(6)
        over = await caller.ended(made["id"])
        assert over["status"] == "canceled"
        seen = await caller.get(made["id"])
        assert seen.headers["x-imagen-adapted"] == "status=aborted->canceled"
        exact = await caller.get(made["id"], **{"X-Imagen-Exact": "1"})
        assert exact.json()["status"] == "aborted"
        assert "x-imagen-adapted" not in exact.headers
        replicate_emulator.clear_faults()
        replicate_emulator.add_fault("early_output")
        early = await caller.create(
            headers={"Prefer": "wait"}, body={"input": {"prompt": "x", "num_outputs": 1}}
        )
        assert (early.status, early.json()["status"]) == (201, "succeeded")
        assert early.json()["output"]
        assert early.headers["x-imagen-adapted"] == "status=processing->succeeded"
        exact = await caller.get(early.json()["id"], **{"X-Imagen-Exact": "1"})
        assert (exact.json()["status"], exact.json()["output"]) == ("processing", early.json()["output"])


async def test_files_inside_the_answer_are_there_for_an_hour_and_kept_ones_for_good(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("data_uri_output")
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        made = (await caller.create(headers={"Prefer": "wait"})).json()
        (picture,) = made["output"]
        assert picture.startswith("data:image/")
        assert (await gateway.app.store.get(made["id"])).output == ("data:",)
        gateway.app.fresh._outputs.clear()
        assert (await caller.get(made["id"])).json()["output"] == [picture]  # looked at once more
        gateway.app.fresh._outputs.clear()
        replicate_emulator.clock.advance(4000)
        gone = (await caller.get(made["id"])).json()
        assert (gone["status"], gone["output"], gone["data_removed"]) == ("succeeded", None, True)
        looks = len(replicate_emulator.journal.entries(operation="predictions.get"))
        assert (await caller.get(made["id"])).json() == gone  # remembered, and not asked for again
        assert len(replicate_emulator.journal.entries(operation="predictions.get")) == looks
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_PICTURES__KEEP="true") as gateway:
        caller = Caller(gateway)
        replicate_emulator.add_fault("data_uri_output")
        made = (await caller.create(headers={"Prefer": "wait"})).json()
        gateway.app.fresh._outputs.clear()
        (kept,) = (await caller.get(made["id"])).json()["output"]
        assert kept.startswith(f"{gateway.url}/pictures/pic_")
        async with gateway.session.get(kept) as response:
            assert (response.status, len(await response.read()) > 100) == (200, True)


async def test_the_list_has_what_the_caller_may_see_of_every_face(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = [await gateway.request("POST", "/keys", json={"name": name}, headers=ADMIN) for name in "ab"]
        mine, theirs = (Caller(gateway, {"Authorization": f"Bearer {one.json()['key']}"}) for one in made)
        first = (await mine.create(headers={"Prefer": "wait"})).json()["id"]
        plain = (await gateway.generate(headers=mine.headers)).json()["prediction_id"]
        batch = await gateway.request(
            "POST",
            "/generate-batch",
            headers=mine.headers,
            json={"tasks": [{"model_name": SCHNELL, "prompt": "b"}]},
        )
        assert batch.status == 200, batch.body
        replicate_emulator.add_fault("slow", run_seconds=60.0)
        running = (await mine.create()).json()["id"]
        page = await mine.page()
        ids = [one["id"] for one in page["results"]]
        assert len(ids) == 4
        assert [ids[0], ids[2], ids[3]] == [running, plain, first]
        assert (page["next"], page["previous"]) == (None, None)
        assert page["results"][0]["status"] in {"starting", "processing"}
        assert page["results"][3]["output"]
        assert (await theirs.page())["results"] == []
        for caller in (theirs, Caller(gateway, {"Authorization": "Bearer r8_of_somebody"})):
            assert (await caller.get(first)).status == 404
            assert (await caller.cancel(running)).status == 404
        assert len((await Caller(gateway).page())["results"]) == 4
        assert (await mine.get(plain)).json()["status"] == "succeeded"
        assert (await mine.page("?source=web"))["results"] == []
        when = page["results"][2]["created_at"]
        assert [one["id"] for one in (await mine.page(f"?created_after={when}"))["results"]] == ids[:3]
        assert [one["id"] for one in (await mine.page(f"?created_before={when}"))["results"]] == ids[3:]
        for query, status in (("?created_after=x", 422), ("?source=mail", 422), ("?cursor=x", 404)):
            answer = await gateway.request("GET", f"/v1/predictions{query}", headers=mine.headers)
            assert (answer.status, answer.json()["status"]) == (status, status)
        await mine.cancel(running)


async def test_the_list_goes_on_page_by_page_in_both_directions(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.server.replicate.listing.PAGE_SIZE", 2)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        made = [(await caller.create(headers={"Prefer": "wait"})).json()["id"] for _ in range(5)]
        pages, query = [], ""
        while True:
            page = await caller.page(query)
            pages.append([one["id"] for one in page["results"]])
            if page["next"] is None:
                break
            assert page["next"].startswith(f"{gateway.url}/v1/predictions?")
            query = f"?{page['next'].partition('?')[2]}"
        assert pages == [made[:2:-1], made[2:0:-1], made[:1]]
        back = await caller.page(f"?{page['previous'].partition('?')[2]}")
        assert [one["id"] for one in back["results"]] == pages[1]
        first = await caller.page(f"?{back['previous'].partition('?')[2]}")
        assert [one["id"] for one in first["results"]] == pages[0]
        assert first["previous"] is None


async def test_the_list_has_what_ended_without_being_bought_in_its_place(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever polls the list loses none that was promised: canceled or out of time in line, or refused by a budget."""
    monkeypatch.setattr("imagen.server.replicate.listing.PAGE_SIZE", 2)
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="1") as gateway:
        made = await gateway.request("POST", "/keys", json={"name": "mine"}, headers=ADMIN)
        mine, others = Caller(gateway, {"Authorization": f"Bearer {made.json()['key']}"}), Caller(gateway)
        running = (await mine.create()).json()["id"]
        await until(lambda: replicate_emulator.purchases == 1)
        in_line = [(await mine.create()).json()["id"] for _ in range(3)]
        late = (await mine.create(headers={"Cancel-After": "5"})).json()["id"]
        hidden = (await others.create()).json()["id"]
        for one in in_line[:2]:
            assert (await mine.cancel(one)).json()["status"] == "canceled"
        await others.cancel(hidden)
        budget = {"usd": 0.003, "per": "day", "all": True}
        assert (await gateway.request("PUT", "/budgets/all", json=budget, headers=ADMIN)).status < 300
        assert (await mine.ended(late))["status"] == "canceled"
        await mine.cancel(running)
        poor = await mine.ended(in_line[2])
        assert (poor["status"], "budget" in poor["error"]) == ("failed", True)
        expected = [late, *in_line[::-1], running]
        assert [one["id"] for one in (await listed(mine))] == expected
        assert [one["id"] for one in (await listed(mine, "previous"))] == expected
        assert [one["id"] for one in (await listed(others))] == [hidden, *expected]
        for shown in await listed(mine):
            assert (await mine.get(shown["id"])).json() == shown
    assert replicate_emulator.purchases == 1


async def test_the_list_has_what_the_account_refused(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    own = {"Authorization": "Bearer r8_their_very_own"}
    for status in (401, 402):
        replicate_emulator.add_fault("status", operation="predictions.create", status=status)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway, own)
        made = [(await caller.create()).json()["id"] for _ in range(3)]
        ends = [await caller.ended(one) for one in made]
        assert sorted(end["status"] for end in ends) == ["failed", "failed", "succeeded"]
        told = " ".join(end["error"] or "" for end in ends)
        assert ("credit" in told, "token is missing, wrong" in told) == (True, True)
        assert [one["id"] for one in (await caller.page())["results"]] == sorted(made, reverse=True)
        assert (await Caller(gateway, {"Authorization": "Bearer r8_other"}).page())["results"] == []
    assert replicate_emulator.purchases == 1


async def listed(caller: Caller, side: str = "next") -> list[dict[str, Any]]:
    """Everything, newest first, read page by page towards the oldest, or from the oldest back."""
    pages = [await caller.page()]
    while (link := pages[-1]["next"]) is not None:
        pages.append(await caller.page(f"?{link.partition('?')[2]}"))
    if side == "previous":
        pages = [await caller.page(f"?{pages[-2]['next'].partition('?')[2]}")]
        while (link := pages[0]["previous"]) is not None:
            pages.insert(0, await caller.page(f"?{link.partition('?')[2]}"))
    return [one for page in pages for one in page["results"]]


async def test_what_waits_with_us_is_starting_and_a_deadline_counts_for_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="1") as gateway:
        caller = Caller(gateway)
        first = (await caller.create()).json()["id"]
        await until(lambda: replicate_emulator.purchases == 1)
        waiting = (await caller.create()).json()["id"]
        short = (await caller.create(headers={"Cancel-After": "5"})).json()["id"]
        page = await caller.page()
        assert {one["id"]: one["status"] for one in page["results"]}[waiting] == "starting"
        assert (await caller.cancel(waiting)).json()["status"] == "canceled"
        over = await caller.ended(short)
        assert (over["status"], over["output"]) == ("canceled", None)
        assert (await gateway.app.batches.places([short]))[short][1].code == "prediction_aborted"
        await caller.cancel(first)
    assert replicate_emulator.purchases == 1


async def test_the_same_create_twice_is_bought_once(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller, headers = Caller(gateway), {"Idempotency-Key": "one"}
        first = await caller.create(headers=headers)
        again = await caller.create(headers=headers | {"Prefer": "wait"})
        assert first.json()["id"] == again.json()["id"]
        assert again.headers["idempotent-replayed"] == "true"
        other = await caller.create(body={"input": {"prompt": "a hare"}}, headers=headers)
        assert other.status == 409
    assert replicate_emulator.purchases == 1


async def test_at_the_root_a_body_tells_whose_words_they_are(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        body = {"version": SCHNELL, "input": {"prompt": "a fox"}}
        made = await gateway.request("POST", "/predictions", json=body, headers=ADMIN | {"Prefer": "wait"})
        judged(made, "post", CREATE)
        assert made.json()["status"] == "succeeded"
        seen = await gateway.request("GET", f"/predictions/{made.json()['id']}", headers=ADMIN)
        assert judged(seen, "get", ONE).json()["output"] == made.json()["output"]
        stopped = await gateway.request("POST", f"/predictions/{made.json()['id']}/cancel", headers=ADMIN)
        assert judged(stopped, "post", f"{ONE}/cancel").json()["status"] == "succeeded"
        wrong = await gateway.request("POST", "/predictions", json=body | {"x": 1}, headers=ADMIN)
        assert (wrong.status, wrong.json()["title"]) == (422, "Input validation failed")
        ours = await gateway.request(
            "POST", "/predictions", json={"model_name": SCHNELL, "prompt": "a fox"}, headers=ADMIN
        )
        assert (ours.status, ours.json()["status"]) == (202, "queued")
        seen = await gateway.request("GET", f"/predictions/{ours.json()['id']}", headers=ADMIN)
        assert "cost_usd" in seen.json()
        page = await gateway.request("GET", "/predictions", headers=ADMIN)
        assert {one["id"] for one in judged(page, "get", CREATE).json()["results"]} == {
            made.json()["id"], ours.json()["id"],
        }  # fmt: skip


async def test_at_the_root_ids_of_the_service_keys_and_strangers_are_told_apart_too(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def keyed(route: str) -> dict[str, str]:
            facts = {"name": route.strip("/"), "routes": [route]}
            made = await gateway.request("POST", "/keys", json=facts, headers=ADMIN)
            return {"Authorization": f"Bearer {made.json()['key']}"}

        theirs, ours = await keyed("/v1"), await keyed("/predictions")
        body = {"version": SCHNELL, "input": {"prompt": "a fox"}}
        made = await gateway.request("POST", "/predictions", json=body, headers=theirs | {"Prefer": "wait"})
        assert judged(made, "post", CREATE).json()["status"] == "succeeded"
        assert (await gateway.request("POST", "/predictions", json=body, headers=ours)).status == 403
        wish = {"model_name": SCHNELL, "prompt": "a fox"}
        assert (await gateway.request("POST", "/predictions", json=wish, headers=theirs)).status == 403
        assert (await gateway.request("POST", "/predictions", json=wish, headers=ours)).status == 202
        upstream = (await gateway.app.store.get(made.json()["id"])).upstream_id
        seen = await gateway.request("GET", f"/predictions/{upstream}", headers=theirs)
        assert judged(seen, "get", ONE).json()["id"] == made.json()["id"]
        short = await gateway.request("POST", "/predictions", json={"version": SCHNELL}, headers=ADMIN)
        assert judged(short, "post", CREATE).json()["title"] == "Input validation failed"
        for method, path in (("POST", "/predictions"), ("GET", f"/predictions/{upstream}")):
            wrong = {"Authorization": "Bearer imk_nobodys"}
            stranger = await gateway.request(method, path, json=body, headers=wrong)
            assert (stranger.status, stranger.json()["title"]) == (401, "Unauthenticated")
        stranger = await gateway.request("POST", "/predictions", json=body, headers={"X-API-Key": "imk_x"})
        assert (stranger.status, stranger.json()["success"]) == (401, False)


async def test_what_was_made_elsewhere_is_asked_for_at_the_service_by_its_owner_alone(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        async with gateway.session.post(
            f"{replicate_emulator.url}/v1/predictions",
            json={"version": SCHNELL, "input": {"prompt": "a hare"}},
            headers={"Authorization": "Bearer r8_the_servers_own_token"},
        ) as response:
            elsewhere = (await response.json())["id"]
        found = await Caller(gateway).get(elsewhere)
        assert (found.status, found.json()["id"]) == (200, elsewhere)
        assert found.json()["urls"]["get"] == f"{gateway.url}/v1/predictions/{elsewhere}"
        key = (await gateway.request("POST", "/keys", json={"name": "shop"}, headers=ADMIN)).json()["key"]
        hidden = await Caller(gateway, {"Authorization": f"Bearer {key}"}).get(elsewhere)
        assert hidden.status == 404


async def test_a_key_for_some_models_runs_their_versions_and_no_others(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def keyed(*models: str) -> Caller:
            facts = {"name": f"k{len(models[0])}", "models": list(models)}
            made = await gateway.request("POST", "/keys", json=facts, headers=ADMIN)
            return Caller(gateway, {"Authorization": f"Bearer {made.json()['key']}"})

        sdxl, schnell = await keyed("stability-ai/sdxl"), await keyed(SCHNELL)
        assert (await sdxl.create(SDXL, headers={"Prefer": "wait"})).json()["status"] == "succeeded"
        assert (await schnell.create(SDXL)).status == 403
        assert (await sdxl.create(SCHNELL)).status == 403
        asked = len(replicate_emulator.journal.entries())
        assert (await schnell.create(SDXL)).status == 403
        assert len(replicate_emulator.journal.entries()) == asked
    assert replicate_emulator.purchases == 1


async def test_the_output_is_streamed_to_whoever_has_its_address(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        replicate_emulator.add_fault("slow", run_seconds=1.0)
        made = (await caller.create(body={"stream": True})).json()
        async with gateway.session.get(made["urls"]["stream"]) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            told = (await response.read()).decode()
        over = await caller.ended(made["id"])
        assert f"id: 1\nevent: output\ndata: {over['output'][0]}\n\n" in told
        assert told.endswith("event: done\ndata: {}\n\n")
        later = {"Last-Event-ID": "1", **ADMIN}
        path = f"/v1/predictions/{made['id']}/stream"
        again = (await gateway.request("GET", path, headers=later)).body.decode()
        assert "event: output" not in again
        assert "event: done" in again
        for shown in ("?key=wrong", ""):
            stranger = await gateway.request("GET", path + shown, headers={"Origin": "https://x.example"})
            assert stranger.status == 401
        failed = (await caller.create(body={"input": {"prompt": "x [fault:fail preset=nsfw]"}})).json()
        async with gateway.session.get(failed["urls"]["stream"]) as response:
            told = (await response.read()).decode()
        assert "event: error" in told
        assert told.endswith('event: done\ndata: {"reason":"error"}\n\n')


async def test_readers_of_a_stream_share_what_is_loaded_for_them(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=3.5)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        made = (await Caller(gateway).create()).json()
        loaded: list[str] = []
        get, places = gateway.app.store.get, gateway.app.batches.places

        async def counted_get(wanted: str) -> Any:
            loaded.append("row")
            return await get(wanted)

        async def counted_places(wanted: Any, **scope: Any) -> Any:
            loaded.append("order")
            return await places(wanted, **scope)

        gateway.app.store.get, gateway.app.batches.places = counted_get, counted_places  # type: ignore[method-assign]
        url = made["urls"]["stream"].removeprefix(gateway.url)
        read = [gateway.request("GET", url) for _ in range(10)]
        for answer in await asyncio.gather(*read):
            assert b"event: output" in answer.body
            assert answer.body.rstrip().endswith(b"event: done\ndata: {}")
        assert len(loaded) < 2 * 10  # each of them, each second, was 100


async def test_a_create_that_is_sent_again_when_its_connection_broke_is_bought_once(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """As official clients do by themselves; once somebody has the answer, the same body is a new wish."""
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        await leave(caller.create(headers={"Prefer": "wait"}), replicate_emulator, purchases=1)
        await until(lambda: gateway.context.orphans)
        other = await caller.create(body={"input": {"prompt": "a hare"}}, headers={"Prefer": "wait"})
        again = await caller.create(headers={"Prefer": "wait"})
        assert (again.status, again.json()["status"]) == (201, "succeeded")
        assert again.headers["idempotent-replayed"] == "true"
        assert other.json()["id"] != again.json()["id"]
        assert replicate_emulator.purchases == 2
        new = await caller.create(headers={"Prefer": "wait"})
        assert new.json()["id"] != again.json()["id"]
    assert replicate_emulator.purchases == 3


async def left(gateway: RunningGateway, prompt: str, *, headers: str = "") -> None:
    """A create whose connection breaks before its answer, maybe before it has been read."""
    body = json.dumps({"version": SCHNELL, "input": {"prompt": prompt}})
    parts = urlsplit(gateway.url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Admin-API-Key: {ADMIN_KEY}\r\n{headers}"
    )
    told = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    writer.write(told.encode())
    await writer.drain()
    writer.close()


async def test_a_create_that_is_sent_again_at_once_is_bought_once_held_or_not(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        for number, headers in enumerate(("", "Prefer: wait\r\n") * 3):
            prompt = f"fox {number}"
            for _ in range(2):
                await left(gateway, prompt, headers=headers)
            again = await caller.create(body={"input": {"prompt": prompt}}, headers={"Prefer": "wait"})
            assert again.json()["status"] == "succeeded"
    assert replicate_emulator.purchases == 6


async def test_a_client_that_counts_its_repetitions_gets_what_it_has_even_after_an_answer(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    def count(times: int) -> dict[str, str]:
        return {"Prefer": "wait", "x-stainless-retry-count": str(times)}

    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        first = (await caller.create(headers=count(0))).json()["id"]
        again = await caller.create(headers=count(1))
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (first, "true")
        assert (await caller.create(headers=count(2))).json()["id"] == first
        assert (await caller.create(headers=count(0))).json()["id"] != first
        failed = {"input": {"prompt": "x [fault:fail preset=nsfw]"}}
        lost = (await caller.create(body=failed, headers=count(0))).json()["id"]
        assert (await caller.create(body=failed, headers=count(1))).json()["id"] != lost
    assert replicate_emulator.purchases == 4


async def test_what_was_left_is_not_given_to_another_wish_nor_when_it_is_dead(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        for headers in ({"Cancel-After": "10s"}, {"X-Imagen-Exact": "1"}):
            purchases = replicate_emulator.purchases
            replicate_emulator.add_fault("slow", run_seconds=60.0, times=2)
            held = caller.create(headers={"Prefer": "wait"})
            await leave(held, replicate_emulator, purchases=purchases + 1)
            await until(lambda: gateway.context.orphans)
            other = await caller.create(headers=headers)
            assert "idempotent-replayed" not in other.headers
            await until(lambda before=purchases: replicate_emulator.purchases == before + 2)
            for one in (await caller.page())["results"]:
                await caller.cancel(one["id"])
            again = await caller.create(headers={"Prefer": "wait"})
            assert (again.json()["status"], "idempotent-replayed" in again.headers) == ("succeeded", False)


async def test_a_prediction_on_a_token_of_ones_own_goes_on_when_that_is_shown_again(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    own = {"Authorization": "Bearer r8_their_very_own"}
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        made = (await Caller(gateway, own).create()).json()["id"]
        await until(lambda: replicate_emulator.purchases == 1)
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        assert (await Caller(gateway, own).ended(made))["status"] == "succeeded"
        long = (await Caller(gateway, own).create()).json()["id"]
        await until(lambda: replicate_emulator.purchases == 2)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await Caller(gateway, own).cancel(long)).json()["status"] == "canceled"
    assert replicate_emulator.purchases == 2


async def test_the_list_has_each_prediction_once_whatever_was_tried_for_it(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.server.replicate.listing.PAGE_SIZE", 2)
    replicate_emulator.add_fault("fail", preset="interrupted", times=8)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        made = [(await caller.create(body={"input": {"prompt": f"{n}"}})).json()["id"] for n in range(4)]
        for one in made:
            assert (await caller.ended(one))["status"] == "succeeded"
        tasks = {"tasks": [{"model_name": "flux-schnell", "prompt": f"task {n}"} for n in range(4)]}
        batch = (await gateway.request("POST", "/batches", json=tasks, headers=ADMIN)).json()["id"]
        await until(lambda: replicate_emulator.purchases == 16)
        await gateway.app.batches.ended(batch)
        items = await gateway.app.batches.items(batch)
        seen, query, pages = list[str](), "", 0
        while pages < 20:
            page, pages = await caller.page(query), pages + 1
            seen += [one["id"] for one in page["results"]]
            if page["next"] is None:
                break
            query = f"?{page['next'].partition('?')[2]}"
        assert sorted(seen) == sorted([*made, *(item.predictions[0] for item in items)])
        assert seen == sorted(seen, reverse=True)
        monkeypatch.setattr("imagen.server.replicate.listing._MOST_BYTES", 0)
        page = await caller.page()
        assert [one["id"] for one in page["results"]] == seen[:1]
        assert page["next"] is not None


async def test_what_was_taken_on_outlives_the_caller_and_the_process(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=1.5)
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_SERVER__DRAIN="0.1") as gateway:
        caller = Caller(gateway)
        await leave(caller.create(headers={"Prefer": "wait"}), replicate_emulator, purchases=1)
        (found,) = (await caller.page())["results"]
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert (await Caller(gateway).ended(found["id"]))["status"] == Status.SUCCEEDED
    assert replicate_emulator.purchases == 1


async def test_a_prediction_that_runs_shows_its_progress(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=6.0)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        made = (await caller.create("black-forest-labs/flux-dev")).json()

        async def look() -> dict[str, Any] | None:
            found: dict[str, Any] = (await caller.get(made["id"])).json()
            return found if "it/s" in found["logs"] else None

        seen = await until(look)
        assert (seen["status"], seen["output"]) == ("processing", None)
        assert "started_at" in seen
        listed = (await caller.page())["results"][0]
        assert listed["status"] == "processing"
        await caller.cancel(made["id"])


async def test_models_that_make_no_pictures_run_too(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """Text in one piece and in many, streamed too, and a model without a prompt."""
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway)
        llama = {"input": {"prompt": "Tell me of a fox", "max_tokens": 40}}
        made = await caller.create("meta/meta-llama-3-8b-instruct", body=llama, headers={"Prefer": "wait"})
        told = made.json()
        assert (made.status, told["status"], told["error"]) == (201, "succeeded", None)
        assert len(told["output"]) > 1
        assert all(isinstance(part, str) for part in told["output"])
        assert (await caller.get(told["id"])).json()["output"] == told["output"]
        async with gateway.session.get(told["urls"]["stream"]) as response:
            lines = (await response.read()).decode()
        data = [
            "\n".join(line.removeprefix("data: ") for line in event.splitlines() if line.startswith("data: "))
            for event in lines.split("\n\n")
            if "event: output" in event
        ]
        assert data == told["output"]
        hello = await gateway.request("GET", "/v1/models/replicate/hello-world", headers=ADMIN)
        version = hello.json()["latest_version"]["id"]
        said = await caller.create(version, body={"input": {"text": "fox"}}, headers={"Prefer": "wait"})
        assert (said.json()["status"], "fox" in said.json()["output"]) == ("succeeded", True)
        picture = "data:image/png;base64," + "iVBORw0KGgo" * 10_000
        larger = await caller.create(
            "nightmareai/real-esrgan", body={"input": {"image": picture}}, headers={"Prefer": "wait"}
        )
        assert (larger.json()["status"], larger.json()["input"]["image"]) == ("succeeded", picture)
        assert larger.json()["output"].startswith("http")
        listed = (await caller.page())["results"][0]["input"]["image"]
        assert listed == "data:image/png;base64,…"


async def test_a_token_of_ones_own_pays_and_is_kept_nowhere(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        caller = Caller(gateway, {"Authorization": "Token r8_their_very_own"})
        made = await caller.create(headers={"Prefer": "wait"})
        assert (made.status, made.json()["status"]) == (201, "succeeded")
        assert [one["id"] for one in (await caller.page())["results"]] == [made.json()["id"]]
        written = await gateway.app.store.get(made.json()["id"])
        assert written.account != gateway.app.backends.own().account
        assert b"r8_their_very_own" not in (tmp_path / "data" / "imagen.db").read_bytes()
        other = Caller(gateway, {"Authorization": "Bearer r8_of_another"})
        assert (await other.page())["results"] == []
        hidden = (await Caller(gateway).create()).json()["id"]
        owner = Caller(gateway, {"Authorization": "Bearer r8_the_servers_own_token"})
        await until(lambda: replicate_emulator.purchases == 2)
        assert ((await owner.get(hidden)).status, (await owner.page())["results"]) == (404, [])


async def test_eighty_at_once_pass_no_limit_and_all_end(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator, IMAGEN_LIMITS__CONCURRENT="20") as gateway:
        caller = Caller(gateway)
        answers = await asyncio.gather(*(caller.create(headers={"Prefer": "wait=60"}) for _ in range(80)))
        assert {answer.json()["status"] for answer in answers} == {"succeeded"}
        assert len({answer.json()["id"] for answer in answers}) == 80
    assert replicate_emulator.purchases == 80
    assert replicate_emulator.state()["max_running"] <= 20


async def test_a_budget_without_room_answers_as_an_account_without_credit(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        budget = {"usd": 0.001, "per": "day", "all": True}
        made = await gateway.request("PUT", "/budgets/all", json=budget, headers=ADMIN)
        assert made.status < 300, made.body
        refused = await Caller(gateway).create()
        told = refused.json()
        assert (refused.status, told["title"], told["budget"]) == (402, "Insufficient credit", "all")
        assert ".." not in told["detail"]
    assert replicate_emulator.purchases == 0
