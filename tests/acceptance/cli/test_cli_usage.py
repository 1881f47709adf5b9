"""Stories of `imagen usage`."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from seeded import SCHNELL, entry, succeeded

from imagen.domain.money import Usd
from imagen.errors import InvalidRequest
from imagen.service.usage import parse_since

NOW = datetime(2026, 3, 30, 1, 30, tzinfo=UTC)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time with a summer time that began a day before NOW."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-03-29", datetime(2026, 3, 28, 23, tzinfo=UTC)),  # winter time at its midnight
        ("2026-03-30", datetime(2026, 3, 29, 22, tzinfo=UTC)),
        ("today", datetime(2026, 3, 29, 22, tzinfo=UTC)),  # 01:30 UTC is 03:30 there
        ("Yesterday", datetime(2026, 3, 28, 23, tzinfo=UTC)),
        ("2026-03-30T08:30", datetime(2026, 3, 30, 6, 30, tzinfo=UTC)),
        ("2026-03-30T08:30Z", datetime(2026, 3, 30, 8, 30, tzinfo=UTC)),
        ("2026-03-30 08:30+09:00", datetime(2026, 3, 29, 23, 30, tzinfo=UTC)),
        (" 7d ", NOW - timedelta(days=7)),
        ("24h", NOW - timedelta(hours=24)),
        ("2W", NOW - timedelta(days=14)),
    ],
)
def test_dates_are_local_unless_they_tell_their_zone(text: str, wanted: datetime) -> None:
    assert parse_since(text, now=NOW) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "foo",
        "2026-13-01",
        "2026-02-30",
        "7",
        "d",
        "7y",
        "-7d",
        "999999w",
        "999999d",
        "0001-01-01T00:00+14:00",
        "7d\n7d",
        "\0",
    ],
)
def test_what_is_no_date_is_told_with_what_is(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no date") as caught:
        parse_since(text, now=NOW)
    assert "7d" in (caught.value.hint or "")


def test_an_empty_ledger_says_how_to_begin(cli: Any) -> None:
    done = cli("usage", code=0)
    assert done.stdout == ""
    assert "imagen generate" in done.stderr
    assert cli("usage", "--json", code=0).json["total"]["predictions"] == 0


@pytest.fixture
def spent(remember: Callable[..., None]) -> None:
    remember(
        entry(ago=timedelta(minutes=1)),
        entry(ago=timedelta(minutes=2), latency_ms=2500, caller="bob", images=2, cost=Usd(6000)),
        entry(ago=timedelta(days=3), model="someone/unpriced", cost=None, caller="bob", seed=None),
        entry(ago=timedelta(days=3), model="someone/unpriced", cost=Usd(100_000), outcome="failed", images=0),
        entry(ago=timedelta(days=40), backend="emulator", cost=Usd(0), latency_ms=500),
    )


@pytest.mark.usefixtures("spent")
def test_grouped_by_model_with_totals_the_dearest_first(cli: Any) -> None:
    done = cli("usage", code=0)
    rows = [line.split("  ") for line in done.lines]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == ["model", "predictions", "succeeded", "images", "cost", "mean_seconds"]
    assert cells[1] == ["someone/unpriced", "2", "1", "1", "$0.10 + ?", "1.5"]
    assert cells[2] == [SCHNELL, "3", "3", "4", "$0.009", "1.5"]
    assert set(done.lines[3]) == {"-", " "}
    assert cells[4] == ["total", "5", "4", "5", "$0.109 + ?", "1.5"]
    assert done.lines[5:] == [
        "1 without a known price: the cost above leaves them out.",
        "1 of 5 were practice on the emulator and cost nothing.",
    ]
    assert len({len(line) for line in done.lines[:5]}) == 1


@pytest.mark.usefixtures("spent")
def test_since_and_by_and_limit_and_json(cli: Any) -> None:
    by_caller = cli("usage", "--since", "1d", "--by", "caller", "--json", code=0).json
    assert {group["name"]: group["cost_usd"] for group in by_caller["groups"]} == {"bob": 0.006, "ada": 0.003}
    assert by_caller["total"]["images"] == 3
    limited = cli("usage", "--by", "day", "--limit", "1", "--json", code=0).json
    assert len(limited["groups"]) == 1
    assert limited["total"] == {
        "name": "total", "predictions": 5, "succeeded": 4, "images": 5, "cost_usd": 0.109, "unpriced": 1,
        "mean_seconds": 1.5, "cached": 0,
    }  # fmt: skip


@pytest.mark.usefixtures("spent")
def test_raw_has_the_columns_of_the_contract_newest_first(cli: Any) -> None:
    done = cli("usage", "--raw", "--limit", "4", code=0)
    header, first, *_ = (line.split() for line in done.lines)
    assert header == [
        "created_at",
        "backend",
        "model",
        "seed",
        "prompt_hash",
        "latency_ms",
        "cost_usd_estimate",
        "caller",
    ]
    assert first[1:] == ["flux-schnell-replicate", SCHNELL, "7", "abababababab", "1500", "$0.003", "ada"]
    assert done.lines[4].split()[-2:] == ["?", "bob"]
    assert done.lines[4].split()[3] == "-"
    assert done.lines[-2].split() == ["total", "4", "predictions", "mean", "1750", "$0.109", "+", "?"]
    assert done.lines[-1] == "1 without a known price: the cost above leaves them out."
    assert "--limit" in done.stderr


@pytest.mark.usefixtures("spent")
def test_csv_is_exact_and_leaves_unknown_prices_empty(cli: Any) -> None:
    raw = list(csv.DictReader(io.StringIO(cli("usage", "--raw", "--csv", code=0).stdout)))
    assert list(raw[0])[:9] == [
        "id", "created_at", "backend", "model", "seed", "prompt_hash", "latency_ms", "cost_usd_estimate", "caller",
    ]  # fmt: skip
    assert [row["cost_usd_estimate"] for row in raw[:2]] == ["0.003", "0.006"]
    assert sorted(row["cost_usd_estimate"] for row in raw[2:4]) == ["", "0.1"]
    assert raw[0]["prompt_hash"] == "ab" * 32
    grouped = list(csv.DictReader(io.StringIO(cli("usage", "--csv", code=0).stdout)))
    assert [(row["name"], row["cost_usd"], row["unpriced"]) for row in grouped] == [
        ("someone/unpriced", "0.1", "1"),
        (SCHNELL, "0.009", "0"),
    ]


def test_what_cannot_be_is_refused_in_one_line(cli: Any) -> None:
    for options in (("--since", "soon"), ("--by", "weekday"), ("--raw", "--by", "day")):
        done = cli("usage", *options, code=2)
        assert done.stderr.startswith("imagen: --")
        assert len(done.stderr.splitlines()) == 1


def test_entries_that_the_ledger_missed_are_written_first(cli: Any, remember: Callable[..., None]) -> None:
    late = succeeded(settled_at=None)
    remember(late)
    kept = entry(id="pred_kept_in_a_file", model="someone/else", cost=None)
    (cli.data / "unwritten-usage.jsonl").write_bytes(msgspec.json.encode(kept) + b"\n")
    done = cli("usage", code=0)
    assert "wrote 2 late entries" in done.stderr
    assert done.lines[-1] == "1 without a known price: the cost above leaves them out."
    assert [line.split()[1:5] for line in done.lines[1:3]] == [
        ["1", "1", "1", "$0.003"],
        ["1", "1", "1", "?"],
    ]
    assert (cli.data / "unwritten-usage.jsonl").read_bytes() == b""
