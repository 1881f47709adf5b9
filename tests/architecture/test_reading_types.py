"""Types are read in one place, because threads may not meet where msgspec first reads one: `imagen/decoding.py`."""

from __future__ import annotations

import ast

import pytest
from source import modules, run_time_nodes

READERS = {"msgspec.convert", "msgspec.json.Decoder", "msgspec.msgpack", "msgspec.toml", "msgspec.yaml"}
ENDS = {name.rpartition(".")[2] for name in READERS}
NOT_IMPORTED = READERS | {"msgspec.json", "msgspec.json.decode"}
"""Under a name of its own nobody would know it again."""


def offences(tree: ast.Module) -> list[str]:
    found = []
    for node in run_time_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in names if name in NOT_IMPORTED or node.module in READERS]
        elif isinstance(node, ast.Attribute) and node.attr in ENDS:
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
        "from msgspec.yaml import decode\n"
        "msgspec.convert(value, int)\n"
        "msgspec.toml.decode(data)\n"
        "msgspec.json.decode(data, type=int)\n"
        "msgspec.json.Decoder(int).decode\n"
        "msgspec.json.decode(data)\n"
        "msgspec.json.encode(data).decode()\n"
    )
    assert offences(tree) == [
        "line 1: msgspec.json.decode",
        "line 2: msgspec.json",
        "line 3: msgspec.yaml.decode",
        "line 4: msgspec.convert",
        "line 5: msgspec.toml",
        "line 6: msgspec.json.decode of a type",
        "line 7: msgspec.json.Decoder",
    ]
