"""Checking a model's input against its JSON Schema, with messages that name the field and what is allowed.

Model inputs use a narrow part of JSON Schema: one flat object of typed fields with ranges and choices, where
Replicate wraps choices as `allOf: [{"$ref": …}]`. That part is checked here; the rest is left to the model.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from imagen.errors import Problem

Schema = Mapping[str, Any]

_MOST_SUGGESTIONS = 20
"""For so many unknown fields it is searched what was meant: a search takes long, and nobody reads more."""

_ADDRESSES = ("https://", "http://", "data:")
_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "string": ("text", lambda value: isinstance(value, str)),
    "integer": ("a whole number", lambda value: _is_number(value) and value == int(value)),
    "number": ("a number", _is_number),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, dict)),
    "null": ("null", lambda value: value is None),
}


def check_input(schema: Schema, values: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with `values`; an empty list when the schema is satisfied."""
    properties: Mapping[str, Schema] = schema.get("properties", {})
    problems = [
        Problem(name, "it is required by this model")
        for name in schema.get("required", ())
        if name not in values
    ]
    unknown = 0
    for name, value in values.items():
        if name in properties:
            problems += _check_value(name, _flattened(properties[name], schema), value, schema)
        elif schema.get("additionalProperties", True) is False:
            unknown += 1
            search = unknown <= _MOST_SUGGESTIONS
            problems.append(Problem(name, _unknown(name, tuple(properties), search=search)))
    problems += [
        Problem(needed, f"{name} needs it")
        for name, companions in schema.get("dependentRequired", {}).items()
        for needed in companions
        if name in values and needed not in values
    ]
    return problems


def property_schema(schema: Schema, name: str) -> Schema | None:
    """The schema of one field with its references resolved, None when the model has no such field."""
    found = schema.get("properties", {}).get(name)
    return None if found is None else _flattened(found, schema)


def read_text(schema: Schema | None, name: str, text: str) -> Any:
    """A value as typed on a command line, by the type of its field; as JSON where the type is not known.

    What does not fit its type comes back as the text that it is, for `check_input` to refuse.
    """
    found = property_schema(schema, name) if schema else None
    kind = (found or {}).get("type")
    if kind == "string":
        return text
    if kind == "boolean" and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return _split(text) if kind == "array" else text
    if kind != "array" or isinstance(value, list):
        return value
    return _split(text) if found and found.get("items", {}).get("type") == "string" else [value]


def _split(text: str) -> list[str]:
    """The parts between commas; a data URI has a comma of its own and stays whole."""
    return [text] if text.startswith("data:") else [part.strip() for part in text.split(",")]


def _check_value(name: str, schema: Schema, value: Any, root: Schema) -> list[Problem]:
    if value is None and schema.get("nullable"):
        return []
    kinds = schema.get("type")
    kinds = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds or ()) if kind in _TYPES]
    if kinds and not any(_TYPES[kind][1](value) for kind in kinds):
        wanted = " or ".join(_TYPES[kind][0] for kind in kinds)
        return [Problem(name, f"{_shown(value)} is not {wanted}")]
    if "enum" in schema and not any(_same(value, choice) for choice in schema["enum"]):
        choices = ", ".join(str(choice) for choice in schema["enum"])
        return [Problem(name, f"{_shown(value)} is not allowed; it must be one of {choices}")]
    problems = [Problem(name, message) for message in _limits(schema, value)]
    if schema.get("format") == "uri" and isinstance(value, str) and not value.startswith(_ADDRESSES):
        problems.append(Problem(name, "it must be an address (https://…) or a data URI"))
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        items = _flattened(schema["items"], root)
        for index, item in enumerate(value):
            problems += _check_value(f"{name}[{index}]", items, item, root)
    return problems


def _limits(schema: Schema, value: Any) -> list[str]:
    if _is_number(value):
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            return [f"{_shown(value)} is not allowed; it must be {_range(low, high)}"]
    if isinstance(value, str):
        return _length(len(value), schema.get("minLength"), schema.get("maxLength"), "characters")
    if isinstance(value, list):
        return _length(len(value), schema.get("minItems"), schema.get("maxItems"), "items")
    return []


def _length(length: int, low: int | None, high: int | None, unit: str) -> list[str]:
    if (low is not None and length < low) or (high is not None and length > high):
        return [f"it has {length} {unit}; it must have {_range(low, high)}"]
    return []


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"from {low} to {high}"


def _flattened(schema: Schema, root: Schema) -> Schema:
    """The schema with `$ref` and `allOf` folded in, as far as they point inside the same document."""
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key not in {"allOf", "$ref"}}
    parts = [*schema.get("allOf", ()), *([{"$ref": schema["$ref"]}] if "$ref" in schema else [])]
    for part in parts:
        target = _lookup(part["$ref"], root) if "$ref" in part else part
        for key, value in target.items():
            merged.setdefault(key, value)
    return merged


def _lookup(reference: str, root: Schema) -> Schema:
    name = reference.rsplit("/", 1)[-1]
    found = root.get("$defs", {}).get(name, {})
    return found if isinstance(found, Mapping) else {}


@functools.lru_cache(maxsize=256)  # the rows of a file have the same mistake
def _unknown(name: str, known: tuple[str, ...], *, search: bool) -> str:
    near = difflib.get_close_matches(name, known, n=1) if search else []
    listed = ", ".join(sorted(known))
    meant = f"did you mean {near[0]}? It knows {listed}" if near else f"it knows {listed}"
    return f"this model has no such parameter; {meant}"


def _same(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
