"""Masks: which part of a picture is to be painted anew, told by what is transparent or by black and white."""

from __future__ import annotations

import io
from typing import Final

from imagen.pictures.inspect import DefectivePicture
from imagen.pictures.size import read_size

_CLEAR: Final = 128
"""Alpha below which a pixel counts as transparent."""
_MOST_PIXELS: Final = 4096 * 4096
"""A mask is as large as its picture, and no model takes larger ones."""


def black_and_white(data: bytes, *, black_is_clear: bool) -> bytes | None:
    """A mask that tells its part by what is transparent, as a PNG in black and white.

    Args:
        data: a picture.
        black_is_clear: what is transparent becomes black and the rest white; else the other way round.

    Returns:
        None for a picture that has no transparency: it tells its part otherwise.

    Raises:
        DefectivePicture: it cannot be read, or is too large.
    """
    from PIL import Image  # noqa: PLC0415  Pillow loads late, see architecture.md

    size = read_size(data)
    if size is None:
        raise DefectivePicture("cannot be read")
    if size[0] * size[1] > _MOST_PIXELS:
        raise DefectivePicture(f"has {size[0]}x{size[1]} pixels, more than are taken")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "GIF", "JPEG")) as picture:
            if not picture.has_transparency_data:
                return None
            alpha = picture.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DefectivePicture("cannot be read") from error
    clear, rest = (0, 255) if black_is_clear else (255, 0)
    drawn = alpha.point([clear if value < _CLEAR else rest for value in range(256)])
    written = io.BytesIO()
    drawn.save(written, "PNG")
    return written.getvalue()
