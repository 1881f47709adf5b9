"""What a command answers: lines and JSON on standard output, remarks on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer


def print_lines(lines: Iterable[str]) -> None:
    """The answer itself, for people: to standard output."""
    text = "\n".join(lines)
    if text:
        typer.echo(printable(text))


def print_table(lines: Sequence[str]) -> None:
    """A table; in a terminal its header stands out."""
    if lines and on_terminal() and not os.environ.get("NO_COLOR"):
        lines = [typer.style(lines[0], bold=True), *lines[1:]]
    print_lines(lines)


def print_json(value: Any) -> None:
    """The answer for machines: indented JSON, and nothing else, to standard output."""
    import msgspec

    typer.echo(printable(msgspec.json.format(msgspec.json.encode(value)).decode()))


def print_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True) -> None:
    """The answer for spreadsheets: a header, unless that was printed before, and a line for each row."""
    from imagen.domain.spreadsheet import csv_header, csv_lines

    first = csv_header(columns) if header else ""
    typer.echo(printable(first + csv_lines(columns, rows)), nl=False)


def remark(line: str) -> None:
    """Something beside the answer: to standard error."""
    typer.echo(printable(line), err=True)


def on_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def printable(text: str) -> str:
    """`text` as every stream can carry it: odd bytes of a file's name become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
