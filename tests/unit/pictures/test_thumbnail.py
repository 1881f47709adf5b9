"""Thumbnails: small, readable, and nothing where there is no picture."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from imagen.pictures import thumbnail


@pytest.mark.parametrize("size", [(1024, 1024), (2000, 100), (30, 4000), (16, 16)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_it_is_small_and_keeps_its_shape(size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new(mode, size).save(path)
    data = thumbnail(path)
    assert data is not None
    small = Image.open(io.BytesIO(data))
    assert small.format == "JPEG"
    assert max(small.size) <= 256
    assert small.size[0] <= size[0]
    assert abs(small.size[0] * size[1] - small.size[1] * size[0]) <= max(size)


def test_even_noise_has_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.frombytes("RGB", (512, 512), Random(1).randbytes(512 * 512 * 3)).save(path)
    data = thumbnail(path)
    assert data is not None
    assert len(data) < 32 * 1024


def test_what_is_no_picture_has_none(tmp_path: Path) -> None:
    path = tmp_path / "vector.svg"
    path.write_text("<svg/>")
    assert thumbnail(path) is None
    assert thumbnail(tmp_path / "missing.png") is None
