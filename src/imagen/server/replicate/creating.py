"""Creates of Replicate's API: checked, taken on durably, and held for as long as is asked for."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.batch import Batch, Control, Idempotency, ItemStatus, Remembered
from imagen.domain.key import check_scope
from imagen.domain.limits import Lane
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.errors import (
    BackendError,
    Draining,
    ImagenError,
    InvalidModelRef,
    ModelNotFound,
    NotFound,
    StoreError,
)
from imagen.ports import ModelSource
from imagen.server.access import Visitor, scope_of
from imagen.server.batch_shapes import error_of
from imagen.server.context import Context
from imagen.server.durable import accept, known, read_webhook
from imagen.server.idempotency import REPLAYED, fingerprint, read_mark
from imagen.server.orphans import LIVES_SECONDS, Create
from imagen.server.replicate.calls import Call, read_call, read_version
from imagen.server.replicate.files import upstream_addresses
from imagen.server.replicate.finding import answered, find
from imagen.server.replicate.problems import NOT_FOUND, InvalidVersion
from imagen.server.wishes import Wish, as_told, prepare_request
from imagen.service.replicate_events import BY_DEFAULT, EVENTS
from imagen.service.replicate_shapes import (
    FACE,
    Known,
    standing,
)

CREATED, ACCEPTED = 201, 202
_MOST_CANDIDATES = 20
_KEY_BYTES = 18


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
    return "model_name" not in fields and not fields.keys().isdisjoint({"version", "input"})


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
    if mark is not None:
        batch = await known(context, visitor, mark)
        replayed = batch is not None
        if batch is None:
            batch = await _taken_on(context, request, visitor, call, model, mark=mark)
        return await _told(context, request, visitor, call, batch, replayed=replayed)
    content = {"body": fields, "cancel_after": call.cancel_after, "exact": call.exact}
    told = fingerprint(request, content)
    async with context.creating(request, scope=scope, fingerprint=told) as this:
        batch = await _earlier(context, visitor, this)
        replayed = batch is not None
        if batch is None:
            may_come = call.wait is not None or this.repeats is not None
            batch = await _taken_on(context, request, visitor, call, model, told=told if may_come else None)
        this.became(batch.id)
        answer = await _told(context, request, visitor, call, batch, replayed=replayed)
        if call.wait is not None and answer.status_code == ACCEPTED:
            with suppress(StoreError):  # then it is taken for the same once more than it should be
                await context.app.acceptance.answered(batch.id)
        return answer


async def _earlier(context: Context, visitor: Visitor, this: Create) -> Batch | None:
    """What the same create became when it came before: to this process, or to one that is gone and had not answered it."""
    batches = context.app.batches
    async with context.orphans.earlier(this) as batch_id:
        if batch_id is not None:
            return await _usable(context, visitor, (await batches.view(batch_id)).batch)
    scope, told = this.key
    for batch in await context.app.acceptance.unanswered(
        scope, told, within=timedelta(seconds=LIVES_SECONDS)
    ):
        unheard = batch.remembered.held or bool(this.repeats)
        if (
            unheard
            and await _usable(context, visitor, batch)
            and await context.app.acceptance.owe_answer(batch)
        ):
            return batch
    return None


async def _usable(context: Context, visitor: Visitor, batch: Batch) -> Batch | None:
    """A batch that goes on, with its caller's token; None where it can give nobody a picture any more."""
    (item,) = await context.app.batches.items(batch.id, limit=1)
    over = item.status.terminal and item.status is not ItemStatus.SUCCEEDED
    if over or batch.control is Control.CANCEL:
        return None
    if visitor.token is not None:
        await context.app.batches.lend_token(batch, visitor.token)
    return batch


async def _told(
    context: Context, request: Request, visitor: Visitor, call: Call, batch: Batch, *, replayed: bool
) -> Response:
    """The answer to a create that became `batch`, held for as long as is asked for."""
    headers, found = dict(REPLAYED) if replayed else {}, None
    if call.wait is not None:
        headers["preference-applied"] = f"wait={call.wait}"
        found = await _hold(context, request, batch, seconds=call.wait, fresh=not replayed)
    found = found or await find(context, visitor, batch.remembered.prediction_id or "")
    if found is None:
        raise NotFound(NOT_FOUND)
    if call.wait is not None and (refused := _refusal(found)) is not None:
        raise as_told(refused, visitor)
    held = call.wait is not None
    status = CREATED if not held or standing(found).terminal else ACCEPTED
    return await answered(context, request, visitor, found, status=status, headers=headers, held=held)


async def _taken_on(
    context: Context,
    request: Request,
    visitor: Visitor,
    call: Call,
    model: ModelRef | None,
    *,
    mark: Idempotency | None = None,
    told: str | None = None,
) -> Batch:
    """Check a call against its model, the key and the money, and take it on durably.

    It is known when it comes again by `mark`, or, before it was answered, by its fingerprint `told`.
    """
    webhook = read_webhook(context, call.webhook, call.events, allowed=EVENTS, default=BY_DEFAULT)
    ref = model or read_version(call.version or "")
    if ref.nameless and visitor.models:
        ref = await _allowed(context, visitor, ref)
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
    remembered = Remembered(
        face=FACE,
        prediction_id=intent.id,
        deadline_seconds=intent.deadline_seconds,
        stream_key=secrets.token_urlsafe(_KEY_BYTES),
        cancel_after=call.cancel_after,
        exact=call.exact,
        watched=call.watched,
        fails_with_account=True,
        held=call.wait is not None,
    )
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
        remembered=remembered,
        outlives=context.app.sealer is not None,
        fingerprint=told,
    )


async def _allowed(context: Context, visitor: Visitor, ref: ModelRef) -> ModelRef:
    """A version alone as a version of one of the models that a key may use; as it is where it is of none of them."""
    if not isinstance(visitor.backend, ModelSource):
        return ref
    for name in sorted(visitor.models)[:_MOST_CANDIDATES]:
        if name.startswith("deployments/"):
            continue
        candidate = ModelRef.parse(f"{name}:{ref.version}")
        if str(candidate) in context.unknown_versions:
            continue
        try:
            await visitor.backend.describe(candidate)
        except ModelNotFound:
            context.unknown_versions.add(str(candidate))
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


async def _hold(
    context: Context, request: Request, batch: Batch, *, seconds: float, fresh: bool
) -> Known | None:
    """Wait until it has ended, for so long at most. It goes on when the caller leaves, and when this process ends.

    Args:
        context: of the server.
        request: of the caller who waits.
        batch: what for.
        seconds: how long.
        fresh: it was taken on just now, so that there is nothing to look at yet.

    Returns:
        What is known of it then; None when it has not ended in time.
    """
    try:
        async with asyncio.timeout(seconds):
            return await context.stay(request, _made(context, batch, fresh=fresh), goes_on=False)
    except (TimeoutError, Draining):
        return None


async def _made(context: Context, batch: Batch, *, fresh: bool) -> Known | None:
    """What is known of it once it has ended, or its output is there, which may still have to be fetched."""
    promised = batch.remembered.prediction_id or ""
    async for _ in context.app.batches.stirs(batch.id, at_once=not fresh):
        found = await find(context, None, promised)
        if found is None or (found.item is not None and found.item.status.terminal):
            return found
        if found.prediction is not None and found.prediction.status is Status.SUCCEEDED:
            return found
    return None


def _refusal(found: Known) -> ImagenError | None:
    """Why it was never bought, for whoever still waits for the answer to its create; None for one that was."""
    item, prediction = found.item, found.prediction
    if item is None or item.status is not ItemStatus.FAILED or standing(found) is not Status.FAILED:
        return None
    refused = prediction is None or (
        prediction.upstream_id is None and prediction.status is Status.FAILED and not prediction.settled_at
    )
    return error_of(item) if refused else None
