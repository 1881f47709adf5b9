"""Where the service tells that a prediction has ended: `POST /webhooks/replicate`."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.errors import BackendError, InvalidRequest, NotFound, QueueFull, WebhookRejected
from imagen.server.answers import json_answer
from imagen.server.bodies import read_body
from imagen.server.context import Context
from imagen.server.operation import Operation, Parameter
from imagen.service.webhooks import PATH

MOST_BYTES = 5 * 1024 * 1024
"""Of one webhook; what is larger is a prediction with pictures inside, and is found by looking."""
SECONDS = 10.0
"""For the whole body: whoever sends it gives up about then."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """The webhook is genuine and was taken, now or before."""

    success: bool = True


async def take_webhook(context: Context, request: Request) -> Response:
    """Verify it, and wake whoever waits. No key is asked for, the signature is one; also while the process shuts down."""
    webhooks = context.app.webhooks
    try:
        envelope = webhooks.open(request.headers)
        body = await read_body(
            request, limit_bytes=MOST_BYTES, room=context.room_of_webhooks, seconds=SECONDS
        )
        context.metrics.webhook(await webhooks.take(envelope, body))
    except WebhookRejected as error:
        context.metrics.webhook(error.reason)
        raise
    except NotFound:
        context.metrics.webhook("unexpected")
        raise
    except (InvalidRequest, QueueFull):
        context.metrics.webhook("malformed")
        raise
    except BackendError:
        context.metrics.webhook("unverified")
        raise
    return json_answer(Taken())


def _header(name: str, description: str) -> Parameter:
    return Parameter(name=name, place="header", description=description, required=True)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path=PATH,
        handler=take_webhook,
        summary="A webhook of Replicate",
        description=(
            "Replicate tells here that a prediction has ended; nobody else has anything to say. Signed the way of Standard "
            "Webhooks with the secret of the gateway's own account; up to 5 MiB, and no more than 300 s old. What it says "
            "is only a reason to look: repeats, losses and a wrong order do no harm. 404 where `public_url` is no https "
            "address."
        ),
        tag="operations",
        access="anyone",
        body=dict[str, Any],
        answers={200: Taken},
        errors=(404, 429, 502),
        parameters=(
            _header("webhook-id", "The id of the message; the same when it is sent again."),
            _header("webhook-timestamp", "When it was signed, in seconds since 1970."),
            _header("webhook-signature", "`v1,` and base64, or several of them with spaces between."),
        ),
    ),
)
