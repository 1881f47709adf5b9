"""The routes of the API, under `/v1`: which operation a path is, and who answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from imagen.emulator import predictions, problems, uploads
from imagen.emulator.exchange import MAX_JSON_BYTES, UNKNOWN, Exchange, Handler, answer
from imagen.emulator.models import Model
from imagen.emulator.world import World

_OWNER_NAME = "{owner}/{name}"

Responder = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def list_models(exchange: Exchange) -> web.Response:
    """`GET /models`: all of them, on one page."""
    models = [model.to_json() for model in exchange.world.models.everyone()]
    return exchange.json({"next": None, "previous": None, "results": models})


async def get_model(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}`, with the schema of its latest version."""
    return exchange.json(_model(exchange).to_json())


async def list_versions(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}/versions`: the one there is."""
    versions = [_model(exchange).version_json()]
    return exchange.json({"next": None, "previous": None, "results": versions})


async def get_version(exchange: Exchange) -> web.Response:
    """`GET /models/{owner}/{name}/versions/{id}`."""
    model = _model(exchange)
    if exchange.part("version_id") != model.version_id:
        raise problems.not_found()
    return exchange.json(model.version_json())


async def list_deployments(exchange: Exchange) -> web.Response:
    """`GET /deployments`: all of them, on one page."""
    world = exchange.world
    deployments = [deployment.to_json(world.api_url) for deployment in world.models.deployments()]
    return exchange.json({"next": None, "previous": None, "results": deployments})


async def get_deployment(exchange: Exchange) -> web.Response:
    """`GET /deployments/{owner}/{name}`, with the release it runs."""
    world = exchange.world
    deployment = world.models.deployment(f"{exchange.part('owner')}/{exchange.part('name')}")
    if deployment is None:
        raise problems.not_found()
    return exchange.json(deployment.to_json(world.api_url))


async def get_account(exchange: Exchange) -> web.Response:
    """`GET /account`: the account of this token."""
    username = exchange.owner.username
    return exchange.json(
        {
            "type": "user",
            "username": username,
            "name": f"Emulated account {exchange.owner.key}",
            "github_url": f"https://github.com/{username}",
            "avatar_url": f"{exchange.world.api_url}/avatars/{username}.png",
        }
    )


async def get_webhook_secret(exchange: Exchange) -> web.Response:
    """`GET /webhooks/default/secret`."""
    return exchange.json({"key": exchange.owner.webhooks_secret})


ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("POST", "/predictions", "predictions.create", predictions.create_by_version),
    ("GET", "/predictions", "predictions.list", predictions.list_predictions),
    ("GET", "/predictions/{prediction_id}", "predictions.get", predictions.get_prediction),
    ("POST", "/predictions/{prediction_id}/cancel", "predictions.cancel", predictions.cancel_prediction),
    ("POST", f"/models/{_OWNER_NAME}/predictions", "models.predictions.create", predictions.create_by_model),
    (
        "POST",
        f"/deployments/{_OWNER_NAME}/predictions",
        "deployments.predictions.create",
        predictions.create_by_deployment,
    ),
    ("GET", "/deployments", "deployments.list", list_deployments),
    ("GET", f"/deployments/{_OWNER_NAME}", "deployments.get", get_deployment),
    ("GET", "/models", "models.list", list_models),
    ("GET", f"/models/{_OWNER_NAME}", "models.get", get_model),
    ("GET", f"/models/{_OWNER_NAME}/versions", "models.versions.list", list_versions),
    ("GET", f"/models/{_OWNER_NAME}/versions/{{version_id}}", "models.versions.get", get_version),
    ("GET", "/account", "account.get", get_account),
    ("GET", "/webhooks/default/secret", "webhooks.default.secret.get", get_webhook_secret),
    ("POST", "/files", "files.create", uploads.create_file),
    ("GET", "/files", "files.list", uploads.list_files),
    ("GET", "/files/{file_id}", "files.get", uploads.get_file),
    ("DELETE", "/files/{file_id}", "files.delete", uploads.delete_file),
    ("GET", "/files/{file_id}/download", "files.download", uploads.download_file),
)
"""Method, path under `/v1`, operation (the OpenAPI document's name) and handler."""


def build_api_app(world: World) -> web.Application:
    """The application of the first port, still without control."""
    app = web.Application(client_max_size=MAX_JSON_BYTES, middlewares=[_not_routed(world)])
    for method, path, operation, handler in ROUTES:
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
    exchange.prediction = predictions.own(exchange)


def _named_model(exchange: Exchange) -> Model | None:
    models, parts = exchange.world.models, exchange.request.match_info
    if exchange.operation == "predictions.create":
        return models.meant_by(predictions.asked_version(exchange))
    if "owner" not in parts:
        return None
    name = f"{parts['owner']}/{parts['name']}"
    if not exchange.operation.startswith("deployments."):
        return models.named(name)
    deployment = models.deployment(name)
    return None if deployment is None else deployment.model


def _model(exchange: Exchange) -> Model:
    model = _named_model(exchange)
    if model is None:
        raise problems.not_found()
    return model
