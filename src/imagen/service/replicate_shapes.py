"""The prediction object of Replicate's API, made from what we know of a prediction.

Source of its fields: Replicate's OpenAPI document. Which statuses and shapes its official clients do not survive was tried
with each of them: `aborted` is unknown to all, and one that reads an answer held open takes nothing but `succeeded` for an
end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cachetools import FIFOCache

from imagen.domain.batch import Batch, Item, ItemStatus
from imagen.domain.identifiers import instant_of
from imagen.domain.inside import INSIDE, is_file, is_inside, map_texts, without_file
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction, Status
from imagen.errors import ImagenError, PredictionAborted
from imagen.ports import Backend, Backends, Clock, PictureShelf
from imagen.service.fresh import FreshOutputs
from imagen.service.orders import StoredIntent, read_order

FACE = "replicate"
"""Whose words these are, as batches remember it."""
PATH = "/v1/predictions"
LEAST_DEADLINE_SECONDS, MOST_DEADLINE_SECONDS = 5.0, 86_400.0
"""What `Cancel-After` takes."""
HIDDEN_VERSION = "hidden"
"""The version of a model that tells none."""
REMOVED_AFTER = timedelta(hours=1)
"""After so long the service has the outputs no more."""
SETTLES_AFTER = timedelta(minutes=1)
"""As long the service itself may say `processing` of one whose output is whole."""
_SHELF = "shelf:"
_Change = tuple[str, str, str]
"""What is told in another form: what, what it is, and as what it is told."""
_MOST_GONE = 10_000
"""Of so many predictions it is remembered that the service has no output any more."""
_NEVER = "it was not made; the gateway could not tell why"
_LOST = "nobody can tell what became of it: the answer to its purchase was lost"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What we know of one prediction: the work that it belongs to, and what is written down of it; one of both at least.

    Attributes:
        batch, item: of one that was taken on durably.
        prediction: None before it is begun, and of one that never was.
        called: what it was asked for by, where that is an id of ours.
    """

    called: str = ""
    batch: Batch | None = None
    item: Item | None = None
    prediction: Prediction | None = None

    @property
    def id(self) -> str:
        """The id under which it was promised, also after another attempt."""
        promised = None if self.batch is None else self.batch.remembered.prediction_id
        if promised is not None:
            return promised
        if self.prediction is not None:
            return self.prediction.id
        return self.called or (self.item.predictions[0] if self.item is not None else "")

    @property
    def exact(self) -> bool:
        """Whether whoever asked for it takes Replicate's own forms only."""
        return self.batch is not None and self.batch.remembered.exact


class Output(NamedTuple):
    """What is shown as output, and whether it was removed."""

    value: Any = None
    removed: bool = False


class Shaped(NamedTuple):
    """The object, and what of it is told in another form than Replicate's own, for the header `X-Imagen-Adapted`."""

    body: dict[str, Any]
    adapted: tuple[_Change, ...] = ()


def is_of_face(batch: Batch | None) -> bool:
    """Whether work was asked for in Replicate's words."""
    return batch is not None and batch.remembered.face == FACE


def standing(known: Known) -> Status:
    """Where it stands, in one of Replicate's six words.

    What waits with us is `starting`. What ended here and never there is `failed`, or `canceled` where somebody wanted that.
    """
    item, prediction = known.item, known.prediction
    status = None if prediction is None else prediction.status
    if status is Status.SUCCEEDED:
        # That its pictures are still fetched, or could not be kept, is another matter.
        return Status.SUCCEEDED
    if item is not None and item.status.terminal:
        return _ended(item, prediction)
    match status:
        case None | Status.QUEUED | Status.STARTING:
            return Status.STARTING
        case Status.UNKNOWN | Status.FAILED:
            # Of durable work that has not ended there may be another attempt.
            return Status.FAILED if item is None else Status.STARTING
        case _:
            return status


def _ended(item: Item, prediction: Prediction | None) -> Status:
    heard = prediction is not None and prediction.upstream_id is not None
    if (
        prediction is not None
        and heard
        and prediction.status in {Status.FAILED, Status.CANCELED, Status.ABORTED}
    ):
        return prediction.status
    if item.code == PredictionAborted.code:
        return Status.ABORTED
    return Status.CANCELED if item.status is ItemStatus.CANCELED else Status.FAILED


def shape(
    known: Known, output: Output, *, base: str, now: datetime, exact: bool = False, held: bool = False
) -> Shaped:
    """The prediction object.

    Args:
        known: what we know of it.
        output: what it made, as far as it can be had now.
        base: the address of the gateway as the reader reaches it, without a slash at its end.
        now: the moment.
        exact: tell what official clients do not survive, too.
        held: it answers a create that was held open.
    """
    item, prediction, batch = known.item, known.prediction, known.batch
    status, adapted = _told_status(known, now=now, exact=exact)
    if held and not exact and status is Status.PROCESSING and output.value is None:
        # There official clients take anything but `starting` for the end, and give their callers nothing.
        status, adapted = Status.STARTING, (("status", "processing", "starting"),)
    intent = None if prediction is not None or item is None else intent_of(item, known.id)
    made = prediction or intent
    ref = ModelRef.parse(made.model) if made is not None else None
    # By its id, as lists are cut by that.
    created_at = instant_of(known.id) or (made.created_at if made is not None else now)
    body: dict[str, Any] = {
        "id": known.id,
        "model": _model(ref, prediction),
        "version": (prediction and prediction.version) or (ref and ref.version) or HIDDEN_VERSION,
        "input": made.input if made is not None else {},
        "logs": "" if prediction is None else prediction.logs,
        "output": output.value,
        "data_removed": output.removed,
        "error": _error(known) if status is Status.FAILED else None,
        "status": status.value,
        "source": "api",
        "created_at": instant(created_at),
        "urls": urls(known, base),
    }
    if prediction is not None and prediction.started_at is not None:
        body["started_at"] = instant(prediction.started_at)
    if status.terminal and (ended_at := _ended_at(known)) is not None:
        body["completed_at"] = instant(ended_at)
        body["metrics"] = _metrics(prediction, max((ended_at - created_at).total_seconds(), 0.0))
    if batch is not None and (seconds := batch.remembered.cancel_after) is not None:
        body["deadline"] = instant(created_at + timedelta(seconds=seconds))
    if ref is not None and ref.deployment:
        body["deployment"] = ref.base
    return Shaped(body, adapted)


def urls(known: Known, base: str) -> dict[str, str]:
    """Where more is told of it."""
    own = f"{base}{PATH}/{known.id}"
    key = None if known.batch is None else known.batch.remembered.stream_key
    return {
        "web": own,
        "get": own,
        "cancel": f"{own}/cancel",
        "stream": f"{own}/stream" if key is None else f"{own}/stream?key={key}",
    }


def instant(moment: datetime) -> str:
    """An instant as the service writes it, in milliseconds."""
    told = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return told.removesuffix("+00:00") + "Z"


def _told_status(known: Known, *, now: datetime, exact: bool) -> tuple[Status, tuple[_Change, ...]]:
    """The status as it is shown. One that the service has told with its whole output, before its bookkeeping, counts as done."""
    status = standing(known)
    if status is Status.ABORTED and not exact:
        return Status.CANCELED, (("status", "aborted", "canceled"),)
    if status is Status.SUCCEEDED and _settles(known.prediction, now):
        return (Status.PROCESSING, ()) if exact else (status, (("status", "processing", "succeeded"),))
    return status, ()


def _settles(prediction: Prediction | None, now: datetime) -> bool:
    """Whether the service told it before it had ended its bookkeeping: then there is no run time yet."""
    return (
        prediction is not None
        and prediction.upstream_id is not None
        and prediction.predict_seconds is None
        and prediction.ended_at is not None
        and now - prediction.ended_at < SETTLES_AFTER
    )


def intent_of(item: Item, prediction_id: str) -> StoredIntent:
    """What is to be bought: the prediction of that id, else the first one."""
    intents = read_order(item.order).intents
    return next((intent for intent in intents if intent.id == prediction_id), intents[0])


def _model(ref: ModelRef | None, prediction: Prediction | None) -> str:
    if prediction is not None and prediction.ran_as is not None:
        return prediction.ran_as
    return "" if ref is None else ref.base


def _error(known: Known) -> str:
    """Why it failed: the model's own reason, else our sentence."""
    item, prediction = known.item, known.prediction
    if prediction is not None and prediction.status is Status.FAILED and prediction.error:
        return prediction.error
    if item is not None and item.error:
        return item.error
    return _LOST if prediction is not None and prediction.status is Status.UNKNOWN else _NEVER


def _ended_at(known: Known) -> datetime | None:
    ended = None if known.prediction is None else known.prediction.ended_at
    return ended or (None if known.item is None else known.item.ended_at)


def _metrics(prediction: Prediction | None, total_seconds: float) -> dict[str, Any]:
    told = {
        "predict_time": None if prediction is None else prediction.predict_seconds,
        "image_count": None if prediction is None else prediction.image_count,
    }
    return {"total_time": round(total_seconds, 6)} | {
        name: value for name, value in told.items() if value is not None
    }


# --- outputs ---------------------------------------------------------------------------------------------


def output_so_far(prediction: Prediction | None) -> Any:
    """What it has made by now, exactly as it is known; None for nothing."""
    if prediction is None:
        return None
    return _assembled(prediction.answer, prediction.output)


def without_files(output: Any) -> Any:
    """The same with `data:` for each file that is inside it, as it may be written down."""
    return map_texts(output, without_file)


def with_files(output: Any, fresh: Sequence[str]) -> Any:
    """What `without_files` has made, with the files in their places; None where they are not at hand any more."""
    texts: list[str] = []
    map_texts(output, texts.append)
    if INSIDE not in texts or any(is_inside(text) and text != INSIDE for text in texts):
        return output
    return _assembled(output, fresh) if fresh else None


def kept_files(item: Item | None, base: str) -> list[str | None]:
    """The addresses of its pictures on the shelf, in order; None for each that is not there."""
    names = () if item is None else item.files
    return [
        shelf_address(base, name.removeprefix(_SHELF)) if name.startswith(_SHELF) else None for name in names
    ]


def shelf_address(base: str, picture_id: str) -> str:
    """Where a kept picture is looked at."""
    return f"{base}/pictures/{picture_id}"


class Outputs:
    """Finds what predictions have made: in their rows, in memory, on the shelf, or once more at the service.

    Args:
        fresh: has what came inside answers a short while ago.
        shelf: has what was kept.
        backends: where it was made.
        clock: tells the time.
    """

    def __init__(self, *, fresh: FreshOutputs, shelf: PictureShelf, backends: Backends, clock: Clock) -> None:
        self._fresh = fresh
        self._shelf = shelf
        self._backends = backends
        self._clock = clock
        self._gone: FIFOCache[str, None] = FIFOCache(_MOST_GONE)

    async def find(
        self, known: Known, *, base: str, looks: bool = True, backend: Backend | None = None
    ) -> Output:
        """What one has made.

        Args:
            known: what we know of it.
            base: the address of the gateway.
            looks: ask the service for what is nowhere else, within the hour in which it has it. Without that, files that
                came inside the answer are left out too: whoever wants many predictions does not want their files.
            backend: where it was made, for one on a token of its caller's.
        """
        prediction = known.prediction
        if prediction is None or not prediction.status.terminal or not prediction.output:
            return Output(output_so_far(prediction))
        fresh = (self._fresh.find(prediction.id) or ()) if looks else ()
        files = await self._files(known, prediction, base, fresh)
        if looks and None in files and self._is_there(prediction):
            files = _filled(files, await self._looked_at(prediction, backend))
        if None in files and (looks or not self._is_there(prediction)):
            left = [file for file in files if file is not None]
            return Output(left or None, removed=not left)
        return Output(
            None if None in files else _assembled(prediction.answer, [file or "" for file in files])
        )

    async def _files(
        self, known: Known, prediction: Prediction, base: str, fresh: Sequence[str]
    ) -> list[str | None]:
        """Each of its files: where the service has it, while it does; else as it came, or where it is kept."""
        there = self._is_there(prediction)
        found: list[str | None] = []
        kept: list[str | None] | None = None
        for index, file in enumerate(prediction.output):
            if is_inside(file):
                told = file if file != INSIDE else _at(fresh, index)
            else:
                told = file if there else None
            if told is None:
                kept = await self._kept(known, prediction, base) if kept is None else kept
                told = _at(kept, index)
            found.append(told)
        return found

    async def _kept(self, known: Known, prediction: Prediction, base: str) -> list[str | None]:
        told = kept_files(known.item, base)
        if any(told):
            return told
        lying = [await self._lies(name) for name in prediction.files]
        return [None if this is None else shelf_address(base, this) for this in lying]

    async def _lies(self, name: str) -> str | None:
        try:
            found = await self._shelf.at(Path(name)) if name else None
        except ImagenError:
            return None
        return None if found is None else found.id

    def _is_there(self, prediction: Prediction) -> bool:
        """Whether the service should have its outputs."""
        ended = prediction.ended_at or prediction.created_at
        return not prediction.reused and self._clock.now() - ended < REMOVED_AFTER

    async def _looked_at(self, prediction: Prediction, backend: Backend | None) -> Sequence[str]:
        """Its files as the service has them now; none where it cannot be asked."""
        if prediction.upstream_id is None or prediction.id in self._gone:
            return ()
        try:
            backend = backend or self._backends.get(prediction.backend)
            if backend.account != prediction.account:
                return ()
            sighting = await backend.look(prediction)
        except ImagenError:
            return ()
        if not sighting.output:
            self._gone[prediction.id] = None  # what the service has removed does not come back
        self._fresh.keep(prediction.id, sighting.output)
        return sighting.output


def _assembled(answer: Any, files: Sequence[str]) -> Any:
    """An output as the service told it, with these files in their places; None for nothing."""
    if answer is None:
        return list(files) or None
    left = iter(files)
    return map_texts(answer, lambda text: next(left, text) if is_file(text) else text)


def _filled(files: Sequence[str | None], others: Sequence[str]) -> list[str | None]:
    return [_at(others, index) if file is None else file for index, file in enumerate(files)]


def _at(values: Sequence[str | None], index: int) -> str | None:
    return values[index] if index < len(values) else None
