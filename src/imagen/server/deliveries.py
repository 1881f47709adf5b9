"""Events that are delivered to callers: what they are signed with, and for the admin how each of them went."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.delivery import Delivery
from imagen.errors import InvalidInput, Problem
from imagen.server.access import scope_of
from imagen.server.answers import json_answer
from imagen.server.context import Context
from imagen.server.operation import Operation, Parameter
from imagen.server.queries import read_limit

MOST_LISTED = 1000
_LISTED = 100
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class SecretAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One signing secret.

    Attributes:
        secret: `whsec_` and base64, as libraries for standard webhooks take it.
        created_at: since when it signs.
        retires_at: until when it signs beside its successor; null for the newest.
    """

    secret: str
    created_at: datetime
    retires_at: datetime | None


class SecretList(msgspec.Struct, frozen=True, kw_only=True):
    """What the events of one caller are signed with now.

    Attributes:
        scope: whose events they are.
        secrets: the newest first. Each of them signs; a receiver needs one.
    """

    scope: str
    secrets: list[SecretAnswer]


class DeliveryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one address.

    Attributes:
        id: what the receiver gets as `webhook-id`.
        status: `waiting`, `taken` or `given_up`.
        event: its type, such as `batch.completed`.
        subject: the prediction or batch that it is about.
        scope: whose it is.
        url: where it goes.
        attempts: how often it was sent since it was made, or since somebody asked for more.
        created_at: an instant.
        due_at: when it is sent next; null when it is done.
        delivered_at: when it was taken.
        given_up_at: when no more was tried.
        answer: what came of the last attempt.
    """

    id: str
    status: Literal["waiting", "taken", "given_up"]
    event: str
    subject: str
    scope: str
    url: str
    attempts: int
    created_at: datetime
    due_at: datetime | None
    delivered_at: datetime | None
    given_up_at: datetime | None
    answer: str | None


class DeliveryList(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries.

    Attributes:
        count: how many.
        deliveries: the newest first.
    """

    count: int
    deliveries: list[DeliveryAnswer]


async def show_secret(context: Context, request: Request) -> Response:
    """What signs the events of whoever asks."""
    # Every key may see its own, whatever paths it is limited to.
    visitor = await context.enter(request, leaving=True, any_key=True)
    scope = scope_of(visitor)
    secrets = [
        SecretAnswer(secret=one.secret.reveal(), created_at=one.created_at, retires_at=one.retires_at)
        for one in await context.app.signing.of(scope)
    ]
    # No proxy or browser on the way keeps the answer.
    return json_answer(SecretList(scope=scope, secrets=secrets), headers={"cache-control": "no-store"})


async def list_deliveries(context: Context, request: Request) -> Response:
    """How deliveries went."""
    context.enter_admin(request)
    limit, failed = read_limit(request, _LISTED, MOST_LISTED), _read_failed(request)
    found = await context.app.outbox.list(limit=limit, scope=request.query_params.get("scope"), failed=failed)
    return json_answer(DeliveryList(count=len(found), deliveries=[shown_delivery(one) for one in found]))


async def retry_delivery(context: Context, request: Request) -> Response:
    """Send one again now."""
    context.enter_admin(request)
    app = context.app
    found = await app.outbox.retry(request.path_params["delivery_id"], now=app.clock.now())
    app.courier.wake()
    return json_answer(shown_delivery(found))


def shown_delivery(one: Delivery) -> DeliveryAnswer:
    """A delivery as answers have it: without what it says."""
    return DeliveryAnswer(
        **{name: getattr(one, name) for name in DeliveryAnswer.__struct_fields__}  # all of them are its own
    )


def _read_failed(request: Request) -> bool:
    told = request.query_params.get("failed", "false")
    if told not in _FLAGS:
        raise InvalidInput([Problem("failed", "it must be true or false")], subject="the query")
    return _FLAGS[told]


_TAG = "deliveries"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/webhooks/secret",
        handler=show_secret,
        summary="Show what your events are signed with",
        description=(
            "Events go to the `webhook` of a request as the Standard Webhooks specification says, so its libraries "
            "verify them with this secret. While a new secret takes over, both sign. A caller with a Replicate token "
            "of their own shows it in the header `X-Replicate-Api-Token`."
        ),
        tag=_TAG,
        access="caller",
        answers={200: SecretList},
        errors=(401, 503),
    ),
    Operation(
        method="GET",
        path="/deliveries",
        handler=list_deliveries,
        summary="List deliveries of events",
        description="The newest first. What was taken or given up is kept for a week.",
        tag=_TAG,
        access="admin",
        answers={200: DeliveryList},
        errors=(401,),
        parameters=(
            Parameter(
                name="limit",
                place="query",
                description="How many at most.",
                schema={"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": _LISTED},
            ),
            Parameter(
                name="failed",
                place="query",
                description="Only those that were given up, or have failed and wait to be sent again.",
                schema={"type": "boolean", "default": False},
            ),
            Parameter(
                name="scope", place="query", description="Only those of one caller, such as `key:key_…`."
            ),
        ),
    ),
    Operation(
        method="POST",
        path="/deliveries/{delivery_id}/retry",
        handler=retry_delivery,
        summary="Send an event again",
        description="Also one that was given up; it is tried for another day. One that was taken stays as it is.",
        tag=_TAG,
        access="admin",
        answers={200: DeliveryAnswer},
        errors=(401, 404),
        parameters=(
            Parameter(name="delivery_id", place="path", description="Its id, `msg_…`.", required=True),
        ),
    ),
)
