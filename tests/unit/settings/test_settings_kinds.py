"""What each kind of setting takes, refuses and makes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.money import Usd
from imagen.domain.secret import Secret
from imagen.settings import kinds
from imagen.settings.kinds import Kind

BASE = Path("/base")
API = kinds.base_url(without="/v1")

TAKEN: list[tuple[Kind, str, Any]] = [
    (kinds.flag(), "true", True),
    (kinds.flag(), "YES", True),
    (kinds.flag(), "on", True),
    (kinds.flag(), "1", True),
    (kinds.flag(), "False", False),
    (kinds.flag(), "no", False),
    (kinds.flag(), "off", False),
    (kinds.flag(), "0", False),
    (kinds.whole(1, 60), "1", 1),
    (kinds.whole(1, 60), "60", 60),
    (kinds.seconds(60), "0.5", timedelta(milliseconds=500)),
    (kinds.seconds(60), "60", timedelta(minutes=1)),
    (kinds.seconds(60, zero=True), "0", timedelta()),
    (kinds.dollars(), "$0.003", Usd(3000)),
    (kinds.dollars(), "5", Usd(5_000_000)),
    (kinds.one_of("text", "json"), "JSON", "json"),
    (kinds.text(), "a b", "a b"),
    (kinds.secret(), "r8_abc", Secret("r8_abc")),
    (kinds.variable(), "MY_TOKEN", "MY_TOKEN"),
    (kinds.model(), "black-forest-labs/flux-dev", "black-forest-labs/flux-dev"),
    (kinds.model(), "a/b:0f", "a/b:0f"),
    (kinds.model(), "flux-dev", "flux-dev"),
    (kinds.aspect_ratio(), "16:9", "16:9"),
    (kinds.host(), "0.0.0.0", "0.0.0.0"),  # noqa: S104
    (kinds.host(), "::1", "::1"),
    (kinds.host(), "my-host.example", "my-host.example"),
    (kinds.backend_type(), "replicate", "replicate"),
    (kinds.caller(), "a\tb", "a b"),
    (kinds.folder(), "/x/y", Path("/x/y")),
    (kinds.folder(), "x", Path("/base/x")),
    (kinds.place(), "out/{model}-{seed}.png", "out/{model}-{seed}.png"),
    (kinds.place(), "out/", "out/"),
    (API, "https://api.replicate.com", "https://api.replicate.com"),
    (API, "https://API.replicate.com/", "https://api.replicate.com"),
    (API, "https://api.replicate.com/v1", "https://api.replicate.com"),
    (API, "https://api.replicate.com/v1//", "https://api.replicate.com"),
    (API, "https://gate.example:8443/replicate/v1/", "https://gate.example:8443/replicate"),
    (API, "HTTP://localhost:8080", "http://localhost:8080"),
    (API, "http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
    (API, "http://127.9.9.9", "http://127.9.9.9"),
    (API, "http://[::1]:8080", "http://[::1]:8080"),
    (kinds.base_url(), "https://x.supabase.co/v1", "https://x.supabase.co/v1"),
]

REFUSED: list[tuple[Kind, str]] = [
    *((kinds.flag(), text) for text in ("maybe", "2", "tru")),
    *((kinds.whole(1, 60), text) for text in ("0", "61", "-1", "1.5", "x", "1_0", "٣", "9" * 5000, "0x1")),
    *((kinds.seconds(60), text) for text in ("0", "-1", "61", "nan", "inf", "-inf", "1e400", "x", "1e-9")),
    *((kinds.seconds(60, zero=True), text) for text in ("-0.1", "61", "nan")),
    *((kinds.dollars(), text) for text in ("-1", "x", "nan", "inf")),
    (kinds.one_of("text", "json"), "xml"),
    *((kinds.text(), text) for text in ("a\nb", "\x00", "\udc80", "x" * 5000)),
    *((kinds.secret(), text) for text in ("a b", "a\nb", "é", "x" * 5000)),
    *((kinds.variable(), text) for text in ("1A", "A-B", "r8_abcdef", "a b")),
    *((kinds.model(), text) for text in ("a/b/c", "a b", "-", "a/..", "https://a/b")),
    *((kinds.aspect_ratio(), text) for text in ("16x9", "0:1", "1:0", "16", "1:1:1", "99999:1")),
    *((kinds.host(), text) for text in ("a b", "http://x", "a/b", "-a")),
    *((kinds.backend_type(), text) for text in ("Replicate", "a b", "")),
    (kinds.caller(), "\x00\x1b"),
    *((kinds.folder(), text) for text in ("a\x00b", "~nobody-of-that-name/x")),
    *((kinds.place(), text) for text in ("a\x00b", "~nobody-of-that-name/x")),
    *(
        (API, text)
        for text in (
            "api.replicate.com",
            "ftp://api.replicate.com",
            "http://api.replicate.com",
            "http://10.0.0.1",
            "http://localhost.evil.example",
            "http://0.0.0.0",
            "http://127.0.0.1.evil.example",
            "https://user:pass@host",
            "https://@host",
            "https://host?",
            "https://host/#x",
            "https://host:0",
            "https://host:99999",
            "https://host:x",
            "https://",
            "https:///v1",
            "https://[::1",
            "https://ho st",
            "https://host\\@evil",
            "https://hóst",
            "https://host/\n",
        )
    ),
]


@pytest.mark.parametrize(("kind", "text", "value"), TAKEN)
def test_takes(kind: Kind, text: str, value: Any) -> None:
    read = kind.read(text, BASE)
    assert read == value
    assert type(read) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_refuses(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the loader writes the message
        kind.read(text, BASE)


def test_home_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert kinds.folder().read("~/x", BASE) == Path("/home/ada/x")
    assert kinds.place().read("~/x/", BASE) == "/home/ada/x/"


ALL: list[Callable[[], Kind]] = [
    kinds.text,
    kinds.flag,
    kinds.dollars,
    kinds.secret,
    kinds.folder,
    kinds.place,
    kinds.base_url,
    kinds.variable,
    kinds.model,
    kinds.aspect_ratio,
    kinds.host,
    kinds.backend_type,
    kinds.caller,
    lambda: kinds.whole(1, 9),
    lambda: kinds.seconds(9),
]


@given(st.sampled_from(ALL), st.text(min_size=1))
def test_any_text_is_taken_or_refused(build: Callable[[], Kind], text: str) -> None:
    try:
        build().read(text, BASE)
    except ValueError as error:
        assert error.args  # noqa: PT017
