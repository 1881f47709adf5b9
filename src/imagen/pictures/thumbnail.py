"""A picture made small: to be looked at beside words, where the whole of it would be too much."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIDE = 256
"""Pixels; neither side of a thumbnail is longer."""
THUMBNAIL_BYTES = 16 * 1024
THUMBNAIL_TYPE = "image/jpeg"
PAPER = (250, 250, 248)
"""What is seen through a picture that is transparent."""
_QUALITIES = (80, 60, 40, 20)


def thumbnail(path: Path) -> bytes | None:
    """A JPEG of the picture within 256 pixels, of 16 KiB as a rule; None where it cannot be read."""
    small = shrunk(path, THUMBNAIL_SIDE)
    if small is None:
        return None
    data = b""
    for quality in _QUALITIES:
        out = io.BytesIO()
        small.save(out, "JPEG", quality=quality, optimize=True)
        data = out.getvalue()
        if len(data) <= THUMBNAIL_BYTES:
            break
    return data


def shrunk(path: Path, side: int) -> Image | None:
    """The picture within a square of `side` pixels, on paper where it is transparent; None where it cannot be read."""
    from PIL import Image, ImageOps  # noqa: PLC0415 - a large library, and most commands draw nothing

    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (side, side))  # a JPEG is read at a fraction of its size
            small = ImageOps.exif_transpose(picture)
            small.thumbnail((side, side))
            small = small.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    paper = Image.new("RGBA", small.size, (*PAPER, 255))
    return Image.alpha_composite(paper, small).convert("RGB")
