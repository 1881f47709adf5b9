"""Batches of a running gateway: rows are translated here and made there, and their pictures are fetched and kept by us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from imagen.domain.batch import Batch, BatchStatus, Control, Item, ItemStatus, Tally
from imagen.domain.events import Event
from imagen.domain.identifiers import new_secret
from imagen.domain.money import Usd, from_dollars
from imagen.domain.prediction import Prediction, Status, any_charged
from imagen.domain.quote import Quote
from imagen.errors import (
    BackendBroken,
    ImagenError,
    InvalidInput,
    NotFound,
    Problem,
    Refused,
    TransportError,
)
from imagen.ports import Clock
from imagen.remote.batch_memory import Memories, Memory, Task
from imagen.remote.connection import Connection
from imagen.remote.generate import BACKEND, MadeFile, Outward, Run
from imagen.remote.refusals import shown
from imagen.service.batches import BatchNews, ItemEnded, Progress, View
from imagen.service.deliver import Deliverer, from_stored, to_stored
from imagen.service.orders import SeenIntent, SeenOrder, see_order
from imagen.service.troubles import Trouble

T = TypeVar("T")
PATH = "/batches"
_ACCEPT_SECONDS = 600.0
"""A gateway checks every task before it answers."""
_TRIES = 4
_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 1.0, 30.0
_PAGE = 200
_LIST_PAGE = 100
"""As many as a gateway shows at once."""
_FETCHES = 8
_SEMAPHORE = "external_semaphore_id"

_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,100}\Z")]
_Dollars = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class _Accepted(msgspec.Struct, frozen=True):
    id: _Id


class _Counts(msgspec.Struct, frozen=True, kw_only=True):
    total: _Count
    queued: _Count = 0
    running: _Count = 0
    succeeded: _Count = 0
    failed: _Count = 0
    canceled: _Count = 0
    expired: _Count = 0


class _Cost(msgspec.Struct, frozen=True, kw_only=True):
    so_far_usd: _Dollars
    quoted_usd: _Dollars
    unpriced: _Count


class _Trouble(msgspec.Struct, frozen=True, kw_only=True):
    reason: str
    since: datetime
    next_try: datetime


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the gateway tells it."""

    id: _Id
    status: BatchStatus
    counts: _Counts
    cost: _Cost
    created_at: datetime
    name: str = ""
    reason: str | None = None
    images: _Count = 0
    eta_seconds: _Dollars | None = None
    trouble: _Trouble | None = None
    ended_at: datetime | None = None


class _List(msgspec.Struct, frozen=True, kw_only=True):
    batches: list[_State]
    next_cursor: str | None = None


class _ItemState(msgspec.Struct, frozen=True, kw_only=True):
    """An item as the gateway tells it."""

    index: _Count
    status: ItemStatus
    prompt: str = ""
    model: str = ""
    files: Annotated[list[MadeFile], msgspec.Meta(max_length=1000)] = []
    error: str | None = None
    code: str | None = None
    hint: str | None = None
    prediction_ids: list[_Id] = []
    seed: int | None = None
    cost_usd: _Dollars | None = None
    quoted_usd: _Dollars | None = None
    charged: bool | None = None
    attempts: _Count = 1
    ended_at: datetime | None = None


class _Page(msgspec.Struct, frozen=True, kw_only=True):
    items: list[_ItemState]
    next_cursor: str | None = None


class _Retried(msgspec.Struct, frozen=True):
    retried: _Count


class RemoteBatches:
    """What `service.batches.Batches` shows and steers, at a running gateway.

    Of batches that this machine has asked for, pictures are fetched while `events` is listened to.

    Args:
        connection: asks it.
        memories: where pictures of batches go.
        deliverer: keeps them here; source: fetches them.
        clock: tells the time.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        memories: Memories,
        deliverer: Deliverer,
        source: Outward,
        clock: Clock,
    ) -> None:
        self.url = connection.url
        self._connection = connection
        self._memories = memories
        self._deliverer = deliverer
        self._source = source
        self._clock = clock
        self._read: dict[str, Sequence[Item]] = {}

    # --- accepting ---------------------------------------------------------------------------------------

    async def accept(
        self,
        runs: Sequence[Sequence[Run]],
        *,
        name: str,
        notes: Sequence[dict[str, Any]],
        details: dict[str, Any],
    ) -> str:
        """Have the gateway promise to make all runs; the batch's id.

        Args:
            runs: those of each row.
            name: of the batch.
            notes: what to remember of each row.
            details: what to remember of all.

        Raises:
            InvalidInput: the rows want what one batch cannot have.
            ImagenError: whatever the gateway raised; nothing was bought.
        """
        bodies = [dict(run.body) for row in runs for run in row]
        semaphores = {body.pop(_SEMAPHORE, None) for body in bodies}
        if len(semaphores) > 1:
            problem = Problem(
                "semaphore", "a gateway takes one for a whole batch; the rows name several, or some none"
            )
            raise InvalidInput([problem], hint="Split the file, or work without --server.")
        body = {"name": name, "store": True, "tasks": bodies}
        if (semaphore := semaphores.pop()) is not None:
            body[_SEMAPHORE] = semaphore
        accepted = await self._surely(PATH, _Accepted, body=body)
        tasks = [
            Task(
                row=row,
                prompt=run.intent.prompt,
                model=run.intent.model,
                seed=run.intent.seed,
                place={} if run.place is None else to_stored(run.place),
                note=notes[row],
            )
            for row, of_row in enumerate(runs)
            for run in of_row
        ]
        self._memories.begin(accepted.id, url=self.url, details=details, tasks=tasks)
        return accepted.id

    async def unfinished(self, fingerprint: str) -> str | None:
        """The batch of a file of the same content, asked for on this machine, that has not ended."""
        for batch_id in self._memories.of_wish(self.url, fingerprint):
            with suppress(NotFound):
                if not (await self.view(batch_id)).status.terminal:
                    return batch_id
        return None

    # --- looking -----------------------------------------------------------------------------------------

    async def view(self, batch_id: str) -> View:
        """How a batch stands.

        Raises:
            NotFound: the gateway shows none of that name.
        """
        return self._viewed(await self._connection.ask("GET", _path_of(batch_id), _State))

    async def list(self, *, limit: int, before: str | None = None) -> Sequence[View]:
        """Batches, newest first."""
        views: list[View] = []
        cursor = before
        while len(views) < limit:
            asked = {"limit": str(min(limit - len(views), _LIST_PAGE))}
            asked |= {} if cursor is None else {"cursor": cursor}
            found = await self._connection.ask("GET", f"{PATH}?{urlencode(asked)}", _List)
            views += [self._viewed(state) for state in found.batches]
            cursor = found.next_cursor
            if cursor is None or not found.batches:
                break
        return views

    async def items(
        self, batch_id: str, *, after: int = -1, limit: int = 100, status: ItemStatus | None = None
    ) -> Sequence[Item]:
        """Items in the order of our rows, those with a larger index than `after`; read anew from the first on."""
        if after < 0 or batch_id not in self._read:
            self._read[batch_id] = await self._all_items(batch_id)
        found = [one for one in self._read[batch_id] if one.index > after and status in {None, one.status}]
        return found[:limit]

    async def events(self, batch_id: str, *, after: int = 0) -> AsyncIterator[BatchNews]:  # noqa: ARG002 - by what has come
        """What happens in a batch until it has ended and its pictures have come. A gateway that is away is waited for."""
        memory = self._memories.find(batch_id)
        told: set[int] = set() if memory is None else set(memory.fetched)
        pause, cursor = _LOOK_SECONDS, None
        view = await self.view(batch_id)
        while True:
            try:
                view = await self.view(batch_id)
                cursor, ended = await self._ended_since(batch_id, cursor, told)
                for states in _in_groups(ended, _FETCHES):
                    made = await asyncio.gather(*(self._told(batch_id, memory, state) for state in states))
                    for item in made:
                        told.add(item.index)
                        yield ItemEnded(item)
                view = await self.view(batch_id) if ended else view
                pause = _LOOK_SECONDS
                yield Progress(view)
                if view.status.terminal and not ended:
                    return
            except (TransportError, BackendBroken, Refused) as error:
                if isinstance(error, Refused) and not error.retryable:
                    raise
                pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
                yield Progress(msgspec.structs.replace(view, trouble=self._away(view, error, pause)))
            await self._clock.sleep(pause)

    # --- steering ----------------------------------------------------------------------------------------

    async def pause(self, batch_id: str) -> View:
        """See `service.batches.Batches`."""
        return await self._steer(batch_id, "pause")

    async def resume(self, batch_id: str) -> View:
        """See `service.batches.Batches`."""
        return await self._steer(batch_id, "resume")

    async def cancel(self, batch_id: str) -> View:
        """See `service.batches.Batches`."""
        return await self._steer(batch_id, "cancel")

    async def retry_failed(self, batch_id: str) -> int:
        """See `service.batches.Batches`."""
        return (await self._surely(f"{_path_of(batch_id)}/retry-failed", _Retried, body={})).retried

    async def _steer(self, batch_id: str, verb: str) -> View:
        return self._viewed(
            await self._connection.ask("POST", f"{_path_of(batch_id)}/{verb}", _State, body={})
        )

    async def _surely(self, path: str, answer: type[T], *, body: dict[str, Any]) -> T:
        """Ask for what costs money, once: a lost answer is asked for again under the same key."""
        key = new_secret("batch")
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._connection.ask(
                    "POST", path, answer, body=body, answer_seconds=_ACCEPT_SECONDS, idempotency_key=key
                )
            except TransportError as error:
                if attempt == _TRIES or not error.retryable:
                    raise
                await self._clock.sleep(2.0**attempt / 2)
        raise AssertionError("unreachable")

    # --- what is told ------------------------------------------------------------------------------------

    def _viewed(self, state: _State) -> View:
        memory = self._memories.find(state.id)
        counts, cost = state.counts, state.cost
        batch = Batch(
            id=state.id,
            backend=BACKEND,
            account=self.url,
            total=counts.total,
            created_at=state.created_at,
            name=shown(state.name),
            quoted=from_dollars(cost.quoted_usd),
            unpriced=cost.unpriced,
            control=Control.PAUSE if state.status is BatchStatus.PAUSED else Control.RUN,
            reason=None if state.reason is None else shown(state.reason),
            details={} if memory is None else memory.details,
            ended_at=state.ended_at,
        )
        tally = Tally(
            queued=counts.queued,
            running=counts.running,
            succeeded=counts.succeeded,
            failed=counts.failed,
            canceled=counts.canceled,
            expired=counts.expired,
            cost=from_dollars(cost.so_far_usd),
            unpriced=cost.unpriced,
            images=state.images,
        )
        trouble = None if state.trouble is None else self._trouble(state.trouble)
        return View(
            batch=batch, status=state.status, tally=tally, eta_seconds=state.eta_seconds, trouble=trouble
        )

    def _trouble(self, told: _Trouble) -> Trouble:
        return Trouble(subject=self.url, reason=shown(told.reason), since=told.since, next_try=told.next_try)

    def _away(self, view: View, error: ImagenError, pause: float) -> Trouble:
        now = self._clock.now()
        since = now if view.trouble is None else view.trouble.since
        return Trouble(
            subject=self.url,
            reason=f"the gateway cannot be asked: {error.detail}",
            since=since,
            next_try=now + timedelta(seconds=pause),
        )

    async def _pages(self, batch_id: str, cursor: str | None) -> AsyncIterator[tuple[str | None, _Page]]:
        """Pages from a cursor on, each with the cursor that leads to it."""
        while True:
            asked = {"limit": str(_PAGE)} | ({} if cursor is None else {"cursor": cursor})
            page = await self._connection.ask("GET", f"{_path_of(batch_id)}/items?{urlencode(asked)}", _Page)
            yield cursor, page
            if page.next_cursor is None or not page.items:
                return
            cursor = page.next_cursor

    async def _ended_since(
        self, batch_id: str, cursor: str | None, told: set[int]
    ) -> tuple[str | None, Sequence[_ItemState]]:
        """Items that have ended and were not told, and the cursor of the first page that has others.

        Items are begun in their order, so that nothing has ended behind a page of which nothing has begun.
        """
        ended: list[_ItemState] = []
        begins: list[str | None] = []
        at = cursor
        async for at, page in self._pages(batch_id, cursor):
            ended += [one for one in page.items if one.status.terminal and one.index not in told]
            if any(not one.status.terminal for one in page.items):
                begins.append(at)
            if all(one.status is ItemStatus.QUEUED for one in page.items):
                break
        return (begins[0] if begins else at), ended

    async def _all_items(self, batch_id: str) -> Sequence[Item]:
        """All items, those of one row of ours put together."""
        memory = self._memories.find(batch_id)
        items = [
            self._item(batch_id, memory, state)
            async for _, page in self._pages(batch_id, None)
            for state in page.items
        ]
        if memory is None:
            return items
        rows: dict[int, list[Item]] = {}
        for item in items:
            if item.index < len(memory.tasks):
                rows.setdefault(memory.tasks[item.index].row, []).append(item)
        return [_together(row, parts) for row, parts in sorted(rows.items())]

    def _item(
        self, batch_id: str, memory: Memory | None, state: _ItemState, *, error: ImagenError | None = None
    ) -> Item:
        task = memory.tasks[state.index] if memory is not None and state.index < len(memory.tasks) else None
        files: Sequence[str] = [self._source.address_of(file) for file in state.files]
        status, code = state.status, state.code
        told = None if state.error is None else shown(state.error)
        if task is not None and memory is not None:
            come = memory.fetched.get(state.index)
            if status is ItemStatus.SUCCEEDED and come is None:
                status, code = ItemStatus.FAILED, "delivery_error" if error is None else error.code
                told = "its pictures have not been fetched yet" if error is None else str(error)
            files = come or ()
        return Item(
            batch_id=batch_id,
            index=state.index,
            order=msgspec.json.encode(
                SeenOrder(
                    task.prompt if task else shown(state.prompt),
                    (SeenIntent(shown(state.model), task.seed if task else None, _quote(state)),),
                )
            ),
            note={} if task is None else task.note,
            status=status,
            attempt=state.attempts,
            predictions=tuple(state.prediction_ids),
            error=told,
            code=code,
            hint=None if state.hint is None else shown(state.hint),
            charged=state.charged,
            cost=from_dollars(state.cost_usd),
            files=tuple(files),
            seed=state.seed,
            images=len(state.files),
            ended_at=state.ended_at,
        )

    # --- pictures ----------------------------------------------------------------------------------------

    async def _told(self, batch_id: str, memory: Memory | None, state: _ItemState) -> Item:
        """An item that has ended, with its pictures here."""
        wanted = (
            memory is not None and state.status is ItemStatus.SUCCEEDED and state.index < len(memory.tasks)
        )
        error: ImagenError | None = None
        if wanted and memory is not None and state.index not in memory.fetched:
            error = await self._fetch(memory, state)
        return self._item(batch_id, memory, state, error=error)

    async def _fetch(self, memory: Memory, state: _ItemState) -> ImagenError | None:
        task = memory.tasks[state.index]
        place = from_stored(task.place)
        if place is None:
            return None
        made_at = state.ended_at or self._clock.now()
        prediction = Prediction(
            id=next(iter(state.prediction_ids), f"{state.index}"),
            backend=BACKEND,
            backend_type="replicate",
            account=self.url,
            model=task.model,
            prompt=task.prompt,
            input={},
            request_key="",
            caller="",
            created_at=made_at,
            ended_at=made_at,
            deadline_seconds=1.0,
            seed=state.seed,
            status=Status.SUCCEEDED,
            output=tuple(self._source.address_of(file) for file in state.files),
        )
        delivery = await self._deliverer.deliver(self._source, prediction, place, notify=_nobody)
        if delivery.error is None:
            memory.add(state.index, [str(one.path) for one in delivery.pictures if one is not None])
        return delivery.error


def _nobody(event: Event) -> None:
    """Nobody hears of it."""


def _path_of(batch_id: str) -> str:
    return f"{PATH}/{quote(batch_id, safe='')}"


def _in_groups(states: Sequence[_ItemState], size: int) -> Iterator[Sequence[_ItemState]]:
    return (states[start : start + size] for start in range(0, len(states), size))


def _together(row: int, parts: Sequence[Item]) -> Item:
    """The item of a row that took several tasks: the worst of them says how it went."""
    order = (
        ItemStatus.QUEUED,
        ItemStatus.RUNNING,
        ItemStatus.FAILED,
        ItemStatus.EXPIRED,
        ItemStatus.CANCELED,
    )
    worst = min(parts, key=lambda part: order.index(part.status) if part.status in order else len(order))
    return msgspec.structs.replace(
        worst,
        index=row,
        order=msgspec.json.encode(
            SeenOrder(
                see_order(worst.order).prompt,
                tuple(intent for part in parts for intent in see_order(part.order).intents),
            )
        ),
        seed=parts[0].seed,
        attempt=max(part.attempt for part in parts),
        predictions=tuple(one for part in parts for one in part.predictions),
        files=tuple(name for part in parts for name in part.files),
        images=sum(part.images for part in parts),
        charged=any_charged(part.charged for part in parts),
        cost=Usd.total_or_none(part.cost for part in parts),
    )


def _quote(state: _ItemState) -> Quote:
    return Quote(likely=from_dollars(state.quoted_usd))
