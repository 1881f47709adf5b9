"""Work that is accepted first and done then: what the faces share that answer at once, or may be asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from starlette.requests import Request

from imagen.domain.batch import Batch, BatchStatus, Idempotency, Item, Remembered
from imagen.domain.limits import Lane
from imagen.domain.money import Usd
from imagen.errors import (
    BackendError,
    BackendUnauthenticated,
    ImagenError,
    InvalidInput,
    Problem,
    WaitTimeout,
)
from imagen.server.access import Visitor, scope_of
from imagen.server.answers import stored_error
from imagen.server.context import Context, handed_over
from imagen.server.wishes import Wish, as_told, name_for, prepare_order, read_wish
from imagen.service.accept import Entry, NewBatch
from imagen.service.batches import Progress, View
from imagen.service.prepare import Order
from imagen.transport.public import check_webhook_url

_PIECE = 200
_GRACE_SECONDS = 120.0
"""Above all that a prediction may take by its limits: for a lost answer to be found, and pictures to be fetched."""
_AGAIN = "It goes on: send the same request with the same Idempotency-Key again."


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where the events of durable work are told, and which."""

    url: str | None = None
    events: tuple[str, ...] = ()


NOWHERE = Webhook()


def read_webhook(
    context: Context, url: Any, events: Any, *, allowed: Sequence[str], default: Sequence[str]
) -> Webhook:
    """Where a caller wants to be told of what.

    Args:
        context: of the server.
        url: as it was given.
        events: a list of names, or names with commas between them.
        allowed: the names that there are.
        default: those that are told when none are named.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    if isinstance(events, str):
        events = [name.strip() for name in events.split(",")]
    if url is None:
        if events is not None:
            raise InvalidInput([Problem("webhook_events_filter", "it needs a webhook to be sent to")])
        return NOWHERE
    if not isinstance(url, str):
        raise InvalidInput([Problem("webhook", "it must be text")])
    checked = check_webhook_url(url, private=context.app.settings.deliveries.private)
    names = list(default) if events is None else events
    if not isinstance(names, list) or not names or any(name not in allowed for name in names):
        raise InvalidInput(
            [Problem("webhook_events_filter", f"it must be a list of some of {', '.join(allowed)}")]
        )
    return Webhook(url=checked, events=tuple(dict.fromkeys(names)))


async def accept_single(
    context: Context,
    request: Request,
    visitor: Visitor,
    fields: dict[str, Any],
    *,
    mark: Idempotency | None,
    webhook: Webhook = NOWHERE,
    outlives: bool = True,
) -> Batch:
    """Check the wish in `fields`, and take it on for one prediction; else as `accept`.

    Raises:
        InvalidInput: it cannot be carried out.
        NotFound: a model or named limit that there is not.
    """
    wish, options = read_wish(fields, context.app.settings.presets)
    order = await prepare_order(context, visitor, wish, options, lane=Lane.INTERACTIVE)
    return await accept_one(
        context, request, visitor, wish, order, mark=mark, webhook=webhook, outlives=outlives
    )


async def accept_one(
    context: Context,
    request: Request,
    visitor: Visitor,
    wish: Wish,
    order: Order,
    *,
    mark: Idempotency | None,
    webhook: Webhook = NOWHERE,
    outlives: bool = True,
    saved: Usd | None = None,
) -> Batch:
    """Take one checked order on; else as `accept`. Of a final, `saved` is what choosing was likely to save.

    Raises:
        NotFound: a named limit that there is not.
    """
    await check_semaphores(context, [wish])
    intent, _ = order.intents[0]
    return await accept(
        context,
        request,
        visitor,
        [wish],
        [order],
        kind="single",
        lane=Lane.INTERACTIVE,
        mark=mark,
        webhook=webhook,
        remembered=Remembered(prediction_id=intent.id, deadline_seconds=intent.deadline_seconds),
        outlives=outlives,
        beside={} if saved is None else {"saved_micros": saved.micros},
    )


async def accept(
    context: Context,
    request: Request,
    visitor: Visitor,
    wishes: Sequence[Wish],
    orders: Sequence[Order],
    *,
    kind: Literal["batch", "single"],
    lane: Lane,
    mark: Idempotency | None,
    name: str = "",
    webhook: Webhook = NOWHERE,
    remembered: Remembered = Remembered(),  # noqa: B008 - frozen
    outlives: bool = True,
    fingerprint: str | None = None,
    beside: Mapping[str, Any] = MappingProxyType({}),
) -> Batch:
    """Take work on. When this returns it is going to be done, whatever becomes of this process.

    Args:
        context: of the server.
        request: with which it came.
        visitor: whose work it is.
        wishes: what for.
        orders: the same, checked; one for each wish.
        kind: `batch`, or `single` for what is not to be found among the batches.
        lane: whose turn it is first.
        mark: how the request is recognised when it comes again.
        name: of the batch.
        webhook: where its events are told.
        remembered: of all of it.
        outlives: a token of the caller's own must be there after a restart.
        fingerprint: of a request without `mark`, as `Batch` has it.
        beside: what is to be remembered of each wish besides.

    Returns:
        The batch that counts: another one when the same request was quicker.

    Raises:
        InvalidRequest: the caller's token cannot be kept.
        Unauthenticated: the caller's token is none of Replicate's.
        QueueFull: so much work of one caller's own token is not taken.
        IdempotencyConflict: the key came with another body before.
    """
    if webhook.url is not None:
        remembered = msgspec.structs.replace(remembered, reached_at=context.url_of(request, ""))
    new = NewBatch(
        backend=visitor.backend,
        caller=visitor.caller,
        scope=scope_of(visitor),
        kind=kind,
        name=name,
        lane=lane,
        own_token=visitor.token,
        outlives=outlives,
        webhook=webhook.url,
        webhook_events=webhook.events,
        details=remembered.to_details(),
        mark=mark,
        fingerprint=fingerprint,
    )
    if visitor.own_token and (context.app.sealer is not None or not outlives):
        await check_account(context, visitor)
    async with context.app.acceptance.draft(new) as draft:
        for start in range(0, len(orders), _PIECE):
            await draft.add(
                [
                    Entry(order, {**_note(context, wish, order), **beside})
                    for wish, order in zip(
                        wishes[start : start + _PIECE], orders[start : start + _PIECE], strict=True
                    )
                ]
            )
        return await draft.accept()


async def known(context: Context, visitor: Visitor, mark: Idempotency | None) -> Batch | None:
    """What the same request became when it came before; None when it comes for the first time.

    Raises:
        IdempotencyConflict: its key came with another body.
    """
    if mark is None:
        return None
    found = await context.app.acceptance.known(mark.scope, mark.key, mark.fingerprint)
    if found is None:
        return None
    batch = (await context.app.batches.view(found.batch_id)).batch
    if visitor.token is not None:
        await context.app.batches.lend_token(batch, visitor.token)
    return batch


async def check_semaphores(context: Context, wishes: Sequence[Wish]) -> None:
    """Refuse named limits that there are not.

    Raises:
        NotFound: naming the first.
    """
    names = dict.fromkeys(wish.external_semaphore_id for wish in wishes if wish.external_semaphore_id)
    for name in names:
        await context.app.semaphores.show(name, now=context.app.clock.now().timestamp())


async def ended(
    context: Context, request: Request, visitor: Visitor, batch: Batch, *, seconds: float | None = None
) -> View:
    """Stay until all of it has ended. It goes on when the caller leaves.

    Args:
        context: of the server.
        request: of the caller who waits.
        visitor: who that is.
        batch: what for.
        seconds: how long a run may take; the longest wait for its turn is added. None stays as long as it takes.

    Raises:
        WaitTimeout: that took longer.
        ImagenError: it was stopped, for a reason that somebody has to mend first: the error that stopped it.
        Draining: the process ended first.
    """
    longest = None
    if seconds is not None:
        longest = context.app.settings.limits.wait.total_seconds() + seconds + _GRACE_SECONDS
    try:
        return await context.stay(request, _ended(context, batch, longest), goes_on=False)
    except BackendUnauthenticated as error:
        raise as_told(error, visitor) from error
    except TimeoutError:
        raise WaitTimeout("it has not ended in time", hint=_AGAIN) from None


async def all_items(context: Context, batch_id: str) -> list[Item]:
    """Its items, in order."""
    return [item async for item in context.app.batches.all_items(batch_id)]


def _note(context: Context, wish: Wish, order: Order) -> dict[str, Any]:
    """What is remembered of a wish besides its order; see `batch_shapes.Remembered`."""
    note: dict[str, Any] = {"model_name": wish.model_name, "output_filename": name_for(wish, context)}
    if wish.external_semaphore_id is not None:
        note["semaphore"] = wish.external_semaphore_id
    if order.left_out:
        note["left_out"] = order.left_out
    return note


async def check_account(context: Context, visitor: Visitor) -> None:
    """Refuse a made-up token before anything is written down for it: nobody would ever come back for that."""
    try:
        await context.door.proven.check(visitor.backend)
    except ImagenError as error:
        raise as_told(error, visitor) from error


async def _ended(context: Context, batch: Batch, seconds: float | None) -> View:
    batches = context.app.batches
    view = await batches.view(batch.id)
    if view.status is BatchStatus.PAUSED and view.batch.reason is not None:
        await batches.resume(batch.id)  # asked for once more, it is tried once more
    ending = asyncio.ensure_future(batches.ended(batch.id))
    stopping = asyncio.ensure_future(_stopped(context, batch.id, view.batch.sequence))
    closing = asyncio.ensure_future(context.draining.wait())
    idling = asyncio.ensure_future(_idle_after(context, batch.id, view.batch.sequence))
    try:
        async with asyncio.timeout(seconds):
            await asyncio.wait({ending, stopping, closing}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return await ending
            if stopping.done() and (error := await stopping) is not None:
                raise error
            await asyncio.wait({ending, idling}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done() and not (await batches.view(batch.id)).status.terminal:
                raise handed_over()  # nothing more is begun by this process
            return await ending
    finally:
        tasks = (ending, stopping, closing, idling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _idle_after(context: Context, batch_id: str, after: int) -> None:
    """Until the process shuts down and nothing of the batch runs any more."""
    await context.draining.wait()
    async for news in context.app.batches.events(batch_id, after=after):
        if isinstance(news, Progress) and not news.view.tally.running:
            return


async def _stopped(context: Context, batch_id: str, after: int) -> ImagenError | None:
    """The error when it is stopped for a reason; None at its end."""
    async for news in context.app.batches.events(batch_id, after=after):
        if not isinstance(news, Progress):
            continue
        batch = news.view.batch
        if news.view.status is BatchStatus.PAUSED and batch.reason is not None:
            code = batch.remembered.stopped_by or BackendError.code
            return stored_error(code, batch.reason, hint="Send the same request again once that is mended.")
    return None
