"""Masks by transparency become masks in black and white."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from imagen.pictures import DefectivePicture, black_and_white


def written(picture: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, form)
    return out.getvalue()


@pytest.mark.parametrize("black_is_clear", [True, False])
def test_what_is_transparent_is_told_apart_whatever_its_color(*, black_is_clear: bool) -> None:
    mask = Image.new("RGBA", (4, 2), (200, 200, 200, 255))
    mask.putpixel((0, 0), (255, 255, 255, 0))
    mask.putpixel((1, 0), (0, 0, 0, 0))
    mask.putpixel((2, 0), (0, 0, 0, 255))
    made = black_and_white(written(mask), black_is_clear=black_is_clear)
    assert made is not None
    with Image.open(io.BytesIO(made)) as drawn:
        clear, rest = (0, 255) if black_is_clear else (255, 0)
        assert (drawn.format, drawn.mode, drawn.size) == ("PNG", "L", (4, 2))
        assert [drawn.getpixel((x, 0)) for x in range(4)] == [clear, clear, rest, rest]


def test_one_without_transparency_tells_its_part_otherwise() -> None:
    assert black_and_white(written(Image.new("L", (4, 4), 255)), black_is_clear=True) is None
    assert black_and_white(written(Image.new("RGB", (4, 4)), "JPEG"), black_is_clear=True) is None


def test_what_cannot_be_read_or_is_too_large_is_refused() -> None:
    whole = written(Image.new("RGBA", (64, 64), (1, 2, 3, 0)))
    header = whole[:16] + (5000).to_bytes(4, "big") * 2 + whole[24:]
    for data in (b"", b"no picture", whole[:60], header):
        with pytest.raises(DefectivePicture):
            black_and_white(data, black_is_clear=True)
