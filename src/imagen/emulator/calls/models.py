"""The calls about models: list, read, make, change, delete, their examples and readme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.calls.owned import is_own, listing_in_path, own_listing
from imagen.emulator.clock import timestamp
from imagen.emulator.course import Course, Prediction
from imagen.emulator.exchange import Exchange
from imagen.emulator.models import Model
from imagen.emulator.paging import numbered_page
from imagen.emulator.problems import InvalidField
from imagen.emulator.register import MOST_MODELS, Listing
from imagen.emulator.showing import shown
from imagen.emulator.sizes import frame_of
from imagen.emulator.state import PredictionOrder
from imagen.emulator.validation import MODEL_NAME, check_body, check_hardware

_LINKS = ("cover_image_url", "github_url", "license_url", "paper_url", "weights_url")
_TEXT = {"type": "string"}
_CHANGE: Mapping[str, Mapping[str, Any]] = dict.fromkeys(("description", "readme", *_LINKS[1:]), _TEXT)
_CREATE: Mapping[str, Mapping[str, Any]] = {
    "owner": _TEXT,
    "name": _TEXT,
    "visibility": {"type": "string", "enum": ["public", "private"]},
    "hardware": _TEXT,
    "description": _TEXT,
    **dict.fromkeys(_LINKS[:4], _TEXT),
}
_ORDERS = {"sort_by": ("latest_version_created_at", "model_created_at"), "sort_direction": ("desc", "asc")}


async def list_models(exchange: Exchange) -> web.Response:
    """`GET /models`: the public ones; `sort_by` and `sort_direction` as in the document."""
    query, now = exchange.request.query, exchange.world.clock.time()
    for name, allowed in _ORDERS.items():
        if query.get(name, allowed[0]) not in allowed:
            words = ", ".join(f'"{word}"' for word in allowed)
            complaint = InvalidField("enum", name, f"{name} must be one of the following: {words}")
            raise problems.invalid_request([complaint])
    public = [one for one in exchange.world.models.listings.values() if one.visibility == "public"]
    if query.get("sort_by") == "model_created_at":
        public.sort(key=lambda listing: listing.created_at)
    else:
        public.sort(key=lambda listing: listing.changed_at(now))
    if query.get("sort_direction", "desc") == "desc":
        public.reverse()
    return exchange.json(
        numbered_page(
            public,
            query,
            url=f"{exchange.world.api_url}/v1/models",
            shown=lambda listing: listing.to_json(now),
            kept=tuple(_ORDERS),
        )
    )


async def get_model(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}`, with the schema of its latest version."""
    return _shown(exchange, listing_in_path(exchange))


async def create_model(exchange: Exchange) -> web.Response:
    """`POST /models`: one without versions; a training, or planting, gives it some."""
    body = check_body(exchange.body, _CREATE, required=("owner", "name", "visibility", "hardware"))
    models, name = exchange.world.models, f"{body['owner']}/{body['name']}"
    if not is_own(exchange, body["owner"]):
        raise problems.forbidden(f"You are not {body['owner']}, nor a member of it")
    if not MODEL_NAME.fullmatch(name):
        raise problems.invalid_request([InvalidField("format", "name", "Does not match format 'model name'")])
    check_hardware(models.hardware, body["hardware"])
    if name in models.listings:
        raise problems.refused(f"A model with the name {name} exists already")
    if sum(listing.owner == body["owner"] for listing in models.listings.values()) >= MOST_MODELS:
        raise problems.refused(f"An account has at most {MOST_MODELS} models")
    listing = Listing(
        name=name,
        description=body.get("description"),
        visibility=body["visibility"],
        links={link: body[link] for link in _LINKS if link in body},
        created_at=timestamp(exchange.world.clock.time()),
    )
    models.enter(listing)
    return _shown(exchange, listing, status=201)


async def update_model(exchange: Exchange) -> web.Response:
    """`PATCH /models/{owner}/{name}`: description, readme and links of one's own model."""
    listing = own_listing(exchange)
    body = check_body({} if exchange.body is None else exchange.body, _CHANGE)
    listing.description = body.get("description", listing.description)
    listing.readme = body.get("readme", listing.readme)
    listing.links.update({link: body[link] for link in _LINKS if link in body})
    return _shown(exchange, listing)


async def delete_model(exchange: Exchange) -> web.Response:
    """`DELETE /models/{owner}/{name}`: one's own, private, without versions."""
    listing = own_listing(exchange)
    if listing.visibility != "private":
        raise problems.refused("Only private models can be deleted")
    if listing.versions_at(exchange.world.clock.time()):
        raise problems.refused("Delete the model's versions first")
    exchange.world.models.remove(listing)
    return web.Response(status=204)


async def get_readme(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}/readme`: text; 404 when there is none."""
    listing = listing_in_path(exchange)
    if not listing.readme:
        raise problems.not_found("README not found")
    return web.Response(text=listing.readme, content_type="text/plain")


async def list_examples(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}/examples`: one that has succeeded, where a prompt is all the model needs."""
    listing, world = listing_in_path(exchange), exchange.world
    latest = listing.latest(world.clock.time())
    examples = []
    if latest is not None and set(latest.model.required) <= {"prompt"} <= set(latest.model.parameters):
        examples.append(await shown(world, _example(exchange, latest.model)))
    return exchange.json({"next": None, "previous": None, "results": examples})


def _example(exchange: Exchange, model: Model) -> Prediction:
    """The example of a model: made when it is first asked for, and then always the same."""
    state = exchange.world.state
    example = state.examples.get(model.name)
    if example is None or example.made_by is not model:
        given = {"prompt": "an emulated fox in the snow"}
        frame = frame_of(model, given)
        course = Course(queue_seconds=0.0, run_seconds=0.0)
        order = PredictionOrder(
            model=model, input=given, course=course, count=frame.count, format=frame.format, kept=True
        )
        example = state.examples[model.name] = state.make("", order)
        state.delivered[example.key] = example
    return example


def _shown(exchange: Exchange, listing: Listing, status: int = 200) -> web.Response:
    return exchange.json(listing.to_json(exchange.world.clock.time()), status)
