"""Batches: taken on durably, looked at, steered, and told of while they go on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from imagen.domain.batch import ItemStatus
from imagen.domain.limits import Lane
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.server.access import Visitor, scope_of, sight_of
from imagen.server.answers import json_answer
from imagen.server.batch import BatchBody
from imagen.server.batch_shapes import (
    BatchPage,
    BatchState,
    ItemPage,
    Retried,
    accepted_state,
    batch_answer,
    batch_state,
    batch_urls,
    item_state,
    trouble_state,
)
from imagen.server.context import Context
from imagen.server.durable import Webhook, accept, check_semaphores, known, read_webhook
from imagen.server.idempotency import PARAMETER, REPLAYED, read_mark
from imagen.server.operation import Operation, Parameter, cursor_of
from imagen.server.queries import read_cursor, read_limit
from imagen.server.results import cost_header, tells_cost
from imagen.server.sse import LAST_EVENT_ID, MEDIA_TYPE, EventStream, Sent, read_last_event_id
from imagen.server.tasks import MOST_STORED_BYTES, TaskFields, prepare_tasks, read_rows, read_tasks
from imagen.server.uploads import UPLOADS, is_upload, read_upload
from imagen.service.batches import ItemEnded, View
from imagen.service.notices import COMPLETED, ITEM

EVENTS = (ITEM, COMPLETED)
"""Of which a caller may be told at an address of theirs."""
MOST_BATCHES, MOST_ITEMS = 100, 500
"""On one page."""
LINES = "application/x-ndjson"
_LONGEST_NAME = 200
_BATCH, _INDEX = re.compile("batch_[0-9a-z]{26}"), re.compile("[0-9]{1,9}")
"""What goes on in a list of batches, and in one of items."""
_OF_BATCH = ("credentials", "name", "webhook", "webhook_events_filter")
_OPTIONS = ("name", "webhook", "webhook_events_filter")


class DurableBatchBody(BatchBody, frozen=True, kw_only=True):
    """Many tasks, to be made whatever becomes of the caller: the body of `/generate-batch`, and these fields.

    Attributes:
        prompts: the tasks as texts, in place of `tasks`.
        custom_filenames: of the pictures of `prompts`, in their order.
        name: what you call it; a file that is sent lends its name.
        store: keep the pictures, so that they outlive the hour.
        webhook: an https address to which events are delivered.
        webhook_events_filter: `item` for each task that ends, `completed` for the end of all; `completed` when left out.
    """

    name: str = ""
    store: bool = True
    webhook: str | None = None
    webhook_events_filter: list[str] | None = None


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that somebody asks for: its tasks, and what is said of all of it."""

    visitor: Visitor
    tasks: list[TaskFields]
    name: str
    webhook: Webhook
    content: Any


# --- accepting -------------------------------------------------------------------------------------------


@tells_cost
async def create_batch(context: Context, request: Request) -> Response:
    """Take a batch on. All of it is checked before; when the answer is sent it is going to be made."""
    wanted = await (_from_file(context, request) if is_upload(request) else _from_json(context, request))
    visitor = wanted.visitor
    mark = read_mark(request, wanted.content, scope=scope_of(visitor), now=context.app.clock.now())
    batch = await known(context, visitor, mark)
    headers = {} if batch is None else dict(REPLAYED)
    if batch is None:
        wishes, orders = await prepare_tasks(context, visitor, wanted.tasks)
        await check_semaphores(context, wishes)
        batch = await accept(
            context,
            request,
            visitor,
            wishes,
            orders,
            kind="batch",
            lane=Lane.BATCH,
            mark=mark,
            name=wanted.name,
            webhook=wanted.webhook,
        )
    state = accepted_state(context, request, batch)
    headers |= cost_header(None) | {"location": state.urls.get}
    return json_answer(state, status=202, headers=headers)


async def _from_json(context: Context, request: Request) -> _Wanted:
    visitor, fields = await context.arrive(request)
    if request.query_params:
        name = next(iter(request.query_params))
        raise InvalidInput([Problem(name[:100], "beside JSON it belongs into the body")], subject="the query")
    given = fields if fields.get("store") is not None else fields | {"store": True}
    tasks = read_tasks(
        {name: value for name, value in given.items() if name not in _OPTIONS},
        of_batch=_OF_BATCH,
        most_bytes=MOST_STORED_BYTES,
    )
    return _wanted(context, visitor, tasks, fields, content=fields)


async def _from_file(context: Context, request: Request) -> _Wanted:
    visitor, body = await context.receive(request)
    upload = await read_upload(request, body)
    common = {name: text for name, text in upload.common.items() if name not in _OPTIONS}
    tasks = read_rows(upload.rows, {"store": "true"} | common, of_batch=_OF_BATCH)
    options = {"name": upload.name} | upload.common
    return _wanted(context, visitor, tasks, options, content=upload.content)


def _wanted(
    context: Context, visitor: Visitor, tasks: list[TaskFields], options: dict[str, Any], *, content: Any
) -> _Wanted:
    name = options.get("name") or ""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
        raise InvalidInput(
            [Problem("name", f"it must be text of at most {_LONGEST_NAME} printable characters")]
        )
    webhook = read_webhook(
        context,
        options.get("webhook"),
        options.get("webhook_events_filter"),
        allowed=EVENTS,
        default=(COMPLETED,),
    )
    return _Wanted(visitor=visitor, tasks=tasks, name=name, webhook=webhook, content=content)


# --- looking ---------------------------------------------------------------------------------------------


async def list_batches(context: Context, request: Request) -> Response:
    """Those of the caller, the newest first."""
    visitor = await context.enter(request, leaving=True)
    limit = read_limit(request, 20, MOST_BATCHES)
    views = await context.app.batches.list(
        limit=limit + 1, scope=sight_of(visitor), before=read_cursor(request, _BATCH)
    )
    more = views[limit - 1].batch.id if len(views) > limit else None
    return json_answer(
        BatchPage(batches=[batch_state(context, request, view) for view in views[:limit]], next_cursor=more)
    )


async def show_batch(context: Context, request: Request) -> Response:
    """How it stands."""
    _, view = await _find(context, request)
    return batch_answer(context, request, view)


async def list_items(context: Context, request: Request) -> Response:
    """Its items, in the order of the tasks."""
    _, view = await _find(context, request)
    limit, cursor = read_limit(request, 100, MOST_ITEMS), read_cursor(request, _INDEX)
    items = await context.app.batches.items(
        view.batch.id,
        after=-1 if cursor is None else int(cursor),
        limit=limit + 1,
        status=_read_status(request),
    )
    more = str(items[limit - 1].index) if len(items) > limit else None
    return json_answer(
        ItemPage(items=[item_state(context, request, item) for item in items[:limit]], next_cursor=more)
    )


async def show_events(context: Context, request: Request) -> Response:
    """What happens in it, as it happens, until it has ended."""
    _, view = await _find(context, request)
    after = read_last_event_id(request)
    if after > view.batch.sequence:
        after = 0  # no event of this batch had that id: whoever sends it has heard nothing of it
    return EventStream(context, _events(context, request, view.batch.id, after))


async def show_results(context: Context, request: Request) -> Response:
    """A line of JSON for each item, in the order of the tasks."""
    _, view = await _find(context, request)
    return StreamingResponse(_lines(context, request, view.batch.id), media_type=LINES)


async def _events(context: Context, request: Request, batch_id: str, after: int) -> AsyncIterator[Sent]:
    trouble: Any = None
    async for news in context.app.batches.events(batch_id, after=after):
        if isinstance(news, ItemEnded):
            yield Sent(event="item", data=item_state(context, request, news.item), id=news.item.sequence)
            continue
        found = news.view.trouble
        if found != trouble:
            trouble = found
            yield Sent(event="trouble", data=None if found is None else trouble_state(found))
        ended = news.view.batch.ended_at is not None
        yield Sent(event="end" if ended else "progress", data=batch_state(context, request, news.view))


async def _lines(context: Context, request: Request, batch_id: str) -> AsyncIterator[bytes]:
    async for item in context.app.batches.all_items(batch_id):
        yield msgspec.json.encode(item_state(context, request, item)) + b"\n"


# --- steering --------------------------------------------------------------------------------------------


async def cancel_batch(context: Context, request: Request) -> Response:
    """Buy nothing more of it, and stop what runs."""
    _, view = await _find(context, request)
    return batch_answer(context, request, await context.app.batches.cancel(view.batch.id))


async def pause_batch(context: Context, request: Request) -> Response:
    """Begin nothing more of it; what runs goes on to its end."""
    _, view = await _find(context, request)
    return batch_answer(context, request, await context.app.batches.pause(view.batch.id))


async def resume_batch(context: Context, request: Request) -> Response:
    """Go on with it."""
    visitor, view = await _find(context, request, works=True)
    if visitor.token is not None:
        await context.app.batches.lend_token(view.batch, visitor.token)
    return batch_answer(context, request, await context.app.batches.resume(view.batch.id))


async def retry_failed(context: Context, request: Request) -> Response:
    """Try what failed, expired or was canceled once more, with new purchases."""
    visitor, view = await _find(context, request, works=True)
    batch = view.batch
    mark = read_mark(request, b"", scope=scope_of(visitor), now=context.app.clock.now())
    before = (
        None if mark is None else await context.app.acceptance.known(mark.scope, mark.key, mark.fingerprint)
    )
    if batch.own_token and visitor.token is None:
        raise InvalidRequest(
            "this batch is made on its caller's own Replicate token",
            hint="Its caller asks, with the token in the header X-Replicate-Api-Token.",
        )
    token = visitor.token if batch.own_token else None
    count = await context.app.batches.retry_failed(batch.id, mark=mark, token=token)
    answer = Retried(id=batch.id, retried=count, urls=batch_urls(context, request, batch.id))
    return json_answer(answer, status=202, headers={} if before is None else REPLAYED)


async def _find(context: Context, request: Request, *, works: bool = False) -> tuple[Visitor, View]:
    """The batch that a path names, if the caller may see it.

    Args:
        context: of the server.
        request: asks.
        works: something new is begun, which a process that shuts down does not.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    visitor = await context.enter(request, leaving=not works)
    view = await context.app.batches.view(request.path_params["batch_id"], scope=sight_of(visitor))
    return visitor, view


# --- what a query says -----------------------------------------------------------------------------------


def _read_status(request: Request) -> ItemStatus | None:
    told = request.query_params.get("status")
    if told is None:
        return None
    if told not in {*ItemStatus}:
        raise InvalidInput([Problem("status", f"it must be one of {', '.join(ItemStatus)}")])
    return ItemStatus(told)


_TAG = "batches"
_ID = Parameter(name="batch_id", place="path", description="The `id` of the batch.")


def _limit(default: int, most: int) -> Parameter:
    return Parameter(
        name="limit",
        place="query",
        description=f"How many at most; {default} when left out.",
        schema={"type": "integer", "minimum": 1, "maximum": most},
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/batches",
        handler=create_batch,
        summary="Take on a batch, to be made whatever becomes of the caller",
        description=(
            "Either JSON as for `/generate-batch`; or a file as the body, JSONL (`application/x-ndjson`) or CSV "
            "(`text/csv`), with fields for all of its lines in the query; or a form (`multipart/form-data`) with such a "
            "file and those fields. A line has the fields of a task. All of it is checked before it is accepted, and what "
            "was accepted outlives restarts. A Replicate token of the caller's own stands in `credentials`, or in the "
            "header `X-Replicate-Api-Token`; it is kept encrypted until the batch has ended."
        ),
        tag=_TAG,
        access="caller",
        body=DurableBatchBody,
        uploads=UPLOADS,
        any_query=True,
        answers={202: BatchState},
        errors=(401, 402, 403, 404, 409, 429, 502, 503),
        parameters=(PARAMETER,),
        example={
            "name": "spring catalogue",
            "model_name": "flux-dev",
            "tasks": [
                {"prompt": "A red sports car", "output_filename": "red_car.jpg"},
                {"prompt": "A blue ocean wave", "aspect_ratio": "16:9"},
            ],
            "webhook": "https://shop.example/hooks/imagen",
            "webhook_events_filter": ["item", "completed"],
        },
    ),
    Operation(
        method="GET",
        path="/batches",
        handler=list_batches,
        summary="List your batches, the newest first",
        description="Callers see those that were made with the same key or token; the admin sees all.",
        tag=_TAG,
        access="caller",
        answers={200: BatchPage},
        parameters=(cursor_of(_BATCH), _limit(20, MOST_BATCHES)),
        errors=(503,),
    ),
    Operation(
        method="GET",
        path="/batches/{batch_id}",
        handler=show_batch,
        summary="Tell how a batch stands",
        tag=_TAG,
        access="caller",
        answers={200: BatchState},
        parameters=(_ID,),
        errors=(404, 503),
    ),
    Operation(
        method="GET",
        path="/batches/{batch_id}/items",
        handler=list_items,
        summary="List the items of a batch, in the order of the tasks",
        tag=_TAG,
        access="caller",
        answers={200: ItemPage},
        parameters=(
            _ID,
            Parameter(
                name="status",
                place="query",
                description="Only those that stand so.",
                schema={"type": "string", "enum": [*ItemStatus]},
            ),
            cursor_of(_INDEX),
            _limit(100, MOST_ITEMS),
        ),
        errors=(404, 503),
    ),
    Operation(
        method="GET",
        path="/batches/{batch_id}/events",
        handler=show_events,
        summary="Tell what happens in a batch, as it happens",
        description=(
            "Server-sent events: `item` for each that ended (its `id` is what `Last-Event-ID` goes on from), `progress` at "
            "most once a second, `trouble` when everything waits for something that passes and `null` when it has passed, "
            "and `end`, after which the stream ends. When the gateway stops before that the stream ends too; browsers "
            "connect again by themselves and miss nothing."
        ),
        tag=_TAG,
        access="caller",
        answers={200: None},
        media_type=MEDIA_TYPE,
        parameters=(_ID, LAST_EVENT_ID),
        errors=(404, 429, 503),
    ),
    Operation(
        method="GET",
        path="/batches/{batch_id}/results.jsonl",
        handler=show_results,
        summary="Tell every item of a batch, one a line",
        description="Line i is the item of task i, as `/items` tells it, whether it has ended or not.",
        tag=_TAG,
        access="caller",
        answers={200: None},
        media_type=LINES,
        parameters=(_ID,),
        errors=(404, 503),
    ),
    *(
        Operation(
            method="POST",
            path=f"/batches/{{batch_id}}/{word}",
            handler=handler,
            summary=summary,
            description=description,
            tag=_TAG,
            access="caller",
            answers={200: BatchState},
            parameters=(_ID,),
            errors=(404, 503),
        )
        for word, handler, summary, description in (
            (
                "cancel",
                cancel_batch,
                "Cancel a batch",
                "Nothing more of it is bought, and what runs is stopped. What was made is kept.",
            ),
            (
                "pause",
                pause_batch,
                "Pause a batch",
                "Nothing more of it is begun; what runs goes on to its end.",
            ),
            (
                "resume",
                resume_batch,
                "Go on with a batch",
                "Also with one that paused by itself, such as for want of credit, once that is mended.",
            ),
        )
    ),
    Operation(
        method="POST",
        path="/batches/{batch_id}/retry-failed",
        handler=retry_failed,
        summary="Try again what failed, expired or was canceled",
        description="Each of them is bought anew, with another seed where we chose it.",
        tag=_TAG,
        access="caller",
        answers={202: Retried},
        parameters=(_ID, PARAMETER),
        errors=(404, 409, 503),
    ),
)
