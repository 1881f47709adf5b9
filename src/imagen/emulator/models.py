"""A model as the API knows it, and the register of those this emulator answers for.

The models themselves are in `catalog.py`; more are added through `Emulator(models=…)` or control's
`POST models`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from imagen.emulator.parameters import prompt

CREATED_AT = "2024-10-02T01:37:54.199755Z"
COG_VERSION = "0.9.25"

_NAME = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", re.IGNORECASE)
_VERSION = re.compile(r"[0-9a-f]{64}")


class Model(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One model: what it takes, what it gives, how long it runs.

    `parameters` are JSON schemas by name, in order of display. `output` is `uris` (a list of files) or `uri`
    (one file). Official models run by name; the others by version only. `run_seconds` and `queue_seconds`
    (0 or more) replace the emulator's own for this model.
    """

    name: str
    description: str = ""
    parameters: dict[str, dict[str, Any]] = msgspec.field(default_factory=lambda: {"prompt": prompt()})
    required: tuple[str, ...] = ("prompt",)
    output: Literal["uri", "uris"] = "uris"
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
    def secret_inputs(self) -> frozenset[str]:
        """The parameters that hold somebody's key: cog's `Secret`, which the API never shows again."""
        return frozenset(name for name, schema in self.parameters.items() if _is_secret(schema))

    def with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The input a run sees; `prediction.input` shows only what was given."""
        defaults = {
            name: schema["default"] for name, schema in self.parameters.items() if "default" in schema
        }
        return defaults | {name: value for name, value in given.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The model object of `GET /models/{owner}/{name}`."""
        owner, name = self.name.split("/")
        return {
            "url": f"https://replicate.com/{self.name}",
            "owner": owner,
            "name": name,
            "description": self.description,
            "visibility": "public",
            "is_official": self.official,
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": int(self.version_id[:6], 16),
            "cover_image_url": None,
            "default_example": None,
            "latest_version": self.version_json(),
        }

    def version_json(self) -> dict[str, Any]:
        """The version object of `GET …/versions/{id}`."""
        return {
            "id": self.version_id,
            "created_at": CREATED_AT,
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
        uri = {"type": "string", "format": "uri"}
        schemas["Input"] = {"type": "object", "title": "Input", "properties": properties}
        if self.required:
            schemas["Input"]["required"] = list(self.required)
        if not self.extra_inputs:
            schemas["Input"]["additionalProperties"] = False
        schemas["Output"] = {"title": "Output"} | (
            uri if self.output == "uri" else {"type": "array", "items": uri}
        )
        return {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": schemas},
        }


@dataclass(frozen=True)
class Deployment:
    """A model under a name of its own; its only release runs the model's version."""

    name: str
    """`owner/name`."""
    model: Model

    def to_json(self, api_url: str) -> dict[str, Any]:
        """The deployment object of `GET /deployments/{owner}/{name}`."""
        owner, _, name = self.name.partition("/")
        return {
            "owner": owner,
            "name": name,
            "current_release": {
                "number": 1,
                "model": self.model.name,
                "version": self.model.version_id,
                "created_at": CREATED_AT,
                "created_by": {
                    "type": "organization",
                    "username": owner,
                    "name": f"Emulated organization {owner}",
                    "avatar_url": f"{api_url}/avatars/{owner}.png",
                    "github_url": f"https://github.com/{owner}",
                },
                "configuration": {"hardware": "gpu-h100", "min_instances": 0, "max_instances": 5},
            },
        }


class Models:
    """The models and deployments one emulator knows; adding a name again replaces it."""

    def __init__(self, models: Iterable[Model], deployments: Mapping[str, str]) -> None:
        self._by_name: dict[str, Model] = {}
        self._by_version: dict[str, Model] = {}
        self._deployments = dict(deployments)
        for model in models:
            self.add(model)

    def add(self, model: Model) -> None:
        """Make a model known."""
        self._by_name[model.name] = model
        self._by_version[model.version_id] = model

    def everyone(self) -> tuple[Model, ...]:
        """All of them, in the order they became known."""
        return tuple(self._by_name.values())

    def named(self, name: str) -> Model | None:
        """The model `owner/name`."""
        return self._by_name.get(name)

    def with_version(self, version_id: str) -> Model | None:
        """The model whose version this is."""
        return self._by_version.get(version_id)

    def meant_by(self, version: str) -> Model | None:
        """The model that `owner/name`, `owner/name:<64 hex>` or `<64 hex>` means."""
        name, _, version_id = version.rpartition(":")
        if "/" in version and not name:
            return self.named(version)
        model = self.with_version(version_id)
        return model if model is not None and name in {"", model.name} else None

    def deployments(self) -> tuple[Deployment, ...]:
        """Every deployment of a model that is known."""
        found = (self.deployment(name) for name in self._deployments)
        return tuple(deployment for deployment in found if deployment is not None)

    def deployment(self, name: str) -> Deployment | None:
        """The deployment `owner/name`."""
        model = self._by_name.get(self._deployments.get(name, ""))
        return None if model is None else Deployment(name, model)


def _is_secret(schema: Mapping[str, Any]) -> bool:
    return schema.get("x-cog-secret") is True or schema.get("format") == "password"


def _titled(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if "enum" not in schema:
        return {"title": name.replace("_", " ").title()} | dict(schema)
    shown = {key: value for key, value in schema.items() if key not in {"enum", "type"}}
    return shown | {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
