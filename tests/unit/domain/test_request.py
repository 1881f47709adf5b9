"""What no backend could serve is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagen.domain.request import MAX_COUNT, MAX_PROMPT_CHARACTERS, MAX_SIDE, GenerationRequest
from imagen.errors import InvalidInput

MAX_SEED = 2**63 - 1


def refused(**fields: Any) -> list[str]:
    try:
        GenerationRequest(**{"prompt": "a fox", **fields}).check()
    except InvalidInput as error:
        return sorted({problem.field for problem in error.problems})
    return []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "x" * MAX_PROMPT_CHARACTERS},
        {"prompt": "größer 水 \U0001f98a\n"},
        {"width": 1, "height": 1},
        {"width": MAX_SIDE, "height": MAX_SIDE},
        {"steps": 1},
        {"steps": 1000},
        {"seed": 0},
        {"seed": MAX_SEED},
        {"count": 1},
        {"count": MAX_COUNT},
        {"aspect_ratio": "16:9"},
        {"deadline_seconds": 0.001},
        {"deadline_seconds": 86_400},
        {"options": {"a": [None, True, {"b": 1.5}], "c": "größer"}},
        {"input_image": Path("/no/such/file")},
        {"negative_prompt": ""},
    ],
    ids=str,
)
def test_what_is_within_bounds_passes(fields: dict[str, Any]):
    assert refused(**fields) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": ""}, ["prompt"]),
        ({"prompt": " \n\t\u3000"}, ["prompt"]),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, ["prompt"]),
        ({"prompt": "a\0b"}, ["prompt"]),
        ({"prompt": "a\ud800b"}, ["prompt"]),
        ({"prompt": "a\udfff"}, ["prompt"]),
        ({"negative_prompt": "\0"}, ["negative_prompt"]),
        ({"negative_prompt": "\udc80"}, ["negative_prompt"]),
        ({"width": 0, "height": 10}, ["width"]),
        ({"width": 10, "height": -1}, ["height"]),
        ({"width": MAX_SIDE + 1, "height": MAX_SIDE + 1}, ["height", "width"]),
        ({"width": 10}, ["height"]),
        ({"height": 10}, ["width"]),
        ({"width": 10, "height": 10, "aspect_ratio": "1:1"}, ["aspect_ratio"]),
        ({"steps": 0}, ["steps"]),
        ({"steps": 1001}, ["steps"]),
        ({"seed": -1}, ["seed"]),
        ({"seed": MAX_SEED + 1}, ["seed"]),
        ({"count": 0}, ["count"]),
        ({"count": MAX_COUNT + 1}, ["count"]),
        ({"deadline_seconds": 0}, ["timeout"]),
        ({"deadline_seconds": -1.0}, ["timeout"]),
        ({"deadline_seconds": 86_401}, ["timeout"]),
        ({"deadline_seconds": float("nan")}, ["timeout"]),
        ({"deadline_seconds": float("inf")}, ["timeout"]),
        ({"aspect_ratio": "1:1\udcff"}, ["aspect_ratio"]),
        ({"output_format": "\udcff"}, ["output_format"]),
        ({"input_image": "https://a.b/\udcff"}, ["input_image"]),
        ({"text_options": {"style": "\udcff"}}, ["style"]),
        ({"options": {"style": "\0"}}, ["style"]),
        ({"options": {"deep": [{"x": ("ok", "\ud800")}]}}, ["deep"]),
        ({"options": {"deep": {"\ud800": 1}}}, ["deep"]),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused_by_name(fields: dict[str, Any], named: list[str]):
    assert refused(**fields) == named


def test_everything_wrong_is_told_at_once_with_what_is_allowed():
    with pytest.raises(InvalidInput) as told:
        GenerationRequest(prompt="", steps=0, count=101, seed=-1).check()
    assert {problem.field for problem in told.value.problems} == {"prompt", "steps", "count", "seed"}
    assert "count: 101 is not allowed; it must be from 1 to 100" in str(told.value)


def test_the_prompt_itself_is_never_repeated():
    with pytest.raises(InvalidInput) as told:
        GenerationRequest(prompt="a very secret wish\0").check()
    assert "secret wish" not in str(told.value)
