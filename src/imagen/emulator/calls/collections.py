"""The calls about collections of models and kinds of hardware."""

from __future__ import annotations

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.calls.owned import visible_listing
from imagen.emulator.exchange import Exchange
from imagen.emulator.paging import numbered_page
from imagen.emulator.shelves import Collection


async def list_collections(exchange: Exchange) -> web.Response:
    """`GET /collections`."""
    world = exchange.world
    return exchange.json(
        numbered_page(
            list(world.models.collections.values()),
            exchange.request.query,
            url=f"{world.api_url}/v1/collections",
            shown=Collection.to_json,
        )
    )


async def get_collection(exchange: Exchange) -> web.Response:
    """`GET /collections/{slug}`, with its models."""
    collection = exchange.world.models.collections.get(exchange.part("collection_slug"))
    if collection is None:
        raise problems.not_found()
    now = exchange.world.clock.time()
    listings = [visible_listing(exchange, name) for name in collection.models]
    return exchange.json(
        {
            **collection.to_json(),
            "full_description": None,
            "models": [listing.to_json(now) for listing in listings if listing is not None],
        }
    )


async def list_hardware(exchange: Exchange) -> web.Response:
    """`GET /hardware`: all of it, without pages."""
    kinds = exchange.world.models.hardware
    return exchange.json([{"sku": sku, "name": name} for sku, name in kinds.items()])
