"""`GET /usage` and `/usage/entries`: who sees what, in JSON and CSV, and the same through `--server`'s own client."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from gateway import ADMIN, ADMIN_KEY, RunningGateway, running_gateway

from fakes.make import make_entry
from imagen.domain.caller import Caller
from imagen.domain.money import Usd
from imagen.domain.secret import Secret
from imagen.domain.usage import UsageEntry, UsageQuery
from imagen.emulator import EmulatorThread
from imagen.remote.connection import Connection
from imagen.remote.usage import RemoteUsage
from imagen.service.usage import ENTRY_FIELDS, GROUP_FIELDS, entry_of, report_usage

pytestmark = pytest.mark.anyio

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
TOKEN = {"X-Replicate-Api-Token": "r8_somebody_elses_own_token"}


@asynccontextmanager
async def filled(
    tmp_path: Path, emulator: EmulatorThread | None = None, **environ: str
) -> AsyncIterator[tuple[RunningGateway, dict[str, str]]]:
    """A gateway whose ledger has entries of a key, of another one, of a token and of nobody; and the first key."""
    async with running_gateway(tmp_path, emulator, **environ) as gateway:
        shop, plain = await gateway.app.keys.create("web-shop", routes=["/generate"])
        other, _ = await gateway.app.keys.create("other")
        token = Caller(name=f"token:{Secret(TOKEN['X-Replicate-Api-Token']).fingerprint()[:8]}")
        whose: tuple[dict[str, Any], ...] = (
            {"caller": "web-shop", "key": shop.id, "cost": Usd(3000)},
            {
                "caller": "web-shop",
                "key": shop.id,
                "cost": None,
                "latency_ms": 9000,
                "created_at": AT - timedelta(days=3),
            },
            {"caller": "other", "key": other.id, "cost": Usd(40_000)},
            {"caller": token.name, "cost": Usd(500)},
            {"caller": "=cmd|' /C calc'!A0", "cost": Usd(1)},
        )
        entries = [
            make_entry(number, **{"created_at": AT + timedelta(minutes=number)} | facts)
            for number, facts in enumerate(whose)
        ]
        await gateway.app.ledger.record(entries)
        yield gateway, {"X-API-Key": plain.reveal()}


async def test_the_admin_sees_all_added_up(tmp_path: Path) -> None:
    async with filled(tmp_path) as (gateway, _):
        answer = await gateway.request("GET", "/usage?by=caller", headers=ADMIN)
        told = answer.json()
        by_key = (await gateway.request("GET", "/usage?by=key", headers=ADMIN)).json()
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert [group["name"] for group in told["groups"]][:2] == ["other", "web-shop"]
    assert (told["by"], told["days"], told["since"], told["until"]) == ("caller", "UTC", None, None)
    total = told["total"]
    assert (total["predictions"], total["cost_usd"], total["unpriced"]) == (5, 0.043501, 1)
    assert (total["p50_seconds"], total["p95_seconds"]) == (1.2, 9.0)
    assert {group["name"] for group in by_key["groups"]} == {"other", "web-shop", "(none)"}
    assert [group["key_id"] is None for group in by_key["groups"]] == [
        group["name"] == "(none)" for group in by_key["groups"]
    ]


async def test_a_key_sees_its_own_whatever_paths_it_is_good_for_and_whatever_it_asks(tmp_path: Path) -> None:
    async with filled(tmp_path) as (gateway, key):
        refused = await gateway.request("GET", "/usage?by=caller&key=other&caller=other", headers=key)
        told = (await gateway.request("GET", "/usage?by=caller", headers=key)).json()
        page = (await gateway.request("GET", "/usage/entries", headers=key)).json()
    assert [problem["field"] for problem in refused.json()["problems"]] == ["key", "caller"]
    assert [group["name"] for group in told["groups"]] == ["web-shop"]
    assert told["total"]["predictions"] == 2
    assert {entry["caller"] for entry in page["entries"]} == {"web-shop"}
    assert len(page["entries"]) == 2


async def test_callers_with_a_token_of_their_own_see_theirs_once_it_has_proven_good(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with filled(tmp_path, replicate_emulator) as (gateway, _):
        told = (await gateway.request("GET", "/usage?by=caller", headers=TOKEN)).json()
        refused = await gateway.request(
            "GET", "/usage", headers={"X-Replicate-Api-Token": "r8_an_invalid_token"}
        )
    assert (told["total"]["predictions"], told["total"]["cost_usd"]) == (1, 0.0005)
    assert (refused.status, refused.json()["error"]) == (401, "Invalid Replicate API token in credentials")


async def test_whoever_shows_nothing_sees_what_was_made_for_nobody_with_a_key(tmp_path: Path) -> None:
    async with filled(tmp_path, IMAGEN_CALLER="web-shop") as (gateway, _):
        told = (await gateway.request("GET", "/usage")).json()
        await gateway.app.ledger.record([make_entry(77, caller="web-shop", created_at=AT)])
        more = (await gateway.request("GET", "/usage")).json()
        proxied = await gateway.request("GET", "/usage", headers={"X-Forwarded-For": "10.0.0.1"})
        wrong = await gateway.request("GET", "/usage/entries", headers={"X-API-Key": "imk_" + "0" * 32})
    assert more["total"]["predictions"] == 1
    assert told["total"]["predictions"] == 0  # the key of that name is another one
    assert proxied.status == wrong.status == 401


@pytest.mark.parametrize("asked", ["format=csv", "accept"])
async def test_csv_has_a_header_a_total_exact_money_and_no_formulas(tmp_path: Path, asked: str) -> None:
    headers = ADMIN | ({"Accept": "text/csv"} if asked == "accept" else {})
    async with filled(tmp_path) as (gateway, _):
        query = "by=caller" + ("&format=csv" if asked != "accept" else "")
        answer = await gateway.request("GET", f"/usage?{query}", headers=headers)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert tuple(rows[0]) == GROUP_FIELDS
    assert [row["name"] for row in rows][-2:] == ["'=cmd|' /C calc'!A0", "total"]
    assert (rows[-2]["cost_usd"], rows[-1]["cost_usd"]) == ("0.000001", "0.043501")


async def test_entries_come_in_pages_newest_first_in_both_forms(tmp_path: Path) -> None:
    async with filled(tmp_path) as (gateway, _):
        seen, cursor = [], ""
        while True:
            page = (await gateway.request("GET", f"/usage/entries?limit=2{cursor}", headers=ADMIN)).json()
            seen += page["entries"]
            assert len(page["entries"]) <= 2
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        first = await gateway.request("GET", "/usage/entries?limit=2&format=csv", headers=ADMIN)
    assert [entry["created_at"] for entry in seen] == sorted(
        (one["created_at"] for one in seen), reverse=True
    )
    assert len({entry["id"] for entry in seen}) == 5
    assert set(seen[0]) == set(ENTRY_FIELDS)
    rows = list(csv.DictReader(io.StringIO(first.body.decode())))
    assert [row["id"] for row in rows] == [entry["id"] for entry in seen[:2]]
    assert first.headers["x-imagen-next-cursor"] == seen[1]["id"]


async def test_a_period_is_in_utc_and_a_last_day_belongs_to_it(tmp_path: Path) -> None:
    async with filled(tmp_path) as (gateway, _):
        for query, predictions in (
            ("since=2026-11-01", 4),
            ("until=2026-10-29", 1),
            ("until=2026-10-28", 0),
            ("since=2026-10-29&until=2026-11-01", 5),
            (urlencode({"since": "2026-11-01T12:02:00+00:00"}), 3),
            (urlencode({"until": "2026-11-01T13:02:00+01:00"}), 2),
        ):
            told = (await gateway.request("GET", f"/usage?{query}", headers=ADMIN)).json()
            assert told["total"]["predictions"] == predictions, query


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/usage?since=soon", "since"),
        ("/usage?until=2026-11-01&since=2026-11-02", "until"),
        ("/usage?by=weekday", "by"),
        ("/usage?format=xml", "format"),
        (f"/usage?since={'9' * 500}", "since"),
        ("/usage/entries?limit=0", "limit"),
        ("/usage/entries?limit=1001", "limit"),
        ("/usage/entries?cursor=%00", "cursor"),
        ("/usage/entries?cursor=anything", "cursor"),
        ("/usage?key=web-shop", "key"),
        ("/usage?by=day&by=model", "by"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, path: str, word: str) -> None:
    async with running_gateway(tmp_path, None) as gateway:
        answer = await gateway.request("GET", path, headers=ADMIN)
    assert answer.status == 400
    assert word in answer.json()["error"]


async def test_a_cursor_that_nobody_was_told_is_not_found(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, None) as gateway:
        answer = await gateway.request("GET", f"/usage/entries?cursor=pred_{'z' * 26}", headers=ADMIN)
    assert answer.status == 404


async def test_the_client_of_the_command_line_gets_what_the_gateway_has(tmp_path: Path) -> None:
    async with filled(tmp_path) as (gateway, _):
        connection = Connection(gateway.url, client=gateway.app.client, key=None, admin_key=Secret(ADMIN_KEY))
        there = RemoteUsage(connection)
        query = UsageQuery(since=AT, by="key", local_days=True)
        report = await there.report(query)
        here = await gateway.app.usage.report(msgspec.structs.replace(query, local_days=False))
        assert report == here
        first = await there.entries(query, limit=3)
        rest = await there.entries(query, cursor=first.next_cursor, limit=3)
        found: list[UsageEntry] = [entry_of(facts) for facts in (*first.entries, *rest.entries)]
        assert found == list(await gateway.app.ledger.page(query, limit=9))


async def test_a_picture_from_the_cache_saves_what_the_first_one_cost(
    tmp_path: Path, replicate_emulator: EmulatorThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="imagen.analytics")
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        for _ in range(3):
            made = await gateway.generate(seed=7, cache=True)
            assert made.status == 200, made.body
        cost = (await gateway.request("GET", "/usage/entries", headers=ADMIN)).json()["entries"][-1]
        total = (await gateway.request("GET", "/usage", headers=ADMIN)).json()["total"]
        metrics = (await gateway.request("GET", "/metrics", headers=ADMIN)).body.decode()
    assert (total["predictions"], total["cached"]) == (1, 2)
    assert cost["cost_usd_estimate"] > 0
    assert total["saved_usd"] == pytest.approx(2 * cost["cost_usd_estimate"])
    generations = [line for line in metrics.splitlines() if line.startswith("imagen_generations_total{")]
    assert generations == [
        'imagen_generations_total{caller="admin",model="black-forest-labs/flux-dev",outcome="succeeded"} 1.0'
    ]
    told = [record.fields for record in caplog.records if record.name == "imagen.analytics"]  # type: ignore[attr-defined]
    assert [fields["event"] for fields in told] == ["generation_completed", "replicate_generation"]
    assert (told[0]["user_id"], told[0]["successful"]) == ("admin", True)
    assert told[0]["cost"] == told[1]["cost_usd"] == cost["cost_usd_estimate"]
    assert told[1]["processing_time_ms"] == round(1000 * cost["predict_seconds"])


async def test_entries_from_elsewhere_make_the_same_report(tmp_path: Path) -> None:
    async with filled(tmp_path) as (gateway, _):
        for query in (UsageQuery(by="key", since=AT), UsageQuery(by="day")):
            names = {key.id: key.name for key in await gateway.app.keys.list()}
            elsewhere = iter(await gateway.app.ledger.entries())
            report = await report_usage(elsewhere, query, keys=names)
            assert report == await gateway.app.usage.report(query)
