"""Which model a request of OpenAI's clients means: as it is named, as the settings map that name, or the default."""

from __future__ import annotations

from imagen.domain.input_schema import Schema
from imagen.domain.model_ref import ModelRef
from imagen.errors import InvalidModelRef, NotFound
from imagen.ports import ModelSource
from imagen.server.access import Visitor
from imagen.server.context import Context
from imagen.server.openai.errors import UnknownModel
from imagen.settings.rows import FLUX_SCHNELL_MODEL

_OF_OPENAI = ("gpt-image", "chatgpt-image")
"""How those names begin under which OpenAI answers with pictures and never with addresses."""
_HINT = (
    "GET /v1/models lists the names that are known; any owner/name[:version] of Replicate is one too, and the operator "
    "gives further names a model with openai.models."
)


def name_of_model(context: Context, asked: str | None, *, edits: bool) -> str:
    """The name of the model that a request means: of the catalog, or `owner/name[:version]`.

    Args:
        context: of the server.
        asked: as it was asked for; None for none.
        edits: whether pictures are edited.
    """
    settings = context.app.settings
    wanted = settings.openai
    if asked is None:
        if edits:
            return wanted.edit_model
        return wanted.model or settings.backends[context.app.backends.default].model or FLUX_SCHNELL_MODEL
    name = asked.strip()
    mapped = {known.lower(): model for known, model in wanted.mapped.items()}
    return mapped.get(name.lower(), name)


def resolve_model(context: Context, name: str) -> ModelRef:
    """The model of a name.

    Raises:
        UnknownModel: it is none.
    """
    try:
        return context.app.catalog.resolve(name)
    except (NotFound, InvalidModelRef) as error:
        near = context.app.catalog.suggest(name)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UnknownModel(f"the model {name[:100]!r} does not exist here", hint=f"{meant}{_HINT}") from error


def gives_pictures(asked: str | None, model: ModelRef) -> bool:
    """Whether OpenAI would answer with the pictures themselves, where nothing is said about that."""
    names = (model.name, (asked or "").strip().lower().rpartition("/")[2])
    return any(name.startswith(_OF_OPENAI) for name in names)


async def schema_of(context: Context, visitor: Visitor, model: ModelRef) -> Schema | None:
    """What a model takes; None where nobody knows.

    Raises:
        ModelNotFound: the service does not know it.
        BackendError: it could not be asked.
    """
    if isinstance(visitor.backend, ModelSource):
        return (await visitor.backend.describe(model)).input_schema
    known = None if model.deployment else context.app.catalog.find(model.base)
    return None if known is None else context.app.catalog.input_schema(known)
