"""The list of predictions in the words of Replicate."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.identifiers import id_at
from imagen.domain.inside import is_inside, map_texts
from imagen.errors import InvalidInput, NotFound, StoreError
from imagen.ports import Sight, Stretch
from imagen.server.access import Visitor, scope_of, sight_of
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.replicate.finding import find, shaped_for
from imagen.server.replicate.problems import Complaint
from imagen.server.replicate.relay import PREFIX
from imagen.service.replicate_shapes import (
    Known,
)

PAGE_SIZE = 100
"""Predictions on one page; there is no parameter for it."""
_OUR_ID = re.compile(r"pred_[0-9a-z]{26}")
_LONGEST_SHOWN_FILE = 64 * 1024
"""A file inside an input is cut in lists, which have a hundred of them."""
_MOST_BYTES = 128 * 1024 * 1024
"""Of inputs that are read for one page."""
_FILTERS = ("created_after", "created_before", "source")


class _Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the list is asked for.

    Attributes:
        after, before: ids between which all of it lies, by when they were created; None for no bound.
        side: `older` or `newer` than `edge`; without one it begins with the newest.
        edge: an id.
    """

    after: str | None = None
    before: str | None = None
    side: Literal["older", "newer"] | None = None
    edge: str | None = None

    @property
    def stretch(self) -> Stretch:
        """The page, and one more, by which it is known whether there is another."""
        above, below = self.after, self.before
        if self.side == "newer":
            above = max(above or "", self.edge or "")
        elif self.side == "older":
            below = min(below or "~", self.edge or "")
        return Stretch(above=above, below=below, limit=PAGE_SIZE + 1, rising=self.side == "newer")


class _Listed(msgspec.Struct, kw_only=True):
    """What was found of a page.

    Attributes:
        results: the objects, in the order in which they were read.
        first, last: the ids that were looked at first and last, listed or not; None where there was none.
        more: whether there may be more behind the last.
    """

    results: list[dict[str, Any]] = []
    first: str | None = None
    last: str | None = None
    more: bool = False


async def show_list(context: Context, request: Request) -> Response:
    """`GET /predictions`: those that the visitor may see, of every face, newest first."""
    visitor = await context.enter(request)
    page = _read_page(request)
    found = _Listed()
    if request.query_params.get("source") is None:
        async with context.alone(scope_of(visitor)):  # several lists of large inputs would take the memory
            found = await _listed(context, request, visitor, page)
    rising = page.side == "newer"
    newest, oldest = (found.last, found.first) if rising else (found.first, found.last)
    older = newest is not None if rising else found.more
    newer = found.more if rising else page.side == "older" and newest is not None
    body = {
        "next": _link(context, request, "older", oldest) if older and oldest else None,
        "previous": _link(context, request, "newer", newest) if newer and newest else None,
        "results": found.results[::-1] if rising else found.results,
    }
    headers = await context.rates.headers(visitor.backend.account, creates=False)
    return json_answer(body, headers=headers)


async def _listed(context: Context, request: Request, visitor: Visitor, page: _Page) -> _Listed:
    """The predictions of a page, one whole one in memory at a time; fewer where their inputs are very large."""
    stretch, listed, size = page.stretch, _Listed(), 0
    while ids := await _ids(context, visitor, stretch):
        for this in ids:
            if len(listed.results) == PAGE_SIZE or size > _MOST_BYTES:
                listed.more = True
                return listed
            listed.first, listed.last = listed.first or this, this
            found = await _found(context, visitor, this)
            if found is not None:
                body = (await shaped_for(context, request, visitor, found, looks=False)).body
                size += _size(body["input"])
                listed.results.append(_cut(body))
        if len(ids) < stretch.limit:
            break
        edges = {"above": ids[-1]} if stretch.rising else {"below": ids[-1]}
        stretch = msgspec.structs.replace(stretch, **edges)
    return listed


async def _ids(context: Context, visitor: Visitor, stretch: Stretch) -> list[str]:
    """What may be listed there, in the order in which it is read."""
    promised = await context.app.batches.promised(stretch, scope=sight_of(visitor))
    begun = await context.app.store.stretch(_store_sight(visitor), stretch)
    return sorted({*begun, *promised}, reverse=not stretch.rising)[: stretch.limit]


async def _found(context: Context, visitor: Visitor, this: str) -> Known | None:
    """The prediction of that id; None for an attempt that is shown under another, and for what cannot be read."""
    try:
        found = await find(context, visitor, this)
    except StoreError as error:
        if not error.of_one_row:
            raise
        return None
    return found if found is not None and found.id == this else None


def _store_sight(visitor: Visitor) -> Sight:
    """Whose predictions a visitor sees."""
    if visitor.admin:
        return Sight()
    if visitor.own_token:
        return Sight(account=visitor.backend.account)
    if visitor.caller.key is not None:
        return Sight(key=visitor.caller.key)
    return Sight(account=visitor.backend.account, caller=visitor.caller.name)


def _read_page(request: Request) -> _Page:
    """What is asked for.

    Raises:
        InvalidInput: a filter makes no sense.
        NotFound: the cursor is none of ours.
    """
    asked = request.query_params
    if asked.get("source") not in {None, "web"}:
        told = Complaint("source", 'source must be one of the following: "web"', "enum")
        raise InvalidInput([told], subject="the query")
    side, edge = _read_cursor(asked.get("cursor"))
    return _Page(
        after=_bound(request, "created_after"), before=_bound(request, "created_before"), side=side, edge=edge
    )


def _bound(request: Request, name: str) -> str | None:
    """An instant of the query as what comes before every id of then."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.strip().replace(" ", "+"))
        return id_at("pred", found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        told = Complaint(name, "Does not match format 'date-time'", "format")
        raise InvalidInput([told], subject="the query") from None


def _read_cursor(text: str | None) -> tuple[Literal["older", "newer"] | None, str | None]:
    if text is None:
        return None, None
    try:
        side, _, edge = base64.urlsafe_b64decode(text.encode()).decode().partition(":")
    except (ValueError, binascii.Error):
        side, edge = "", ""
    if side not in {"older", "newer"} or not _OUR_ID.fullmatch(edge):
        raise NotFound("Invalid cursor")
    return ("older" if side == "older" else "newer"), edge


def _link(context: Context, request: Request, side: str, edge: str) -> str:
    cursor = base64.urlsafe_b64encode(f"{side}:{edge}".encode()).decode()
    kept = {name: request.query_params[name] for name in _FILTERS if name in request.query_params}
    return context.url_of(request, f"{PREFIX}/predictions?{urlencode(kept | {'cursor': cursor})}")


def _cut(body: dict[str, Any]) -> dict[str, Any]:
    """The object with the beginnings of long files inside its input: a hundred whole ones are no list."""
    return {**body, "input": map_texts(body["input"], _cut_file)}


def _cut_file(text: str) -> str:
    long = len(text) > _LONGEST_SHOWN_FILE and is_inside(text)
    return f"{text.partition(',')[0][:100]},…" if long else text


def _size(value: Any) -> int:
    """How much text there is in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0
