"""The header fields of ours: what they are called, and how those with a grammar are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.requests import Request

PREDICTION_ID = "x-imagen-prediction-id"
"""The id in the ledger; of several predictions, with commas between them."""
COST_USD = "x-imagen-cost-usd"
QUEUE_POSITION, WAITED_MS = "x-imagen-queue-position", "x-imagen-waited-ms"
BUDGET_WARNING = "x-imagen-budget-warning"
NEXT_CURSOR = "x-imagen-next-cursor"
CACHE = "x-imagen-cache"
"""Whether the pictures were made before."""
KEPT = "x-imagen-kept"
"""Whether an answer of the service's is given again."""
ADAPTED, UNMAPPED = "x-imagen-adapted", "x-imagen-unmapped"
EXACT = "x-imagen-exact"
"""In a request: nothing may be told in another form than the service's own."""


RETRY_COUNT = "x-stainless-retry-count"
"""In a request: how often it was sent before. Clients made by Stainless, OpenAI's among them, say it with the first, too."""
_MOST_DIGITS = 2


def adapted(changes: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """The header that tells what has another form than its own: `what=was->became`, with `, ` between them.

    Args:
        changes: what, how it was, and what it became. None of them, no header.
    """
    told = ", ".join(f"{what}={_one(was)}->{_one(became)}" for what, was, became in changes)
    return {ADAPTED: told} if told else {}


def retries_of(headers: Mapping[str, str]) -> int | None:
    """How often a client has sent a request before; None for one that does not count."""
    told = headers.get(RETRY_COUNT, "")
    return int(told) if told.isascii() and told.isdigit() and len(told) <= _MOST_DIGITS else None


def wants_exact(request: Request) -> bool:
    """Whether the caller takes the service's own forms only, also where official clients do not survive them."""
    return request.headers.get(EXACT, "").strip() in {"1", "true"}


def _one(text: str) -> str:
    return text.replace(", ", " ")
