"""Tools for agents over streamable HTTP: `/mcp`. Each request stands alone; every tool acts as its caller."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from secrets import token_hex
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from imagen.agents.here import AppWorkshop
from imagen.agents.money import Purse
from imagen.agents.progress import Progress
from imagen.agents.tools import Desk
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
_PASSED_ON = frozenset({"retry-after", "www-authenticate"})
_SDK = "imagen.agents.exchange"
"""What imports the SDK: it is large, and most gateways never need it."""


async def talk(context: Context, request: Request) -> Response:
    """One message of an agent's, and its answer."""
    context.door.check_origin(request.headers)
    visitor, body = await context.receive(request)
    check_parts(body)
    told = _read(body)
    session = request.headers.get(_SESSION, "")
    if told.method == "notifications/cancelled":
        # Older clients do not hang up to cancel a call.
        call = AgentCall(scope_of(visitor), session, str(told.params.requestId))
        if not context.agent_calls.cancel(call):
            return refusal(_no_such_call())
    if _SDK not in sys.modules:  # the first who comes waits for it; everybody else is served meanwhile
        await asyncio.to_thread(import_module, _SDK)
    opens = told.method == "initialize" and not _SESSION_ID.fullmatch(session)
    workshop = _VisitorWorkshop(context, request, visitor)
    return _Exchange(context, workshop, body, session=token_hex(16) if opens else session)


class _Params(msgspec.Struct, frozen=True):
    requestId: int | str | None = None  # noqa: N815 - as the protocol has it


class _Told(msgspec.Struct, frozen=True):
    """The little that is read of a message here; the SDK reads it all."""

    method: str = ""
    params: _Params = _Params()


def _read(body: bytes) -> _Told:
    try:
        return msgspec.json.decode(body, type=_Told)
    except (ValueError, RecursionError):
        return _Told()  # the SDK says what is wrong with it


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
    told = {"code": _REFUSED, "message": str(error), "data": msgspec.Raw(answer.body)}
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
