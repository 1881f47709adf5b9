"""The tools as a server of the official SDK, whatever carries its messages. It imports the SDK, which is large."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import msgspec
from mcp import types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from imagen import __version__
from imagen.agents.arguments import argument_schema, read_arguments, schema_of
from imagen.agents.progress import TOTAL, Progress
from imagen.agents.tools import Answer, Desk, Tool, tools
from imagen.agents.words import in_words_of_tools
from imagen.domain.events import Event
from imagen.domain.quote import Quote
from imagen.errors import ImagenError, InvalidInput, Problem, for_elsewhere
from imagen.pictures import THUMBNAIL_TYPE

T = TypeVar("T")
Context = ServerRequestContext[Any, Any]
Started = Callable[[types.RequestId | None, "asyncio.Task[Any]"], None]
"""Told of each call's task as soon as it runs; whoever cancels that task ends the call."""
Ended = Callable[[types.RequestId | None, Sequence[str]], ImagenError]
"""Why a call's task was canceled by somebody other than its client, and what is told of the predictions that it has sent."""

INSTRUCTIONS = (
    "Pictures through Replicate, each with a seed, a price and a prediction id. Ask estimate_cost or recommend_model before "
    "anything dear, and the user before you confirm a price. Pictures come as paths or links, never as data; ask for a "
    "thumbnail to look at one."
)
_CONSENT = "consent"
_UNKNOWN = "unknown"
_FIELDS = {"input_image": "image", "max_cost": "max_cost_usd", "budget": "budget_usd", "opt": "options"}
"""What the core calls an argument, and what it is called here."""
_PAUSE_SECONDS = 0.1
"""Between two progress notifications; what happens faster is told together."""

_log = logging.getLogger(__name__)


def make_server(desk: Desk, *, started: Started, ended: Ended) -> Server[Any]:
    """A server of one caller's tools.

    Args:
        desk: the caller's.
        started: told of each call's task.
        ended: tells why such a task was canceled.
    """
    found = {tool.name: tool for tool in tools(local=desk.local)}
    shown = [_shown(tool) for tool in found.values()]
    failure = partial(_failure, local=desk.local)

    async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=shown)

    async def call_tool(
        context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        tool = found.get(params.name)
        if tool is None:
            known = ", ".join(found)
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:80]!r}; there are {known}")
        call = _Call(context, params)
        try:
            asked = read_arguments(params.arguments or {}, tool.arguments)
            async with call.told():
                work = tool.run(desk, asked, call)
                answer = await _apart(work, context.request_id, started=started)
        except _Asks as question:
            return question.result
        except _EndedByOthers:
            return failure(ended(context.request_id, call.progress.sent))
        except ImagenError as error:
            return failure(error)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not show its text to strangers
            _log.error("the tool %s ended in an unexpected fault: %s", tool.name, type(error).__name__)
            _log.debug("the fault", exc_info=error)
            return failure(ImagenError(f"an unexpected fault ({type(error).__name__}); please report it"))
        return _success(answer)

    return Server(
        "imagen",
        version=__version__,
        title="imagen",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _shown(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=dict(argument_schema(tool.arguments)),
        output_schema=dict(schema_of(tool.answer)),
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.reads,
            destructive_hint=tool.destroys,
            idempotent_hint=tool.again,
            open_world_hint=tool.outside,
        ),
    )


async def _apart(
    work: Coroutine[Any, Any, T] | Awaitable[T],
    request_id: types.RequestId | None,
    *,
    started: Started,
) -> T:
    """Do the work in a task of its own.

    The SDK cancels what its client gave up, and goes on canceling at every step of what is tidied up then. Here it is canceled
    once, and has all the time that it takes to cancel upstream.

    Raises:
        ImagenError: of the work.
        _EndedByOthers: somebody else canceled its task.
    """
    task = asyncio.ensure_future(work)
    started(request_id, task)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
    if task.cancelled():
        raise _EndedByOthers
    return task.result()


class _EndedByOthers(Exception):
    """Somebody other than its client has canceled the task of a call."""


# --- whoever calls ---------------------------------------------------------------------------------------


class _Asks(Exception):
    """The user is to be asked by the client, which then calls again."""

    def __init__(self, result: types.InputRequiredResult) -> None:
        super().__init__()
        self.result = result


class _Told(Progress):
    """Progress that says when there is more of it."""

    def __init__(self) -> None:
        super().__init__()
        self.more = asyncio.Event()

    def notify(self, event: Event) -> None:
        """See `Progress.notify`."""
        before = self.value
        super().notify(event)
        if self.value != before:
            self.more.set()


class _Call:
    """See `tools.Call`."""

    def __init__(self, context: Context, params: types.CallToolRequestParams) -> None:
        self._progress = _Told()
        self.watched = bool(context.meta) and "progress_token" in (context.meta or {})
        self._context = context
        self._params = params
        self._reported = 0.0

    @property
    def progress(self) -> Progress:
        """See `tools.Call.progress`."""
        return self._progress

    @contextlib.asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Tell the client how far it is while the block runs, where it wants to know."""
        if not self.watched:
            yield
            return
        telling = asyncio.create_task(self._tell())
        try:
            yield
        finally:
            telling.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({telling})
            if not telling.cancelled() and (error := telling.exception()) is not None:
                _log.debug("progress could not be told: %s", type(error).__name__)
        await self._tell_now()

    async def _tell(self) -> None:
        while True:
            await self._progress.more.wait()
            self._progress.more.clear()
            await self._tell_now()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _tell_now(self) -> None:
        value, message = self.progress.value, self.progress.message
        if value > self._reported:
            self._reported = value
            await self._context.session.report_progress(value, TOTAL, message)

    async def consents(self, question: str, quote: Quote) -> bool | None:
        """See `tools.Call.consents`. Newer clients are answered with the question, and call again with what the user says."""
        session = self._context.session
        can = session.client_capabilities and session.client_capabilities.elicitation
        if not can or (can.form is None and can.url is not None):
            return None
        if session.can_send_request:
            try:
                return _agrees(await session.elicit_form(question, _form(quote), self._context.request_id))
            except MCPError:
                return None  # it says that it can, and cannot
        if self._params.request_state == _state(quote):
            said = (self._params.input_responses or {}).get(_CONSENT)
            if isinstance(said, types.ElicitResult):
                return _agrees(said)
        if session.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return None
        asks = types.ElicitRequest(
            params=types.ElicitRequestFormParams(message=question, requested_schema=_form(quote))
        )
        raise _Asks(types.InputRequiredResult(input_requests={_CONSENT: asks}, request_state=_state(quote)))


def _state(quote: Quote) -> str:
    """What the user was asked to agree to: when the price has changed meanwhile they are asked again."""
    return _UNKNOWN if quote.high is None else str(quote.high.micros)


def _form(quote: Quote) -> dict[str, Any]:
    title = "Buy it" if quote.high is None else f"Buy it for up to {quote.high}"
    return {
        "type": "object",
        "properties": {"buy": {"type": "boolean", "title": title, "default": True}},
        "required": ["buy"],
    }


def _agrees(told: types.ElicitResult) -> bool:
    return told.action == "accept" and (told.content or {}).get("buy") is True


# --- answers ---------------------------------------------------------------------------------------------


def _success(answer: Answer) -> types.CallToolResult:
    content: list[types.ContentBlock] = [types.TextContent(text=answer.text)]
    if answer.thumbnail is not None:
        data = base64.b64encode(answer.thumbnail).decode()
        content.append(types.ImageContent(data=data, mime_type=THUMBNAIL_TYPE))
    return types.CallToolResult(content=content, structured_content=msgspec.to_builtins(answer.facts))


def _failure(error: ImagenError, *, local: bool) -> types.CallToolResult:
    """What went wrong, as the tool's answer: whoever reads it can do something about it."""
    told = _renamed(error if local else for_elsewhere(error))
    return types.CallToolResult(
        content=[types.TextContent(text="\n".join(_sentences(told, local=local)))], is_error=True
    )


def _sentences(error: ImagenError, *, local: bool) -> Sequence[str]:
    facts = [f"error: {error.code}"]
    if (prediction_id := getattr(error, "prediction_id", None)) is not None:
        facts.append(f"prediction: {prediction_id}")
    if (charged := getattr(error, "charged", None)) is not None:
        facts.append(f"charged: {'yes' if charged else 'no'}")
    if error.retry_after is not None:
        facts.append(f"try again in: {error.retry_after:g} s")
    return [in_words_of_tools(str(error), local=local), f"({', '.join(facts)})"]


def _renamed(error: ImagenError) -> ImagenError:
    """The error with the names that arguments have here."""
    if not isinstance(error, InvalidInput):
        return error
    problems = [
        Problem(_FIELDS.get(problem.field, problem.field), problem.message) for problem in error.problems
    ]
    return InvalidInput(problems, subject=error.detail.partition(": ")[0], hint=error.hint)
