from __future__ import annotations

import base64
import gzip
import json
import zlib
from itertools import count
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.canary import Canary, new_words

CANARY = Canary.of_prompt("bademimoru tokilapuze")
WORD = b"tokilapuze"


@pytest.mark.parametrize(
    "hidden",
    [
        WORD, b"a Tokilapuze, painted", b"bademimoru+tokilapuze", WORD.upper(), WORD.hex().encode(),
        CANARY.text.encode("utf-16-le"), quote(CANARY.text).encode(), quote_plus(CANARY.text).encode(),
        json.dumps({"prompt": CANARY.text}).encode(), zlib.compress(b"x" * 50 + WORD), gzip.compress(WORD, mtime=0),
        *(base64.b64encode(b"#" * before + WORD + b"###") for before in range(6)),
        base64.urlsafe_b64encode(b"prompt=" + CANARY.text.encode()),
    ],
)  # fmt: skip
def test_it_is_found_however_it_is_written(hidden: bytes):
    assert CANARY.is_in(hidden)


@pytest.mark.parametrize(
    "clean", [b"", b"tokilapuz", b"a red fox in the snow", CANARY.plain_hash.encode(), b"\x78\x9cnot packed"]
)
def test_it_is_not_found_where_it_is_not(clean: bytes):
    assert not CANARY.is_in(clean)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_it_is_found_in_the_midst_of_anything(before: bytes, after: bytes):
    assert CANARY.is_in(before.replace(b"x\x9c", b"") + WORD + after) or before[:1] == b"\x78"


def test_a_secret_counts_as_a_whole():
    secret = Canary.of_secret("r8_abc def")
    assert secret.is_in(b"token r8_abc def")
    assert not secret.is_in(b"r8_abc")


def test_words_differ_and_are_long_enough_to_be_nobody_elses():
    words = new_words(iter(count(17, 7919))).split()
    assert len(set(words)) == len(words) == 6
    assert all(len(word) == 10 and word.isalpha() for word in words)
