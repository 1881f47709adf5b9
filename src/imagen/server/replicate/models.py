"""Models, in one answer that clients of Replicate and of OpenAI can read.

Replicate's has `results`, `next` and `previous`; OpenAI's has `object` and `data`. Neither minds the fields of the other:
Replicate's document allows more than it names, and OpenAI's clients leave alone what they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from imagen.catalog.model import Model
from imagen.errors import BackendError, BackendRejected, ImagenError, ModelNotFound, NotFound, Unauthenticated
from imagen.server.access import Visitor
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.headers import adapted, wants_exact
from imagen.server.kept import KeptAnswer
from imagen.server.operation import Operation
from imagen.server.replicate.problems import problem_for_both
from imagen.server.replicate.relay import (
    MINUTE,
    PREFIX,
    ask,
    cache_headers,
    pass_on,
    passed_on,
    upstream_path,
)

_FROM_CATALOG = adapted([("source", "service", "catalog")])
"""KeptAnswer where the service could not be asked, and what we know ourselves was answered."""
_MODELS = f"{PREFIX}/models"
_MODEL = f"{_MODELS}/{{owner}}/{{name}}"
_FIRST_REFUSAL, _FIRST_FAULT = 400, 500


async def list_models(context: Context, request: Request) -> Response:
    """A page of the service's models; the first one has what pictures can be asked of by name besides, always."""
    visitor = await context.enter(request)
    path = upstream_path(request, _MODELS)
    if wants_exact(request):
        return await pass_on(context, request, visitor, path=path)
    first = "cursor" not in request.query_params
    allowed = {one.lower() for one in visitor.models}
    known = [_for_openai(model.name) for model in context.app.catalog] if first else []
    empty: dict[str, Any] = {"next": None, "previous": None, "results": []}
    return await _asked(
        context,
        request,
        visitor,
        path=path,
        reshape=lambda page: _page(page, known, allowed),
        instead=_page(empty, known, allowed) if first else None,
        kind=f"{first} {','.join(sorted(visitor.models))}",
        hurried=True,
    )


async def get_model(context: Context, request: Request) -> Response:
    """A model of the service's, or what we know of it where that cannot be asked."""
    visitor = await context.enter(request)
    return await _show(context, request, visitor, upstream_path(request, _MODEL))


async def get_model_by_alias(context: Context, request: Request) -> Response:
    """The model that one of our names means."""
    visitor = await context.enter(request)
    called = request.path_params["alias"]
    model = context.app.catalog.find(called)
    if model is None:
        raise NotFound(
            f"no model is called {called[:100]!r}",
            hint="GET /v1/models lists them; most are called owner/name.",
        )
    return await _show(context, request, visitor, f"/models/{model.name}")


async def _show(context: Context, request: Request, visitor: Visitor, path: str) -> Response:
    if wants_exact(request):
        return await pass_on(context, request, visitor, path=path)
    name = path.partition("?")[0].removeprefix("/models/")
    known = context.app.catalog.find(name)
    try:
        return await _asked(
            context,
            request,
            visitor,
            path=path,
            reshape=lambda model: _with_openai(model, name),
            instead=None if known is None else _with_openai(_from_catalog(known), name),
            hurried=known is not None,
        )
    except Unauthenticated as error:
        if known is not None or visitor.own_token:
            raise
        raise ModelNotFound(f"404: {name} is not in the catalog; {error.detail}") from error


async def _asked(
    context: Context,
    request: Request,
    visitor: Visitor,
    *,
    path: str,
    reshape: Callable[[dict[str, Any]], dict[str, Any]],
    instead: dict[str, Any] | None,
    hurried: bool,
    kind: str = "",
) -> Response:
    """What the service tells, or what we know ourselves where it is out of reach.

    Args:
        context: of the server.
        request: as in `relay.ask`.
        visitor: on whose account.
        path: as in `relay.ask`.
        reshape: makes an object of the service's readable by both.
        instead: what we know; None: nothing.
        hurried: as in `relay.ask`.
        kind: as in `relay.ask`.
    """
    try:
        told, age = await ask(
            context,
            request,
            visitor,
            path=path,
            keeps=MINUTE,
            reshape=lambda found: reshape(found) if isinstance(found, dict) else found,
            kind=kind,
            hurried=hurried,
        )
        if instead is None or told.status < _FIRST_FAULT:
            return _as_kept(told, age)
    except (BackendError, Unauthenticated) as error:
        if instead is None or not _is_out_of_reach(error, visitor):
            raise
    return json_answer(instead, headers=_FROM_CATALOG)


def _is_out_of_reach(error: ImagenError, visitor: Visitor) -> bool:
    """Whether it is not the caller's own mistake that the service could not tell."""
    if isinstance(error, Unauthenticated):
        return not visitor.own_token
    return not visitor.own_token or not isinstance(error, BackendRejected)


def _page(page: Mapping[str, Any], known: list[dict[str, Any]], allowed: set[str]) -> dict[str, Any]:
    """A page of models for both: for OpenAI's clients the known ones first, then those that the page has besides.

    Args:
        page: the service's.
        known: as OpenAI has them.
        allowed: what the caller may use, in small letters; empty for all.
    """
    results = page.get("results")
    shown = [
        _for_openai(f"{one['owner']}/{one['name']}", one)
        for one in (results if isinstance(results, list) else [])
        if isinstance(one, dict) and isinstance(one.get("owner"), str) and isinstance(one.get("name"), str)
    ]
    offered: dict[str, dict[str, Any]] = {}
    for one in (*known, *shown):
        if not allowed or one["id"].lower() in allowed:
            offered.setdefault(one["id"].lower(), one)
    return {**page, "object": "list", "data": [*offered.values()]}


def _with_openai(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**model, **_for_openai(name, model)}


def _for_openai(name: str, model: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model as OpenAI has it; `created` in seconds since 1970, 0 where nobody tells."""
    version = (model or {}).get("latest_version")
    told = version.get("created_at") if isinstance(version, dict) else None
    try:
        created = int(datetime.fromisoformat(told).timestamp()) if isinstance(told, str) else 0
    except (ValueError, OverflowError):
        created = 0
    return {"id": name, "object": "model", "created": created, "owned_by": name.partition("/")[0]}


def _from_catalog(model: Model) -> dict[str, Any]:
    """A model as Replicate has it, as far as we know it ourselves."""
    owner, _, name = model.name.partition("/")
    told: dict[str, Any] = {
        "url": f"https://replicate.com/{model.name}",
        "owner": owner,
        "name": name,
        "description": model.description,
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": None,
    }
    if model.official is not None:
        told["is_official"] = model.official
    return told


def _as_kept(told: KeptAnswer, age: int | None) -> Response:
    content = told.content if told.status < _FIRST_REFUSAL else _with_message(told.content)
    return Response(content, told.status, {**told.headers, **cache_headers(age)})


def _with_message(content: bytes) -> bytes:
    """A refusal of the service with its sentence where OpenAI's clients look for one."""
    try:
        told = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content
    if not isinstance(told, dict) or not isinstance(told.get("detail"), str):
        return content
    return msgspec.json.encode(told | {"message": told["detail"]})


OPERATIONS: tuple[Operation, ...] = tuple(
    replace(passed_on("GET", path, handler, summary), tells=problem_for_both)
    for path, handler, summary in (
        (_MODELS, list_models, "Models"),
        (f"{_MODELS}/{{alias}}", get_model_by_alias, "A model by one of its short names"),
        (_MODEL, get_model, "A model"),
    )
)
