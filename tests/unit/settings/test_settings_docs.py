"""The reference of the settings says what the rows say, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from imagen.settings import BACKEND_ROWS, ROWS, Row
from imagen.settings.rows import BY_VARIABLE

REFERENCE = Path(__file__).parents[3] / "docs/reference/settings.md"


def line_of(row: Row) -> str:
    variables = ", ".join(f"`{name}`" for name in row.variables)
    default = row.absent if row.default is None else f"`{row.default}`"
    return f"| `{row.name}` | {variables} | {default} | {row.kind.allowed} | {row.help} |"


def line_of_backend(row: Row) -> str:
    default = row.absent if row.default is None else f"`{row.default}`"
    return f"| `{row.name}` | {default} | {row.kind.allowed} | {row.help} |"


def test_the_reference_has_every_setting_and_nothing_else() -> None:
    written = [line for line in REFERENCE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert written == [*map(line_of, ROWS), *map(line_of_backend, BACKEND_ROWS)]


def test_the_reference_names_no_other_variable() -> None:
    named = set(re.findall(r"`(IMAGEN_[A-Z_]+)`", REFERENCE.read_text("utf-8")))
    assert named == {*BY_VARIABLE, "IMAGEN_CONFIG", "IMAGEN_TEST_"}
