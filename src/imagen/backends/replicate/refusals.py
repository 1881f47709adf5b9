"""Replicate's refusals, each read into its own error with the next step in its text, and the waits after them. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from imagen.domain.events import Waiting
from imagen.domain.prediction import HIDDEN
from imagen.errors import (
    BackendBroken,
    BackendError,
    BackendRateLimited,
    BackendRejected,
    BackendUnauthenticated,
    FailureCategory,
    InputRejected,
    InvalidResponse,
    ModelNotFound,
    PaymentRequired,
    Problem,
)
from imagen.ports import Observer
from imagen.transport.message import HttpResponse

_SHOWN_CHARACTERS = 300
_LEAST_QUOTE, _BEGINNING = 4, 16
_PROMPT = "[the prompt]"
_LONGEST_WAIT_SECONDS = 10**9
_RESETS_IN = re.compile(r"(?:resets in ~?|available in )(\d+(?:\.\d+)?)\s*s", re.IGNORECASE)
_SAFETY = re.compile(r"nsfw|sensitive|flagged|safety|moderation|content policy|\bE005\b", re.IGNORECASE)
_INFRASTRUCTURE = re.compile(
    r"interrupted|please retry|code: PA|out of memory|\bE1000\b|\bE1001\b|\bE6716\b|timed? ?out",
    re.IGNORECASE,
)


def parse_refusal(response: HttpResponse, *, subject: str, token_env: str) -> BackendError:
    """The error that an answer of 300 and above means.

    Args:
        response: the whole answer; its body may be JSON, or a proxy's HTML.
        subject: what was asked for (a model, a prediction), to begin the sentence with.
        token_env: the variable that holds the token, named in the 401.
    """
    body = _problem_body(response.body)
    detail = _detail(body)
    said = f": {detail}" if detail else ""
    error: BackendError
    match response.status:
        case 401 | 403:
            error = BackendUnauthenticated(
                f"{response.status}: the Replicate API token is missing, wrong or not allowed to do this{said}",
                hint=f"Set {token_env} to a valid token, or run `imagen auth login`.",
            )
        case 402:
            error = PaymentRequired(
                f"402: the Replicate account has not enough credit for {subject}{said}",
                hint="Add credit at replicate.com/account/billing, wait a few minutes, and try again.",
            )
        case 404:
            error = ModelNotFound(
                f"404: {subject} was not found at Replicate{said}",
                hint="Check the spelling; a community model needs its version: owner/name:version.",
            )
        case 413:
            error = BackendRejected(
                f"413: the input for {subject} is too large{said}", hint="Send files of at most 100 MB."
            )
        case 422:
            error = _unprocessable(body, subject=subject, said=said)
        case 429:
            error = BackendRateLimited(
                f"429: Replicate throttles this account{said}", retry_after=retry_after(response, body)
            )
        case status if 300 <= status < 400:
            error = InvalidResponse(
                f"{status}: Replicate redirected the request for {subject}; redirects are not followed"
            )
        case status if status < 500:
            error = BackendRejected(f"{status}: Replicate refused {subject}{said}")
        case status:
            error = BackendBroken(
                f"{status}: Replicate failed while serving {subject}{said}", hint="Try again in a moment."
            )
    error.status = response.status
    error.request_id = response.headers.get("x-request-id") or response.headers.get("cf-ray")
    return error


def without_quotes(response: HttpResponse, prompt: str, *, secrets: Iterable[str] = ()) -> HttpResponse:
    """The answer with what it quotes of prompt and secrets hidden: a refusal may repeat the input; what we say must not.

    A whole text is found, and the beginning of a long one that the service cut short, plain or escaped.
    """
    if response.status < 300:
        return response
    text = response.body.decode(errors="replace")
    for told, shown in ((prompt, _PROMPT), *((secret, HIDDEN) for secret in secrets)):
        if len(told.strip()) < _LEAST_QUOTE:
            continue
        text = _hide(text, told.strip(), shown)
    return msgspec.structs.replace(response, body=text.encode())


def _hide(text: str, told: str, shown: str) -> str:
    ways = {
        told,
        " ".join(told.split()),
        json.dumps(told)[1:-1],
        json.dumps(told, ensure_ascii=False)[1:-1],
    }
    parts, start = [], 0
    # The first place counts, and there the way that explains most of what follows.
    while found := [place for way in ways if (place := _quoted(text, way, start))]:
        at, end = min(found, key=lambda place: (place[0], -place[1]))
        parts += [text[start:at], shown]
        start = end
    return "".join((*parts, text[start:]))


def _quoted(text: str, way: str, start: int) -> tuple[int, int] | None:
    """From where to where the text is quoted, or its beginning cut short."""
    at = text.find(way[:_BEGINNING], start)
    if at < 0:
        return None
    end = at + len(way[:_BEGINNING])
    while end < len(text) and end - at < len(way) and text[end] == way[end - at]:
        end += 1
    return at, end


def retry_after(
    response: HttpResponse, body: Mapping[str, Any], *, now: datetime | None = None
) -> float | None:
    """Seconds to wait by the body's `retry_after`, then the header, then the `~Ns` in the text; None when none tells."""
    told = body.get("retry_after")
    if isinstance(told, (int, float)) and not isinstance(told, bool) and 0 <= told <= _LONGEST_WAIT_SECONDS:
        return float(told)
    header = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", header):
        return float(header)
    until = _instant(header)
    if until is not None:
        # The answer's own time counts: our clock may be wrong.
        told_at = _instant(response.headers.get("date", "")) or now or datetime.now(UTC)
        return max(0.0, (until - told_at).total_seconds())
    found = _RESETS_IN.search(_detail(body))
    return float(found[1]) if found else None


def tell_wait(observer: Observer, error: BackendError, seconds: float) -> None:
    """Tell whoever watches what is waited for before a call is made again."""
    reason = "Replicate throttles this account" if isinstance(error, BackendRateLimited) else error.detail
    observer.notify(Waiting(reason, seconds))


def _instant(header: str) -> datetime | None:
    try:
        instant = parsedate_to_datetime(header)
    except ValueError:
        return None
    return instant if instant.tzinfo else None


def categorize_failure(reason: str) -> FailureCategory:
    """Why a run failed, by the model's own words."""
    if _SAFETY.search(reason):
        return "safety"
    return "infrastructure" if _INFRASTRUCTURE.search(reason) else "model"


def _unprocessable(body: Mapping[str, Any], *, subject: str, said: str) -> BackendError:
    fields = body.get("invalid_fields")
    problems = [
        Problem(
            str(field.get("field", "input")).removeprefix("input."),
            _short(str(field.get("description") or field.get("type") or "invalid")),
        )
        for field in (fields if isinstance(fields, list) else [])
        if isinstance(field, dict)
    ]
    if not problems and "version" in str(body.get("title", "")).lower():
        return ModelNotFound(
            f"422: the version of {subject} does not exist or is not open to this account{said}",
            hint="`imagen models OWNER/NAME` shows the latest version.",
        )
    told = "; ".join(map(str, problems)) if problems else said.removeprefix(": ")
    return InputRejected(f"422: {subject} does not take this input: {told}", problems=problems)


def _problem_body(raw: bytes) -> Mapping[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _detail(body: Mapping[str, Any]) -> str:
    detail = body.get("detail") or body.get("title") or body.get("error") or ""
    return _short(detail if isinstance(detail, str) else msgspec.json.encode(detail).decode())


def _short(text: str) -> str:
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
