"""Files for inputs: uploads and downloads stream through, and whoever has a key sees no files but their own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from imagen.domain.inside import map_texts
from imagen.errors import ImagenError, InvalidInput, InvalidRequest, Problem
from imagen.ports import Passage, Reply
from imagen.server.access import Visitor, scope_of
from imagen.server.bodies import BodyTooLarge, read_pieces, told_length
from imagen.server.context import Context, Gone
from imagen.server.operation import Operation
from imagen.server.relayed_upload import FIRST_REFUSAL, read_file, read_reply, room_of, up_to
from imagen.server.replicate import problems
from imagen.server.replicate.relay import (
    PREFIX,
    check_account,
    headers_of,
    pass_on,
    passed_on,
    point_back,
    prove,
    relay_of,
    upstream_path,
)
from imagen.transport.message import is_loopback

MOST_BYTES = 100 * 1024 * 1024
"""Of a file, as the service has it."""
_OF_THE_FORM = 64 * 1024
"""Around the file: its name, its metadata, and what stands between."""
_LIVES = timedelta(hours=24)
"""Where the answer to an upload does not tell until when the file is kept."""
_FORM = "multipart/form-data"
_TOO_LARGE, _NOT_FOUND = 413, 404
_ASKED_FOR = ("accept", "range", "if-range", "if-none-match", "if-modified-since")
_FILES = f"{PREFIX}/files"
_FILE = f"{_FILES}/{{file_id}}"
_PATHS = (f"{PREFIX}{_FILES}/", f"{_FILES}/", "/files/")
"""What addresses of files here begin with, behind the host: each way in which clients put them together."""
_SCHEMES = ("http://", "https://")
_SLASHES = re.compile("/{2,}")

_log = logging.getLogger(__name__)


# --- uploads ------------------------------------------------------------------------------------------------


async def upload(context: Context, request: Request) -> Response:
    """Pass an upload on while it comes."""
    visitor = await context.enter(request)
    relay = relay_of(visitor)
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith(_FORM) or "boundary=" not in kind.lower():
        raise InvalidRequest(
            "a file is uploaded as a form", hint=f"Send it as {_FORM}, in the part `content`."
        )
    room, seconds = await room_of(context, visitor, most=MOST_BYTES + _OF_THE_FORM)
    size = told_length(request)
    if size is not None and size > room:
        return _too_large(room)
    coming = up_to(room, read_pieces(request, seconds=seconds))
    async with context.attended(), aclosing(coming) as pieces:
        call = Passage(
            method="POST", path="/files", headers={"content-type": kind}, body=pieces, size_bytes=size
        )
        try:
            reply = await relay.relay(call)
        except BodyTooLarge:
            return _too_large(room)
        return await _uploaded(context, request, visitor, reply)


def _too_large(room: int) -> Response:
    # The service's own sentence, with an end where the room is smaller than its own.
    most, whose = ("100MB", "") if room > MOST_BYTES else (f"{room >> 20}MB", " without a key")
    body = {
        "title": "Content Too Large",
        "detail": f"Files must be less than {most} in size{whose}",
        "status": _TOO_LARGE,
    }
    return Response(msgspec.json.encode(body), _TOO_LARGE, {"connection": "close"}, problems.MEDIA_TYPE)


async def _uploaded(context: Context, request: Request, visitor: Visitor, reply: Reply) -> Response:
    """The answer to an upload; whose the file is is known before they learn of it."""
    base = context.url_of(request, "")
    content = await read_reply(reply)
    check_account(reply, visitor)
    headers = headers_of(reply, base=base)
    headers.pop("content-length", None)
    if reply.status >= FIRST_REFUSAL:
        return Response(content, reply.status, headers)
    file = read_file(content)
    now = context.app.clock.now()
    await context.app.relayed_files.add(
        file["id"], scope=scope_of(visitor), expires_at=_end(file, now), now=now
    )
    return Response(msgspec.json.encode(point_back(file, base)), reply.status, headers)


def _end(file: Mapping[str, Any], now: datetime) -> datetime:
    """Until when the service keeps a file."""
    try:
        end = datetime.fromisoformat(file["expires_at"])
    except (KeyError, TypeError, ValueError):
        return now + _LIVES
    return end if end.tzinfo is not None else end.replace(tzinfo=UTC)


# --- looking, deleting --------------------------------------------------------------------------------------


async def list_files(context: Context, request: Request) -> Response:
    """The files of the account; with a key, those among them that were uploaded with it."""
    visitor = await context.enter(request)
    path = upstream_path(request, _FILES)
    if not _is_shared(visitor):
        return await pass_on(context, request, visitor, path=path)
    own = await context.app.relayed_files.of(scope_of(visitor), now=context.app.clock.now())

    def own_ones(page: Any) -> Any:
        if not isinstance(page, dict) or not isinstance(page.get("results"), list):
            return page
        shown = [one for one in page["results"] if isinstance(one, dict) and one.get("id") in own]
        return {**page, "results": shown}

    return await pass_on(context, request, visitor, path=path, reshape=own_ones)


async def get(context: Context, request: Request) -> Response:
    """What is known of a file."""
    visitor = await context.enter(request)
    path = upstream_path(request, _FILE)
    if not await _may_see(context, visitor, request.path_params["file_id"]):
        return _not_found()
    return await pass_on(context, request, visitor, path=path)


async def delete(context: Context, request: Request) -> Response:
    """Take a file away."""
    visitor = await context.enter(request, leaving=True)
    path, file_id = upstream_path(request, _FILE), request.path_params["file_id"]
    if not await _may_see(context, visitor, file_id):
        return _not_found()
    answer = await pass_on(context, request, visitor, path=path)
    if answer.status_code < 300:
        await context.app.relayed_files.remove(file_id)
    return answer


def _is_shared(visitor: Visitor) -> bool:
    """Whether others too have files on the account of this visitor, which they must not see."""
    return not visitor.owns_account


async def _may_see(context: Context, visitor: Visitor, file_id: str) -> bool:
    if not _is_shared(visitor):
        return True
    owner = await context.app.relayed_files.owner(file_id, now=context.app.clock.now())
    return owner == scope_of(visitor)


def _not_found() -> Response:
    body = {"detail": "File not found", "status": _NOT_FOUND}
    return Response(msgspec.json.encode(body), _NOT_FOUND, None, problems.MEDIA_TYPE)


# --- downloads ----------------------------------------------------------------------------------------------


async def download(context: Context, request: Request) -> Response:
    """The bytes of a file, by an address that the service has signed."""
    visitor = await context.enter(request)
    path = upstream_path(request, f"{_FILE}/download")
    headers = {name: request.headers[name] for name in _ASKED_FOR if name in request.headers}
    call = Passage(method="GET", path=path, headers={"accept": "*/*", **headers})
    return _Relayed(context, request, visitor, call)


class _Relayed(Response):
    """The answer of the service, piece by piece, for as long as the caller stays."""

    def __init__(self, context: Context, request: Request, visitor: Visitor, call: Passage) -> None:
        super().__init__()
        self._context, self._request, self._visitor, self._call = context, request, visitor, call
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer, as ASGI has it. What breaks off upstream breaks off here: there is no other way to tell it."""
        try:
            await self._context.stay(self._request, self._work(send), goes_on=False)
        except Gone:
            pass
        except ImagenError as error:
            if not self._begun:
                await problems.problem_answer(error)(scope, receive, send)
            else:
                _log.warning("a download broke off: %s", error)

    async def _work(self, send: Send) -> None:
        await prove(self._context, self._visitor)
        reply = await relay_of(self._visitor).relay(self._call)
        try:
            check_account(reply, self._visitor)
            headers = headers_of(reply, base=self._context.url_of(self._request, ""))
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
            self._begun = True
            await send({"type": "http.response.start", "status": reply.status, "headers": raw})
            if self._request.method != "HEAD":
                async for piece in reply.pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await reply.close()


# --- inputs -------------------------------------------------------------------------------------------------


async def upstream_addresses(
    context: Context, request: Request, visitor: Visitor, values: Mapping[str, Any]
) -> dict[str, Any]:
    """An input with the addresses of files here as the service itself knows them, so that it need not reach us.

    Args:
        context: of the server.
        request: tells under which address the caller knows us.
        visitor: whose account it is.
        values: the input of a prediction.

    Raises:
        InvalidInput: naming the parameter: that file is not one of theirs.
    """
    bases = {context.url_of(request, ""), context.app.settings.public_url or ""} - {""}
    meant: dict[str, str] = {}
    for text, field in _texts(values, "input"):
        named = None if text in meant else _file_of(text, bases)
        if named is not None and (theirs := await _upstream(context, visitor, named, field)) is not None:
            meant[text] = theirs
    changed: dict[str, Any] = map_texts(values, lambda text: meant.get(text, text))
    return changed


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """The texts anywhere in JSON, each with its place."""
    if isinstance(value, str):
        yield value, field
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _texts(one, f"{field}.{index}")
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(one, f"{field}.{name}")


class _Named(NamedTuple):
    """The file that an address is for. It is certain where that is an address of ours; else it may be one."""

    file_id: str
    certain: bool


def _file_of(url: str, bases: set[str]) -> _Named | None:
    """The file that an address may be for: one of ours, or one at a host that may be another name of ours."""
    if not url[:8].lower().startswith(_SCHEMES):
        return None
    try:
        parts = urlsplit(url)
        path = _SLASHES.sub("/", parts.path)
        inside = [path.removeprefix(_path_of(base)) for base in bases if _is_at(parts, base)]
    except ValueError:  # of a host or a port that is none
        return None
    for path_here in inside:
        if (file_id := _id_in(path_here, _PATHS)) is not None:
            return _Named(file_id, certain=True)
    file_id = _id_in(path, _PATHS[1:2])
    return None if inside or file_id is None else _Named(file_id, certain=False)


def _id_in(path: str, beginnings: tuple[str, ...]) -> str | None:
    begins = next((begins for begins in beginnings if path.startswith(begins)), None)
    return None if begins is None else path.removeprefix(begins).removesuffix("/download")


def _is_at(parts: SplitResult, base: str) -> bool:
    """Whether an address leads to where `base` does: every name of this machine is the same host.

    Raises:
        ValueError: a port is none.
    """
    ours = urlsplit(base)
    same = parts.hostname == ours.hostname or (is_loopback(parts.hostname) and is_loopback(ours.hostname))
    return same and _port(parts) == _port(ours) and parts.path.startswith(_path_of(base))


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _path_of(base: str) -> str:
    return urlsplit(base).path.rstrip("/")


async def _upstream(context: Context, visitor: Visitor, named: _Named, field: str) -> str | None:
    """The service's own address of a file; None where nothing tells that it is one of ours."""
    file_id = named.file_id
    if not named.certain:
        owner = await context.app.relayed_files.owner(file_id, now=context.app.clock.now())
        if owner is None or not (visitor.admin or owner == scope_of(visitor)):
            return None
    elif not file_id.isalnum() or not await _may_see(context, visitor, file_id):
        raise InvalidInput(
            [Problem(field, "it names a file that was not found")],
            hint="Upload the file again, with the key that makes the prediction.",
        )
    return await relay_of(visitor).address_of(f"/files/{file_id}")


OPERATIONS: tuple[Operation, ...] = (
    passed_on("POST", _FILES, upload, "Upload a file"),
    passed_on("GET", _FILES, list_files, "Files"),
    passed_on("GET", _FILE, get, "A file"),
    passed_on("DELETE", _FILE, delete, "Delete a file"),
    passed_on("GET", f"{_FILE}/download", download, "The bytes of a file"),
)
