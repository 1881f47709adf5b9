"""What a request in OpenAI's words means: for which model, in whose name, with which of its parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from imagen.catalog.model import EDIT_KEYS, GUIDE_KEYS
from imagen.domain.batch import Idempotency
from imagen.domain.limits import Lane
from imagen.domain.model_ref import ModelRef
from imagen.domain.preset import find_preset
from imagen.errors import ImagenError, InvalidRequest
from imagen.identity import clean_caller
from imagen.pictures import check_address
from imagen.server.access import Visitor, scope_of
from imagen.server.context import Context
from imagen.server.headers import UNMAPPED, adapted
from imagen.server.idempotency import HEADER, read_mark
from imagen.server.openai.errors import in_callers_words
from imagen.server.openai.mapping import MASK, Words, in_words_of
from imagen.server.openai.names import gives_pictures, name_of_model, resolve_model, schema_of
from imagen.server.openai.uploads import Given, Picture, address_of, as_mask, at_hand, told_content
from imagen.server.openai.wish import ImagesWish, refuse_reserved
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
from imagen.service.prepare import Order

_LONGEST_PERSON = 64
_GIVEN = "given"
"""What is said of something that is no word."""


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
    # Whose key is not good for the model learns no more about it.
    request_of(context, asked.visitor, ours, {})
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


async def order_of(context: Context, request: Request, job: Job) -> Order:
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


def _sendable(text: str) -> str:
    """As a header can carry it."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)
