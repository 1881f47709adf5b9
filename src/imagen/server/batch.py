"""`POST /generate-batch`: many wishes in one request, their results in the order of the tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.batch import Idempotency, Item, ItemStatus
from imagen.domain.limits import LINED_UP, Lane
from imagen.domain.money import Usd, to_dollars
from imagen.domain.prediction import Tier
from imagen.errors import ImagenError
from imagen.limits.line import draining
from imagen.server.access import Visitor, scope_of
from imagen.server.answers import json_answer, over_budget
from imagen.server.batch_shapes import error_of, item_files, remembered
from imagen.server.context import Context, handed_over
from imagen.server.durable import accept, all_items, check_semaphores, ended, known
from imagen.server.idempotency import PARAMETER, REPLAYED, read_mark
from imagen.server.lineage import lineage_of
from imagen.server.operation import Operation
from imagen.server.results import (
    Both,
    GeneratedFile,
    Turn,
    cost_header,
    generated_files,
    refusal,
    tells_cost,
)
from imagen.server.tasks import MOST_STORED_BYTES, MOST_TASKS, prepare_tasks, read_tasks
from imagen.server.wishes import Credentials, DraftName, FileName, Seconds, Text, Wish, as_told, name_for
from imagen.service.finish import Outcome
from imagen.service.orders import see_order
from imagen.service.prepare import Order


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task; the model's own parameters stand beside these fields and win over those of the batch."""

    prompt: Text
    output_filename: FileName | None = None
    model_name: str | None = None


_MANY = msgspec.Meta(extra_json_schema={"minItems": 1, "maxItems": MOST_TASKS})
_Tasks = Annotated[list[Task], _MANY]
_Prompts = Annotated[list[Text], _MANY]


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """Many tasks of one model: as `tasks`, or as `prompts` with `custom_filenames`.

    Attributes:
        model_name: of every task that names none itself.
        tasks: 1 to 10,000 of them.
        prompts, custom_filenames: the older form, in place of `tasks`.
        external_semaphore_id: a named limit that each task waits for.
        store: keep the pictures, so that they outlive the hour.
        timeout: seconds until each prediction must have ended.
        max_cost: US dollars for each task; refuse before buying when one would cost more.
        cache: for tasks with a seed, or of a model without one: take pictures that were made before, and keep these; by
            default as the gateway is set.
        preset: a named set of inputs that holds where a task says nothing; it may name the model too.
        tier: `preview` has a cheap model make every task, and keeps the wishes for their finals.
        draft: what these previews have in common; chosen when none is given.
        credentials: a Replicate account of the caller's own, instead of a key.
    """

    model_name: str | None = None
    tasks: _Tasks | None = None
    prompts: _Prompts | None = None
    custom_filenames: list[FileName | None] | None = None
    external_semaphore_id: str | None = None
    store: bool = False
    timeout: Seconds | None = None
    max_cost: float | str | None = None
    cache: bool | None = None
    preset: str | None = None
    tier: Literal["preview"] | None = None
    draft: DraftName | None = None
    credentials: Credentials | None = None


class TaskResult(msgspec.Struct, kw_only=True):
    """The pictures of a task that succeeded.

    Attributes:
        cost_usd: what it cost; quoted_usd: what it was likely to cost, told before. Null where the price is not known.
        cached: true where the pictures are those of an equal request, so that nothing was bought.
        preset: the named set of inputs that was laid under the wish.
        left_out: what the preset offered, or was taken over from another picture, and this model does not take.
        tier: `preview`, or `final` of one; null for all others.
        parent: of a final, the prediction that it was made of.
        draft: what the previews of one wish, and the finals made of them, have in common.
    """

    task_index: int
    prompt: str
    output_filename: str
    generated_files: list[GeneratedFile]
    count: int
    prediction_id: str
    seed: int | None
    cost_usd: float | None
    quoted_usd: float | None
    success: bool = True
    cached: bool = False
    preset: str | None = None
    left_out: list[str] = []
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None


class TaskFailure(msgspec.Struct, kw_only=True):
    """Why a task has no pictures.

    Attributes:
        code: stable name of the error; `error` is the sentence for people.
        charged: whether it is billed all the same; null when nobody can tell, or when it was never bought.
        hint: what to do next.
        cost_usd: what it cost all the same; null where nobody can tell.
        quoted_usd: what it was likely to cost, told before; null where the price is not known.
        budget: the budget that had no room for it; quote_usd: the most that it would have cost; quote: the same; renews_at:
            when that budget renews. Of other errors there are none of these.
    """

    task_index: int
    prompt: str
    output_filename: str
    error: str
    code: str
    prediction_id: str | None
    charged: bool | None
    hint: str | None
    cost_usd: float | None
    quoted_usd: float | None
    success: bool = False
    budget: str | UnsetType | None = UNSET
    quote_usd: float | UnsetType | None = UNSET
    quote: float | UnsetType | None = UNSET
    renews_at: datetime | UnsetType | None = UNSET


class BatchAnswer(msgspec.Struct, kw_only=True):
    """What came of all tasks.

    Attributes:
        success: whether any task has pictures.
        successful_results, failed_results: each in the order of the tasks.
        results: all of them; `results[i]` belongs to `tasks[i]`.
        cost_usd: of all tasks; quoted_usd: what they were likely to cost. Null where a price is not known.
        practice: true where the emulator painted and no model was run.
    """

    success: bool
    model_name: str | None
    total_tasks: int
    successful_count: int
    failed_count: int
    successful_results: list[TaskResult]
    failed_results: list[TaskFailure]
    external_semaphore_used: bool
    semaphore_id: str | None
    results: list[TaskResult | TaskFailure]
    cost_usd: float | None
    quoted_usd: float | None
    practice: bool


@tells_cost
async def generate_batch(context: Context, request: Request) -> Response:
    """Make the pictures of many tasks. All of them are checked before the first is bought; none spoils another."""
    visitor, fields = await context.arrive(request)
    mark = read_mark(request, fields, scope=scope_of(visitor), now=context.app.clock.now())
    if mark is not None:
        return await _generate_batch_once(context, request, visitor, fields, mark)
    wishes, orders = await prepare_tasks(context, visitor, read_tasks(fields))
    if (semaphore := wishes[0].external_semaphore_id) is not None:
        await context.app.semaphores.show(semaphore, now=context.app.clock.now().timestamp())
    turn = Turn()
    try:
        outcomes = await context.stay(request, _carried_out(context, orders, turn), goes_on=True)
    except ImagenError as error:
        return refusal(error, cost=turn.cost_so_far(), headers=turn.headers())
    results = [
        _result(context, request, visitor, wish, outcome, index=index, left_out=order.left_out)
        for index, (wish, order, outcome) in enumerate(zip(wishes, orders, outcomes, strict=True))
    ]
    cost = Usd.total_or_none([outcome.prediction.spent for outcome in outcomes])
    quoted = Usd.total_or_none([outcome.prediction.quote.likely for outcome in outcomes])
    return _answered(visitor, fields, results, cost, quoted, semaphore=semaphore, headers=turn.headers())


async def _generate_batch_once(
    context: Context, request: Request, visitor: Visitor, fields: dict[str, Any], mark: Idempotency
) -> Response:
    """The same for a request that may come again: taken on durably, and answered from what was written down."""
    batch = await known(context, visitor, mark)
    replayed = batch is not None
    if batch is None:
        wishes, orders = await prepare_tasks(
            context, visitor, read_tasks(fields, most_bytes=MOST_STORED_BYTES)
        )
        await check_semaphores(context, wishes[:1])
        batch = await accept(
            context,
            request,
            visitor,
            wishes,
            orders,
            kind="single",  # of one answer: it is not for those who list batches
            lane=Lane.BATCH,
            mark=mark,
            outlives=False,
        )
    headers = REPLAYED if replayed else {}
    try:
        await ended(context, request, visitor, batch)
    except ImagenError as error:
        return refusal(error, cost=None, headers=headers)  # it goes on, and may cost something
    items = await all_items(context, batch.id)
    return _answered(
        visitor,
        fields,
        [_stored_result(context, request, visitor, item) for item in items],
        Usd.total_or_none([item.cost for item in items]),
        Usd.total_or_none([see_order(item.order).quote.likely for item in items]),
        semaphore=fields.get("external_semaphore_id"),
        headers=headers,
    )


def _answered(
    visitor: Visitor,
    fields: Mapping[str, Any],
    results: list[TaskResult | TaskFailure],
    cost: Usd | None,
    quoted: Usd | None,
    *,
    semaphore: str | None,
    headers: Mapping[str, str],
) -> Response:
    good = [result for result in results if isinstance(result, TaskResult)]
    bad = [result for result in results if isinstance(result, TaskFailure)]
    answer = BatchAnswer(
        success=bool(good),
        model_name=fields.get("model_name"),
        total_tasks=len(results),
        successful_count=len(good),
        failed_count=len(bad),
        successful_results=good,
        failed_results=bad,
        external_semaphore_used=semaphore is not None,
        semaphore_id=semaphore,
        results=results,
        cost_usd=to_dollars(cost),
        quoted_usd=to_dollars(quoted),
        practice=visitor.backend.practice,
    )
    return json_answer(answer, headers=cost_header(cost) | dict(headers))


async def _carried_out(context: Context, orders: Sequence[Order], turn: Turn) -> list[Outcome]:
    """Carry out all orders; only some of them stand in line at once.

    When the process ends first, what is done is told, and of the rest that it is not.
    """
    outcomes: list[Outcome | None] = [None] * len(orders)
    following = iter(range(len(orders)))

    async def work() -> None:
        for index in following:
            begun = Turn()
            try:
                (outcomes[index],) = await context.app.gateway.carry_out(
                    orders[index], observer=Both(turn, begun)
                )
            except asyncio.CancelledError:
                intent, _ = orders[index].intents[0]
                if begun.prediction_id is not None:
                    intent = msgspec.structs.replace(intent, sent_at=context.app.clock.now())
                outcomes[index] = Outcome(intent, error=handed_over())
                raise

    width = min(len(orders), LINED_UP * context.app.settings.limits.concurrent)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(work())
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not context.drains or task is None:
            raise
        task.uncancel()
    return [
        outcome or Outcome(order.intents[0][0], error=draining())
        for outcome, order in zip(outcomes, orders, strict=True)
    ]


def _result(
    context: Context,
    request: Request,
    visitor: Visitor,
    wish: Wish,
    outcome: Outcome,
    *,
    index: int,
    left_out: Sequence[str],
) -> TaskResult | TaskFailure:
    prediction, name = outcome.prediction, name_for(wish, context)
    if outcome.error is not None:
        error = as_told(outcome.error, visitor)
        return TaskFailure(
            task_index=index,
            prompt=wish.prompt,
            output_filename=name,
            error=error.detail,
            code=error.code,
            prediction_id=prediction.id if prediction.sent_at else None,
            charged=prediction.charged,
            hint=error.hint,
            cost_usd=to_dollars(prediction.spent),
            quoted_usd=to_dollars(prediction.quote.likely),
            **over_budget(error),
        )
    files = generated_files(context, request, wish, outcome, name=name)
    return TaskResult(
        task_index=index,
        prompt=wish.prompt,
        output_filename=name,
        generated_files=files,
        count=len(files),
        prediction_id=prediction.id,
        seed=prediction.seed,
        cost_usd=to_dollars(prediction.spent),
        quoted_usd=to_dollars(prediction.quote.likely),
        cached=prediction.reused,
        **lineage_of(prediction, left_out),
    )


def _stored_result(
    context: Context, request: Request, visitor: Visitor, item: Item
) -> TaskResult | TaskFailure:
    note = remembered(item)
    order = see_order(item.order)
    if item.status is not ItemStatus.SUCCEEDED:
        error = as_told(error_of(item), visitor)
        return TaskFailure(
            task_index=item.index,
            prompt=order.prompt,
            output_filename=note.output_filename,
            error=error.detail,
            code=error.code,
            prediction_id=item.problem.get("prediction_id"),
            charged=item.charged,
            hint=error.hint,
            cost_usd=to_dollars(item.cost),
            quoted_usd=to_dollars(order.quote.likely),
            **over_budget(error),
        )
    files = item_files(context, request, item, name=note.output_filename)
    return TaskResult(
        task_index=item.index,
        prompt=order.prompt,
        output_filename=note.output_filename,
        generated_files=files,
        count=len(files),
        prediction_id=item.predictions[0],
        seed=item.seed,
        cost_usd=to_dollars(item.cost),
        quoted_usd=to_dollars(order.quote.likely),
        **lineage_of(order, note.left_out),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/generate-batch",
        handler=generate_batch,
        summary="Make the pictures of many prompts",
        description=(
            "Each task may have parameters of its own; those beside `tasks` hold for all. A task that cannot be carried "
            "out is refused before anything of the batch is bought; one that fails later fails alone."
        ),
        tag="generate",
        access="caller",
        body=BatchBody,
        answers={200: BatchAnswer},
        errors=(401, 402, 403, 404, 409, 429, 502, 503),
        parameters=(PARAMETER,),
        example={
            "model_name": "flux-dev",
            "tasks": [
                {"prompt": "A red sports car", "output_filename": "red_car.jpg", "aspect_ratio": "16:9"},
                {"prompt": "A blue ocean wave", "output_filename": "blue_wave", "num_outputs": 2},
            ],
        },
    ),
)
