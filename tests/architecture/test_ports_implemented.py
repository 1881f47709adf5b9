"""Whatever stands behind a port has the port's methods, with the port's own parameters."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest
from source import modules

from imagen import ports
from imagen.backends.emulated import EmulatedBackend
from imagen.backends.replicate.backend import ReplicateBackend
from imagen.service.bookkeep import Keeper
from imagen.store.kept_entries import KeptEntries
from imagen.store.ledger import SqlLedger
from imagen.store.owners import FileOwners
from imagen.store.predictions import SqlPredictionStore

CERTAIN: tuple[tuple[type, type], ...] = (
    (ports.Backend, ReplicateBackend),
    (ports.Backend, EmulatedBackend),
    (ports.PredictionStore, SqlPredictionStore),
    (ports.Ledger, SqlLedger),
    (ports.Owners, FileOwners),
    (Keeper, KeptEntries),
)


def is_protocol(value: object) -> bool:
    return isinstance(value, type) and bool(vars(value).get("_is_protocol"))


PORTS = [value for name in ports.__all__ if is_protocol(value := getattr(ports, name))]


def members(port: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(port).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }


def classes() -> list[type]:
    names = [name for name in modules() if "migrations" not in name and not name.endswith("__main__")]
    return [
        value
        for name in names
        for value in vars(import_module(name)).values()
        if isinstance(value, type) and value.__module__ == name and not is_protocol(value)
    ]


def has(kind: type, name: str, wanted: Any) -> bool:
    """A value that is called like a port's method is none."""
    found = inspect.getattr_static(kind, name, None)
    return found is not None and (isinstance(wanted, property) or inspect.isroutine(found))


def pairs() -> list[tuple[type, type]]:
    """Those that must be there, and every class that has all the names of a port's methods."""
    found = [
        (port, kind)
        for port in PORTS
        for kind in classes()
        if all(has(kind, name, wanted) for name, wanted in members(port).items())
    ]
    return sorted({*CERTAIN, *found}, key=lambda pair: (pair[0].__name__, pair[1].__qualname__))


def shape(function: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("port", "kind"), pairs())
def test_methods_are_the_ports_own(port: type, kind: type) -> None:
    for name, wanted in members(port).items():
        found = inspect.getattr_static(kind, name, None)
        assert found is not None, f"{kind.__name__} has no {name}"
        if isinstance(wanted, property):
            continue
        assert shape(found) == shape(wanted), f"{kind.__name__}.{name}"
        same = inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(wanted)
        assert same, f"{kind.__name__}.{name}: only one of the two is async"


@pytest.mark.parametrize("port", PORTS)
def test_every_port_has_somebody_behind_it(port: type) -> None:
    assert [kind for other, kind in pairs() if other is port]


@pytest.mark.parametrize("port", PORTS)
def test_every_method_of_a_port_says_what_may_be_relied_on(port: type) -> None:
    assert [name for name, value in members(port).items() if not value.__doc__] == []
