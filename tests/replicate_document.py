"""Replicate's own published OpenAPI document, and what it says of answers.

The document is not ours to copy. It is looked for at `IMAGEN_REPLICATE_OPENAPI`, then as
`shared/data/replicate-openapi.json` beside the checkout and beside each folder above it.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema

PLACE = Path("shared/data/replicate-openapi.json")
PROBLEM = "application/problem+json"
MISSING = f"Replicate's OpenAPI document is not here: set IMAGEN_REPLICATE_OPENAPI or put it at {PLACE}"


@functools.cache
def find_document() -> Path | None:
    """Where it is, None where it is not here."""
    if given := os.environ.get("IMAGEN_REPLICATE_OPENAPI"):
        return Path(given)
    for folder in Path(__file__).resolve().parents:
        if (folder / PLACE).is_file():
            return folder / PLACE
    return None


@functools.cache
def document() -> dict[str, Any]:
    """The document, read as it is meant."""
    path = find_document()
    assert path is not None
    loaded: dict[str, Any] = _as_meant(json.loads(path.read_text(encoding="utf-8")))
    return loaded


def complaints(*, method: str, template: str, status: int, kind: str, raw: bytes) -> list[str]:
    """What the document has against an answer; empty for nothing.

    Args:
        method: of the call, in lower case.
        template: the path as the document writes it.
        status: of the answer.
        kind: its media type, without parameters.
        raw: its body.
    """
    operation = document()["paths"][template][method]
    answers = operation["responses"]
    if str(status) not in answers:
        if status < 400:
            return [f"status {status} is not among {', '.join(answers)}"]
        return _problem_complaints(status, kind, raw)
    content = answers[str(status)].get("content")
    if content is None:
        return [] if not raw or status >= 400 else [f"a body of {len(raw)} bytes where there is none"]
    if kind not in content:
        return [f"media type {kind!r} is not among {', '.join(content)}"]
    if "json" not in kind:
        return []
    return [
        f"{found.json_path}: {found.message[:300]}"
        for found in _validator(template, method, str(status), kind).iter_errors(json.loads(raw))
    ]


def _problem_complaints(status: int, kind: str, raw: bytes) -> list[str]:
    """The document lists few errors; Replicate's are problem documents with `detail` and `status` (recorded)."""
    if kind != PROBLEM:
        return [f"an error {status} of media type {kind!r}, not {PROBLEM}"]
    told = json.loads(raw)
    found = [] if isinstance(told.get("detail"), str) and told["detail"] else ["an error without detail"]
    return (
        found
        if told.get("status") == status
        else [*found, f"an error that says {told.get('status')}, not {status}"]
    )


@functools.cache
def _validator(template: str, method: str, status: str, kind: str) -> Any:
    schema = document()["paths"][template][method]["responses"][status]["content"][kind]["schema"]
    return jsonschema.Draft202012Validator(
        {**schema, "components": document()["components"]},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def template_of(path: str, method: str) -> str | None:
    """The path as the document writes it, for one below `/v1`; None for what it does not have."""
    for template, expression in _templates():
        if expression.fullmatch(path) and method in document()["paths"][template]:
            return template
    return None


@functools.cache
def _templates() -> tuple[tuple[str, re.Pattern[str]], ...]:
    # Those without parts to fill in come first: they are meant before the others.
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return tuple((path, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path))) for path in paths)


def _as_meant(node: Any) -> Any:
    """Read two things as they are meant.

    The document says 3.1 and still writes `nullable: true`, which JSON schema does not know; and its
    `version` is `oneOf` any string and the word `hidden`, which by the letter would forbid that word.
    """
    if isinstance(node, list):
        return [_as_meant(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _as_meant(value) for key, value in node.items()}
    if "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")
    if node.get("nullable") is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
    return node
