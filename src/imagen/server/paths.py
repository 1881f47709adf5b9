"""Finds what answers a path, however many there are: a step for each part of it instead of a look at every pattern."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp


class _Place:
    """What can follow some parts of a path."""

    __slots__ = ("any", "apps", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Place] = {}
        self.any: _Place | None = None
        self.apps: dict[str, tuple[ASGIApp, tuple[str, ...]]] = {}


class Paths:
    """Applications by method and path, with names such as `{id}` for parts that may be anything; words go before names.

    What it does not find may be there all the same: it knows nothing of methods that answer in place of others.
    """

    def __init__(self, entries: Iterable[tuple[str, str, ASGIApp]] = ()) -> None:
        self._root = _Place()
        for method, path, app in entries:
            self._add(method, path, app)

    def find(self, method: str, path: str) -> tuple[ASGIApp, dict[str, str]] | None:
        """What answers, and the parts that have names; None when nothing does."""
        parts = path.split("/")
        values: list[str] = []
        found = _search(self._root, parts, 1, values, method)
        if found is None:
            return None
        app, names = found
        return app, dict(zip(names, values, strict=True))

    def _add(self, method: str, path: str, app: ASGIApp) -> None:
        place, names = self._root, []
        for part in path.split("/")[1:]:
            if part.startswith("{"):
                names.append(part[1:-1])
                if place.any is None:
                    place.any = _Place()
                place = place.any
            else:
                place = place.words.setdefault(part, _Place())
        place.apps[method] = (app, tuple(names))


def _search(
    place: _Place, parts: list[str], at: int, values: list[str], method: str
) -> tuple[ASGIApp, tuple[str, ...]] | None:
    if at == len(parts):
        return place.apps.get(method)
    part = parts[at]
    if (word := place.words.get(part)) is not None:
        found = _search(word, parts, at + 1, values, method)
        if found is not None:
            return found
    if place.any is None or not part:
        return None
    values.append(part)
    found = _search(place.any, parts, at + 1, values, method)
    if found is None:
        values.pop()
    return found
