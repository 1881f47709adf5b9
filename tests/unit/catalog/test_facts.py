"""Our parameter facts against the recorded schemas, which are no part of the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagen.catalog import Catalog, Parameter

RECORDED = next(
    (
        folder
        for parent in Path(__file__).resolve().parents
        if (folder := parent / "shared" / "data" / "models").is_dir()
    ),
    None,
)
if RECORDED is None:
    pytest.skip(
        "the recorded schemas (shared/data/models) are not beside this checkout", allow_module_level=True
    )

CATALOG = Catalog.load()
FILES = sorted(RECORDED.glob("*.json"))


def recorded(file: Path) -> dict[str, Any]:
    facts = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(facts, dict)
    return facts


def parameters(file: Path) -> dict[str, Parameter]:
    model = CATALOG.find(recorded(file)["model"])
    assert model is not None
    assert model.parameters is not None
    return {parameter.name: parameter for parameter in model.parameters}


def test_there_are_schemas():
    assert len(FILES) >= 48


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestParameters:
    def test_names(self, file: Path):
        assert set(parameters(file)) == set(recorded(file)["input_schema"]["properties"])

    def test_required(self, file: Path):
        ours = {name for name, parameter in parameters(file).items() if parameter.required}
        assert ours == set(recorded(file)["input_schema"]["required"])

    def test_types_bounds_and_enums(self, file: Path):
        for name, parameter in parameters(file).items():
            theirs = recorded(file)["input_schema"]["properties"][name]
            assert parameter.type == theirs.get("type", "string"), name
            assert parameter.minimum == theirs.get("minimum"), name
            assert parameter.maximum == theirs.get("maximum"), name
            assert list(parameter.enum or ()) == theirs.get("enum", []), name
            if "items" in theirs:
                assert parameter.items == theirs["items"]["type"], name

    def test_defaults(self, file: Path):
        for name, parameter in parameters(file).items():
            theirs = recorded(file)["input_schema"]["properties"][name].get("default")
            if not parameter.required:
                assert parameter.default == (None if theirs == [] else theirs), name

    def test_files_and_secrets(self, file: Path):
        for name, parameter in parameters(file).items():
            theirs = recorded(file)["input_schema"]["properties"][name]
            if "uri" in (theirs.get("format"), theirs.get("items", {}).get("format")):
                assert parameter.format == "uri", name
            assert parameter.secret == theirs.get("x-cog-secret", False), name

    def test_output_and_official(self, file: Path):
        facts = recorded(file)
        model = CATALOG.find(facts["model"])
        assert model is not None
        assert model.official is facts["is_official"]
        shape = (
            {"string": "uri", "array": "uris"}[facts["output_schema"]["type"]]
            if facts["output_schema"]
            else "unknown"
        )
        assert model.output == shape
