"""The keys of the gateway, for its admin."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from imagen.domain.key import MAX_CONCURRENT, MAX_MODELS, MAX_PER_MINUTE, ROUTES, Key
from imagen.server.answers import json_answer
from imagen.server.bodies import read_json
from imagen.server.context import Context
from imagen.server.operation import Operation, Parameter

# For readers of the document alone: `check_key` refuses with sentences of its own.
_Name = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$"})]
_Models = Annotated[list[str], msgspec.Meta(extra_json_schema={"maxItems": MAX_MODELS})]
_Route = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ROUTES)})]
_Concurrent = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_CONCURRENT})]
_PerMinute = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_PER_MINUTE})]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that is wanted. A field that is not known is refused: misspelled, it would make a key that is good for more.

    Attributes:
        name: whom the ledger will name: 1 to 100 letters, digits and . _ : -
        models: `owner/name` or short names of the models it is good for; none for all.
        routes: the paths it is good for, each with all that is under it; none for all.
        concurrent: predictions at the same time, 1 to 100000; null leaves it to the account.
        rpm: predictions a minute, 1 to 1000000; null leaves it to the account.
    """

    name: _Name
    models: _Models = []
    routes: list[_Route] = []
    concurrent: _Concurrent | None = None
    rpm: _PerMinute | None = None


class KeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key; not the key itself.

    Attributes:
        name: whom the ledger names.
        id: stays its own when the name is given again.
        models: `owner/name` of the models it is good for; none for all.
        routes: the paths it is good for, each with all that is under it; none for all.
        concurrent: predictions at the same time; null leaves it to the account.
        rpm: predictions a minute; null leaves it to the account.
        created_at: an instant.
        revoked_at: an instant; null as long as it is good.
    """

    name: str
    id: str
    models: list[str]
    routes: list[str]
    concurrent: int | None
    rpm: int | None
    created_at: datetime
    revoked_at: datetime | None


class RevokedKey(KeyAnswer, frozen=True, kw_only=True):
    """A key that is good for nothing any more.

    Attributes:
        name: whom the ledger names.
        id: stays its own when the name is given again.
        models: `owner/name` of the models it was good for; none for all.
        routes: the paths it was good for, each with all that is under it; none for all.
        concurrent: predictions at the same time; null left it to the account.
        rpm: predictions a minute; null left it to the account.
        created_at: an instant.
        revoked_at: an instant.
        budgets: names of those that counted this key alone, and now count nobody.
    """

    budgets: list[str]


class CreatedKey(KeyAnswer, frozen=True, kw_only=True):
    """A new key. This answer is the only place where `key` is ever shown.

    Attributes:
        name: whom the ledger names.
        id: stays its own when the name is given again.
        models: `owner/name` of the models it is good for; none for all.
        routes: the paths it is good for, each with all that is under it; none for all.
        concurrent: predictions at the same time; null leaves it to the account.
        rpm: predictions a minute; null leaves it to the account.
        created_at: an instant.
        revoked_at: an instant; null as long as it is good.
        key: what its holder sends, as `X-API-Key: …` or `Authorization: Bearer …`.
    """

    key: str


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that are good.

    Attributes:
        count: how many.
        keys: by name.
    """

    count: int
    keys: list[KeyAnswer]


async def list_keys(context: Context, request: Request) -> Response:
    """All that are good."""
    context.enter_admin(request)
    keys = [shown_key(key) for key in await context.app.keys.list()]
    return json_answer(KeyList(count=len(keys), keys=keys))


async def create_key(context: Context, request: Request) -> Response:
    """Make one and show it, this once."""
    context.enter_admin(request)
    wanted = await read_json(request, NewKey)
    key, plain = await context.app.keys.create(
        wanted.name,
        models=wanted.models,
        routes=wanted.routes,
        concurrent=wanted.concurrent,
        per_minute=wanted.rpm,
    )
    facts = msgspec.structs.asdict(shown_key(key))
    # No proxy or browser on the way keeps the answer either.
    headers = {"cache-control": "no-store"}
    return json_answer(CreatedKey(key=plain.reveal(), **facts), status=201, headers=headers)


async def revoke_key(context: Context, request: Request) -> Response:
    """Let one be good for nothing."""
    context.enter_admin(request)
    key, idle = await context.app.keys.revoke(request.path_params["name"])
    return json_answer(RevokedKey(budgets=list(idle), **msgspec.structs.asdict(shown_key(key))))


def shown_key(key: Key) -> KeyAnswer:
    """A key as answers have it."""
    return KeyAnswer(
        name=key.name,
        id=key.id,
        models=sorted(key.models),
        routes=sorted(key.routes),
        concurrent=key.concurrent,
        rpm=key.per_minute,
        created_at=key.created_at,
        revoked_at=key.revoked_at,
    )


_TAG = "keys"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/keys",
        handler=list_keys,
        summary="List the keys that are good",
        tag=_TAG,
        access="admin",
        answers={200: KeyList},
        errors=(401,),
    ),
    Operation(
        method="POST",
        path="/keys",
        handler=create_key,
        summary="Make a key",
        description=(
            "The answer shows the key this once: only its hash is kept. Without `models`, `routes`, `concurrent` "
            "and `rpm` the key is good for everything but administration."
        ),
        tag=_TAG,
        access="admin",
        body=NewKey,
        answers={201: CreatedKey},
        errors=(401, 409),
        example={
            "name": "web-shop",
            "models": ["flux-dev"],
            "routes": ["/generate"],
            "concurrent": 4,
            "rpm": 60,
        },
    ),
    Operation(
        method="DELETE",
        path="/keys/{name}",
        handler=revoke_key,
        summary="Revoke a key",
        description=(
            "It is refused from now on, by other processes of the gateway within a second. Budgets that counted this key "
            "alone count nobody from now on: the answer names them."
        ),
        tag=_TAG,
        access="admin",
        answers={200: RevokedKey},
        errors=(401, 404),
        parameters=(Parameter(name="name", place="path", description="The key's name.", required=True),),
    ),
)
