"""Logs: to stderr, as text or JSON lines, with secrets hidden.

A secret has a type that hides itself. What looks like a Replicate token is masked besides, as a second lock on the
same door, for text that came from elsewhere.

While a request is served, each line bears its id. A record may bring fields of its own:

    log.info("a sentence", extra={"fields": {"model": "flux-dev", "ms": 12.5}})
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being served; None outside of any. Whoever sets it has checked it."""

_TOKEN = re.compile(r"(r8_)[A-Za-z0-9_-]{8,}|(?<=Bearer )[A-Za-z0-9._-]{12,}")


def mask(text: str) -> str:
    """The text with anything that looks like a token hidden."""
    return _TOKEN.sub(lambda match: f"{match[1] or ''}***", text)


class TextFormatter(logging.Formatter):
    """One line for people: `LEVEL logger [request id]: message`, the id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s%(of_request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        this = request_id.get()
        record.of_request = "" if this is None else f" [{this}]"
        return mask(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line for machines: `at`, `level`, `logger`, `message`, `request_id`, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (this := request_id.get()) is not None:
            line["request_id"] = this
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        # What the line itself says wins over a field of the same name.
        whole = {**_fields(record), **line}
        return mask(msgspec.json.encode({name: _legible(value) for name, value in whole.items()}).decode())


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """What `extra={"fields": …}` brought."""
    fields = getattr(record, "fields", None)
    return {str(name): value for name, value in fields.items()} if isinstance(fields, Mapping) else {}


def _legible(value: Any) -> str | float | bool | None:
    """A value as JSON can say it; what is neither number nor text as its text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def configure_logging(*, level: str, form: str) -> None:
    """Send the log to stderr. Call it once, from a front door.

    Args:
        level: debug, info, warning, error or critical.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


# --- the access log --------------------------------------------------------------------------------------

_HIDDEN = frozenset({"{lease}", "{lease_id}", "{picture_id}", "{token}", "{secret}", "{key}", "{signature}"})
"""Parts of a path that may do something by themselves, by their names in the route."""
_LONGEST_PATH = 200
_access = logging.getLogger("imagen.access")


def access_line(*, method: str, route: str, path: str, status: int, ms: float, caller: str | None) -> None:
    """One line for a request that was answered, at level info. It never has a query string, a body or a header.

    Args:
        method: of the request.
        route: its template, such as `/predictions/{id}`; any word for a path that is none of ours.
        path: as it was asked for. It is a stranger's text: shortened, and without line breaks.
        status: of the answer; 0 when none was sent.
        ms: milliseconds from the first byte to the last.
        caller: whom the ledger names; None when nobody was let in.
    """
    if not _access.isEnabledFor(logging.INFO):
        return
    method, path = _on_one_line(method[:20]), _on_one_line(_without_secrets(route, path)[:_LONGEST_PATH])
    ms = round(ms, 1)
    fields = {
        "method": method, "route": route, "path": path, "status": status, "ms": ms, "caller": caller,
    }  # fmt: skip
    _access.info("%s %s %d %s ms", method, path, status, ms, extra={"fields": fields})


def _without_secrets(route: str, path: str) -> str:
    """The path with `***` where the route has something that nobody else may know."""
    named, shown = route.split("/"), path.split("/")
    if _HIDDEN.isdisjoint(named) or len(named) != len(shown):
        return path
    return "/".join("***" if name in _HIDDEN else part for name, part in zip(named, shown, strict=True))


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
