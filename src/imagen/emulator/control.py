"""The control plane, `/_emulator/`: what a test or an operator tells the emulator about itself.

No token; the server listens on loopback. Bodies are JSON objects and unknown keys are refused, because a
misspelt fault that silently does nothing makes a test that silently tests nothing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from imagen.decoding import convert
from imagen.emulator import problems
from imagen.emulator.clock import timestamp
from imagen.emulator.exchange import CONTROL_PREFIX, Exchange, json_response, problem_response, read_json
from imagen.emulator.faults import fault_from_json, fault_names
from imagen.emulator.limits import Mode
from imagen.emulator.models import Model
from imagen.emulator.plant import Plant, plant
from imagen.emulator.problems import InvalidField, Problem
from imagen.emulator.world import World

Shape = TypeVar("Shape")
Action = Callable[[Exchange], dict[str, Any]]
Responder = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Advance(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST clock`; seconds, 0 or more."""

    advance: Annotated[float, msgspec.Meta(ge=0, le=1e10)]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that takes none."""


def add_control(app: web.Application, world: World) -> None:
    """Put the control routes into the API's application."""
    for method, path, action in ACTIONS:
        app.router.add_route(method, f"{CONTROL_PREFIX}/{path}", _responder(world, action))


def state_json(world: World) -> dict[str, Any]:
    """Counts and addresses: what `GET state` answers.

    `purchases` counts predictions ever accepted, `running` those accepted and not ended, `max_running` the
    most of them at once.
    """
    state = world.state
    return {
        "purchases": state.purchases,
        "running": state.running(),
        "max_running": state.max_running,
        "by_status": dict(state.by_status()),
        "trainings": len(state.trainings),
        "mode": msgspec.to_builtins(world.mode),
        "api_url": world.api_url,
        "delivery_url": world.delivery_url,
        "journal_entries": len(world.journal),
        "accounts": [
            {
                "key": account.key,
                "username": account.username,
                "predictions": len(account.predictions),
                "files": len(account.files),
                "files_secret": account.files_secret,
                "webhook_secret": account.webhooks_secret,
            }
            for account in state.accounts.values()
        ],
    }


def _reset(exchange: Exchange) -> dict[str, Any]:
    _body(exchange, Nothing)
    exchange.world.reset()
    return state_json(exchange.world)


def _state(exchange: Exchange) -> dict[str, Any]:
    return state_json(exchange.world)


def _clock(exchange: Exchange) -> dict[str, Any]:
    clock = exchange.world.clock
    return {"now": timestamp(clock.time()), "offset_seconds": clock.offset_seconds}


def _advance(exchange: Exchange) -> dict[str, Any]:
    exchange.world.clock.advance(_body(exchange, Advance).advance)
    return _clock(exchange)


def _faults(exchange: Exchange) -> dict[str, Any]:
    posted = [fault.to_json() for fault in exchange.world.faults.posted()]
    return {"faults": posted, "known": list(fault_names())}


def _post_fault(exchange: Exchange) -> dict[str, Any]:
    try:
        fault = fault_from_json(exchange.body)
    except ValueError as problem:
        names = ", ".join(fault_names())
        raise _invalid(f"{problem} (the faults are {names})") from problem
    return exchange.world.faults.post(fault).to_json()


def _clear_faults(exchange: Exchange) -> dict[str, Any]:
    exchange.world.faults.clear()
    return _faults(exchange)


def _withdraw_fault(exchange: Exchange) -> dict[str, Any]:
    posted_id = exchange.part("id")
    if not re.fullmatch(r"[0-9]{1,9}", posted_id) or not exchange.world.faults.withdraw(int(posted_id)):
        raise problems.not_found(f"No fault of id {posted_id} is posted")
    return _faults(exchange)


def _rotate_webhook_secrets(exchange: Exchange) -> dict[str, Any]:
    _body(exchange, Nothing)
    exchange.world.state.rotate_webhook_secrets()
    return state_json(exchange.world)


def _journal(exchange: Exchange) -> dict[str, Any]:
    wanted: dict[str, Any] = dict(exchange.request.query)
    try:
        if "status" in wanted:
            wanted["status"] = int(wanted["status"])
        entries = exchange.world.journal.entries(**wanted)
    except ValueError as problem:
        raise _invalid(str(problem)) from problem
    return {"entries": [msgspec.to_builtins(entry) for entry in entries]}


def _mode(exchange: Exchange) -> dict[str, Any]:
    result: dict[str, Any] = msgspec.to_builtins(exchange.world.mode)
    return result


def _change_mode(exchange: Exchange) -> dict[str, Any]:
    if not isinstance(exchange.body, dict):
        raise _invalid("Expected an object of what is to change")
    exchange.body = {**_mode(exchange), **exchange.body}
    exchange.world.mode = _body(exchange, Mode)
    return _mode(exchange)


def _models(exchange: Exchange) -> dict[str, Any]:
    return {"models": [msgspec.to_builtins(model) for model in exchange.world.models.everyone()]}


def _add_model(exchange: Exchange) -> dict[str, Any]:
    model = _body(exchange, Model)
    exchange.world.models.add(model)
    return exchange.world.models.listings[model.name].to_json(exchange.world.clock.time())


def _plant(exchange: Exchange) -> dict[str, Any]:
    try:
        planted = plant(exchange.world, _body(exchange, Plant))
    except ValueError as problem:
        raise _invalid(str(problem)) from problem
    return {"planted": planted}


ACTIONS: tuple[tuple[str, str, Action], ...] = (
    ("POST", "reset", _reset),
    ("GET", "state", _state),
    ("GET", "clock", _clock),
    ("POST", "clock", _advance),
    ("GET", "faults", _faults),
    ("POST", "faults", _post_fault),
    ("DELETE", "faults", _clear_faults),
    ("DELETE", "faults/{id}", _withdraw_fault),
    ("POST", "webhook-secrets/rotate", _rotate_webhook_secrets),
    ("GET", "journal", _journal),
    ("GET", "mode", _mode),
    ("POST", "mode", _change_mode),
    ("GET", "models", _models),
    ("POST", "models", _add_model),
    ("POST", "plant", _plant),
)
"""Method, path under `/_emulator` and what it does."""


def _responder(world: World, action: Action) -> Responder:
    async def respond(request: web.Request) -> web.StreamResponse:
        exchange = Exchange(world, request, "control", "control")
        try:
            await read_json(exchange)
            return json_response(action(exchange))
        except Problem as problem:
            return problem_response(problem)

    return respond


def _body(exchange: Exchange, shape: type[Shape]) -> Shape:
    try:
        return convert({} if exchange.body is None else exchange.body, shape)
    except ValueError as problem:
        raise _invalid(str(problem)) from problem


def _invalid(description: str) -> Problem:
    return problems.invalid_request([InvalidField("control", "", description)])
