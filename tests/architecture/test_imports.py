"""Imports point inward (`lint-imports` sees to that) and never in a circle, not even a lazy one."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from source import modules, run_time_nodes

HEAVY = (
    "aiohttp",
    "sqlalchemy",
    "alembic",
    "PIL",
    "rich.progress",
    "keyring",
    "yaml",
    "platformdirs",
    "uvloop",
)


def imported_by(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    found = set()
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are written out in full here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return found & known


def test_no_module_imports_itself_over_others() -> None:
    known = set(modules())
    graph = {name: imported_by(name, tree, known) for name, tree in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(error.args[1]))


def test_the_search_for_circles_finds_lazy_ones_but_no_types() -> None:
    lazy = ast.parse("def f():\n    from imagen import errors\n")
    typed = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from imagen import errors\n")
    assert imported_by("x", lazy, {"imagen.errors"}) == {"imagen.errors"}
    assert imported_by("x", typed, {"imagen.errors"}) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["imagen", *{arguments!r}]
from imagen.cli.main import main
try:
    main()
except SystemExit as ending:
    assert not ending.code, ending.code
print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"], done.stdout[-500:]


def test_importing_the_package_loads_none_of_its_modules() -> None:
    program = "import sys, imagen; print(*(name for name in sys.modules if name.startswith('imagen.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
