"""What was asked of the emulator and how it answered, in order; for tests to read afterwards."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

KEPT_HEADERS = ("accept", "cancel-after", "content-type", "prefer", "range", "user-agent")
CAPACITY = 10_000
MAX_BODY_BYTES = 65_536


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """One request and its answer.

    `at` is when it came, ISO 8601 on the virtual clock; entries stand in the order of their answers. `server`
    is `api` or `delivery`, or `webhook` for what the emulator itself sent to another, `status` the status answered (0 when the connection was closed without an answer).
    `authorization` never holds a token: it is
    `bearer:<first 12 hex digits of its SHA-256>`. `body` is the JSON sent, at most 64 KiB of it, with secret
    inputs as they came.
    `prediction_id` names the prediction created, read or delivered; `fault` what went wrong on request.
    """

    at: str
    server: str
    operation: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    authorization: str | None
    body: Any
    status: int
    prediction_id: str | None
    fault: str | None


class Journal:
    """The newest 10,000 entries, oldest first; may be read from any thread."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=CAPACITY)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Write one down."""
        self._entries.append(entry)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def entries(self, **wanted: Any) -> tuple[Entry, ...]:
        """The entries whose attributes have these values: `entries(operation="predictions.get", status=200)`.

        `operation="predictions.create"` also finds creates on a model's and a deployment's own path.

        Raises:
            ValueError: an entry has no attribute of such a name.
        """
        if unknown := set(wanted) - set(Entry.__struct_fields__):
            raise ValueError(f"a journal entry has no {', '.join(sorted(unknown))}")
        return tuple(entry for entry in self._entries.copy() if _fits(entry, wanted))


def masked(authorization: str | None) -> str | None:
    """An Authorization header made harmless: its scheme and twelve digits of the token's SHA-256."""
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    return f"{scheme.lower() if token else 'unknown'}:{fingerprint(token or scheme)}"


def fingerprint(token: str) -> str:
    """Twelve hexadecimal digits that stand for a token."""
    return hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()[:12]


def legible(header: str) -> str:
    """A header's value with bytes that are no UTF-8 replaced, so that it can be shown as JSON."""
    return header.encode("utf-8", "replace").decode()


def same_operation(operation: str, wanted: str) -> bool:
    """Whether `wanted` names `operation`; `predictions.create` also names `models.predictions.create`."""
    return operation == wanted or operation.endswith(f".{wanted}")


def _fits(entry: Entry, wanted: Mapping[str, Any]) -> bool:
    for name, value in wanted.items():
        found = getattr(entry, name)
        if found != value and not (name == "operation" and same_operation(found, str(value))):
            return False
    return True
