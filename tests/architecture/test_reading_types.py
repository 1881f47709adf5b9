"""Types are read in one place, because threads may not meet where msgspec first reads one: `imagen/decoding.py`."""

from __future__ import annotations

import ast

import pytest
from source import modules, run_time_nodes

READERS = {"msgspec.convert", "msgspec.json.Decoder"}
UNDER_OTHER_NAMES = {"convert", "decode", "Decoder", "json", "msgpack", "toml", "yaml"}


def offences(tree: ast.Module) -> list[str]:
    found = []
    for node in run_time_nodes(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "msgspec":
            names = [alias.name for alias in node.names if alias.name in UNDER_OTHER_NAMES]
        elif isinstance(node, ast.Attribute) and node.attr in UNDER_OTHER_NAMES:
            names = [name] if (name := ast.unparse(node)) in READERS else []
        elif isinstance(node, ast.Call) and (len(node.args) > 1 or node.keywords):
            # With nothing but the JSON it makes dicts and lists, for which msgspec has to know no type.
            names = [f"{name} of a type"] if (name := ast.unparse(node.func)) == "msgspec.json.decode" else []
        else:
            continue
        found += [f"line {node.lineno}: {name}" for name in names]
    return found


@pytest.mark.parametrize("name", sorted(set(modules()) - {"imagen.decoding"}))
def test_types_are_read_by_decoding_alone(name: str) -> None:
    assert offences(modules()[name]) == []


def test_offences_are_found() -> None:
    tree = ast.parse(
        "from msgspec.json import decode, encode\n"
        "from msgspec import json\n"
        "msgspec.convert(value, int)\n"
        "msgspec.json.decode(data, type=int)\n"
        "msgspec.json.Decoder(int).decode\n"
        "msgspec.json.decode(data)\n"
        "msgspec.json.encode(data).decode()\n"
    )
    assert offences(tree) == [
        "line 1: decode",
        "line 2: json",
        "line 3: msgspec.convert",
        "line 4: msgspec.json.decode of a type",
        "line 5: msgspec.json.Decoder",
    ]
