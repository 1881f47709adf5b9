"""Nothing that changes lives in a module: two applications in one process do not meet there."""

from __future__ import annotations

import ast

import pytest
from source import modules, run_time_nodes

LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = {
    "list",
    "dict",
    "set",
    "bytearray",
    "defaultdict",
    "deque",
    "Counter",
    "OrderedDict",
    "WeakValueDictionary",
}


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return name in MAKERS
    return isinstance(value, LITERALS)


def offences(tree: ast.Module) -> list[str]:
    found = []
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and is_mutable(getattr(node, "value", None)):
                constant = target.id.lstrip("_").isupper() or target.id == "__all__"
                found += [] if constant else [f"line {node.lineno}: {target.id}"]
    for inner in run_time_nodes(tree):
        if isinstance(inner, ast.Global):
            found.append(f"line {inner.lineno}: global {', '.join(inner.names)}")
    return found


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_mutable_state_in_a_module(name: str) -> None:
    assert offences(modules()[name]) == []


def test_offences_are_found() -> None:
    tree = ast.parse("cache = {}\nseen: set[str] = set()\nTABLE = {}\n_KNOWN = []\n__all__ = []\n")
    assert offences(tree) == ["line 1: cache", "line 2: seen"]


def test_constants_are_not_changed_where_they_live() -> None:
    """`TABLE[key] = …` or `TABLE.append(…)` at module level or in a function would make a constant a variable."""
    changing = {
        "append",
        "add",
        "update",
        "setdefault",
        "pop",
        "clear",
        "extend",
        "remove",
        "discard",
        "insert",
    }
    found = []
    for name, tree in modules().items():
        constants = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in run_time_nodes(tree):
            changed: ast.expr | None = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                changed = node.value
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in changing
            ):
                changed = node.func.value
            if isinstance(changed, ast.Name) and changed.id in constants and changed.id.lstrip("_").isupper():
                found.append(f"{name}:{node.lineno}: {changed.id}")  # type: ignore[attr-defined]
    assert found == []
