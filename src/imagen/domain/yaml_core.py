"""YAML's core schema: its tags, and what an unquoted word means."""

from __future__ import annotations

import re

TYPED_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
CORE_TAGS = TYPED_TAGS | {f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map")}
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_INTEGER = re.compile(r"[-+]?([0-9]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")


def plain_value(text: str, *, most_digits: int = 18) -> bool | int | float | str | None:
    """An unquoted word as null, boolean, number or text, by the core schema: `16:9` is text.

    Args:
        text: the word.
        most_digits: of a whole number; a longer one is a fraction, as precise as those are.
    """
    if text in NULLS:
        return None
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if (whole := _INTEGER.fullmatch(text)) and len(whole[1]) <= most_digits:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
