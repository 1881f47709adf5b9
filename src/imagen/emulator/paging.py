"""Pages of lists: 100 items, and opaque cursors to the next and the previous page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

from imagen.emulator.problems import not_found

Item = TypeVar("Item")

PAGE_SIZE = 100
"""Items on one page; the API has no parameter for it."""


def page_json(
    items: Sequence[Item],
    cursor: str | None,
    *,
    key: Callable[[Item], int],
    link: Callable[[Mapping[str, str]], str],
) -> dict[str, Any]:
    """One page of `items`, which are newest first; `key` is larger the newer an item is.

    The cursor is opaque: `o<key>` asks for what is older than a key, `n<key>` for what is newer.

    Raises:
        Problem: 404 for a cursor that this server did not make.
    """
    side, edge = read_cursor(cursor)
    if side == "n":
        page = [item for item in items if key(item) > edge][-PAGE_SIZE:]
    else:
        page = [item for item in items if side == "" or key(item) < edge][:PAGE_SIZE]
    older = bool(page) and key(items[-1]) < key(page[-1])
    newer = bool(page) and key(items[0]) > key(page[0])
    return {
        "next": link({"cursor": _cursor("o", key(page[-1]))}) if older else None,
        "previous": link({"cursor": _cursor("n", key(page[0]))}) if newer else None,
        "results": page,
    }


def link_to(url: str, query: Mapping[str, str]) -> Callable[[Mapping[str, str]], str]:
    """How a page's links are written: the same address and filters, another cursor."""
    return lambda changed: f"{url}?{urlencode({**query, **changed})}"


def numbered_page(
    items: Sequence[Item],
    query: Mapping[str, str],
    *,
    url: str,
    shown: Callable[[Item], Any],
    kept: Sequence[str] = (),
) -> dict[str, Any]:
    """A page of a list that is in the order it is shown in, cut by position counted from its end.

    Args:
        items: all of them, newest first.
        query: of the request; its `cursor` says which page.
        url: the address without a query.
        shown: how one item is shown.
        kept: the names in the query that stay in the links.

    Raises:
        Problem: 404 for a cursor that this server did not make.
    """
    numbered = [(len(items) - place, item) for place, item in enumerate(items)]
    stays = {name: query[name] for name in kept if name in query}
    page = page_json(numbered, query.get("cursor"), key=lambda one: one[0], link=link_to(url, stays))
    page["results"] = [shown(item) for _, item in page["results"]]
    return page


def _cursor(side: str, key: int) -> str:
    return base64.urlsafe_b64encode(f"{side}{key}".encode()).decode()


def read_cursor(cursor: str | None) -> tuple[str, int]:
    """On which side of which key the page lies; no side for the first page.

    Raises:
        Problem: 404 for a cursor that this server did not make.
    """
    if cursor is None:
        return "", 0
    try:
        text = base64.urlsafe_b64decode(cursor.encode()).decode()
        side, edge = text[:1], int(text[1:])
    except (ValueError, binascii.Error) as problem:
        raise not_found("Invalid cursor") from problem
    if side not in {"o", "n"}:
        raise not_found("Invalid cursor")
    return side, edge
