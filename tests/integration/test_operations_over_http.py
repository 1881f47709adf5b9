"""Health, readiness, metrics and the document, asked for over HTTP."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import ADMIN, Answer, RunningGateway, running_gateway
from prometheus_client.parser import text_string_to_metric_families

import imagen
from imagen.emulator import EmulatorThread
from imagen.server.run import serving
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio

PUBLIC = {"FLASK_HOST": "0.0.0.0"}  # noqa: S104 - what a server does that others than this machine can reach
WEB_PAGE = {"Origin": "https://somewhere.example"}
AS_DOCUMENTED = {
    "status": "healthy",
    "service": "replicate-concurrent-generation",
    "version": "3.0 (External Semaphore Pattern + URL-Direct-Return)",
    "supported_models": ["flux-dev", "flux-kontext-max", "qwen-image"],
    "concurrency_status": {"concurrent_limit": 60, "requests_per_minute_limit": 600},
}


@pytest.fixture
async def gateway(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    """One that serves its own machine."""
    async with running_gateway(tmp_path, replicate_emulator) as one:
        yield one


@pytest.fixture
async def public(tmp_path: Path, replicate_emulator: EmulatorThread) -> AsyncIterator[RunningGateway]:
    """One that others can reach."""
    async with running_gateway(tmp_path, replicate_emulator, **PUBLIC) as one:
        yield one


async def break_database(gateway: RunningGateway) -> None:
    """Replace the database by something that is none."""
    await until(gateway.is_ready)  # what the start does with it is done
    gateway.app.database.close()
    for file in gateway.app.database.path.parent.glob("imagen.db*"):
        file.unlink()
    gateway.app.database.path.write_bytes(b"this is no database" * 100)


def values(answer: Answer) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(answer.body.decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


# --- health ----------------------------------------------------------------------------------------------


async def test_a_stranger_sees_exactly_the_documented_health(public: RunningGateway):
    answer = await public.request("GET", "/health")
    assert answer.status == 200
    assert answer.json() == AS_DOCUMENTED
    assert answer.headers["cache-control"] == "no-store"


async def test_the_admin_sees_how_everything_stands(public: RunningGateway):
    told = (await public.request("GET", "/health", headers=ADMIN)).json()
    assert {name: told[name] for name in AS_DOCUMENTED if name != "concurrency_status"} == {
        name: value for name, value in AS_DOCUMENTED.items() if name != "concurrency_status"
    }
    assert told["concurrency_status"] == {
        "concurrent_limit": 60, "requests_per_minute_limit": 600, "running": 0, "available": 60, "waiting": 0,
    }  # fmt: skip
    assert told["imagen_version"] == imagen.__version__
    assert told["models"] == len(public.app.catalog)
    assert told["database"] == "ok"
    assert told["account"]["ready"] == "ok"
    assert told["account"]["creates"]["kind"] == "unknown"
    assert told["account"]["calls"]["closed_for_seconds"] == 0.0
    assert told["under_way"] == 0
    assert 0 < told["uptime_seconds"] < 60


async def test_on_ones_own_machine_everybody_but_a_web_page_sees_it(gateway: RunningGateway):
    assert "database" in (await gateway.request("GET", "/health")).json()
    assert (await gateway.request("GET", "/health", headers=WEB_PAGE)).json() == AS_DOCUMENTED


async def test_with_a_wrong_key_it_is_a_stranger_who_asks(public: RunningGateway):
    answer = await public.request("GET", "/health", headers={"X-Admin-API-Key": "wrong"})
    assert (answer.status, answer.json()) == (200, AS_DOCUMENTED)


async def test_the_limits_are_those_of_the_settings(tmp_path: Path, replicate_emulator: EmulatorThread):
    limits = {"REPLICATE_CONCURRENT_LIMIT": "3", "REPLICATE_REQUESTS_PER_MINUTE": "30"}
    async with running_gateway(tmp_path, replicate_emulator, **PUBLIC, **limits) as gateway:
        told = (await gateway.request("GET", "/health")).json()["concurrency_status"]
    assert told == {"concurrent_limit": 3, "requests_per_minute_limit": 30}


async def test_what_runs_takes_a_place_while_it_runs(gateway: RunningGateway):
    made = asyncio.create_task(gateway.generate())
    seen = set()
    while not made.done():
        told = (await gateway.request("GET", "/health")).json()
        status = told["concurrency_status"]
        assert status["running"] + status["available"] == 60
        seen.add((told["under_way"], status["running"]))
        await asyncio.sleep(0.005)
    assert (await made).status == 200
    assert (1, 1) in seen
    told = (await gateway.request("GET", "/health")).json()
    assert (told["under_way"], told["concurrency_status"]["running"]) == (0, 0)


async def test_health_has_neither_secrets_nor_the_accounts_fingerprint(gateway: RunningGateway):
    for path in ("/health", "/ready", "/metrics"):
        body = (await gateway.request("GET", path, headers=ADMIN)).body.decode()
        assert "r8_" not in body
        assert ADMIN["X-Admin-API-Key"] not in body
        assert gateway.app.backends.own().account not in body


async def test_with_a_broken_database_it_is_alive_and_says_so(gateway: RunningGateway):
    await break_database(gateway)
    began = time.monotonic()
    answer = await gateway.request("GET", "/health")
    assert time.monotonic() - began < 4
    assert answer.status == 200
    told = answer.json()
    assert told["status"] == "healthy"
    assert "no database" in told["database"]
    assert "running" not in told["concurrency_status"]


async def test_a_database_that_hangs_does_not_hold_up_the_answer(gateway: RunningGateway):
    async def hang(account: str, *, now: float) -> None:
        await asyncio.sleep(30)

    gateway.app.limits.show = hang  # type: ignore[method-assign, assignment]
    began = time.monotonic()
    told = (await gateway.request("GET", "/health")).json()
    ready = await gateway.request("GET", "/ready")
    assert time.monotonic() - began < 15
    assert told["database"] == "it did not answer within 0.7 s"
    assert ready.json() == {"ready": False, "reason": "the database did not answer within 0.7 s"}


# --- ready -----------------------------------------------------------------------------------------------


async def test_it_is_ready_when_it_can_work(public: RunningGateway):
    answer = await public.request("GET", "/ready")
    assert (answer.status, answer.json()) == (200, {"ready": True})


async def test_who_comes_first_waits_until_the_database_is_made(
    tmp_path: Path, replicate_emulator: EmulatorThread
):
    """Another process that makes it, too, keeps this one waiting longer than an answer of the database may take."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "imagen.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.get_running_loop().call_later(1.2, fcntl.flock, lock, fcntl.LOCK_UN)
        async with running_gateway(tmp_path, replicate_emulator) as gateway:
            assert await gateway.is_ready()


async def test_without_a_database_it_is_not_ready_and_tells_no_path(gateway: RunningGateway, tmp_path: Path):
    await break_database(gateway)
    answer = await gateway.request("GET", "/ready")
    assert (answer.status, answer.json()) == (503, {"ready": False, "reason": "the database cannot be read"})
    assert int(answer.headers["retry-after"]) >= 1


async def test_without_a_token_it_is_not_ready_and_says_what_to_set(tmp_path: Path):
    async with running_gateway(tmp_path, None, **PUBLIC, REPLICATE_API_TOKEN="") as gateway:
        answer = await gateway.request("GET", "/ready")
        assert (await gateway.request("GET", "/health")).status == 200
    assert answer.status == 503
    assert answer.json() == {"ready": False, "reason": "not configured (set REPLICATE_API_TOKEN)"}


async def test_while_it_shuts_down_it_is_alive_and_not_ready(
    tmp_path: Path, replicate_emulator: EmulatorThread
):
    """Seen while something that is under way keeps it from ending."""
    given = {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "FLASK_PORT": "0",
        "REPLICATE_API_TOKEN": "r8_the_servers_own_token",
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
    }
    async with aiohttp.ClientSession() as session:
        async with serving(load_settings(environ=given, cwd=tmp_path), environ=given) as served:
            under_way = asyncio.create_task(asyncio.sleep(1.0))
            served.context.under_way.add(under_way)
            under_way.add_done_callback(served.context.under_way.discard)
            seen = asyncio.create_task(_seen_while_draining(session, served.url))
        told, ready = await seen
    assert (told["status"], told["draining"]) == ("healthy", True)
    assert ready == (503, {"ready": False, "reason": "the process is shutting down"})


async def _seen_while_draining(
    session: aiohttp.ClientSession, url: str
) -> tuple[dict[str, Any], tuple[int, dict[str, Any]]]:
    while True:
        async with session.get(f"{url}/health") as answer:
            told = await answer.json()
        if told["draining"]:
            async with session.get(f"{url}/ready") as answer:
                return told, (answer.status, await answer.json())
        await asyncio.sleep(0.01)


# --- metrics ---------------------------------------------------------------------------------------------


async def test_metrics_are_for_the_admin(public: RunningGateway):
    answer = await public.request("GET", "/metrics")
    assert answer.status == 401
    assert (await public.request("GET", "/metrics", headers={"X-Admin-API-Key": "wrong"})).status == 401
    assert (await public.request("GET", "/metrics", headers=ADMIN)).status == 200


async def test_metrics_of_ones_own_machine_are_for_its_programs_and_no_web_page(gateway: RunningGateway):
    assert (await gateway.request("GET", "/metrics")).status == 200
    assert (await gateway.request("GET", "/metrics", headers=WEB_PAGE)).status == 401


async def test_a_picture_leaves_its_traces_in_the_metrics(gateway: RunningGateway):
    assert (await gateway.generate()).status == 200
    semaphore = {"semaphore_id": "gpu", "limit": 2}
    assert (await gateway.request("POST", "/global-semaphores", json=semaphore, headers=ADMIN)).status == 200
    assert (await gateway.request("GET", "/made-up/1")).status == 404
    assert (await gateway.request("GET", "/made-up/2")).status == 404
    told = values(await gateway.request("GET", "/metrics"))
    model = "black-forest-labs/flux-dev"
    assert told["imagen_predictions_total", model, "succeeded"] == 1.0
    assert told["imagen_cost_usd_total", model] > 0
    assert told["imagen_prediction_seconds_count", model] == 1.0
    assert told["imagen_upstream_calls_total", "create", "201"] == 1.0
    assert told["imagen_wait_seconds_count",] == 1.0
    assert told["imagen_requests_total", "POST", "/generate", "200"] == 1.0
    assert told["imagen_requests_total", "GET", "other", "404"] == 2.0
    assert told["imagen_permits_limit", "account"] == 60.0
    assert told["imagen_permits_limit", "semaphore:gpu"] == 2.0
    assert told["imagen_permits_held", "account"] == 0.0
    assert told["imagen_database_up",] == 1.0


async def test_the_money_of_the_metrics_is_that_of_the_ledger(gateway: RunningGateway):
    for _ in range(3):
        assert (await gateway.generate()).status == 200
    entries = await gateway.app.ledger.entries()
    told = values(await gateway.request("GET", "/metrics"))
    cost = told["imagen_cost_usd_total", "black-forest-labs/flux-dev"]
    assert len(entries) == 3
    assert round(cost * 1_000_000) == sum(entry.cost.micros for entry in entries if entry.cost is not None)


async def test_metrics_go_on_without_a_database(gateway: RunningGateway):
    await break_database(gateway)
    told = values(await gateway.request("GET", "/metrics"))
    assert told["imagen_database_up",] == 0.0
    assert ("imagen_permits_held", "account") not in told
    assert told["imagen_under_way",] == 0.0


# --- the access log --------------------------------------------------------------------------------------


async def test_each_request_is_one_line_without_query_or_secret(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "imagen.access"):
        answer = await gateway.request("GET", "/health?token=hush-hush", headers=ADMIN)
        await gateway.generate(prompt="a very private prompt")
    lines = [record for record in caplog.records if record.name == "imagen.access"]
    assert [record.fields["route"] for record in lines] == ["/health", "/generate"]  # type: ignore[attr-defined]
    told = json.dumps([record.__dict__ for record in lines], default=str)
    for secret in ("hush-hush", "private prompt", ADMIN["X-Admin-API-Key"], "r8_"):
        assert secret not in told
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])


# --- the document and the page ---------------------------------------------------------------------------


async def test_the_document_is_served_and_only_once_to_those_who_have_it(public: RunningGateway):
    answer = await public.request("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["info"]["version"] == imagen.__version__
    assert {"/generate", "/generate-batch", "/global-semaphores", "/health", "/metrics"} <= set(
        document["paths"]
    )
    again = await public.request("GET", "/openapi.json", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


async def test_the_page_loads_nothing_from_elsewhere_and_could_not(public: RunningGateway):
    page = await public.request("GET", "/docs")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(loaded) >= 4
    assert not any("//" in address for address in loaded)
    assert not re.search(rb"<script>|<style>|\son\w+=", page.body)
    for address in loaded:
        assert (await public.request("GET", f"/{address}")).status == 200


async def test_the_parts_of_the_page_are_what_they_say(public: RunningGateway):
    kinds = {
        "swagger-ui-bundle.js": ("text/javascript", b"SwaggerUIBundle"),
        "swagger-ui.css": ("text/css", b".swagger-ui"),
        "favicon.png": ("image/png", b"PNG"),
        "start.js": ("text/javascript", b"validatorUrl: null"),
    }
    for name, (kind, part) in kinds.items():
        answer = await public.request("GET", f"/docs/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert part in answer.body


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "..%2f__init__.py", "%2e%2e%2f__init__.py", "redoc.standalone.js", "%00", "a" * 3000],
)
async def test_no_other_file_comes_out_of_the_page(public: RunningGateway, name: str):
    assert (await public.request("GET", f"/docs/{name}")).status == 404
