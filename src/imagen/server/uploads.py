"""A batch as a file: JSONL or CSV as the body of a request, or as a part of a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import msgspec
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.server.bodies import MOST_BYTES, check_parts
from imagen.server.forms import WholeForm
from imagen.server.tasks import MOST_TASKS
from imagen.service.manifest import Form, Row, form_of, read_manifest

FORM_DATA = "multipart/form-data"
MEDIA_TYPES: Mapping[str, Form] = {
    "application/x-ndjson": "jsonl",
    "application/ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/x-jsonlines": "jsonl",
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
}
"""Bodies that are files; any other is read as JSON."""
UPLOADS: Mapping[str, Any] = {
    "application/x-ndjson": {
        "type": "string",
        "description": "An object, or a prompt in quotes, on each line.",
    },
    "text/csv": {"type": "string", "description": "A header with `prompt`, and a task on each line below."},
    FORM_DATA: {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {
                "type": "string",
                "format": "binary",
                "description": "JSONL or CSV, by the end of its name.",
            }
        },
        "additionalProperties": {"type": "string"},
    },
}
"""How the document tells of files."""
_MOST_FIELDS, _LONGEST_FIELD = 200, 1 << 20
_HINT = "Each line is an object with `prompt`, or a prompt in quotes."
_PIECE = 64 * 1024


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file of tasks.

    Attributes:
        rows: what it holds.
        common: what holds for all of them, as text.
        name: of the file; empty where none was told.
        content: all of it, the same when it is sent again.
    """

    rows: list[Row]
    common: dict[str, str]
    name: str
    content: bytes


def media_type(request: Request) -> str:
    """The type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_upload(request: Request) -> bool:
    """Whether a body is a file, or a form with one."""
    kind = media_type(request)
    return kind == FORM_DATA or kind in MEDIA_TYPES


async def read_upload(request: Request, body: bytes) -> Upload:
    """The file of a request.

    Args:
        request: tells the type of its body; what stands in its query holds for all tasks.
        body: all of it.

    Raises:
        InvalidRequest: it is no form, or has no file.
        InvalidInput: with line and field of each mistake.
    """
    common = _texts(request.query_params.multi_items(), "the query")
    kind = media_type(request)
    name = ""
    if kind == FORM_DATA:
        fields, name, form, body = await _from_form(request, body)
        if twice := sorted(fields.keys() & common.keys()):
            raise InvalidInput([Problem(twice[0][:100], "it stands in the form and in the query")])
        common |= fields
    else:
        form = MEDIA_TYPES[kind]
    if not body.strip():
        raise InvalidRequest("the file is empty")
    if form == "jsonl":
        check_parts(body)
    rows = await asyncio.to_thread(read_manifest, body, form=form, most_rows=MOST_TASKS, hint=_HINT)
    content = msgspec.json.encode([common, name, form], order="sorted") + b"\n" + body
    return Upload(rows=rows, common=common, name=name, content=content)


def _texts(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Names and values, each name once.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name == "credentials":
            raise InvalidInput(
                [Problem("credentials", f"they do not belong into {where}")],
                hint="Send the token in the header X-Replicate-Api-Token.",
            )
        if name in found:
            raise InvalidInput([Problem(name[:100], f"it stands in {where} twice")])
        if value:
            found[name] = value
        if len(found) > _MOST_FIELDS:
            raise InvalidInput([Problem(where, f"at most {_MOST_FIELDS} fields are read")])
    return found


async def _from_form(request: Request, body: bytes) -> tuple[dict[str, str], str, Form, bytes]:
    """Its other fields, and the one file: its name, form and bytes.

    Raises:
        InvalidRequest: it is no such form.
    """
    try:
        form = await _Parser(
            request.headers,
            _pieces(body),
            max_files=1,
            max_fields=_MOST_FIELDS,
            max_part_size=_LONGEST_FIELD,
        ).parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message[:200]}") from None
    try:
        return await _parts(form)
    finally:
        await form.close()


async def _parts(form: FormData) -> tuple[dict[str, str], str, Form, bytes]:
    fields = _texts(((name, part) for name, part in form.multi_items() if isinstance(part, str)), "the form")
    files = [part for part in form.values() if not isinstance(part, str)]
    if not files:
        raise InvalidRequest(
            "the form has no file", hint="Send it as a part with a file name, such as `-F file=@tasks.jsonl`."
        )
    (file,) = files
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    told = Headers(raw=file.headers.raw).get("content-type", "").partition(";")[0].strip().lower()
    form_told = MEDIA_TYPES.get(told) or form_of(name)
    if form_told not in {"jsonl", "csv"}:
        raise InvalidInput([Problem("file", "its name must end in .jsonl, .ndjson, .csv or .tsv")])
    return fields, name[:100], form_told, await file.read()


class _Parser(WholeForm):
    """Keeps all of it in memory, as it is there already."""

    spool_max_size = MOST_BYTES


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    """The parser remembers every part of a piece until its end, so that pieces are small."""
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
        await asyncio.sleep(0)
