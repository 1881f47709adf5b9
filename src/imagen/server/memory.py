"""Memory that was used is used again, instead of being given back to the system and asked for anew with each picture."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of the settings, by glibc's `malloc.h`."""
_KEPT_BYTES = 16 * 1024 * 1024
"""So much of what was freed stays with the process."""
_APART_BYTES = 8 * 1024 * 1024
"""Only what is larger than this is asked for by itself, and given back at once."""


def settle() -> None:
    """To be called when everything is loaded, by a process that serves for long.

    What is loaded stays; looking through it again and again for rubbish is a tenth of a busy gateway's CPU. And a page
    that is given back and asked for again is emptied by the system each time: half of the CPU that a picture of a
    megabyte takes on its way through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    # Other libraries than glibc have no such function, or take no note of it.
    with suppress(OSError, AttributeError, TypeError):
        system = ctypes.CDLL(None)
        system.mallopt(_MMAP_THRESHOLD, _APART_BYTES)
        system.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
