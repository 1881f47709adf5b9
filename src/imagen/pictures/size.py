"""How large a picture is, read from its header alone: no decoder, and no promise that the rest of it is whole."""

from __future__ import annotations

from imagen.pictures.inspect import (
    HEAD_BYTES,
    JPEG_FRAMES,
    DefectivePicture,
    jpeg_frame_size,
    sniff_format,
    walk_jpeg,
    webp_canvas,
)

_LEAST_BYTES = 24
"""Where the size of a PNG ends, the last of them."""


def read_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG, JPEG, WebP or GIF, the formats that models take; None for anything else.

    Args:
        data: the picture, or as much of its beginning as there is.
    """
    if len(data) < _LEAST_BYTES:
        return None
    try:
        width, height = _SIZES.get(sniff_format(data[:HEAD_BYTES]) or "", _unknown)(data)
    except (DefectivePicture, StopIteration):
        return None
    return (width, height) if min(width, height) > 0 else None


def _png(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _jpg(data: bytes) -> tuple[int, int]:
    start = next(start for marker, start, _ in walk_jpeg(data) if marker in JPEG_FRAMES)
    return jpeg_frame_size(data, start)


def _webp(data: bytes) -> tuple[int, int]:
    return webp_canvas(data)[:2]


def _unknown(_data: bytes) -> tuple[int, int]:
    return 0, 0


_SIZES = {"png": _png, "gif": _gif, "jpg": _jpg, "webp": _webp}
