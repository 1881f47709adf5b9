"""Aspect ratios, progress, names for things, and usage added up."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.clock import BEGINNING
from fakes.make import make_entry, make_prediction
from imagen.cli.drafts import left_of
from imagen.domain.aspect_ratio import ASPECT_RATIOS, aspect_ratio_of
from imagen.domain.identifiers import new_id
from imagen.domain.money import Usd
from imagen.domain.prediction import Status, hash_prompt
from imagen.domain.progress import progress_from_log
from imagen.domain.quote import Quote
from imagen.domain.usage import (
    CACHED,
    GROUPINGS,
    NONE,
    SHARED,
    UsageEntry,
    UsageQuery,
    sum_usage,
    summarize,
)

# --- aspect ratios ---


@pytest.mark.parametrize("scale", [1, 64, 1000])
@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_each_of_the_eleven_ratios_is_recognised_at_any_size(ratio: str, scale: int):
    width, height = (int(side) * scale for side in ratio.split(":"))
    assert aspect_ratio_of(width, height, fallback="x") == ratio


def test_there_are_eleven_ratios():
    wanted = ("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21")
    assert sorted(ASPECT_RATIOS) == sorted(wanted)
    assert len(ASPECT_RATIOS) == 11


@pytest.mark.parametrize(
    ("width", "height", "ratio"),
    [
        (1024, 1024, "1:1"),
        (1920, 1080, "16:9"),
        (1080, 1920, "9:16"),
        (1344, 768, "other"),
        (1000, 999, "other"),
        (2520, 1080, "21:9"),
        (7, 3, "21:9"),
        (2560, 1097, "other"),
        (0, 0, "other"),
        (0, 1024, "other"),
        (-1024, -1024, "other"),
        (None, None, "other"),
        (1024, None, "other"),
        (None, 1024, "other"),
    ],
)
def test_sizes_become_their_ratio_and_others_fall_back(width: int | None, height: int | None, ratio: str):
    assert aspect_ratio_of(width, height, fallback="other") == ratio


# --- progress ---


@pytest.mark.parametrize(
    ("log", "fraction"),
    [
        ("", None),
        ("Using seed: 7\n", None),
        ("  0%|          | 0/28 [00:00<?, ?it/s]", 0.0),
        ("  0%| | 0/4\n 25%|██▌ | 1/4\n 75%|███▌| 3/4", 0.75),
        ("100%|██████████| 28/28", 1.0),
        ("Progress: 42% done", 0.42),
        ("50%|█████ | 2/4\nusing 90% of memory", 0.5),
        ("999%", 1.0),
        ("12 %", None),
        ("% 5", None),
    ],
)
def test_progress_is_the_last_percentage_that_a_log_tells(log: str, fraction: float | None):
    assert progress_from_log(log) == fraction


@given(st.text(st.sampled_from("0123456789%| \nx")))
def test_progress_of_any_log_is_none_or_a_fraction(log: str):
    fraction = progress_from_log(log)
    assert fraction is None or 0.0 <= fraction <= 1.0


# --- ids ---


def test_ids_are_safe_unique_and_of_one_length():
    ids = [new_id("pred", BEGINNING) for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch(r"pred_[0-9a-hjkmnp-tv-z]{26}", identity) for identity in ids)


@given(st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2900, 1, 1)), min_size=2, max_size=2))  # noqa: DTZ001
def test_ids_sort_by_the_time_they_were_made(instants: list[datetime]):
    first, second = sorted(instant.replace(tzinfo=UTC) for instant in instants)
    if second - first > timedelta(milliseconds=1):
        assert new_id("x", first) < new_id("x", second)


# --- usage ---


@pytest.mark.parametrize(
    ("facts", "cost", "images", "outcome"),
    [
        (
            {"status": Status.SUCCEEDED, "charged": True, "cost": Usd(3000), "output": ("a", "b")},
            Usd(3000),
            2,
            "succeeded",
        ),
        ({"status": Status.SUCCEEDED, "charged": True, "cost": None, "output": ("a",)}, None, 1, "succeeded"),
        ({"status": Status.FAILED, "charged": False, "cost": None, "output": ("a",)}, Usd(0), 0, "failed"),
        ({"status": Status.CANCELED, "charged": True, "cost": Usd(5)}, Usd(5), 0, "canceled"),
        ({"status": Status.ABORTED, "charged": False, "cost": Usd(5)}, Usd(0), 0, "aborted"),
        ({"status": Status.UNKNOWN, "charged": None, "cost": None}, None, 0, "unknown"),
    ],
)
def test_an_entry_says_what_a_prediction_cost(
    facts: dict[str, Any], cost: Usd | None, images: int, outcome: str
):
    prediction = make_prediction(upstream_id="up-1", **facts)
    entry = UsageEntry.from_prediction(prediction, at=BEGINNING)
    assert (entry.cost, entry.images, entry.outcome) == (cost, images, outcome)
    assert (entry.id, entry.caller, entry.seed, entry.upstream_id) == (prediction.id, "kai", 7, "up-1")


def test_an_entry_knows_only_the_hash_of_the_prompt():
    entry = UsageEntry.from_prediction(make_prediction(prompt="a secret wish"), at=BEGINNING)
    assert "secret wish" not in repr(entry)
    assert entry.prompt_hash == hash_prompt("a secret wish")


ENTRIES = [
    make_entry(
        1, model="a/x", caller="kai", cost=Usd(10), latency_ms=100, images=2, key="key_1", tier="preview"
    ),
    make_entry(2, model="a/y", caller="kai", cost=Usd(30), latency_ms=200),
    make_entry(3, model="a/x", caller="lee", cost=None, latency_ms=301, outcome="failed", images=0),
]


@pytest.mark.parametrize(
    ("by", "names", "costs"),
    [
        ("model", ["a/y", "a/x"], [30, 10]),
        ("caller", ["kai", "lee"], [40, 0]),
        ("backend", ["fast"], [40]),
        ("day", ["2026-11-01"], [40]),
        ("key", [NONE, "key_1"], [30, 10]),
        ("tier", [NONE, "preview"], [30, 10]),
    ],
)
def test_usage_is_added_up_dearest_first(by: str, names: list[str], costs: list[int]):
    groups = summarize(ENTRIES, UsageQuery(by=by)).groups
    assert [group.name for group in groups] == names
    assert [group.cost.micros for group in groups] == costs


def test_entries_are_added_up_by_all_that_is_listed():
    assert GROUPINGS == ("model", "caller", "backend", "day", "key", "tier")


def test_a_group_counts_everything_and_takes_unknown_costs_for_unknown():
    total = sum_usage(ENTRIES)
    assert (total.predictions, total.succeeded, total.images, total.unpriced) == (3, 2, 3, 1)
    assert (total.mean_latency_ms, total.p50_ms, total.p95_ms) == (200, 200, 301)
    assert total.success_rate == pytest.approx(2 / 3)
    nothing = sum_usage([])
    assert (nothing.mean_latency_ms, nothing.p50_ms, nothing.success_rate) == (0, 0, None)


def test_what_was_reused_counts_as_saved_and_nowhere_else():
    total = sum_usage(
        [
            make_entry(1, cost=Usd(3000), latency_ms=1000),
            make_entry(2, cost=Usd(0), outcome=CACHED, saved=Usd(3000), latency_ms=1, kept=True),
            make_entry(3, cost=Usd(0), outcome=SHARED, saved=None, images=4),
        ]
    )
    assert (total.predictions, total.images, total.cost, total.p50_ms) == (1, 1, Usd(3000), 1000)
    assert (total.cached, total.saved, total.judged, total.kept) == (2, Usd(3000), 0, 0)


def test_a_kept_picture_costs_what_the_judged_ones_cost():
    judged = [
        make_entry(1, cost=Usd(100), images=2, kept=True),
        make_entry(2, cost=Usd(201), images=4, kept=False),
        make_entry(3, cost=Usd(999_999), images=1),  # nobody said
    ]
    total = sum_usage(judged)
    assert (total.judged, total.kept, total.judged_cost) == (2, 2, Usd(301))
    assert total.cost_per_kept == Usd(151)  # 150.5, rounded half up
    assert sum_usage([judged[2]]).cost_per_kept is None
    assert sum_usage([judged[1]]).cost_per_kept is None
    unknown = make_entry(4, cost=None, kept=False)
    assert sum_usage([*judged, unknown]).cost_per_kept is None


def test_quotes_are_held_against_what_those_came_to():
    total = sum_usage(
        [
            make_entry(1, quoted=Usd(50), cost=Usd(40)),
            make_entry(2, quoted=Usd(50), cost=None),
            make_entry(3, quoted=None, cost=Usd(7)),
        ]
    )
    assert (total.quoted, total.quoted_cost) == (Usd(50), Usd(40))


def test_days_are_utc_and_in_order():
    late = datetime(2026, 11, 2, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    entries = [make_entry(1, created_at=late), make_entry(2, created_at=BEGINNING - timedelta(days=9))]
    groups = summarize(entries, UsageQuery(by="day")).groups
    assert [group.name for group in groups] == ["2026-10-23", "2026-11-01"]


def test_a_period_begins_with_its_first_instant_and_ends_before_its_last():
    at = BEGINNING + timedelta(minutes=2)
    found = [make_entry(number) for number in (1, 2, 3)]
    assert sum_usage(one for one in found if UsageQuery(since=at).takes(one)).predictions == 2
    assert sum_usage(one for one in found if UsageQuery(until=at).takes(one)).predictions == 1


# --- what a prediction has cost ---


@pytest.mark.parametrize(
    ("facts", "spent"),
    [
        ({"sent_at": None}, Usd(0)),
        ({"sent_at": BEGINNING}, None),
        ({"sent_at": BEGINNING, "upstream_id": "abc"}, None),
        ({"sent_at": BEGINNING, "upstream_id": "abc", "charged": True, "cost": Usd(3000)}, Usd(3000)),
        ({"sent_at": BEGINNING, "upstream_id": "abc", "charged": True}, None),
        ({"sent_at": None, "charged": True}, None),
        ({"sent_at": BEGINNING, "charged": False, "cost": Usd(3000)}, Usd(0)),
    ],
)
def test_what_may_still_be_billed_has_no_cost_yet_and_is_never_free(facts: dict[str, Any], spent: Usd | None):
    prediction = make_prediction(**{"upstream_id": None, "charged": None, "cost": None} | facts)
    assert prediction.spent == spent
    assert UsageEntry.from_prediction(prediction, at=BEGINNING).cost == spent


def test_what_is_left_counts_the_lost_one_at_its_quote_and_nothing_where_that_is_unknown():
    made = make_prediction(charged=True, cost=Usd(3000))
    lost = {"upstream_id": None, "charged": None, "cost": None, "sent_at": BEGINNING}
    quoted = make_prediction(**lost, quote=Quote.exactly(Usd(4000)))
    assert left_of(Usd(10_000), [made]) == Usd(7000)
    assert left_of(Usd(10_000), [made, quoted]) == Usd(3000)
    assert left_of(Usd(5000), [made, quoted]) == Usd(0)
    assert left_of(Usd(10_000), [made, make_prediction(**lost)]) == Usd(0)
