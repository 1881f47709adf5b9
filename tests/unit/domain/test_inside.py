"""Files inside texts, and texts inside JSON."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.domain.inside import is_file, is_inside, map_texts, without_file

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("text", "file", "inside"),
    [
        ("https://replicate.delivery/a.png", True, False),
        ("http://127.0.0.1/a.png", True, False),
        ("data:image/png;base64,AAAA", True, True),
        ("data:", True, True),
        ("a fox", False, False),
        ("", False, False),
    ],
)
def test_what_is_a_file(text: str, file: bool, inside: bool) -> None:
    assert (is_file(text), is_inside(text)) == (file, inside)


def test_files_inside_leave_a_mark_and_all_else_stays() -> None:
    told = {"data:x": ["a fox", "data:image/png;base64,AAAA", {"deep": "data:,x"}], "n": 1, "none": None}
    assert map_texts(told, without_file) == {
        "data:x": ["a fox", "data:", {"deep": "data:"}],
        "n": 1,
        "none": None,
    }


@given(VALUES)
def test_each_text_is_met_once_and_a_value_without_a_change_stays_as_it_is(value: Any) -> None:
    met: list[str] = []

    def change(text: str) -> str:
        met.append(text)
        return text

    assert map_texts(value, change) == value
    assert met == list(texts_of(value))


def texts_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []
