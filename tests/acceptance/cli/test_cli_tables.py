"""Aligned text: nothing in a cell can break a line or command a terminal."""

from __future__ import annotations

from imagen.cli.tables import clean, format_facts, format_table, shorten, width


def test_columns_are_aligned_and_numbers_stand_on_the_right() -> None:
    lines = format_table(("name", "cost"), [("fox", "$0.003"), ("elephant", "?")], right=("cost",))
    assert lines == [
        "name        cost",
        "fox       $0.003",
        "elephant       ?",
    ]


def test_a_total_is_set_off_and_widens_its_columns() -> None:
    lines = format_table(("name", "n"), [("a", "1")], right=("n",), total=("total", "1,000"))
    assert lines == ["name       n", "a          1", "-----  -----", "total  1,000"]


def test_without_rows_the_header_remains() -> None:
    assert format_table(("a", "b"), []) == ["a  b"]


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    assert width("狐") == 2
    assert width("e\N{COMBINING ACUTE ACCENT}") == 1
    lines = format_table(("p", "q"), [("狐", "x"), ("ab", "y")])
    assert lines[1:] == ["狐  x", "ab  y"]


def test_cells_cannot_move_the_cursor_or_break_the_line() -> None:
    assert clean("a\x1b[2Jb\nc\td") == "a\N{REPLACEMENT CHARACTER}[2Jb c d"
    assert clean("\u202e") == "\N{REPLACEMENT CHARACTER}"
    assert len(format_table(("a",), [("x\r\ny",)])) == 2


def test_long_text_is_shortened_by_columns() -> None:
    assert shorten("a  red\nfox", 40) == "a red fox"
    assert shorten("a red fox in the snow", 9) == "a red fo…"
    assert width(shorten("狐" * 40, 11)) <= 11
    assert shorten("x" * 1_000_000, 5) == "xxxx…"


def test_facts_without_a_value_are_left_out_and_lines_go_on_under_themselves() -> None:
    assert format_facts([("id", "1"), ("none", ""), ("files", "a\nb")]) == [
        "id     1",
        "files  a",
        "       b",
    ]
