"""What the documented face asks for, read and checked: one wish, as a request of its own or as a task of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

from imagen.catalog.model import STEPS_KEYS
from imagen.decoding import convert
from imagen.domain.identifiers import new_id
from imagen.domain.key import check_scope
from imagen.domain.limits import Lane, Patience
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import read_dollars
from imagen.domain.nesting import is_shallow
from imagen.domain.plain_words import what_is_allowed
from imagen.domain.preset import Preset, find_preset, with_preset
from imagen.domain.request import MAX_PROMPT_CHARACTERS, GenerationRequest
from imagen.errors import (
    BackendUnauthenticated,
    ConfigError,
    ImagenError,
    InvalidInput,
    InvalidRequest,
    NotFound,
    Problem,
    Unauthenticated,
)
from imagen.server.access import WRONG_TOKEN, Visitor
from imagen.server.answers import ModelNotSupported
from imagen.server.bodies import to_value
from imagen.server.context import Context
from imagen.service.deliver import Destination
from imagen.service.prepare import Order

DEFAULT_EXTENSION = ".jpg"
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".svg", ".bmp", ".tif", ".tiff", ".heic", ".jxl"}
)
"""What is taken as the extension of a file name; any other ending is a part of the name."""
_BATCH_SECONDS = 86_400.0
"""A batch waits as long as its caller stays."""
_LONGEST_NAME = 200
_MOST_OPTIONS, _LONGEST_OPTION, _DEEPEST_OPTION = 200, 100, 32
"""No model has so many parameters, such long names or such nested values; an unknown one costs a search for what was
meant, and a deep one may be read here and be too deep for the next who handles it."""
_LARGEST_NUMBER = 2**63 - 1
_UNLIMITED_REFUSALS = 1_000_000
_NOT_MODEL = "Which model is meant stands in `model_name`, not in `model`."


# For readers of the document alone: what does not fit is refused with sentences of our own.
Text = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS})]
FileName = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": _LONGEST_NAME})]
DraftName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Seconds = Annotated[float, msgspec.Meta(extra_json_schema={"exclusiveMinimum": 0, "maximum": 86_400})]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One picture, or several of one prompt. Whatever else stands beside these fields is a parameter of the model.

    Attributes:
        model_name: a name of the catalog such as `flux-dev`, or `owner/name[:version]`.
        prompt: what the picture shall show.
        output_filename: how the caller names it; an extension is kept, else it gets `.jpg`, and several get `_1`, `_2`, ….
        external_semaphore_id: a named limit to wait for.
        store: keep the pictures, so that they outlive the hour.
        timeout: seconds until the prediction must have ended.
        max_cost: US dollars; refuse before buying when it would cost more.
        cache: with a seed, or for a model without one, take pictures that were made before, and keep these; by default
            as the gateway is set.
        preset: a named set of inputs that holds where nothing is said here; it may name the model too.
        tier: `preview` has a cheap model make it, and keeps the wish for `POST /predictions/{prediction_id}/promote`.
        draft: a name for what the previews of one wish have in common, so that what choosing saves can be told; the
            answer tells the one that was chosen when none is given.
    """

    model_name: str
    prompt: Text
    output_filename: FileName | None = None
    external_semaphore_id: str | None = None
    store: bool = False
    timeout: Seconds | None = None
    max_cost: float | str | None = None
    cache: bool | None = None
    preset: str | None = None
    tier: Literal["preview"] | None = None
    draft: DraftName | None = None


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's own Replicate account; for durable work the token is kept encrypted until that has ended, else nowhere."""

    replicate_api_token: str


class _WithCredentials(msgspec.Struct, frozen=True):
    credentials: Credentials


class MissingField(InvalidInput):
    """Required fields are not there. Its sentence is the documented one, which names the first of them.

    Args:
        names: which.
        told: the sentence, where it is another one.
        hint: what to do.
    """

    def __init__(self, names: Sequence[str], *, told: str = "", hint: str | None = None) -> None:
        super().__init__([Problem(name, "it is required") for name in names], hint=hint)
        self.detail = told or f"Missing required field: {names[0]}"


_KNOWN = frozenset(Wish.__struct_fields__)
_TYPES: Mapping[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Wish)}
_BESIDES = frozenset({"credentials"})


class DocumentedRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the documented face says of a model beyond the model's own schema; it goes by the documented name."""

    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}
    ranges: Mapping[str, tuple[float, float]] = {}


DOCUMENTED_RULES: Mapping[str, DocumentedRules] = {
    "flux-kontext-max": DocumentedRules(required=("input_image",)),
    "qwen-image": DocumentedRules(
        defaults={"num_inference_steps": 50, "guidance": 4.0}, ranges={"lora_scale": (0, 2)}
    ),
}


def read_wish(
    fields: Mapping[str, Any], presets: Mapping[str, Preset] = MappingProxyType({})
) -> tuple[Wish, dict[str, Any]]:
    """A wish and the model's own parameters beside it.

    Args:
        fields: as they were sent.
        presets: named sets of inputs; one of them may name the model.

    Raises:
        MissingField: a required field is not there.
        InvalidInput: naming each wrong field and what is allowed.
    """
    preset = fields.get("preset")
    if isinstance(preset, str) and fields.get("model_name") in (None, ""):
        model = find_preset(presets, preset).fields.get("model")
        if model is None and "model" not in fields:
            raise InvalidRequest(
                f"Missing required field: model_name; the preset {preset[:80]!r} names no model",
                hint="Name one in `model_name`.",
            )
        fields = fields if model is None else {**fields, "model_name": model}
    missing = [name for name in ("model_name", "prompt") if fields.get(name) in (None, "")]
    if missing:
        raise MissingField(
            missing, hint=_NOT_MODEL if "model_name" in missing and "model" in fields else None
        )
    check_credentials(fields)
    known = {name: value for name, value in fields.items() if name in _KNOWN}
    options = {
        name: value
        for name, value in fields.items()
        if name not in _KNOWN and name not in _BESIDES and value is not None
    }
    try:
        wish = convert(known, Wish)
    except msgspec.ValidationError:
        raise InvalidInput([*_converted(known)[1], *wrong_options(options)]) from None
    check_options(options)
    if wish.output_filename is not None:
        check_name(wish.output_filename)
    if wish.draft is not None and wish.tier is None:
        raise InvalidInput([Problem("draft", "it belongs to tier: preview")])
    return wish, options


def read_texts(texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields that came as text, as those of CSV and of a query do: those of a wish by their types, and the others.

    Returns:
        Fields for `read_wish`, and the model's own parameters, which are still text.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    known, problems = _converted({name: text for name, text in texts.items() if name in _KNOWN}, strict=False)
    others = {name: text for name, text in texts.items() if name not in _KNOWN}
    problems += wrong_options(others)
    if problems:
        raise InvalidInput(problems)
    return known, others


def _converted(fields: Mapping[str, Any], *, strict: bool = True) -> tuple[dict[str, Any], list[Problem]]:
    """Fields of a wish by their types, each for itself, and what is wrong with the others."""
    found, problems = {}, []
    for name, value in fields.items():
        try:
            found[name] = convert(value, _TYPES[name], strict=strict)
        except msgspec.ValidationError as error:
            problems.append(Problem(name, what_is_allowed(error, _TYPES[name])))
    return found, problems


async def prepare_order(
    context: Context,
    visitor: Visitor,
    wish: Wish,
    options: Mapping[str, Any],
    *,
    lane: Lane,
    texts: Mapping[str, str] = {},
) -> Order:
    """Check a wish against its model, the key and the money; nothing is bought yet.

    Args:
        context: of the server.
        visitor: who asks.
        wish: what for.
        options: the model's own parameters.
        lane: whose turn it is first.
        texts: more of them as text, to be read by the types of the model; none of them is among `options`.

    Raises:
        InvalidRequest, Refused: it cannot be carried out.
    """
    keep = keeps(context, wish)
    if wish.tier != "preview":
        request = request_of(context, visitor, wish, options, texts)
        return await prepare_request(context, visitor, request, lane=lane, keep=keep)
    # The seed is the preview's; its final takes it over where it takes one.
    seed = _seed_of(options, texts)
    options, texts = (
        {name: value for name, value in given.items() if name != "seed"} for given in (options, texts)
    )
    request = request_of(context, visitor, wish, options, texts)
    drafts, backend, caller = context.app.drafts, visitor.backend, visitor.caller
    with _in_callers_words(visitor):
        final = await drafts.check_final(request, backend=backend, caller=caller)
        check_scope(visitor.models, drafts.cheap_model(request, ModelRef.parse(final.intents[0][0].model)))
        return await drafts.prepare_preview(
            request,
            final,
            caller=caller,
            lane=lane,
            patience=_patience(context, lane),
            destination=_shelf(context, keep=keep),
            draft=wish.draft or drafts.new_draft(),
            seed=seed,
        )


def _seed_of(options: Mapping[str, Any], texts: Mapping[str, str]) -> int | None:
    """The seed of a preview.

    Raises:
        InvalidInput: it is no such number.
    """
    found = options.get("seed", texts.get("seed"))
    if found is None:
        return None
    number = int(found) if isinstance(found, str) and found.isdecimal() and len(found) < 40 else found
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _LARGEST_NUMBER:
        raise InvalidInput([Problem("seed", f"it must be a whole number from 0 to {_LARGEST_NUMBER}")])
    return number


def request_of(
    context: Context,
    visitor: Visitor,
    wish: Wish,
    options: Mapping[str, Any],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> GenerationRequest:
    """A wish in the words that every backend can translate, as far as its key allows; else as `prepare_order`.

    Raises:
        InvalidRequest, PermissionDenied: it makes no sense, or the key is not good for the model.
    """
    app = context.app
    try:
        model = app.catalog.resolve(wish.model_name)
    except NotFound as error:
        raise ModelNotSupported(wish.model_name, hint=error.hint) from error
    check_scope(visitor.models, model)
    request = GenerationRequest(
        prompt=wish.prompt,
        model=model,
        text_options=texts,
        max_cost=None if wish.max_cost is None else read_dollars(wish.max_cost, field="max_cost"),
        deadline_seconds=wish.timeout,
        semaphore=wish.external_semaphore_id,
        cache=wish.cache,
        resume=False,
        plain=True,
    )
    request = with_preset(request, wish.preset, app.settings.presets, resolve=app.catalog.resolve)
    documented = _as_documented(wish.model_name, options, texts, offered=request.offers)
    return msgspec.structs.replace(request, options=documented)


async def prepare_request(
    context: Context,
    visitor: Visitor,
    request: GenerationRequest,
    *,
    lane: Lane,
    keep: bool,
    watched: bool = False,
) -> Order:
    """Check a request against its model, the key and the money; nothing is bought yet.

    Args:
        context: of the server.
        visitor: who asks.
        request: what for.
        lane: whose turn it is first.
        keep: whether the pictures are kept here.
        watched: somebody looks at the progress.

    Raises:
        InvalidRequest, Refused: it cannot be carried out.
    """
    with _in_callers_words(visitor):
        return await context.app.gateway.prepare(
            request,
            backend=visitor.backend,
            caller=visitor.caller,
            lane=lane,
            patience=_patience(context, lane),
            destination=_shelf(context, keep=keep),
            watched=watched,
        )


def _patience(context: Context, lane: Lane) -> Patience:
    wait = _BATCH_SECONDS if lane is Lane.BATCH else context.app.settings.limits.wait.total_seconds()
    return Patience(line_seconds=wait, refusals=_UNLIMITED_REFUSALS, refusal_seconds=wait)


def _shelf(context: Context, *, keep: bool) -> Destination | None:
    return Destination(shelf=True, metadata=context.app.settings.metadata) if keep else None


@contextmanager
def _in_callers_words(visitor: Visitor) -> Iterator[None]:
    """What keeps an order from being made, as its caller is told."""
    try:
        yield
    except ImagenError as error:
        if isinstance(error, InvalidInput) and any(problem.field == "model" for problem in error.problems):
            error.hint = _NOT_MODEL
        raise as_told(error, visitor) from error


def keeps(context: Context, wish: Wish) -> bool:
    """Whether the pictures of a wish are kept here."""
    return wish.store or context.app.settings.pictures.keep


def as_told(error: ImagenError, visitor: Visitor) -> ImagenError:
    """The error as the caller is told: whose token was refused makes a difference."""
    if visitor.own_token and isinstance(error, BackendUnauthenticated):
        return Unauthenticated(WRONG_TOKEN)
    if isinstance(error, Unauthenticated):
        return ConfigError(
            "this gateway has no Replicate API token of its own",
            hint="Its operator sets REPLICATE_API_TOKEN; or send credentials.replicate_api_token of your own.",
        )
    return error


def check_credentials(fields: Mapping[str, Any]) -> None:
    """Refuse `credentials` of another shape also where they are not needed, as the caller means something by them.

    Raises:
        InvalidInput: naming the field.
    """
    if fields.get("credentials") is not None:
        to_value({"credentials": fields["credentials"]}, _WithCredentials)


def name_for(wish: Wish, context: Context) -> str:
    """The name that the caller gave, or one that no other picture has."""
    if wish.output_filename is not None:
        return wish.output_filename
    model = wish.model_name.strip().rpartition("/")[2].partition(":")[0]
    return f"{model}_{new_id('', context.app.clock.now()).strip('_')}"


def file_names(name: str, count: int) -> list[str]:
    """The names of `count` pictures: the given extension or `.jpg`, and numbers from 1 where there are several."""
    given = PurePosixPath(name).suffix
    extension = given if given.lower() in EXTENSIONS else DEFAULT_EXTENSION
    stem = name.removesuffix(given) if given.lower() in EXTENSIONS else name
    if count == 1:
        return [stem + extension]
    return [f"{stem}_{number}{extension}" for number in range(1, count + 1)]


def _as_documented(
    model_name: str, options: Mapping[str, Any], texts: Mapping[str, str], *, offered: Mapping[str, Any]
) -> Mapping[str, Any]:
    rules = DOCUMENTED_RULES.get(model_name)
    if rules is None:
        return options
    problems = [
        Problem(name, f"it is required by {model_name}")
        for name in rules.required
        if not (options.get(name) or texts.get(name))
    ]
    for name, (least, most) in rules.ranges.items():
        value = _as_number(texts[name]) if name in texts else options.get(name)
        if isinstance(value, int | float) and not least <= value <= most:
            problems.append(Problem(name, f"{value} is not allowed; it must be from {least} to {most}"))
    if problems:
        raise InvalidInput(problems, subject=model_name)
    said = {*texts, *offered, *(STEPS_KEYS if "steps" in offered else ())}
    return {name: value for name, value in rules.defaults.items() if name not in said} | dict(options)


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # the model's own schema says so


def check_name(name: str) -> None:
    """A name is only told back, but whoever writes files by it shall not be led astray."""
    bad = not name.strip() or name.strip(". ") == "" or "/" in name or "\\" in name or not name.isprintable()
    if bad or len(name) > _LONGEST_NAME:
        raise InvalidInput(
            [
                Problem(
                    "output_filename",
                    f"it must be a file name of 1 to {_LONGEST_NAME} printable characters without / and \\",
                )
            ]
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no model's parameters can be, before it is compared with any.

    Raises:
        InvalidInput: naming each of them.
    """
    if problems := wrong_options(options):
        raise InvalidInput(problems)


def wrong_options(options: Mapping[str, Any]) -> list[Problem]:
    """What of a model's parameters no model's can be."""
    if long := [name for name in options if len(name) > _LONGEST_OPTION]:
        return [Problem(f"{long[0][:_LONGEST_OPTION]}…", f"a name has at most {_LONGEST_OPTION} characters")]
    if len(options) > _MOST_OPTIONS:
        told = f"it has {len(options)} parameters of the model; at most {_MOST_OPTIONS} are read"
        return [Problem("body", told)]
    problems = []
    for name, value in options.items():
        if not is_shallow(value, _DEEPEST_OPTION):
            problems.append(Problem(name, f"it is nested deeper than {_DEEPEST_OPTION} levels"))
        elif isinstance(value, int) and not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
            allowed = f"from -{_LARGEST_NUMBER} to {_LARGEST_NUMBER}, as a number of 64 bits is"
            problems.append(Problem(name, f"it must be {allowed}"))
    return problems
