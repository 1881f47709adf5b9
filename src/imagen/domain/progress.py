"""Progress, read from what a model prints while it runs."""

from __future__ import annotations

import re

_TQDM = re.compile(r"(\d{1,3})%\|")
_PERCENT = re.compile(r"(\d{1,3})%")


def progress_from_log(log: str) -> float | None:
    """The last percentage that the log tells, from 0.0 to 1.0, or None when it tells none.

    A progress bar's `NN%|` is trusted before a bare `NN%`, which may be part of any sentence.
    """
    found = _TQDM.findall(log) or _PERCENT.findall(log)
    return min(int(found[-1]), 100) / 100 if found else None
