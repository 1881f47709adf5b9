"""The error answers of the API, word for word where a recording exists.

A `Problem` is raised where the trouble is found and turned into an `application/problem+json` answer in one
place (`api.py`). Sources: exchanges recorded in the SDK's test suite and bodies quoted in public issues,
2023-2026; the published OpenAPI document for files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Problem(Exception):
    """An answer with an error status; `body` is the JSON object as sent, `headers` are added to it."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InvalidField:
    """One complaint about a request body; `kind` is the hosted validator's word (`enum`, `required`, …)."""

    kind: str
    field: str
    description: str

    def as_line(self) -> str:
        """The line of `detail` that speaks of this field, with its line end."""
        return f"- {self.field}: {self.description}\n" if self.field else f"- {self.description}\n"

    def as_json(self) -> dict[str, str]:
        """The entry of `invalid_fields`."""
        return {"type": self.kind, "field": self.field, "description": self.description}


def invalid_request(fields: Sequence[InvalidField]) -> Problem:
    """422 for a body or an input that does not fit its schema."""
    return Problem(
        422,
        {
            "detail": "".join(complaint.as_line() for complaint in fields),
            "status": 422,
            "title": "Input validation failed",
            "invalid_fields": [complaint.as_json() for complaint in fields],
        },
    )


def invalid_version() -> Problem:
    """422 for a version that does not exist, or a community model named without its version."""
    detail = "The specified version does not exist (or perhaps you don't have permission to use it?)"
    return Problem(422, {"title": "Invalid version or not permitted", "detail": detail, "status": 422})


def no_token() -> Problem:
    """401 for a request without an Authorization header."""
    detail = "You did not pass an authentication token"
    return Problem(401, {"title": "Unauthenticated", "detail": detail, "status": 401})


def invalid_token() -> Problem:
    """401 for a token nobody knows."""
    detail = "You did not pass a valid authentication token"
    return Problem(401, {"title": "Unauthenticated", "detail": detail, "status": 401})


def no_credit() -> Problem:
    """402: the account has nothing left to spend."""
    detail = (
        "You have insufficient credit to run this model. Go to https://replicate.com/account/billing#billing "
        "to purchase credit. Once you purchase credit, please wait a few minutes before trying again."
    )
    return Problem(402, {"title": "Insufficient credit", "detail": detail, "status": 402})


def not_found(detail: str = "The requested resource could not be found.") -> Problem:
    """404 for anything that is not there, or belongs to another account."""
    return Problem(404, {"detail": detail, "status": 404})


def forbidden(detail: str) -> Problem:
    """403 for changing what is somebody else's; neither status nor words are recorded."""
    return Problem(403, {"title": "Forbidden", "detail": detail, "status": 403})


def refused(detail: str) -> Problem:
    """422 for what the state of a thing does not allow; neither status nor words are recorded."""
    return Problem(422, {"title": "Not allowed", "detail": detail, "status": 422})


def method_not_allowed(method: str, allowed: str) -> Problem:
    """405 for a known path called with another method."""
    return Problem(405, {"detail": f'Method "{method}" not allowed.', "status": 405}, {"Allow": allowed})


def too_large(detail: str) -> Problem:
    """413 for a body over the limit."""
    return Problem(413, {"title": "Content Too Large", "detail": detail, "status": 413})


def malformed(detail: str) -> Problem:
    """400 for a body that is not JSON, or not the multipart form it says it is."""
    return Problem(400, {"title": "Malformed request", "detail": detail, "status": 400})


def throttled(retry_seconds: float, *, low_credit: bool = False) -> Problem:
    """429; `retry_after` is in the body, whole seconds, and in the text as `~Ns`; no header (none recorded).

    The text for accounts low on credit is quoted in nodetool issue #5196 (2026), the short one in the docs.
    """
    retry_after = max(1, math.ceil(retry_seconds))
    reduced = (
        "Your rate limit for creating predictions is reduced to 6 requests per minute "
        "with a burst of 1 requests while you have less than $5.0 in credit. "
    )
    detail = (
        f"Request was throttled. {reduced if low_credit else ''}Your rate limit resets in ~{retry_after}s."
    )
    return Problem(429, {"detail": detail, "status": 429, "retry_after": retry_after})
