"""A comment stands above the line that it is about, or behind it, and never behind what the formatter left of it.

Where a line is too long, the formatter breaks it and lets the comment stand behind the closing bracket, in which nobody
finds what it was about.
"""

from __future__ import annotations

import re

import pytest
from source import ROOT

BEHIND_A_BRACKET = re.compile(r"^[ \t]*[)\]}].*?[ \t]#[ \t](?!fmt: skip).*$", re.MULTILINE)
FILES = sorted(path for folder in ("src", "tests", "bench", "docs") for path in (ROOT / folder).rglob("*.py"))


def test_no_comment_stands_behind_a_closing_bracket_alone() -> None:
    wrecked = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}: {found[0].strip()}"
        for path in FILES
        for text in (path.read_text(encoding="utf-8"),)
        for found in BEHIND_A_BRACKET.finditer(text)
    ]
    assert wrecked == [], "put the comment above its line"


@pytest.mark.parametrize(
    ("line", "is_wrecked"),
    [
        ("    )  # why", True),
        ("            ):  # why", True),
        ("        ).status == 400  # why", True),
        ("    )  # type: ignore[misc]", True),
        ("    )  # fmt: skip", False),
        ("    )", False),
        ("    call()  # why", False),
    ],
)
def test_what_is_looked_for_is_found(line: str, is_wrecked: bool) -> None:
    assert bool(BEHIND_A_BRACKET.search(f"before\n{line}\nafter\n")) is is_wrecked
