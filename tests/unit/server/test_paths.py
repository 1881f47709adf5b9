"""What answers a path is found as the framework would find it, only sooner."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Route

from imagen.server.app import all_operations
from imagen.server.paths import Paths

ENTRIES = sorted(
    {(one.method, path) for one in all_operations() for path in (one.path, *one.aliases)},
    key=lambda entry: (entry[1].count("{"), entry),
)
APPS: dict[tuple[str, str], Any] = {entry: object() for entry in ENTRIES}
PATHS = Paths((method, path, APPS[method, path]) for method, path in ENTRIES)
ROUTES = [(method, Route(path, lambda _: None, methods=[method])) for method, path in ENTRIES]
_WORDS = sorted({part for _, path in ENTRIES for part in path.split("/") if part and "{" not in part})


def by_the_framework(method: str, path: str) -> tuple[str, dict[str, str]] | None:
    for wanted, route in ROUTES:
        matched, found = route.matches({"type": "http", "method": method, "path": path, "headers": []})
        if wanted == method and matched is Match.FULL:
            return route.path, found["path_params"]
    return None


@given(
    st.sampled_from(["GET", "POST", "PATCH", "DELETE", "QUERY", "PUT"]),
    st.lists(st.sampled_from([*_WORDS, "abc", "..", "a b", ""]), max_size=7),
)
def test_it_finds_what_the_framework_finds(method: str, parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    wanted, found = by_the_framework(method, path), PATHS.find(method, path)
    if wanted is None:
        assert found is None
    else:
        assert found == (APPS[method, wanted[0]], wanted[1])


@pytest.mark.parametrize(("method", "path"), ENTRIES)
def test_every_operation_is_found(method: str, path: str) -> None:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    asked = path
    for name in names:
        asked = asked.replace(f"{{{name}}}", f"x-{name}")
    assert PATHS.find(method, asked) == (APPS[method, path], {name: f"x-{name}" for name in names})


def test_a_word_goes_before_a_name_and_a_name_fills_in_where_the_word_leads_nowhere() -> None:
    words, named, deep = object(), object(), object()
    paths = Paths([("GET", "/a/b", words), ("GET", "/a/{x}", named), ("GET", "/a/{x}/c", deep)])  # type: ignore[list-item]
    assert paths.find("GET", "/a/b") == (words, {})
    assert paths.find("GET", "/a/z") == (named, {"x": "z"})
    assert paths.find("GET", "/a/b/c") == (deep, {"x": "b"})
    assert paths.find("POST", "/a/b") is None
    assert paths.find("GET", "*") is None
