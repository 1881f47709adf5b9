"""Tools for agents over streamable HTTP: `/mcp`. Each request stands alone; every tool acts as its caller."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from secrets import token_hex
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from imagen.agents.here import AppWorkshop
from imagen.agents.money import Purse
from imagen.agents.progress import Progress
from imagen.agents.tools import Desk
from imagen.decoding import convert
from imagen.domain.limits import Lane
from imagen.domain.prediction import Prediction
from imagen.domain.request import GenerationRequest
from imagen.domain.usage import UsageQuery
from imagen.errors import ImagenError, InvalidInput, InvalidRequest, Problem, for_elsewhere
from imagen.pictures import check_address
from imagen.server.access import Visitor, owns, scope_of
from imagen.server.agent_calls import AgentCall
from imagen.server.answers import error_answer, json_answer
from imagen.server.bodies import check_parts
from imagen.server.context import Context
from imagen.server.operation import Operation
from imagen.server.pictures import kept_at
from imagen.server.usage import own_entries
from imagen.server.wishes import as_told, prepare_request
from imagen.service.deliver import Destination, Kept
from imagen.service.finish import Outcome
from imagen.service.prepare import Order

PATH = "/mcp"
MOST_BYTES = 16 * 1024 * 1024
"""A picture inside a request fits in."""
_SESSION = "mcp-session-id"
_SESSION_ID = re.compile(r"[0-9a-f]{32}")
_PICTURES = "/pictures/"
_REFUSED = -32000
"""Of JSON-RPC's codes the first that servers may give a meaning of their own."""
_NO_JSON, _NO_MESSAGE = -32700, -32600
"""Of JSON-RPC: a body that cannot be read, and one that is no message."""
_MEDIA_TYPE = "application/json"
_PASSED_ON = frozenset({"retry-after", "www-authenticate"})
_SDK = "imagen.agents.exchange"
"""What imports the SDK: it is large, and most gateways never need it."""


async def talk(context: Context, request: Request) -> Response:
    """One message of an agent's, and its answer."""
    context.door.check_origin(request.headers)
    visitor, body = await context.receive(request)
    _check_type(request)
    told = _read(body)
    session = request.headers.get(_SESSION, "")
    if told.method == "notifications/cancelled":
        # Older clients do not hang up to cancel a call.
        call = AgentCall(scope_of(visitor), session, str((told.params or {}).get("requestId")))
        if not context.agent_calls.cancel(call):
            return refusal(_no_such_call())
    if _SDK not in sys.modules:  # the first who comes waits for it; everybody else is served meanwhile
        await asyncio.to_thread(import_module, _SDK)
    opens = told.method == "initialize" and not _SESSION_ID.fullmatch(session)
    workshop = _VisitorWorkshop(context, request, visitor)
    return _Exchange(context, workshop, body, session=token_hex(16) if opens else session)


class _Malformed(InvalidRequest):
    """What came is no message of the protocol. The sentence quotes nothing of it: it may hold a prompt.

    Args:
        number: JSON-RPC's code for it.
        detail: as every error has it.
    """

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(detail)
        self.number = number


class _Fault(msgspec.Struct, frozen=True):
    code: int
    message: str


class _Told(msgspec.Struct, frozen=True):
    """A message: a request, a notification (it has no id), or a client's answer. The SDK reads what is in it."""

    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET
    id: Any = UNSET
    params: dict[str, Any] | None = None
    result: dict[str, Any] | UnsetType = UNSET
    error: _Fault | UnsetType = UNSET

    @property
    def whole(self) -> bool:
        """Whether it has what one of the three must have."""
        named = isinstance(self.id, int | str) and not isinstance(self.id, bool)
        if self.method is not UNSET:
            return named or self.id is UNSET
        if self.result is not UNSET:
            return named
        return self.error is not UNSET and (named or self.id is None)


def _check_type(request: Request) -> None:
    told = request.headers.get("content-type", "")
    if told.partition(";")[0].strip().lower() != _MEDIA_TYPE:
        raise _Malformed(_NO_MESSAGE, f"the Content-Type must be {_MEDIA_TYPE}")


def _read(body: bytes) -> _Told:
    """The message.

    It is checked before the SDK reads it, which would quote what it does not understand.

    Raises:
        InvalidRequest: it is none, or of too many parts.
    """
    check_parts(body)
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise _Malformed(_NO_JSON, "the body is not valid JSON: send one JSON-RPC message") from None
    if isinstance(found, list):
        raise _Malformed(_NO_MESSAGE, "batches (arrays) are not supported: send one message at a time")
    try:
        told = convert(found, _Told)
    except msgspec.ValidationError:
        told = None
    if told is None or not told.whole:
        raise _Malformed(
            _NO_MESSAGE,
            'the body is no JSON-RPC message: send an object with "jsonrpc": "2.0", a "method", an "id" that is '
            'a string or a whole number, and "params" that are an object',
        )
    return told


class _Exchange(Response):
    """The answer, which the SDK sends."""

    def __init__(self, context: Context, workshop: _VisitorWorkshop, body: bytes, *, session: str) -> None:
        self._context = context
        self._workshop = workshop
        self._body = body
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from imagen.agents.exchange import make_server, serve_exchange  # noqa: PLC0415 - loaded by now

        reasons: dict[Any, Callable[[Sequence[str]], ImagenError]] = {}

        def started(request_id: Any, task: asyncio.Task[Any]) -> None:
            call = AgentCall(scope_of(self._workshop.visitor), self._session, str(request_id))
            reasons[request_id] = self._context.agent_calls.begin(call, task)

        app = self._workshop.app
        desk = Desk(
            workshop=self._workshop,
            confirm_above=app.settings.mcp.confirm_above,
            purse=Purse(),
            local=False,
            resumes=False,
        )
        server = make_server(desk, started=started, ended=lambda request_id, sent: reasons[request_id](sent))
        await serve_exchange(server, scope, self._replayed(receive), self._named(send), most_bytes=MOST_BYTES)

    def _replayed(self, receive: Receive) -> Receive:
        """The body that was read already, then whatever comes."""
        bodies = [self._body]

        async def again() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            return await receive()

        return again

    def _named(self, send: Send) -> Send:
        """The answer with the id by which an older client's calls are told from those of others."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and self._session:
                message["headers"] = [
                    *message.get("headers", []),
                    (_SESSION.encode(), self._session.encode("latin-1")),
                ]
            await send(message)

        return named


# --- as whom ---------------------------------------------------------------------------------------------


class _VisitorWorkshop(AppWorkshop):
    """What one visitor may do, on their account, with their limits and budgets."""

    def __init__(self, context: Context, request: Request, visitor: Visitor) -> None:
        super().__init__(
            context.app,
            backend=visitor.backend,
            caller=visitor.caller,
            usual=context.app.backends.habits(None).model,
            models=visitor.models,
            local=False,
            open_calls=context.agent_calls.open,
        )
        self.visitor = visitor
        self._context = context
        self._request = request

    def destination(self, output: str | None) -> Destination:  # noqa: ARG002 - callers elsewhere name no files here
        """On the shelf."""
        return Destination(shelf=True, metadata=self.app.settings.metadata)

    async def prepare(
        self, request: GenerationRequest, *, destination: Destination | None, watched: bool
    ) -> Order:
        """As every request over HTTP is prepared."""
        return await prepare_request(
            self._context,
            self.visitor,
            request,
            lane=Lane.INTERACTIVE,
            keep=destination is not None,
            watched=watched,
        )

    async def image(self, told: str) -> Any:
        """An address or a data URI as it is; of a picture that is kept here, its file, as no service could reach it."""
        kept = await kept_at(self._context, self._request, told)
        if kept is not None:
            return kept.path
        if not told.startswith(("data:", "https:")):
            raise InvalidInput(
                [Problem("image", "it must be an https address, a data: URI or a link of an earlier answer")]
            )
        return check_address(told, field="image", schemes=("https",))

    async def carry_out(self, offer: Any, *, progress: Progress) -> list[Outcome]:
        """See `Workshop.carry_out`, with errors as their callers are told."""
        outcomes = await super().carry_out(offer, progress=progress)
        return [
            outcome
            if outcome.error is None
            else msgspec.structs.replace(outcome, error=for_elsewhere(as_told(outcome.error, self.visitor)))
            for outcome in outcomes
        ]

    def sees(self, prediction: Prediction) -> bool:
        """Their own ones."""
        return owns(self.visitor, prediction)

    async def of_caller(self, query: UsageQuery) -> UsageQuery:
        """Their own entries."""
        return await own_entries(self._context, self.visitor, query)

    def place(self, picture: Kept) -> dict[str, str]:
        """Its address here."""
        return {"url": self._context.url_of(self._request, f"{_PICTURES}{picture.shelf_id}")}


# --- refusals --------------------------------------------------------------------------------------------


def _no_such_call() -> InvalidRequest:
    return InvalidRequest(
        "no call of that id is under way in this process: it has ended, or another replica has it",
        hint="Hang up on the call itself, or use cancel_prediction.",
    )


def refusal(error: ImagenError) -> Response:
    """What went wrong before a message was read, in the words of the protocol, so that clients show the sentence."""
    answer = error_answer(error)
    code = error.number if isinstance(error, _Malformed) else _REFUSED
    told = {"code": code, "message": str(error), "data": msgspec.Raw(answer.body)}
    headers = {name: value for name, value in answer.headers.items() if name in _PASSED_ON}
    body = {"jsonrpc": "2.0", "id": None, "error": told}
    return json_answer(body, status=answer.status_code, headers=headers)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path=PATH,
        handler=talk,
        summary="Tools for agents, by the Model Context Protocol",
        tag="agents",
        access="caller",
        answers={200: None},
        documented=False,
        tells=refusal,
    ),
)
