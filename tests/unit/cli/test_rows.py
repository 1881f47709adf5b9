"""What a row says becomes a request, and its pictures a place of their own below one folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagen.catalog import Catalog
from imagen.cli.exit_status import status_of_code
from imagen.cli.rows import Places, Reading, Wanted
from imagen.domain.money import Usd
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput
from imagen.pictures import NameFields, OutputPattern, numbered
from imagen.service.manifest import Row

COMMON = GenerationRequest(
    prompt="-", steps=20, width=512, height=512, text_options={"go_fast": "true", "x": "1"}
)


def read(
    fields: dict[str, Any], *, typed: bool = True, number: int = 1, common: GenerationRequest = COMMON
) -> Wanted:
    reading = Reading(
        common=common,
        places=Places(None, default_folder=Path("/pictures"), name="foxes", rows=12),
        folder=Path(__file__).parent,
        resolve=Catalog.load().resolve,
    )
    return reading.wanted(Row(line=3, fields=fields, typed=typed), number)


def problems(fields: dict[str, Any], *, typed: bool = True) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        read(fields, typed=typed)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_what_a_row_says_wins_over_the_command_line() -> None:
    request = read({"prompt": "a fox", "steps": 4, "go_fast": False, "seed": 7}).request
    assert (request.steps, request.seed, request.width) == (4, 7, 512)
    assert dict(request.options) == {"go_fast": False}
    assert dict(request.text_options) == {"x": "1"}


def test_a_row_gives_its_shape_in_its_own_way() -> None:
    by_ratio = read({"prompt": "a", "aspect_ratio": "16:9"}).request
    assert (by_ratio.width, by_ratio.height, by_ratio.aspect_ratio) == (None, None, "16:9")
    common = GenerationRequest(prompt="-", aspect_ratio="1:1")
    by_size = read({"prompt": "a", "width": 64, "height": 32}, common=common).request
    assert (by_size.width, by_size.height, by_size.aspect_ratio) == (64, 32, None)


def test_text_of_a_table_is_read_by_the_field_that_it_stands_in() -> None:
    request = read(
        {"prompt": "a", "seed": " 7", "timeout": "2.5", "max_cost": "$0.05", "guidance": "3", "count": "2"},
        typed=False,
    ).request
    assert (request.seed, request.deadline_seconds, request.max_cost, request.count) == (
        7,
        2.5,
        Usd(50_000),
        2,
    )
    assert request.text_options["guidance"] == "3"


def test_the_gateways_names_of_fields_are_known() -> None:
    wanted = read(
        {"prompt": "a", "model_name": "flux-dev", "output_filename": "x.webp", "external_semaphore_id": "gpu"}
    )
    assert str(wanted.request.model) == "black-forest-labs/flux-dev"
    assert (wanted.request.semaphore, wanted.request.output_format) == ("gpu", "webp")
    assert wanted.output == "/pictures/foxes/x.webp"


@pytest.mark.parametrize(
    ("fields", "field", "part"),
    [
        ({"seed": "seven"}, "seed", "whole number"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"seed": True}, "seed", "whole number"),
        ({"seed": 2**64}, "seed", "from -9223372036854775807 to 9223372036854775807"),
        ({"seed": 1e30}, "seed", "from -9223372036854775807 to 9223372036854775807"),
        ({"timeout": 10**400}, "timeout", "too large"),
        ({"timeout": "soon"}, "timeout", "number of seconds"),
        ({"max_cost": "much"}, "max_cost", "not an amount in dollars"),
        ({"max_cost": -1}, "max_cost", "below zero"),
        ({"max_cost": []}, "max_cost", "US dollars"),
        ({"negative_prompt": 7}, "negative_prompt", "must be text"),
        ({"model": "no such model"}, "model", "no such model"),
        ({"model": "flux-dev", "model_name": "flux-dev"}, "model_name", "the same as model,"),
        ({"model_name": "flux-dev", "model": "flux-dev"}, "model", "the same as model_name,"),
        ({"input_image": "missing.png"}, "input_image", "neither a file nor an https address"),
        ({"input_image": "\0"}, "input_image", "neither a file nor an https address"),
        ({"output": "/etc/passwd"}, "output", "below the folder"),
        ({"output": "../x.png"}, "output", "below the folder"),
        ({"output": "a/../../x.png"}, "output", "below the folder"),
        ({"output": "a\\b.png"}, "output", "below the folder"),
        ({"output": "a/"}, "output", "below the folder"),
        ({"output": ""}, "output", "below the folder"),
        ({"output": "a\0b"}, "output", "below the folder"),
    ],
)
def test_what_makes_no_sense_names_its_field(fields: dict[str, Any], field: str, part: str) -> None:
    assert part in problems({"prompt": "a"} | fields)[field]


def test_all_that_is_wrong_with_a_row_is_told() -> None:
    assert set(problems({"prompt": "a", "seed": "x", "steps": [], "output": ".."})) == {
        "seed",
        "steps",
        "output",
    }


def test_a_file_is_looked_for_beside_the_file_that_names_it() -> None:
    image = read({"prompt": "a", "input_image": Path(__file__).name}).request.input_image
    assert image == Path(__file__)
    assert (
        read({"prompt": "a", "input_image": "https://x.example/y.png"}).request.input_image
        == "https://x.example/y.png"
    )


# --- places ----------------------------------------------------------------------------------------------


def place(output: str | None, number: int = 7, name: str | None = None, *, rows: int = 12) -> str:
    return Places(output, default_folder=Path("/pictures"), name="foxes", rows=rows).of(number, name)


def test_every_row_has_a_place_of_its_own(tmp_path: Path) -> None:
    assert place(None) == "/pictures/foxes/007-{prompt}-{seed}.{ext}"
    assert place(None, rows=10_000) == "/pictures/foxes/00007-{prompt}-{seed}.{ext}"
    assert place("/out") == "/out/007-{prompt}-{seed}.{ext}"
    assert place("/out/{index:02}.png") == "/out/07.png"
    assert place("/out/{date}/{index}/") == "/out/{date}/7/"
    assert place(str(tmp_path)) == f"{tmp_path}/007-{{prompt}}-{{seed}}.{{ext}}"
    assert place("/out/{date}/{prompt}.png", name="x.png") == "/out/x.png"


def test_one_file_for_all_rows_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"one file for 12 rows"):
        place("/out/fox.png")


def test_braces_of_a_folder_are_no_fields(tmp_path: Path) -> None:
    folder = tmp_path / "{odd}"
    folder.mkdir()
    fields = NameFields(prompt="a", model="o/m", seed=1, id="pred_1", at=_NOW)
    for name in (None, "x.png", "{y}.png"):
        text = place(str(folder), name=name)
        path = OutputPattern.parse(text, default_folder=Path("/never")).path_for(1, 1, fields, "png")
        assert path.parent == folder
        assert name is None or path.name == name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("fox.v{index}", "fox.v7.png"),
        ("fox.a{index}x", "fox.a7x.png"),
        ("fox.v{index}/.", "fox.v7.png"),
        ("fox.v{index}/{{a}}", "{a}.png"),
        ("{index}.webp", "7.webp"),
        ("{index}/fox", "fox.png"),
    ],
)
def test_what_the_number_makes_of_a_name_is_no_extension(template: str, name: str) -> None:
    fields = NameFields(prompt="a", model="o/m", seed=1, id="pred_1", at=_NOW)
    text = numbered(f"/out/{template}", 7)
    assert OutputPattern.parse(text, default_folder=Path("/n")).path_for(1, 1, fields, "png").name == name


_NOW = datetime(2026, 1, 2, tzinfo=UTC)
_PARTS = st.sampled_from(
    ["a", "..", ".", "/", "b.png", "{index}", "{{", "}}", "~", "\\", " ", "ü", "{x}", "-"]
)


@given(st.lists(_PARTS, max_size=8).map("".join))
def test_no_row_can_leave_the_folder(name: str) -> None:
    try:
        text = place("/out/{date}/{index}.png", name=name)
    except InvalidInput:
        return
    fields = NameFields(prompt="a", model="o/m", seed=1, id="pred_1", at=_NOW)
    path = OutputPattern.parse(text, default_folder=Path("/never")).path_for(1, 1, fields, "png")
    assert path.is_relative_to("/out")
    assert ".." not in path.parts


@given(
    st.lists(st.sampled_from(["a", "{index}", "{index:03}", "{seed}", "{{", "}}", "/", "."]), max_size=8),
    st.sampled_from(["x", "{index}"]),
    st.integers(1, 10_000),
)
@example(["a", ".", "a", "{index}"], "x", 1)
def test_a_number_takes_the_place_of_the_index_and_of_nothing_else(
    parts: list[str], end: str, number: int
) -> None:
    text = "/out/" + "".join(parts) + end
    made = numbered(text, number)
    fields = NameFields(prompt="a", model="o/m", seed=1, id="pred_1", at=_NOW)
    wanted = OutputPattern.parse(text, default_folder=Path("/n")).path_for(number, number, fields, "png")
    found = OutputPattern.parse(made, default_folder=Path("/n")).path_for(1, 1, fields, "png")
    if "{index" in text:
        assert found == wanted


def test_a_code_that_is_kept_tells_whose_fault_it_was() -> None:
    assert [
        status_of_code(code) for code in ("prediction_failed", "input_rejected", "invalid_input", "?", None)
    ] == [
        5,
        4,
        2,
        5,
        5,
    ]
