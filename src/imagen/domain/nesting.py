"""How deep values are nested: whoever hands a deep one on does not know what the next one takes."""

from __future__ import annotations

from typing import Any


def is_shallow(value: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other no deeper than `levels`; a plain value has none.

    No look goes deeper than that, so that no value is too deep for the question itself.
    """
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(is_shallow(part, levels - 1) for part in parts)
