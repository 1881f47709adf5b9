"""Pictures that come with an edit: parts of a form, addresses, or data URIs. Large ones go on to the service's files."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, BinaryIO, NamedTuple

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from imagen.errors import GarbledResponse, InvalidInput, InvalidRequest, NotFound, Problem
from imagen.pictures import MEDIA_TYPES, DefectivePicture, black_and_white, check_address, sniff_format
from imagen.ports import Backend, Passage, Relay
from imagen.server.access import Visitor
from imagen.server.bodies import MOST_BYTES, read_pieces, told_length
from imagen.server.context import Context
from imagen.server.forms import WholeForm
from imagen.server.openai.wish import PICTURES
from imagen.server.pictures import kept_at
from imagen.server.relayed_upload import check_taken, read_file, read_reply, room_of, too_large, up_to

INLINE_BYTES = 256 * 1024
"""Pictures up to this size travel inside the request as a data URI; the service advises no more."""
MOST_IMAGES = 16
"""As OpenAI has it; models take fewer."""
_MOST_MASK_BYTES = 16 * 1024 * 1024
_MOST_FIELDS, _LONGEST_FIELD = 200, 1024 * 1024
_CHUNK = 256 * 1024
_HEAD_BYTES = 4096
_TAKEN = frozenset({"png", "jpg", "webp", "gif"})
_ONE_OR_MANY = ("image", "images")
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1"})
_SMALLER = "Send the addresses of the pictures as JSON instead."
_HINT = "Send PNG, JPEG or WebP files in the parts `image` or `image[]`."


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was given.

    Attributes:
        field: where it stood.
        address: where it is, of one that was given by that; else `file` has it.
        file: its bytes, from the beginning on.
        size_bytes: their count.
        media_type: by its first bytes, whatever its sender said.
    """

    field: str
    address: str = ""
    file: BinaryIO | None = None
    size_bytes: int = 0
    media_type: str = ""


class Given(NamedTuple):
    """What came with an edit.

    Attributes:
        pictures: to edit, in order.
        mask: which part of the first; None for all of it.
        rest: the other fields.
    """

    pictures: Sequence[Picture]
    mask: Picture | None
    rest: Mapping[str, Any]


# --- a form ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def read_form(context: Context, request: Request, visitor: Visitor) -> AsyncIterator[Given]:
    """The pictures and texts of a form, for as long as the block lasts. What is large waits on the disk, not in memory.

    Raises:
        InvalidRequest: it is no form, or larger than it may be.
        InvalidInput: a part is no picture, or stands there twice.
    """
    _check_charset(request)
    most, seconds = await room_of(context, visitor, most=MOST_BYTES)
    if (told := told_length(request)) is not None and told > most:
        raise too_large(most, hint=_SMALLER)
    async with aclosing(up_to(most, read_pieces(request, seconds=seconds), hint=_SMALLER)) as pieces:
        try:
            parser = WholeForm(
                request.headers,
                pieces,
                max_files=MOST_IMAGES + 2,
                max_fields=_MOST_FIELDS,
                max_part_size=_LONGEST_FIELD,
            )
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            why = error.message[:200] if isinstance(error, MultiPartException) else "it tells no boundary"
            raise InvalidRequest(f"the form cannot be read: {why}", hint=_HINT) from None
    try:
        yield await _parts(form)
    finally:
        await form.close()


def _check_charset(request: Request) -> None:
    """Refuse a form in letters that not everybody reads alike.

    Raises:
        InvalidInput: naming the field.
    """
    _, told = parse_options_header(request.headers.get("content-type"))
    charset = told.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        raise InvalidInput([Problem("Content-Type", "its charset must be utf-8 or iso-8859-1")], hint=_HINT)


async def _parts(form: FormData) -> Given:
    pictures: list[Picture] = []
    mask: Picture | None = None
    rest: dict[str, Any] = {}
    for name, part in form.multi_items():
        field = name.partition("[")[0]
        if isinstance(part, str):
            _add_text(rest, name, part)
            continue
        if field not in PICTURES:
            raise InvalidInput([Problem(name[:100], "no picture belongs there")], hint=_HINT)
        if field == "markup":
            raise _no_markup()
        picture = await asyncio.to_thread(_of_part, field, part)
        if field != "mask":
            pictures.append(picture)
        elif mask is not None:
            raise InvalidInput([Problem("mask", "there can be one")])
        else:
            mask = picture
    _check_count(pictures)
    return Given(pictures, mask, rest)


def _add_text(rest: dict[str, Any], name: str, text: str) -> None:
    if name.partition("[")[0] in PICTURES:
        raise InvalidInput(
            [Problem(name[:100], "it must be a file")], hint="Addresses of pictures are sent as JSON."
        )
    if name in rest:
        raise InvalidInput([Problem(name[:100], "it stands in the form twice")])
    if text:
        rest[name] = text


def _of_part(field: str, part: UploadFile) -> Picture:
    return _picture(field, part.file, part.size or 0)


def _picture(field: str, file: BinaryIO, size_bytes: int) -> Picture:
    """A picture by its bytes.

    Raises:
        InvalidInput: they are none.
    """
    kind = sniff_format(file.read(_HEAD_BYTES))
    file.seek(0)
    if kind not in _TAKEN:
        raise InvalidInput([Problem(field, "it is no picture that models take")], hint=_HINT)
    return Picture(field=field, file=file, size_bytes=size_bytes, media_type=MEDIA_TYPES[kind])


# --- JSON --------------------------------------------------------------------------------------------------


def read_json(fields: Mapping[str, Any]) -> Given:
    """The pictures of a JSON object: `images` or `image`, each an address, a data URI or `{"image_url": …}`; and `mask`.

    Raises:
        InvalidInput: naming the field and what is allowed.
    """
    if fields.get("markup") is not None:
        raise _no_markup()
    listed: list[tuple[str, Any]] = []
    for name in _ONE_OR_MANY:
        value = fields.get(name)
        if isinstance(value, list):
            listed += [(f"{name}[{index}]", each) for index, each in enumerate(value)]
        elif value is not None:
            listed.append((name, value))
    pictures = [_from_value(name, value) for name, value in listed[: MOST_IMAGES + 1]]
    _check_count(pictures)
    mask = None if fields.get("mask") is None else _from_value("mask", fields["mask"])
    return Given(
        pictures,
        mask,
        {name: value for name, value in fields.items() if name not in {*PICTURES, "credentials"}},
    )


def _from_value(field: str, value: Any) -> Picture:
    if isinstance(value, dict):
        if value.get("file_id") is not None:
            raise InvalidInput(
                [Problem(f"{field}.file_id", "files of OpenAI are not here; give an image_url")]
            )
        value = value.get("image_url")
    if not isinstance(value, str):
        raise InvalidInput([Problem(field, "it must be an address (https://…) or a data URI")])
    if not value.startswith("data:"):
        return Picture(field=field, address=check_address(value, field=field))
    head, _, body = value.partition(",")
    try:
        content = _decoded(body) if head.endswith(";base64") else b""
    except ValueError:
        content = b""
    if not content:
        raise InvalidInput([Problem(field, "its data URI is not in base64")])
    return _picture(field, io.BytesIO(content), len(content))


def _decoded(text: str) -> bytes:
    """Base64, piece by piece: the others in this process have their turn in between, which one large call has not.

    Raises:
        ValueError: it is none.
    """
    whole = bytearray()
    for start in range(0, len(text), _CHUNK):
        piece = text[start : start + _CHUNK]
        if "=" in piece and start + _CHUNK < len(text):
            raise ValueError("it ends before its end")
        whole += base64.b64decode(piece, validate=True)
    return bytes(whole)


def _check_count(pictures: Sequence[Picture]) -> None:
    if not pictures:
        raise InvalidInput([Problem("image", "it is missing; an edit needs a picture")], hint=_HINT)
    if len(pictures) > MOST_IMAGES:
        raise InvalidInput([Problem("image", f"at most {MOST_IMAGES} pictures are taken")])


def _no_markup() -> InvalidInput:
    return InvalidInput([Problem("markup", "no model here takes one")])


# --- on to the model ---------------------------------------------------------------------------------------


def told_content(given: Given) -> list[Any]:
    """What of an edit makes it the same when it comes again: its fields, and each picture by its address or its sha256."""
    pictures = [*given.pictures, *([] if given.mask is None else [given.mask])]
    return [
        dict(given.rest),
        *([picture.field.partition("[")[0], _identity(picture)] for picture in pictures),
    ]


def _identity(picture: Picture) -> str:
    if picture.file is None:
        return picture.address
    digest = hashlib.sha256()
    picture.file.seek(0)
    while chunk := picture.file.read(_CHUNK):
        digest.update(chunk)
    picture.file.seek(0)
    return f"sha256:{digest.hexdigest()}"


@asynccontextmanager
async def at_hand(context: Context, request: Request, picture: Picture) -> AsyncIterator[Picture]:
    """The picture, with its bytes where its address is one of ours.

    Raises:
        InvalidInput: it is, and there is none any more, or none that models take.
    """
    try:
        kept = await kept_at(context, request, picture.address) if picture.address else None
        file = None if kept is None else await asyncio.to_thread(kept.path.open, "rb")
    except (NotFound, FileNotFoundError):
        raise InvalidInput([Problem(picture.field, "it names a picture that is not kept here")]) from None
    if file is None:
        yield picture
        return
    with file:
        yield _picture(picture.field, file, os.fstat(file.fileno()).st_size)


async def as_mask(picture: Picture, *, black_is_edited: bool) -> Picture:
    """A mask of OpenAI's as models take it: there what is transparent is painted anew, here what is white, or black.

    One without transparency is of the model's kind already.

    Raises:
        InvalidInput: it cannot be read.
    """
    if picture.file is None:
        raise InvalidInput(
            [
                Problem(
                    picture.field,
                    "it must be a file or a data URI: what is transparent in it has to be seen here",
                )
            ]
        )
    if picture.size_bytes > _MOST_MASK_BYTES:
        raise InvalidInput([Problem(picture.field, f"it is larger than {_MOST_MASK_BYTES >> 20} MiB")])
    content = await asyncio.to_thread(picture.file.read)
    picture.file.seek(0)
    try:
        made = await asyncio.to_thread(black_and_white, content, black_is_clear=black_is_edited)
    except DefectivePicture as error:
        raise InvalidInput([Problem(picture.field, f"it {error.reason}")]) from None
    if made is None:
        return picture
    return Picture(field=picture.field, file=io.BytesIO(made), size_bytes=len(made), media_type="image/png")


async def address_of(backend: Backend, picture: Picture) -> str:
    """An address by which a model gets a picture: its own, a data URI, or where the service keeps it for a day.

    Raises:
        InvalidInput: it is too large for a backend that has no place for files.
        BackendError: the service did not take it.
    """
    if picture.file is None:
        return picture.address
    if picture.size_bytes <= INLINE_BYTES:
        content = await asyncio.to_thread(picture.file.read)
        return f"data:{picture.media_type};base64,{base64.b64encode(content).decode()}"
    if not isinstance(backend, Relay):
        raise InvalidInput([Problem(picture.field, f"it is larger than {INLINE_BYTES >> 10} KiB")])
    return await _uploaded(backend, picture, picture.file)


async def _uploaded(relay: Relay, picture: Picture, file: BinaryIO) -> str:
    """Send it on while it is read, and take the address under which it is kept."""
    boundary = secrets.token_hex(24)
    name = f"picture.{picture.media_type.rpartition('/')[2]}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="content"; filename="{name}"\r\n'
        f"Content-Type: {picture.media_type}\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield head
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
        yield tail

    reply = await relay.relay(
        Passage(
            method="POST",
            path="/files",
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
            body=pieces(),
            size_bytes=len(head) + picture.size_bytes + len(tail),
        )
    )
    answer = await read_reply(reply)
    check_taken(reply.status, picture.field)
    address = (read_file(answer).get("urls") or {}).get("get")
    if not isinstance(address, str):
        raise GarbledResponse("the service told no address for an upload")
    return address
