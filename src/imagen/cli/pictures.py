"""Pictures in terminals that can show them. Everywhere else nothing happens.

A terminal is asked once what it can, and has a tenth of a second to answer; only one that can is ever sent a picture.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from imagen.cli.output import remark

_SECONDS = 0.1
_WHO_ARE_YOU = "\x1b[c"
_SIXEL = "4"
_OWN_PROTOCOL = ("kitty", "ghostty")
"""Terminals with Kitty's protocol, as far as `textual-image` can use it there."""
_BLIND = frozenset({"", "dumb", "linux", "unknown"})
_COLUMNS = 72
INSTALL = "pip install 'imagen-gateway[terminal]'"


def show_pictures(paths: Sequence[Path], *, wanted: bool | None, setting: str, json: bool) -> None:
    """Show pictures where that is possible and wanted.

    Args:
        paths: the files.
        wanted: what the command line says; None leaves it to the setting.
        setting: `terminal.pictures`.
        json: the answer is for a program.
    """
    if not paths or json or wanted is False or (wanted is None and setting == "never"):
        return
    why_not = _obstacle()
    if why_not is None and not _can():
        why_not = "this terminal shows none"
    if why_not is None and not _shown(paths):
        why_not = f"they need `{INSTALL}`"
    if wanted and why_not is not None:
        remark(f"no pictures here: {why_not}")


def _obstacle() -> str | None:
    """What keeps pictures from this terminal, whatever it can."""
    if not all(stream is not None and stream.isatty() for stream in (sys.__stdin__, sys.__stdout__)):
        return "this is no terminal"
    if os.environ.get("CI") or os.environ.get("NO_COLOR"):
        return "CI or NO_COLOR is set"
    if os.environ.get("TERM", "") in _BLIND:
        return "this terminal shows none"
    return None


def _can() -> bool:
    """Whether the terminal says that it shows pictures: Sixel, or the protocol of Kitty."""
    told = " ".join(os.environ.get(name, "") for name in ("TERM", "TERM_PROGRAM")).lower()
    answer = _answer()
    if answer is None:
        return False
    features = answer.rpartition("?")[2].rstrip("c").split(";")
    return _SIXEL in features[1:] or any(name in told for name in _OWN_PROTOCOL)


def _answer() -> str | None:
    """What the terminal says about itself; None when it says nothing in time, or somebody is typing already."""
    try:
        import termios
        import tty
    except ImportError:  # not POSIX
        return None
    stdin, stdout = sys.__stdin__, sys.__stdout__
    if stdin is None or stdout is None:
        return None
    keyboard = stdin.fileno()
    answer = ""
    try:
        if os.tcgetpgrp(keyboard) != os.getpgrp() or _waits(keyboard, 0):
            return None
        before = termios.tcgetattr(keyboard)
        try:
            tty.setcbreak(keyboard, termios.TCSANOW)
            stdout.write(_WHO_ARE_YOU)
            stdout.flush()
            end = time.monotonic() + _SECONDS
            while not answer.endswith("c") and _waits(keyboard, end - time.monotonic()):
                answer += os.read(keyboard, 64).decode("ascii", "replace")
        finally:
            termios.tcsetattr(keyboard, termios.TCSANOW, before)
    except (OSError, ValueError, termios.error):
        return None
    return answer if answer.startswith("\x1b[?") and answer.endswith("c") else None


def _waits(keyboard: int, seconds: float) -> bool:
    """Whether something can be read within so many seconds."""
    return bool(select.select([keyboard], [], [], max(seconds, 0))[0])


def _shown(paths: Sequence[Path]) -> bool:
    """Send them; False where what does that is not installed."""
    try:
        # Asks the terminal too when it is imported: it answers, as it has just done so.
        from textual_image.renderable import Image as Found
        from textual_image.renderable import SixelImage, TGPImage
    except ImportError:
        return False
    except Exception:  # noqa: BLE001 - it looks at the terminal, which may be odd in any way
        return True
    if Found not in {SixelImage, TGPImage}:
        return True  # it could only paint with characters, which shows nobody anything
    from rich.console import Console

    console = Console()
    for path in paths:
        try:
            console.print(Found(path, width=min(_COLUMNS, console.width), height="auto"))
        except Exception:  # noqa: BLE001 - a terminal may be odd in any way, and the picture is saved already
            remark(f"{path.name} cannot be shown here")
    return True
