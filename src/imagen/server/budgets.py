"""Budgets: set and removed by the admin, shown to whoever is held to them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.budget import EACH, Counts, Per
from imagen.server.answers import json_answer
from imagen.server.bodies import read_json
from imagen.server.context import Context
from imagen.server.operation import Operation, Parameter
from imagen.service.budgets import COUNTED, PERIODS

# For readers of the document alone: the book refuses with sentences of its own.
_NAMED = {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
_Name = Annotated[str, msgspec.Meta(extra_json_schema=_NAMED)]
_Dollars = Annotated[
    float | str,
    msgspec.Meta(
        extra_json_schema={"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}
    ),
]
_Per = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(PERIODS)})]
_Count = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(COUNTED)})]


class BudgetBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget that is wanted, with exactly one of `key`, `caller`, `model` and `all`.

    A field that is not known is refused: misspelled, it would make a budget that holds somebody else.

    Attributes:
        usd: US dollars in one period, above zero, with six decimals at most.
        per: the period: a day or month of UTC, or `total`, which never renews.
        key: the name or id of a key; `*` gives each key the limit for itself.
        caller: whom the ledger names; `*` for each.
        model: `owner/name` or a short name; `*` for each.
        all: true counts everything.
        warn: true buys what does not fit all the same, and tells.
        count: `charged` counts whatever is billed, `succeeded` only runs that succeeded.
    """

    usd: _Dollars
    per: _Per
    key: str | None = None
    caller: str | None = None
    model: str | None = None
    all: bool = False
    warn: bool = False
    count: _Count = "charged"


class NewBudget(BudgetBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same with a name.

    Attributes:
        name: 1 to 64 letters, digits, dots, dashes and underscores; a budget of that name is changed.
        usd: US dollars in one period, above zero, with six decimals at most.
        per: the period: a day or month of UTC, or `total`, which never renews.
        key: the name or id of a key; `*` gives each key the limit for itself.
        caller: whom the ledger names; `*` for each.
        model: `owner/name` or a short name; `*` for each.
        all: true counts everything.
        warn: true buys what does not fit all the same, and tells.
        count: `charged` counts whatever is billed, `succeeded` only runs that succeeded.
    """

    name: _Name


class BudgetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A budget.

    Attributes:
        name: its own; usd: US dollars in one period.
        per: the period; days and months are those of UTC.
        key, caller, model: whom it counts, a key by its name; `*` gives each of them the limit for itself.
        all: whether it counts everything.
        warn: whether what does not fit is bought all the same, and told.
        count: `charged` counts whatever is billed, `succeeded` only runs that succeeded.
    """

    name: str
    usd: float
    per: Per
    key: str | None
    caller: str | None
    model: str | None
    all: bool
    warn: bool
    count: Counts


class BudgetState(BudgetAnswer, frozen=True, kw_only=True):
    """A budget, and how it stands in the present period.

    One that everyone has for themselves is told once for each that has spent anything.

    Attributes:
        name: its own; usd: US dollars in one period.
        per: the period; days and months are those of UTC.
        key, caller, model: whom it counts, a key by its name; `*` gives each of them the limit for itself.
        all: whether it counts everything.
        warn: whether what does not fit is bought all the same, and told.
        count: `charged` counts whatever is billed, `succeeded` only runs that succeeded.
        subject: of whom these sums are; `*` where nobody has spent anything yet, empty for everything.
        settled_usd: spent; reserved_usd: the most that what is under way can cost.
        left_usd: what can be spent still; below zero where a warning was passed.
        renews_at: when the next period begins; null for `total`.
    """

    subject: str
    settled_usd: float
    reserved_usd: float
    left_usd: float
    renews_at: datetime | None


class BudgetList(msgspec.Struct, frozen=True, kw_only=True):
    """How budgets stand.

    Attributes:
        count: how many entries; budgets: by name.
    """

    count: int
    budgets: list[BudgetState]


class BudgetRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """What came of removing a budget.

    Attributes:
        name: of the budget that there was.
    """

    name: str
    success: bool = True


async def list_budgets(context: Context, request: Request) -> Response:
    """All of them for the admin; for others those that they are held to."""
    visitor = await context.enter(request, leaving=True, any_key=True)
    book = context.app.budgets
    found = await (book.list() if visitor.admin else book.list_for(visitor.caller, models=visitor.models))
    states = [BudgetState(**one.facts(), **one.state()) for one in found]
    return json_answer(BudgetList(count=len(states), budgets=states))


async def put_budget(context: Context, request: Request) -> Response:
    """Set the one that the path names."""
    context.enter_admin(request)
    return await _set(context, request.path_params["name"], await read_json(request, BudgetBody))


async def set_budget(context: Context, request: Request) -> Response:
    """Set the one that the body names."""
    context.enter_admin(request)
    wanted = await read_json(request, NewBudget)
    return await _set(context, wanted.name, wanted)


async def remove_budget(context: Context, request: Request) -> Response:
    """Hold nobody to it any more."""
    context.enter_admin(request)
    name = request.path_params["name"]
    await context.app.budgets.remove(name)
    return json_answer(BudgetRemoved(name=name))


async def _set(context: Context, name: str, wanted: BudgetBody) -> Response:
    standing = await context.app.budgets.set(
        name,
        usd=wanted.usd,
        per=wanted.per,
        key=wanted.key,
        caller=wanted.caller,
        model=wanted.model,
        everything=wanted.all,
        warn=wanted.warn,
        count=wanted.count,
    )
    return json_answer(BudgetAnswer(**standing.facts()))


_TAG = "budgets"
_NAME = Parameter(
    name="name",
    place="path",
    description="The budget's name.",
    schema={"type": "string"} | _NAMED,
    required=True,
)
_EXAMPLE = {"usd": 1.0, "per": "day", "key": EACH}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/budgets",
        handler=list_budgets,
        summary="Tell how the budgets stand",
        description="The admin sees all of them; other callers see those that count what they ask for.",
        tag=_TAG,
        access="caller",
        answers={200: BudgetList},
        errors=(503,),
    ),
    Operation(
        method="POST",
        path="/budgets",
        handler=set_budget,
        summary="Set a budget",
        description="The same once more changes nothing; with other facts the budget of that name is changed.",
        tag=_TAG,
        access="admin",
        body=NewBudget,
        answers={200: BudgetAnswer},
        errors=(401,),
        example={"name": "shop", **_EXAMPLE},
    ),
    Operation(
        method="PUT",
        path="/budgets/{name}",
        handler=put_budget,
        summary="Set a budget by its name",
        description=(
            "What was spent in the present period before it was set counts too. What does not fit is refused with 402, or "
            "with `warn` bought and told in `X-Imagen-Budget-Warning`."
        ),
        tag=_TAG,
        access="admin",
        body=BudgetBody,
        answers={200: BudgetAnswer},
        errors=(401,),
        parameters=(_NAME,),
        example=_EXAMPLE,
    ),
    Operation(
        method="DELETE",
        path="/budgets/{name}",
        handler=remove_budget,
        summary="Remove a budget",
        tag=_TAG,
        access="admin",
        answers={200: BudgetRemoved},
        errors=(401, 404),
        parameters=(_NAME,),
    ),
)
