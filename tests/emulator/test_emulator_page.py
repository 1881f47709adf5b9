"""The page "Replicate in a box" names everything there is, and its examples of faults are accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec

from imagen.emulator.api import ROUTES
from imagen.emulator.control import ACTIONS
from imagen.emulator.faults import fault_from_json, fault_names
from imagen.emulator.limits import Mode
from imagen.emulator.plant import Plant
from imagen.emulator.state import MOST_PREDICTIONS, MOST_TRAININGS

PAGE = (Path(__file__).parents[2] / "docs/how-to/replicate-in-a-box.md").read_text(encoding="utf-8")


def test_every_fault_has_an_example_that_can_be_posted():
    examples = [json.loads(found) for found in re.findall(r"^\| .* \| `({.*})` \|$", PAGE, re.MULTILINE)]
    named = [fault_from_json(example).name for example in examples]
    assert set(named) == set(fault_names())
    assert len(examples) == PAGE.count('| `{"name"')


def test_every_mode_has_its_row_with_its_default():
    rows = {
        name: values.split(", ")
        for names, values in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\S+(?:, \S+)*) \| ", PAGE, re.MULTILINE)
        for name in re.findall(r"\w+", names)
    }
    for name, value in msgspec.to_builtins(Mode()).items():
        assert name in rows, name
        assert json.loads(rows[name][0]) == value, name


def test_every_call_of_control_and_every_kind_of_plant_is_named():
    for method, path, _ in ACTIONS:
        plain = path.partition("/{")[0]
        rows = [row for row in PAGE.splitlines() if row.startswith("| `") and f" {plain}`" in row]
        assert any(f"`{method}" in row for row in rows), (method, path)
    planted = PAGE.partition("## Plant")[2].partition("\n## ")[0]
    for kind in Plant.__struct_fields__:
        assert f"`{kind}`" in planted, kind


def test_the_numbers_are_right():
    assert f"all {len(ROUTES)} operations" in PAGE
    assert f"newest {MOST_PREDICTIONS:,} predictions, {MOST_TRAININGS:,} trainings" in PAGE
