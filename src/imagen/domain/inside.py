"""Files that came whole inside an answer, as data URIs, and the texts in which they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

INSIDE: Final = "data:"
"""How such a file begins. Alone it stands for one that was left out, as no row of the database has them."""
_ADDRESSES = ("https:", "http:", INSIDE)


def is_inside(text: str) -> bool:
    """Whether a file is inside its own text, or was."""
    return text.startswith(INSIDE)


def is_file(text: str) -> bool:
    """Whether a text of an output is a file: where it lies, or the whole of it. Other text is no file."""
    return text.startswith(_ADDRESSES)


def without_file(text: str) -> str:
    """The same; of a file that is inside it `data:` alone, as it may be written down."""
    return INSIDE if is_inside(text) else text


def map_texts(value: Any, change: Callable[[str], Any]) -> Any:
    """A JSON value with each of its texts changed, in order, however it is nested. Names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(part, change) for part in value]
    if isinstance(value, Mapping):
        return {name: map_texts(part, change) for name, part in value.items()}
    return value
