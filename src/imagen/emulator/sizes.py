"""How large a model's pictures are, how many, and in which format: read from its input.

One reading serves all models, because parameters of one name mean the same in every schema we know:
`aspect_ratio` with `megapixels`, `resolution` ("1 MP"), `image_size` or `size` ("2K", "1024x1024"), and
`width` with `height` where the ratio or the size is `custom` or there is no ratio at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagen.emulator.models import Model

MAX_SIDE = 4096
MIN_SIDE = 16

# The sizes FLUX.1 paints for 1 megapixel (its public predictor source); other models are close to them.
_FLUX = {
    (1, 1): (1024, 1024),
    (16, 9): (1344, 768),
    (21, 9): (1536, 640),
    (3, 2): (1216, 832),
    (2, 3): (832, 1216),
    (4, 5): (896, 1088),
    (5, 4): (1088, 896),
    (3, 4): (896, 1152),
    (4, 3): (1152, 896),
    (9, 16): (768, 1344),
    (9, 21): (640, 1536),
}


@dataclass(frozen=True)
class Frame:
    """What is to be painted: pixels, number of files, and `png`, `webp`, `jpg` or `svg`."""

    width: int
    height: int
    count: int
    format: str


def frame_of(model: Model, given: Mapping[str, Any]) -> Frame:
    """The frame of one prediction; `given` is a valid input of `model`."""
    values = model.with_defaults(given)
    width, height = _size(model, values)
    return Frame(width, height, _count(model, values), str(values.get("output_format", model.output_format)))


def _size(model: Model, values: Mapping[str, Any]) -> tuple[int, int]:
    asked = str(values.get("aspect_ratio", "custom"))
    named = str(values.get("size", ""))
    if "custom" in {asked, named} and "width" in values and "height" in values:
        return _clamp(values["width"]), _clamp(values["height"])
    ratio = _pair(asked, ":")
    if ratio is None and (pixels := _pair(named, "x")):
        return _clamp(pixels[0]), _clamp(pixels[1])
    return _from_area(ratio or (1, 1), _area(model, values))


def _from_area(ratio: tuple[int, int], megapixels: float) -> tuple[int, int]:
    if ratio in _FLUX:
        scale = math.sqrt(megapixels)
        width, height = (side * scale for side in _FLUX[ratio])
    else:
        width = math.sqrt(megapixels * 1024 * 1024 * ratio[0] / ratio[1])
        height = width * ratio[1] / ratio[0]
    return _clamp(round(width / 16) * 16), _clamp(round(height / 16) * 16)


def _area(model: Model, values: Mapping[str, Any]) -> float:
    for name in ("megapixels", "resolution", "image_size", "size"):
        if match := re.fullmatch(r"([\d.]+)( MP|K)?", str(values.get(name, ""))):
            amount = float(match[1])
            return amount * amount if match[2] == "K" else amount
    return model.megapixels


def _count(model: Model, values: Mapping[str, Any]) -> int:
    if not model.makes_files:
        return 0
    if model.output == "uri":
        return 1
    if values.get("sequential_image_generation", "auto") == "disabled":
        return 1
    return max(1, int(values.get("num_outputs", values.get("max_images", 1))))


def _pair(text: str, separator: str) -> tuple[int, int] | None:
    match = re.fullmatch(rf"([1-9]\d{{0,4}}){separator}([1-9]\d{{0,4}})", text)
    return (int(match[1]), int(match[2])) if match else None


def _clamp(side: Any) -> int:
    return min(MAX_SIDE, max(MIN_SIDE, int(side)))
