"""`Idempotency-Key`: a request that buys may be sent again, and is carried out once."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import msgspec
from starlette.requests import Request

from imagen.domain.batch import Idempotency
from imagen.errors import InvalidInput, Problem
from imagen.server.operation import Parameter

HEADER = "Idempotency-Key"
LONGEST_KEY = 255
REPLAYED = {"idempotent-replayed": "true"}
"""Tells that an answer is that of an earlier request."""

PARAMETER = Parameter(
    name=HEADER,
    place="header",
    description=(
        "Of your choice, 1 to 255 printable characters. The same request with the same key is carried out once and gets "
        "the same answer for 24 hours, also after a restart and while the first is still under way. Another request with "
        "that key is refused with 409."
    ),
    schema={"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": "^[ -~]+$"},
)


def read_key(request: Request) -> str | None:
    """The key of a request, None where it has none.

    Raises:
        InvalidInput: it is empty, too long, not printable, or there are two.
    """
    keys = request.headers.getlist(HEADER)
    if not keys:
        return None
    (key, *others) = keys
    if others or not 1 <= len(key) <= LONGEST_KEY or not all(" " <= character <= "~" for character in key):
        raise InvalidInput(
            [Problem(HEADER, f"it must be one text of 1 to {LONGEST_KEY} printable ASCII characters")]
        )
    return key


def fingerprint(request: Request, content: Any) -> str:
    """What a request asks for, in 64 hex digits: sha256 over method, path and content.

    Args:
        request: asks.
        content: its body as JSON values, or bytes; the order of an object's fields makes no difference. Without
            credentials: whose key it is, is told by the scope.
    """
    known = hashlib.sha256(f"{request.method} {request.url.path}\n".encode())
    if isinstance(content, bytes):
        known.update(content)
    else:
        try:
            known.update(msgspec.json.encode(content, order="sorted"))
        except RecursionError:
            raise InvalidInput([Problem("body", "it is nested too deeply")]) from None
    return known.hexdigest()


def read_mark(request: Request, content: Any, *, scope: str, now: datetime) -> Idempotency | None:
    """How a request is recognised when it comes again, None where it brings no key.

    Args:
        request: asks.
        content: as for `fingerprint`; of an object, `credentials` is left out here.
        scope: whose key it is.
        now: the moment.

    Raises:
        InvalidInput: the key is none.
    """
    if (key := read_key(request)) is None:
        return None
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "credentials"}
    return Idempotency(scope=scope, key=key, fingerprint=fingerprint(request, content), created_at=now)
