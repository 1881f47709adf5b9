"""A secret is seen by nobody who does not ask for it."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from imagen.domain.secret import Secret, is_secret_name
from imagen.transport.message import HttpRequest

TEXT = "r8_this_must_not_be_seen"
SECRET = Secret(TEXT)


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{!r:>40}".format,
        "{:>40}".format,
        lambda secret: f"{secret}",
        lambda secret: f"{[secret]} {({'a': secret},)}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 - logging writes like this
        lambda secret: json.dumps({"token": secret}, default=str),
        lambda secret: repr(HttpRequest(method="GET", url="https://a.b", bearer=secret)),
        lambda secret: repr(ValueError(secret)),
        lambda secret: str(KeyError(secret)),
        lambda secret: logging.LogRecord("a", 10, "f", 1, "%s", (secret,), None).getMessage(),
        lambda secret: secret.fingerprint(),
        lambda secret: str(hash(secret)),
    ],
)
def test_showing_it_hides_it(show: Callable[[Secret], str]):
    assert TEXT not in show(SECRET)
    assert "must_not" not in show(SECRET)


@pytest.mark.parametrize(
    "take",
    [
        json.dumps,
        msgspec.json.encode,
        msgspec.to_builtins,
        msgspec.msgpack.encode,
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        vars,
        dict,
        list,
    ],
)
def test_encoding_and_copying_it_fails_and_tells_nothing(take: Callable[[Any], object]):
    with pytest.raises(TypeError) as told:
        take(SECRET)
    assert TEXT not in str(told.value)


def test_a_traceback_does_not_show_it():
    def fail(secret: Secret) -> None:
        raise RuntimeError("broken with", secret)

    with pytest.raises(RuntimeError) as told:
        fail(SECRET)
    seen = traceback.TracebackException.from_exception(told.value, capture_locals=True)
    shown = "".join(seen.format())
    assert "secret = Secret('***')" in shown
    assert TEXT not in shown


def test_reveal_is_the_only_way_to_its_text():
    assert SECRET.reveal() == TEXT


def test_equal_texts_are_equal_secrets():
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("ä") == Secret("ä")
    assert SECRET != TEXT
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_an_empty_secret_is_false():
    assert not Secret("")
    assert Secret("x")


def test_a_fingerprint_tells_secrets_apart_and_stays_the_same():
    assert Secret("a").fingerprint() == Secret("a").fingerprint() != Secret("b").fingerprint()
    assert len(Secret("a").fingerprint()) == 16


@pytest.mark.parametrize(
    "name",
    ["key", "api_key", "apikey", "OPENAI_API_KEY", "hf_token", "token", "secret", "client_secret", "password", "db_password", "credential", "aws_credentials"],
)  # fmt: skip
def test_a_name_may_tell_of_a_secret(name: str):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "prompt", "seed", "monkey", "keyframe", "key_frame", "max_tokens", "tokens", "token_count", "secretary", "password_hint", "negative_prompt"],
)  # fmt: skip
def test_other_names_do_not(name: str):
    assert not is_secret_name(name)
