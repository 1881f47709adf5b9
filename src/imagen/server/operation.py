"""One operation of the gateway as a value: routes, access and the OpenAPI document are made of these."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.errors import ImagenError
from imagen.server.answers import error_answer
from imagen.server.context import Context

Handler = Callable[[Context, Request], Awaitable[Response]]
Access = Literal["anyone", "caller", "admin"]


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter in path, query or header, as OpenAPI has it."""

    name: str
    place: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


def cursor_of(ours: re.Pattern[str]) -> Parameter:
    """The parameter by which a list goes on, of the form in which we tell it."""
    return Parameter(
        name="cursor",
        place="query",
        description="`next_cursor` of the page before.",
        schema={"type": "string", "pattern": f"^{ours.pattern}$"},
    )


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What can be asked for under one method and path.

    Attributes:
        handler: answers it. Errors of ours that it raises become answers in `app`.
        summary, description: for people.
        access: `anyone`, a `caller` of one of the tiers, or the `admin` alone. Handlers check it; this tells it.
        body: the type of the request's JSON, None for no body.
        uploads: schemas of other bodies that it takes, by media type.
        answers: the type of the JSON of each status besides errors; None for no JSON.
        errors: statuses besides 400 that it answers with an `ErrorBody`.
        media_type: of an answer that is no JSON.
        besides: other media types in which it gives an answer that it also has as JSON.
        any_query: it takes more in its query than `parameters` tells, or ignores what it does not know.
        aliases: other paths that lead here.
        documented: whether the OpenAPI document tells of it; what others document better is left to them.
        tells: makes the answer for what went wrong.
    """

    method: Literal["GET", "POST", "DELETE", "PUT", "PATCH", "QUERY"]
    path: str
    handler: Handler
    summary: str
    tag: str
    access: Access
    answers: Mapping[int, Any]
    description: str = ""
    body: Any = None
    uploads: Mapping[str, Any] = {}
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    media_type: str = "application/json"
    besides: tuple[str, ...] = ()
    example: Any = None
    any_query: bool = False
    aliases: tuple[str, ...] = ()
    documented: bool = True
    tells: Callable[[ImagenError], Response] = error_answer
