"""Stories of `imagen usage`."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from msgspec.structs import asdict, replace
from seeded import SCHNELL, entry, succeeded

from imagen.cli.usage_plot import every_day
from imagen.domain.feedback import Feedback
from imagen.domain.key import Key
from imagen.domain.money import Usd
from imagen.domain.usage import sum_usage
from imagen.errors import InvalidRequest
from imagen.service.usage import GroupFacts, facts_of, make_query, parse_since, parse_until
from imagen.store.database import Database
from imagen.store.keys import SqlKeys
from imagen.store.tables import feedback

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


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-03-29", datetime(2026, 3, 29, 22, tzinfo=UTC)),  # a day of 23 hours
        ("today", datetime(2026, 3, 30, 22, tzinfo=UTC)),
        ("yesterday", datetime(2026, 3, 29, 22, tzinfo=UTC)),
        ("2026-03-30T08:30", datetime(2026, 3, 30, 6, 30, tzinfo=UTC)),
        ("24h", NOW - timedelta(hours=24)),
    ],
)
def test_a_day_belongs_whole_to_the_period_that_ends_with_it(text: str, wanted: datetime) -> None:
    assert parse_until(text, now=NOW) == wanted


@pytest.mark.usefixtures("berlin")
def test_over_http_dates_are_utc() -> None:
    assert parse_since("2026-03-30", now=NOW, zone=UTC) == datetime(2026, 3, 30, tzinfo=UTC)
    assert parse_since("today", now=NOW, zone=UTC) == datetime(2026, 3, 30, tzinfo=UTC)
    assert parse_since("2026-03-30T08:30", now=NOW, zone=UTC) == datetime(2026, 3, 30, 8, 30, tzinfo=UTC)
    assert parse_until("2026-03-30", now=NOW, zone=UTC) == datetime(2026, 3, 31, tzinfo=UTC)


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


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"since": "soon"}, "since 'soon' is no date"),
        ({"until": "later"}, "until 'later' is no date"),
        ({"since": "2h", "until": "1d"}, "until '1d' is not after since '2h'"),
        ({"since": "2026-11-02", "until": "2026-11-01"}, "until '2026-11-01' is not after"),
        ({"by": "weekday"}, "by 'weekday' is not known"),
    ],
)
def test_a_query_that_makes_no_sense_says_why(wrong: dict[str, str], says: str) -> None:
    given = dict.fromkeys(("since", "until", "by")) | wrong
    with pytest.raises(InvalidRequest, match=says) as caught:
        make_query(**given, now=NOW, local=False)
    assert caught.value.hint


def test_one_day_is_a_period() -> None:
    query = make_query(since="2026-03-29", until="2026-03-29", by=None, now=NOW, local=False)
    assert query.until is not None
    assert query.since is not None
    assert query.until - query.since == timedelta(days=1)


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
    header = ["model", "predictions", "succeeded", "success", "images", "cost", "p50_s", "p95_s"]
    assert cells[0] == header
    assert cells[1] == ["someone/unpriced", "2", "1", "50%", "1", "$0.10 + ?", "1.5", "1.5"]
    assert cells[2] == [SCHNELL, "3", "3", "100%", "4", "$0.009", "1.5", "2.5"]
    assert set(done.lines[3]) == {"-", " "}
    assert cells[4] == ["total", "5", "4", "80%", "5", "$0.109 + ?", "1.5", "2.5"]
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
        "name": "total", "predictions": 5, "succeeded": 4, "success_rate": 0.8, "images": 5, "cost_usd": 0.109,
        "unpriced": 1, "mean_seconds": 1.5, "p50_seconds": 1.5, "p95_seconds": 2.5, "cached": 0, "saved_usd": 0.0,
        "quoted_usd": 0.0, "quoted_cost_usd": 0.0, "judged": 0, "kept": 0, "cost_per_kept_usd": None, "practice": 1,
        "key_id": None,
    }  # fmt: skip
    assert (limited["by"], limited["days"], limited["since"]) == ("day", "local", None)


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
    assert len(raw) == 5
    assert [row["cost_usd_estimate"] for row in raw[:2]] == ["0.003", "0.006"]
    assert sorted(row["cost_usd_estimate"] for row in raw[2:4]) == ["", "0.1"]
    assert raw[0]["prompt_hash"] == "ab" * 32
    grouped = list(csv.DictReader(io.StringIO(cli("usage", "--csv", code=0).stdout)))
    assert [(row["name"], row["cost_usd"], row["unpriced"]) for row in grouped] == [
        ("someone/unpriced", "0.1", "1"),
        (SCHNELL, "0.009", "0"),
        ("total", "0.109", "1"),
    ]
    grouped = list(csv.DictReader(io.StringIO(cli("usage", "--limit", "1", "--csv", code=0).stdout)))
    assert [row["name"] for row in grouped] == ["someone/unpriced", "total"]
    assert grouped[-1]["cost_usd"] == "0.109"


def test_what_cannot_be_is_refused_in_one_line(cli: Any) -> None:
    for options in (
        ("--since", "soon"),
        ("--since", "2026-11-02", "--until", "2026-11-01"),
        ("--by", "weekday"),
        ("--raw", "--by", "day"),
        ("--raw", "--html", "usage.html"),
    ):
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
        ["1", "1", "100%", "1"],
        ["1", "1", "100%", "1"],
    ]
    assert (cli.data / "unwritten-usage.jsonl").read_bytes() == b""


def test_days_are_those_of_the_machine(cli: Any, remember: Callable[..., None]) -> None:
    at = datetime(2026, 3, 29, 23, 30, tzinfo=UTC)  # summer time: half past one of the next day in Berlin
    remember(entry(created_at=at), entry(created_at=at - timedelta(days=2)))
    days = {"TZ": "Europe/Berlin"}
    told = cli("usage", "--by", "day", "--json", env=days, code=0).json
    assert [group["name"] for group in told["groups"]] == ["2026-03-28", "2026-03-30"]
    there = cli("usage", "--since", "2026-03-30", "--json", env=days, code=0).json
    assert there["total"]["predictions"] == 1
    until = cli("usage", "--until", "2026-03-29", "--json", env=days, code=0).json
    assert (until["total"]["predictions"], until["until"]) == (1, "2026-03-30T00:00:00+02:00")


@pytest.fixture
def judged(cli: Any, remember: Callable[..., None]) -> None:
    """A kept picture, a rejected one, one that nobody judged, and two from the cache; by a key that is revoked and none."""
    made = [
        entry(cost=Usd(10_000), quoted=Usd(12_000), key="key_a", caller="web-shop", ago=timedelta(days=2)),
        entry(cost=Usd(20_000), key="key_a", caller="web-shop", latency_ms=4000),
        entry(cost=Usd(500_000)),
        entry(cost=Usd(0), outcome="cached", saved=Usd(10_000), latency_ms=3),
        entry(cost=Usd(0), outcome="shared", saved=Usd(500_000), latency_ms=3),
    ]
    remember(*made)
    database = Database(cli.data / "imagen.db")

    async def run() -> None:
        keys = SqlKeys(database)
        await keys.add(Key(id="key_a", name="web-shop", created_at=NOW), digest="a" * 64)
        await keys.revoke("web-shop", at=NOW)
        rows = [
            asdict(
                Feedback(
                    prediction_id=one.id, caller="web-shop", model=SCHNELL, kind="photo", kept=kept, at=NOW
                )
            )
            for one, kept in ((made[0], True), (made[1], False))
        ]
        await database.write(lambda connection: connection.execute(feedback.insert(), rows))

    asyncio.run(run())
    database.close()


@pytest.mark.usefixtures("judged")
def test_what_a_kept_picture_costs_and_what_the_cache_saved(cli: Any) -> None:
    total = cli("usage", "--json", code=0).json["total"]
    assert (total["judged"], total["kept"], total["cost_per_kept_usd"]) == (2, 1, 0.03)
    assert (total["cached"], total["saved_usd"], total["cost_usd"]) == (2, 0.51, 0.53)
    assert (total["quoted_usd"], total["quoted_cost_usd"]) == (0.012, 0.01)
    shown = cli("usage", code=0)
    assert shown.lines[0].split()[-2:] == ["kept", "cost_per_kept"]
    assert shown.lines[1].split()[-2:] == ["1", "$0.03"]
    assert shown.lines[-3:] == [
        "2 requests were answered with pictures of equal ones, not counted above: $0.51 saved.",
        "Quoted $0.012, came to $0.01, of those where both are known.",
        "2 of 3 were kept or rejected; cost_per_kept is of these.",
    ]
    raw = cli("usage", "--raw", "--json", code=0).json["entries"]
    assert sorted(str(row["kept"]) for row in raw) == ["False", "None", "None", "None", "True"]


@pytest.mark.usefixtures("judged")
def test_by_key_the_name_of_the_key_is_shown_and_that_it_was_revoked(cli: Any) -> None:
    groups = cli("usage", "--by", "key", "--json", code=0).json["groups"]
    assert [(group["name"], group["key_id"]) for group in groups] == [
        ("(none)", None),
        ("web-shop (revoked)", "key_a"),
    ]


@pytest.mark.usefixtures("judged")
def test_a_plot_has_a_bar_for_each_day_and_none_for_empty_ones(cli: Any) -> None:
    lines = cli("usage", "--plot", code=0).lines
    days = lines[lines.index("") + 2 :]
    assert lines[lines.index("") + 1].split() == ["day", "cost", "p50_s", "p95_s", "█", "p50", "░", "p95"]
    assert len(days) == 3
    assert days[1].split() == [days[1][:10]]
    first, last = days[0], days[2]
    assert first.count("█") < last.count("█")
    assert "$0.01" in first
    assert "$0.52" in last
    assert "░" in last
    assert "░" not in first
    assert max(map(len, days)) <= 100


@pytest.mark.usefixtures("judged")
def test_an_html_report_is_one_file_without_scripts_and_other_hosts(
    cli: Any, remember: Callable[..., None]
) -> None:
    remember(entry(caller="<script>alert('x')</script>", model='evil/"onload=1&', cost=Usd(1)))
    done = cli("usage", "--by", "caller", "--html", "usage.html", code=0)
    assert done.stdout == "usage.html\n"
    page = (cli.work / "usage.html").read_text()
    assert sorted(cli.work.iterdir()) == [cli.work / "usage.html"]
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    assert not re.search(r"https?://|src=|href=|url\(|@import", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    tree = ET.fromstring(re.sub(r"<!doctype html>|<meta [^>]*>", "", page))  # noqa: S314 - our own
    tables = tree.findall(".//table")
    assert [table.findtext("caption") for table in tables] == [
        "What was made and what it cost, by caller",
        "What was made and what it cost, by day",
    ]
    for table in tables:
        columns = table.findall("thead/tr/th")
        assert {one.get("scope") for one in columns} == {"col"}
        for row in table.findall("tbody/tr"):
            assert row.find("th").get("scope") == "row"  # type: ignore[union-attr]
            assert len(list(row)) == len(columns)
    assert [row.findtext("th") for row in tables[0].findall("tbody/tr")] == [
        "ada", "web-shop", "<script>alert('x')</script>",
    ]  # fmt: skip
    drawings = tree.findall(".//svg")
    assert [drawing.get("role") for drawing in drawings] == ["img", "img"]
    for drawing in drawings:
        told = (drawing.get("aria-labelledby") or "").split()
        assert {one.get("id") for one in drawing if one.get("id")} == set(told)
    assert len(drawings[0].findall("rect")) == 2
    assert "Cost per kept picture" in page


def test_an_html_report_of_nothing_and_one_that_cannot_be_written(cli: Any) -> None:
    cli("usage", "--html", "usage.html", code=0)
    assert "total" in (cli.work / "usage.html").read_text()
    done = cli("usage", "--html", "no/such/folder/usage.html", code=2)
    assert "cannot be written" in done.stderr
    assert not (cli.work / "no").exists()


def test_an_html_report_replaces_no_file_and_no_folder(cli: Any) -> None:
    for name in (".", "", ".."):
        assert "is no file" in cli("usage", "--html", name, code=2).stderr
    page = cli.work / "usage.html"
    page.write_text("mine")
    assert "nothing is overwritten without --force" in cli("usage", "--html", "usage.html", code=2).stderr
    assert page.read_text() == "mine"
    cli("usage", "--html", "usage.html", "--force", code=0)
    assert page.read_text() != "mine"
    assert "--force belongs to --html" in cli("usage", "--force", code=2).stderr


def test_a_gateway_tells_its_ledger_alone_and_half_a_table_is_none(cli: Any) -> None:
    there = ("--server", "http://127.0.0.1:9")
    assert (
        "--source and --server exclude each other" in cli("usage", "--source", "sink", *there, code=2).stderr
    )
    assert cli("usage", "--raw", "--csv", *there, code=4).stdout == ""
    assert cli("usage", "--raw", "--csv", code=0).stdout.startswith("id,")


def test_what_a_spreadsheet_would_run_is_text_in_csv(cli: Any, remember: Callable[..., None]) -> None:
    remember(entry(caller='=HYPERLINK("x")', cost=Usd(5)), entry(caller="@x"), entry(caller="-1+1"))
    (header, *rows, total) = csv.reader(io.StringIO(cli("usage", "--by", "caller", "--csv", code=0).stdout))
    assert (header[0], total[0]) == ("name", "total")
    assert sorted(row[0] for row in rows) == ["'-1+1", '\'=HYPERLINK("x")', "'@x"]
    raw = list(csv.DictReader(io.StringIO(cli("usage", "--raw", "--csv", code=0).stdout)))
    assert {row["caller"][0] for row in raw} == {"'"}


def test_raw_reads_the_ledger_in_pages_and_leaves_none_out(cli: Any, remember: Callable[..., None]) -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    remember(*(entry(id=f"pred_{number:026}", created_at=at) for number in range(2100)))
    raw = list(csv.DictReader(io.StringIO(cli("usage", "--raw", "--csv", code=0).stdout)))
    assert [row["id"] for row in raw] == [f"pred_{number:026}" for number in reversed(range(2100))]
    limited = cli("usage", "--raw", "--limit", "1001", "--json", code=0).json
    assert len(limited["entries"]) == limited["total"]["predictions"] == 1001


def day_of(name: str, **facts: Any) -> GroupFacts:
    group = sum_usage([entry(**facts)])
    return facts_of(replace(group, name=name))


def test_days_without_a_purchase_are_empty_and_many_of_them_left_out() -> None:
    made = [day_of("2026-11-01"), day_of("2026-11-03", outcome="cached"), day_of("2026-11-04")]
    assert [(day, group is not None) for day, group in every_day(made)] == [
        ("2026-11-01", True),
        ("2026-11-02", False),
        ("2026-11-03", False),
        ("2026-11-04", True),
    ]
    assert [day for day, _ in every_day([day_of("2020-01-01"), day_of("2026-11-04")])] == [
        "2020-01-01",
        "2026-11-04",
    ]
    assert list(every_day([])) == []
