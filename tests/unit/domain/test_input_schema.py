"""A model's input against its schema, keyword by keyword, and values as typed on a command line."""

from __future__ import annotations

import time
from typing import Any

import pytest

from imagen.domain.input_schema import check_input, property_schema, read_text
from imagen.errors import Problem

REPLICATE = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "seed": {"type": "integer", "nullable": True},
        "steps": {"type": "integer", "minimum": 1, "maximum": 4},
        "strength": {"type": "number", "minimum": 0},
        "high": {"type": "number", "maximum": 1},
        "go_fast": {"type": "boolean"},
        "ratio": {"allOf": [{"$ref": "#/components/schemas/ratio"}], "default": "1:1"},
        "format": {"$ref": "#/components/schemas/format"},
        "lost": {"$ref": "#/components/schemas/nowhere"},
        "title": {"type": "string", "minLength": 2, "maxLength": 4},
        "images": {"type": "array", "items": {"type": "string", "format": "uri"}, "maxItems": 2},
        "scales": {"type": "array", "items": {"type": "number"}, "minItems": 1},
        "style": {"type": "array", "items": {"$ref": "#/components/schemas/format"}},
        "mask": {"type": ["string", "null"]},
        "extra": {"type": "object"},
        "any": {},
        "count": {"enum": [1, 2, True]},
        "odd": {"type": "file"},
    },
    "dependentRequired": {"mask": ["images"]},
    "additionalProperties": False,
    "$defs": {
        "ratio": {"enum": ["1:1", "16:9"], "type": "string"},
        "format": {"enum": ["png", "jpg"], "type": "string"},
    },
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ""),
        ("seed", None),
        ("seed", 10**30),
        ("seed", 4.0),
        ("steps", 1),
        ("steps", 4),
        ("strength", 0),
        ("strength", 10**400),
        ("high", -(10**400)),
        ("go_fast", False),
        ("ratio", "16:9"),
        ("format", "jpg"),
        ("lost", object()),
        ("title", "äö"),
        ("title", "🦊" * 4),
        ("images", []),
        ("images", ["https://a.example/a.png", "data:image/png;base64,aa"]),
        ("scales", [1, 2.5]),
        ("style", ["png", "jpg"]),
        ("extra", {"x": 1}),
        ("any", {"x": [None]}),
        ("count", 2.0),
        ("odd", "of a kind that nobody knows"),
    ],
)
def test_what_fits_passes(name: str, value: Any):
    assert check_input(REPLICATE, {"prompt": "x", name: value}) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt", 5, "5 is not text"),
        ("prompt", None, "None is not text"),
        ("seed", "7", "'7' is not a whole number"),
        ("seed", 1.5, "1.5 is not a whole number"),
        ("seed", True, "True is not a whole number"),
        ("seed", float("nan"), "nan is not a whole number"),
        ("strength", float("inf"), "inf is not a number"),
        ("steps", 0, "0 is not allowed; it must be from 1 to 4"),
        ("steps", 5, "5 is not allowed; it must be from 1 to 4"),
        ("strength", -0.1, "-0.1 is not allowed; it must be at least 0"),
        ("high", 2, "2 is not allowed; it must be at most 1"),
        ("go_fast", 1, "1 is not true or false"),
        ("ratio", "7:3", "'7:3' is not allowed; it must be one of 1:1, 16:9"),
        ("ratio", 1, "1 is not text"),
        ("format", "gif", "'gif' is not allowed; it must be one of png, jpg"),
        ("title", "x", "it has 1 characters; it must have from 2 to 4"),
        ("title", "12345", "it has 5 characters; it must have from 2 to 4"),
        ("images", "a", "'a' is not a list"),
        ("images", ["data:a", "data:b", "data:c"], "it has 3 items; it must have at most 2"),
        ("scales", [], "it has 0 items; it must have at least 1"),
        ("extra", [], "[] is not an object"),
        ("count", False, "False is not allowed; it must be one of 1, 2, True"),
    ],
)
def test_what_does_not_fit_is_told_with_what_is_allowed(name: str, value: Any, message: str):
    assert check_input(REPLICATE, {"prompt": "x", name: value}) == [Problem(name, message)]


def test_members_of_a_list_are_named_by_their_place():
    assert check_input(REPLICATE, {"prompt": "x", "style": ["png", "gif"], "scales": ["a"]}) == [
        Problem("style[1]", "'gif' is not allowed; it must be one of png, jpg"),
        Problem("scales[0]", "'a' is not a number"),
    ]


def test_what_is_required_and_what_needs_a_companion():
    assert check_input(REPLICATE, {"mask": None}) == [
        Problem("prompt", "it is required by this model"),
        Problem("images", "mask needs it"),
    ]


def test_an_unknown_name_is_refused_with_the_one_that_was_meant():
    (problem,) = check_input(REPLICATE, {"prompt": "x", "step": 4})
    assert problem.field == "step"
    assert "did you mean steps?" in problem.message
    assert "any, count, extra" in problem.message
    open_schema = {**REPLICATE, "additionalProperties": True}
    assert check_input(open_schema, {"prompt": "x", "step": 4}) == []


def test_a_long_value_is_not_repeated_whole():
    (problem,) = check_input(REPLICATE, {"prompt": ["secret wish " * 100]})
    assert len(problem.message) < 90


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("prompt", "5", "5"),
        ("prompt", "null", "null"),
        ("seed", "7", 7),
        ("seed", "null", None),
        ("seed", "seven", "seven"),
        ("seed", "1e999", "1e999"),
        ("strength", "0.5", 0.5),
        ("go_fast", "true", True),
        ("go_fast", "OFF", False),
        ("go_fast", "1", True),
        ("go_fast", "maybe", "maybe"),
        ("ratio", "16:9", "16:9"),
        ("ratio", "1", "1"),
        ("images", "https://a.b/c.png", ["https://a.b/c.png"]),
        ("images", "a, b", ["a", "b"]),
        ("images", '["a", "b"]', ["a", "b"]),
        ("images", "5", ["5"]),
        ("images", "data:image/png;base64,AAAA", ["data:image/png;base64,AAAA"]),
        ("scales", "1", [1]),
        ("scales", "[1, 2]", [1, 2]),
        ("extra", '{"a": 1}', {"a": 1}),
        ("any", "text", "text"),
        ("any", "5", 5),
        ("unknown", "5", 5),
        ("unknown", "plain", "plain"),
        ("unknown", "[" * 100_000, "[" * 100_000),
        ("unknown", "", ""),
    ],
)
def test_what_is_typed_is_read_by_the_type_of_its_field(name: str, text: str, value: Any):
    read = read_text(REPLICATE, name, text)
    assert read == value
    assert type(read) is type(value)


def test_without_a_schema_what_is_typed_is_json_or_text():
    assert [read_text(None, "x", text) for text in ("5", "true", "a", "[1]")] == [5, True, "a", [1]]


def test_the_schema_of_a_field_has_its_choices_folded_in():
    assert property_schema(REPLICATE, "ratio") == {
        "default": "1:1",
        "enum": ["1:1", "16:9"],
        "type": "string",
    }
    assert property_schema(REPLICATE, "unknown") is None


def test_an_unknown_field_is_told_in_one_sentence_with_or_without_what_was_meant():
    near, far = check_input(REPLICATE, {"prompt": "x", "sed": 1, "zzqq": 1})
    assert near.message.startswith("this model has no such parameter; did you mean seed? It knows any, ")
    assert far.message.startswith("this model has no such parameter; it knows any, ")


def test_what_was_meant_is_searched_for_the_first_of_many_unknown_fields():
    began = time.process_time()
    found = check_input(REPLICATE, {"prompt": "x"} | {f"seeds{number}": 1 for number in range(20_000)})
    assert time.process_time() - began < 2
    assert len(found) == 20_000
    assert ["did you mean" in one.message for one in found[:21]] == [True] * 20 + [False]
