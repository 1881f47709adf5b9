"""The gateway as an ASGI application: its faces, and the shell around them that counts, logs and turns errors into answers."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagen import __version__
from imagen.errors import ImagenError, NotFound, for_elsewhere
from imagen.instrumentation.logs import access_line, request_id
from imagen.server import documents, mcp
from imagen.server.answers import error_answer
from imagen.server.bodies import not_for_ever
from imagen.server.context import Context, Gone
from imagen.server.openai.errors import openai_error
from imagen.server.operation import Operation
from imagen.server.paths import Paths
from imagen.server.replicate.problems import NotSupported, problem_for_both

FACES = (*documents.FACES, documents)
"""The modules whose `OPERATIONS` make the gateway."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PREFIX = "/v1"
_TWICE = f"{_PREFIX}{_PREFIX}/"
_CLIENT_CLOSED = 499
_NOT_FOUND, _NO_SUCH_METHOD = 404, 405
_WORDS: tuple[tuple[str, Callable[[ImagenError], Response]], ...] = (
    (f"{_PREFIX}/images", openai_error),
    (_PREFIX, problem_for_both),
    (mcp.PATH, mcp.refusal),
)
"""How errors are told below a path; our own way everywhere else."""

_log = logging.getLogger(__name__)


def operations() -> tuple[Operation, ...]:
    """All that can be asked of the gateway in its own words: what the OpenAPI document tells."""
    return tuple(operation for operation in all_operations() if operation.documented)


def all_operations() -> tuple[Operation, ...]:
    """All that can be asked of the gateway, in the words of others too."""
    return tuple(operation for face in FACES for operation in face.OPERATIONS)


def build_server(context: Context) -> ASGIApp:
    """The gateway of one application."""
    app = FastAPI(
        title="imagen",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would lead to whatever name the caller has put in `Host`.
        redirect_slashes=False,
    )
    straight: list[tuple[str, str, ASGIApp]] = []
    for path, found in _by_path(all_operations()).items():
        methods: dict[str, _Served] = {
            each.method: _Served(each, partial(each.handler, context)) for each in found
        }
        endpoint = _Endpoint(methods)
        app.router.routes.append(Route(path, endpoint, methods=[*methods]))
        straight += [(method, path, endpoint) for method in methods]
    app.add_exception_handler(HTTPException, _nothing_there)
    return Shell(app, context, straight=Paths(straight))


async def _nothing_there(request: Request, error: Exception) -> Response:
    """The answer for paths and methods that there are not, in the words of the face that it would be of."""
    status = error.status_code if isinstance(error, HTTPException) else _NOT_FOUND
    path = request.url.path
    what = f"{request.method} {path[:100]}"
    told = (
        NotSupported(f"{what} is not supported", hint="GET /docs lists what is.")
        if status == _NO_SUCH_METHOD
        else NotFound(f"{what} was not found", hint="GET /docs lists what there is.")
    )
    tells = next((tells for prefix, tells in _WORDS if f"{path}/".startswith(f"{prefix}/")), error_answer)
    answer = tells(told)
    answer.status_code = status
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


class _Served(NamedTuple):
    """An operation, and what answers it for this server."""

    operation: Operation
    handler: Callable[[Request], Awaitable[Response]]


class _Endpoint:
    """What can be asked under one path, by method."""

    def __init__(self, methods: Mapping[str, _Served]) -> None:
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        method = "GET" if request.method == "HEAD" and "HEAD" not in self._methods else request.method
        operation, handler = self._methods[method]
        scope["imagen.route"], scope["imagen.operation"] = operation.path, operation
        try:
            answer = await handler(request)
        except ImagenError as error:
            if (told := for_elsewhere(error)) is not error:
                _log.error("%s", error.detail)
            answer = operation.tells(told)
        except Gone:
            answer = Response(status_code=_CLIENT_CLOSED)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not show its text to strangers
            _log.error("a request ended in an unexpected fault: %s", type(error).__name__)
            _log.debug("the fault", exc_info=error)
            fault = f"an unexpected fault ({type(error).__name__}); please report it with its request id"
            answer = operation.tells(ImagenError(fault))
        await answer(scope, receive, send)


def _by_path(all_of_them: Iterable[Operation]) -> dict[str, list[Operation]]:
    """What can be asked under each path. Paths with names in them come after those without."""
    found: dict[str, list[Operation]] = {}
    for operation in all_of_them:
        for path in (operation.path, *operation.aliases):
            found.setdefault(path, []).append(operation)
    return dict(sorted(found.items(), key=lambda entry: entry[0].count("{")))


class Shell:
    """Around every request: an id, an answer whatever happens, a count and a line in the log.

    Args:
        app: everything that can be asked.
        context: of the server.
        straight: endpoints to which requests go without passing the framework's own layers.
    """

    def __init__(self, app: FastAPI, context: Context, *, straight: Paths) -> None:
        self._app = app
        self._context = context
        self._straight = straight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        receive, send = not_for_ever(scope, receive, send)
        told = _header(scope, b"x-request-id")
        this = told if _ID.fullmatch(told) else secrets.token_hex(8)
        token = request_id.set(this)
        began, status = time.perf_counter(), 0

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", this.encode()))
            await send(message)

        if scope["path"].startswith(_TWICE):
            # Whoever tells a client that adds the prefix an address that has it already.
            scope["path"] = scope["path"][len(_PREFIX) :]
        try:
            endpoint: ASGIApp = self._app
            if (found := self._straight.find(scope["method"], scope["path"])) is not None:
                endpoint, scope["path_params"] = found
            await endpoint(scope, receive, answered)
        finally:
            seconds = time.perf_counter() - began
            route = scope.get("imagen.route", "other")
            self._context.metrics.request(route, scope["method"], status, seconds)
            access_line(
                method=scope["method"],
                route=route,
                path=scope["path"],
                status=status,
                ms=seconds * 1000,
                caller=scope.get("imagen.caller"),
            )
            request_id.reset(token)


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""
