"""The page about the architecture names every port and every package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from source import ROOT, SRC, modules

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def ports() -> list[str]:
    return [
        node.name
        for name, tree in modules().items()
        if name.startswith("imagen.ports.")
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.dump(base) for base in node.bases)
    ]


def files_of_ports() -> list[str]:
    return sorted(path.name for path in (SRC / "imagen" / "ports").glob("[!_]*.py"))


def packages() -> list[Path]:
    root = SRC / "imagen"
    return sorted(each.parent.relative_to(root) for each in root.rglob("*/__init__.py"))


@pytest.mark.parametrize("port", ports())
def test_every_port_is_named(port: str) -> None:
    assert f"`{port}`" in PAGE


@pytest.mark.parametrize("file", files_of_ports())
def test_every_file_of_the_ports_is_named(file: str) -> None:
    """On the page, and in the list at the head of the package."""
    docstring = ast.get_docstring(modules()["imagen.ports"]) or ""
    assert f"`{file}`" in PAGE.partition("**`ports/`**")[2].partition("**`catalog/`**")[0]
    assert f"\n    {file} " in docstring


@pytest.mark.parametrize("package", packages(), ids=str)
def test_every_package_is_named(package: Path) -> None:
    assert f"`{package.as_posix()}/" in PAGE


def test_what_is_looked_for_is_found() -> None:
    assert {"Backend", "Relay", "Clock"} <= set(ports())
    assert {"backend.py", "work.py"} <= set(files_of_ports())
    assert {Path("server"), Path("server/replicate"), Path("emulator/calls")} <= set(packages())
