"""How the hosted models describe one input parameter: short builders of JSON schema.

The shape is the one `cog` writes and the API returns in `latest_version.openapi_schema` (OpenAPI 3.0, so a
value that may be null is `nullable: true`); `x-order` and the enums' own components are added in `models.py`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

RATIOS_OF_FLUX = ("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21")


def text(description: str, default: str | None = None, *, nullable: bool = False) -> Schema:
    """Free text of any length."""
    return _schema({"type": "string", "description": description}, default, nullable=nullable)


def prompt(description: str = "Prompt for generated image") -> Schema:
    """The prompt; a model requires it unless it gives a default."""
    return text(description)


def whole(
    description: str,
    default: int | None = None,
    low: int | None = None,
    high: int | None = None,
    *,
    nullable: bool = False,
) -> Schema:
    """A whole number from `low` to `high`, both included."""
    return _schema(_bounded("integer", description, low, high), default, nullable=nullable)


def number(
    description: str, default: float | None = None, low: float | None = None, high: float | None = None
) -> Schema:
    """A number from `low` to `high`, both included."""
    return _schema(_bounded("number", description, low, high), default)


def flag(description: str, *, default: bool) -> Schema:
    """Yes or no."""
    return _schema({"type": "boolean", "description": description}, default)


def choice(description: str, default: str, *values: str) -> Schema:
    """One of a few words."""
    return _schema({"type": "string", "enum": list(values), "description": description}, default)


def picture(description: str, *, nullable: bool = False) -> Schema:
    """A picture given by https, http or data URI."""
    return _schema({"type": "string", "format": "uri", "description": description}, None, nullable=nullable)


def pictures(description: str) -> Schema:
    """Several pictures, each given by URI; none by default."""
    items = {"type": "string", "format": "uri"}
    return _schema({"type": "array", "items": items, "description": description}, [])


def listed(description: str, item_type: str) -> Schema:
    """A list of strings or numbers, or null."""
    return _schema(
        {"type": "array", "items": {"type": item_type}, "description": description}, None, nullable=True
    )


def seed(*, nullable: bool = False) -> Schema:
    """The seed; random when it is not given."""
    return whole("Random seed. Set for reproducible generation", nullable=nullable)


def output_format(default: str, *values: str) -> Schema:
    """The format of the files."""
    return choice("Format of the output images", default, *values)


def output_quality(default: int = 80) -> Schema:
    """Quality of the files, 0 to 100; png does not care."""
    return whole("Quality of the output images, 0 to 100, higher is better; png ignores it", default, 0, 100)


def safety_checker() -> Schema:
    """Whether the model's own check is skipped."""
    return flag("Disable safety checker for generated images", default=False)


def _bounded(kind: str, description: str, low: float | None, high: float | None) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    schema: Schema = {"type": kind, "description": description}
    return schema | {name: bound for name, bound in bounds.items() if bound is not None}


def _schema(schema: Schema, default: Any, *, nullable: bool = False) -> Schema:
    if default is not None:
        schema["default"] = default
    if nullable:
        schema["nullable"] = True
    return schema
