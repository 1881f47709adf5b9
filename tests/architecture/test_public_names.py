"""The public names of the package."""

from __future__ import annotations

import ast
from importlib import import_module

import pytest
from source import modules

import imagen
import imagen.ports

PACKAGES_WITH_NAMES = (
    "imagen",
    "imagen.catalog",
    "imagen.emulator",
    "imagen.pictures",
    "imagen.ports",
    "imagen.settings",
)


def test_all_is_what_the_package_hands_out() -> None:
    homes = set(imagen._HOMES)
    assert set(imagen.__all__) == homes | {"__version__"}


@pytest.mark.parametrize("package", PACKAGES_WITH_NAMES)
def test_every_public_name_can_be_imported(package: str) -> None:
    module = import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []


def test_every_name_in_the_files_of_the_ports_is_handed_out_by_the_package() -> None:
    statements = [
        node for name, tree in modules().items() if name.startswith("imagen.ports.") for node in tree.body
    ]
    classes = [node.name for node in statements if isinstance(node, ast.ClassDef)]
    assigned = [target for node in statements if isinstance(node, ast.Assign) for target in node.targets]
    aliases = [target.id for target in assigned if isinstance(target, ast.Name)]
    assert sorted(classes + aliases) == sorted(imagen.ports.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = modules()["imagen"]
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == imagen._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Painter'"):
        _ = imagen.Painter


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version  # noqa: PLC0415 - only here

    assert imagen.__version__ == version("imagen-gateway")
