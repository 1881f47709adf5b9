"""A named key of the gateway: who shows it, and what it is good for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from datetime import datetime

import msgspec

from imagen.domain.caller import ADMIN, OWN_TOKEN, UNKNOWN, Caller
from imagen.domain.model_ref import ModelRef
from imagen.errors import InvalidInput, NotFound, PermissionDenied, Problem

PREFIX = "imk"
"""What every plain key begins with: it tells scanners of repositories and people what they have found."""
ROUTES = ("/batches", "/generate", "/generate-batch", "/global-semaphores", "/mcp", "/predictions", "/v1")
"""The paths that a key may be limited to, each with all that is under it."""
MAX_CONCURRENT = 100_000
MAX_PER_MINUTE = 1_000_000
MAX_MODELS = 100
_SHOWN_MODELS = 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_ALLOWED_NAME = "must be 1 to 100 letters, digits and . _ : - and begin with a letter or digit"
_TAKEN = frozenset({ADMIN, UNKNOWN.name})
_PLAIN = re.compile(rf"{PREFIX}_[0-9a-hjkmnp-tv-z]{{32}}")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key. The plain key is not: only its hash is kept, and not here.

    Attributes:
        id: `key_…`; a name may be given again after a revocation, an id never is.
        name: whom the ledger names.
        models: `owner/name`, or `deployments/owner/name`, of what it is good for; empty for all.
        routes: the paths it is good for, of `ROUTES`, each with all that is under it; empty for all.
        concurrent: predictions at the same time; None leaves it to the account.
        per_minute: predictions a minute; None leaves it to the account.
        created_at, revoked_at: instants; a revoked key is good for nothing.
    """

    id: str
    name: str
    created_at: datetime
    models: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()
    concurrent: int | None = None
    per_minute: int | None = None
    revoked_at: datetime | None = None

    @property
    def label(self) -> str:
        """Its name; a revoked one says so, as the name may be another's by now."""
        return self.name if self.revoked_at is None else f"{self.name} (revoked)"

    @property
    def caller(self) -> Caller:
        """Whom it names, with its limits."""
        return Caller(name=self.name, key=self.id, concurrent=self.concurrent, per_minute=self.per_minute)


def hash_key(shown: str) -> str:
    """A plain key as it is kept: its sha256, in hex.

    Slow, salted hashes protect what people choose. A key has 160 random bits: nobody finds it by trying, however fast
    a try is, and no two are equal, so a salt would hide nothing. A fast hash also costs a request nothing, and keys can
    be looked up by it.
    """
    return hashlib.sha256(shown.encode()).hexdigest()


def looks_like_key(shown: str) -> bool:
    """Whether it has the form of our keys; what has another form need not be looked up."""
    return _PLAIN.fullmatch(shown) is not None


def check_key(
    *,
    name: str,
    models: Collection[str] = (),
    routes: Collection[str] = (),
    concurrent: int | None = None,
    per_minute: int | None = None,
) -> None:
    """Refuse facts of a new key that make no sense.

    Args:
        name: 1 to 100 characters.
        models: how many is checked here; what each of them means is the catalog's business.
        routes: of `ROUTES`.
        concurrent: 1 to 100000, or None.
        per_minute: 1 to 1000000, or None; faces call it `rpm`.

    Raises:
        InvalidInput: naming each wrong field and what is allowed.
    """
    problems = [
        *_name_problems(name),
        *_limit_problems("concurrent", concurrent, MAX_CONCURRENT),
        *_limit_problems("rpm", per_minute, MAX_PER_MINUTE),
    ]
    if len(models) > MAX_MODELS:
        problems.append(Problem("models", f"at most {MAX_MODELS} are allowed"))
    if unknown := sorted(set(routes) - set(ROUTES)):
        problems.append(Problem("routes", f"{unknown[0][:100]!r} must be one of {', '.join(ROUTES)}"))
    if problems:
        raise InvalidInput(problems, subject="the key")


def check_scope(models: Collection[str], model: ModelRef) -> None:
    """Refuse a model that a key is not good for. A version of a model counts as the model, a deployment does not.

    Args:
        models: of `Key.models`; empty for all.
        model: what is asked for.

    Raises:
        PermissionDenied: naming the model and what the key may use.
    """
    # Replicate's names do not tell large letters from small ones.
    if not models or scope_of(model).lower() in {one.lower() for one in models}:
        return
    shown = ", ".join(sorted(models)[:_SHOWN_MODELS])
    more = f" and {len(models) - _SHOWN_MODELS} more" if len(models) > _SHOWN_MODELS else ""
    raise PermissionDenied(
        f"this key is not good for {scope_of(model)}; it may use {shown}{more}",
        hint="Ask for one of those, or have a key made with this model among its models.",
    )


def check_route(routes: Collection[str], route: str) -> None:
    """Refuse a path that a key is not good for.

    Args:
        routes: of `Key.routes`; empty for all.
        route: what is asked for, such as `/global-semaphores/{semaphore_id}/leases`.

    Raises:
        PermissionDenied: naming the path and what the key may use.
    """
    if routes and not any(route == one or route.startswith(f"{one}/") for one in routes):
        raise PermissionDenied(
            f"this key is not good for {route}; it may use {', '.join(sorted(routes))}",
            hint="Have a key made with this path among its routes.",
        )


def scope_of(model: ModelRef) -> str:
    """A model as `Key.models` names it."""
    return f"deployments/{model.base}" if model.deployment else model.base


def unknown_key(name: str) -> NotFound:
    """The error for a name that no key has, or only revoked ones."""
    return NotFound(
        f"no key is called {name[:100]!r}",
        hint="`imagen keys list`, or GET /keys, shows the keys that are good.",
    )


def check_name(name: str) -> None:
    """Refuse a name that no key can have.

    Raises:
        InvalidInput: naming what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput([Problem("name", f"{name[:100]!r} {_ALLOWED_NAME}")], subject="the key")


def _name_problems(name: str) -> Iterator[Problem]:
    if not _NAME.fullmatch(name):
        yield Problem("name", f"{name[:100]!r} {_ALLOWED_NAME}")
    elif name.lower() in _TAKEN or name.lower().startswith(OWN_TOKEN):
        yield Problem(
            "name",
            f"{name!r} is what the ledger calls callers without a key; every name is allowed but "
            f"{', '.join(sorted(_TAKEN))} and those that begin with {OWN_TOKEN}",
        )


def _limit_problems(field: str, value: int | None, most: int) -> Iterator[Problem]:
    if value is not None and not 1 <= value <= most:
        yield Problem(field, f"{value} is not allowed; it must be from 1 to {most}")
