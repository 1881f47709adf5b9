"""Kept pictures: looking at them by their address, and taking them away."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from secrets import token_hex
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from imagen.errors import NotFound
from imagen.ports import ShelvedPicture
from imagen.server.answers import ErrorBody, json_answer
from imagen.server.context import Context
from imagen.server.operation import Operation, Parameter

_FOLDER = "/pictures/"
PATH = f"{_FOLDER}{{picture_id}}"

_CHUNK = 256 * 1024
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_MOST_RANGES = 16
_RANGE = re.compile(r"(\d{0,24})-(\d{0,24})", re.ASCII)
_FOR_GOOD = "private, max-age=31536000, immutable"
_SVG_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
"""An SVG that is opened by itself is a page of our origin: it must not run, load or send anything."""

_Span = tuple[int, int]
"""Bytes of a file: the first, and one past the last."""


async def kept_at(context: Context, request: Request, address: str) -> ShelvedPicture | None:
    """The picture that an address of this gateway is for, which no service could reach on a private network.

    Args:
        context: of the server.
        request: tells under which address its caller knows us.
        address: any.

    Returns:
        None where the address is no picture's of ours.

    Raises:
        NotFound: it is, and there is none any more.
    """
    for base in {context.url_of(request, ""), context.app.settings.public_url or ""} - {""}:
        begins = f"{base.rstrip('/')}{_FOLDER}"
        if address.startswith(begins):
            return await context.app.shelf.locate(address.removeprefix(begins).partition("?")[0])
    return None


async def show(context: Context, request: Request) -> Response:
    """The picture, a part of it, or word that the caller has it already."""
    picture = await context.app.shelf.locate(request.path_params["picture_id"])
    headers = _headers(picture)
    if _has_it(request.headers, picture, headers["etag"]):
        return Response(status_code=304, headers=headers)
    headers["content-type"] = picture.media_type
    headers["content-length"] = str(picture.size_bytes)
    if request.method == "HEAD":
        return Response(headers=headers)
    spans = _wanted(request.headers, picture, headers["etag"])
    if spans == ():
        told = ErrorBody(
            error=f"Range: the picture has {picture.size_bytes} bytes, none of those that were asked for",
            code="invalid_request",
        )
        return json_answer(told, status=416, headers={"content-range": f"bytes */{picture.size_bytes}"})
    try:
        file = await asyncio.to_thread(picture.path.open, "rb")
    except FileNotFoundError:
        raise NotFound("no picture is kept under this address", hint="It was removed just now.") from None
    if spans is None:
        return _Reading(file, [(0, picture.size_bytes)], status=200, headers=headers)
    if len(spans) == 1:
        ((first, end),) = spans
        headers["content-range"] = f"bytes {first}-{end - 1}/{picture.size_bytes}"
        headers["content-length"] = str(end - first)
        return _Reading(file, spans, status=206, headers=headers)
    boundary = token_hex(16)
    parts = _parts(spans, picture, boundary)
    headers["content-type"] = f"multipart/byteranges; boundary={boundary}"
    headers["content-length"] = str(
        sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)
    )
    return _Reading(file, parts, status=206, headers=headers)


async def remove(context: Context, request: Request) -> Response:
    """Take a picture away."""
    context.enter_admin(request)
    await context.app.shelf.remove(request.path_params["picture_id"])
    return Response(status_code=204)


class _Reading(Response):
    """Pieces of an open file and text between them. The file is closed however the answer ends."""

    def __init__(
        self, file: BinaryIO, pieces: Sequence[bytes | _Span], *, status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(status_code=status)
        # No length of its own: the header fields tell that of all pieces.
        self.raw_headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
        ]
        self._file = file
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer, as ASGI has it."""
        request = Request(scope, receive)
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            first = True
            async for piece in _read(self._file, self._pieces):
                if not first and await request.is_disconnected():
                    return
                first = False
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._file.close()


async def _read(file: BinaryIO, pieces: Sequence[bytes | _Span]) -> AsyncIterator[bytes | bytearray]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        at, end = piece
        while at < end:
            count = min(_CHUNK, end - at)
            chunk: bytes | bytearray | None = _read_at_once(file, at, count)
            chunk = chunk or await asyncio.to_thread(_read_at, file, at, count)
            if not chunk:
                raise OSError("the picture has become shorter while it was read")
            at += len(chunk)
            yield chunk


def _read_at_once(file: BinaryIO, at: int, count: int) -> bytearray | None:
    """What the system has in its memory anyhow; None where it would have to be waited for, or nobody can tell."""
    if _NO_WAIT is None:
        return None
    chunk = bytearray(count)
    try:
        found = os.preadv(file.fileno(), [chunk], at, _NO_WAIT)
    except OSError:
        return None
    del chunk[found:]
    return chunk


def _read_at(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _headers(picture: ShelvedPicture) -> dict[str, str]:
    """What is told of a picture with every answer about it."""
    headers = {
        "etag": f'"{picture.version}"',
        "last-modified": format_datetime(picture.kept_at.replace(microsecond=0), usegmt=True),
        "cache-control": _FOR_GOOD,
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "content-disposition": _disposition(picture.name),
    }
    if picture.media_type == "image/svg+xml":
        headers["content-security-policy"] = _SVG_POLICY
    return headers


def _disposition(name: str) -> str:
    """`inline` with a file name: plain where it is plain, else in the form of RFC 8187 besides."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'inline; filename="{plain}"{extended}'


def _has_it(asked: Mapping[str, str], picture: ShelvedPicture, etag: str) -> bool:
    """Whether the caller has these bytes already (RFC 9110, 13.1.2 and 13.1.3)."""
    if (tags := asked.get("if-none-match")) is not None:
        known = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
        return etag in known or "*" in known
    since = _instant(asked.get("if-modified-since", ""))
    return since is not None and picture.kept_at.replace(microsecond=0) <= since


def _wanted(asked: Mapping[str, str], picture: ShelvedPicture, etag: str) -> tuple[_Span, ...] | None:
    """The parts that are wanted; None for the whole; empty when none of them exists."""
    condition = asked.get("if-range", "").strip()
    if condition and condition != etag and not _unchanged_since(condition, picture):
        return None
    return ranges_of(asked.get("range", ""), picture.size_bytes)


def ranges_of(header: str, size: int) -> tuple[_Span, ...] | None:
    """What a `Range` header asks of `size` bytes (RFC 9110, 14.2), in order, overlapping and adjacent ones joined.

    Returns:
        None when there is nothing to obey: no header, another unit, a mistake, or more than 16 ranges. Empty when all
        lie beyond the end.
    """
    unit, _, listed = header.partition("=")
    texts = [text for part in listed.split(",") if (text := part.strip(" \t"))]
    if unit.strip().lower() != "bytes" or not 0 < len(texts) <= _MOST_RANGES:
        return None
    spans: list[_Span] = []
    for text in texts:
        match = _RANGE.fullmatch(text)
        if match is None or text == "-":
            return None
        first, last = match.groups()
        if not first:
            span = (max(size - int(last), 0), size)
        elif last and int(last) < int(first):
            return None
        else:
            span = (int(first), min(int(last) + 1, size) if last else size)
        if span[0] < span[1]:
            spans.append(span)
    return tuple(_joined(sorted(spans)))


def _joined(spans: Sequence[_Span]) -> list[_Span]:
    joined: list[_Span] = []
    for first, end in spans:
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((first, end))
    return joined


def _parts(spans: Sequence[_Span], picture: ShelvedPicture, boundary: str) -> list[bytes | _Span]:
    """The body of an answer with several ranges (RFC 9110, 14.6)."""
    parts: list[bytes | _Span] = []
    for first, end in spans:
        head = (
            f"--{boundary}\r\n"
            f"Content-Type: {picture.media_type}\r\n"
            f"Content-Range: bytes {first}-{end - 1}/{picture.size_bytes}\r\n\r\n"
        )
        parts += [head.encode(), (first, end), b"\r\n"]
    return [*parts, f"--{boundary}--\r\n".encode()]


def _unchanged_since(condition: str, picture: ShelvedPicture) -> bool:
    return _instant(condition) == picture.kept_at.replace(microsecond=0)


def _instant(text: str) -> datetime | None:
    """An HTTP date; None when it is none."""
    if len(text) > len("Wednesday, 09-Nov-94 08:49:37 GMT"):
        return None
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


_ID = Parameter(
    name="picture_id",
    place="path",
    description="The id of the picture, `pic_…`, as the answer that told its address has it.",
    required=True,
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path=PATH,
        handler=show,
        summary="A kept picture",
        description=(
            "No credentials are needed: the id cannot be guessed, and whoever knows the address may look at the "
            "picture, so treat it like one. The bytes under an address do not change. HEAD, `If-None-Match`, "
            "`If-Modified-Since` and `Range` (several too) are understood; a `Range` that makes no sense is ignored."
        ),
        tag="pictures",
        access="anyone",
        answers={200: None, 206: None, 304: None},
        errors=(404, 416),
        parameters=(
            _ID,
            Parameter(
                name="Range",
                place="header",
                description="The bytes that are wanted, such as `bytes=0-1023`, at most 16 ranges.",
            ),
            Parameter(name="If-None-Match", place="header", description="An `ETag` that the caller has."),
        ),
        media_type="image/*",
    ),
    Operation(
        method="DELETE",
        path=PATH,
        handler=remove,
        summary="Remove a kept picture",
        description="It is gone for good here; copies that others fetched before are beyond our reach.",
        tag="pictures",
        access="admin",
        answers={204: None},
        errors=(401, 404),
        parameters=(_ID,),
    ),
)
