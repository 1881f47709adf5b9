"""What a create call may say: body, headers and the model's input, and the 422 that answers the rest.

The hosted API checks with gojsonschema: its words for the kinds (`enum`, `number_lte`, …), its sentences and
its order (what is missing, then what is too much, then value by value) are kept here. Lines of bodies quoted
in public issues, 2025-2026: `- input: prompt is required`, `- Additional property model is not allowed`,
`- input.num_inference_steps: Must be less than or equal to 4`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imagen.emulator.models import Model
from imagen.emulator.problems import InvalidField, Problem, invalid_request

MAX_WAIT_SECONDS = 60
MIN_CANCEL_AFTER_SECONDS = 5
MAX_CANCEL_AFTER_SECONDS = 24 * 3600
WEBHOOK_EVENTS = ("start", "output", "logs", "completed")

MODEL_NAME = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", re.IGNORECASE)

WEBHOOK_BODY: Mapping[str, Mapping[str, Any]] = {
    "webhook": {"type": "string"},
    "webhook_events_filter": {"type": "array", "items": {"type": "string", "enum": list(WEBHOOK_EVENTS)}},
}
_BODY: Mapping[str, Mapping[str, Any]] = {
    "input": {"type": "object"},
    **WEBHOOK_BODY,
    "stream": {"type": "boolean"},
}
_VERSIONED_BODY: Mapping[str, Mapping[str, Any]] = {"version": {"type": "string"}, **_BODY}

_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_WAIT = re.compile(r"wait(?:=([1-9][0-9]?))?")
_CANCEL_AFTER = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s?)?")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S")


@dataclass(frozen=True)
class CreateBody:
    """A create call's body that has passed; `input` is still to be held against the model."""

    input: dict[str, Any]
    version: str | None
    webhook: str | None
    webhook_events: tuple[str, ...]


def parse_create_body(body: Any, *, versioned: bool) -> CreateBody:
    """Read the body of a create call; `versioned` is `POST /predictions`, where `version` is required.

    Raises:
        Problem: 422, with every complaint there is.
    """
    properties = _VERSIONED_BODY if versioned else _BODY
    check_body(body, properties, required=("version", "input") if versioned else ("input",))
    check_webhook(body)
    return CreateBody(
        input=body["input"],
        version=body.get("version"),
        webhook=body.get("webhook"),
        webhook_events=tuple(body.get("webhook_events_filter", ())),
    )


def check_body(
    body: Any, properties: Mapping[str, Mapping[str, Any]], *, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Hold a body against the JSON schemas of its keys; others are refused.

    Raises:
        Problem: 422, with every complaint there is.
    """
    complaints = list(_complaints_of_object(body, properties, required, field=""))
    if complaints:
        raise invalid_request(complaints)
    checked: dict[str, Any] = body
    return checked


def check_webhook(body: Mapping[str, Any]) -> None:
    """Hold a create call's webhook against what is sent to: https only, and no events without an address.

    Raises:
        Problem: 422.
    """
    if not str(body.get("webhook", "https://")).startswith("https://"):
        raise invalid_request([InvalidField("format", "webhook", "Does not match format 'https'")])
    if "webhook_events_filter" in body and "webhook" not in body:
        description = "webhook_events_filter cannot be provided without webhook"
        raise invalid_request([InvalidField("required", "", description)])


def check_hardware(known: Mapping[str, str], sku: str) -> None:
    """Hold a SKU against the hardware there is.

    Raises:
        Problem: 422.
    """
    if sku not in known:
        allowed = ", ".join(f'"{one}"' for one in known)
        description = f"hardware must be one of the following: {allowed}"
        raise invalid_request([InvalidField("enum", "hardware", description)])


def check_input(model: Model, given: Mapping[str, Any]) -> None:
    """Hold an input against the model's schema.

    Raises:
        Problem: 422, with every complaint there is.
    """
    complaints = list(
        _complaints_of_object(
            given, model.parameters, model.required, field="input", extra=model.extra_inputs
        )
    )
    if complaints:
        raise invalid_request(complaints)


def parse_prefer(value: str | None) -> int | None:
    """Seconds that a create call asks to be held, 1 to 60, or None.

    The published pattern also lets 61 to 99 through; they are held for 60. Other preferences are ignored, as
    RFC 7240 has it; a malformed `wait` is refused.
    """
    if value is None or not value.strip().startswith("wait"):
        return None
    match = _WAIT.fullmatch(value.strip())
    if match is None:
        raise _bad_header("Prefer", "Must be wait or wait=n with n from 1 to 60")
    return min(MAX_WAIT_SECONDS, int(match[1] or MAX_WAIT_SECONDS))


def parse_cancel_after(value: str | None) -> int | None:
    """Seconds after which a prediction ends on its own: `30`, `30s`, `5m`, `2h`, `1h30m45s`; 5 s to 24 h."""
    if value is None:
        return None
    match = _CANCEL_AFTER.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        raise _bad_header("Cancel-After", "Must be a duration such as 30, 30s, 5m, 2h or 1h30m45s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    duration = hours * 3600 + minutes * 60 + seconds
    if not MIN_CANCEL_AFTER_SECONDS <= duration <= MAX_CANCEL_AFTER_SECONDS:
        raise _bad_header("Cancel-After", "Must be from 5 seconds to 24 hours")
    return duration


def _bad_header(name: str, description: str) -> Problem:
    return invalid_request([InvalidField("header", name, description)])


def _complaints_of_object(
    value: Any,
    properties: Mapping[str, Mapping[str, Any]],
    required: tuple[str, ...],
    *,
    field: str,
    extra: bool = False,
) -> Iterator[InvalidField]:
    if not isinstance(value, dict):
        yield _invalid_type(field or "(root)", "object", value)
        return
    for name in required:
        if name not in value:
            yield InvalidField("required", field, f"{name} is required")
    for name in value:
        if name not in properties and not extra:
            description = f"Additional property {name} is not allowed"
            yield InvalidField("additional_property_not_allowed", field, description)
    for name, schema in properties.items():
        if name in value:
            yield from _complaints_of(value[name], schema, f"{field}.{name}" if field else name)


def _complaints_of(value: Any, schema: Mapping[str, Any], field: str) -> Iterator[InvalidField]:
    if value is None and schema.get("nullable"):
        return
    if not _is_of(value, schema.get("type")):
        yield _invalid_type(field, schema["type"], value)
        return
    name = field.rsplit(".", 1)[-1]
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(json.dumps(word, ensure_ascii=False) for word in schema["enum"])
        yield InvalidField("enum", field, f"{name} must be one of the following: {allowed}")
    if "minimum" in schema and value < schema["minimum"]:
        description = f"Must be greater than or equal to {schema['minimum']:g}"
        yield InvalidField("number_gte", field, description)
    if "maximum" in schema and value > schema["maximum"]:
        yield InvalidField("number_lte", field, f"Must be less than or equal to {schema['maximum']:g}")
    if schema.get("format") == "uri" and not _URI.match(value):
        yield InvalidField("format", field, "Does not match format 'uri'")
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        yield InvalidField("array_max_items", field, f"Array must have at most {schema['maxItems']} items")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _complaints_of(item, schema.get("items", {}), f"{field}.{index}")


def _is_of(value: Any, kind: str | None) -> bool:
    if kind is None:
        return True
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, _KINDS[kind])


def _invalid_type(field: str, expected: str, value: Any) -> InvalidField:
    description = f"Invalid type. Expected: {expected}, given: {_kind_of(value)}"
    return InvalidField("invalid_type", field, description)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return next(
        kind
        for kind in ("boolean", "string", "integer", "array", "object")
        if isinstance(value, _KINDS[kind])
    )
