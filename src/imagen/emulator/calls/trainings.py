"""The calls about trainings: create, list, get, cancel.

Nothing is trained. A training runs as long as predictions of its model do; when it has succeeded, its destination has
a new version, which paints as the trained one does. Training inputs are not checked: no model here has a schema for
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.calls.owned import is_own, listing_in_path, owned_run, visible_listing
from imagen.emulator.calls.versions import version_in_path
from imagen.emulator.clock import timestamp
from imagen.emulator.course import Status, Training
from imagen.emulator.exchange import Exchange
from imagen.emulator.models import renamed
from imagen.emulator.paging import numbered_page
from imagen.emulator.register import MOST_VERSIONS, Listing, Version
from imagen.emulator.shapes import training_json
from imagen.emulator.showing import shown
from imagen.emulator.state import TrainingOrder
from imagen.emulator.validation import WEBHOOK_BODY, check_body, check_webhook

_CREATE: Mapping[str, Mapping[str, Any]] = {
    "destination": {"type": "string"},
    "input": {"type": "object"},
    **WEBHOOK_BODY,
}


async def create_training(exchange: Exchange) -> web.Response:
    """`POST /models/{owner}/{name}/versions/{id}/trainings`."""
    world = exchange.world
    base = version_in_path(exchange, listing_in_path(exchange)).model
    body = check_body(exchange.body, _CREATE, required=("destination", "input"))
    check_webhook(body)
    destination = _destination(exchange, body["destination"])
    course, faults = world.faults.bend(world.course_of(base), exchange.subject())
    exchange.struck_by += faults
    training = world.state.train(
        exchange.owner,
        TrainingOrder(
            model=base,
            input=body["input"],
            course=course,
            destination=destination.name,
            webhook=body.get("webhook"),
            webhook_events=tuple(body.get("webhook_events_filter", ())),
            faults=faults,
        ),
    )
    exchange.prediction = training
    world.models.enter_version(destination, version_of(training, destination))
    world.changed(training)
    return exchange.json(await shown(world, training, training.created_at), 201)


async def list_trainings(exchange: Exchange) -> web.Response:
    """`GET /trainings`: newest first, 100 on a page."""
    world, now = exchange.world, exchange.world.clock.time()
    return exchange.json(
        numbered_page(
            exchange.owner.trainings[::-1],
            exchange.request.query,
            url=f"{world.api_url}/v1/trainings",
            shown=lambda training: training_json(training, now, world.api_url),
        )
    )


async def get_training(exchange: Exchange) -> web.Response:
    """`GET /trainings/{id}`."""
    return exchange.json(await shown(exchange.world, owned_run(exchange)))


async def cancel_training(exchange: Exchange) -> web.Response:
    """`POST /trainings/{id}/cancel`: answers the training, also one that had ended before."""
    training = owned_run(exchange)
    exchange.world.state.cancel(training)
    exchange.world.changed(training)
    return exchange.json(await shown(exchange.world, training))


def version_of(training: Training, destination: Listing) -> Version:
    """The version that a training makes: there once it has succeeded."""
    return Version(
        model=renamed(training.made_by, destination.name, training.trained, official=destination.official),
        created_at=timestamp(training.planned_end_at) if training.planned_end_at < 1e11 else "",
        is_there=lambda now: training.status_at(now) is Status.SUCCEEDED,
    )


def _destination(exchange: Exchange, name: str) -> Listing:
    """The model that gets the version.

    Raises:
        Problem: 404, it is not there or not the account's own (recorded 2023-08).
    """
    listing = visible_listing(exchange, name)
    if listing is None or not is_own(exchange, listing.owner):
        raise problems.not_found("The specified training destination does not exist")
    if len(listing.versions) >= MOST_VERSIONS:
        raise problems.refused(f"A model has at most {MOST_VERSIONS} versions")
    return listing
