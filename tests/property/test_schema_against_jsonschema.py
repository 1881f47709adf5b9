"""`check_input` against the library `jsonschema`: on the schemas that models have, both decide the same."""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen.domain.input_schema import check_input, property_schema, read_text

NAMES = ("prompt", "seed", "image", "num_outputs", "size")
numbers = st.integers(-5, 5) | st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 1))
scalars = st.none() | st.booleans() | numbers | st.integers() | st.text("aé水", max_size=4)
values = st.recursive(scalars | st.just(10**400), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=2), max_leaves=4)  # fmt: skip
bounds = st.none() | numbers
lengths = st.none() | st.integers(0, 3)
kinds = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])


def given_only(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


members = st.builds(given_only, type=kinds, minimum=bounds, maximum=bounds, maxLength=lengths)
fields = st.builds(
    given_only,
    type=st.none() | kinds | st.lists(kinds, min_size=1, max_size=3, unique=True),
    minimum=bounds,
    maximum=bounds,
    minLength=lengths,
    maxLength=lengths,
    minItems=lengths,
    maxItems=lengths,
    enum=st.none() | st.lists(scalars, min_size=1, max_size=3),
    items=st.none() | members,
    default=scalars,
)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4)):
        field = draw(fields)
        if draw(st.booleans()) and "enum" in field:  # as cog writes choices
            definitions[name] = {"enum": field.pop("enum"), **given_only(type=field.pop("type", None))}
            field["allOf"] = [{"$ref": f"#/$defs/{name}"}]
        properties[name] = field
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2)),
        "$defs": definitions,
    }
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    if draw(st.booleans()):
        schema["dependentRequired"] = {"image": ["size"]}
    return schema


@given(schemas(), st.dictionaries(st.sampled_from([*NAMES, "unknown"]), values, max_size=4))
@settings(max_examples=250)
def test_the_same_inputs_pass(schema: dict[str, Any], given_values: dict[str, Any]):
    validator = jsonschema.Draft202012Validator(schema)
    wanted = {str(error.message) for error in validator.iter_errors(given_values)}
    found = check_input(schema, given_values)
    assert bool(found) == bool(wanted), (found, wanted)
    for problem in found:
        assert len(problem.message) < 400
        assert problem.field.split("[")[0] in {*NAMES, "unknown"}


@given(
    schemas(),
    st.sampled_from([*NAMES, "unknown"]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
)
def test_any_text_is_read_as_something_that_can_be_checked(schema: dict[str, Any], name: str, text: str):
    check_input(schema, {name: read_text(schema, name, text)})
    read_text(None, name, text)
    property_schema(schema, name)
