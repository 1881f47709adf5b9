"""No cut passes for whole, and nothing but DefectivePicture comes of broken bytes."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagen.pictures import DefectivePicture, embed, inspect_bytes, read_note, sniff_format
from imagen.pictures.metadata import PictureNote


def saved(format_: str, mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((31, 17), 80).convert(mode).save(buffer, format_, **options)
    return buffer.getvalue()


WHOLE = [
    *(saved("PNG", mode) for mode in ("RGB", "RGBA", "P", "L")),
    *(saved("WEBP", mode) for mode in ("RGB", "RGBA")),
    saved("WEBP", "RGBA", lossless=True),
    *(saved("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    saved("JPEG", "RGB", progressive=True),
    saved("GIF", "P"),
]
ALL = [*WHOLE, saved("AVIF", "RGB"), saved("BMP", "RGB"), b"<svg width='5' height='5'><g><a/></g></svg>"]
NOTE = PictureNote("a cat", "m/n", 1)


@given(data=st.sampled_from(WHOLE), part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=400, deadline=None)
def test_a_cut_picture_never_passes(data: bytes, part: float):
    with pytest.raises(DefectivePicture):
        inspect_bytes(data[: int(len(data) * part)])


@given(data=st.sampled_from(WHOLE), cut=st.integers(1, 24))
@settings(deadline=None)
def test_a_picture_without_its_last_bytes_never_passes(data: bytes, cut: int):
    with pytest.raises(DefectivePicture):
        inspect_bytes(data[:-cut])


@given(data=st.sampled_from(WHOLE), tail=st.binary(max_size=40))
@settings(deadline=None)
def test_bytes_after_the_end_do_no_harm(data: bytes, tail: bytes):
    facts = inspect_bytes(data + tail)
    assert (facts.width, facts.height) == (31, 17)


@given(
    data=st.sampled_from(ALL),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=600, deadline=None)
def test_broken_bytes_raise_nothing_else(data: bytes, edits: list[tuple[int, int]]):
    broken = bytearray(data)
    for at, byte in edits:
        broken[at % len(broken)] = byte
    with contextlib.suppress(DefectivePicture):
        inspect_bytes(bytes(broken), max_pixels=1_000_000)
    embed(bytes(broken), NOTE)
    read_note(bytes(broken))


@given(st.binary(max_size=200))
def test_any_bytes_are_sniffed(data: bytes):
    sniff_format(data)
    with contextlib.suppress(DefectivePicture):
        inspect_bytes(data, max_pixels=1_000_000)
