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


def print_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """The answer for spreadsheets: a header and a line for each row; what is unknown is empty."""
    import csv
    import io

    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    typer.echo(printable(written.getvalue()), nl=False)


def remark(line: str) -> None:
    """Something beside the answer: to standard error."""
    typer.echo(printable(line), err=True)


def on_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def printable(text: str) -> str:
    """`text` as every stream can carry it: odd bytes of a file's name become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
