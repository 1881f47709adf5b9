"""The prediction object of Replicate's API, for every state that we know; and outputs put together again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.batches import make_batch, make_item
from fakes.make import make_prediction
from imagen.domain.batch import Batch, Item, ItemStatus
from imagen.domain.identifiers import id_at, instant_of, new_id
from imagen.domain.prediction import Prediction, Status
from imagen.service.orders import StoredIntent, StoredOrder
from imagen.service.replicate_shapes import (
    Known,
    Output,
    output_so_far,
    shape,
    standing,
    with_files,
    without_files,
)

NOW = datetime(2026, 11, 1, 12, 0, 0, 123_456, tzinfo=UTC)
BASE = "https://gateway.example"
SIX = {"starting", "processing", "succeeded", "failed", "canceled", "aborted"}
FILE = "https://replicate.delivery/a.png"


def durable(prediction: Prediction | None = None, **facts: Any) -> Known:
    """A prediction that was taken on durably."""
    promised = new_id("pred", NOW)
    intent = StoredIntent(
        id=promised, model="a/b", input={"prompt": "x"}, request_key="k", created_at=NOW, deadline_seconds=60
    )
    batch: Batch = make_batch(
        total=1, kind="single", details={"face": "replicate", "prediction_id": promised, "cancel_after": 30}
    )
    item: Item = make_item(
        batch,
        0,
        order=msgspec.json.encode(StoredOrder(prompt="x", intents=(intent,))),
        predictions=(promised,),
        **facts,
    )
    if prediction is not None:
        prediction = msgspec.structs.replace(prediction, id=promised)
    return Known(batch=batch, item=item, prediction=prediction)


@pytest.mark.parametrize(
    ("item", "prediction", "told"),
    [
        (ItemStatus.QUEUED, None, "starting"),
        (ItemStatus.RUNNING, None, "starting"),
        (ItemStatus.RUNNING, Status.QUEUED, "starting"),
        (ItemStatus.RUNNING, Status.STARTING, "starting"),
        (ItemStatus.RUNNING, Status.PROCESSING, "processing"),
        (ItemStatus.RUNNING, Status.FAILED, "starting"),  # there may be another attempt
        (ItemStatus.RUNNING, Status.SUCCEEDED, "succeeded"),  # its picture is being fetched
        (ItemStatus.RUNNING, Status.CANCELED, "canceled"),
        (ItemStatus.SUCCEEDED, Status.SUCCEEDED, "succeeded"),
        (ItemStatus.EXPIRED, Status.SUCCEEDED, "succeeded"),
        (ItemStatus.FAILED, Status.SUCCEEDED, "succeeded"),  # it made no picture, as we see it
        (ItemStatus.FAILED, Status.FAILED, "failed"),
        (ItemStatus.FAILED, Status.UNKNOWN, "failed"),
        (ItemStatus.FAILED, Status.CANCELED, "canceled"),  # by its deadline
        (ItemStatus.FAILED, None, "failed"),
        (ItemStatus.CANCELED, None, "canceled"),
        (ItemStatus.CANCELED, Status.PROCESSING, "canceled"),
        (ItemStatus.FAILED, Status.ABORTED, "aborted"),
        (None, Status.QUEUED, "starting"),
        (None, Status.UNKNOWN, "failed"),
        (None, Status.FAILED, "failed"),
        (None, Status.ABORTED, "aborted"),
    ],
)
def test_each_state_is_one_of_the_six(item: ItemStatus | None, prediction: Status | None, told: str) -> None:
    made = None if prediction is None else make_prediction(status=prediction, upstream_id="up")
    known = Known(prediction=made) if item is None else durable(made, status=item)
    assert standing(known).value == told


@given(
    item=st.sampled_from([None, *ItemStatus]),
    prediction=st.sampled_from([None, *Status]),
    upstream=st.sampled_from([None, "up"]),
    exact=st.booleans(),
)
def test_every_object_has_all_that_the_document_requires(
    item: ItemStatus | None, prediction: Status | None, upstream: str | None, exact: bool
) -> None:
    if item is None and prediction is None:
        return
    made = None
    if prediction is not None:
        made = make_prediction(
            status=prediction, upstream_id=upstream, ended_at=NOW if prediction.terminal else None
        )
    known = Known(prediction=made) if item is None else durable(made, status=item)
    body, adapted = shape(known, Output(), base=BASE, now=NOW, exact=exact)
    assert {
        "id",
        "model",
        "version",
        "input",
        "output",
        "data_removed",
        "error",
        "status",
        "created_at",
        "urls",
    } <= {*body}
    assert body["status"] in (SIX if exact else SIX - {"aborted"})
    assert not (exact and adapted)
    assert (body["error"] is not None) == (body["status"] == "failed")
    assert body["urls"]["cancel"] == f"{BASE}/v1/predictions/{body['id']}/cancel"
    msgspec.json.encode(body)


def test_what_is_told_of_one_that_waits() -> None:
    known = durable(status=ItemStatus.QUEUED)
    body, adapted = shape(known, Output(), base=BASE, now=NOW)
    assert (body["created_at"], body["deadline"]) == ("2026-11-01T12:00:00.123Z", "2026-11-01T12:00:30.123Z")
    assert (body["model"], body["version"], body["input"]) == ("a/b", "hidden", {"prompt": "x"})
    assert "completed_at" not in body
    assert "metrics" not in body
    assert adapted == ()


def test_one_that_settles_is_told_as_done_and_for_purists_as_it_is() -> None:
    made = make_prediction(
        status=Status.SUCCEEDED, upstream_id="up", ended_at=NOW, output=(FILE,), predict_seconds=None
    )
    known, output = durable(made, status=ItemStatus.SUCCEEDED), Output([FILE])
    body, adapted = shape(known, output, base=BASE, now=NOW)
    assert (body["status"], adapted) == ("succeeded", (("status", "processing", "succeeded"),))
    body, adapted = shape(known, output, base=BASE, now=NOW, exact=True)
    assert (body["status"], adapted) == ("processing", ())
    body, adapted = shape(known, output, base=BASE, now=NOW + timedelta(minutes=2), exact=True)
    assert (body["status"], adapted) == ("succeeded", ())


def test_a_deployment_and_a_version_alone_are_told_by_the_model_that_ran() -> None:
    made = make_prediction(model="deployments/acme/fast", ran_as="a/b", version="5c7d")
    body, _ = shape(Known(prediction=made), Output(), base=BASE, now=NOW)
    assert (body["deployment"], body["model"], body["version"]) == ("acme/fast", "a/b", "5c7d")
    body, _ = shape(Known(prediction=make_prediction(model="0" * 64)), Output(), base=BASE, now=NOW)
    assert (body["model"], body["version"]) == ("0" * 64, "0" * 64)


_TEXT = st.text(alphabet="abc", max_size=5)
_FILES = st.one_of(
    st.text(alphabet="xyz", min_size=1, max_size=5).map(lambda name: f"https://files.example/{name}"),
    st.text(alphabet="xyz", min_size=1, max_size=5).map(lambda name: f"data:image/png;base64,{name}"),
)
_OUTPUTS = st.recursive(
    st.one_of(_TEXT, _FILES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=6,
)


def files_in(output: Any) -> list[str]:
    if isinstance(output, str):
        return [output] if output.startswith(("https:", "data:")) else []
    parts = output.values() if isinstance(output, dict) else output
    return [file for part in parts for file in files_in(part)]


@given(_OUTPUTS)
def test_an_output_that_was_written_down_without_its_files_is_put_together_again(output: Any) -> None:
    files = files_in(output)
    kept = without_files(output)
    assert all(not file.startswith("data:") or file == "data:" for file in files_in(kept))
    assert with_files(kept, files) == output
    if kept != output:
        assert with_files(kept, ()) is None


@given(_OUTPUTS)
def test_what_the_service_told_is_shown_as_it_told_it(output: Any) -> None:
    """`answer` is its form, `output` its files: together they are what came."""
    files = files_in(output)
    same = output == files
    made = make_prediction(output=tuple(files), answer=None if same else without_files(output))
    shown = output_so_far(made)
    assert shown == (output or None if same else output)


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_ids_tell_when_they_were_made_and_are_cut_by_it(moment: datetime) -> None:
    made = new_id("pred", moment)
    told = instant_of(made)
    assert told is not None
    assert abs(told - moment) < timedelta(milliseconds=2)
    assert id_at("pred", moment) <= made < id_at("pred", moment + timedelta(milliseconds=2))
    assert instant_of("pred_of_somebody") is None
