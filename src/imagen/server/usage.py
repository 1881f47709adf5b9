"""What was spent, over HTTP: the admin sees all, everybody else what is their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.spreadsheet import csv_header, csv_lines
from imagen.domain.usage import GROUPINGS, UsageQuery
from imagen.errors import InvalidInput, Problem
from imagen.server.access import Visitor
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.durable import check_account
from imagen.server.headers import NEXT_CURSOR
from imagen.server.operation import Operation, Parameter, cursor_of
from imagen.server.queries import read_cursor, read_limit
from imagen.service.usage import (
    ENTRY_FIELDS,
    GROUP_FIELDS,
    EntryFacts,
    EntryPage,
    GroupFacts,
    UsageReport,
    csv_row,
    make_query,
)

MOST_ENTRIES, _ENTRIES = 1000, 100
_LONGEST = 100
_FORMATS = ("json", "csv")
_CSV = "text/csv"
_CURSOR = re.compile("pred_[0-9a-z]{26}")


async def show_usage(context: Context, request: Request) -> Response:
    """All of it, added up."""
    query = await _query(context, request)
    as_csv = _wants_csv(request)
    report = await context.app.usage.report(query)
    if as_csv:
        return _csv_answer(GROUP_FIELDS, [*report.groups, report.total], name="usage.csv")
    return json_answer(report, headers=_FRESH)


async def list_entries(context: Context, request: Request) -> Response:
    """A page of the ledger."""
    query = await _query(context, request)
    as_csv, cursor, limit = (
        _wants_csv(request),
        read_cursor(request, _CURSOR),
        read_limit(request, _ENTRIES, MOST_ENTRIES),
    )
    page = await context.app.usage.entries(query, cursor=cursor, limit=limit)
    if as_csv:
        more = {} if page.next_cursor is None else {NEXT_CURSOR: page.next_cursor}
        return _csv_answer(ENTRY_FIELDS, page.entries, name="usage-entries.csv", **more)
    return json_answer(page, headers=_FRESH)


async def _query(context: Context, request: Request) -> UsageQuery:
    """What is asked for, of what the caller may see.

    Raises:
        Unauthenticated: nobody is let in like that.
        InvalidRequest: a parameter makes no sense.
    """
    # Every key may see what it has spent itself, whatever paths it is good for.
    visitor = await context.enter(request, leaving=True, any_key=True)
    since, until, by = (_read_text(request, name) for name in ("since", "until", "by"))
    query = make_query(since=since, until=until, by=by, now=context.app.clock.now(), local=False)
    return await own_entries(context, visitor, query)


async def own_entries(context: Context, visitor: Visitor, query: UsageQuery) -> UsageQuery:
    """The query, of the caller's own entries; the admin's are all."""
    if visitor.admin:
        return query
    if visitor.caller.key is not None:
        return msgspec.structs.replace(query, key=visitor.caller.key)
    if visitor.own_token:
        # The ledger names only a part of a token's fingerprint: a token must be a real one.
        await check_account(context, visitor)
    return msgspec.structs.replace(query, keyless=visitor.caller.name)


# --- what a query says -----------------------------------------------------------------------------------


def _read_text(request: Request, name: str) -> str | None:
    told = request.query_params.get(name)
    if told is not None and len(told) > _LONGEST:
        raise InvalidInput([Problem(name, f"must have {_LONGEST} characters at most")], subject="the query")
    return told


def _wants_csv(request: Request) -> bool:
    told = request.query_params.get("format")
    if told is None:
        accepted = request.headers.get("accept", "").lower()
        return _CSV in accepted and "json" not in accepted
    if told not in _FORMATS:
        raise InvalidInput([Problem("format", f"must be {' or '.join(_FORMATS)}")], subject="the query")
    return told == "csv"


# --- answers ---------------------------------------------------------------------------------------------

_FRESH = {"cache-control": "no-store"}


def _csv_answer(
    columns: Sequence[str], rows: Iterable[GroupFacts | EntryFacts], *, name: str, **more: str
) -> Response:
    text = csv_header(columns) + csv_lines(columns, map(csv_row, rows))
    told = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    return Response(text, headers=_FRESH | told | more, media_type=f"{_CSV}; charset=utf-8; header=present")


_TAG = "usage"
_PERIOD = (
    Parameter(
        name="since",
        place="query",
        description=(
            "Only what ended then or later: `2026-11-01`, `2026-11-01T08:30`, `today`, `yesterday`, `7d`, `24h`. Without a "
            "zone it is UTC."
        ),
    ),
    Parameter(
        name="until",
        place="query",
        description="Only what ended before that instant; of a day, all of it belongs to the period.",
    ),
)
_FORMAT = Parameter(
    name="format",
    place="query",
    description="`csv` has exact dollars. When left out the header `Accept` decides, and JSON is the usual.",
    schema={"type": "string", "enum": list(_FORMATS)},
)
_VISIBLE = (
    "The admin sees all. A key sees what was asked for with it, a caller with a Replicate token of their own (in "
    "`X-Replicate-Api-Token`) what they asked for, and so do callers without credentials, where those are served."
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/usage",
        handler=show_usage,
        summary="What was made and what it cost, added up",
        description=f"{_VISIBLE} In CSV the last line is the total.",
        tag=_TAG,
        access="caller",
        answers={200: UsageReport},
        besides=(_CSV,),
        errors=(502, 503),
        parameters=(
            *_PERIOD,
            Parameter(
                name="by",
                place="query",
                description="What the groups have in common; `model` when left out. Days are those of UTC.",
                schema={"type": "string", "enum": list(GROUPINGS)},
            ),
            _FORMAT,
        ),
    ),
    Operation(
        method="GET",
        path="/usage/entries",
        handler=list_entries,
        summary="What was made and what it cost, one by one",
        description=f"{_VISIBLE} In CSV the header `X-Imagen-Next-Cursor` has the cursor of the next page.",
        tag=_TAG,
        access="caller",
        answers={200: EntryPage},
        besides=(_CSV,),
        errors=(404, 502, 503),
        parameters=(
            *_PERIOD,
            cursor_of(_CURSOR),
            Parameter(
                name="limit",
                place="query",
                description=f"How many at most; {_ENTRIES} when left out.",
                schema={"type": "integer", "minimum": 1, "maximum": MOST_ENTRIES},
            ),
            _FORMAT,
        ),
    ),
)
