"""What came of a wish, in the documented shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.events import BudgetPassed, Event, InLine, LetIn, Submitted
from imagen.domain.money import Usd, to_dollars
from imagen.errors import ImagenError
from imagen.server.answers import error_answer
from imagen.server.context import Context
from imagen.server.headers import BUDGET_WARNING, CACHE, COST_USD, QUEUE_POSITION, WAITED_MS
from imagen.server.operation import Handler
from imagen.server.wishes import Wish, file_names
from imagen.service.finish import Outcome

HANDED_OVER = "It is paid for: do not ask for it again; `imagen predictions show` tells what became of it."
"""What to do about a prediction that goes on after its process has ended."""


class GeneratedFile(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One picture.

    Attributes:
        url: where the service has it, for an hour.
        filename: what the caller may call it.
        stored_url: where the gateway keeps it, when it was asked to.
    """

    url: str
    filename: str
    stored_url: str | None = None


class Turn:
    """An observer that remembers what the answer tells besides the pictures.

    That is how long somebody waited, from which position in line, what was begun then, and which budgets only warned of it.
    """

    def __init__(self) -> None:
        self.prediction_id: str | None = None
        self.passed: dict[str, None] = {}
        self.position = 0
        self.waited_seconds = 0.0

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        if isinstance(event, InLine):
            self.position = max(self.position, event.position)
        elif isinstance(event, LetIn):
            self.waited_seconds += event.waited_seconds
        elif isinstance(event, Submitted):
            self.prediction_id = event.prediction.id
        elif isinstance(event, BudgetPassed):
            self.passed[event.shortage.balance.budget.name] = None

    def cost_so_far(self) -> Usd | None:
        """What it has cost where no more is known of it: nothing before it was begun, else nobody can tell."""
        return Usd(0) if self.prediction_id is None else None

    def headers(self) -> dict[str, str]:
        """The same for the answer."""
        told = {
            QUEUE_POSITION: str(self.position),
            WAITED_MS: str(round(self.waited_seconds * 1000)),
        }
        return told | ({BUDGET_WARNING: ", ".join(self.passed)} if self.passed else {})


class Both:
    """Two observers as one."""

    def __init__(self, one: Turn, other: Turn) -> None:
        self._turns = (one, other)

    def notify(self, event: Event) -> None:
        """See `ports.Observer`."""
        for turn in self._turns:
            turn.notify(event)


def generated_files(
    context: Context, request: Request, wish: Wish, outcome: Outcome, *, name: str
) -> list[GeneratedFile]:
    """The pictures of a prediction that succeeded, each with its addresses and its name."""
    urls = outcome.prediction.output
    names = file_names(wish.output_filename or name, len(urls))
    kept = [picture.shelf_id for picture in outcome.pictures]
    stored = [
        None
        if index >= len(kept) or kept[index] is None
        else context.url_of(request, f"/pictures/{kept[index]}")
        for index in range(len(urls))
    ]
    if outcome.prediction.reused:
        # Where the service had them for an hour there may be nothing any more.
        urls = tuple(here or url for here, url in zip(stored, urls, strict=True))
    return [
        GeneratedFile(url=url, filename=names[index], stored_url=stored[index])
        for index, url in enumerate(urls)
    ]


def cache_header(outcome: Outcome) -> dict[str, str]:
    """What came of asking for pictures of an equal request; nothing where that was not asked for."""
    told = outcome.cache or ("hit" if outcome.prediction.reused else None)
    return {} if told is None else {CACHE: told}


def cost_header(cost: Usd | None) -> dict[str, str]:
    """What it cost; `unknown` where nobody knows the price."""
    return {COST_USD: "unknown" if cost is None else f"{cost.to_decimal():f}"}


def refusal(
    error: ImagenError,
    *,
    cost: Usd | None,
    headers: Mapping[str, str] = MappingProxyType({}),
    prediction_id: str | None = None,
) -> Response:
    """The answer for an error, with what was paid all the same, and of which prediction, where the error does not say."""
    besides: dict[str, Any] = {"cost_usd": to_dollars(cost)}
    if prediction_id is not None:
        besides["prediction_id"] = prediction_id
    answer = error_answer(error, besides=besides)
    answer.headers.update(cost_header(cost) | dict(headers))
    return answer


def cost_told_by(refused: Callable[[ImagenError], Response]) -> Callable[[Handler], Handler]:
    """For handlers of something that is bought: what they raise has bought nothing, and `refused` answers so."""

    def telling(handler: Handler) -> Handler:
        @wraps(handler)
        async def told(context: Context, request: Request) -> Response:
            try:
                return await handler(context, request)
            except ImagenError as error:
                return refused(error)

        return told

    return telling


tells_cost = cost_told_by(lambda error: refusal(error, cost=Usd(0)))
"""An error that the handler raises tells that nothing was paid for it."""
