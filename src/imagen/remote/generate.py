"""Pictures from a running gateway: the wish is translated here and made there, its pictures are fetched and kept by us."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from imagen.backends.replicate.translate import Defaults, Translation, translate
from imagen.catalog import Catalog
from imagen.catalog.model import DEFAULT_DEADLINE_SECONDS, Model
from imagen.domain.caller import UNKNOWN, Caller
from imagen.domain.events import Ended, HungUp, LeftOut, Submitted
from imagen.domain.identifiers import new_id
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd, from_dollars
from imagen.domain.prediction import EMULATOR, Prediction, Status, Tier
from imagen.domain.quote import Quote
from imagen.domain.request import GenerationRequest
from imagen.errors import (
    BackendError,
    GarbledResponse,
    ImagenError,
    InvalidInput,
    InvalidModelRef,
    InvalidResponse,
    OutcomeUnknown,
    OutputDefective,
    PredictionAborted,
    PredictionCanceled,
    PredictionFailed,
    Problem,
)
from imagen.ports import Clock, Fetched, Notify, Observer
from imagen.remote.connection import Connection
from imagen.service.deliver import Deliverer, Destination, PictureSource
from imagen.service.finish import Outcome
from imagen.service.gateway import quietly
from imagen.service.prepare import left_out_of
from imagen.transport.message import is_loopback

BACKEND = "gateway"
"""The backend's name in the gateway's own records."""
INLINE_BYTES = 256 * 1024
"""A file up to this size travels inside the request; a larger one would have to be put somewhere first."""
LONGEST_LINE_SECONDS = 3600.0
"""So long an answer may take beyond the run itself: a gateway lets nobody wait for longer without being told to."""
FIELDS = frozenset(
    {
        "cache",
        "credentials",
        "draft",
        "external_semaphore_id",
        "max_cost",
        "model_name",
        "output_filename",
        "preset",
        "store",
        "tier",
        "timeout",
    }
)
"""What a gateway takes for itself: a model's parameter of that name cannot be told to it."""

_ENDINGS: tuple[tuple[type[ImagenError], Status], ...] = (
    (PredictionFailed, Status.FAILED),
    (PredictionCanceled, Status.CANCELED),
    (PredictionAborted, Status.ABORTED),
    (OutcomeUnknown, Status.UNKNOWN),
    (OutputDefective, Status.SUCCEEDED),
)
_LOST = "If it lives, the gateway cancels what it was making; `imagen predictions list` there tells what became of it."

_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,100}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{1,100}\Z")]
"""A name that a gateway tells, and that is no more than a part of a line."""
_Address = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]+\Z")]


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend of our configuration says where the caller says nothing."""

    model: str
    steps: int | None = None
    aspect_ratio: str = "1:1"
    deadline_seconds: float | None = None


class MadeFile(msgspec.Struct, frozen=True):
    """Where one picture is: at the service, and at the gateway where that keeps it."""

    url: _Address
    stored_url: _Address | None = None


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the gateway's answer. Nothing in it can become a path or more than a line."""

    generated_files: Annotated[list[MadeFile], msgspec.Meta(max_length=1000)]
    prediction_id: _Id
    model: str
    replicate_id: _Id | None = None
    version: _Id | None = None
    seed: int | None = None
    cost_usd: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    quoted_usd: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    predict_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    practice: bool = False
    cached: bool = False
    preset: Name | None = None
    tier: Tier | None = None
    parent: _Id | None = None
    draft: Name | None = None
    left_out: Annotated[list[Name], msgspec.Meta(max_length=300)] = []


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction that the gateway is asked for.

    Attributes:
        intent: as it is known here; images: how many pictures it gives.
        path: of the gateway; body: what `POST` there takes.
        place: where its pictures go.
        notes: what a preset offered, or was carried over, and its model does not take.
    """

    intent: Prediction
    images: int
    body: dict[str, Any]
    place: Destination | None
    typical_seconds: float | None
    notes: Sequence[LeftOut] = ()
    path: str = "/generate"


class RemoteGateway:
    """What `service.gateway.Gateway` does, at a running gateway.

    Args:
        connection: asks it.
        catalog: knows models; those that it does not know are asked for by the names that the caller uses.
        habits: what backends of our configuration say, by name; None for the default one.
        deliverer: keeps the pictures here.
        source: fetches them; it shows no token.
        quote: what a prediction will cost, as far as that is known here.
        clock: tells the time.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        catalog: Catalog,
        habits: Callable[[str | None], Habits],
        deliverer: Deliverer,
        source: PictureSource,
        quote: Callable[[Prediction], Quote],
        clock: Clock,
    ) -> None:
        self._quote = quote
        self.url = connection.url
        self._connection = connection
        self._catalog = catalog
        self._habits = habits
        self._deliverer = deliverer
        self._source = Outward(source, connection.url)
        self._clock = clock

    async def generate(
        self,
        request: GenerationRequest,
        *,
        backend: str | None = None,
        caller: Caller = UNKNOWN,
        destination: Destination | None = None,
        observer: Observer | None = None,
        watched: bool = False,  # noqa: ARG002 - a gateway tells no progress
    ) -> Sequence[Outcome]:
        """See `service.gateway.Gateway.generate`. The gateway's own ledger names whoever holds the key.

        A caller that goes away closes the connection, and the gateway cancels what it was making.

        Raises:
            InvalidRequest, Refused, ConfigError: before anything was bought.
            BackendError: no gateway answers there, or its answer was lost.
        """
        runs = await self.plan(request, backend=backend, caller=caller, destination=destination)
        return await self.carry_out(runs, observer=observer)

    async def carry_out(self, runs: Sequence[Run], *, observer: Observer | None = None) -> Sequence[Outcome]:
        """Have what was planned made, and fetch its pictures.

        Raises:
            InvalidRequest, Refused, ConfigError, BackendError: no prediction came of it.
        """
        notify = quietly(observer)
        for note in runs[0].notes:
            notify(note)
        waiting: dict[str, Prediction] = {}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._carry_out(run, waiting, notify)) for run in runs]
        except asyncio.CancelledError:
            notify(HungUp(self.url, tuple(waiting.values())))
            raise
        outcomes = [task.result() for task in tasks]
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        ours = {run.intent.id for run in runs}
        if errors and all(outcome.prediction.id in ours for outcome in outcomes):
            raise errors[0]  # no prediction came of it
        return outcomes

    # --- before anything is asked for --------------------------------------------------------------------

    async def plan(
        self,
        request: GenerationRequest,
        *,
        backend: str | None = None,
        caller: Caller = UNKNOWN,
        destination: Destination | None = None,
    ) -> list[Run]:
        """The runs that make the pictures of a request, checked as far as that can be done here.

        Raises:
            InvalidInput: it cannot be carried out.
        """
        request.check()
        habits = self._habits(backend)
        if not request.repeat_lost:
            problem = Problem("never_repeat", "a gateway decides itself about creates whose answer was lost")
            raise InvalidInput([problem], hint="Leave it away, or work without --server.")
        ref = request.model or self._catalog.resolve(habits.model)
        known = None if ref.deployment else self._catalog.find(ref.base)
        # Other versions may take other parameters; the gateway asks for theirs.
        schema = None if known is None or ref.version else self._catalog.input_schema(known)
        made = translate(
            request,
            model=ref.base,
            schema=schema,
            image=await _input_image(request.input_image),
            defaults=Defaults(steps=habits.steps, aspect_ratio=habits.aspect_ratio),
        )
        _check_names(made, model=ref.base)
        runs: list[Run] = []
        first, total = 1, sum(made.images)
        for values, images in zip(made.inputs, made.images, strict=True):
            run = Run(
                images=images,
                intent=self._intent(request, habits, ref=ref, known=known, values=values, caller=caller),
                body=_body(request, habits, ref, {**values, **made.secrets}, share=(images, total)),
                place=None
                if destination is None
                else msgspec.structs.replace(destination, first=first, total=total),
                typical_seconds=known.typical_seconds if known else None,
                notes=left_out_of(request, made.left_out, model=ref.base),
            )
            if run.place is not None:
                self._deliverer.check(run.place, run.intent, images=images)
            first += images
            runs.append(run)
        return runs

    def _intent(
        self,
        request: GenerationRequest,
        habits: Habits,
        *,
        ref: ModelRef,
        known: Model | None,
        values: Mapping[str, Any],
        caller: Caller,
    ) -> Prediction:
        now, seed = self._clock.now(), values.get("seed")
        own = request.deadline_seconds or habits.deadline_seconds
        intent = Prediction(
            id=new_id("pred", now),
            backend=BACKEND,
            backend_type="replicate",
            account=self.url,
            model=str(ref),
            prompt=request.prompt,
            input=dict(values),
            request_key="",
            caller=caller.name,
            created_at=now,
            deadline_seconds=own or (known.deadline_seconds if known else DEFAULT_DEADLINE_SECONDS),
            seed=seed if isinstance(seed, int) else None,
            preset=request.preset,
        )
        return msgspec.structs.replace(intent, quote=self._quote(intent))

    # --- one run -----------------------------------------------------------------------------------------

    async def _carry_out(self, run: Run, waiting: dict[str, Prediction], notify: Notify) -> Outcome:
        """Have it made and fetch its pictures; an error of ours is part of the outcome."""
        notify(Submitted(run.intent, run.typical_seconds))
        sent_at = self._clock.now()
        try:
            made = await self._connection.ask(
                "POST",
                run.path,
                _Made,
                body=run.body,
                answer_seconds=run.intent.deadline_seconds + LONGEST_LINE_SECONDS,
                lost=_LOST,
            )
            prediction = self._as_told(run.intent, made, sent_at)
        except ImagenError as error:
            ended = _without_success(run.intent, error, sent_at)
            notify(Ended(msgspec.structs.replace(ended, id=run.intent.id)))
            return Outcome(ended, error=error)
        waiting[run.intent.id] = prediction
        notify(Ended(msgspec.structs.replace(prediction, id=run.intent.id)))
        outcome = await self._fetch(prediction, run.place, notify)
        del waiting[run.intent.id]
        return outcome

    def _as_told(self, intent: Prediction, made: _Made, sent_at: datetime) -> Prediction:
        try:
            model = str(ModelRef.parse(made.model))
        except InvalidModelRef:
            raise GarbledResponse(
                f"{self.url} tells no model that can be; its prediction {made.prediction_id} was made"
            ) from None
        return msgspec.structs.replace(
            intent,
            id=made.prediction_id,
            upstream_id=made.replicate_id,
            backend_type=EMULATOR if made.practice else intent.backend_type,
            model=model,
            version=made.version,
            predict_seconds=made.predict_seconds,
            status=Status.SUCCEEDED,
            seed=made.seed,
            output=tuple(self._source.address_of(file) for file in made.generated_files),
            charged=not made.cached,
            preset=made.preset or intent.preset,
            tier=made.tier,
            parent=made.parent,
            draft=made.draft,
            cost=from_dollars(made.cost_usd),
            quote=intent.quote if made.quoted_usd is None else Quote(likely=from_dollars(made.quoted_usd)),
            created_at=sent_at,
            sent_at=sent_at,
            ended_at=sent_at + timedelta(seconds=made.seconds),
        )

    async def _fetch(self, prediction: Prediction, place: Destination | None, notify: Notify) -> Outcome:
        if place is None:
            return Outcome(prediction)
        delivery = await self._deliverer.deliver(self._source, prediction, place, notify=notify)
        pictures = tuple(picture for picture in delivery.pictures if picture is not None)
        return Outcome(prediction, pictures, delivery.error)


class Outward:
    """A source of pictures that lets no gateway elsewhere point us at this machine."""

    def __init__(self, source: PictureSource, gateway: str) -> None:
        self._source = source
        self._here = is_loopback(urlsplit(gateway).hostname)

    async def fetch(self, url: str, target: Path, *, limit_bytes: int) -> Fetched:
        """See `ports.Backend.fetch`."""
        if not self._here and _is_here(url):
            raise InvalidResponse("the gateway names an address of this machine, which is not fetched")
        return await self._source.fetch(url, target, limit_bytes=limit_bytes)

    def address_of(self, file: MadeFile) -> str:
        """Where a picture is fetched: where the gateway keeps it, if it does, as that outlives the hour."""
        kept = file.stored_url
        if kept is not None and (kept.startswith("https://") or (self._here and _is_here(kept))):
            return kept
        return file.url


def _body(
    request: GenerationRequest,
    habits: Habits,
    ref: ModelRef,
    values: Mapping[str, Any],
    *,
    share: tuple[int, int],
) -> dict[str, Any]:
    """What `POST /generate` takes. `share` is how many of how many pictures this run makes."""
    body: dict[str, Any] = {"prompt": request.prompt, **values, "model_name": str(ref)}
    if (deadline := request.deadline_seconds or habits.deadline_seconds) is not None:
        body["timeout"] = deadline
    if request.semaphore is not None:
        body["external_semaphore_id"] = request.semaphore
    if request.cache is not None:
        body["cache"] = request.cache
    if request.max_cost is not None:
        # The gateway sees one run at a time: each may have its part, so that all of them stay below the whole.
        images, total = share
        body["max_cost"] = f"{Usd(request.max_cost.micros * images // total).to_decimal():f}"
    return body


def _check_names(made: Translation, *, model: str) -> None:
    problems = [
        Problem(name, "a gateway takes this name for itself, so the model's own parameter cannot be set")
        for name in sorted(FIELDS.intersection(*made.inputs[:1]))
    ]
    if problems:
        raise InvalidInput(problems, subject=model, hint="Leave it away, or work without --server.")


async def _input_image(image: str | Path | None) -> str | None:
    """The image as the model gets it: an address as it is, a small file inside the request.

    Raises:
        InvalidInput: a file is empty, too large or cannot be read.
    """
    if image is None or isinstance(image, str):
        return image
    try:
        content = await asyncio.to_thread(_read_start, image)
    except OSError as error:
        raise InvalidInput([Problem("input_image", f"{image} cannot be read: {error.strerror}")]) from error
    if not content:
        raise InvalidInput([Problem("input_image", f"{image} is empty")])
    if len(content) > INLINE_BYTES:
        raise InvalidInput(
            [
                Problem(
                    "input_image", f"{image} is larger than the {INLINE_BYTES >> 10} KiB that a gateway takes"
                )
            ],
            hint="Put it where it has an https address and give that, or make it smaller.",
        )
    media_type = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(INLINE_BYTES + 1)


def _is_here(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname)
    except ValueError:
        return False


def _without_success(intent: Prediction, error: ImagenError, sent_at: datetime) -> Prediction:
    """The intent with what the error tells of its prediction, if one was made or may have been: that may be billed."""
    prediction_id = getattr(error, "prediction_id", None)
    if not prediction_id:
        lost = isinstance(error, BackendError) and error.delivered == "unknown"
        return msgspec.structs.replace(intent, sent_at=sent_at) if lost else intent
    status = next((status for kind, status in _ENDINGS if isinstance(error, kind)), intent.status)
    charged = getattr(error, "charged", None)
    return msgspec.structs.replace(intent, id=prediction_id, status=status, charged=charged, sent_at=sent_at)
