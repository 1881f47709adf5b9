"""The routes of the API, under `/v1`: which operation a path is, and who answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from imagen.emulator import problems
from imagen.emulator.calls import (
    account,
    collections,
    deployments,
    files,
    models,
    predictions,
    search,
    streams,
    trainings,
    versions,
)
from imagen.emulator.calls.owned import model_in_path, model_of_version, run_in_path
from imagen.emulator.exchange import MAX_JSON_BYTES, UNKNOWN, Exchange, Handler, answer
from imagen.emulator.models import Model
from imagen.emulator.world import World

_MODEL = "/models/{owner}/{name}"
_VERSION = f"{_MODEL}/versions/{{version_id}}"
_DEPLOYMENT = "/deployments/{owner}/{name}"

Responder = Callable[[web.Request], Awaitable[web.StreamResponse]]


ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("GET", "/account", "account.get", account.get_account),
    ("GET", "/collections", "collections.list", collections.list_collections),
    ("GET", "/collections/{collection_slug}", "collections.get", collections.get_collection),
    ("GET", "/deployments", "deployments.list", deployments.list_deployments),
    ("POST", "/deployments", "deployments.create", deployments.create_deployment),
    ("GET", _DEPLOYMENT, "deployments.get", deployments.get_deployment),
    ("PATCH", _DEPLOYMENT, "deployments.update", deployments.update_deployment),
    ("DELETE", _DEPLOYMENT, "deployments.delete", deployments.delete_deployment),
    (
        "POST",
        f"{_DEPLOYMENT}/predictions",
        "deployments.predictions.create",
        predictions.create_by_deployment,
    ),
    ("GET", "/files", "files.list", files.list_files),
    ("POST", "/files", "files.create", files.create_file),
    ("GET", "/files/{file_id}", "files.get", files.get_file),
    ("DELETE", "/files/{file_id}", "files.delete", files.delete_file),
    ("GET", "/files/{file_id}/download", "files.download", files.download_file),
    ("GET", "/hardware", "hardware.list", collections.list_hardware),
    ("GET", "/models", "models.list", models.list_models),
    ("POST", "/models", "models.create", models.create_model),
    ("QUERY", "/models", "models.search", search.search_models),
    ("GET", _MODEL, "models.get", models.get_model),
    ("PATCH", _MODEL, "models.update", models.update_model),
    ("DELETE", _MODEL, "models.delete", models.delete_model),
    ("GET", f"{_MODEL}/examples", "models.examples.list", models.list_examples),
    ("GET", f"{_MODEL}/readme", "models.readme.get", models.get_readme),
    ("POST", f"{_MODEL}/predictions", "models.predictions.create", predictions.create_by_model),
    ("GET", f"{_MODEL}/versions", "models.versions.list", versions.list_versions),
    ("GET", _VERSION, "models.versions.get", versions.get_version),
    ("DELETE", _VERSION, "models.versions.delete", versions.delete_version),
    ("POST", f"{_VERSION}/trainings", "trainings.create", trainings.create_training),
    ("GET", "/predictions", "predictions.list", predictions.list_predictions),
    ("POST", "/predictions", "predictions.create", predictions.create_by_version),
    ("GET", "/predictions/{prediction_id}", "predictions.get", predictions.get_prediction),
    ("POST", "/predictions/{prediction_id}/cancel", "predictions.cancel", predictions.cancel_prediction),
    ("GET", "/search", "search", search.search),
    ("GET", "/trainings", "trainings.list", trainings.list_trainings),
    ("GET", "/trainings/{training_id}", "trainings.get", trainings.get_training),
    ("POST", "/trainings/{training_id}/cancel", "trainings.cancel", trainings.cancel_training),
    ("GET", "/webhooks/default/secret", "webhooks.default.secret.get", account.get_webhook_secret),
)
"""Method, path under `/v1`, operation (the OpenAPI document's name) and handler: all that the document has."""

STREAMS: tuple[tuple[str, str, str, Handler], ...] = (
    ("GET", "/stream/{key}", "stream", streams.stream),
    ("GET", "/files/stream/{key}", "stream", streams.stream),
)
"""The addresses of `urls.stream`, of text and of files; the document leaves them to the prediction."""


def build_api_app(world: World) -> web.Application:
    """The application of the first port, still without control."""
    app = web.Application(client_max_size=MAX_JSON_BYTES, middlewares=[_not_routed(world)])
    for method, path, operation, handler in (*ROUTES, *STREAMS):
        app.router.add_route(method, f"/v1{path}", _responder(world, operation, handler))
    return app


def _responder(world: World, operation: str, handler: Handler) -> Responder:
    async def respond(request: web.Request) -> web.StreamResponse:
        return await answer(Exchange(world, request, "api", operation), _prepare, handler)

    return respond


def _not_routed(world: World) -> Middleware:
    @web.middleware
    async def respond(request: web.Request, handler: Responder) -> web.StreamResponse:
        if request.match_info.http_exception is None:
            return await handler(request)
        return await answer(Exchange(world, request, "api", UNKNOWN), _prepare, _refuse)

    return respond


async def _refuse(exchange: Exchange) -> web.Response:
    reason = exchange.request.match_info.http_exception
    if isinstance(reason, web.HTTPMethodNotAllowed):
        raise problems.method_not_allowed(exchange.request.method, ", ".join(sorted(reason.allowed_methods)))
    raise problems.not_found()


def _prepare(exchange: Exchange) -> None:
    """Find out what a call is about, as far as faults can ask for it; refuses nothing."""
    model = _named_model(exchange)
    exchange.model = model.name if model else ""
    given = exchange.body.get("input") if isinstance(exchange.body, dict) else None
    exchange.prompt = str(given.get("prompt", "")) if isinstance(given, dict) else ""
    exchange.prediction = run_in_path(exchange)


def _named_model(exchange: Exchange) -> Model | None:
    if exchange.operation == "predictions.create":
        return model_of_version(exchange, predictions.asked_version(exchange))
    if "owner" not in exchange.request.match_info:
        return None
    if not exchange.operation.startswith("deployments."):
        return model_in_path(exchange)
    deployed = exchange.world.models.deployment(exchange.name)
    return None if deployed is None else deployed[1]
