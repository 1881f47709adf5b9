"""The calls about predictions: create, get, list, cancel."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.calls.owned import model_in_path, model_of_version, owned_run
from imagen.emulator.course import Course, Prediction
from imagen.emulator.exchange import Exchange
from imagen.emulator.models import Model
from imagen.emulator.paging import PAGE_SIZE, link_to, page_json, read_cursor
from imagen.emulator.problems import InvalidField
from imagen.emulator.showing import shown
from imagen.emulator.sizes import frame_of
from imagen.emulator.state import PredictionOrder
from imagen.emulator.validation import check_input, parse_cancel_after, parse_create_body, parse_prefer

_CREATED, _SEQUENCE = attrgetter("created_at"), attrgetter("sequence")


async def create_by_version(exchange: Exchange) -> web.Response:
    """`POST /predictions`: official models by name, all models by version.

    A name nobody knows is not found (404); a version nobody knows, or a community model without its version,
    is an invalid version (422).
    """
    version = asked_version(exchange)
    model = model_of_version(exchange, version)
    is_name = "/" in version and ":" not in version
    if model is None and is_name:
        raise problems.not_found()
    if model is not None and is_name and not model.official:
        model = None
    return await _create(exchange, model, versioned=True)


async def create_by_model(exchange: Exchange) -> web.Response:
    """`POST /models/{owner}/{name}/predictions`: official models only, 404 for the others."""
    model = model_in_path(exchange)
    if model is None or not model.official:
        raise problems.not_found()
    return await _create(exchange, model)


async def create_by_deployment(exchange: Exchange) -> web.Response:
    """`POST /deployments/{owner}/{name}/predictions`."""
    found = exchange.world.models.deployment(exchange.name)
    if found is None:
        raise problems.not_found()
    deployment, model = found
    answer = await _create(exchange, model, deployment=deployment.name)
    deployment.used_at = exchange.world.clock.time()
    return answer


async def get_prediction(exchange: Exchange) -> web.Response:
    """`GET /predictions/{id}`."""
    return exchange.json(await shown(exchange.world, owned_run(exchange)))


async def cancel_prediction(exchange: Exchange) -> web.Response:
    """`POST /predictions/{id}/cancel`: answers the prediction, also one that had ended before."""
    prediction = owned_run(exchange)
    exchange.world.state.cancel(prediction)
    exchange.world.changed(prediction)
    return exchange.json(await shown(exchange.world, prediction))


async def list_predictions(exchange: Exchange) -> web.Response:
    """`GET /predictions`: newest first, 100 on a page."""
    world, query = exchange.world, exchange.request.query
    now = world.clock.time()
    after, before = _instant(exchange, "created_after"), _instant(exchange, "created_before")
    source = query.get("source")
    if source not in {None, "web"}:
        raise problems.invalid_request([InvalidField("enum", "source", 'source must be one of: "web"')])
    made = exchange.owner.predictions if source is None else []  # nothing here was made on the web
    low = 0 if after is None else bisect_left(made, after, key=_CREATED)
    high = len(made) if before is None else bisect_left(made, before, key=_CREATED)
    items = _around_page(made, range(low, high), query.get("cursor"), now)
    kept = {
        name: value for name, value in query.items() if name in {"created_after", "created_before", "source"}
    }
    page = page_json(
        items,
        query.get("cursor"),
        key=lambda prediction: int(prediction.sequence),
        link=link_to(f"{world.api_url}/v1/predictions", kept),
    )
    page["results"] = [await shown(exchange.world, prediction) for prediction in page["results"]]
    return exchange.json(page)


def _around_page(
    made: Sequence[Prediction], places: range, cursor: str | None, now: float
) -> list[Prediction]:
    """As many of a long list, newest first, as one page and its two links depend on.

    Args:
        made: all of an account, in the order in which they were created.
        places: those that are asked for.
        cursor: of the page.
        now: what is hidden then is not there.
    """
    side, edge = read_cursor(cursor)

    def visible(places: Iterable[int], most: int) -> list[Prediction]:
        there = (
            prediction
            for prediction in map(made.__getitem__, places)
            if prediction.created_at + prediction.course.hidden_seconds <= now
        )
        return list(islice(there, most))

    older_most = 1 if side == "n" else PAGE_SIZE + 1
    newer_most = PAGE_SIZE + 1 if side == "n" else 1
    if side:
        find = bisect_right if side == "n" else bisect_left
        middle = min(max(find(made, edge, key=_SEQUENCE), places.start), places.stop)
    else:
        middle = places.stop
    newer = visible(range(middle, places.stop), newer_most)
    older = visible(range(middle - 1, places.start - 1, -1), older_most)
    return [*reversed(newer), *older]


def asked_version(exchange: Exchange) -> str:
    """The `version` of the body, as far as it is a text."""
    version = exchange.body.get("version") if isinstance(exchange.body, dict) else None
    return version if isinstance(version, str) else ""


async def _create(
    exchange: Exchange, model: Model | None, *, versioned: bool = False, deployment: str | None = None
) -> web.Response:
    world = exchange.world
    body = parse_create_body(exchange.body, versioned=versioned)
    if model is None:
        raise problems.invalid_version()
    check_input(model, body.input)
    wait = parse_prefer(exchange.request.headers.get("Prefer"))
    cancel_after = parse_cancel_after(exchange.request.headers.get("Cancel-After"))
    course, faults = world.faults.bend(_course(exchange, model, wait), exchange.subject())
    exchange.struck_by += faults
    frame = frame_of(model, body.input)
    order = PredictionOrder(
        model=model,
        input=body.input,
        course=course,
        count=frame.count,
        format=frame.format,
        deployment=deployment,
        webhook=body.webhook,
        webhook_events=body.webhook_events,
        cancel_after_seconds=cancel_after,
        faults=faults,
    )
    prediction = world.state.create(exchange.owner, order, concurrency=world.mode.concurrency)
    exchange.prediction = prediction
    world.changed(prediction)
    return await _created(exchange, prediction, wait)


def _course(exchange: Exchange, model: Model, wait: int | None) -> Course:
    course = exchange.world.course_of(model)
    if wait is None or not exchange.world.mode.data_uris:
        return course
    return replace(course, output="data_uris")


async def _created(exchange: Exchange, prediction: Prediction, wait: int | None) -> web.Response:
    headers = {"Location": f"{exchange.world.api_url}/v1/predictions/{prediction.id}"}
    if wait is None:
        created = await shown(exchange.world, prediction, prediction.created_at)
        return exchange.json(created, 201, headers)
    headers["Preference-Applied"] = f"wait={wait}"
    if prediction.course.hold_ends_in is not None:
        return exchange.json(await shown(exchange.world, prediction, _early(prediction)), 202, headers)
    now = await _hold(exchange, prediction, prediction.created_at + wait)
    status = 201 if now >= prediction.ready_at else 202
    return exchange.json(await shown(exchange.world, prediction, now), status, headers)


async def _hold(exchange: Exchange, prediction: Prediction, until: float) -> float:
    clock = exchange.world.clock
    while (now := clock.time()) < min(until, prediction.ready_at):
        await clock.pause(min(until, prediction.ready_at))
    return now


def _early(prediction: Prediction) -> float:
    if prediction.course.hold_ends_in == "starting":
        return prediction.created_at
    return prediction.starts_at + prediction.course.run_seconds / 2


def _instant(exchange: Exchange, name: str) -> float | None:
    text = exchange.request.query.get(name)
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as problem:
        complaint = InvalidField("format", name, "Does not match format 'date-time'")
        raise problems.invalid_request([complaint]) from problem
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
