"""`POST /generate-batch`: many wishes in one request, their results in the order of the tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.limits import Lane
from imagen.domain.money import Usd
from imagen.errors import ImagenError, InvalidInput, InvalidRequest, Problem, Refused
from imagen.limits.line import draining
from imagen.server.access import Visitor
from imagen.server.answers import json_answer
from imagen.server.context import Context, handed_over
from imagen.server.operation import Operation
from imagen.server.results import Both, GeneratedFile, Turn, cost_header, dollars, generated_files, total_cost
from imagen.server.wishes import (
    Credentials,
    FileName,
    Seconds,
    Text,
    Wish,
    as_told,
    check_credentials,
    name_for,
    prepare_order,
    read_wish,
)
from imagen.service.finish import Outcome
from imagen.service.gateway import Order

MOST_TASKS = 10_000
_MOST_SHOWN = 20
_MOST_REPEATED_BYTES = 256 * 1024 * 1024
"""What stands beside the tasks is checked, sent and written down once for each of them."""
_LINED_UP = 4
"""So many times the account's places stand in line at once; the other tasks wait as plain values."""
_OWN = frozenset({"tasks", "prompts", "custom_filenames", "credentials", "external_semaphore_id"})


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
    credentials: Credentials | None = None


class TaskResult(msgspec.Struct, kw_only=True):
    """The pictures of a task that succeeded."""

    task_index: int
    prompt: str
    output_filename: str
    generated_files: list[GeneratedFile]
    count: int
    prediction_id: str
    seed: int | None
    cost_usd: float | None
    success: bool = True


class TaskFailure(msgspec.Struct, kw_only=True):
    """Why a task has no pictures.

    Attributes:
        code: stable name of the error; `error` is the sentence for people.
        charged: whether it is billed all the same; null when nobody can tell, or when it was never bought.
    """

    task_index: int
    prompt: str
    output_filename: str
    error: str
    code: str
    prediction_id: str | None
    charged: bool | None
    success: bool = False


class BatchAnswer(msgspec.Struct, kw_only=True):
    """What came of all tasks.

    Attributes:
        success: whether any task has pictures.
        successful_results, failed_results: each in the order of the tasks.
        results: all of them; `results[i]` belongs to `tasks[i]`.
        cost_usd: of all tasks; null where a price is not known.
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
    practice: bool


async def generate_batch(context: Context, request: Request) -> Response:
    """Make the pictures of many tasks. All of them are checked before the first is bought; none spoils another."""
    visitor, fields = await context.arrive(request)
    tasks = list(_tasks(fields))
    wishes, orders = await _prepared(context, visitor, tasks)
    if (semaphore := wishes[0].external_semaphore_id) is not None:
        await context.app.semaphores.show(semaphore, now=context.app.clock.now().timestamp())
    turn = Turn()
    outcomes = await context.stay(request, _carried_out(context, orders, turn), goes_on=True)
    results = [
        _result(context, request, visitor, wish, outcome, index=index)
        for index, (wish, outcome) in enumerate(zip(wishes, outcomes, strict=True))
    ]
    good = [result for result in results if isinstance(result, TaskResult)]
    bad = [result for result in results if isinstance(result, TaskFailure)]
    cost = total_cost([_cost(outcome) for outcome in outcomes])
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
        cost_usd=dollars(cost),
        practice=visitor.backend.practice,
    )
    return json_answer(answer, headers=cost_header(cost) | turn.headers())


def _tasks(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields of each task, with those of the batch where it says nothing itself.

    Raises:
        InvalidRequest: neither form, or a task without prompt.
        InvalidInput: naming the field and what is allowed.
    """
    common = {name: value for name, value in fields.items() if name not in _OWN}
    if fields.get("external_semaphore_id") is not None:
        common["external_semaphore_id"] = fields["external_semaphore_id"]
    if not isinstance(fields.get("model_name"), str | None):
        raise InvalidInput([Problem("model_name", "it must be text")])
    check_credentials(fields)
    listed = _listed(fields)
    _check_repeated(common, len(listed))
    for index, task in enumerate(listed):
        if not isinstance(task, dict):
            raise InvalidInput([Problem(f"tasks[{index}]", "it must be an object")])
        if not task.get("prompt"):
            raise InvalidRequest(f"Task {index} missing required field: prompt")
        if "external_semaphore_id" in task or "credentials" in task:
            raise InvalidInput(
                [
                    Problem(
                        f"tasks[{index}]", "external_semaphore_id and credentials belong to the whole batch"
                    )
                ]
            )
        yield common | task


def _check_repeated(common: Mapping[str, Any], times: int) -> None:
    """Refuse a batch whose common parameters make something huge of a body that is not."""
    try:
        size = len(msgspec.json.encode(common)) * times
    except RecursionError:
        raise InvalidInput([Problem("body", "it is nested too deeply")]) from None
    if size > _MOST_REPEATED_BYTES:
        raise InvalidInput(
            [
                Problem(
                    "tasks",
                    f"what stands beside {times} tasks comes to {size >> 20} MiB; at most "
                    f"{_MOST_REPEATED_BYTES >> 20} MiB are taken",
                )
            ],
            hint="Give the address of a picture instead of the picture itself.",
        )


def _listed(fields: Mapping[str, Any]) -> Sequence[Any]:
    """The tasks of either form."""
    tasks, prompts, names = fields.get("tasks"), fields.get("prompts"), fields.get("custom_filenames")
    if tasks is None and prompts is None:
        raise InvalidRequest("Missing required field: tasks", hint="Send tasks, or prompts.")
    if tasks is not None and prompts is not None:
        raise InvalidInput([Problem("prompts", "send either tasks or prompts")])
    listed = prompts if tasks is None else tasks
    field = "prompts" if tasks is None else "tasks"
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_TASKS:
        raise InvalidInput([Problem(field, f"it must be a list of 1 to {MOST_TASKS} items")])
    if tasks is not None:
        if names is not None:
            raise InvalidInput(
                [Problem("custom_filenames", "it belongs to prompts; a task has output_filename")]
            )
        return listed
    if names is not None and (not isinstance(names, list) or len(names) != len(listed)):
        raise InvalidInput([Problem("custom_filenames", f"it must be a list of {len(listed)} names")])
    return [
        {"prompt": prompt} | ({} if not names or names[index] is None else {"output_filename": names[index]})
        for index, prompt in enumerate(listed)
    ]


async def _prepared(
    context: Context, visitor: Visitor, tasks: Sequence[Mapping[str, Any]]
) -> tuple[list[Wish], list[Order]]:
    """Every task, checked.

    Raises:
        InvalidInput: naming the tasks that cannot be carried out; nothing was bought.
        Refused: none of them may be.
    """
    wishes, orders, problems = [], [], []
    for index, task in enumerate(tasks):
        try:
            wish, options = read_wish(task)
            orders.append(await prepare_order(context, visitor, wish, options, lane=Lane.BATCH))
            wishes.append(wish)
        except Refused:
            raise
        except ImagenError as error:
            if len(tasks) == 1 or not isinstance(error, InvalidRequest):
                raise
            found = getattr(error, "problems", None) or [Problem("", error.detail)]
            problems += [Problem(f"tasks[{index}].{one.field}".rstrip("."), one.message) for one in found]
        if index % 50 == 49:
            await asyncio.sleep(0)  # a long batch keeps nobody waiting while it is read
    if problems:
        more = f"and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else None
        raise InvalidInput(problems[:_MOST_SHOWN], subject="nothing was bought", hint=more)
    return wishes, orders


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

    width = min(len(orders), _LINED_UP * context.app.settings.limits.concurrent)
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
    context: Context, request: Request, visitor: Visitor, wish: Wish, outcome: Outcome, *, index: int
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
        cost_usd=dollars(prediction.cost),
    )


def _cost(outcome: Outcome) -> Usd | None:
    """What it cost; None while it may still cost something, or nobody knows the price."""
    prediction = outcome.prediction
    if prediction.status.terminal:
        return prediction.cost if prediction.charged is not False else Usd(0)
    return Usd(0) if prediction.sent_at is None else None


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
        errors=(401, 402, 403, 404, 429, 502, 503),
        example={
            "model_name": "flux-dev",
            "tasks": [
                {"prompt": "A red sports car", "output_filename": "red_car.jpg", "aspect_ratio": "16:9"},
                {"prompt": "A blue ocean wave", "output_filename": "blue_wave", "num_outputs": 2},
            ],
        },
    ),
)
