"""What a create call of Replicate's API says, read and checked: body and headers, refused in the words of the service.

Source: Replicate's OpenAPI document, and its answers to what does not fit, quoted in public issues in 2025 and 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from imagen.domain.model_ref import ModelRef
from imagen.errors import InvalidInput, InvalidModelRef, Problem
from imagen.server.headers import wants_exact
from imagen.server.replicate.problems import Complaint, InvalidVersion
from imagen.server.wishes import check_options
from imagen.service.replicate_events import EVENTS
from imagen.service.replicate_shapes import LEAST_DEADLINE_SECONDS, MOST_DEADLINE_SECONDS

MOST_WAIT_SECONDS = 60
VERSION = "version"
_KINDS: Mapping[str, tuple[type, str]] = {
    VERSION: (str, "string"),
    "input": (dict, "object"),
    "webhook": (str, "string"),
    "webhook_events_filter": (list, "array"),
    "stream": (bool, "boolean"),
}
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
_LONGEST_NAME = 100
_WAIT = re.compile(r"wait(?:=([1-9][0-9]?))?", re.ASCII)
_CANCEL_AFTER = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s?)?", re.ASCII)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A create call that makes sense; its input is still to be held against the model.

    Attributes:
        input: the model's whole input.
        version: what the body names, where it has to.
        webhook, events: as they were given.
        streams: somebody reads the output as it comes.
        wait: seconds for which the answer may be held; None for not at all.
        cancel_after: seconds from now until it must have ended; None where nobody said so.
        exact: nothing may be told in another form than the service's own.
    """

    input: dict[str, Any]
    version: str | None
    webhook: str | None
    events: list[str] | None
    streams: bool
    wait: int | None
    cancel_after: int | None
    exact: bool

    @property
    def watched(self) -> bool:
        """Whether somebody looks at how it goes on, so that it is not just waited for."""
        return self.wait is None or self.streams or bool({"output", "logs"} & set(self.events or ()))


def read_call(request: Request, fields: Mapping[str, Any], *, versioned: bool) -> Call:
    """What a create call says.

    Args:
        request: with its headers.
        fields: its body.
        versioned: the body names the version; else the path names the model.

    Raises:
        InvalidInput: with every complaint about the body, or about a header.
    """
    complaints = list(_complaints(fields, versioned=versioned))
    if complaints:
        raise InvalidInput(complaints, subject="the body")
    check_input(fields["input"])
    return Call(
        input=fields["input"],
        version=fields.get(VERSION),
        webhook=fields.get("webhook"),
        # As at the service, names without an address mean nothing, and no names mean the usual ones.
        events=(fields.get("webhook_events_filter") or None) if "webhook" in fields else None,
        streams=fields.get("stream") is True,
        wait=read_wait(request.headers.get("prefer")),
        cancel_after=read_cancel_after(request.headers.get("cancel-after")),
        exact=wants_exact(request),
    )


def check_input(values: Mapping[str, Any]) -> None:
    """Refuse what no model's input can be, before it is compared with any.

    Raises:
        InvalidInput: naming each field as the service does.
    """
    try:
        check_options(values)
    except InvalidInput as error:
        told = [Problem(f"input.{problem.field}", problem.message) for problem in error.problems]
        raise InvalidInput(told, subject="the input") from None


def read_version(version: str) -> ModelRef:
    """The model that a body names: `owner/name`, `owner/name:version`, or 64 hex digits of a version alone.

    Raises:
        InvalidVersion: it is none of these.
    """
    try:
        found = ModelRef.parse(version)
    except InvalidModelRef:
        raise InvalidVersion from None
    if found.deployment:
        raise InvalidVersion
    return found


def read_wait(header: str | None) -> int | None:
    """Seconds that a call asks to be held, 1 to 60; None for not at all.

    The published pattern also lets 61 to 99 through, which are held for 60. Other preferences are ignored (RFC 7240).

    Raises:
        InvalidInput: it is a wait that makes no sense.
    """
    if header is None or not header.strip().startswith("wait"):
        return None
    match = _WAIT.fullmatch(header.strip())
    if match is None:
        raise _bad_header("Prefer", "Must be wait or wait=n with n from 1 to 60")
    return min(MOST_WAIT_SECONDS, int(match[1] or MOST_WAIT_SECONDS))


def read_cancel_after(header: str | None) -> int | None:
    """Seconds after which a prediction is to end: `30`, `30s`, `5m`, `2h`, `1h30m45s`; 5 s to 24 h.

    Raises:
        InvalidInput: it is no such time.
    """
    if header is None:
        return None
    match = _CANCEL_AFTER.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        raise _bad_header("Cancel-After", "Must be a duration such as 30, 30s, 5m, 2h or 1h30m45s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    whole = hours * 3600 + minutes * 60 + seconds
    if not LEAST_DEADLINE_SECONDS <= whole <= MOST_DEADLINE_SECONDS:
        raise _bad_header("Cancel-After", "Must be from 5 seconds to 24 hours")
    return whole


def _complaints(fields: Mapping[str, Any], *, versioned: bool) -> Iterator[Complaint]:
    """Everything that is wrong with a body: what is missing, then what is too much, then field by field."""
    known = [name for name in _KINDS if versioned or name != VERSION]
    for name in (VERSION, "input") if versioned else ("input",):
        if name not in fields:
            yield Complaint("", f"{name} is required", "required")
    for name in fields:
        if name not in known:
            described = f"Additional property {name[:_LONGEST_NAME]} is not allowed"
            yield Complaint("", described, "additional_property_not_allowed")
    for name in known:
        if name not in fields:
            continue
        kind, called = _KINDS[name]
        if not isinstance(fields[name], kind):
            yield _wrong_type(name, called, fields[name])
        elif name == "webhook_events_filter":
            yield from _complaints_of_events(fields[name])


def _complaints_of_events(events: list[Any]) -> Iterator[Complaint]:
    allowed = ", ".join(f'"{event}"' for event in EVENTS)
    for index, event in enumerate(events):
        field = f"webhook_events_filter.{index}"
        if not isinstance(event, str):
            yield _wrong_type(field, "string", event)
        elif event not in EVENTS:
            yield Complaint(field, f"{field} must be one of the following: {allowed}", "enum")


def _wrong_type(field: str, expected: str, value: Any) -> Complaint:
    given = "null" if value is None else _NAMES.get(type(value), "object")
    return Complaint(field, f"Invalid type. Expected: {expected}, given: {given}", "invalid_type")


def _bad_header(name: str, description: str) -> InvalidInput:
    return InvalidInput([Complaint(name, description, "header")], subject="the headers")
