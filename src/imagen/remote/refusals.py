"""What a gateway's error means: the error that it raised, with the same code, sentence and next step."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated

import msgspec

from imagen import errors
from imagen.decoding import decode
from imagen.domain.money import from_dollars
from imagen.errors import (
    BackendBroken,
    BackendRejected,
    BudgetExceeded,
    Draining,
    IdempotencyConflict,
    ImagenError,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    PermissionDenied,
    PredictionFailed,
    Problem,
    RateLimited,
    Unauthenticated,
)
from imagen.transport.message import HttpResponse

BY_CODE: Mapping[str, type[ImagenError]] = MappingProxyType(
    {
        kind.code: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ImagenError)
    }
)
"""Every error of ours by its code."""

BY_STATUS: Mapping[int, type[ImagenError]] = MappingProxyType(
    {
        400: InvalidRequest,
        401: Unauthenticated,
        402: BudgetExceeded,
        403: PermissionDenied,
        404: NotFound,
        409: IdempotencyConflict,
        429: RateLimited,
        503: Draining,
    }
)
"""For codes of a gateway that is newer than we are."""

_SAFETY = 422
"""The status of a prediction whose content was refused."""
_LONGEST_SENTENCE = 2000
_MOST_PROBLEMS = 100


class _Told(msgspec.Struct, frozen=True):
    """The body of an error."""

    error: str
    success: bool = True
    code: str = ""
    hint: str | None = None
    problems: list[Problem] | None = None
    retry_after: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    prediction_id: str | None = None
    charged: bool | None = None
    budget: str | None = None
    quote: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    renews_at: datetime | None = None


def read_refusal(response: HttpResponse, *, url: str) -> ImagenError:
    """The error that an answer of 300 and more tells.

    Args:
        response: the answer; what it says is shown to people, so odd characters and endless sentences are left out.
        url: the gateway's, for sentences of our own where a proxy or something else than a gateway answers.
    """
    try:
        told = decode(response.body, _Told)
    except (ValueError, RecursionError):
        return _no_gateway(response.status, url)
    if told.success and not told.code:
        return _no_gateway(response.status, url)
    kind = BY_CODE.get(told.code or ImagenError.code) or BY_STATUS.get(response.status)
    if kind is None:
        kind = BackendBroken if response.status >= 500 else BackendRejected
    problems = tuple(
        Problem(shown(problem.field), shown(problem.message))
        for problem in (told.problems or ())[:_MOST_PROBLEMS]
    )
    hint = None if told.hint is None else shown(told.hint)
    error = InvalidInput(problems, hint=hint) if kind is InvalidInput else kind(shown(told.error), hint=hint)
    error.detail = shown(told.error)
    error.retry_after = told.retry_after
    prediction_id = None if told.prediction_id is None else shown(told.prediction_id)
    for name, value in (
        ("problems", problems),
        ("prediction_id", prediction_id),
        ("charged", told.charged),
        ("budget", None if told.budget is None else shown(told.budget)),
        ("quote_micros", None if told.quote is None else from_dollars(told.quote).micros),
        ("renews_at", told.renews_at),
    ):
        if hasattr(error, name):
            setattr(error, name, value)
    if isinstance(error, PredictionFailed) and response.status == _SAFETY:
        error.category = "safety"
    return error


def shown(text: str) -> str:
    """Text of somebody else as it may be shown: one line, printable, not endless."""
    cut = text[: _LONGEST_SENTENCE + 1]
    line = "".join(character if character.isprintable() else " " for character in cut)
    return line if len(line) <= _LONGEST_SENTENCE else f"{line[: _LONGEST_SENTENCE - 1]}…"


def _no_gateway(status: int, url: str) -> ImagenError:
    if status < 400:
        return InvalidResponse(
            f"{status}: {url} leads elsewhere, which is not followed", hint="Give the address where it leads."
        )
    if status >= 500:
        return BackendBroken(
            f"{status}: what answers at {url} failed", hint="Is the gateway behind it running? Try again."
        )
    return BackendRejected(
        f"{status}: what answers at {url} refused, and not as an imagen gateway does",
        hint="Is that the gateway's address, and does a proxy in front of it let you through?",
    )
