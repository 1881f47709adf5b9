"""What a person sees while a batch runs: a table in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from imagen.cli.batch_results import row_of
from imagen.cli.output import remark
from imagen.cli.tables import clean, shorten
from imagen.domain.batch import BatchStatus, ItemStatus

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from imagen.domain.batch import Item
    from imagen.service.batches import View

LINE_SECONDS = 5.0
"""How often a line tells how far it is, where no terminal is."""
_MOST_ERRORS = 5
_MOST_ERROR_LINES = 20
_ERROR_COLUMNS = 160
_BAR = 30


class BatchView:
    """Shows a batch on standard error.

    Args:
        quiet: only what the user must know.
        in_line: how many that are under way wait for a place or their turn now; None where another process knows that.
    """

    def __init__(self, *, quiet: bool = False, in_line: Callable[[], int] | None = None) -> None:
        self._quiet = quiet
        self._in_line = in_line
        self._live: Live | None = None
        self._view: View | None = None
        self._errors: deque[str] = deque(maxlen=_MOST_ERRORS)
        self._failed = 0
        self._told = ""
        self._told_at = time.monotonic()
        self._trouble: str | None = None
        self._note = ""

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True),
                get_renderable=self._table,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """One thing that has to be known."""
        if self._live is None:
            remark(line)
        else:
            self._live.console.print(clean(line), highlight=False, markup=False)

    def note(self, line: str) -> None:
        """The same; in a terminal it stays in sight."""
        self._note = line
        if self._live is None:
            remark(line)

    def show(self, view: View) -> None:
        """How far it is."""
        self._view = view
        self._tell_trouble(view)
        if self._live is not None or self._quiet:
            return
        line = progress_line(view, in_line=self._in_line)
        now = time.monotonic()
        if line != self._told and (now - self._told_at >= LINE_SECONDS or view.status.terminal):
            remark(line)
            self._told, self._told_at = line, now

    def ended(self, item: Item) -> None:
        """One item has ended."""
        if item.status is ItemStatus.SUCCEEDED or item.status is ItemStatus.CANCELED:
            return
        line = f"{row_of(item)}: {item.status}: {item.error or item.code or ''}"
        self._errors.append(shorten(line, _ERROR_COLUMNS))
        self._failed += 1
        if self._live is not None or self._quiet or self._failed > _MOST_ERROR_LINES + 1:
            return
        more = self._failed > _MOST_ERROR_LINES
        remark("more have failed; the results file has them all" if more else self._errors[-1])

    def _tell_trouble(self, view: View) -> None:
        """A trouble is told once when it begins, and once when it is over."""
        reason = None if view.trouble is None else view.trouble.reason
        if reason == self._trouble or view.status is BatchStatus.PAUSED:
            return
        if reason is not None:
            self.say(f"waiting, and going on by itself: {reason}")
        elif not view.status.terminal:
            self.say("it goes on")
        self._trouble = reason

    def _table(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right", style="bold")
        grid.add_column(overflow="fold")
        view = self._view
        if view is None:
            return Text("reading …")
        tally, total = view.tally, view.batch.total
        filled = _BAR * tally.ended // max(total, 1)
        grid.add_row("batch", Text(f"{view.batch.id}  {view.status}  {clean(view.batch.name)}"))
        grid.add_row("", Text("━" * filled, "green").append("━" * (_BAR - filled), "bright_black"))
        left = _left(view, self._in_line)
        grid.add_row("items", "  ".join([f"{tally.succeeded} done", f"{_bad(view)} failed", *left]))
        grid.add_row("time", "  ".join(_time(view)) or "…")
        grid.add_row("cost", _cost(view))
        if view.trouble is not None:
            since = view.trouble.since.astimezone().strftime("%H:%M:%S")
            grid.add_row("waiting", Text(f"{clean(view.trouble.reason)} (since {since})", "yellow"))
        for line in self._errors:
            grid.add_row("", Text(line, "red"))
        if self._note:
            grid.add_row("", Text(self._note, "yellow"))
        return grid


def progress_line(view: View, *, in_line: Callable[[], int] | None = None) -> str:
    """How far it is, in one line; `in_line` as of `BatchView`."""
    tally = view.tally
    parts = [f"{tally.ended} of {view.batch.total} ended"]
    if _bad(view):
        parts.append(f"{_bad(view)} failed")
    if tally.left:
        parts += [*_left(view, in_line), *_time(view)]
    parts.append(_cost(view))
    return ", ".join(parts)


def _left(view: View, in_line: Callable[[], int] | None) -> list[str]:
    """What has not ended. An item that is under way is being made, or stands in line for a place or its turn."""
    tally = view.tally
    queued = f"{tally.queued} queued"
    if in_line is None:
        return [f"{tally.running} under way", queued]
    waiting = min(in_line(), tally.running)
    return [f"{tally.running - waiting} running", *([f"{waiting} in line"] if waiting else []), queued]


def _bad(view: View) -> int:
    return view.tally.failed + view.tally.expired + view.tally.canceled


def _time(view: View) -> list[str]:
    tally = view.tally
    parts = []
    if tally.recent and tally.recent_seconds:
        parts.append(f"{tally.recent * 60 / tally.recent_seconds:.0f} a minute")
    if view.eta_seconds is not None and view.status is BatchStatus.RUNNING:
        parts.append(f"{duration(view.eta_seconds)} left")
    return parts


def _cost(view: View) -> str:
    cost, quoted = view.tally.cost, view.batch.quoted
    unpriced = view.tally.unpriced or view.batch.unpriced
    return f"{cost} of {quoted}" + (f" and {unpriced} of unknown price" if unpriced else "")


def duration(seconds: float) -> str:
    """A time as people say it: `40 s`, `12 min`, `2 h 5 min`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
