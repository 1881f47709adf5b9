"""How durable work is told: batches, their items, and what of them goes on as events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from imagen.decoding import convert
from imagen.domain.batch import Batch, BatchStatus, Item, ItemStatus, Tally
from imagen.domain.inside import INSIDE
from imagen.domain.money import to_dollars
from imagen.domain.prediction import Tier
from imagen.errors import ImagenError
from imagen.server.answers import json_answer, over_budget, stored_error
from imagen.server.context import Context
from imagen.server.lineage import lineage_of
from imagen.server.results import GeneratedFile, cost_header
from imagen.server.wishes import DEFAULT_EXTENSION, file_names
from imagen.service.batches import View
from imagen.service.orders import see_order
from imagen.service.troubles import Trouble

SHELF = "shelf:"
"""What stands before the id of a kept picture among the files of an item."""


class Counts(msgspec.Struct, kw_only=True):
    """The items of a batch by status.

    Attributes:
        total: all of them.
        queued: not begun; running: being made.
        succeeded, failed, canceled: ended so.
        expired: made and paid for, but the pictures were gone before they were fetched.
    """

    total: int
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0


class BatchCost(msgspec.Struct, kw_only=True):
    """Money, in US dollars.

    Attributes:
        so_far_usd: of everything that has ended, as far as prices are known.
        quoted_usd: of all items, as it was expected when the batch was accepted.
        unpriced: how many items have no known price; they are in neither sum.
    """

    so_far_usd: float
    quoted_usd: float
    unpriced: int


class BatchUrls(msgspec.Struct, kw_only=True):
    """Where more is told of a batch, and where something is wanted of it.

    Attributes:
        get: how it stands; items: its items; events: what happens, as it happens; results: a line for each item.
        cancel, pause, resume, retry_failed: to be asked with POST.
    """

    get: str
    items: str
    events: str
    results: str
    cancel: str
    pause: str
    resume: str
    retry_failed: str


class TroubleState(msgspec.Struct, kw_only=True):
    """Passing trouble, for which nothing fails: work waits and goes on by itself.

    Attributes:
        reason: a sentence for people.
        since: when it began; next_try: when one item tries again.
    """

    reason: str
    since: datetime
    next_try: datetime


class BatchState(msgspec.Struct, kw_only=True):
    """How a batch stands.

    Attributes:
        id: `batch_…`.
        name: as it was given; may be empty.
        status: `running` and `paused` can change; the others are ends.
        reason: why it was paused, where nobody asked for that.
        counts: its items.
        cost: what it has cost, and what it was expected to.
        images: how many pictures have been made.
        eta_seconds: how long it will still take, as far as that can be told.
        trouble: what everything waits for just now.
        created_at: when it was accepted; ended_at: when its last item ended.
        webhook: where its events are delivered; webhook_events_filter: which.
        urls: where more is told.
    """

    id: str
    name: str
    status: BatchStatus
    reason: str | None
    counts: Counts
    cost: BatchCost
    images: int
    eta_seconds: float | None
    trouble: TroubleState | None
    created_at: datetime
    ended_at: datetime | None
    webhook: str | None
    webhook_events_filter: list[str]
    urls: BatchUrls


class BatchPage(msgspec.Struct, kw_only=True):
    """Batches, the newest first.

    Attributes:
        batches: as many as were asked for, or fewer.
        next_cursor: what asks for the older ones; null when there are none.
    """

    batches: list[BatchState]
    next_cursor: str | None


class ItemState(msgspec.Struct, kw_only=True):
    """One task of a batch.

    Attributes:
        index: its place among the tasks, from 0.
        status: `queued` and `running` can change; the others are ends.
        prompt: what the picture shall show.
        model: as it is run: owner/name, with a version where one was pinned.
        output_filename: as it was asked for, or as it was chosen.
        files: its pictures, in order.
        error: what went wrong, a sentence for people; code: the stable name of the error; hint: what to do next.
        prediction_ids: ours, of the last attempt.
        seed: with which the same picture can be made again.
        cost_usd: of all attempts; null while it is not at its end, and where a part of it is not known.
        quoted_usd: what one attempt was likely to cost, told before; null where the price is not known.
        budget: the budget that had no room for it; quote_usd: the most that it would have cost; quote: the same; renews_at:
            when that budget renews. Of other errors there are none of these.
        charged: whether any of it is billed; null while that is open, or when nobody can tell.
        attempts: how often it was begun.
        ended_at: when it ended.
        preset: the named set of inputs that was laid under the wish.
        left_out: what the preset offered, or was taken over from another picture, and this model does not take.
        tier: `preview`, or `final` of one; null for all others.
        parent: of a final, the prediction that it was made of.
        draft: what the previews of one wish, and the finals made of them, have in common.
    """

    index: int
    status: ItemStatus
    prompt: str
    model: str
    output_filename: str
    files: list[GeneratedFile]
    error: str | None
    code: str | None
    hint: str | None
    prediction_ids: list[str]
    seed: int | None
    cost_usd: float | None
    quoted_usd: float | None
    charged: bool | None
    attempts: int
    ended_at: datetime | None
    budget: str | UnsetType | None = UNSET
    quote_usd: float | UnsetType | None = UNSET
    quote: float | UnsetType | None = UNSET
    renews_at: datetime | UnsetType | None = UNSET
    preset: str | None = None
    left_out: list[str] = []
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None


class ItemPage(msgspec.Struct, kw_only=True):
    """Items in the order of the tasks.

    Attributes:
        items: as many as were asked for, or fewer.
        next_cursor: what asks for those that follow; null when there are none.
    """

    items: list[ItemState]
    next_cursor: str | None


class Retried(msgspec.Struct, kw_only=True):
    """What came of asking for another attempt.

    Attributes:
        id: of the batch.
        retried: how many items are queued again.
        urls: where more is told.
    """

    id: str
    retried: int
    urls: BatchUrls


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What a face remembers of an item besides its order.

    Attributes:
        model_name: as it was asked for.
        output_filename: as it was asked for, or as it was chosen.
        semaphore: the named limit that was waited for.
        left_out: what was offered or carried over, and the model does not take.
        saved_micros: of a final, what choosing was likely to save, in micro-dollars.
    """

    model_name: str = ""
    output_filename: str = ""
    semaphore: str | None = None
    left_out: tuple[str, ...] = ()
    saved_micros: int | None = None


def remembered(item: Item) -> Remembered:
    """What a face has noted of an item; of one that another face took, what there is."""
    return convert(
        {name: item.note[name] for name in Remembered.__struct_fields__ if name in item.note}, Remembered
    )


def batch_state(context: Context, request: Request, view: View) -> BatchState:
    """A batch as answers have it."""
    batch, tally = view.batch, view.tally
    return BatchState(
        id=batch.id,
        name=batch.name,
        status=view.status,
        reason=None if view.status.terminal else batch.reason,
        counts=Counts(
            total=batch.total,
            queued=tally.queued,
            running=tally.running,
            succeeded=tally.succeeded,
            failed=tally.failed,
            canceled=tally.canceled,
            expired=tally.expired,
        ),
        cost=BatchCost(
            so_far_usd=tally.cost.to_json(),
            quoted_usd=batch.quoted.to_json(),
            unpriced=max(batch.unpriced, tally.unpriced),
        ),
        images=tally.images,
        eta_seconds=None if view.eta_seconds is None else round(view.eta_seconds, 1),
        trouble=None if view.trouble is None else trouble_state(view.trouble),
        created_at=batch.created_at,
        ended_at=batch.ended_at,
        webhook=batch.webhook,
        webhook_events_filter=list(batch.webhook_events),
        urls=batch_urls(context, request, batch.id),
    )


def batch_answer(context: Context, request: Request, view: View) -> Response:
    """A batch as an answer, with what it has cost: nobody can tell while it is under way."""
    tally = view.tally
    cost = tally.cost if view.status.terminal and not tally.unpriced else None
    return json_answer(batch_state(context, request, view), headers=cost_header(cost))


def accepted_state(context: Context, request: Request, batch: Batch) -> BatchState:
    """A batch as it stood when it was accepted, whenever that is asked for: repeats get the same answer."""
    at_first = Batch(
        id=batch.id,
        backend=batch.backend,
        account=batch.account,
        total=batch.total,
        created_at=batch.created_at,
        name=batch.name,
        quoted=batch.quoted,
        unpriced=batch.unpriced,
        webhook=batch.webhook,
        webhook_events=batch.webhook_events,
    )
    view = View(
        batch=at_first,
        status=BatchStatus.RUNNING,
        tally=Tally(queued=batch.total),
        eta_seconds=None,
        trouble=None,
    )
    return batch_state(context, request, view)


def batch_urls(context: Context, request: Request, batch_id: str) -> BatchUrls:
    """The addresses of a batch, as the caller of `request` reaches them."""
    base = context.url_of(request, f"/batches/{batch_id}")
    return BatchUrls(
        get=base,
        items=f"{base}/items",
        events=f"{base}/events",
        results=f"{base}/results.jsonl",
        cancel=f"{base}/cancel",
        pause=f"{base}/pause",
        resume=f"{base}/resume",
        retry_failed=f"{base}/retry-failed",
    )


def trouble_state(trouble: Trouble) -> TroubleState:
    """Trouble as answers have it."""
    return TroubleState(reason=trouble.reason, since=trouble.since, next_try=trouble.next_try)


def item_state(context: Context, request: Request, item: Item) -> ItemState:
    """An item as answers have it."""
    note, order = remembered(item), see_order(item.order)
    return ItemState(
        index=item.index,
        status=item.status,
        prompt=order.prompt,
        model=order.model,
        output_filename=note.output_filename,
        files=item_files(context, request, item, name=note.output_filename),
        error=item.error,
        code=item.code,
        hint=item.hint,
        prediction_ids=list(item.predictions),
        seed=item.seed,
        cost_usd=to_dollars(item.cost) if item.status.terminal else None,
        quoted_usd=to_dollars(order.quote.likely),
        charged=item.charged,
        attempts=item.attempt,
        ended_at=item.ended_at,
        **over_budget(None if item.code is None else error_of(item)),
        **lineage_of(order, note.left_out),
    )


def item_files(context: Context, request: Request, item: Item, *, name: str) -> list[GeneratedFile]:
    """The pictures of an item, each with its addresses and its name. Paths of this machine are told to nobody."""
    if item.status is not ItemStatus.SUCCEEDED:
        return []
    stored = [_stored_url(context, request, file) for file in item.files]
    urls = _whole_urls(context, item)
    count = max(len(urls), len(stored))
    if count == 0:
        return []
    names = file_names(name or f"{item.index:05}{DEFAULT_EXTENSION}", count)
    return [
        GeneratedFile(
            url=_at(urls, index) or _at(stored, index) or "",
            filename=names[index],
            stored_url=_at(stored, index),
        )
        for index in range(count)
    ]


def _whole_urls(context: Context, item: Item) -> Sequence[str | None]:
    """The addresses of an item; of a picture that came inside an answer all of it, while that is remembered."""
    if INSIDE not in item.urls:
        return item.urls
    live = [url for one in item.predictions for url in context.app.fresh.find(one) or ()]
    return live if len(live) == len(item.urls) else [None if url == INSIDE else url for url in item.urls]


def error_of(item: Item) -> ImagenError:
    """Why an item that has ended has no pictures."""
    return stored_error(
        item.code or "error",
        item.error or "it has no pictures",
        hint=item.hint,
        charged=item.charged,
        facts=item.problem,
    )


def _stored_url(context: Context, request: Request, file: str) -> str | None:
    if not file.startswith(SHELF):
        return None
    return context.url_of(request, f"/pictures/{file.removeprefix(SHELF)}")


def _at(values: Sequence[str | None], index: int) -> str | None:
    return values[index] if index < len(values) else None
