"""What agents read of the tools, and what they are told when they send something else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from imagen.agents.arguments import (
    DescribeModel,
    EditHere,
    Generate,
    GenerateHere,
    Recommend,
    Usage,
    argument_schema,
    read_arguments,
    schema_of,
)
from imagen.agents.tools import tools
from imagen.domain.usage import GROUPINGS
from imagen.errors import InvalidInput

EVERY = [*tools(local=True), *tools(local=False)]


@pytest.mark.parametrize("tool", EVERY, ids=lambda tool: tool.name)
def test_schemas_are_whole_and_say_what_each_argument_means(tool: Any) -> None:
    for schema in (argument_schema(tool.arguments), schema_of(tool.answer)):
        Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert "$ref" not in json.dumps(schema)
    for name, told in argument_schema(tool.arguments)["properties"].items():
        assert told["description"], name
    assert argument_schema(tool.arguments)["additionalProperties"] is False
    assert len(json.dumps(argument_schema(tool.arguments))) < 3000


def test_a_file_is_an_argument_only_where_the_agent_has_the_same_files() -> None:
    here, elsewhere = ({tool.name: tool for tool in tools(local=local)} for local in (True, False))
    assert "output" in argument_schema(here["generate_image"].arguments)["properties"]
    assert "output" not in argument_schema(elsewhere["edit_image"].arguments)["properties"]


def test_only_what_costs_or_stops_something_is_no_mere_reading() -> None:
    assert {tool.name for tool in EVERY if not tool.reads} == {
        "generate_image",
        "edit_image",
        "cancel_prediction",
    }
    assert {tool.name for tool in EVERY if tool.destroys} == {"cancel_prediction"}


def test_null_is_as_good_as_leaving_out() -> None:
    told = read_arguments({"prompt": "a fox", "seed": None, "count": None, "options": None}, GenerateHere)
    assert told == GenerateHere(prompt="a fox")


@pytest.mark.parametrize(
    ("kind", "given", "fields", "says"),
    [
        (Generate, {}, ["prompt"], "required"),
        (Generate, {"prompt": "a", "output": "x"}, ["output"], "options"),
        (EditHere, {"promt": "a"}, ["promt", "prompt", "image"], "no such argument"),
        (Generate, {"prompt": "a", "count": 1.5}, ["count"], "a whole number"),
        (Generate, {"prompt": ["a"]}, ["prompt"], "text"),
        (Recommend, {"budget_usd": 1, "quality": "best"}, ["quality"], "high"),
        (Recommend, {"budget_usd": 1, "needs": [1]}, ["needs[0]"], "text"),
        (DescribeModel, {"model": "a", "x" * 500: 1}, ["x" * 80], "model"),
        (Usage, {"by": "hour"}, ["by"], "day"),
    ],
)
def test_what_is_wrong_is_named(
    kind: type[msgspec.Struct], given: dict[str, Any], fields: list[str], says: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_arguments(given, kind)
    assert [problem.field for problem in raised.value.problems] == fields
    assert says in str(raised.value)


def test_usage_is_added_up_by_all_that_there_is() -> None:
    assert set(argument_schema(Usage)["properties"]["by"]["enum"]) == set(GROUPINGS)
