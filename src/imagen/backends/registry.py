"""Finds backends by their type, through the entry points `imagen.backends`; the built-in ones register there too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

import msgspec

from imagen.catalog import Catalog
from imagen.domain.secret import Secret
from imagen.errors import ConfigError
from imagen.ports import Backend, CallBudget, Clock, Observer
from imagen.transport.client import HttpClient
from imagen.transport.retry import RetryPolicy

GROUP = "imagen.backends"


class BackendContext(msgspec.Struct, frozen=True, kw_only=True):
    """All that a backend may use of the rest.

    Attributes:
        name: its key in `imagen.yaml`.
        type: the type that chose it.
        model: `owner/name[:version]` or an alias of the catalog.
        api_base, token, token_env: where it is reached and how it is let in; token None when none is set.
        default_steps, default_aspect_ratio: used where the caller says nothing.
        deadline_seconds: replaces every model's own.
        extra: settings that only this type knows.
        cache_folder: for what it may forget.
        observer: told about calls and waits.
        calls: paces the calls that are not creates.
    """

    name: str
    type: str
    model: str
    api_base: str
    token: Secret | None
    token_env: str
    default_steps: int | None
    default_aspect_ratio: str
    deadline_seconds: float | None
    read_seconds: float
    extra: Mapping[str, Any]
    cache_folder: Path
    client: HttpClient
    catalog: Catalog
    clock: Clock
    observer: Observer
    calls: CallBudget
    policy: RetryPolicy = RetryPolicy()


BackendFactory = Callable[[BackendContext], Backend]


def known_types() -> tuple[str, ...]:
    """The types that can be configured."""
    return tuple(sorted(_registered()))


def build_backend(context: BackendContext) -> Backend:
    """The backend of `context.type`.

    Raises:
        ConfigError: no such type, or its package is broken.
    """
    found = _registered().get(context.type)
    if found is None:
        raise ConfigError(
            f"backends.{context.name}.type {context.type!r} is not known; known types are {', '.join(known_types())}",
            setting=f"backends.{context.name}.type",
        )
    try:
        factory = cast("BackendFactory", found.load())
    except ImportError as error:
        raise ConfigError(
            f"backends.{context.name}: type {context.type!r} cannot be loaded: {error}",
            setting=f"backends.{context.name}.type",
        ) from error
    return factory(context)


@cache
def _registered() -> Mapping[str, EntryPoint]:
    """By type. Looking through all that is installed takes 14 ms, and each caller's own token has a backend."""
    return {point.name: point for point in entry_points(group=GROUP)}
