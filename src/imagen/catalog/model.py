"""One model as we know it: what it takes, what it gives, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from imagen.domain.model_ref import ModelRef
from imagen.domain.pricing import PriceFact, Scalar

DEFAULT_DEADLINE_SECONDS: Final = 120

ParameterType = Literal["string", "integer", "number", "boolean", "array"]
Output = Literal["uri", "uris", "unknown"]
"""One URL, a list of URLs, or nobody wrote down which: then be ready for both."""

Ability = Literal[
    "seed",
    "negative_prompt",
    "edit",
    "mask",
    "several_outputs",
    "transparent_background",
    "typography",
    "vector",
    "photo",
]
"""What a model can do. The last three are no parameters: they are what its maker says that it does well."""

Strength = Literal["typography", "vector", "photo"]
"""Letters that can be read; drawings without pixels; pictures that pass for photographs."""

Quality = Annotated[int, msgspec.Meta(ge=1, le=5)]

EDIT_KEYS: Final = ("input_images", "input_image", "image_input", "images", "image")
"""The names under which models take a picture to work on."""

GUIDE_KEYS: Final = ("image_prompt", "image_reference", "subject_reference")
"""The names under which models take a picture that only guides them."""

COUNT_KEYS: Final = ("num_outputs", "number_of_images")
STEPS_KEYS: Final = ("num_inference_steps", "steps")


class Parameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input of a model, under the name that the model itself gives it.

    Args:
        name: the key in the input.
        type: JSON type of its value.
        description: what it does, in a few words.
        required: the model refuses to run without it.
        default: what the model uses when it is left out; None when that is nothing, or unknown.
        minimum: smallest value allowed.
        maximum: largest value allowed.
        enum: the only values allowed; None when any goes, or when nobody wrote them down.
        items: of an array, the type of its members.
        format: `uri` for a file: an https URL or a data URI.
        max_length: of a string, the most characters.
        max_items: of an array, the most members.
        needs: other parameters that must come with it.
        secret: its value must never be logged or stored.
        deprecated: the model has a newer parameter for the same.
    """

    name: str
    type: ParameterType
    description: str
    required: bool = False
    default: Scalar | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    enum: tuple[str | int | float, ...] | None = None
    items: Literal["string", "number"] | None = None
    format: Literal["uri"] | None = None
    max_length: int | None = None
    max_items: int | None = None
    needs: tuple[str, ...] = ()
    secret: bool = False
    deprecated: bool = False

    def to_schema(self) -> dict[str, Any]:
        """Its JSON Schema (draft 2020-12)."""
        facts: dict[str, Any] = {
            "type": self.type,
            "description": self.description,
            "default": self.default,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "enum": list(self.enum) if self.enum is not None else None,
            "items": self._items_schema(),
            "format": self.format if self.type == "string" else None,
            "maxLength": self.max_length,
            "maxItems": self.max_items,
            "writeOnly": self.secret or None,
            "deprecated": self.deprecated or None,
        }
        return {keyword: value for keyword, value in facts.items() if value is not None}

    def _items_schema(self) -> dict[str, str] | None:
        if self.items is None:
            return None
        return {"type": self.items, "format": self.format} if self.format else {"type": self.items}


class ImageInput(msgspec.Struct, frozen=True):
    """Where a model takes the picture to work from.

    Args:
        key: name of the parameter.
        is_list: whether it wants a list of pictures.
        limit: the most pictures it takes; None for a list whose limit nobody wrote down.
        required: the model does nothing without a picture.
        needs: other parameters that must come with it, e.g. a mask.
    """

    key: str
    is_list: bool
    limit: int | None
    required: bool
    needs: tuple[str, ...] = ()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What we know about one model.

    Args:
        ref: `owner/name`; with a version where the model runs by version only.
        family: the data file that describes it, `configuration` for a model that only our user described.
        description: one line.
        aliases: other names for it, besides its ref; the bare name is among them when no other model has it.
        official: kept always on by Replicate and charged by output; None when nobody wrote it down.
        deadline_seconds: when a run of it should have ended.
        typical_seconds: how long a run usually takes; None when unknown.
        output: shape of its output.
        prices: facts in the order in which they are tried (see `price_for`); empty when nobody knows.
        parameters: its inputs; None when nobody wrote them down.
        notes: where sources contradict each other, or what else to mind.
        strengths: what its maker, in describing it, says that it does well.
        quality: its rank from 1, a draft, to 5, the best there is; None where nothing lets it be told. How it is
            judged is written in the head of `data/flux.toml`.
    """

    ref: ModelRef
    family: str
    description: str
    aliases: tuple[str, ...] = ()
    official: bool | None = None
    deadline_seconds: int = DEFAULT_DEADLINE_SECONDS
    typical_seconds: int | float | None = None
    output: Output = "unknown"
    prices: tuple[PriceFact, ...] = ()
    parameters: tuple[Parameter, ...] | None = None
    notes: tuple[str, ...] = ()
    strengths: tuple[Strength, ...] = ()
    quality: Quality | None = None

    @property
    def name(self) -> str:
        """`owner/name`, without version: what it is called everywhere."""
        return self.ref.base

    # --- input ---

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name."""
        return next((parameter for parameter in self.parameters or () if parameter.name == name), None)

    def accepts(self, name: str) -> bool | None:
        """Whether it has a parameter of that name; None when its parameters are unknown."""
        return None if self.parameters is None else self.parameter(name) is not None

    def input_schema(self) -> dict[str, Any] | None:
        """JSON Schema (draft 2020-12) of its input, made anew each time; None when that is unknown."""
        if self.parameters is None:
            return None
        schema: dict[str, Any] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "type": "object",
            "properties": {parameter.name: parameter.to_schema() for parameter in self.parameters},
            "required": [parameter.name for parameter in self.parameters if parameter.required],
            "additionalProperties": False,
        }
        if companions := {p.name: list(p.needs) for p in self.parameters if p.needs}:
            schema["dependentRequired"] = companions
        return schema

    @property
    def image_input(self) -> ImageInput | None:
        """Where it takes a picture; None when it takes none, or when its parameters are unknown."""
        parameter = self._first(EDIT_KEYS + GUIDE_KEYS)
        if parameter is None:
            return None
        is_list = parameter.type == "array"
        limit = parameter.max_items if is_list else 1
        return ImageInput(
            key=parameter.name,
            is_list=is_list,
            limit=limit,
            required=parameter.required,
            needs=parameter.needs,
        )

    @property
    def count_key(self) -> str | None:
        """The parameter that says how many images one run makes; None when a run makes one."""
        parameter = self._first(COUNT_KEYS)
        return parameter.name if parameter else None

    @property
    def steps_key(self) -> str | None:
        """The parameter that says how many steps to take."""
        parameter = self._first(STEPS_KEYS)
        return parameter.name if parameter else None

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can do, judged by its parameters and its strengths; nothing is claimed where neither is known."""
        background = self.parameter("background")
        found: dict[Ability, bool] = {
            "seed": self.parameter("seed") is not None,
            "negative_prompt": self.parameter("negative_prompt") is not None,
            "edit": self._first(EDIT_KEYS) is not None,
            "mask": self.parameter("mask") is not None,
            "several_outputs": self.count_key is not None or self.parameter("max_images") is not None,
            "transparent_background": background is not None and "transparent" in (background.enum or ()),
        }
        return frozenset(ability for ability, has in found.items() if has) | frozenset(self.strengths)

    def _first(self, names: tuple[str, ...]) -> Parameter | None:
        return next((parameter for name in names if (parameter := self.parameter(name)) is not None), None)

    # --- money ---

    @property
    def price(self) -> PriceFact | None:
        """The price of a run with the model's own defaults; None when unknown."""
        return self.price_for({})

    def price_for(self, input_: Mapping[str, Any]) -> PriceFact | None:
        """The price of a run with this input: the first fact that holds for it, None when none does.

        Parameters that the input leaves out count with the model's defaults.
        """
        return next((fact for fact in self.prices if self._holds(fact, input_)), None)

    def _holds(self, fact: PriceFact, input_: Mapping[str, Any]) -> bool:
        return all(self.value(input_, name) in values for name, values in fact.when)

    def value(self, input_: Mapping[str, Any], name: str) -> Any:
        """What a run with this input has for a parameter: what the input says, else the model's own default."""
        if input_.get(name) is not None:
            return input_[name]
        parameter = self.parameter(name)
        return parameter.default if parameter else None
