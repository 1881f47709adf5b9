"""What stands behind the `?` of an address: read and checked, with errors that name the field."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from starlette.requests import Request

from imagen.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from imagen.server.operation import Operation

_SUBJECT = "the query"
_MOST_DIGITS = 9
_MOST_SHOWN, _SHOWN = 10, 60
_FRESH = "_"
"""What some clients add to every GET so that nothing on the way answers from its memory."""


def check_names(request: Request) -> None:
    """Refuse what an operation does not know in its query, as a misspelt filter would show everything.

    Pages, metrics and whatever everybody may ask for take any query, as trackers, scrapers and caches add to it; so does
    what others document, as the originals do.

    Raises:
        InvalidInput: naming what is unknown, and what is allowed; or what stands there twice.
    """
    operation: Operation | None = request.scope.get("imagen.operation")
    if operation is None or not request.scope["query_string"]:
        return
    if operation.any_query or not operation.documented or operation.access == "anyone":
        return
    allowed = [one.name for one in operation.parameters if one.place == "query"]
    told = f"there is no such parameter; {_allowed(allowed)}"
    ignored = {_FRESH} if operation.method == "GET" else set()
    problems = [
        Problem(name[:_SHOWN], told if name not in allowed else "it is there twice")
        for name, count in Counter(name for name, _ in request.query_params.multi_items()).items()
        if name not in ignored and (name not in allowed or count > 1)
    ]
    if problems:
        raise InvalidInput(problems[:_MOST_SHOWN], subject=_SUBJECT)


def _allowed(names: list[str]) -> str:
    if not names:
        return "none is taken here"
    return f"it must be {names[0]}" if len(names) == 1 else f"it must be one of {', '.join(names)}"


def read_limit(request: Request, usual: int, most: int) -> int:
    """How many are asked for at most.

    Args:
        request: asks.
        usual: where it does not say.
        most: that may be asked for.

    Raises:
        InvalidInput: it is no number from 1 to `most`.
    """
    told = request.query_params.get("limit")
    if told is None:
        return usual
    if not (told.isascii() and told.isdigit() and len(told) <= _MOST_DIGITS and 1 <= int(told) <= most):
        raise InvalidInput(
            [Problem("limit", f"it must be a whole number from 1 to {most}")], subject=_SUBJECT
        )
    return int(told)


def read_cursor(request: Request, ours: re.Pattern[str]) -> str | None:
    """From where a list goes on; None from its beginning.

    Args:
        request: asks.
        ours: the form of those that we tell.

    Raises:
        InvalidInput: it has another form.
    """
    told = request.query_params.get("cursor")
    if told is not None and not ours.fullmatch(told):
        raise InvalidInput(
            [Problem("cursor", "it must be the next_cursor of an earlier answer")], subject=_SUBJECT
        )
    return told
