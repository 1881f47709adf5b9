"""A request in everybody's words becomes the input of one model in its own words. No I/O.

With the model's schema known, what the caller asked for by name must exist there, and what we add by ourselves
(one output, png, the default ratio) is added only where it does. Without a schema what was asked for is sent as
named, and nothing is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from imagen.backends.replicate.wire import outputs_asked_for
from imagen.catalog.model import COUNT_KEYS, EDIT_KEYS, GUIDE_KEYS, STEPS_KEYS
from imagen.domain.aspect_ratio import aspect_ratio_of
from imagen.domain.input_schema import Schema, check_input, property_schema, read_text
from imagen.domain.prediction import HIDDEN
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import is_secret_name
from imagen.errors import InvalidInput, Problem

_DEFAULT_FORMAT = "png"
_LARGEST_SEED = 2**63 - 1
_SHAPE = frozenset({"width", "height", "aspect_ratio"})
_COMMON = (*sorted(_SHAPE), "steps", "seed", "negative_prompt", "output_format")
"""What a request says by names that are the same for all models, and a preset may say too."""


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a configured backend adds where the caller says nothing."""

    steps: int | None = None
    aspect_ratio: str = "1:1"


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of the runs that make the pictures asked for.

    Attributes:
        inputs: one for each run, without seed unless the caller chose one.
        images: how many pictures each run gives.
        seed_field: where our seed goes; None when the model has none.
        seed_maximum: the largest seed that the model takes, as far as we choose.
        secrets: somebody's keys and passwords, by parameter; `inputs` have them hidden.
        left_out: what a preset offered, or was carried over, and this model does not take.
    """

    inputs: tuple[dict[str, Any], ...]
    images: tuple[int, ...]
    seed_field: str | None
    seed_maximum: int
    secrets: dict[str, Any] = {}
    left_out: tuple[str, ...] = ()


def translate(
    request: GenerationRequest, *, model: str, schema: Schema | None, image: str | None, defaults: Defaults
) -> Translation:
    """Inputs for `request`, validated where the schema is known.

    Args:
        request: checked for what no model takes.
        model: named in errors.
        schema: JSON Schema of the model's input.
        image: the input image as the model shall get it, a URL or data URI.
        defaults: of the configured backend.

    Raises:
        InvalidInput: naming each field, and what is allowed.
    """
    fields = _Fields(schema)
    if request.verbatim:
        return _verbatim(fields, request.options, model=model)
    options = {name: read_text(schema, name, text) for name, text in request.text_options.items()} | dict(
        request.options
    )
    laid = _lay(fields, request, options, fallback=defaults.aspect_ratio)
    fields.ask("prompt", request.prompt, "prompt")
    if not laid.shaped:
        _add_shape(fields, request, defaults)
    _add_steps(fields, request, defaults)
    if request.negative_prompt:
        fields.ask("negative_prompt", request.negative_prompt, "negative_prompt")
    if image is not None:
        _add_image(fields, image)
    if request.output_format or not request.plain:
        fields.offer("output_format", request.output_format or _DEFAULT_FORMAT)
    if request.seed is not None:
        fields.ask("seed", request.seed, "seed")
    count_key = fields.first_known(COUNT_KEYS)
    most = fields.maximum(count_key, 1) if count_key else 1
    if count_key and not (request.plain and request.count == 1):
        fields.offer(count_key, min(request.count, most))
    fields.values.update(laid.values)
    fields.values.update(options)

    problems = fields.problems + (check_input(schema, fields.values) if schema else [])
    problems = [
        Problem(f"presets.{request.preset}.{laid.offered[problem.field]}", problem.message)
        if problem.field in laid.offered
        else problem
        for problem in problems
    ]
    if problems:
        raise InvalidInput(problems, subject=model, hint=f"`imagen models {model}` lists its parameters.")
    if (said := next((name for name in COUNT_KEYS if name in options), None)) is not None:
        images: tuple[int, ...] = (outputs_asked_for(fields.values),)
        _check_count(said, images[0], request.count, model=model)
        count_key = None
    else:
        images = _split(request.count, fields.values, count_key, most)
    values = _as_sent(fields.values, model=model)
    _check_last_seed(fields, runs=len(images), model=model)
    values, secrets = _hidden(fields, values)
    return Translation(
        inputs=tuple(_run_input(values, count_key, count, index) for index, count in enumerate(images)),
        images=images,
        seed_field="seed" if fields.knows("seed") and "seed" not in options else None,
        seed_maximum=_seed_maximum(fields),
        secrets=secrets,
        left_out=laid.left_out,
    )


def _check_count(name: str, wanted: int, count: int, *, model: str) -> None:
    """Refuse a count of pictures beside the model's own parameter for it, unless they say the same.

    Raises:
        InvalidInput: naming that parameter.
    """
    if count not in {1, wanted}:
        problem = Problem(name, f"it says {wanted}, and the count of pictures says {count}")
        raise InvalidInput([problem], subject=model, hint="Say it once.")


def _verbatim(fields: _Fields, given: Mapping[str, Any], *, model: str) -> Translation:
    """The input of a caller who speaks the model's own words: checked, and nothing in it is ours but a seed.

    Raises:
        InvalidInput: naming each field as `input.NAME`, as the service does.
    """
    fields.values.update(given)
    if fields.schema is not None and (problems := check_input(fields.schema, fields.values)):
        told = [Problem(f"input.{problem.field}", problem.message) for problem in problems]
        raise InvalidInput(told, subject=model, hint=f"`imagen models {model}` lists its parameters.")
    values, secrets = _hidden(fields, _as_sent(fields.values, model=model))
    return Translation(
        inputs=(values,),
        images=(outputs_asked_for(values),),
        # Without a schema nobody knows whether the model takes one, and one that it does not take is refused.
        seed_field="seed" if fields.has("seed") and values.get("seed") is None else None,
        seed_maximum=_seed_maximum(fields),
        secrets=secrets,
    )


def _hidden(fields: _Fields, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values with somebody's keys and passwords hidden, and those apart."""
    secrets = {name: value for name, value in values.items() if fields.is_secret(name)}
    return values | dict.fromkeys(secrets, HIDDEN), secrets


def _seed_maximum(fields: _Fields) -> int:
    return min(fields.maximum("seed", 2**31 - 1), 2**31 - 1)


class _Laid(msgspec.Struct, frozen=True, kw_only=True):
    """What lies under a request, for one model.

    Attributes:
        values: by the model's own names; offered: the preset's names of those that are the preset's.
        left_out: the names of what the model does not take.
        shaped: whether they say the shape of the picture.
    """

    values: dict[str, Any]
    offered: dict[str, str]
    left_out: tuple[str, ...]
    shaped: bool


def _lay(fields: _Fields, request: GenerationRequest, options: Mapping[str, Any], *, fallback: str) -> _Laid:
    """What the preset offers and what is carried over, where the request itself says nothing.

    A value of a preset that the model does not allow is kept, and refused with everything else; one that is carried
    over from another picture is left out then.
    """
    values: dict[str, Any] = {}
    offered: dict[str, str] = {}
    left_out: list[str] = []
    told = {name for name in _COMMON if getattr(request, name) is not None} | options.keys()
    told |= {"steps"} if not options.keys().isdisjoint(STEPS_KEYS) else set()
    told |= _SHAPE if not told.isdisjoint(_SHAPE) else set()
    shaped = bool(request.offers.keys() & _SHAPE)
    carried = {name: value for name, value in request.carried.items() if not (shaped and name in _SHAPE)}
    for given, strict in ((carried, False), (request.offers, True)):
        for name, value in _in_words_of(fields, given, fallback=fallback).items():
            key = (fields.first_known(STEPS_KEYS) or name) if name == "steps" else name
            if name in told or key in told:
                continue
            if not fields.knows(key) or not (strict or fields.lets_pass(key, value)):
                left_out.append(name)
                continue
            values[key] = value
            offered.pop(key, None)
            if strict:
                offered[key] = name
    return _Laid(
        values=values,
        offered=offered,
        left_out=tuple(dict.fromkeys(left_out)),
        shaped=not values.keys().isdisjoint(_SHAPE),
    )


def _in_words_of(fields: _Fields, given: Mapping[str, Any], *, fallback: str) -> Mapping[str, Any]:
    """The same with width and height as an aspect ratio, where the model only takes that."""
    if "width" not in given or fields.knows("width") or not fields.has("aspect_ratio"):
        return given
    ratio = aspect_ratio_of(given["width"], given["height"], fallback=fallback)
    return {name: value for name, value in given.items() if name not in _SHAPE} | {"aspect_ratio": ratio}


class _Fields:
    """An input in the making: what is asked for must exist, what is offered may."""

    def __init__(self, schema: Schema | None) -> None:
        self.schema = schema
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []

    def knows(self, name: str) -> bool:
        return self.schema is None or name in self.schema.get("properties", {})

    def has(self, name: str) -> bool:
        return self.schema is not None and self.knows(name)

    def allows(self, name: str, value: Any) -> bool:
        return self.has(name) and not _wrong(self.schema or {}, name, value)

    def lets_pass(self, name: str, value: Any) -> bool:
        return self.schema is None or self.allows(name, value)

    def ask(self, name: str, value: Any, asked_as: str) -> None:
        if self.knows(name):
            self.values[name] = value
        else:
            self.problems.append(Problem(asked_as, "this model takes none"))

    def offer(self, name: str, value: Any) -> None:
        if self.allows(name, value):
            self.values[name] = value

    def maximum(self, name: str, otherwise: int) -> int:
        found = property_schema(self.schema, name) if self.schema else None
        told = (found or {}).get("maximum", otherwise)
        return int(told) if isinstance(told, int | float) and math.isfinite(told) else otherwise

    def first_known(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if self.knows(name)), None)

    def is_secret(self, name: str) -> bool:
        found = (property_schema(self.schema, name) if self.schema else None) or {}
        marked = found.get("writeOnly") or found.get("x-cog-secret") or found.get("format") == "password"
        return bool(marked) or is_secret_name(name)

    def takes_list(self, name: str) -> bool:
        found = property_schema(self.schema, name) if self.schema else None
        return (found or {}).get("type") == "array"


def _add_shape(fields: _Fields, request: GenerationRequest, defaults: Defaults) -> None:
    if request.aspect_ratio is not None:
        fields.ask("aspect_ratio", request.aspect_ratio, "aspect_ratio")
    elif fields.has("aspect_ratio") and not (request.plain and request.width is None):
        fields.offer(
            "aspect_ratio", aspect_ratio_of(request.width, request.height, fallback=defaults.aspect_ratio)
        )
    elif request.width is not None:
        fields.ask("width", request.width, "width")
        fields.ask("height", request.height, "height")


def _add_steps(fields: _Fields, request: GenerationRequest, defaults: Defaults) -> None:
    name = fields.first_known(STEPS_KEYS) or STEPS_KEYS[0]
    if request.steps is not None:
        fields.ask(name, request.steps, "steps")
    elif defaults.steps is not None and not request.plain:
        fields.offer(name, defaults.steps)


def _add_image(fields: _Fields, image: str) -> None:
    name = fields.first_known(EDIT_KEYS + GUIDE_KEYS)
    if name is None:
        fields.problems.append(Problem("input_image", "this model takes no input image"))
        return
    fields.values[name] = [image] if fields.takes_list(name) else image


def _split(count: int, values: Mapping[str, Any], count_key: str | None, most: int) -> tuple[int, ...]:
    """How many pictures each run makes: several at a time where the model can, else one."""
    if count_key is None or count_key not in values:
        return (1,) * count
    full, rest = divmod(count, most)
    return (most,) * full + ((rest,) if rest else ())


def _run_input(values: Mapping[str, Any], count_key: str | None, count: int, index: int) -> dict[str, Any]:
    run = dict(values)
    if count_key is not None and count_key in run:
        run[count_key] = count
    if index and isinstance(run.get("seed"), int):
        run["seed"] += index
    return run


def _as_sent(values: Mapping[str, Any], *, model: str) -> dict[str, Any]:
    """The values as they will be at the service, so that they are recognised there: a tuple is sent as a list."""
    sent = {}
    for name, value in values.items():
        try:
            sent[name] = msgspec.json.decode(msgspec.json.encode(value))
        except (TypeError, ValueError, OverflowError, RecursionError):
            problem = Problem(name, f"a {type(value).__name__} like this cannot be sent")
            raise InvalidInput([problem], subject=model) from None
    return sent


def _check_last_seed(fields: _Fields, *, runs: int, model: str) -> None:
    """Each further run takes the next seed; all of them must be ones that the model takes."""
    seed, most = fields.values.get("seed"), fields.maximum("seed", _LARGEST_SEED)
    if isinstance(seed, int) and seed < -_LARGEST_SEED:
        raise InvalidInput([Problem("seed", f"it must be at least {-_LARGEST_SEED}")], subject=model)
    if isinstance(seed, int) and seed + runs - 1 > most:
        first = f"with {runs} runs the first seed" if runs > 1 else "it"
        raise InvalidInput([Problem("seed", f"{first} must be at most {most - runs + 1}")], subject=model)


def _wrong(schema: Schema, name: str, value: Any) -> bool:
    return bool(check_input({"properties": {name: property_schema(schema, name)}}, {name: value}))
