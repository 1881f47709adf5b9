"""Tables as aligned plain text: stable where they are piped, never wrapped, never cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

GAP = "  "


def format_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    total: Sequence[str] | None = None,
) -> list[str]:
    """Lines of equal columns.

    Args:
        header: names of the columns.
        rows: as many cells each; anything that would break a line or command a terminal is taken out of them.
        right: names of the columns whose cells stand on the right: numbers.
        total: a last row, set off by a rule.
    """
    cells = [[clean(cell) for cell in row] for row in (header, *rows)]
    if total is not None:
        cells.append([clean(cell) for cell in total])
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    numbers = set(right)
    on_right = [name in numbers for name in header]
    lines = [_line(row, widths, on_right) for row in cells]
    if total is not None:
        lines.insert(-1, GAP.join("-" * size for size in widths))
    return lines


def format_facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of `name   value`; a value of several lines goes on under itself, an empty one is left out."""
    shown = [
        (clean(name), [clean(line) for line in value.splitlines()]) for name, value in facts if value.strip()
    ]
    indent = max((width(name) for name, _ in shown), default=0)
    lines = []
    for name, (first, *others) in shown:
        lines.append(f"{_padded(name, indent)}{GAP}{first}".rstrip())
        lines += [f"{' ' * indent}{GAP}{line}".rstrip() for line in others]
    return lines


def clean(text: str) -> str:
    """`text` in one line, without control characters: a prompt must not move the cursor."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def shorten(text: str, longest: int) -> str:
    """`text` in one line of at most `longest` columns, with an ellipsis where something was left out."""
    line = " ".join(clean(text[: longest * 8]).split())
    if width(line) <= longest and len(text) <= longest * 8:
        return line
    while width(line) > longest - 1:
        line = line[:-1]
    return f"{line.rstrip()}…"


def width(text: str) -> int:
    """Columns that a terminal needs for it."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _line(row: Sequence[str], widths: Sequence[int], on_right: Sequence[bool]) -> str:
    padded = (
        _padded(cell, size, right=right) for cell, size, right in zip(row, widths, on_right, strict=True)
    )
    return GAP.join(padded).rstrip()


def _padded(text: str, size: int, *, right: bool = False) -> str:
    space = " " * (size - width(text))
    return space + text if right else text + space
