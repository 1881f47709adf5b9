"""Who is asking: the name that the ledger attributes a picture to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

UNKNOWN = "unknown"
LONGEST_NAME = 200
TMUX_SECONDS = 1.0

Run = Callable[[Sequence[str], Mapping[str, str], float], str]
"""Runs a command with an environment for at most so many seconds and returns what it printed; may raise."""


def resolve_caller(environ: Mapping[str, str], *, run: Run | None = None) -> str:
    """`MAI_FROM_ID`, else the `@mai-name` option of the tmux pane we run in, else `unknown`.

    A tmux that is missing, broken or slower than a second never keeps a picture from being made.
    """
    if name := clean_caller(environ.get("MAI_FROM_ID", "")):
        return name
    if pane := environ.get("TMUX_PANE", "").strip():
        return _name_of_pane(pane, environ, run or run_command) or UNKNOWN
    return UNKNOWN


def clean_caller(text: str) -> str:
    """`text` without control and other unprintable characters, at most 200 characters long; perhaps empty."""
    # Cut before the work too: a name of megabytes is cleaned no slower than one of a line.
    printable = (
        c if c.isprintable() else " " if c.isspace() else "" for c in text.strip()[: 4 * LONGEST_NAME]
    )
    return " ".join("".join(printable).split())[:LONGEST_NAME].rstrip()


def run_command(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
    """What `command` prints.

    Raises:
        OSError: it cannot be started.
        subprocess.SubprocessError: it failed or took too long.
    """
    import subprocess  # noqa: PLC0415 - every command of the CLI loads this file, few of them run in tmux

    done = subprocess.run(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=seconds,
        check=True,
    )
    return done.stdout.decode("utf-8", "replace")


def _name_of_pane(pane: str, environ: Mapping[str, str], run: Run) -> str:
    try:
        return clean_caller(
            run(("tmux", "display-message", "-p", "-t", pane, "#{@mai-name}"), environ, TMUX_SECONDS)
        )
    except Exception:  # noqa: BLE001 - whatever goes wrong here, the name is only a courtesy
        return ""
