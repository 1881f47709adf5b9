"""Logs hide what looks like a token, in both forms, wherever it stands."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.secret import Secret
from imagen.instrumentation.clock import SystemClock
from imagen.instrumentation.logs import (
    JsonFormatter,
    TextFormatter,
    access_line,
    configure_logging,
    mask,
    request_id,
)

TOKEN = "r8_AbCdEf0123456789_-xyzXYZ"
FORMATTERS = [TextFormatter(), JsonFormatter()]


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("imagen.test", logging.WARNING, "f.py", 1, message, arguments, trace)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing here", "nothing here"),
        (TOKEN, "r8_***"),
        (f"token={TOKEN}, next", "token=r8_***, next"),
        (f'"{TOKEN}"', '"r8_***"'),
        (f"token%3D{TOKEN}&x", "token%3Dr8_***&x"),
        (f"\\n{TOKEN}", "\\nr8_***"),
        (f"{TOKEN} and {TOKEN}", "r8_*** and r8_***"),
        ("Authorization: Bearer abcdefghijklmnop.qrs", "Authorization: Bearer ***"),
        (f"Bearer {TOKEN}", "Bearer r8_***"),
        ("r8_short", "r8_short"),
        ("Bearer of news", "Bearer of news"),
    ],
)
def test_what_looks_like_a_token_is_masked(text: str, shown: str):
    assert mask(text) == shown


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["text", "json"])
@pytest.mark.parametrize(
    "logged",
    [
        record(f"sending {TOKEN}"),
        record("sending %s", TOKEN),
        record("headers %r", {"authorization": f"Bearer {TOKEN}"}),
        record("lines\n%s\t%s", TOKEN, TOKEN),
        record("secret %s %r", Secret(TOKEN), Secret(TOKEN)),
        record("broken", error=ValueError(f"with {TOKEN}")),
        record("url https://x/?q=%%3D%s", TOKEN),
    ],
)
def test_no_form_of_log_shows_a_token(formatter: logging.Formatter, logged: logging.LogRecord):
    line = formatter.format(logged)
    assert "AbCdEf" not in line
    assert "xyzXYZ" not in line


@given(st.text(max_size=20), st.text(max_size=20), st.from_regex(r"r8_[A-Za-z0-9]{37}", fullmatch=True))
def test_a_token_is_found_in_any_surroundings(before: str, after: str, token: str):
    for formatter in FORMATTERS:
        assert token not in formatter.format(record("%s", f"{before}{token}{after}"))


def test_a_json_line_is_one_object():
    line = JsonFormatter().format(record('a "quoted"\nline with größe', error=KeyError("x")))
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == 'a "quoted"\nline with größe'
    assert (told["level"], told["logger"]) == ("warning", "imagen.test")
    assert told["trace"].endswith("KeyError: 'x'")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told["at"])


def test_text_that_is_no_unicode_is_shown_all_the_same():
    assert (
        json.loads(JsonFormatter().format(record("file %s", "a\udcff.png")))["message"] == "file a\\udcff.png"
    )


def test_a_text_line_says_level_logger_and_message():
    assert TextFormatter().format(record("hello %d", 5)) == "WARNING imagen.test: hello 5"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("form", "shown"), [("text", "WARNING imagen.x: r8_***"), ("json", '"message":"r8_***"')]
)
def test_the_log_goes_to_stderr_from_its_level_on_and_once(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, form: str, shown: str
):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging(level="debug", form=form)
    configure_logging(level="warning", form=form)
    logging.getLogger("imagen.x").info("not this")
    logging.getLogger("imagen.x").warning(TOKEN)
    assert stderr.getvalue().count("\n") == 1
    assert shown in stderr.getvalue()


@pytest.mark.anyio
async def test_the_systems_clock_is_aware_and_goes_on():
    clock = SystemClock()
    before, instant = clock.monotonic(), clock.now()
    await clock.sleep(0)
    assert clock.monotonic() >= before
    assert instant.utcoffset() is not None
    assert instant.tzname() == "UTC"


# --- the id of the request, fields, and the access log ---------------------------------------------------


@pytest.fixture
def within_a_request() -> Iterator[str]:
    token = request_id.set("req-7")
    yield "req-7"
    request_id.reset(token)


def test_a_line_outside_of_any_request_has_no_id():
    assert "request_id" not in json.loads(JsonFormatter().format(record("hello")))
    assert "[" not in TextFormatter().format(record("hello"))


def test_a_line_within_a_request_says_of_which(within_a_request: str):
    assert json.loads(JsonFormatter().format(record("hello")))["request_id"] == "req-7"
    assert TextFormatter().format(record("hello")) == "WARNING imagen.test [req-7]: hello"


@pytest.mark.anyio
async def test_requests_that_are_served_at_the_same_time_keep_their_ids_apart():
    async def serve(this: str) -> str:
        request_id.set(this)
        await asyncio.sleep(0)
        in_a_thread = await asyncio.to_thread(TextFormatter().format, record("hello"))
        return f"{TextFormatter().format(record('hello'))} {in_a_thread}"

    lines = await asyncio.gather(serve("one"), serve("two"))
    assert [(line.count("[one]"), line.count("[two]")) for line in lines] == [(2, 0), (0, 2)]
    assert request_id.get() is None


def with_fields(fields: object) -> logging.LogRecord:
    logged = record("hello")
    logged.fields = fields
    return logged


def test_fields_of_a_record_are_fields_of_the_line():
    told = json.loads(
        JsonFormatter().format(
            with_fields({"model": "flux", "ms": 12.5, "count": 3, "last": True, "none": None})
        )
    )
    assert told["model"] == "flux"
    assert (told["ms"], told["count"], told["last"], told["none"]) == (12.5, 3, True, None)


def test_a_field_cannot_take_the_place_of_what_the_line_says_itself(within_a_request: str):
    told = json.loads(
        JsonFormatter().format(with_fields({"message": "forged", "level": "debug", "request_id": "forged"}))
    )
    assert (told["message"], told["level"], told["request_id"]) == ("hello", "warning", "req-7")


def test_fields_hide_secrets_as_messages_do():
    line = JsonFormatter().format(
        with_fields({"token": TOKEN, "secret": Secret("hush-hush"), "deep": {"in": [TOKEN]}, TOKEN: 1})
    )
    assert "AbCdEf" not in line
    assert "hush" not in line
    assert json.loads(line)["secret"] == "***"


def test_fields_that_are_no_unicode_or_no_fields_break_no_line():
    assert json.loads(JsonFormatter().format(with_fields({"path": "a\udcff"})))["path"] == "a\\udcff"
    assert json.loads(JsonFormatter().format(with_fields("nonsense")))["message"] == "hello"


ANSWERED = {
    "method": "POST", "route": "/generate", "path": "/generate", "status": 200, "ms": 12.345, "caller": "kai",
}  # fmt: skip


def logged_access(caplog: pytest.LogCaptureFixture, **changes: object) -> logging.LogRecord:
    caplog.clear()
    with caplog.at_level(logging.INFO, "imagen.access"):
        access_line(**ANSWERED | changes)  # type: ignore[arg-type]
    (found,) = caplog.records
    return found


def test_an_answered_request_is_one_line_with_fields(caplog: pytest.LogCaptureFixture):
    found = logged_access(caplog)
    assert (found.name, found.levelname) == ("imagen.access", "INFO")
    told = json.loads(JsonFormatter().format(found))
    assert {name: told[name] for name in ANSWERED} == ANSWERED | {"ms": 12.3}
    assert TextFormatter().format(found) == "INFO imagen.access: POST /generate 200 12.3 ms"


def test_no_access_is_logged_where_only_warnings_are(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "imagen.access"):
        access_line(**ANSWERED)  # type: ignore[arg-type]
    assert caplog.records == []


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["text", "json"])
def test_a_strangers_path_stays_on_one_short_line(
    caplog: pytest.LogCaptureFixture, formatter: logging.Formatter
):
    found = logged_access(
        caplog, route="other", path="/x\r\nINFO imagen.access: forged" + "y" * 10_000, method="GE\nT"
    )
    line = formatter.format(found)
    assert "\n" not in line
    assert "\r" not in line
    assert len(line) < 1_000


@pytest.mark.parametrize("formatter", FORMATTERS, ids=["text", "json"])
def test_an_access_line_shows_nothing_that_opens_something(
    caplog: pytest.LogCaptureFixture, formatter: logging.Formatter
):
    lease = logged_access(
        caplog,
        route="/global-semaphores/{semaphore_id}/leases/{lease_id}",
        path="/global-semaphores/gpu/leases/lease_1a2b",
    )
    assert "lease_1a2b" not in formatter.format(lease)
    assert "/global-semaphores/gpu/leases/***" in formatter.format(lease)
    picture = logged_access(caplog, route="/pictures/{picture_id}", path="/pictures/pic_1a2b")
    assert "pic_1a2b" not in formatter.format(picture)
    mistyped = logged_access(caplog, route="other", path=f"/{TOKEN}")
    assert "AbCdEf" not in formatter.format(mistyped)
