"""A contact sheet: any number of pictures, one small picture, always the same."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagen.pictures.contact_sheet import LONGEST_SIDE, MOST_PICTURES, Tile, contact_sheet


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for name, size, mode in (
        ("wide.png", (160, 20), "RGB"),
        ("high.jpg", (20, 160), "RGB"),
        ("clear.png", (64, 64), "RGBA"),
        ("grey.webp", (8, 8), "L"),
        ("large.jpg", (600, 450), "RGB"),
    ):
        Image.new(mode, size, 128 if mode == "L" else (200, 40, 40)).save(folder / name)
        made.append(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG no picture")
    return [*made, folder / "broken.png", folder / "missing.png"]


def opened(sheet: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(sheet))
    image.load()
    return image


@settings(max_examples=10)
@given(data=st.data())
def test_it_is_small_whatever_is_on_it(pictures: list[Path], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, MOST_PICTURES))
    tiles = [
        Tile(data.draw(st.sampled_from([None, *pictures])), data.draw(st.text(max_size=30)))
        for _ in range(count)
    ]
    image = opened(contact_sheet(tiles))
    assert image.format == "PNG"
    assert max(image.size) <= LONGEST_SIDE


def test_the_same_gives_the_same(pictures: list[Path]) -> None:
    tiles = [Tile(path, f"seed {index}") for index, path in enumerate(pictures)]
    assert contact_sheet(tiles) == contact_sheet(tiles)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (16, 4)])
def test_it_is_a_grid(pictures: list[Path], count: int, columns: int) -> None:
    image = opened(contact_sheet([Tile(pictures[4], "seed 1")] * count))
    rows = -(-count // columns)
    assert image.width == 12 + columns * (384 + 12)
    assert image.height == 12 + rows * (288 + 26 + 12)
    red = [
        image.getpixel((12 + column * 396 + 192, 12 + row * 326 + 144))[0] > 150
        for row in range(rows)
        for column in range(columns)
    ]
    assert red == [True] * (rows * columns) or red[:count] == [True] * count


def test_numbers_and_captions_are_written(pictures: list[Path]) -> None:
    one, other = (contact_sheet([Tile(pictures[4], caption)]) for caption in ("seed 1", "seed 2"))
    assert one != other


@pytest.mark.parametrize("count", [0, MOST_PICTURES + 1])
def test_other_numbers_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        contact_sheet([Tile(None)] * count)
