"""Cells of CSV are shown by spreadsheets, and never run."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.spreadsheet import csv_header, csv_lines, safe_cell


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+41", "'+41"),
        ("-2", "'-2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "' =1"),
        ("\n=1", "'\n=1"),
        ("＝1", "'＝1"),  # noqa: RUF001 - the full-width one, on purpose
        ("a=1", "a=1"),
        ("", ""),
        (None, None),
        (-3, -3),
        (1.5, 1.5),
        (True, "true"),
        (False, "false"),
    ],
)
def test_what_a_spreadsheet_would_calculate_is_text(cell: object, shown: object) -> None:
    assert safe_cell(cell) == shown


@given(st.lists(st.tuples(st.text(), st.none() | st.integers()), max_size=5))
def test_no_cell_that_is_read_back_is_a_formula_and_none_is_lost(cells: list[tuple[str, int | None]]) -> None:
    rows = [{"name": name, "number": number, "besides": "x"} for name, number in cells]
    text = csv_header(("name", "number")) + csv_lines(("name", "number"), rows)
    header, *found = list(csv.reader(io.StringIO(text, newline="")))
    assert header == ["name", "number"]
    assert len(found) == len(cells)
    for (name, number), (shown, told) in zip(cells, found, strict=True):
        assert not shown.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert shown.removeprefix("'") == name.replace("\r", " ").removeprefix("'")
        assert told == ("" if number is None else str(number))
