"""The calls of the Files API: upload, list, get, delete, download."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from aiohttp import BodyPartReader, MultipartReader, web

from imagen.emulator import problems
from imagen.emulator.exchange import Exchange
from imagen.emulator.files import MAX_FILE_BYTES, MAX_NAME_BYTES, StoredFile, is_signed
from imagen.emulator.paging import numbered_page
from imagen.emulator.problems import InvalidField
from imagen.emulator.state import new_id

_NO_SUCH_FILE = "File not found"
_TOO_LARGE = "Files must be less than 100MB in size"
_FORM_ALLOWANCE_BYTES = 65_536


async def create_file(exchange: Exchange) -> web.Response:
    """`POST /files`: a multipart form with `content` and, if wanted, `metadata`, `filename` and `type`."""
    request = exchange.request
    if (request.content_length or 0) > MAX_FILE_BYTES + _FORM_ALLOWANCE_BYTES:
        raise problems.too_large(_TOO_LARGE)
    stored = await _read_form(exchange)
    exchange.world.state.keep_file(exchange.owner, stored)
    return exchange.json(stored.to_json(exchange.world.api_url), 201)


async def list_files(exchange: Exchange) -> web.Response:
    """`GET /files`: newest first."""
    api_url = exchange.world.api_url
    return exchange.json(
        numbered_page(
            _living(exchange)[::-1],
            exchange.request.query,
            url=f"{api_url}/v1/files",
            shown=lambda stored: stored.to_json(api_url),
        )
    )


async def get_file(exchange: Exchange) -> web.Response:
    """`GET /files/{id}`."""
    return exchange.json(_found(exchange).to_json(exchange.world.api_url))


async def delete_file(exchange: Exchange) -> web.Response:
    """`DELETE /files/{id}`."""
    del exchange.owner.files[_found(exchange).id]
    return web.Response(status=204)


async def download_file(exchange: Exchange) -> web.Response:
    """`GET /files/{id}/download?owner&expiry&signature`: the signature stands for the token."""
    query, world = exchange.request.query, exchange.world
    file_id, owner, expiry = exchange.part("file_id"), query.get("owner", ""), query.get("expiry", "")
    if not re.fullmatch(r"[0-9]{1,12}", expiry) or int(expiry) < world.clock.time():
        raise problems.not_found(_NO_SUCH_FILE)
    for account in world.state.accounts.values():
        stored = account.files.get(file_id)
        if stored is None or account.username != owner or stored.expires_at <= world.clock.time():
            continue
        if is_signed(query.get("signature", ""), account.files_secret, owner, file_id, int(expiry)):
            return web.Response(body=stored.content, content_type="application/octet-stream")
    raise problems.not_found(_NO_SUCH_FILE)


async def _read_form(exchange: Exchange) -> StoredFile:
    if not exchange.request.content_type.startswith("multipart/"):
        raise problems.malformed("Files are uploaded as multipart/form-data")
    fields: dict[str, Any] = {"metadata": {}}
    try:
        async for part in await exchange.request.multipart():
            await _read_part(part, fields)
    except (ValueError, msgspec.DecodeError) as problem:
        raise problems.malformed(f"The form cannot be read: {problem}") from problem
    if "content" not in fields:
        raise problems.invalid_request([InvalidField("required", "", "content is required")])
    name = str(fields.get("filename", fields.get("content_name", "")))
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        complaint = InvalidField("string_lte", "filename", "filename must have 1 to 255 bytes of UTF-8")
        raise problems.invalid_request([complaint])
    if not isinstance(fields["metadata"], dict):
        complaint = InvalidField("invalid_type", "metadata", "Invalid type. Expected: object")
        raise problems.invalid_request([complaint])
    return StoredFile(
        id=new_id(),
        name=name,
        content_type=str(fields.get("type", fields.get("content_type", "application/octet-stream"))),
        content=fields["content"],
        metadata=fields["metadata"],
        created_at=exchange.world.clock.time(),
    )


async def _read_part(part: BodyPartReader | MultipartReader | None, fields: dict[str, Any]) -> None:
    if not isinstance(part, BodyPartReader):
        raise ValueError("parts within parts are not expected")  # noqa: TRY004 - the form's fault, not a type's
    content = await _read_bytes(part)
    if part.name == "content":
        fields["content"] = content
        fields["content_name"] = part.filename or ""
        fields["content_type"] = part.headers.get("Content-Type", "application/octet-stream")
    elif part.name == "metadata":
        fields["metadata"] = msgspec.json.decode(content) if content else {}
    elif part.name in {"filename", "type"}:
        fields[part.name] = content.decode()


async def _read_bytes(part: BodyPartReader) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(1 << 18):
        content += chunk
        if len(content) > MAX_FILE_BYTES:
            raise problems.too_large(_TOO_LARGE)
        await asyncio.sleep(0)
    return bytes(content)


def _living(exchange: Exchange) -> list[StoredFile]:
    now = exchange.world.clock.time()
    return [stored for stored in exchange.owner.files.values() if stored.expires_at > now]


def _found(exchange: Exchange) -> StoredFile:
    stored = exchange.owner.files.get(exchange.part("file_id"))
    if stored is None or stored.expires_at <= exchange.world.clock.time():
        raise problems.not_found(_NO_SUCH_FILE)
    return stored
