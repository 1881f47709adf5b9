"""Predictions in the words of Replicate: create, get, list, cancel, and what their webhooks are signed with."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.batch import Batch, Idempotency, Item, ItemStatus
from imagen.domain.identifiers import id_at
from imagen.domain.key import check_scope
from imagen.domain.limits import Lane
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.request import GenerationRequest
from imagen.errors import (
    BackendError,
    Draining,
    ImagenError,
    InvalidInput,
    InvalidModelRef,
    InvalidRequest,
    ModelNotFound,
    NotFound,
)
from imagen.ports import ModelSource, Sight, Stretch
from imagen.server.access import Visitor, owns, scope_of, sight_of
from imagen.server.answers import json_answer
from imagen.server.batch_shapes import error_of
from imagen.server.context import Context, Gone
from imagen.server.durable import accept, known, read_webhook
from imagen.server.idempotency import REPLAYED, fingerprint, read_mark
from imagen.server.operation import Handler, Operation
from imagen.server.replicate.calls import Call, read_call, read_version, wants_exact
from imagen.server.replicate.files import upstream_addresses
from imagen.server.replicate.problems import NOT_FOUND, Complaint, InvalidVersion, problem_answer
from imagen.server.replicate.relay import PREFIX, TAG, pass_on
from imagen.server.results import cost_header
from imagen.server.wishes import Wish, as_told, prepare_request
from imagen.service.batches import ItemEnded
from imagen.service.orders import WATCHED
from imagen.service.replicate_events import BY_DEFAULT, EVENTS
from imagen.service.replicate_shapes import (
    CANCEL_AFTER,
    EXACT,
    FACE,
    FACE_KEY,
    STREAM_KEY,
    Known,
    Shaped,
    shape,
    standing,
)

ADAPTED = "x-imagen-adapted"
PAGE_SIZE = 100
"""Predictions on one page; there is no parameter for it."""
_CREATED, _ACCEPTED = 201, 202
_OUR_ID = re.compile(r"pred_[0-9a-z]{26}")
_THEIR_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CANCEL_SECONDS = 5.0
"""How long an answer waits for what was canceled to have ended."""
_MOST_CANDIDATES = 20
_LONGEST_SHOWN_FILE = 64 * 1024
"""A file inside an input is cut in lists, which have a hundred of them."""
_KEY_BYTES = 18
_FILTERS = ("created_after", "created_before", "source")


# --- create ----------------------------------------------------------------------------------------------


async def create_by_version(context: Context, request: Request) -> Response:
    """`POST /predictions`: the body names the model, or a version."""
    visitor, fields = await context.arrive(request)
    return await create(context, request, visitor, fields)


async def create_by_model(context: Context, request: Request) -> Response:
    """`POST /models/{owner}/{name}/predictions`."""
    visitor, fields = await context.arrive(request)
    return await create(context, request, visitor, fields, model=_named(request, ""))


async def create_by_deployment(context: Context, request: Request) -> Response:
    """`POST /deployments/{owner}/{name}/predictions`."""
    visitor, fields = await context.arrive(request)
    return await create(context, request, visitor, fields, model=_named(request, "deployments/"))


def is_call(fields: Mapping[str, Any]) -> bool:
    """Whether a body that came to a path which is ours too is a create call of Replicate's."""
    return isinstance(fields.get("input"), dict) and "model_name" not in fields


async def create(
    context: Context,
    request: Request,
    visitor: Visitor,
    fields: dict[str, Any],
    *,
    model: ModelRef | None = None,
) -> Response:
    """Take a prediction on, and hold the answer for as long as is asked for.

    Args:
        context: of the server.
        request: with its headers.
        visitor: who asks.
        fields: the body.
        model: that the path names; None where the body names it.
    """
    call = read_call(request, fields, versioned=model is None)
    scope = scope_of(visitor)
    mark = read_mark(request, fields, scope=scope, now=context.app.clock.now())
    batch = await known(context, visitor, mark)
    if batch is None and mark is None and context.orphans:
        left = context.orphans.take(scope=scope, fingerprint=fingerprint(request, fields))
        batch = None if left is None else (await context.app.batches.view(left)).batch
    headers = dict(REPLAYED) if batch is not None else {}
    if batch is None:
        batch = await _taken_on(context, request, visitor, call, model, mark=mark)
    if call.wait is not None:
        headers["preference-applied"] = f"wait={call.wait}"
        try:
            await _hold(context, request, batch, seconds=call.wait)
        except Gone:
            context.orphans.leave(batch.id, scope=scope, fingerprint=fingerprint(request, fields))
            raise
    promised = str(batch.details["prediction_id"])
    found = await find(context, visitor, promised)
    if found is None:
        raise NotFound(NOT_FOUND)
    if call.wait is not None and (refused := _refusal(found)) is not None:
        raise as_told(refused, visitor)
    status = _CREATED if call.wait is None or standing(found).terminal else _ACCEPTED
    held = call.wait is not None
    return await _answered(context, request, visitor, found, status=status, headers=headers, held=held)


async def _taken_on(
    context: Context,
    request: Request,
    visitor: Visitor,
    call: Call,
    model: ModelRef | None,
    *,
    mark: Idempotency | None,
) -> Batch:
    """Check a call against its model, the key and the money, and take it on durably."""
    webhook = read_webhook(context, call.webhook, call.events, allowed=EVENTS, default=BY_DEFAULT)
    ref = model or read_version(call.version or "")
    if ref.nameless and visitor.models:
        ref = await _allowed(visitor, ref)
    check_scope(visitor.models, ref)
    values = await upstream_addresses(context, request, visitor, call.input)
    prompt = values.get("prompt")
    wanted = GenerationRequest(
        prompt=prompt if isinstance(prompt, str) else "",
        model=ref,
        options=values,
        verbatim=True,
        plain=True,
        resume=False,
        deadline_seconds=call.cancel_after,
    )
    try:
        order = await prepare_request(
            context, visitor, wanted, lane=Lane.INTERACTIVE, keep=context.app.settings.pictures.keep
        )
    except ModelNotFound as error:
        if ref.version:
            raise InvalidVersion from error
        raise NotFound(NOT_FOUND) from error
    intent, _ = order.intents[0]
    details = {
        FACE_KEY: FACE,
        "prediction_id": intent.id,
        "deadline_seconds": intent.deadline_seconds,
        STREAM_KEY: secrets.token_urlsafe(_KEY_BYTES),
        CANCEL_AFTER: call.cancel_after,
        EXACT: call.exact or None,
        WATCHED: call.watched or None,
    }
    return await accept(
        context,
        request,
        visitor,
        [Wish(model_name=str(ref), prompt=wanted.prompt)],
        [order],
        kind="single",
        lane=Lane.INTERACTIVE,
        mark=mark,
        webhook=webhook,
        details={name: value for name, value in details.items() if value is not None},
        outlives=context.app.sealer is not None,
    )


async def _allowed(visitor: Visitor, ref: ModelRef) -> ModelRef:
    """A version alone as a version of one of the models that a key may use; as it is where it is of none of them."""
    if not isinstance(visitor.backend, ModelSource):
        return ref
    for name in sorted(visitor.models)[:_MOST_CANDIDATES]:
        if name.startswith("deployments/"):
            continue
        candidate = ModelRef.parse(f"{name}:{ref.version}")
        try:
            await visitor.backend.describe(candidate)
        except ModelNotFound:
            continue
        except BackendError as error:
            raise as_told(error, visitor) from error
        return candidate
    return ref


def _named(request: Request, kind: str) -> ModelRef:
    """The model or deployment that a path names.

    Raises:
        NotFound: none can be called so.
    """
    names = request.path_params
    try:
        return ModelRef.parse(f"{kind}{names['owner']}/{names['name']}")
    except InvalidModelRef:
        raise NotFound(NOT_FOUND) from None


async def _hold(context: Context, request: Request, batch: Batch, *, seconds: float) -> None:
    """Wait until it has ended, for so long at most. It goes on when the caller leaves, and when this process ends."""
    try:
        async with asyncio.timeout(seconds):
            await context.stay(request, _made(context, batch), goes_on=False)
    except (TimeoutError, Draining):
        return


async def _made(context: Context, batch: Batch) -> None:
    """Until it has ended, or its output is there, which may still have to be fetched."""
    promised = str(batch.details["prediction_id"])
    async for news in context.app.batches.events(batch.id):
        if isinstance(news, ItemEnded):
            return
        row = await _row(context, promised)
        if row is not None and row.status is Status.SUCCEEDED:
            return


async def _ended(context: Context, batch: Batch) -> None:
    async for news in context.app.batches.events(batch.id):
        if isinstance(news, ItemEnded):
            return


def _refusal(found: Known) -> ImagenError | None:
    """Why it was never bought, for whoever still waits for the answer to its create; None for one that was."""
    item, prediction = found.item, found.prediction
    if item is None or item.status is not ItemStatus.FAILED or standing(found) is not Status.FAILED:
        return None
    refused = prediction is None or (
        prediction.upstream_id is None and prediction.status is Status.FAILED and not prediction.settled_at
    )
    return error_of(item) if refused else None


# --- look, and cancel ------------------------------------------------------------------------------------


async def show(context: Context, request: Request) -> Response:
    """`GET /predictions/{prediction_id}`."""
    visitor = await context.enter(request, leaving=True)
    return await shown(context, request, visitor)


async def shown(context: Context, request: Request, visitor: Visitor) -> Response:
    """How a prediction stands; one that is none of ours is asked for at the service, on its whole account."""
    wanted = request.path_params["prediction_id"]
    found = await find(context, visitor, wanted)
    if found is None:
        return await _elsewhere(context, request, visitor, wanted)
    return await _answered(context, request, visitor, found)


async def cancel(context: Context, request: Request) -> Response:
    """`POST /predictions/{prediction_id}/cancel`."""
    visitor = await context.enter(request, leaving=True)
    return await canceled(context, request, visitor)


async def canceled(context: Context, request: Request, visitor: Visitor) -> Response:
    """Stop a prediction, upstream too. What has ended is answered as it is."""
    wanted = request.path_params["prediction_id"]
    found = await find(context, visitor, wanted)
    if found is None:
        return await _elsewhere(context, request, visitor, wanted, what="/cancel")
    if not standing(found).terminal:
        await _stop(context, visitor, found)
        found = await find(context, visitor, wanted) or found
    return await _answered(context, request, visitor, found)


async def _stop(context: Context, visitor: Visitor, found: Known) -> None:
    """Cancel it, and wait a moment for its end."""
    batch, prediction = found.batch, found.prediction
    if batch is not None and batch.total == 1 and batch.ended_at is None:
        await context.app.batches.cancel(batch.id)
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                await _ended(context, batch)
        except TimeoutError:
            return
        return
    if prediction is None:
        raise InvalidRequest(
            "it has not been begun, and is part of a batch",
            hint="Cancel the batch, or wait until it runs.",
        )
    backend = visitor.backend if visitor.own_token else None
    await context.app.gateway.cancel(prediction.id, backend=backend)


async def find(context: Context, visitor: Visitor | None, wanted: str) -> Known | None:
    """A prediction of whichever face.

    Args:
        context: of the server.
        visitor: who may see it or not; None for somebody who may.
        wanted: our id, or the service's.

    Returns:
        What is known of it; None when there is none, or it is somebody else's.
    """
    row = await _row(context, wanted)
    called = wanted if row is None else row.id
    place = (await context.app.batches.places([called])).get(called)
    if place is None:
        if row is None or (visitor is not None and not owns(visitor, row)):
            return None
        return Known(prediction=context.app.live.newer(row))
    batch, item = place
    if visitor is not None and sight_of(visitor) not in {None, batch.scope}:
        return None
    return await _in_place(context, batch, item, called, row)


async def _in_place(context: Context, batch: Batch, item: Item, called: str, row: Prediction | None) -> Known:
    """What is known of a prediction of durable work: of an earlier attempt, how it stands with the present one."""
    if called not in item.predictions:
        row, called = await _row(context, item.predictions[0]), item.predictions[0]
    elif item.status.terminal and not (row and row.status.terminal):
        row = await _row(context, called)  # it has ended between the two looks
    newest = None if row is None else context.app.live.newer(row)
    return Known(batch=batch, item=item, prediction=newest, called=called)


async def _row(context: Context, wanted: str) -> Prediction | None:
    """What is written down under exactly that id."""
    if not _THEIR_ID.fullmatch(wanted):
        return None
    try:
        found = await context.app.store.get(wanted)
    except NotFound:
        return None
    return found if wanted in {found.id, found.upstream_id} else None


async def _elsewhere(
    context: Context, request: Request, visitor: Visitor, wanted: str, *, what: str = ""
) -> Response:
    """A prediction that we did not make: the service knows it, where the visitor may see the whole account.

    Raises:
        NotFound: for whoever may see only their own, and for what is an id of ours.
    """
    theirs = visitor.admin or visitor.own_token
    if not theirs or _OUR_ID.fullmatch(wanted) or not _THEIR_ID.fullmatch(wanted):
        raise NotFound(NOT_FOUND)
    path = f"/predictions/{quote(wanted, safe='')}{what}"
    return await pass_on(context, request, visitor, path=path)


async def _answered(
    context: Context,
    request: Request,
    visitor: Visitor,
    found: Known,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    held: bool = False,
) -> Response:
    """A prediction as an answer, perhaps one that was held open."""
    shaped = await _shaped(context, request, visitor, found, looks=True, held=held)
    told = {
        **(headers or {}),
        **await context.rates.headers(visitor.backend.account, creates=status != 200),
        **cost_header(_cost(found)),
        "x-imagen-prediction-id": found.id,
    }
    if status != 200:
        told["location"] = shaped.body["urls"]["get"]
    if shaped.adapted:
        told[ADAPTED] = ", ".join(shaped.adapted)
    return json_answer(shaped.body, status=status, headers=told)


async def _shaped(
    context: Context, request: Request, visitor: Visitor, found: Known, *, looks: bool, held: bool = False
) -> Shaped:
    base = context.url_of(request, "")
    backend = visitor.backend if visitor.own_token else None
    output = await context.app.outputs.find(found, base=base, looks=looks, backend=backend)
    now, exact = context.app.clock.now(), wants_exact(request)
    return shape(found, output, base=base, now=now, exact=exact, held=held)


def _cost(found: Known) -> Usd | None:
    """What it has cost; None while that is open, or nobody knows the price."""
    if found.item is not None and found.item.status.terminal:
        return found.item.cost
    return None if found.prediction is None else found.prediction.spent


# --- the list --------------------------------------------------------------------------------------------


class _Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the list is asked for.

    Attributes:
        after, before: ids between which all of it lies, by when they were created; None for no bound.
        side: `older` or `newer` than `edge`; without one it begins with the newest.
        edge: an id.
    """

    after: str | None = None
    before: str | None = None
    side: Literal["older", "newer"] | None = None
    edge: str | None = None

    @property
    def stretch(self) -> Stretch:
        """The page, and one more, by which it is known whether there is another."""
        above, below = self.after, self.before
        if self.side == "newer":
            above = max(above or "", self.edge or "")
        elif self.side == "older":
            below = min(below or "~", self.edge or "")
        return Stretch(above=above, below=below, limit=PAGE_SIZE + 1, rising=self.side == "newer")


async def show_list(context: Context, request: Request) -> Response:
    """`GET /predictions`: those that the visitor may see, of every face, newest first."""
    visitor = await context.enter(request)
    page = _read_page(request)
    found: list[Known] = []
    more = False
    if request.query_params.get("source") is None:
        found, more = await _listed(context, visitor, page)
    results = [_cut((await _shaped(context, request, visitor, one, looks=False)).body) for one in found]
    older = more if page.side != "newer" else bool(found)
    newer = more if page.side == "newer" else page.side == "older" and bool(found)
    body = {
        "next": _link(context, request, "older", found[-1].id) if older else None,
        "previous": _link(context, request, "newer", found[0].id) if newer else None,
        "results": results,
    }
    headers = await context.rates.headers(visitor.backend.account, creates=False)
    return json_answer(body, headers=headers)


async def _listed(context: Context, visitor: Visitor, page: _Page) -> tuple[list[Known], bool]:
    """The predictions of a page, and whether there are more on its far side."""
    app, stretch, scope = context.app, page.stretch, sight_of(visitor)
    rows = {one.id: one for one in await app.store.stretch(_store_sight(visitor), stretch)}
    waiting = await app.batches.waiting(stretch, scope=scope)
    ids = sorted({*rows, *waiting}, reverse=not stretch.rising)
    more = len(ids) > PAGE_SIZE
    ids = sorted(ids[:PAGE_SIZE], reverse=True)
    places = await app.batches.places(ids, scope=scope)
    found = []
    for this in ids:
        if (place := places.get(this)) is None:
            found.append(Known(prediction=app.live.newer(rows[this]), called=this))
            continue
        batch, item = place
        if batch.kind == "single" and batch.details.get("prediction_id", this) != this:
            continue  # another attempt of one that is listed under the id that was promised
        found.append(await _in_place(context, batch, item, this, rows.get(this)))
    return found, more


def _store_sight(visitor: Visitor) -> Sight:
    """Whose predictions a visitor sees."""
    if visitor.admin:
        return Sight()
    if visitor.own_token:
        return Sight(account=visitor.backend.account)
    if visitor.caller.key is not None:
        return Sight(key=visitor.caller.key)
    return Sight(account=visitor.backend.account, caller=visitor.caller.name)


def _read_page(request: Request) -> _Page:
    """What is asked for.

    Raises:
        InvalidInput: a filter makes no sense.
        NotFound: the cursor is none of ours.
    """
    asked = request.query_params
    if asked.get("source") not in {None, "web"}:
        told = Complaint("source", 'source must be one of the following: "web"', "enum")
        raise InvalidInput([told], subject="the query")
    side, edge = _read_cursor(asked.get("cursor"))
    return _Page(
        after=_bound(request, "created_after"), before=_bound(request, "created_before"), side=side, edge=edge
    )


def _bound(request: Request, name: str) -> str | None:
    """An instant of the query as what comes before every id of then."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.strip().replace(" ", "+"))
        return id_at("pred", found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        told = Complaint(name, "Does not match format 'date-time'", "format")
        raise InvalidInput([told], subject="the query") from None


def _read_cursor(text: str | None) -> tuple[Literal["older", "newer"] | None, str | None]:
    if text is None:
        return None, None
    try:
        side, _, edge = base64.urlsafe_b64decode(text.encode()).decode().partition(":")
    except (ValueError, binascii.Error):
        side, edge = "", ""
    if side not in {"older", "newer"} or not _OUR_ID.fullmatch(edge):
        raise NotFound("Invalid cursor")
    return ("older" if side == "older" else "newer"), edge


def _link(context: Context, request: Request, side: str, edge: str) -> str:
    cursor = base64.urlsafe_b64encode(f"{side}:{edge}".encode()).decode()
    kept = {name: request.query_params[name] for name in _FILTERS if name in request.query_params}
    return context.url_of(request, f"{PREFIX}/predictions?{urlencode(kept | {'cursor': cursor})}")


def _cut(body: dict[str, Any]) -> dict[str, Any]:
    """The object with the beginnings of long files inside its input: a hundred whole ones are no list."""
    return {**body, "input": _without_long_files(body["input"])}


def _without_long_files(value: Any) -> Any:
    if isinstance(value, str):
        long = len(value) > _LONGEST_SHOWN_FILE and value.startswith("data:")
        return f"{value.partition(',')[0][:100]},…" if long else value
    if isinstance(value, list):
        return [_without_long_files(part) for part in value]
    if isinstance(value, dict):
        return {name: _without_long_files(part) for name, part in value.items()}
    return value


# --- the secret ------------------------------------------------------------------------------------------


async def show_secret(context: Context, request: Request) -> Response:
    """`GET /webhooks/default/secret`: what signs the webhooks of whoever asks."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    newest = (await context.app.signing.of(scope_of(visitor)))[0]
    # No proxy or browser on the way keeps the answer.
    return json_answer({"key": newest.secret.reveal()}, headers={"cache-control": "no-store"})


# --- the operations --------------------------------------------------------------------------------------


async def in_words(work: Awaitable[Response]) -> Response:
    """The answer of a handler whose errors are told as Replicate tells them, for paths that are ours too."""
    try:
        return await work
    except ImagenError as error:
        return problem_answer(error)


def _operation(
    method: Literal["GET", "POST"],
    path: str,
    handler: Handler,
    summary: str,
    *,
    answers: Sequence[int] = (200,),
    at_root: bool = True,
) -> Operation:
    return Operation(
        method=method,
        path=f"{PREFIX}{path}",
        handler=handler,
        summary=summary,
        tag=TAG,
        access="caller",
        answers=dict.fromkeys(answers, dict[str, Any]),
        aliases=(path,) if at_root else (),
        documented=False,
        tells=problem_answer,
    )


_MADE = (_CREATED, _ACCEPTED)
OPERATIONS: tuple[Operation, ...] = (
    # At the root these three paths are ours too: `server.predictions` passes on what is in Replicate's words.
    _operation(
        "POST", "/predictions", create_by_version, "Create a prediction", answers=_MADE, at_root=False
    ),
    _operation("GET", "/predictions/{prediction_id}", show, "Get a prediction", at_root=False),
    _operation("POST", "/predictions/{prediction_id}/cancel", cancel, "Cancel a prediction", at_root=False),
    _operation("GET", "/predictions", show_list, "List predictions"),
    _operation(
        "POST",
        "/models/{owner}/{name}/predictions",
        create_by_model,
        "Create a prediction with a model",
        answers=_MADE,
    ),
    _operation(
        "POST",
        "/deployments/{owner}/{name}/predictions",
        create_by_deployment,
        "Create a prediction with a deployment",
        answers=_MADE,
    ),
    _operation("GET", "/webhooks/default/secret", show_secret, "What webhooks are signed with"),
)
