"""The calls about deployments: list, read, make, change, delete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.calls.owned import is_own, visible_listing
from imagen.emulator.clock import timestamp
from imagen.emulator.exchange import Exchange
from imagen.emulator.paging import numbered_page
from imagen.emulator.problems import InvalidField
from imagen.emulator.register import MOST_DEPLOYMENTS, Deployment
from imagen.emulator.validation import check_body, check_hardware

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "version": {"type": "string"},
    "hardware": {"type": "string"},
    "min_instances": {"type": "integer", "minimum": 0, "maximum": 5},
    "max_instances": {"type": "integer", "minimum": 0, "maximum": 20},
}
_CREATE: Mapping[str, Mapping[str, Any]] = {
    "name": {"type": "string"},
    "model": {"type": "string"},
    **_SETTINGS,
}
_NAME = re.compile(r"[a-z0-9][\w.-]{0,99}", re.IGNORECASE)


async def list_deployments(exchange: Exchange) -> web.Response:
    """`GET /deployments`: those of the account, and of organizations it is a member of."""
    world = exchange.world
    found = [
        deployment
        for deployment in world.models.deployments.values()
        if is_own(exchange, deployment.owner) and world.models.run_by(deployment) is not None
    ]
    return exchange.json(
        numbered_page(
            found,
            exchange.request.query,
            url=f"{world.api_url}/v1/deployments",
            shown=lambda deployment: _json(exchange, deployment),
        )
    )


async def get_deployment(exchange: Exchange) -> web.Response:
    """`GET /deployments/{owner}/{name}`, with the release it runs."""
    return exchange.json(_json(exchange, _found(exchange)))


async def create_deployment(exchange: Exchange) -> web.Response:
    """`POST /deployments`: it belongs to the account that makes it."""
    body = check_body(exchange.body, _CREATE, required=tuple(_CREATE))
    models, owner = exchange.world.models, exchange.owner.username
    name = f"{owner}/{body['name']}"
    if not _NAME.fullmatch(body["name"]):
        raise problems.invalid_request([InvalidField("format", "name", "Does not match format 'name'")])
    if name in models.deployments:
        raise problems.refused(f"A deployment with the name {name} exists already")
    if sum(deployment.owner == owner for deployment in models.deployments.values()) >= MOST_DEPLOYMENTS:
        raise problems.refused(f"An account has at most {MOST_DEPLOYMENTS} deployments")
    _check_settings(exchange, body["model"], body)
    deployment = Deployment(
        name=name,
        model=body["model"],
        version=body["version"],
        hardware=body["hardware"],
        min_instances=int(body["min_instances"]),
        max_instances=int(body["max_instances"]),
        created_at=timestamp(exchange.world.clock.time()),
        by="user",
    )
    models.deployments[name] = deployment
    return exchange.json(_json(exchange, deployment))


async def update_deployment(exchange: Exchange) -> web.Response:
    """`PATCH /deployments/{owner}/{name}`: what is given changes, and that makes a new release."""
    deployment = _own(exchange)
    body = check_body({} if exchange.body is None else exchange.body, _SETTINGS)
    _check_settings(exchange, deployment.model, body)
    for setting, value in body.items():
        setattr(deployment, setting, int(value) if isinstance(value, float) else value)
    if body:
        deployment.number += 1
        deployment.created_at = timestamp(exchange.world.clock.time())
    return exchange.json(_json(exchange, deployment))


async def delete_deployment(exchange: Exchange) -> web.Response:
    """`DELETE /deployments/{owner}/{name}`: with no instance kept running, unused for 15 minutes."""
    deployment = _own(exchange)
    if not deployment.is_idle(exchange.world.clock.time()):
        raise problems.refused(
            "You can only delete deployments that have been offline and unused for 15 minutes"
        )
    del exchange.world.models.deployments[deployment.name]
    return web.Response(status=204)


def _found(exchange: Exchange) -> Deployment:
    found = exchange.world.models.deployment(exchange.name)
    if found is None:
        raise problems.not_found()
    return found[0]


def _own(exchange: Exchange) -> Deployment:
    deployment = _found(exchange)
    if not is_own(exchange, deployment.owner):
        raise problems.not_found()
    return deployment


def _check_settings(exchange: Exchange, model: str, body: Mapping[str, Any]) -> None:
    listing = visible_listing(exchange, model)
    if listing is None:
        raise problems.not_found(f"The model {model} could not be found")
    if "hardware" in body:
        check_hardware(exchange.world.models.hardware, body["hardware"])
    if "version" in body and listing.version(body["version"], exchange.world.clock.time()) is None:
        raise problems.invalid_version()


def _json(exchange: Exchange, deployment: Deployment) -> dict[str, Any]:
    model = exchange.world.models.run_by(deployment)
    version = deployment.version if model is None else model.version_id
    return deployment.to_json(exchange.world.api_url, version)
