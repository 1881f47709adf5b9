"""HTTP messages as values: built and read by the wire, carried by the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import msgspec

from imagen.domain.secret import Secret


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Attributes:
        bearer: sent as `Authorization: Bearer …`, and only when `url` has the origin for which the client holds it.
        response_seconds: how long the answer's first byte, and any pause inside it, may take.
        repeatable: whether sending it twice is the same as sending it once.
        limit_bytes: an answer larger than this is refused.
        on_send: called right before the first byte is sent: what breaks off before that surely did not arrive.
    """

    method: str
    url: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    bearer: Secret | None = None
    response_seconds: float = 30.0
    repeatable: bool = False
    limit_bytes: int = 64 * 1024 * 1024
    on_send: Callable[[], None] | None = None

    @property
    def path(self) -> str:
        """The path alone: what may be shown in an error."""
        return urlsplit(self.url).path or "/"


class HttpResponse(msgspec.Struct, frozen=True):
    """One whole answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpStream(msgspec.Struct, frozen=True):
    """An answer whose body comes piece by piece. Header names are in lower case; whoever has it calls `close`."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]]


class Download(msgspec.Struct, frozen=True):
    """A body that went into a file."""

    status: int
    headers: Mapping[str, str]
    size_bytes: int
    head: bytes


def origin(url: str) -> str:
    """Scheme, host and port: what a token belongs to; empty for what is no address."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}"


def is_loopback(host: str | None) -> bool:
    """Whether a host name can only mean this machine."""
    return host is not None and (host in {"localhost", "::1"} or _is_127(host))


def _is_127(host: str) -> bool:
    parts = host.split(".")
    return (
        len(parts) == 4 and parts[0] == "127" and all(part.isdecimal() and int(part) < 256 for part in parts)
    )
