"""Logs hide what looks like a token, in both forms, wherever it stands."""

from __future__ import annotations

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
from imagen.instrumentation.logs import JsonFormatter, TextFormatter, configure_logging, mask

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
