"""CSV that spreadsheets take for what it is: text stays text, and is never run as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - spreadsheets take these too
"""What a cell begins with that spreadsheets calculate (OWASP, "CSV Injection")."""


def csv_header(columns: Sequence[str]) -> str:
    """The first line."""
    return csv_lines(columns, [dict(zip(columns, columns, strict=True))])


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each row; what is unknown is empty, what a row has besides the columns is left out.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, and such cells are quoted.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    for row in rows:
        writer.writerow([safe_cell(row.get(column)) for column in columns])
    return written.getvalue()


def safe_cell(value: Any) -> Any:
    """A value as a cell that is only shown; numbers stay numbers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # alone it ends a line for some readers, and is quoted by no writer
    return f"'{text}" if value.startswith(_FORMULA) else text
