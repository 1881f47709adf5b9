"""Many wishes in one request: read from JSON or from the lines of a file, and checked before the first is bought."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from imagen.domain.limits import Lane
from imagen.errors import ImagenError, InvalidInput, InvalidRequest, Problem, Refused
from imagen.server.access import Visitor
from imagen.server.context import Context
from imagen.server.wishes import Wish, check_credentials, prepare_order, read_texts, read_wish
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
_SHARED = "external_semaphore_id"
OF_BATCH: tuple[str, ...] = (_SHARED, "credentials")
"""What only a whole batch may say; of these the semaphore holds for each task."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of one task.

    Attributes:
        where: how an error names it, such as `tasks[3]` or `line 4`.
        fields: names and values, those of the batch among them.
        texts: the same for values that are text whatever they mean, as those of CSV and of a query are.
    """

    where: str
    fields: Mapping[str, Any]
    texts: Mapping[str, str] = {}

    def name(self, field: str) -> str:
        """One of its fields in a sentence."""
        if not field:
            return self.where
        return f"{self.where}.{field}" if self.where.endswith("]") else f"{self.where}, {field}"


def read_tasks(
    fields: Mapping[str, Any],
    *,
    of_batch: tuple[str, ...] = OF_BATCH,
    most_bytes: int = MOST_REPEATED_BYTES,
) -> list[Told]:
    """The fields of each task, with those of the batch where it says nothing itself.

    Args:
        fields: of the whole batch, `tasks` or `prompts` among them.
        of_batch: what only the whole batch may say.
        most_bytes: how large what is common to all may be, counted once for each.

    Raises:
        InvalidRequest: neither form, or a task without prompt.
        InvalidInput: naming the field and what is allowed.
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
    return list(_told(listed, common, of_batch))


def read_rows(
    rows: Sequence[Row],
    common: Mapping[str, str],
    *,
    of_batch: tuple[str, ...],
    most_bytes: int = MOST_STORED_BYTES,
) -> list[Told]:
    """The same of the rows of a file.

    Args:
        rows: as they were written.
        common: what the query, or the form, says for all of them; what a row says itself wins.
        of_batch: what only the whole batch may say.
        most_bytes: as for `read_tasks`.

    Raises:
        InvalidInput: naming the line, the field and what is allowed.
    """
    _check_repeated(common, len(rows), most_bytes)
    told = []
    for row in rows:
        where = f"line {row.line}"
        _check_own(row.fields, where, of_batch)
        texts = {name: text for name, text in common.items() if name not in row.fields}
        told.append(
            Told(where=where, fields=row.fields, texts=texts)
            if row.typed
            else Told(where=where, fields={}, texts=texts | row.fields)
        )
    return told


async def prepare_tasks(
    context: Context, visitor: Visitor, tasks: Sequence[Told], *, lane: Lane = Lane.BATCH
) -> tuple[list[Wish], list[Order]]:
    """Every task, checked.

    Raises:
        InvalidInput: naming the tasks that cannot be carried out; nothing was bought.
        Refused: none of them may be.
    """
    wishes: list[Wish] = []
    orders: list[Order] = []
    problems: list[Problem] = []
    hints: list[str] = []
    draft = context.app.drafts.new_draft()
    loop = asyncio.get_running_loop()
    rested = loop.time()
    for task in tasks:
        try:
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
            found = error.problems if isinstance(error, InvalidInput) else ()
            if not isinstance(error, InvalidRequest) or (len(tasks) == 1 and not found):
                raise
            found = found or (Problem("", error.detail),)
            problems += [Problem(task.name(one.field), one.message) for one in found]
            hints += [error.hint] if error.hint and error.hint not in hints else []
            if len(problems) > _MOST_SHOWN:
                break  # nobody reads more of them, and each takes time
        if loop.time() - rested > _BREATH_AFTER_SECONDS:
            await asyncio.sleep(_BREATH_SECONDS)
            rested = loop.time()
    if problems:
        more = ["There are more mistakes."] if len(problems) > _MOST_SHOWN else []
        hint = " ".join([*more, *hints[:1]]) or None
        raise InvalidInput(problems[:_MOST_SHOWN], subject="nothing was bought", hint=hint)
    return wishes, orders


def _told(listed: Sequence[Any], common: Mapping[str, Any], of_batch: tuple[str, ...]) -> Iterator[Told]:
    for index, task in enumerate(listed):
        where = f"tasks[{index}]"
        if not isinstance(task, dict):
            raise InvalidInput([Problem(where, "it must be an object")])
        if not task.get("prompt"):
            raise InvalidRequest(f"Task {index} missing required field: prompt")
        _check_own(task, where, of_batch)
        yield Told(where=where, fields={**common, **task})


def _check_own(task: Mapping[str, Any], where: str, of_batch: tuple[str, ...]) -> None:
    """Refuse what only the whole batch may say."""
    if any(name in task for name in of_batch):
        told = f"{', '.join(of_batch[:-1])} and {of_batch[-1]} belong to the whole batch"
        raise InvalidInput([Problem(where, told)])


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
