"""What each tool takes, as structs; their JSON schemas are what agents read, so they say what people would ask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from imagen.decoding import convert
from imagen.domain.choice import ABILITIES, MOST_ITERATIONS
from imagen.domain.plain_words import place_of, what_is_allowed
from imagen.domain.request import MAX_COUNT
from imagen.errors import InvalidInput, Problem

T = TypeVar("T", bound=msgspec.Struct)
_LONGEST_NAME = 80
LONGEST_ID = 64


def _told(text: str, **schema: Any) -> msgspec.Meta:
    """A description, and limits for readers; the domain refuses with sentences of its own."""
    return msgspec.Meta(description=text, extra_json_schema=schema or None)


_Prompt = Annotated[str, _told("What the picture shall show, in words.", minLength=1)]
_Model = Annotated[
    str,
    _told("A name such as flux-dev, or owner/name[:version]; the usual one when left out. See list_models."),
]
_Seed = Annotated[
    int, _told("The same seed, prompt and model give a like picture. Chosen when left out.", minimum=0)
]
_Count = Annotated[int, _told("How many pictures.", minimum=1, maximum=MAX_COUNT)]
_Pixels = Annotated[int, _told("Pixels; width and height together, in place of aspect_ratio.", minimum=1)]
_Options = Annotated[
    dict[str, Any],
    _told("The model's own parameters by their own names; describe_model tells them."),
]
_Most = Annotated[float, _told("US dollars: refuse before buying what could cost more.", exclusiveMinimum=0)]
_Consent = Annotated[
    float,
    _told(
        "US dollars that the user has agreed to pay for this call; only needed when an earlier answer asked for it.",
        minimum=0,
    ),
]
_Output = Annotated[
    str, _told("A file, a folder/ or a template such as out/{prompt}-{seed}.png; never overwrites.")
]


class Picture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes a picture, and can be quoted."""

    prompt: _Prompt
    model: _Model | None = None
    aspect_ratio: Annotated[str, _told("W:H such as 16:9.")] | None = None
    width: _Pixels | None = None
    height: _Pixels | None = None
    seed: _Seed | None = None
    count: _Count = 1
    negative_prompt: Annotated[str, _told("What to avoid, for models that can.")] | None = None
    output_format: Annotated[str, _told("Such as png, jpg or webp, as the model allows.")] | None = None
    options: _Options = msgspec.field(default_factory=dict)
    max_cost_usd: _Most | None = None


class Generate(Picture, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `generate_image` where callers cannot say where pictures go."""

    confirm_cost_usd: _Consent | None = None
    thumbnail: Annotated[bool, _told("Also return a small JPEG of the first picture, to look at it.")] = False


class GenerateHere(Generate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same on the caller's own machine."""

    output: _Output | None = None


class Edit(Generate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `edit_image` over HTTP."""

    image: Annotated[
        str, _told("The picture to work on: an https address, a data: URI, or the link of an earlier answer.")
    ]


class EditHere(GenerateHere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same on the caller's own machine."""

    image: Annotated[str, _told("The picture to work on: a path on this machine, or an https address.")]


class Estimate(Picture, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `estimate_cost`."""

    image: (
        Annotated[str, _told("The picture to work on, as in edit_image, where an edit is to be quoted.")]
        | None
    ) = None


class Recommend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `recommend_model`."""

    budget_usd: Annotated[float, _told("US dollars for all of it.", exclusiveMinimum=0)]
    iterations: Annotated[
        int, _told("How many pictures that is to pay for.", minimum=1, maximum=MOST_ITERATIONS)
    ] = 1
    quality: Annotated[
        Literal["standard", "high"], _told("high: the best picture that the budget pays for.")
    ] = "standard"
    prompt: Annotated[str, _told("What the pictures are to show; what it asks for counts.")] | None = None
    needs: Annotated[
        list[Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ABILITIES)})]],
        _told("What the model must be able to do."),
    ] = []
    within_seconds: Annotated[float, _told("How long a picture may take.", exclusiveMinimum=0)] | None = None


class ListModels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `list_models`."""

    search: (
        Annotated[str, _told("Words of names, descriptions or abilities, such as 'edit' or 'flux'.")] | None
    ) = None


class DescribeModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `describe_model`."""

    model: Annotated[str, _told("A name such as flux-dev, or owner/name[:version].")]


class OnePrediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `get_prediction` and `cancel_prediction`."""

    id: Annotated[str, _told("As an earlier answer told it: pred_…", minLength=1, maxLength=LONGEST_ID)]

    def checked_id(self) -> str:
        """The id, where it can be one.

        Raises:
            InvalidInput: it is too long for that.
        """
        if not 1 <= len(self.id) <= LONGEST_ID:
            problem = Problem("id", f"it has {len(self.id)} characters; there must be 1 to {LONGEST_ID}")
            raise InvalidInput([problem], subject="the arguments", hint="generate_image tells the ids.")
        return self.id


class Usage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of `usage_report`."""

    since: (
        Annotated[str, _told("Only what ended then or later: today, yesterday, 7d, 24h, 2026-11-01.")] | None
    ) = None
    until: Annotated[str, _told("Only what ended before then, in the same forms.")] | None = None
    by: (
        Annotated[
            Literal["model", "caller", "backend", "day", "key", "tier"],
            _told("What to add up by; model when left out."),
        ]
        | None
    ) = None


def read_arguments(given: Mapping[str, Any], kind: type[T]) -> T:
    """What an agent sent as the arguments of a tool; null says as much as leaving it out.

    Raises:
        InvalidInput: naming the argument and what is allowed.
    """
    said = {name: value for name, value in given.items() if value is not None}
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    problems = [
        Problem(name[:_LONGEST_NAME], "there is no such argument") for name in said if name not in fields
    ]
    hint = None
    if problems:
        hint = f"It takes {', '.join(fields)}."
        if "options" in fields:
            hint += " A model's own parameters go into options."
    problems += [
        Problem(name, "it is required")
        for name, field in fields.items()
        if field.required and name not in said
    ]
    if problems:
        raise InvalidInput(problems, subject="the arguments", hint=hint)
    try:
        return convert(said, kind)
    except msgspec.ValidationError as error:
        problem = Problem(place_of(error) or "arguments", what_is_allowed(error, kind))
        raise InvalidInput([problem], subject="the arguments") from None


@cache
def schema_of(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    """JSON Schema of a struct in one piece, as some agents follow no `$ref`."""
    (found,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
    return {**_in_one_piece(found, parts), "type": "object"}


@cache
def argument_schema(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    """The same of arguments: what may be left out is not also said to be allowed as null, though it is."""
    whole = dict(schema_of(kind))
    whole["properties"] = {name: _required(told) for name, told in whole.get("properties", {}).items()}
    whole.pop("description", None)
    return whole


def _in_one_piece(told: Any, parts: Mapping[str, Any]) -> Any:
    match told:
        case {"$ref": str(name), **beside}:
            return {**_in_one_piece(parts[name], parts), **beside}
        case {
            "title": str(),
            "description": str(text),
            "properties": dict(),
        }:
            # A struct: of its docstring one line.
            rest = {name: value for name, value in told.items() if name != "title"}
            return _in_one_piece({**rest, "description": text.partition("\n")[0]}, parts)
        case dict():
            return {name: _in_one_piece(value, parts) for name, value in told.items()}
        case list():
            return [_in_one_piece(one, parts) for one in told]
        case _:
            return told


def _required(told: dict[str, Any]) -> dict[str, Any]:
    """A property without the null that stands for leaving it out."""
    kinds = [one for one in told.get("anyOf", ()) if one.get("type") != "null"]
    if len(kinds) != 1 or len(kinds) == len(told["anyOf"]):
        return told
    rest = {name: value for name, value in told.items() if name not in {"anyOf", "default"}}
    return {**kinds[0], **rest}
