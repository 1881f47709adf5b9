"""What can be asked of the gateway, as an OpenAPI 3.1 document (`/openapi.json`) and as a page to try it on (`/docs`).

The page loads nothing from any other host: Swagger UI comes with the package `fastapi-offline`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from imagen import __version__
from imagen.errors import NotFound
from imagen.server import (
    batch,
    batches,
    budgets,
    deliveries,
    feedback,
    generate,
    health,
    keys,
    mcp,
    metrics,
    pictures,
    predictions,
    promote,
    quote,
    recommend,
    semaphores,
    usage,
    webhooks,
)
from imagen.server.answers import ErrorBody
from imagen.server.context import Context
from imagen.server.openai import images
from imagen.server.operation import Access, Operation, Parameter
from imagen.server.replicate import files as replicate_files
from imagen.server.replicate import models as replicate_models
from imagen.server.replicate import predictions as replicate_predictions
from imagen.server.replicate import relay as replicate_relay
from imagen.server.replicate import stream as replicate_stream

FACES = (
    generate,
    batch,
    predictions,
    promote,
    feedback,
    quote,
    recommend,
    batches,
    deliveries,
    semaphores,
    keys,
    budgets,
    usage,
    pictures,
    webhooks,
    health,
    metrics,
    replicate_predictions,
    replicate_stream,
    replicate_files,
    replicate_models,
    replicate_relay,
    images,
    mcp,
)
"""The modules whose operations the document tells, in this order; its own come last."""
JSON = "application/json"
_SECURITY: Mapping[Access, list[dict[str, list[str]]]] = {
    "anyone": [],
    # The last one: a Replicate token in the payload, and whoever is on the gateway's own machine.
    "caller": [{"adminKey": []}, {"apiKey": []}, {"bearer": []}, {}],
    "admin": [{"adminKey": []}],
}
_SCHEMES = {
    "adminKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Admin-API-Key",
        "description": "The admin key of the gateway.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "A named key that the admin made.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same named key, as a bearer token."},
}
_REFUSED: Mapping[Access, tuple[int, ...]] = {"anyone": (), "caller": (401, 403), "admin": (401,)}
_WAIT = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait."}}
_HEADERS: Mapping[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "How to authenticate."}},
    429: _WAIT,
    503: _WAIT,
}
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_ALSO: Mapping[int, tuple[str, ...]] = {HTTPStatus.PARTIAL_CONTENT: ("multipart/byteranges",)}
_REFERENCE = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_INTRODUCTION = """Image generation through Replicate with limits that hold, purchases that are made once, and a ledger.

Errors have one shape, `ErrorBody`: `error` is a sentence for people, `code` stays the same between releases, `hint` says
what to do next. Every answer has an `X-Request-Id`; a request that brings one keeps it."""


# --- the document ----------------------------------------------------------------------------------------


def openapi_document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The operations as an OpenAPI 3.1 document.

    Args:
        operations: all that can be asked for.
        version: of the program.
    """
    schemas = _Schemas(_types(operations))
    paths: dict[str, dict[str, Any]] = {}
    for operation, name in zip(operations, _unique_names(operations), strict=True):
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, name, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imagen",
            "version": version,
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": _SCHEMES},
    }


def _operation(operation: Operation, name: str, schemas: _Schemas) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": _SECURITY[operation.access],
        "responses": _answers(operation, schemas),
    }
    if operation.description:
        made["description"] = cleandoc(operation.description)
    if parameters := [_parameter(one) for one in _parameters(operation)]:
        made["parameters"] = parameters
    if operation.body is not None:
        content = schemas.of(operation.body)
        if operation.example is not None:
            content["example"] = operation.example
        uploads = {media_type: {"schema": schema} for media_type, schema in operation.uploads.items()}
        made["requestBody"] = {"required": True, "content": {JSON: content} | uploads}
    return made


def _answers(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    example = operation.example if operation.body is None else None
    for status, kind in operation.answers.items():
        answer: dict[str, Any] = {"description": _phrase(status)}
        if kind is not None:
            content = schemas.of(kind)
            if example is not None and status < HTTPStatus.MULTIPLE_CHOICES:
                content["example"] = example
            besides = {media_type: {"schema": {"type": "string"}} for media_type in operation.besides}
            answer["content"] = {JSON: content} | besides
        elif operation.media_type != JSON and status not in _WITHOUT_BODY:
            answer["content"] = {
                media_type: {} for media_type in (operation.media_type, *_ALSO.get(status, ()))
            }
        answers[str(status)] = answer
    takes_something = operation.body is not None or operation.parameters or "{" in operation.path
    errors = {*([400] if takes_something else []), *_REFUSED[operation.access], *operation.errors}
    for status in sorted(errors - operation.answers.keys()):
        answers[str(status)] = {
            "description": _phrase(status),
            "content": {JSON: schemas.of(ErrorBody)},
        } | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
    return answers


def _parameters(operation: Operation) -> Iterator[Parameter]:
    """Those that the operation tells, and those of its path that it does not."""
    told = {parameter.name for parameter in operation.parameters if parameter.place == "path"}
    yield from operation.parameters
    for name in _PARAMETER.findall(operation.path):
        if name not in told:
            yield Parameter(name=name, place="path", description="")


def _parameter(parameter: Parameter) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required or parameter.place == "path",
        "schema": dict(parameter.schema),
    }
    if parameter.description:
        made["description"] = parameter.description
    return made


def _unique_names(operations: Iterable[Operation]) -> Iterator[str]:
    """The handlers' names; a handler of several paths or methods gets a number from the second on."""
    times: dict[str, int] = {}
    for operation in operations:
        name = operation.handler.__name__
        times[name] = times.get(name, 0) + 1
        yield name if times[name] == 1 else f"{name}_{times[name]}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Answer"


# --- types -----------------------------------------------------------------------------------------------


def _types(operations: Iterable[Operation]) -> list[Any]:
    found: list[Any] = [ErrorBody]
    for operation in operations:
        for kind in (operation.body, *operation.answers.values()):
            if kind is not None and kind not in found:
                found.append(kind)
    return found


class _Schemas:
    """The JSON schemas of types, by reference where they have a name."""

    def __init__(self, types: Sequence[Any]) -> None:
        alternatives: list[Any] = []
        told = [_without_alternatives(kind, alternatives) for kind in types]
        schemas, components = msgspec.json.schema_components(
            [*told, *alternatives], schema_hook=_schema_of, ref_template=_REFERENCE
        )
        self._types = types
        self._schemas = schemas
        self.components: dict[str, Any] = {
            name: _with_described_fields(schema) for name, schema in sorted(components.items())
        }

    def of(self, kind: Any) -> dict[str, Any]:
        """The `content` entry of a type."""
        return {"schema": self._schemas[self._types.index(kind)]}


def _without_alternatives(kind: Any, alternatives: list[Any]) -> Any:
    """The type with every "this struct or that one" as msgspec can tell it.

    msgspec decodes no such union, so it has no schema for one either; answers are only ever encoded and may have them.

    Args:
        kind: any type.
        alternatives: the structs of such unions are added to it, as they need schemas of their own.
    """
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct_without(kind, alternatives)
    parts = get_args(kind)
    if get_origin(kind) in {Union, UnionType}:
        structs = [part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)]
        if len(structs) > 1 and not any(part.__struct_config__.tag for part in structs):
            alternatives += [part for part in structs if part not in alternatives]
            choices = [{"$ref": _REFERENCE.format(name=part.__name__)} for part in structs]
            null = [{"type": "null"}] if NoneType in parts else []
            return Annotated[Any, msgspec.Meta(extra_json_schema={"anyOf": [*choices, *null]})]
        return Union[tuple(_without_alternatives(part, alternatives) for part in parts)]  # noqa: UP007 - of a tuple
    if get_origin(kind) in {list, tuple, dict}:
        return get_origin(kind)[tuple(_without_alternatives(part, alternatives) for part in parts)]
    return kind


def _struct_without(kind: type[msgspec.Struct], alternatives: list[Any]) -> type[msgspec.Struct]:
    """A struct of the same name and fields, made anew only when a field's type changes."""
    fields = msgspec.structs.fields(kind)
    types = [_without_alternatives(field.type, alternatives) for field in fields]
    if all(new == field.type for new, field in zip(types, fields, strict=True)):
        return kind
    return msgspec.defstruct(
        kind.__name__,
        [(field.name, new, _same_field(field)) for new, field in zip(types, fields, strict=True)],
        namespace={"__doc__": kind.__doc__},
        module=kind.__module__,
        kw_only=True,
    )


def _same_field(field: msgspec.structs.FieldInfo) -> Any:
    options: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory}
    return msgspec.field(name=field.encode_name, **options)


def _schema_of(kind: type) -> dict[str, Any]:
    """A type that JSON does not have: anything may stand there."""
    return {"description": cleandoc(kind.__doc__ or kind.__name__).partition("\n")[0]}


def _with_described_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what the class docstring says under `Attributes:` told at each field."""
    text, found, attributes = cleandoc(schema.get("description", "")).partition("\nAttributes:\n")
    if not found:
        return schema
    fields = dict(_described(attributes))
    properties = {
        name: ({"description": fields[name]} | field if name in fields else field)
        for name, field in schema.get("properties", {}).items()
    }
    return schema | {"description": text.strip(), "properties": properties}


def _described(attributes: str) -> Iterator[tuple[str, str]]:
    """Each name of an `Attributes:` section with its text; `a, b: text` tells two."""
    entries: list[str] = []
    for line in attributes.splitlines():
        if re.match(r"    \w", line):
            entries.append(line.strip())
        elif line.startswith("     ") and entries:
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            break  # another section
    for entry in entries:
        # `a: text; b: text` on one line is how short ones are told.
        for part in re.split(r"; (?=\w+: )", entry):
            names, _, text = part.partition(": ")
            for name in names.split(", "):
                yield name, text


# --- the page --------------------------------------------------------------------------------------------

_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>imagen: HTTP API</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript. <a href="openapi.json">The document</a> that it shows does not.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  // Without this it would ask a host on the internet whether the document is valid.
  validatorUrl: null,
});
"""
_MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}
_HARDENED = {
    # Swagger UI draws its icons from data: addresses; all else is ours or nothing.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
_FRESH = {"cache-control": "no-cache"}
_A_DAY = {"cache-control": "public, max-age=86400", "x-content-type-options": "nosniff"}


async def openapi(context: Context, request: Request) -> Response:  # noqa: ARG001 - a handler's parameters
    """The document, from memory."""
    body, tag = _document()
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=JSON)


async def docs(context: Context, request: Request) -> Response:  # noqa: ARG001 - as above
    """The page."""
    return Response(_PAGE, headers=_HARDENED | _FRESH, media_type="text/html")


async def docs_asset(context: Context, request: Request) -> Response:  # noqa: ARG001 - as above
    """What the page loads. Only names that we know ever become a path."""
    name = request.path_params["asset"]
    if name == "start.js":
        return Response(_START, headers=_HARDENED | _FRESH, media_type="text/javascript")
    media_type = _MEDIA_TYPES.get(name)
    if media_type is None:
        raise NotFound("the page of the documentation has no such part")
    return FileResponse(_assets() / name, media_type=media_type, headers=_A_DAY)


@cache
def _document() -> tuple[bytes, str]:
    """The document of this release and its entity tag; made once, as nothing in it ever changes."""
    told = [operation for face in FACES for operation in face.OPERATIONS if operation.documented]
    body = msgspec.json.encode(openapi_document([*told, *OPERATIONS], __version__))
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def _assets() -> Path:
    """Where Swagger UI lies. Found without importing the package: only its files are needed."""
    spec = find_spec("fastapi_offline")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(
            "the files of the documentation's page are not installed",
            hint="Install the package fastapi-offline, or read /openapi.json.",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "static"


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/openapi.json",
        handler=openapi,
        summary="This document",
        tag="documentation",
        access="anyone",
        answers={200: dict[str, Any]},
    ),
    Operation(
        method="GET",
        path="/docs",
        handler=docs,
        summary="The page on which every operation can be tried",
        tag="documentation",
        access="anyone",
        answers={200: None},
        media_type="text/html",
    ),
    Operation(
        method="GET",
        path="/docs/{asset}",
        handler=docs_asset,
        summary="What that page loads",
        tag="documentation",
        access="anyone",
        answers={200: None},
        errors=(404,),
        parameters=(Parameter(name="asset", place="path", description="The name of a file."),),
        media_type="*/*",
    ),
)
