"""The size of a picture that goes in, by its header."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagen.pictures import read_size


def encoded(kind: str, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.integers(1, 400), st.integers(1, 400))
def test_it_is_what_the_picture_library_says(kind: str, width: int, height: int) -> None:
    assert read_size(encoded(kind, width, height)) == (width, height)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_beginning_is_enough_and_too_little_is_unknown(kind: str) -> None:
    whole = encoded(kind, 301, 77)
    assert read_size(whole[:700]) == (301, 77)
    assert {read_size(whole[:length]) for length in range(len(whole))} <= {None, (301, 77)}


@pytest.mark.parametrize(
    "data", [b"", b"nothing", encoded("BMP", 9, 9), b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"<svg/>" * 9]
)
def test_anything_else_is_unknown(data: bytes) -> None:
    assert read_size(data) is None


@given(
    st.binary(max_size=200),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"]),
)
def test_broken_headers_never_fail(rest: bytes, beginning: bytes) -> None:
    size = read_size(beginning + rest)
    assert size is None or min(size) > 0
