"""Logs: to stderr, as text or JSON lines, with secrets hidden.

A secret has a type that hides itself. What looks like a Replicate token is masked besides, as a second lock on the
same door, for text that came from elsewhere.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime

import msgspec

_TOKEN = re.compile(r"(r8_)[A-Za-z0-9_-]{8,}|(?<=Bearer )[A-Za-z0-9._-]{12,}")


def mask(text: str) -> str:
    """The text with anything that looks like a token hidden."""
    return _TOKEN.sub(lambda match: f"{match[1] or ''}***", text)


class TextFormatter(logging.Formatter):
    """One line for people."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return mask(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        legible = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in line.items()}
        return mask(msgspec.json.encode(legible).decode())


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
