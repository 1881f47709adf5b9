"""Several pictures as one: a numbered grid, small enough to be looked at as a whole."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from imagen.pictures.thumbnail import PAPER, shrunk

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

LONGEST_SIDE = 2048
"""Pixels; no sheet is wider or higher, however many pictures it has."""
MOST_PICTURES = 100
_LARGEST_TILE, _GAP, _CAPTION = 384, 12, 26
_INK, _EMPTY = (24, 24, 24), (224, 224, 220)
_NOTHING = "no picture"


class Tile(msgspec.Struct, frozen=True):
    """One picture of a sheet.

    Attributes:
        path: its file; None where there is no picture.
        caption: stands below it, behind its number.
    """

    path: Path | None
    caption: str = ""


def contact_sheet(tiles: Sequence[Tile]) -> bytes:
    """A PNG with all of them, numbered from 1, row by row. The same pictures and captions give the same bytes.

    One picture at a time is read; of each only a thumbnail is kept. What cannot be read is an empty tile.

    Args:
        tiles: 1 to 100.

    Raises:
        ValueError: there are none, or too many.
    """
    if not 1 <= len(tiles) <= MOST_PICTURES:
        raise ValueError(f"a contact sheet has 1 to {MOST_PICTURES} pictures, not {len(tiles)}")
    from PIL import Image, ImageDraw  # noqa: PLC0415 - a large library, and most commands draw nothing

    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    room = (LONGEST_SIDE - _GAP) // columns - _GAP
    tile = min(_LARGEST_TILE, room, (LONGEST_SIDE - _GAP) // rows - _GAP - _CAPTION)
    thumbnails = [None if one.path is None else shrunk(one.path, tile) for one in tiles]
    height = max((picture.height for picture in thumbnails if picture is not None), default=tile // 2)
    sheet = Image.new(
        "RGB", (_GAP + columns * (tile + _GAP), _GAP + rows * (height + _CAPTION + _GAP)), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for index, (one, picture) in enumerate(zip(tiles, thumbnails, strict=True)):
        left = _GAP + index % columns * (tile + _GAP)
        top = _GAP + index // columns * (height + _CAPTION + _GAP)
        if picture is None:
            draw.rectangle((left, top, left + tile - 1, top + height - 1), fill=_EMPTY)
            _write(draw, _NOTHING, left + 8, top + 8, tile - 16)
        else:
            sheet.paste(picture, (left + (tile - picture.width) // 2, top + (height - picture.height) // 2))
        _write(draw, f"{index + 1}  {one.caption}".rstrip(), left, top + height + 4, tile)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=False)
    return out.getvalue()


def _write(draw: ImageDraw, text: str, left: int, top: int, width: int) -> None:
    """A line of text, cut where there is no more room."""
    from PIL import ImageFont  # noqa: PLC0415

    text = "".join(character if character.isprintable() else " " for character in text)

    font = ImageFont.load_default(16)
    while text and draw.textlength(text, font=font) > width:
        text = text[:-1]
    draw.text((left, top), text, fill=_INK, font=font)
