"""Whatever comes back: a value, or one of our errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen.backends.replicate.refusals import without_quotes
from imagen.backends.replicate.wire import Page, Wire
from imagen.domain.prediction import Sighting, Status
from imagen.domain.secret import Secret
from imagen.errors import BackendError, ImagenError
from imagen.transport.message import HttpResponse, is_loopback, origin

WIRE = Wire(api_base="https://api.replicate.com", token=Secret("r8_x"), token_env="TOKEN")
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    [
        "starting",
        "succeeded",
        "2024-10-04T18:07:40Z",
        "9999-12-31T23:59:59-01:00",
        "https://[",
        "data:,",
        "~5s",
        "NSFW",
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.just(10**300) | st.floats(allow_nan=False, allow_infinity=False) | texts  # fmt: skip
KEYS = [
    *(
        [
            "id",
            "status",
            "input",
            "output",
            "error",
            "logs",
            "metrics",
            "version",
            "created_at",
            "started_at",
            "completed_at",
            "data_removed",
        ]
    ),
    *(
        [
            "predict_time",
            "image_count",
            "num_outputs",
            "results",
            "next",
            "detail",
            "title",
            "retry_after",
            "invalid_fields",
            "field",
        ]
    ),
    *(
        [
            "description",
            "latest_version",
            "openapi_schema",
            "components",
            "schemas",
            "Input",
            "Output",
            "properties",
            "is_official",
        ]
    ),
    *(["type", "current_release", "urls"]),
]
json_values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=8)
    ),
    max_leaves=25,
)
objects = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=12)
bodies = (objects | json_values).map(msgspec.json.encode) | st.binary(max_size=60)
headers = st.dictionaries(
    st.sampled_from(["retry-after", "date", "x-request-id", "content-type"]),
    texts
    | st.sampled_from(
        ["5", "0", "9" * 400, "Wed, 21 Oct 2099 07:28:00 GMT", "Fri, 01 Jan 0001 00:00:00 +2359"]
    ),
)


@given(objects, st.sampled_from(["x", "y"]))
@settings(max_examples=200)
def test_any_object_with_an_id_is_a_sighting(value: dict[str, Any], identity: str):
    value["id"] = identity
    response = HttpResponse(200, {}, msgspec.json.encode(value))
    sighting = WIRE.parse_prediction(response, subject="it")
    assert isinstance(sighting, Sighting)
    assert sighting.upstream_id == identity
    assert all(url.startswith(("https:", "http:", "data:")) for url in sighting.output)


def check_refusal(error: ImagenError) -> None:
    assert isinstance(error, BackendError)
    assert len(str(error)) < 2000
    assert error.retry_after is None or error.retry_after >= 0
    assert str(error).isprintable()


@given(st.integers(200, 599), headers, bodies)
@settings(max_examples=200)
def test_any_answer_is_read_or_refused_as_ours(status: int, told: dict[str, str], body: bytes):
    response = HttpResponse(status, told, body)
    for parse in (
        WIRE.parse_prediction,
        WIRE.parse_page,
        WIRE.parse_model,
        WIRE.parse_release,
        WIRE.parse_json,
        partial(WIRE.parse_glance, known={"a": None, "": Status.STARTING}),
    ):
        try:
            value = parse(response, subject="it")
        except ImagenError as refused:
            check_refusal(refused)
        else:
            assert status < 300
            if isinstance(value, Page) and (request := WIRE.build_next(value)):
                assert origin(request.url) == origin(WIRE.api_base)


@given(st.lists(objects, max_size=8), st.sampled_from([None, *Status]))
def test_a_glance_tells_of_each_prediction_what_a_look_tells(
    entries: list[dict[str, Any]], stood: Status | None
):
    for number, entry in enumerate(entries):
        entry["id"] = f"id-{number}"
    response = HttpResponse(200, {}, msgspec.json.encode({"results": entries}))
    glance = WIRE.parse_glance(response, subject="it", known={entry["id"]: stood for entry in entries})
    assert list(glance.shown) == [entry["id"] for entry in entries]
    for entry in entries:
        seen = WIRE.parse_prediction(HttpResponse(200, {}, msgspec.json.encode(entry)), subject="it")
        assert glance.shown[seen.upstream_id] == seen.created_at
        if seen.upstream_id in glance.moved:
            assert glance.moved[seen.upstream_id] == seen
        else:
            assert seen.status is stood or not seen.status.terminal, "no end is overlooked"


@given(st.text(max_size=40) | texts.map(lambda text: f"https://{text}/x?{text}"))
def test_the_next_page_is_asked_at_home_or_not_at_all(following: str):
    request = WIRE.build_next(Page((), following))
    assert request is None or request.url.startswith("https://api.replicate.com/v1/predictions?")


@given(
    st.text('fox ü\n"\\', min_size=4, max_size=60).filter(lambda text: len(text.strip()) >= 4),
    st.text("0123 ", max_size=30),
    st.sampled_from([str, json.dumps, lambda text: json.dumps(text, ensure_ascii=False)]),
)
def test_a_prompt_is_never_left_whole_in_a_refusal(prompt: str, others: str, quote: Callable[[str], str]):
    body = f"{others}{quote(prompt)}{others}{quote(prompt)}".encode()
    seen = without_quotes(HttpResponse(422, {}, body), prompt).body.decode()
    assert "[the prompt]" in seen
    assert not set(seen.replace("[the prompt]", "")) & set("foxü")


@given(
    st.text(max_size=40)
    | texts.map(lambda text: f"https://{text}/x")
    | texts.map(lambda text: f"http://{text}")
)
def test_any_address_has_an_origin_or_none(url: str):
    assert isinstance(origin(url), str)
    is_loopback(url)
    WIRE.build_file(url, limit_bytes=1)
