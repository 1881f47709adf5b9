"""What a model takes and gives: its parameters, its output, its schema document.

The models themselves are in `catalog.py` and `catalog_text.py`; more are added through `Emulator(models=…)` or
control's `POST models`. Which of them the API lists, and under which versions, is `register.py`'s business.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from copy import copy
from typing import Any, Literal

import msgspec

from imagen.emulator.parameters import prompt

CREATED_AT = "2024-10-02T01:37:54.199755Z"
COG_VERSION = "0.9.25"

_URI = {"type": "string", "format": "uri"}
_OUTPUTS: Mapping[str, dict[str, Any]] = {
    "uri": _URI,
    "uris": {"type": "array", "items": _URI},
    "string": {"type": "string"},
    "strings": {
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    },
}
"""How cog writes the four outputs; that of `strings` is recorded (2023-10, meta/llama-2-70b-chat)."""

_NAME = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", re.IGNORECASE)
_VERSION = re.compile(r"[0-9a-f]{64}")


class Model(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One model: what it takes, what it gives, how long it runs.

    `parameters` are JSON schemas by name, in order of display. `output` is `uris` (a list of files), `uri`
    (one file), `strings` (text, piece by piece, as language models print it) or `string` (text). Official models run
    by name; the others by version only. `run_seconds` and `queue_seconds` (0 or more) replace the emulator's own for
    this model.
    """

    name: str
    description: str = ""
    tags: tuple[str, ...] = ()
    """What a search finds it by, besides its name and description."""
    parameters: dict[str, dict[str, Any]] = msgspec.field(default_factory=lambda: {"prompt": prompt()})
    required: tuple[str, ...] = ("prompt",)
    output: Literal["uri", "uris", "string", "strings"] = "uris"
    official: bool = True
    version: str = ""
    output_format: Literal["png", "webp", "jpg", "svg"] = "png"
    """The format of models that have no parameter for it."""
    megapixels: float = 1.0
    """The area of models that have no parameter for it; 1 is 1024 x 1024."""
    extra_inputs: bool = False
    """Whether unknown input keys pass. Most hosted models answer 422 (`additional_property_not_allowed`)."""
    run_seconds: float | None = None
    queue_seconds: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a model is named owner/name, not {self.name!r}")
        if self.version and not _VERSION.fullmatch(self.version):
            raise ValueError("a version is 64 hexadecimal digits in lower case")
        if min(self.run_seconds or 0, self.queue_seconds or 0) < 0 or not 0 < self.megapixels <= 64:
            raise ValueError("seconds must be 0 or more, megapixels above 0 and at most 64")
        if missing := set(self.required) - set(self.parameters):
            raise ValueError(f"required but not among the parameters: {', '.join(sorted(missing))}")

    @property
    def version_id(self) -> str:
        """The id of the only version there is: as given, or made from the name."""
        return self.version or hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def public_version(self) -> str:
        """What `prediction.version` says: `hidden` for official models (OpenAPI document)."""
        return "hidden" if self.official else self.version_id

    @property
    def makes_files(self) -> bool:
        """Whether its output is files."""
        return self.output in {"uri", "uris"}

    @property
    def makes_lists(self) -> bool:
        """Whether its output is a list."""
        return self.output in {"uris", "strings"}

    @property
    def streams(self) -> bool:
        """Whether its predictions list `urls.stream`; what gives one text at the end has nothing to stream."""
        return self.output != "string"

    @property
    def secret_inputs(self) -> frozenset[str]:
        """The parameters that hold somebody's key: cog's `Secret`, which the API never shows again."""
        return frozenset(name for name, schema in self.parameters.items() if _is_secret(schema))

    def with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The input a run sees; `prediction.input` shows only what was given."""
        defaults = {
            name: schema["default"] for name, schema in self.parameters.items() if "default" in schema
        }
        return defaults | {name: value for name, value in given.items() if value is not None}

    def version_json(self, created_at: str = CREATED_AT) -> dict[str, Any]:
        """The version object of `GET …/versions/{id}`."""
        return {
            "id": self.version_id,
            "created_at": created_at,
            "cog_version": COG_VERSION,
            "openapi_schema": self.openapi_schema(),
        }

    def openapi_schema(self) -> dict[str, Any]:
        """The schema document as cog writes it: an enum is a component, behind `allOf` and `$ref`."""
        schemas: dict[str, Any] = {}
        properties: dict[str, Any] = {}
        for order, (name, schema) in enumerate(self.parameters.items()):
            properties[name] = _titled(name, schema) | {"x-order": order}
            if "enum" in schema:
                schemas[name] = {
                    "enum": schema["enum"],
                    "type": schema["type"],
                    "title": name,
                    "description": "An enumeration.",
                }
        schemas["Input"] = {"type": "object", "title": "Input", "properties": properties}
        if self.required:
            schemas["Input"]["required"] = list(self.required)
        if not self.extra_inputs:
            schemas["Input"]["additionalProperties"] = False
        schemas["Output"] = {"title": "Output", **_OUTPUTS[self.output]}
        return {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": schemas},
        }


def renamed(model: Model, name: str, version: str, *, official: bool) -> Model:
    """The same under another name and version; what is planted need not look as names and versions do."""
    copied = copy(model)
    for attribute, value in (("name", name), ("version", version), ("official", official)):
        msgspec.structs.force_setattr(copied, attribute, value)
    return copied


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return schema.get("x-cog-secret") is True or schema.get("format") == "password"


def _titled(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if "enum" not in schema:
        return {"title": name.replace("_", " ").title()} | dict(schema)
    shown = {key: value for key, value in schema.items() if key not in {"enum", "type"}}
    return shown | {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
