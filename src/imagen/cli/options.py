"""What is typed on a command line, read into values; what cannot be read names its option."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.errors import InvalidInput, Problem
from imagen.pictures import OutputPattern
from imagen.settings import read_server_url

if TYPE_CHECKING:
    from imagen.assembly import App, Remote

_MAX_PROMPT_BYTES = 1 << 20


def read_prompt(text: str) -> str:
    """The prompt itself, or standard input for `-`."""
    if text != "-":
        return text
    raw = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    try:
        return raw.decode().strip()
    except UnicodeDecodeError:
        raise InvalidInput([Problem("prompt", "standard input is not UTF-8 text")]) from None


def read_image(text: str) -> str | Path:
    """An address stays text; anything else is a file of the user's own."""
    if text.startswith(("https://", "http://", "data:")):
        return text
    path = Path(text).expanduser()
    if not path.is_file():
        raise InvalidInput([Problem("input_image", f"{text[:200]} is neither a file nor an https address")])
    return path


def read_options(pairs: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` pairs; the last one of a key wins.

    Raises:
        InvalidInput: a pair has no `=` or no key.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidInput([Problem("opt", f"{pair[:80]!r} is not of the form KEY=VALUE")])
        options[key.strip()] = value
    return options


def parts_at(server: str | None, app: App) -> App | Remote:
    """Whoever does the work: the gateway that is named, else that of the settings, else this process.

    Args:
        server: an address; empty for this process, whatever the settings say.
        app: this process.

    Raises:
        InvalidInput: it is no address to which a key may be shown.
    """
    if server is None:
        return app.at(app.settings.remote.url)
    return app.at(read_server_url(server) if server.strip() else None)


def absolute_output(text: str | None) -> str | None:
    """The output as it means the same wherever it is read again; a `/` at its end stays."""
    if text is None:
        return None
    if text == "-":
        raise InvalidInput(
            [Problem("output", "standard output takes no picture; give a file, or use --json --url")]
        )
    if text.startswith("~"):
        return os.path.expanduser(text)  # noqa: PTH111 - a Path would lose the slash at the end
    return text if os.path.isabs(text) else os.path.join(Path.cwd(), text)  # noqa: PTH117, PTH118


def wanted_cache(cache: bool | None, *, new: bool) -> bool | None:
    """Whether the cache may answer; None leaves that to the settings. Who wants a new one wants none from there."""
    return False if new and cache is None else cache


def wanted_format(output: str | None) -> str | None:
    """The picture format that the name of the output asks for."""
    return None if output is None else OutputPattern.parse(output, default_folder=Path()).wanted_format
