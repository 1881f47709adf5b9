"""Speaking HTTP to a server process, and reading `curl` commands without needing curl."""

from __future__ import annotations

import json
import shlex
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def call(
    method: str, url: str, *, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 40
) -> Answered:
    """One request."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return Answered(response.status, _lower(response.headers), response.read())
    except HTTPError as error:
        with error:
            return Answered(error.code, _lower(error.headers), error.read())


def curl(command: str) -> Answered:
    """What a `curl` command asks for."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "curl"
    method, headers, data, url = "GET", {}, None, ""
    given = iter(words[1:])
    for word in given:
        if word == "-X":
            method = next(given)
        elif word == "-H":
            name, _, value = next(given).partition(":")
            headers[name.strip()] = value.strip()
        elif word == "-d":
            data = next(given).encode()
        else:
            url = word
    return call(method, url, body=data, headers=headers)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
