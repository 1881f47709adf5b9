"""What is counted, and that neither names nor repetitions get out of hand."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from fakes.make import FLUX, make_prediction
from imagen.domain.events import Called, Delivered, Ended, InLine, LetIn, Throttled
from imagen.domain.limits import AccountState
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.semaphore import Semaphore
from imagen.server.metrics import MOST_MODELS, MOST_PAIRS, MOST_SEMAPHORES, Metrics, Standing

PAGE = Path(__file__).parents[3] / "docs/reference/metrics.md"
OPEN = {"kind": "unknown", "closed_for_seconds": 0.0, "low_credit": None, "refusals": 0}
ACCOUNT = AccountState(concurrent=60, running=7, creates=OPEN, calls=OPEN)


def standing(**facts: Any) -> Standing:
    given: dict[str, Any] = {"account": ACCOUNT, "semaphores": (), "waiting": 0, "under_way": 0}
    return Standing(**given | facts)


def samples(metrics: Metrics, **facts: Any) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, which come sorted by the labels' names."""
    text, _ = metrics.text(standing(**facts))
    found = [sample for family in read_text(text.decode()) for sample in family.samples]
    assert len({(sample.name, *sorted(sample.labels.items())) for sample in found}) == len(found), (
        "told twice"
    )
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


def of(told: dict[tuple[str, ...], float], name: str) -> dict[tuple[str, ...], float]:
    return {
        labels: value
        for (each, *labels_), value in told.items()
        if each == name
        for labels in [tuple(labels_)]
    }


def ended(number: int = 1, **facts: Any) -> Prediction:
    given: dict[str, Any] = {"status": Status.SUCCEEDED, "charged": True, "cost": Usd(3000)}
    prediction = make_prediction(number, **given | facts)
    assert prediction.sent_at is not None
    return make_prediction(number, **{"ended_at": prediction.sent_at + timedelta(seconds=4)} | given | facts)


def test_the_page_of_metrics_lists_exactly_those_that_there_are():
    text, _ = Metrics().text(standing())
    ours = {
        name
        for name in re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE)
        if not name.startswith("process_")
    }
    listed = set(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) ", PAGE.read_text(), re.MULTILINE))
    assert ours == listed
    assert len(ours) > 10


def test_the_page_of_metrics_names_each_label():
    metrics = Metrics()
    metrics.request("/health", "GET", 200, 0.1)
    for event in (Called("create", 201), Ended(ended()), Ended(ended(2, cost=None)), Delivered("taken")):
        metrics.notify(event)
    metrics.webhook("taken")
    text, _ = metrics.text(standing(semaphores=[Semaphore("gpu", 2)]))
    rows = dict(re.findall(r"^\| `(\w+)` \| \w+ \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE))
    wrong = {}
    for family in read_text(text.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if name in rows and labels != set(re.findall(r"`(\w+)`", rows[name])):
            wrong[name] = labels
    assert wrong == {}


def test_requests_are_counted_and_timed_by_the_template_of_their_path():
    metrics = Metrics()
    metrics.request("/predictions/{id}", "GET", 200, 0.2)
    metrics.request("/predictions/{id}", "GET", 200, 0.4)
    metrics.request(None, "GET", 404, 0.001)
    metrics.request("/health", "BREW", 405, 0.001)
    told = samples(metrics)
    assert of(told, "imagen_requests_total") == {
        ("GET", "/predictions/{id}", "200"): 2.0,
        ("GET", "other", "404"): 1.0,
        ("other", "/health", "405"): 1.0,
    }
    assert of(told, "imagen_request_seconds_sum")["/predictions/{id}",] == pytest.approx(0.6)


def test_calls_refusals_and_waits_are_counted():
    metrics = Metrics()
    for event in (
        Called("create", 201), Called("create", 201), Called("look", None), Throttled("slow down", 3.0),
        LetIn(0.3), LetIn(40.0), InLine("account", 3),
    ):  # fmt: skip
        metrics.notify(event)
    told = samples(metrics)
    assert of(told, "imagen_upstream_calls_total") == {("create", "201"): 2.0, ("look", "none"): 1.0}
    assert told["imagen_throttled_total",] == 1.0
    assert told["imagen_wait_seconds_count",] == 2.0
    assert told["imagen_wait_seconds_sum",] == pytest.approx(40.3)


def test_a_prediction_counts_under_its_model_without_version_and_under_how_it_ended():
    metrics = Metrics()
    metrics.notify(Ended(ended(1, model=f"{FLUX}:{'a' * 64}")))
    metrics.notify(Ended(ended(2)))
    metrics.notify(Ended(ended(3, status=Status.FAILED, charged=False, cost=None)))
    told = samples(metrics)
    assert of(told, "imagen_predictions_total") == {(FLUX, "succeeded"): 2.0, (FLUX, "failed"): 1.0}
    assert of(told, "imagen_prediction_seconds_sum") == {(FLUX,): 12.0}
    assert of(told, "imagen_cost_usd_total") == {(FLUX,): 0.006}
    assert of(told, "imagen_unpriced_predictions_total") == {}


def test_a_prediction_that_is_told_twice_is_counted_once():
    metrics = Metrics()
    for _ in range(3):
        metrics.notify(Ended(ended()))
    assert of(samples(metrics), "imagen_predictions_total") == {(FLUX, "succeeded"): 1.0}


def test_a_prediction_that_goes_on_is_counted_when_it_ends():
    metrics = Metrics()
    metrics.notify(Ended(make_prediction(status=Status.PROCESSING)))
    assert of(samples(metrics), "imagen_predictions_total") == {}
    metrics.notify(Ended(ended()))
    assert of(samples(metrics), "imagen_predictions_total") == {(FLUX, "succeeded"): 1.0}


def test_what_is_billed_at_an_unknown_price_is_told_apart_from_what_is_free():
    metrics = Metrics()
    metrics.notify(Ended(ended(1, cost=None)))
    metrics.notify(Ended(ended(2, cost=Usd(0))))
    metrics.notify(Ended(ended(3, cost=None, charged=None, status=Status.UNKNOWN)))
    told = samples(metrics)
    assert of(told, "imagen_unpriced_predictions_total") == {(FLUX,): 1.0}
    assert of(told, "imagen_cost_usd_total") == {(FLUX,): 0.0}


def test_money_adds_up_exactly():
    metrics = Metrics()
    for number in range(1000):
        metrics.notify(Ended(ended(number, cost=Usd(100_001))))  # as floats these make 100.00099999999…
    assert of(samples(metrics), "imagen_cost_usd_total") == {(FLUX,): 100.001}


def test_models_that_callers_make_up_are_no_end_of_series():
    metrics = Metrics()
    for number in range(MOST_MODELS + 50):
        metrics.notify(Ended(ended(number, model=f"somebody/model-{number}", cost=Usd(1))))
    metrics.notify(Ended(ended(9_999, model=f"somebody/{'x' * 5000}", cost=Usd(1))))
    told = samples(metrics)
    assert len(of(told, "imagen_predictions_total")) == MOST_MODELS + 1
    assert of(told, "imagen_predictions_total")["other", "succeeded"] == 51.0
    assert of(told, "imagen_cost_usd_total")["other",] == pytest.approx(51e-6)
    assert sum(of(told, "imagen_predictions_total").values()) == MOST_MODELS + 51
    assert len(metrics.text(standing())[0]) < 1_000_000


def test_routes_and_methods_are_bounded():
    metrics = Metrics()
    for number in range(1000):
        metrics.request(f"/made/up/{number}", f"METHOD{number}", 404, 0.0)
    told = of(samples(metrics), "imagen_requests_total")
    assert len(told) <= 201
    assert sum(told.values()) == 1000.0


def test_generations_and_their_cost_are_counted_by_caller_model_and_outcome():
    metrics = Metrics()
    for number, facts in enumerate(
        (
            {"caller": "web-shop", "key": "key_1", "predict_seconds": 1.5},
            {"caller": "web-shop", "key": "key_1", "predict_seconds": 0.5},
            {"caller": "web-shop", "key": "key_1", "status": Status.FAILED, "charged": False, "cost": Usd(0)},
            {"caller": "kai", "cost": Usd(40_000), "predict_seconds": 2.0},
            {"caller": "kai", "cost": None, "predict_seconds": 2.0},
        )
    ):
        metrics.notify(Ended(ended(number, **facts)))
    told = samples(metrics)
    assert of(told, "imagen_generations_total") == {
        ("web-shop", FLUX, "succeeded"): 2.0,
        ("web-shop", FLUX, "failed"): 1.0,
        ("kai", FLUX, "succeeded"): 2.0,
    }
    assert of(told, "imagen_generation_cost_usd_total") == {("web-shop", FLUX): 0.006, ("kai", FLUX): 0.04}
    assert of(told, "imagen_cost_usd_total") == {(FLUX,): 0.046}
    # The failed one tells no seconds of its own: it took four in all.
    assert of(told, "imagen_processing_seconds_sum") == {(FLUX, "succeeded"): 6.0, (FLUX, "failed"): 4.0}


def test_callers_are_no_end_of_series():
    metrics = Metrics()
    for number in range(MOST_PAIRS + 100):
        metrics.notify(Ended(ended(number, caller=f"caller-{number}", cost=Usd(1))))
    told = of(samples(metrics), "imagen_generations_total")
    assert len(told) == MOST_PAIRS + 1
    assert told["other", FLUX, "succeeded"] == 100.0
    assert of(samples(metrics), "imagen_generation_cost_usd_total")["other", FLUX] == pytest.approx(100e-6)


def test_callers_with_tokens_of_their_own_are_one_and_take_nobodys_name():
    metrics = Metrics()
    for number in range(MOST_PAIRS + 10):
        metrics.notify(Ended(ended(number, caller=f"token:{number:08x}", key=None)))
    metrics.notify(Ended(ended(9_999, caller="web-shop", key="key_1")))
    metrics.notify(Ended(ended(10_000, caller="token:mine", key="key_2")))
    told = of(samples(metrics), "imagen_generations_total")
    assert told == {
        ("token", FLUX, "succeeded"): MOST_PAIRS + 10.0,
        ("web-shop", FLUX, "succeeded"): 1.0,
        ("token:mine", FLUX, "succeeded"): 1.0,
    }


def test_places_and_gates_are_told_as_they_stand():
    low = {"per_minute": 6.0, "burst": 1.0, "since": 1.0, "detail": "reduced"}
    account = AccountState(
        concurrent=60, running=7, creates=OPEN | {"closed_for_seconds": 3.5, "low_credit": low}, calls=OPEN
    )
    told = samples(
        Metrics(), account=account, semaphores=[Semaphore("account", 2, held=1)], waiting=4, under_way=9
    )
    assert of(told, "imagen_permits_held") == {("account",): 7.0, ("semaphore:account",): 1.0}
    assert of(told, "imagen_permits_limit") == {("account",): 60.0, ("semaphore:account",): 2.0}
    assert of(told, "imagen_gate_closed_seconds") == {("creates",): 3.5, ("calls",): 0.0}
    assert told["imagen_low_credit",] == 1.0
    assert told["imagen_waiting",] == 4.0
    assert told["imagen_under_way",] == 9.0
    assert told["imagen_database_up",] == 1.0


def test_a_semaphore_that_was_removed_is_no_longer_told():
    metrics = Metrics()
    assert ("imagen_permits_held", "semaphore:gpu") in samples(metrics, semaphores=[Semaphore("gpu", 2)])
    assert ("imagen_permits_held", "semaphore:gpu") not in samples(metrics)


def test_semaphores_beyond_the_first_are_told_together():
    many = [Semaphore(f"s{number:04}", 3, held=1) for number in range(MOST_SEMAPHORES + 20)]
    told = samples(Metrics(), semaphores=many)
    assert len(of(told, "imagen_permits_held")) == MOST_SEMAPHORES + 2
    assert told["imagen_permits_held", "other"] == 20.0
    assert told["imagen_permits_limit", "other"] == 60.0


def test_what_the_database_did_not_tell_is_missing_and_not_zero():
    told = samples(Metrics(), account=None)
    assert told["imagen_database_up",] == 0.0
    for name in (
        "imagen_permits_held",
        "imagen_permits_limit",
        "imagen_gate_closed_seconds",
        "imagen_low_credit",
    ):
        assert of(told, name) == {}


def test_two_servers_in_one_process_share_nothing():
    one, other = Metrics(), Metrics()
    one.notify(Throttled("slow down", 1.0))
    assert samples(one)["imagen_throttled_total",] == 1.0
    assert samples(other)["imagen_throttled_total",] == 0.0


def test_whoever_reads_openmetrics_gets_it():
    metrics = Metrics()
    metrics.request("/health", "GET", 200, 0.1)
    text, media_type = metrics.text(
        standing(), accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5"
    )
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in read_openmetrics(text.decode())}
    assert {"imagen_requests", "imagen_cost_usd", "imagen_permits_held"} <= names
    assert metrics.text(standing())[1].startswith("text/plain")


def test_no_series_says_when_it_was_begun():
    metrics = Metrics()
    metrics.notify(Ended(ended()))
    assert b"_created" not in metrics.text(standing())[0]


def test_an_event_costs_microseconds():
    metrics = Metrics()
    events = [Called("look", 200), LetIn(0.1), InLine("account", 1), Called("create", 201)]
    began = time.perf_counter()
    for _ in range(5_000):
        for event in events:
            metrics.notify(event)
    each = (time.perf_counter() - began) / 20_000
    assert each < 50e-6  # about 1 µs; the rest is for a machine that does something else meanwhile
