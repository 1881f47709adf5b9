"""What of Replicate's API is passed on to the service as it is, on the account of who asks and within its limits."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.key import check_scope
from imagen.domain.model_ref import ModelRef
from imagen.errors import BackendUnauthenticated, GarbledResponse, NotFound, PermissionDenied
from imagen.ports import Passage, Relay, Reply
from imagen.server import durable
from imagen.server.access import Visitor
from imagen.server.bodies import read_body
from imagen.server.context import Context
from imagen.server.headers import KEPT
from imagen.server.kept import KeptAnswer, Question
from imagen.server.operation import Operation
from imagen.server.replicate.problems import problem_answer

PREFIX = "/v1"
TAG = "replicate"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
_MOST_BYTES = 32 * 1024 * 1024
"""Of an answer in JSON, which is read whole."""
_MOST_OF_A_BODY = 1024 * 1024
_PASSED_ON = frozenset(
    {
        "content-type",
        "content-length",
        "content-encoding",
        "content-range",
        "content-disposition",
        "accept-ranges",
        "etag",
        "last-modified",
        "retry-after",
        "location",
    }
)
"""Header fields of an answer that go back; cookies never do."""
_LIMITS = "ratelimit-"
_SENT_ON = ("accept", "content-type")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
"""What names and ids are made of: nothing that leads to another path."""
_WITH_BODY = frozenset({"POST", "PATCH", "QUERY"})
_ONLY_READS = frozenset({"GET", "HEAD", "QUERY"})
_OF_PAGES = ("next", "previous")
_LINKS = ("get", "cancel")
_INSIDE = ("results", "models", "model", "default_example")
_UNAUTHENTICATED = 401


# --- for whoever passes something on ------------------------------------------------------------------------


def relay_of(visitor: Visitor) -> Relay:
    """The way to the API of a visitor's account.

    Raises:
        NotFound: their backend has none.
    """
    if not isinstance(visitor.backend, Relay):
        raise NotFound(f"{visitor.backend.name}: this backend has no API of Replicate's")
    return visitor.backend


async def prove(context: Context, visitor: Visitor) -> None:
    """Refuse a made-up token before anything is written down for it, and before anything is asked with it.

    Raises:
        Unauthenticated: the service does not know it.
        BackendError: the service could not tell.
    """
    if visitor.own_token:
        await durable.check_account(context, visitor)


def require_owner(visitor: Visitor) -> None:
    """Refuse what concerns the whole account to whoever has only a part in it.

    Raises:
        PermissionDenied: saying why.
    """
    if not visitor.owns_account:
        raise PermissionDenied(
            "this belongs to the account of the gateway, of which a key has no more than predictions and files of its own",
            hint="Use the admin key, or send a Replicate token of your own as the bearer.",
        )


def upstream_path(request: Request, template: str) -> str:
    """The path of a request below `/v1`, made anew of its names, with its query.

    Raises:
        NotFound: nothing can be called so.
    """
    for value in request.path_params.values():
        if not _NAME.fullmatch(value):
            raise NotFound(f"{request.url.path[:100]} was not found")
    names = {name: quote(value, safe="") for name, value in request.path_params.items()}
    query = request.url.query
    return template.removeprefix(PREFIX).format(**names) + (f"?{query}" if query else "")


async def pass_on(
    context: Context,
    request: Request,
    visitor: Visitor,
    *,
    path: str,
    body: bytes | None = None,
    keeps: float = 0.0,
    reshape: Callable[[Any], Any] | None = None,
) -> Response:
    """Pass a call on, and its answer back: addresses of the service in it lead here.

    Args:
        context: of the server.
        request: what is asked; its method, and what it says of its body, go along.
        visitor: on whose account.
        path: below `/v1`, with the query.
        body: all of it.
        keeps: seconds for which the same answer may be given again.
        reshape: what else is done to good JSON.

    Raises:
        BackendError: no answer came, or the gateway's own token is not good.
    """
    told, age = await ask(context, request, visitor, path=path, body=body, keeps=keeps, reshape=reshape)
    headers = dict(told.headers)
    if keeps:
        headers |= cache_headers(age)
    return Response(told.content, told.status, headers)


def cache_headers(age: int | None) -> dict[str, str]:
    """What tells whether an answer was given before: its age in seconds, None for a new one."""
    return {KEPT: "miss"} if age is None else {KEPT: "hit", "age": str(age)}


async def ask(
    context: Context,
    request: Request,
    visitor: Visitor,
    *,
    path: str,
    body: bytes | None = None,
    keeps: float = 0.0,
    reshape: Callable[[Any], Any] | None = None,
    kind: str = "",
    hurried: bool = False,
) -> tuple[KeptAnswer, int | None]:
    """The answer to a call that is passed on, and its age where it was kept.

    Args:
        context: of the server.
        request: as in `pass_on`.
        visitor: on whose account.
        path: as in `pass_on`.
        body: all of it.
        keeps: as in `pass_on`.
        reshape: as in `pass_on`.
        kind: what else the answer depends on, besides account and question.
        hurried: as in `ports.Passage`.

    Raises:
        BackendError: no answer came, or the gateway's own token is not good.
        Unauthenticated: the caller's own is not.
    """
    base, method = context.url_of(request, ""), "GET" if request.method == "HEAD" else request.method
    question = Question(visitor.backend.account, base, method, path, body or b"", kind)
    fresh = "no-cache" in request.headers.get("cache-control", "")
    if keeps and not fresh and (found := context.kept.find(question)) is not None:
        return found
    relay = relay_of(visitor)
    sent = {name: request.headers[name] for name in _SENT_ON if name in request.headers}
    call = Passage(method=method, path=path, headers=sent, body=body, hurried=hurried)

    async def work() -> KeptAnswer:
        await prove(context, visitor)
        reply = await relay.relay(call)
        try:
            return _to_keep(reply, await _read(reply), base=base, visitor=visitor, reshape=reshape)
        finally:
            await reply.close()

    told = await context.stay(request, work(), goes_on=False)
    if told.status < 300:
        if method not in _ONLY_READS:
            context.kept.forget(visitor.backend.account)
        elif keeps:
            context.kept.keep(question, told, seconds=keeps)
    return told, None


def headers_of(reply: Reply, *, base: str) -> dict[str, str]:
    """The header fields of an answer that go back."""
    found = {
        name: value for name, value in reply.headers.items() if name in _PASSED_ON or name.startswith(_LIMITS)
    }
    if (location := found.pop("location", None)) is not None and (ours := own_address(location, base)):
        found["location"] = ours
    return found


def check_account(reply: Reply, visitor: Visitor) -> None:
    """Not to tell a caller that it is their key which the service does not know.

    Raises:
        BackendUnauthenticated: it is the gateway's token that is not good.
    """
    if reply.status == _UNAUTHENTICATED and not visitor.own_token:
        raise BackendUnauthenticated(
            "401: the gateway's own Replicate API token is missing or wrong",
            hint="Whoever runs the gateway sets a good one.",
        )


def own_address(url: str, base: str) -> str | None:
    """The gateway's address for one of the service's API; None for any other."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    at = parts.path.find(f"{PREFIX}/")
    if at < 0 or parts.scheme not in {"https", "http", ""}:
        return None
    return f"{base}{parts.path[at:]}" + (f"?{parts.query}" if parts.query else "")


def point_back(value: Any, base: str) -> Any:
    """JSON with the addresses of the API in it leading here: where the API has them, and nowhere else.

    Those are `next` and `previous` of a page, and `urls.get` and `urls.cancel` of what can be asked for again.
    """
    if isinstance(value, list):
        return [point_back(one, base) for one in value]
    if not isinstance(value, dict):
        return value
    shown = dict(value)
    for name in _OF_PAGES:
        if isinstance(value.get(name), str):
            shown[name] = own_address(value[name], base) or value[name]
    if isinstance(links := value.get("urls"), dict):
        shown["urls"] = {
            name: (own_address(link, base) or link) if name in _LINKS and isinstance(link, str) else link
            for name, link in links.items()
        }
    for name in _INSIDE:
        if name in value:
            shown[name] = point_back(value[name], base)
    return shown


def _to_keep(
    reply: Reply, content: bytes, *, base: str, visitor: Visitor, reshape: Callable[[Any], Any] | None
) -> KeptAnswer:
    """An answer as it goes back.

    Raises:
        BackendUnauthenticated: see `check_account`.
    """
    check_account(reply, visitor)
    headers = headers_of(reply, base=base)
    headers.pop("content-length", None)
    if reply.status < 300 and headers.get("content-type", "").startswith("application/json"):
        try:
            value = point_back(msgspec.json.decode(content), base)
        except (ValueError, RecursionError):
            raise GarbledResponse(
                f"the service answered {reply.status} with something that is no JSON"
            ) from None
        content = msgspec.json.encode(value if reshape is None else reshape(value))
    return KeptAnswer(reply.status, headers, content)


async def _read(reply: Reply) -> bytes:
    """The whole body.

    Raises:
        GarbledResponse: it is too large.
    """
    body = bytearray()
    async for piece in reply.pieces:
        body += piece
        if len(body) > _MOST_BYTES:
            raise GarbledResponse(f"the service answered with more than {_MOST_BYTES >> 20} MiB")
    return bytes(body)


# --- the operations -----------------------------------------------------------------------------------------


class _Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How an operation is passed on: whom to, and for how many seconds its answer is kept."""

    template: str
    owners: bool
    keeps: float


async def _serve(rule: _Rule, context: Context, request: Request) -> Response:
    visitor = await context.enter(request)
    if rule.owners:
        require_owner(visitor)
    path = upstream_path(request, rule.template)
    body = None
    if request.method in _WITH_BODY:
        body = await read_body(request, limit_bytes=_MOST_OF_A_BODY)
    return await pass_on(context, request, visitor, path=path, body=body, keeps=rule.keeps)


async def _list_deployments(context: Context, request: Request) -> Response:
    """Those of the account that the caller's key may use."""
    visitor = await context.enter(request)
    path = upstream_path(request, f"{PREFIX}/deployments")
    allowed = {one.lower() for one in visitor.models}

    def allowed_ones(page: Any) -> Any:
        if not allowed or not isinstance(page, dict) or not isinstance(page.get("results"), list):
            return page
        shown = [one for one in page["results"] if isinstance(one, dict) and _named(one).lower() in allowed]
        return {**page, "results": shown}

    return await pass_on(context, request, visitor, path=path, reshape=allowed_ones)


async def _get_deployment(context: Context, request: Request) -> Response:
    visitor = await context.enter(request)
    path = upstream_path(request, _DEPLOYMENT)
    names = request.path_params
    check_scope(visitor.models, ModelRef.parse(f"deployments/{names['owner']}/{names['name']}"))
    return await pass_on(context, request, visitor, path=path)


def _named(deployment: Mapping[str, Any]) -> str:
    return f"deployments/{deployment.get('owner')}/{deployment.get('name')}"


_MODEL = f"{PREFIX}/models/{{owner}}/{{name}}"
_VERSION = f"{_MODEL}/versions/{{version_id}}"
_DEPLOYMENT = f"{PREFIX}/deployments/{{owner}}/{{name}}"
_TRAINING = f"{PREFIX}/trainings/{{training_id}}"

_Asked = tuple[str, str, str, float]
"""Method, path, what it is, and for how many seconds an answer is kept."""
_FOR_ALL: tuple[_Asked, ...] = (
    ("GET", f"{PREFIX}/account", "The account", 0.0),
    ("GET", f"{PREFIX}/collections", "Collections of models", 5 * MINUTE),
    ("GET", f"{PREFIX}/collections/{{slug}}", "A collection of models", 5 * MINUTE),
    ("GET", f"{PREFIX}/hardware", "Hardware", HOUR),
    ("GET", f"{PREFIX}/search", "Search", MINUTE),
    ("QUERY", f"{PREFIX}/models", "Search for models", MINUTE),
    ("GET", f"{_MODEL}/examples", "Examples of a model", MINUTE),
    ("GET", f"{_MODEL}/readme", "What a model tells of itself", 5 * MINUTE),
    ("GET", f"{_MODEL}/versions", "Versions of a model", MINUTE),
    ("GET", _VERSION, "A version of a model", DAY),
)
_FOR_OWNERS: tuple[_Asked, ...] = (
    ("POST", f"{PREFIX}/models", "Make a model", 0.0),
    ("PATCH", _MODEL, "Change a model", 0.0),
    ("DELETE", _MODEL, "Delete a model", 0.0),
    ("DELETE", _VERSION, "Delete a version", 0.0),
    ("POST", f"{PREFIX}/deployments", "Make a deployment", 0.0),
    ("PATCH", _DEPLOYMENT, "Change a deployment", 0.0),
    ("DELETE", _DEPLOYMENT, "Delete a deployment", 0.0),
    ("POST", f"{_VERSION}/trainings", "Train a model", 0.0),
    ("GET", f"{PREFIX}/trainings", "Trainings", 0.0),
    ("GET", _TRAINING, "A training", 0.0),
    ("POST", f"{_TRAINING}/cancel", "Stop a training", 0.0),
)


def passed_on(
    method: str, path: str, handler: Callable[[Context, Request], Awaitable[Response]], summary: str
) -> Operation:
    """An operation of Replicate's API, under `/v1` and at the root."""
    return Operation(
        method=method,  # type: ignore[arg-type]
        path=path,
        handler=handler,
        summary=summary,
        tag=TAG,
        access="caller",
        answers={200: None},
        aliases=(path.removeprefix(PREFIX),),
        documented=False,
        tells=problem_answer,
    )


def _operation(asked: _Asked, *, owners: bool) -> Operation:
    method, path, summary, keeps = asked
    rule = _Rule(template=path, owners=owners, keeps=keeps)
    return passed_on(method, path, partial(_serve, rule), summary)


OPERATIONS: tuple[Operation, ...] = (
    *(_operation(asked, owners=False) for asked in _FOR_ALL),
    *(_operation(asked, owners=True) for asked in _FOR_OWNERS),
    passed_on("GET", f"{PREFIX}/deployments", _list_deployments, "Deployments"),
    passed_on("GET", _DEPLOYMENT, _get_deployment, "A deployment"),
)
