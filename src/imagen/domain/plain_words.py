"""What is wrong with a value that somebody wrote, in words that do not need to know msgspec: what is allowed in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

_LONGEST_SHOWN = 200
_KINDS: Mapping[str, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "array": "a list",
    "object": "an object",
}
_OTHER_KIND = re.compile(r"Expected `([a-z |]+)`, got `[a-z]+`")
_NOT_ONE_OF_THEM = re.compile(r"Invalid enum value (.*)", re.DOTALL)
_OUT_OF_BOUNDS = re.compile(r"Expected `int` [<>]=? -?\d+")
_STEP = re.compile(r"\.([^.\[\]]+)|\[[^\]]*\]")


def place_of(error: msgspec.ValidationError) -> str:
    """Where the value stands, such as `tasks[0].tier`; empty for the whole."""
    return str(error).partition(" - at `")[2].rstrip("`").removeprefix("$").removeprefix(".")


def what_is_allowed(error: msgspec.ValidationError, form: Any) -> str:
    """What a value must be, without its place.

    Args:
        error: what msgspec says of it.
        form: the type as which the whole was read.
    """
    text = str(error).partition(" - at `")[0]
    if found := _NOT_ONE_OF_THEM.fullmatch(text):
        allowed = list(dict.fromkeys(value for one in _at(form, error) for value in _values(one)))
        return f"{found[1][:_LONGEST_SHOWN]} must be one of {', '.join(map(str, allowed))}"
    if _OUT_OF_BOUNDS.fullmatch(text):
        for one in _at(form, error):
            if isinstance(one, inspect.IntType) and one.ge is not None and one.le is not None:
                return f"it must be a whole number from {one.ge} to {one.le}"
    if (kinds := _OTHER_KIND.fullmatch(text)) is None:
        return text[:1].lower() + text[1:_LONGEST_SHOWN]
    named = [kind for kind in kinds[1].split(" | ") if kind != "null"]
    if "float" in named:
        named = [kind for kind in named if kind != "int"]
    return f"it must be {' or '.join(_KINDS.get(kind, kind) for kind in named)}"


def _at(form: Any, error: msgspec.ValidationError) -> list[inspect.Type]:
    """The types that a value may have at the place of an error."""
    found = list(_single(inspect.type_info(form)))
    where = f".{place}" if not (place := place_of(error)).startswith("[") else place
    for step in _STEP.finditer(where):
        found = [inner for one in found for part in _inside(one, step[1]) for inner in _single(part)]
    return found


def _inside(one: inspect.Type, name: str | None) -> Iterator[inspect.Type]:
    """Of an object the field of that name; of a list or a mapping what it holds."""
    if isinstance(one, inspect.StructType | inspect.TypedDictType) and name is not None:
        yield from (field.type for field in one.fields if field.encode_name == name)
    elif isinstance(one, inspect.DictType):
        yield one.value_type
    elif isinstance(one, inspect.CollectionType):
        yield one.item_type


def _single(one: inspect.Type) -> Iterator[inspect.Type]:
    """Without what is written around a type, and each of several."""
    if isinstance(one, inspect.Metadata):
        yield from _single(one.type)
    elif isinstance(one, inspect.UnionType):
        for part in one.types:
            yield from _single(part)
    else:
        yield one


def _values(one: inspect.Type) -> Iterator[Any]:
    if isinstance(one, inspect.LiteralType):
        yield from one.values
    elif isinstance(one, inspect.EnumType):
        yield from (member.value for member in one.cls)
