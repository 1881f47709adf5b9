"""Many wishes in one request: read from JSON or from the lines of a file, and checked before the first is bought."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from imagen.domain.limits import Lane
from imagen.errors import ImagenError, InvalidInput, InvalidModelRef, InvalidRequest, Problem, Refused
from imagen.server.access import Visitor
from imagen.server.context import Context
from imagen.server.wishes import MissingField, Wish, check_credentials, prepare_order, read_texts, read_wish
from imagen.service.manifest import Row
from imagen.service.prepare import Order

MOST_TASKS = 10_000
MOST_REPEATED_BYTES = 256 << 20
"""What stands beside the tasks is checked, sent and written down once for each of them."""
MOST_STORED_BYTES = 64 << 20
"""The same for what is written down whole before the first is bought."""
_MOST_SHOWN = 20
_BREATH_AFTER_SECONDS, _BREATH_SECONDS = 0.005, 0.003
"""A long batch is read in breaths, so that it keeps nobody waiting: with so much work, and so much rest between."""
_LISTS = frozenset({"tasks", "prompts", "custom_filenames"})
_NAME = re.compile(r"[^.\[]+")
_SHARED = "external_semaphore_id"
OF_BATCH: tuple[str, ...] = (_SHARED, "credentials")
"""What only a whole batch may say; of these the semaphore holds for each task."""


class TaskFields(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of one task.

    Attributes:
        where: how an error names it, such as `tasks[3]` or `line 4`.
        fields: names and values, those of the batch among them.
        texts: the same for values that are text whatever they mean, as those of CSV and of a query are.
        own: the names that the task says itself; the others are the batch's.
        wrong: why it is no task.
    """

    where: str
    fields: Mapping[str, Any] = {}
    texts: Mapping[str, str] = {}
    own: Collection[str] = ()
    wrong: InvalidInput | None = None

    def name(self, field: str) -> str:
        """One of its fields in a sentence."""
        if not field:
            return self.where
        if self.is_shared(field):
            return field
        return f"{self.where}.{field}" if self.where.endswith("]") else f"{self.where}, {field}"

    def is_shared(self, field: str) -> bool:
        """Whether the whole batch says it, and not the task."""
        name = _NAME.match(field)
        return (
            name is not None and name[0] not in self.own and (name[0] in self.fields or name[0] in self.texts)
        )


class _Wrong:
    """What is wrong with tasks, told all at once as far as anybody reads it."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._hints: dict[str, None] = {}
        self._first: ImagenError | None = None
        self._documented = ""
        self._tasks, self._only_shared = 0, True

    @property
    def is_full(self) -> bool:
        """Whether nobody reads more; each more takes time."""
        return self._tasks > _MOST_SHOWN or len(self._problems) > _MOST_SHOWN

    def add(self, task: TaskFields, error: InvalidRequest) -> None:
        """Of one task. What the batch says for all of its tasks is told once."""
        self._tasks += 1
        if self._first is None:
            self._first = error
            self._documented = error.detail if isinstance(task.wrong, MissingField) else ""
        found: Sequence[Problem] = (Problem("", error.detail),)
        if isinstance(error, InvalidInput):
            found = error.problems
        elif isinstance(error, InvalidModelRef):
            found = (Problem("model_name", error.detail),)
        for one in found:
            self._only_shared &= task.is_shared(one.field)
            self._problems[Problem(task.name(one.field), one.message)] = None
        if error.hint:
            self._hints[error.hint] = None

    def check(self) -> None:
        """Go on where nothing is wrong.

        Raises:
            InvalidInput: naming the first 20 mistakes, in the documented words when the first is a field that is missing.
            InvalidRequest: the first error, when all that is wrong is what the batch says for all.
        """
        if self._first is None:
            return
        if self._only_shared:
            raise self._first
        problems = list(self._problems)
        hints = list(self._hints)[:1]
        if self._documented and len(problems) > 1:
            hints.insert(0, "`problems` names what else is wrong.")
        if len(problems) > _MOST_SHOWN:
            hints.insert(0, "There are more mistakes.")
        error = InvalidInput(
            problems[:_MOST_SHOWN], subject="nothing was bought", hint=" ".join(hints) or None
        )
        error.detail = self._documented or error.detail
        raise error


def read_tasks(
    fields: Mapping[str, Any],
    *,
    of_batch: tuple[str, ...] = OF_BATCH,
    most_bytes: int = MOST_REPEATED_BYTES,
) -> list[TaskFields]:
    """The fields of each task, with those of the batch where it says nothing itself.

    Args:
        fields: of the whole batch, `tasks` or `prompts` among them.
        of_batch: what only the whole batch may say.
        most_bytes: how large what is common to all may be, counted once for each.

    Raises:
        InvalidInput: of the whole batch, naming the field and what is allowed. What is wrong with a task is in its `TaskFields`.
    """
    apart = _LISTS | {*of_batch} - {_SHARED}
    common = {name: value for name, value in fields.items() if name not in apart}
    if common.get(_SHARED, "") is None:
        del common[_SHARED]
    if not isinstance(fields.get("model_name"), str | None):
        raise InvalidInput([Problem("model_name", "it must be text")])
    check_credentials(fields)
    listed = _listed(fields)
    _check_repeated(common, len(listed), most_bytes)
    return list(_task_fields(listed, common, of_batch))


def read_rows(
    rows: Sequence[Row],
    common: Mapping[str, str],
    *,
    of_batch: tuple[str, ...],
    most_bytes: int = MOST_STORED_BYTES,
) -> list[TaskFields]:
    """The same of the rows of a file.

    Args:
        rows: as they were written.
        common: what the query, or the form, says for all of them; what a row says itself wins.
        of_batch: what only the whole batch may say.
        most_bytes: as for `read_tasks`.

    Raises:
        InvalidInput: of what is common to all.
    """
    _check_repeated(common, len(rows), most_bytes)
    told = []
    for row in rows:
        where = f"line {row.line}"
        wrong = _wrong_own(row.fields, of_batch)
        texts = {name: text for name, text in common.items() if name not in row.fields}
        told.append(
            TaskFields(where=where, fields=row.fields, texts=texts, own=row.fields, wrong=wrong)
            if row.typed
            else TaskFields(where=where, texts=texts | row.fields, own=row.fields, wrong=wrong)
        )
    return told


async def prepare_tasks(
    context: Context, visitor: Visitor, tasks: Sequence[TaskFields], *, lane: Lane = Lane.BATCH
) -> tuple[list[Wish], list[Order]]:
    """Every task, checked.

    Raises:
        InvalidInput: naming the tasks that cannot be carried out; nothing was bought.
        Refused: none of them may be.
    """
    wishes: list[Wish] = []
    orders: list[Order] = []
    wrong = _Wrong()
    draft = context.app.drafts.new_draft()
    loop = asyncio.get_running_loop()
    rested = loop.time()
    for task in tasks:
        try:
            if task.wrong is not None:
                raise task.wrong
            known, texts = read_texts(task.texts)
            fields = {**known, **task.fields}
            if fields.get("tier") is not None:
                fields = {"draft": draft, **fields}  # what is asked for together is chosen from together
            wish, options = read_wish(fields, context.app.settings.presets)
            orders.append(await prepare_order(context, visitor, wish, options, texts=texts, lane=lane))
            wishes.append(wish)
        except Refused:
            raise
        except ImagenError as error:
            missing = isinstance(error, MissingField) and task.wrong is None
            alone = len(tasks) == 1 and (missing or not isinstance(error, InvalidInput))
            if not isinstance(error, InvalidRequest) or alone:
                raise
            wrong.add(task, error)
            if wrong.is_full:
                break
        if loop.time() - rested > _BREATH_AFTER_SECONDS:
            await asyncio.sleep(_BREATH_SECONDS)
            rested = loop.time()
    wrong.check()
    return wishes, orders


def _task_fields(
    listed: Sequence[Any], common: Mapping[str, Any], of_batch: tuple[str, ...]
) -> Iterator[TaskFields]:
    for index, task in enumerate(listed):
        where = f"tasks[{index}]"
        if not isinstance(task, dict):
            yield TaskFields(where=where, wrong=InvalidInput([Problem("", "it must be an object")]))
            continue
        wrong = _wrong_own(task, of_batch)
        if task.get("prompt") in (None, ""):
            wrong = MissingField(["prompt"], told=f"Task {index} missing required field: prompt")
        yield TaskFields(where=where, fields={**common, **task}, own=task, wrong=wrong)


def _wrong_own(task: Mapping[str, Any], of_batch: tuple[str, ...]) -> InvalidInput | None:
    """What only the whole batch may say."""
    if not any(name in task for name in of_batch):
        return None
    return InvalidInput(
        [Problem("", f"{', '.join(of_batch[:-1])} and {of_batch[-1]} belong to the whole batch")]
    )


def _check_repeated(common: Mapping[str, Any], times: int, most_bytes: int) -> None:
    """Refuse a batch whose common parameters make something huge of a body that is not."""
    try:
        size = len(msgspec.json.encode(common)) * times
    except RecursionError:
        raise InvalidInput([Problem("body", "it is nested too deeply")]) from None
    if size > most_bytes:
        raise InvalidInput(
            [
                Problem(
                    "tasks",
                    f"what stands beside {times} tasks comes to {size >> 20} MiB; at most "
                    f"{most_bytes >> 20} MiB are taken",
                )
            ],
            hint="Give the address of a picture instead of the picture itself.",
        )


def _listed(fields: Mapping[str, Any]) -> Sequence[Any]:
    """The tasks of either form."""
    tasks, prompts, names = fields.get("tasks"), fields.get("prompts"), fields.get("custom_filenames")
    if tasks is None and prompts is None:
        raise MissingField(["tasks"], hint="Send tasks, or prompts.")
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
