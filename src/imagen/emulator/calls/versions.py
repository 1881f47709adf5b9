"""The calls about a model's versions: list, read, delete."""

from __future__ import annotations

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.calls.owned import listing_in_path, own_listing
from imagen.emulator.exchange import Exchange
from imagen.emulator.paging import numbered_page
from imagen.emulator.register import Listing, Version


async def list_versions(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}/versions`: newest first."""
    listing, world = listing_in_path(exchange), exchange.world
    return exchange.json(
        numbered_page(
            listing.versions_at(world.clock.time())[::-1],
            exchange.request.query,
            url=f"{world.api_url}/v1/models/{listing.name}/versions",
            shown=Version.to_json,
        )
    )


async def get_version(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}/versions/{id}`."""
    return exchange.json(version_in_path(exchange, listing_in_path(exchange)).to_json())


async def delete_version(exchange: Exchange) -> web.Response:
    """`DELETE /models/{owner}/{name}/versions/{id}`: with its predictions, where nothing else needs it."""
    listing = own_listing(exchange)
    version = version_in_path(exchange, listing)
    if reason := _reason_to_stay(exchange, listing, version):
        raise problems.refused(reason)
    exchange.world.state.forget_version(version.id)
    listing.versions.remove(version)
    return web.Response(status=202)


def version_in_path(exchange: Exchange, listing: Listing) -> Version:
    """The version of a model that the path names.

    Raises:
        Problem: 404, the model has no such version.
    """
    version = listing.version(exchange.part("version_id"), exchange.world.clock.time())
    if version is None:
        raise problems.not_found()
    return version


def _reason_to_stay(exchange: Exchange, listing: Listing, version: Version) -> str:
    """Why a version cannot be deleted, as far as the document's list can be asked here."""
    world = exchange.world
    if listing.visibility != "private":
        return "Only versions of private models can be deleted"
    used = (world.models.run_by(deployment) for deployment in world.models.deployments.values())
    if any(model is version.model for model in used):
        return "The version has a deployment"
    if any(training.made_by is version.model for training in world.state.trainings.values()):
        return "The version is the base of a training"
    strangers = (
        prediction
        for prediction in world.state.predictions.values()
        if prediction.made_by is version.model and prediction.account != exchange.owner.key
    )
    return "Somebody else has run predictions with the version" if any(strangers) else ""
