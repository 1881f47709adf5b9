"""Replicate's protocol without a network: the exact requests, and answers as they were recorded."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from imagen.backends.replicate.wire import Page, Wire, outputs_asked_for, read_output, read_time
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Status
from imagen.domain.secret import Secret
from imagen.errors import BackendRejected, GarbledResponse, ImagenError, InvalidResponse
from imagen.transport.message import HttpRequest, HttpResponse

API = "https://api.replicate.com"
TOKEN = Secret("r8_secret")
WIRE = Wire(api_base=API, token=TOKEN, token_env="REPLICATE_API_TOKEN", read_seconds=30.0)
HASH = "c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e"
SCHNELL = ModelRef("black-forest-labs", "flux-schnell")
INPUT = {"prompt": "a fox", "seed": 7}


def create(model: ModelRef = SCHNELL, *, hold: float = 0, deadline: float | None = None) -> HttpRequest:
    return WIRE.build_create(model, INPUT, hold_seconds=hold, deadline_seconds=deadline)


def answer(value: Any, status: int = 200) -> HttpResponse:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return HttpResponse(status, {}, body)


# --- requests ---


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        (SCHNELL, "/models/black-forest-labs/flux-schnell/predictions", None),
        (ModelRef("a", "b", HASH), "/predictions", HASH),
        (ModelRef("a", "b", "v1.2"), "/predictions", "a/b:v1.2"),
        (ModelRef("acme", "fast", None, deployment=True), "/deployments/acme/fast/predictions", None),
    ],
)
def test_a_create_goes_to_the_path_that_its_model_runs_on(model: ModelRef, path: str, version: str | None):
    request = create(model)
    assert (request.method, request.url) == ("POST", f"{API}/v1{path}")
    assert json.loads(request.body or b"") == {"input": INPUT, **({"version": version} if version else {})}
    assert request.headers == {"accept": "application/json", "content-type": "application/json"}
    assert request.bearer is TOKEN
    assert not request.repeatable, "a create is bought at most once"


@pytest.mark.parametrize(
    ("hold", "header", "least_wait"),
    [
        (0, None, 30),
        (0.9, None, 30),
        (1, "wait=1", 30),
        (2.7, "wait=2", 30),
        (59.99, "wait=59", 74),
        (60, "wait=60", 75),
        (600, "wait=60", 75),
    ],
)
def test_a_create_may_be_held_for_one_to_sixty_seconds(hold: float, header: str | None, least_wait: float):
    request = create(hold=hold)
    assert request.headers.get("prefer") == header
    assert request.response_seconds == least_wait


@pytest.mark.parametrize(
    ("deadline", "header"),
    [(None, None), (0.1, "5s"), (5, "5s"), (5.01, "6s"), (120, "120s"), (86_400, "86400s")],
)
def test_a_deadline_is_told_in_whole_seconds_of_five_and_more(deadline: float | None, header: str | None):
    assert create(deadline=deadline).headers.get("cancel-after") == header


@pytest.mark.parametrize(
    ("request_", "method", "path"),
    [
        (WIRE.build_get("abc123"), "GET", "/predictions/abc123"),
        (WIRE.build_get("a/../b?c#d"), "GET", "/predictions/a%2F..%2Fb%3Fc%23d"),
        (WIRE.build_cancel("abc"), "POST", "/predictions/abc/cancel"),
        (WIRE.build_list(), "GET", "/predictions"),
        (WIRE.build_model(SCHNELL), "GET", "/models/black-forest-labs/flux-schnell"),
        (WIRE.build_version(ModelRef("a", "b", HASH)), "GET", f"/models/a/b/versions/{HASH}"),
        (WIRE.build_deployment(ModelRef("a", "b", None, deployment=True)), "GET", "/deployments/a/b"),
        (WIRE.build_account(), "GET", "/account"),
    ],
)
def test_all_other_calls_may_be_repeated_and_carry_the_token(request_: HttpRequest, method: str, path: str):
    assert (request_.method, request_.url) == (method, f"{API}/v1{path}")
    assert request_.repeatable
    assert request_.bearer is TOKEN
    assert request_.body is None


def test_a_list_before_an_instant_is_asked_for_in_utc():
    at = datetime(2026, 11, 1, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    assert WIRE.build_list(created_before=at).url.endswith(
        "?created_before=2026-11-01T12%3A00%3A00%2B00%3A00"
    )


@pytest.mark.parametrize(
    ("following", "cursor"),
    [
        (f"{API}/v1/predictions?cursor=cD0y", "cursor=cD0y"),
        ("https://API.replicate.com:443/v1/predictions?cursor=x", "cursor=x"),
        ("/v1/predictions?cursor=x", "cursor=x"),
        ("http://api.replicate.com/v1/predictions?cursor=x&y=1", "cursor=x&y=1"),
        ("https://evil.example/v1/predictions?cursor=x", "cursor=x"),
        ("https://api.replicate.com@evil.example/?cursor=x", "cursor=x"),
        ("https://api.replicate.com:port/?cursor=x", "cursor=x"),
        ("https://a.b/c?cursor=x#@evil.example/", "cursor=x"),
        ("?cursor=x/../../files", "cursor=x/../../files"),
        (None, None),
        ("", None),
        ("https://evil.example/v1/predictions", None),
        ("https://[", None),
        ("https://[?cursor=x", None),
        ("javascript:alert(1)", None),
    ],
)
def test_the_next_page_is_only_asked_for_at_home(following: str | None, cursor: str | None):
    request = WIRE.build_next(Page((), following))
    assert (request is not None) is (cursor is not None)
    assert request is None or (request.url, request.bearer) == (f"{API}/v1/predictions?{cursor}", TOKEN)
    assert request is None or request.repeatable


@pytest.mark.parametrize(
    ("url", "own"),
    [
        (f"{API}/v1/files/abc/download", True),
        ("https://replicate.delivery/a.png", False),
        ("https://evil.example/api.replicate.com", False),
        ("http://api.replicate.com/a.png", False),
        ("https://user@api.replicate.com.evil/", False),
        ("https://[", False),
        ("data:image/png;base64,AAAA", False),
        ("", False),
    ],
)
def test_the_token_is_shown_to_the_own_host_only(url: str, own: bool):
    request = WIRE.build_file(url, limit_bytes=5)
    assert request.bearer is (TOKEN if own else None)
    assert (request.method, request.limit_bytes, request.repeatable) == ("GET", 5, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fox.png", b"\x89PNG\r\n\x1a\n\x00\xff"),
        ('größe "x"\r\nX-Evil: 1.png', b""),
        ("水" * 300 + ".webp", b"--imagen-7MA4YWxkTrZu0gW\r\n--imagen-7MA4YWxkTrZu0gW--\r\n-x"),
    ],
)
def test_an_upload_is_read_by_an_independent_parser(name: str, content: bytes):
    request = WIRE.build_upload(name, content, "image/png")
    assert (request.method, request.url) == ("POST", f"{API}/v1/files")
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + (request.body or b""))
    (part,) = message.iter_parts()
    assert part.get_param("name", header="content-disposition") == "content"
    assert part.get_content_type() == "image/png"
    assert len((part.get_filename() or "").encode()) <= 255
    assert (part.get_filename() or "").endswith(name[-4:])
    assert [key.lower() for key in part] == ["content-disposition", "content-type"]
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    assert (request.body or b"").split(b"\r\n\r\n", 1)[1] == content + b"\r\n--" + boundary + b"--\r\n"


# --- answers ---

RECORDED = {
    "id": "ufawqhfynnddngldkgtslldrkq",
    "model": "black-forest-labs/flux-schnell",
    "version": "dp-4d0bcc010b3049749a251855f12800be",
    "input": INPUT,
    "logs": "",
    "output": ["https://replicate.delivery/xezq/a/out-0.webp"],
    "data_removed": False,
    "error": None,
    "status": "processing",
    "created_at": "2024-10-04T18:07:40.328Z",
    "urls": {"cancel": f"{API}/v1/predictions/u/cancel", "get": f"{API}/v1/predictions/u"},
}


def seen(**changes: Any) -> Any:
    return WIRE.parse_prediction(answer({**RECORDED, **changes}), subject="it")


@pytest.mark.parametrize(
    ("wanted", "status"), [({}, Status.PROCESSING), ({"num_outputs": 1}, Status.SUCCEEDED)]
)
def test_a_recorded_blocking_create_with_its_output_filled_counts_as_succeeded_if_so_many_were_asked_for(
    wanted: dict[str, int], status: Status
):
    body = {**RECORDED, "input": {**INPUT, **wanted}}
    sighting = WIRE.parse_prediction(answer(body, 201), subject="it")
    assert sighting.status is status
    assert sighting.output == ("https://replicate.delivery/xezq/a/out-0.webp",)
    assert sighting.version == "dp-4d0bcc010b3049749a251855f12800be"
    assert sighting.created_at == datetime(2024, 10, 4, 18, 7, 40, 328_000, tzinfo=UTC)
    assert (sighting.started_at, sighting.completed_at, sighting.predict_seconds) == (None, None, None)


def test_a_recorded_starting_body_without_output_is_only_starting():
    body = {
        name: RECORDED[name]
        for name in ("id", "model", "version", "input", "logs", "error", "created_at", "urls")
    }
    sighting = WIRE.parse_prediction(answer({**body, "status": "starting"}, 201), subject="it")
    assert (sighting.status, sighting.output, sighting.data_removed) == (Status.STARTING, (), False)


def test_a_whole_body_tells_everything():
    sighting = seen(
        status="succeeded",
        version="hidden",
        started_at="2024-10-04T18:07:41Z",
        completed_at="2024-10-04T20:07:42+02:00",
        metrics={"predict_time": 0.82, "image_count": 1, "total_time": 1.9, "unknown": {}},
        logs="100%|████",
    )
    assert (sighting.predict_seconds, sighting.image_count, sighting.version) == (0.82, 1, "hidden")
    assert sighting.completed_at == datetime(2024, 10, 4, 18, 7, 42, tzinfo=UTC)
    assert sighting.logs == "100%|████"


@pytest.mark.parametrize(
    ("wanted", "output", "status"),
    [
        ({}, None, Status.PROCESSING),
        ({}, [], Status.PROCESSING),
        ({}, "https://a.b/c.png", Status.SUCCEEDED),
        ({"num_outputs": 2}, ["https://a.b/1"], Status.PROCESSING),
        ({"num_outputs": 2}, ["https://a.b/1", "https://a.b/2"], Status.SUCCEEDED),
        ({"number_of_images": 2}, ["https://a.b/1"], Status.PROCESSING),
        ({"num_outputs": 1}, ["data:image/png;base64,AAAA"], Status.SUCCEEDED),
        ({"number_of_images": 1}, ["https://a.b/1"], Status.SUCCEEDED),
        ({"num_outputs": 2}, ["https://a.b/1", "https://a.b/2", "https://a.b/3"], Status.SUCCEEDED),
        ({"num_outputs": 2}, {"a": "https://a.b/1", "b": ["https://a.b/2"]}, Status.SUCCEEDED),
        ({"num_outputs": 2}, ["https://a.b/1", "a caption"], Status.PROCESSING),
        ({}, "data:image/png;base64,AAAA", Status.SUCCEEDED),
        ({}, ["data:image/png;base64,AAAA"], Status.PROCESSING),  # without a number it may still grow
        ({}, ["https://a.b/1", "https://a.b/2"], Status.PROCESSING),
        ({}, {"image": "https://a.b/1"}, Status.PROCESSING),
        ({}, "a caption", Status.PROCESSING),
        ({"num_outputs": 1}, "a caption", Status.PROCESSING),
    ],
)
def test_processing_with_all_its_outputs_is_done(wanted: dict[str, int], output: Any, status: Status):
    assert seen(input={**INPUT, **wanted}, output=output).status is status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "starting"}, Status.STARTING),
        ({"status": "processing"}, Status.PROCESSING),
        ({"status": "succeeded"}, Status.SUCCEEDED),
        ({"status": "failed"}, Status.FAILED),
        ({"status": "canceled"}, Status.CANCELED),
        ({"status": "aborted"}, Status.ABORTED),
        ({"status": "queued"}, Status.STARTING),
        ({"status": "unknown"}, Status.STARTING),
        ({"status": "hibernating"}, Status.STARTING),
        ({"status": None}, Status.STARTING),
        ({"status": []}, Status.STARTING),
        ({"status": 7}, Status.STARTING),
        ({"status": "expired", "completed_at": "2024-10-04T18:07:42Z", "error": "too old"}, Status.FAILED),
        ({"status": "done", "completed_at": "2024-10-04T18:07:42Z"}, Status.SUCCEEDED),
    ],
)
def test_all_statuses_and_words_that_we_do_not_know_yet(changes: dict[str, Any], status: Status):
    assert seen(output=None, **changes).status is status


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("NSFW content detected.", "NSFW content detected."),
        ({"detail": "x", "code": 5}, '{"detail":"x","code":5}'),
        (["a"], '["a"]'),
        (None, None),
        ("", None),
    ],
)
def test_an_error_of_any_form_becomes_text(error: Any, text: str | None):
    assert seen(status="failed", error=error, output=None).error == text


@pytest.mark.parametrize("nothing", [None, 5, "x", [], {}, True])
def test_fields_of_no_use_are_taken_for_none(nothing: Any):
    sighting = seen(
        input=nothing,
        logs=None,
        metrics=nothing,
        created_at=nothing,
        started_at=nothing,
        urls=nothing,
        version=None,
    )
    assert (sighting.created_at, sighting.started_at, sighting.predict_seconds) == (None, None, None)


@pytest.mark.parametrize(
    ("metrics", "seconds", "count"),
    [
        ({"predict_time": 1, "image_count": 2.0}, 1.0, 2),
        ({"predict_time": -1, "image_count": -1}, None, None),
        ({"predict_time": "1", "image_count": True}, None, None),
        ({"predict_time": 10**400, "image_count": 10**30}, None, None),
    ],
)
def test_measures_that_make_no_sense_are_none(metrics: Any, seconds: float | None, count: int | None):
    sighting = seen(metrics=metrics)
    assert (sighting.predict_seconds, sighting.image_count) == (seconds, count)


def test_removed_data_is_noticed():
    sighting = seen(status="succeeded", input={}, output=None, data_removed=True)
    assert (sighting.data_removed, sighting.output, sighting.status) == (True, (), Status.SUCCEEDED)


A, B = "https://a.b/1.png", "https://a.b/2.png"


@pytest.mark.parametrize(
    ("output", "files"),
    [
        (None, ()),
        ("", ()),
        ("u", ()),
        (A, (A,)),
        ("http://a.b/c", ("http://a.b/c",)),
        ("data:,x", ("data:,x",)),
        ("a caption with https://a.b/c", ()),
        ("ftp://a.b/c", ()),
        ("file:///etc/passwd", ()),
        ([A, B], (A, B)),
        ([A, None, 5, "", "x", [B]], (A, B)),
        ({"image": A, "mask": B, "n": 1, "text": "x"}, (A, B)),
        ([{"a": [A, "x"], "b": {"c": B}}, [[A]]], (A, B, A)),
        ({}, ()),
        (5, ()),
        (True, ()),
    ],
)
def test_outputs_of_every_shape(output: Any, files: tuple[str, ...]):
    assert read_output(output) == files


def test_an_output_may_be_nested_as_deep_as_json_can_say():
    depth = 800
    body = b'{"id": "x", "output": %s"%s"%s}' % (b"[" * depth, A.encode(), b"]" * depth)
    assert WIRE.parse_prediction(answer(body), subject="it").output == (A,)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2024-10-04T18:07:40.328Z", datetime(2024, 10, 4, 18, 7, 40, 328_000, tzinfo=UTC)),
        ("2024-10-04T18:07:40.328123456Z", datetime(2024, 10, 4, 18, 7, 40, 328_123, tzinfo=UTC)),
        ("2024-10-04T18:07:40", datetime(2024, 10, 4, 18, 7, 40, tzinfo=UTC)),
        ("2024-10-04T20:07:40+02:00", datetime(2024, 10, 4, 18, 7, 40, tzinfo=UTC)),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("yesterday", None),
        ("", None),
        (1728065260, None),
    ],
)
def test_instants_are_utc_or_none(text: Any, at: datetime | None):
    assert read_time(text) == at


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (None, 1),
        ({}, 1),
        ({"num_outputs": 4}, 4),
        ({"number_of_images": 2}, 2),
        ({"num_outputs": "4"}, 1),
        ({"num_outputs": 0}, 1),
    ],
)
def test_how_many_files_a_run_shall_give(values: Any, count: int):
    assert outputs_asked_for(values) == count


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502</html>",
        b"null",
        b"[]",
        b'"id"',
        b"{",
        b'{"id": ',
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b"{}",
        b'{"id": null}',
        b'{"id": ""}',
        b'{"id": 5}',
        b'{"id": ["x"]}',
        b"[" * 200_000,
        b'{"id": "x", "input": ' + b'{"a":' * 100_000,
        b'{"id": "\\ud800"}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_an_answer_that_is_no_prediction_is_garbled(body: bytes):
    with pytest.raises(GarbledResponse, match=r"^it: ") as told:
        WIRE.parse_prediction(answer(body), subject="it")
    assert isinstance(told.value, InvalidResponse)
    assert told.value.delivered == "unknown"
    assert told.value.retryable


def test_a_page_holds_what_has_an_id():
    page = WIRE.parse_page(
        answer({"next": "u", "results": [RECORDED, 5, None, {}, {"id": []}]}), subject="it"
    )
    assert page == Page((RECORDED,), "u")
    assert WIRE.parse_page(answer({"results": [], "next": 5}), subject="it") == Page((), None)


@pytest.mark.parametrize("value", [{}, {"results": None}, {"results": {}}, {"detail": "maintenance"}])
def test_what_is_no_page_is_not_taken_for_an_empty_one(value: Any):
    with pytest.raises(GarbledResponse) as told:
        WIRE.parse_page(answer(value), subject="it")
    assert told.value.retryable


SCHEMAS = {
    "Input": {"type": "object", "properties": {"prompt": {"type": "string"}}},
    "Output": {"type": "array", "items": {"type": "string"}},
    "ratio": {"enum": ["1:1"]},
}
VERSION = {"id": HASH, "openapi_schema": {"components": {"schemas": SCHEMAS}}}


@pytest.mark.parametrize(
    ("value", "official", "version", "fields", "is_list"),
    [
        ({"is_official": True, "latest_version": VERSION}, True, HASH, ["prompt"], True),
        ({"latest_version": VERSION}, None, HASH, ["prompt"], True),
        ({"latest_version": None}, None, None, None, None),
        (VERSION, None, HASH, ["prompt"], True),
        ({"current_release": {"version": HASH, "model": "a/b"}}, None, None, None, None),
        ({"current_release": None}, None, None, None, None),
        ({"latest_version": {"id": 5, "openapi_schema": "x"}, "is_official": "yes"}, None, None, None, None),
        (
            {"openapi_schema": {"components": {"schemas": {"Input": {"properties": []}}}}},
            None,
            None,
            None,
            None,
        ),
        ({}, None, None, None, None),
    ],
)
def test_facts_of_models_and_versions(
    value: Any, official: bool | None, version: str | None, fields: list[str] | None, is_list: bool | None
):
    facts = WIRE.parse_model(answer(value), subject="it")
    assert (facts.official, facts.version, facts.output_is_list) == (official, version, is_list)
    assert (list(facts.input_schema["properties"]) if facts.input_schema else None) == fields
    if facts.input_schema:
        assert facts.input_schema["$defs"] == {"ratio": {"enum": ["1:1"]}}


def test_a_deployment_runs_a_version_of_a_model():
    value = {
        "owner": "acme",
        "name": "fast",
        "current_release": {"number": 3, "model": "a/b", "version": HASH},
    }
    assert WIRE.parse_release(answer(value), subject="it") == ModelRef("a", "b", HASH)


@pytest.mark.parametrize(
    "release",
    [
        None,
        {},
        [],
        {"model": "a/b"},
        {"model": "a/b", "version": None},
        {"model": "a/b", "version": ""},
        {"model": None, "version": HASH},
        {"model": "b", "version": HASH},
        {"model": "a/b:c", "version": HASH},
        {"model": "deployments/a/b", "version": HASH},
        {"model": "a/..", "version": HASH},
        {"model": "a/b", "version": "x/../y"},
        {"model": {}, "version": []},
    ],
)
def test_a_deployment_that_runs_nothing_is_garbled(release: Any):
    with pytest.raises(GarbledResponse, match=r"^it: .*no release"):
        WIRE.parse_release(answer({"current_release": release}), subject="it")


def test_a_deployment_that_is_refused_is_refused():
    with pytest.raises(BackendRejected):
        WIRE.parse_release(answer({"detail": "no"}, 404), subject="it")


def test_a_token_is_in_no_error_and_no_repr():
    request = create()
    assert "r8_secret" not in repr(request) + repr(WIRE)
    refusal = HttpResponse(401, {}, b'{"detail": "no"}')
    with pytest.raises(ImagenError) as told:
        WIRE.parse_json(refusal, subject="it")
    assert "r8_secret" not in str(told.value)


def test_an_upload_is_not_base64():
    content = b"\x00" * 1000
    assert base64.b64encode(content) not in (WIRE.build_upload("a.bin", content, "x/y").body or b"")


@pytest.mark.parametrize(
    ("output", "answer", "files"),
    [
        (None, None, ()),
        ([], None, ()),
        (["https://a.b/1.png", "https://a.b/2.png"], None, ("https://a.b/1.png", "https://a.b/2.png")),
        ("https://a.b/1.png", "https://a.b/1.png", ("https://a.b/1.png",)),
        (["Once", " upon"], ["Once", " upon"], ()),
        (
            {"image": "https://a.b/1.png", "n": 2},
            {"image": "https://a.b/1.png", "n": 2},
            ("https://a.b/1.png",),
        ),
        ("data:image/png;base64,AAAA", "data:", ("data:image/png;base64,AAAA",)),
        (["data:image/png;base64,AAAA"], None, ("data:image/png;base64,AAAA",)),
        ({"a": ["data:image/png;base64,AAAA"]}, {"a": ["data:"]}, ("data:image/png;base64,AAAA",)),
        ("x" * 70_000, None, ()),
        (["Once", "upon" * 20_000], None, ()),
    ],
)
def test_an_output_that_is_no_list_of_files_is_told_as_it_is(
    output: Any, answer: Any, files: tuple[str, ...]
):
    sighting = seen(output=output)
    assert (sighting.answer, sighting.output) == (answer, files)
