"""Our small check of input schemas and the large library agree on every model of the catalog."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from imagen.catalog import Catalog
from imagen.domain.input_schema import check_input, property_schema

SCHEMAS = {model.ref.base: schema for model in Catalog.load() if (schema := model.input_schema()) is not None}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 5000),
    st.floats(-10, 5000, allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(["1:1", "16:9", "png", "jpg", "webp", "1", "0.25", "https://example.com/a.png"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))


def fitting(schema: dict[str, Any], name: str) -> st.SearchStrategy[Any]:
    """Values near what a field takes, so that good inputs come up as often as bad ones."""
    field = property_schema(schema, name) or {}
    if "enum" in field:
        return st.sampled_from(list(field["enum"])) | SCALARS
    if field.get("type") in {"integer", "number"}:
        low, high = field.get("minimum", 0), field.get("maximum", 100)
        return st.sampled_from([low, high, low - 1, high + 1]) | SCALARS
    return VALUES


@pytest.mark.parametrize("model", sorted(SCHEMAS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_both_accept_and_both_refuse(model: str, data: st.DataObject) -> None:
    schema = SCHEMAS[model]
    names = data.draw(
        st.lists(st.sampled_from([*schema["properties"], "no_such_field"]), unique=True, max_size=5)
    )
    values = {name: data.draw(fitting(schema, name)) for name in names}
    ours = not check_input(schema, values)
    theirs = Draft202012Validator(schema).is_valid(values)
    assert ours == theirs, (values, check_input(schema, values))
