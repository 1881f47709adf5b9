"""What an input says about its run before it is bought: how many pictures, how large, how long. No calls.

It is what `quote_run` and, with what really ran in its place, `cost` need.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from imagen.backends.replicate.wire import MIN_CANCEL_AFTER_SECONDS
from imagen.catalog.model import COUNT_KEYS, EDIT_KEYS, GUIDE_KEYS, Model, Parameter
from imagen.domain.pricing import ONE_MEGAPIXEL, Span, megapixels
from imagen.pictures import read_size

SizeOf = Callable[[str], tuple[int, int] | None]
"""Width and height of a picture that was given by its address, as far as somebody knows them."""

_MEGAPIXELS = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?)(?: ?MP)?", re.IGNORECASE)
_SIZE_KEYS = ("megapixels", "output_megapixels", "resolution")
_MATCHES_INPUT, _CUSTOM = "match_input_image", "custom"
_MOST_PIXELS_A_SIDE = 1_000_000
_HEAD_CHARACTERS = 512 * 1024
"""So much of a data URI is looked at for the size of its picture; a multiple of four."""


def expect_images(values: Mapping[str, Any], model: Model) -> Span:
    """How many images come out.

    Of a run that is asked for several some may be missing: the safety check takes single ones out, and a series makes as
    many as it likes. Only those that come out are charged.
    """
    asked = next(
        (model.value(values, name) for name in COUNT_KEYS if _is_count(model.value(values, name))), 1
    )
    if model.value(values, "sequential_image_generation") == "auto":
        series = model.value(values, "max_images")
        asked = series if _is_count(series) else asked
    return Span(1, asked, asked)


def expect_output(values: Mapping[str, Any], model: Model, given: tuple[Span, ...]) -> Span:
    """The size of each image that comes out, in megapixels.

    Args:
        values: the input.
        model: what is known of the model.
        given: the sizes of the images that go in.
    """
    if _is_custom(values, model):
        width, height = model.value(values, "width"), model.value(values, "height")
        if _is_side(width) and _is_side(height):
            return Span.exactly(megapixels(width, height))
        return Span(1, 1, _largest(model))
    for name in _SIZE_KEYS:
        told = model.value(values, name)
        if (size := _read_megapixels(told)) is not None:
            return Span.exactly(size)
        if told == _MATCHES_INPUT and (sizes := _sizes_of(model.parameter(name))):
            return (given[0] if given else ONE_MEGAPIXEL).clamped(min(sizes), max(sizes))
    return Span(1, 1, _largest(model))


def expect_inputs(values: Mapping[str, Any], model: Model, size_of: SizeOf) -> tuple[Span, ...]:
    """The size of each image that goes in, in megapixels.

    A size is read from a picture that is inside the input; of an address `size_of` may know it, else nobody does.
    """
    names = [parameter.name for parameter in model.parameters or () if parameter.format == "uri"]
    if model.parameters is None:
        names = list(EDIT_KEYS + GUIDE_KEYS)
    found: list[Span] = []
    for name in names:
        given = model.value(values, name)
        for picture in given if isinstance(given, list | tuple) else [given] if given else []:
            size = _size_inside(picture) or size_of(picture) if isinstance(picture, str) else None
            found.append(ONE_MEGAPIXEL if size is None else Span.exactly(megapixels(*size)))
    return tuple(found)


def expect_seconds(*, typical: float | None, deadline: float) -> Span:
    """How long the model runs: at most until its deadline, with which it is bought and at which it is stopped."""
    if not math.isfinite(deadline):
        return Span(0)
    latest = Decimal(max(math.ceil(deadline), MIN_CANCEL_AFTER_SECONDS))
    usual = None if typical is None or not math.isfinite(typical) else Decimal(str(max(typical, 0)))
    return Span(0, None if usual is None else min(usual, latest), latest)


def _is_custom(values: Mapping[str, Any], model: Model) -> bool:
    """Whether width and height count: of models that have a word for it only where the input says that word."""
    switches = [
        parameter.name
        for parameter in model.parameters or ()
        if parameter.enum is not None and _CUSTOM in parameter.enum
    ]
    if switches:
        return any(model.value(values, name) == _CUSTOM for name in switches)
    return _is_side(model.value(values, "width")) and _is_side(model.value(values, "height"))


def _largest(model: Model) -> Decimal | None:
    """The most megapixels that its parameters allow; None where they set no bound."""
    sizes = [size for name in _SIZE_KEYS for size in _sizes_of(model.parameter(name))]
    width, height = model.parameter("width"), model.parameter("height")
    if width and height and width.maximum and height.maximum:
        sizes.append(megapixels(int(width.maximum), int(height.maximum)))
    return max(sizes, default=None)


def _sizes_of(parameter: Parameter | None) -> list[Decimal]:
    enum = parameter.enum if parameter is not None and parameter.enum is not None else ()
    return [size for word in enum if (size := _read_megapixels(word)) is not None]


def _read_megapixels(told: Any) -> Decimal | None:
    found = _MEGAPIXELS.fullmatch(str(told)) if isinstance(told, str | int | float) else None
    return Decimal(found[1]) if found else None


def _size_inside(picture: str) -> tuple[int, int] | None:
    head, _, body = picture[:_HEAD_CHARACTERS].partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        return None
    try:
        return read_size(base64.b64decode(body[: len(body) // 4 * 4]))
    except ValueError:
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_side(value: Any) -> bool:
    return _is_count(value) and value <= _MOST_PIXELS_A_SIDE
