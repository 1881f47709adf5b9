"""From a wish in OpenAI's words to its pictures, by the way of all others: checked, quoted, bought once, followed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request

from imagen.catalog.model import EDIT_KEYS, GUIDE_KEYS
from imagen.domain.batch import Batch, Idempotency
from imagen.domain.limits import Lane
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd, to_dollars
from imagen.domain.preset import find_preset
from imagen.errors import DeliveryError, Draining, ImagenError, InvalidRequest, OutputDefective, WaitTimeout
from imagen.identity import clean_caller
from imagen.pictures import check_address
from imagen.server.access import Visitor, scope_of
from imagen.server.batch_shapes import error_of
from imagen.server.context import Context, Gone
from imagen.server.durable import accept_one, all_items, ended, known
from imagen.server.headers import PREDICTION_ID, UNMAPPED, adapted
from imagen.server.idempotency import HEADER, REPLAYED, fingerprint, read_mark
from imagen.server.left_runs import Run, Work, patience_with
from imagen.server.openai.errors import RETRY, error_object, in_callers_words
from imagen.server.openai.mapping import MASK, Words, in_words_of
from imagen.server.openai.names import gives_pictures, name_of_model, resolve_model, schema_of
from imagen.server.openai.pictures import Shot, Whole, fetch_all, shots_of
from imagen.server.openai.uploads import Given, Picture, address_of, as_mask, at_hand, told_content
from imagen.server.openai.wish import ImagesWish, refuse_reserved
from imagen.server.results import Turn, cache_header, cost_header
from imagen.server.wishes import (
    Wish,
    as_told,
    check_options,
    keeps,
    prepare_request,
    read_texts,
    read_wish,
    request_of,
)
from imagen.service.finish import Outcome
from imagen.service.prepare import Order

_LONGEST_PERSON = 64
_GIVEN = "given"
"""What is said of something that is no word."""
_HANDED_OVER = "It is paid for: do not ask for it again; `imagen predictions show` tells what became of it."
_FETCH_IT = "They were charged: fetch them within the hour from the `urls` in `imagen.failures`, and do not ask again."


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was read.

    Attributes:
        visitor: who asks.
        wish: what for, in OpenAI's words.
        extras: whatever else was said, in the words of the model or of this gateway.
        as_text: whether `extras` came as text, and is to be read by the types of the model.
        given: the pictures of an edit; None for a picture of words alone.
        said: the whole body of a request for a picture of words alone, without credentials.
    """

    visitor: Visitor
    wish: ImagesWish
    extras: dict[str, Any]
    as_text: bool = False
    given: Given | None = None
    said: Mapping[str, Any] = {}

    async def content(self) -> Any:
        """What makes the request the same when it comes again."""
        return self.said if self.given is None else await asyncio.to_thread(told_content, self.given)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was understood.

    Attributes:
        asked: the request.
        visitor: who asks, by the name that the ledger gets.
        model: which one.
        ours: the rest of the wish in this gateway's words.
        words: what it says in the model's.
        options, texts: parameters of the model that the caller named himself.
        mark: how the request is recognised when it comes again.
    """

    asked: Asked
    visitor: Visitor
    model: ModelRef
    ours: Wish
    words: Words
    options: dict[str, Any]
    texts: dict[str, str]
    mark: Idempotency | None

    @property
    def in_base64(self) -> bool:
        """Whether the pictures themselves are wanted."""
        wish = self.asked.wish
        if wish.stream:
            return True
        if wish.response_format is not None:
            return wish.response_format == "b64_json"
        return gives_pictures(wish.model, self.model)

    def headers(self) -> dict[str, str]:
        """What could not be mapped, and what came out otherwise."""
        words = self.words
        wish = self.asked.wish
        changes = [(field, str(getattr(wish, field, _GIVEN)), to) for field, to in words.adapted.items()]
        found = adapted(changes) | {UNMAPPED: ", ".join(words.unmapped)}
        return {name: _sendable(text) for name, text in found.items() if text}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction without a picture that can be shown, and why."""

    error: ImagenError
    prediction_id: str
    urls: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """As answers tell it."""
        told = error_object(self.error)
        shown = {"prediction_id": self.prediction_id, "message": told["message"], "code": told["code"]}
        return shown | ({"urls": list(self.urls)} if self.urls else {})


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job.

    Attributes:
        shots: the pictures, in order.
        failures: the predictions that made none.
        outcomes: all of them.
        headers: of the answer.
        lost: of the pictures, how many could not be fetched.
        left: remembers it for the same request, when the caller leaves before the answer; None where it is durable.
    """

    shots: list[Shot]
    failures: list[Failure]
    outcomes: Sequence[Outcome]
    headers: dict[str, str]
    lost: int = 0
    left: Callable[[], Awaitable[None]] | None = None

    @property
    def prediction_ids(self) -> list[str]:
        """The ids of all predictions."""
        return [outcome.prediction.id for outcome in self.outcomes]

    @property
    def cost(self) -> Usd | None:
        """What all of it cost; None where nobody can tell."""
        return Usd.total_or_none([outcome.prediction.spent for outcome in self.outcomes])


class FailedError(Exception):
    """There is no picture at all.

    Attributes:
        error: why.
        cost: what was paid all the same; None where nobody can tell.
        headers: of the answer.
        prediction_ids, failures: what was begun all the same, and what became of it.
    """

    def __init__(
        self,
        error: ImagenError,
        *,
        cost: Usd | None,
        headers: dict[str, str],
        prediction_ids: Sequence[str] = (),
        failures: Sequence[Failure] = (),
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.cost = cost
        self.headers = headers
        self.prediction_ids = prediction_ids
        self.failures = failures

    def besides(self) -> dict[str, Any]:
        """What the answer tells of it besides the error."""
        told: dict[str, Any] = {"cost_usd": to_dollars(self.cost)}
        if self.prediction_ids:
            told["prediction_ids"] = list(self.prediction_ids)
        if self.failures:
            told["failures"] = [failure.shown() for failure in self.failures]
        return told


# --- before anything is bought ------------------------------------------------------------------------------


async def understand(context: Context, request: Request, asked: Asked) -> Job:
    """What a request means for which model.

    Raises:
        InvalidRequest: it makes no sense, or no model is called so.
        PermissionDenied: the key is not good for the model.
        ImagenError: nobody could be asked what the model takes.
    """
    refuse_reserved(asked.extras)
    model = _model_of(context, asked)
    ours, options, texts = _beside(context, asked, model)
    request_of(
        context, asked.visitor, ours, {}
    )  # whose key is not good for the model learns no more about it
    try:
        schema = await schema_of(context, asked.visitor, model)
    except ImagenError as error:
        raise as_told(error, asked.visitor) from error
    given = asked.given
    words = in_words_of(
        schema,
        asked.wish,
        model=model.base,
        said={*options, *texts},
        pictures=0 if given is None else len(given.pictures),
        masked=given is not None and given.mask is not None,
    )
    visitor, words = await _for_person(context, asked, words, schema)
    content = await asked.content() if HEADER in request.headers else None
    mark = read_mark(request, content, scope=scope_of(visitor), now=context.app.clock.now())
    return Job(
        asked=asked,
        visitor=visitor,
        model=model,
        ours=ours,
        words=words,
        options=options,
        texts=texts,
        mark=mark,
    )


def _model_of(context: Context, asked: Asked) -> ModelRef:
    """The model that is meant; one that a preset names where the request names none."""
    wanted, preset = asked.wish.model, asked.extras.get("preset")
    if wanted is None and isinstance(preset, str):
        wanted = find_preset(context.app.settings.presets, preset).fields.get("model")
    return resolve_model(context, name_of_model(context, wanted, edits=asked.given is not None))


def _beside(context: Context, asked: Asked, model: ModelRef) -> tuple[Wish, dict[str, Any], dict[str, str]]:
    """What stands beside OpenAI's words: this gateway's own, and the model's."""
    extras, texts = asked.extras, dict[str, str]()
    if "model_name" in extras:
        raise InvalidRequest("model_name: which model is meant stands in `model`")
    if asked.as_text:
        extras, texts = read_texts(extras)
    ours, options = read_wish(
        {**extras, "model_name": str(model), "prompt": asked.wish.prompt}, context.app.settings.presets
    )
    check_options(texts)
    return ours, options, texts


async def _for_person(context: Context, asked: Asked, words: Words, schema: Any) -> tuple[Visitor, Words]:
    """The visitor with the person for whom they ask behind their name: `KEY/PERSON`.

    Only what comes before the slash says who it is, and a key has no slash in its name, so that nobody becomes another.
    Where a budget counts what this caller asks for, it counts it under the caller's own name alone: then the person is not
    noted, as new names would be new money. Nor for callers without a key, who find their predictions, and what they have
    spent, by their name.
    """
    visitor, person = asked.visitor, asked.wish.person
    if person is None:
        return visitor, words
    if schema is not None and "user_id" in schema.get("properties", {}) and "user_id" not in asked.extras:
        words.options["user_id"] = person
        words.origins["user_id"] = "user"
    name = clean_caller(person)[:_LONGEST_PERSON]
    identified = visitor.admin or visitor.caller.key is not None
    if not identified or not name or await _is_budgeted(context, visitor):
        field = "safety_identifier" if asked.wish.safety_identifier else "user"
        told = () if "user_id" in words.options else (field,)
        return visitor, msgspec.structs.replace(words, unmapped=(*words.unmapped, *told))
    caller = msgspec.structs.replace(visitor.caller, name=f"{visitor.caller.name}/{name}")
    return msgspec.structs.replace(visitor, caller=caller), words


async def _is_budgeted(context: Context, visitor: Visitor) -> bool:
    """Whether a budget goes by the name of this caller."""
    found = await context.app.budgets.list_for(visitor.caller)
    return any(standing.balance.budget.scope == "caller" for standing in found)


async def _order(context: Context, request: Request, job: Job) -> Order:
    """The checked order, its pictures on their way to the model.

    Raises:
        ImagenError: it cannot be carried out.
    """
    wanted = request_of(context, job.visitor, job.ours, {}, job.texts)
    try:
        pictures = await _named(context, request, job) | await _addresses(context, request, job)
    except ImagenError as error:
        raise as_told(error, job.visitor) from error
    wanted = msgspec.structs.replace(
        wanted,
        options={**wanted.options, **job.words.options, **job.options, **pictures},
        count=1 if "n" in job.words.unmapped else job.asked.wish.count,
    )
    try:
        return await prepare_request(
            context, job.visitor, wanted, lane=Lane.INTERACTIVE, keep=keeps(context, job.ours)
        )
    except ImagenError as error:
        raise in_callers_words(error, job.words.origins) from error


async def _named(context: Context, request: Request, job: Job) -> dict[str, Any]:
    """The pictures that the caller named by the model's own parameters: those kept here as the model can have them.

    Raises:
        InvalidInput: an address that is none.
    """

    async def usable(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value  # the model's schema says what is wrong with it
        async with at_hand(context, request, Picture(field=name, address=value)) as found:
            if found.file is not None:
                return await address_of(job.visitor.backend, found)
        return await asyncio.to_thread(check_address, value, field=name)

    values: dict[str, Any] = {}
    for name in (*EDIT_KEYS, *GUIDE_KEYS):
        given = job.options.get(name)
        if isinstance(given, list):
            values[name] = [await usable(name, each) for each in given]
        elif given is not None:
            values[name] = await usable(name, given)
    return values


async def _addresses(context: Context, request: Request, job: Job) -> dict[str, Any]:
    """The pictures of an edit, as the model's parameters take them; one after the other, so that few bytes are held."""
    given, words = job.asked.given, job.words
    if given is None or words.picture_key is None:
        return {}
    backend = job.visitor.backend
    addresses = []
    for picture in given.pictures:
        async with at_hand(context, request, picture) as found:
            addresses.append(await address_of(backend, found))
    values: dict[str, Any] = {words.picture_key: addresses if words.picture_list else addresses[0]}
    if given.mask is not None:
        async with at_hand(context, request, given.mask) as found:
            mask = await as_mask(found, black_is_edited=words.black_is_edited)
            values[MASK] = await address_of(backend, mask)
    return values


# --- buying -------------------------------------------------------------------------------------------------

Making = Callable[[Turn], Awaitable[Made]]
"""Carries an order out, told about by an observer."""


async def order_for(context: Context, request: Request, job: Job) -> Making:
    """Check everything that can be checked; what comes back carries it out, once.

    Raises:
        ImagenError: it cannot be carried out; nothing was bought.
    """
    if job.mark is not None:
        return await _once(context, request, job, job.mark)
    left = await _left_before(context, request, job)
    if left is not None:
        return _made_by(context, request, job, left, None)
    order = await _order(context, request, job)
    run = Run(goes_on=keeps(context, job.ours))
    return _made_by(context, request, job, run, lambda: context.app.gateway.carry_out(order, observer=run))


async def _left_before(context: Context, request: Request, job: Job) -> Run | None:
    """What the very same request has begun, whose caller went away before the answer."""
    if not context.left_runs:
        return None
    asked = await _fingerprint(request, job)
    return context.left_runs.take(scope=scope_of(job.visitor), fingerprint=asked)


async def _fingerprint(request: Request, job: Job) -> str:
    return await asyncio.to_thread(fingerprint, request, await job.asked.content())


def _made_by(context: Context, request: Request, job: Job, run: Run, work: Work | None) -> Making:
    """What comes of a run, which is there for the same request when the caller leaves before the answer.

    Args:
        context: of the server.
        request: of the caller.
        job: what they want.
        run: what makes it.
        work: begins it; None where it was left before, and is under way.
    """

    async def left() -> None:
        if run.leave(patience_with(request)):
            asked = await _fingerprint(request, job)
            context.left_runs.add(run, scope=scope_of(job.visitor), fingerprint=asked)

    async def make(turn: Turn) -> Made:
        try:
            outcomes = await run.outcomes(context, request, turn, work=work)
        except Gone:
            await left()
            raise
        except Draining as error:
            if turn.prediction_id is None:
                raise
            raise _handed_over(error, turn.prediction_id, None, turn.headers()) from error
        headers = turn.headers() | (dict(REPLAYED) if work is None else {})
        made = await _made(context, request, job, outcomes, headers=headers)
        return msgspec.structs.replace(made, left=left)

    return make


async def _once(context: Context, request: Request, job: Job, mark: Idempotency) -> Making:
    """The same for a request that may come again: taken on durably, and answered from what was written down."""
    batch = await known(context, job.visitor, mark)
    replayed = batch is not None
    if batch is None:
        order = await _order(context, request, job)
        batch = await accept_one(context, request, job.visitor, job.ours, order, mark=mark, outlives=False)
    taken: Batch = batch

    async def make(turn: Turn) -> Made:  # noqa: ARG001 - others work on it, and tell nobody here
        headers = dict(REPLAYED) if replayed else {}
        try:
            await ended(context, request, job.visitor, taken, seconds=taken.remembered.deadline_seconds)
        except (Draining, WaitTimeout) as error:
            # It goes on, and whoever asks with the same key again gets it.
            raise FailedError(error, cost=None, headers=headers | {RETRY: "true"}) from error
        except ImagenError as error:
            raise FailedError(error, cost=None, headers=headers) from error
        (item,) = await all_items(context, taken.id)
        outcomes = await context.app.batches.outcomes(item)
        if all(outcome.error is not None for outcome in outcomes):
            # What was refused before it ran is known by the item alone.
            told = in_callers_words(as_told(error_of(item), job.visitor), job.words.origins)
            ids = ", ".join(outcome.prediction.id for outcome in outcomes)
            known_ids = {PREDICTION_ID: ids} if ids else {}
            raise FailedError(told, cost=item.cost, headers=headers | job.headers() | known_ids)
        return await _made(context, request, job, outcomes, headers=headers)

    return make


async def _made(
    context: Context, request: Request, job: Job, outcomes: Sequence[Outcome], *, headers: dict[str, str]
) -> Made:
    """The pictures of all predictions.

    Raises:
        FailedError: there is none.
    """
    shots: list[Shot] = []
    failures: list[Failure] = []
    for outcome in outcomes:
        if outcome.error is None:
            shots += await shots_of(context, request, job.visitor.backend, outcome)
            continue
        told = in_callers_words(as_told(outcome.error, job.visitor), job.words.origins)
        failures.append(
            Failure(error=told, prediction_id=outcome.prediction.id, urls=outcome.prediction.output)
        )
    ids = ", ".join(outcome.prediction.id for outcome in outcomes)
    made = Made(shots=shots, failures=failures, outcomes=outcomes, headers=headers)
    told_headers = headers | job.headers() | {PREDICTION_ID: ids}
    if not shots:
        raise FailedError(
            failures[0].error,
            cost=made.cost,
            headers=told_headers,
            prediction_ids=made.prediction_ids,
            failures=failures,
        )
    cached = next((found for outcome in outcomes if (found := cache_header(outcome))), {})
    return msgspec.structs.replace(made, headers=told_headers | cost_header(made.cost) | cached)


def _sendable(text: str) -> str:
    """As a header can carry it."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


async def fetch_pictures(
    context: Context, request: Request, job: Job, made: Made
) -> tuple[Made, list[Whole]]:
    """The pictures themselves; of those that could not be had their addresses are told among the failures.

    Raises:
        FailedError: none could be had.
    """
    try:
        found = await context.stay(
            request, fetch_all(context, job.visitor.backend, made.shots), goes_on=False
        )
    except Gone:
        if made.left is not None:
            await made.left()
        raise
    except Draining as error:
        raise _handed_over(error, made.shots[0].prediction_id, made.cost, made.headers) from error
    pictures = [one for one in found if isinstance(one, Whole)]
    lost = [
        Failure(error=error, prediction_id=shot.prediction_id, urls=(shot.address,))
        for shot, error in zip(made.shots, found, strict=True)
        if isinstance(error, ImagenError)
    ]
    if not pictures:
        raise FailedError(
            _undelivered(lost),
            cost=made.cost,
            headers=made.headers,
            prediction_ids=made.prediction_ids,
            failures=[*made.failures, *lost],
        )
    return msgspec.structs.replace(made, failures=[*made.failures, *lost], lost=len(lost)), pictures


def _undelivered(lost: Sequence[Failure]) -> ImagenError:
    """That there are pictures, and none of them came here."""
    first = lost[0].error
    if isinstance(first, OutputDefective):
        return first
    return DeliveryError(
        f"the pictures were made, and could not be fetched: {first.detail}",
        prediction_id=lost[0].prediction_id,
        hint=_FETCH_IT,
    )


def _handed_over(
    error: Draining, prediction_id: str, cost: Usd | None, headers: dict[str, str]
) -> FailedError:
    """What was bought, and the process ended before it could be answered."""
    lost = WaitTimeout(error.detail, prediction_id=prediction_id, hint=_HANDED_OVER)
    return FailedError(lost, cost=cost, headers=headers)
