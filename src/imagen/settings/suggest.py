"""What to write instead of a name that is not known."""

from __future__ import annotations

from collections.abc import Sequence


def suggestion(wrong: str, known: Sequence[str]) -> str:
    """The nearest known name, if one is near, and all that is allowed."""
    from difflib import get_close_matches  # noqa: PLC0415 - only those who make a mistake pay for it

    allowed = f"Allowed: {', '.join(known)}."
    folded = {name.lower(): name for name in known}
    near = get_close_matches(wrong.lower()[:200], folded, n=1)
    return f"Did you mean {folded[near[0]]}? {allowed}" if near else allowed
