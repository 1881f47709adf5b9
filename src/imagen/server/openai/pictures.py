"""Finished pictures as answers have them: by their addresses, or whole in base64 and never whole in memory."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
from starlette.requests import Request

from imagen.domain.inside import INSIDE
from imagen.domain.prediction import Prediction
from imagen.errors import DeliveryError, ImagenError, OutputDefective
from imagen.pictures import read_size, sniff_format
from imagen.ports import Backend
from imagen.server.context import Context
from imagen.service.finish import Outcome

_PIECE = 3 * 64 * 1024
"""Bytes that are read at a time; a multiple of three has no padding in base64. They were just written, so that reading them
takes less time than asking a thread for it."""
_HEAD_BYTES = 64 * 1024
_AT_ONCE = 4
"""Pictures of one request that are fetched at the same time."""
_TRIES = 2
_NAMES = {"jpg": "jpeg"}


class Shot(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was made.

    Attributes:
        prediction_id: by which it was made.
        url: where the service has it, for an hour; stored_url: where the gateway keeps it.
        path: the file, of one that is kept here.
    """

    prediction_id: str
    url: str
    stored_url: str | None = None
    path: Path | None = None

    @property
    def address(self) -> str:
        """The one that lives longer."""
        return self.stored_url or self.url


class Whole:
    """A picture on this machine, open and without a name: it is gone when it is closed, or with the process.

    Attributes:
        size_bytes: its length.
        format: as OpenAI calls it; None for one that is not known.
        size: `WIDTHxHEIGHT`; None where its header does not tell it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = file.seek(0, 2)
        file.seek(0)
        head = file.read(_HEAD_BYTES)
        kind = sniff_format(head)
        self.format = None if kind is None else _NAMES.get(kind, kind)
        pixels = read_size(head)
        self.size = None if pixels is None else f"{pixels[0]}x{pixels[1]}"

    @property
    def length(self) -> int:
        """Characters of it in base64."""
        return (self.size_bytes + 2) // 3 * 4

    async def in_base64(self) -> AsyncIterator[bytes]:
        """Piece by piece."""
        left = self.size_bytes
        self._file.seek(0)
        while left > 0:
            piece = self._file.read(_PIECE)
            if not piece:
                raise OSError("the picture has become shorter while it was read")
            left -= len(piece)
            yield binascii.b2a_base64(piece, newline=False)
            await asyncio.sleep(0)  # others have a turn also where the reader is quick

    def close(self) -> None:
        """Give it back."""
        self._file.close()


Part = bytes | Whole
"""What an answer is made of."""


async def sent(parts: Sequence[Part]) -> AsyncIterator[bytes]:
    """The parts of an answer, one after the other."""
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        async for piece in part.in_base64():
            yield piece


def length_of(parts: Sequence[Part]) -> int:
    """Bytes of an answer."""
    return sum(len(part) if isinstance(part, bytes) else part.length for part in parts)


async def shots_of(context: Context, request: Request, backend: Backend, outcome: Outcome) -> list[Shot]:
    """The pictures of a prediction that succeeded, in order."""
    prediction, shots = outcome.prediction, []
    for index, url in enumerate(await _addresses(context, backend, prediction)):
        kept = outcome.pictures[index] if index < len(outcome.pictures) else None
        shelf_id = None if kept is None else kept.shelf_id
        shot = Shot(
            prediction_id=prediction.id,
            url=url,
            stored_url=None if shelf_id is None else context.url_of(request, f"/pictures/{shelf_id}"),
            path=None if kept is None else kept.path,
        )
        shots.append(shot)
    return shots


async def _addresses(context: Context, backend: Backend, prediction: Prediction) -> Sequence[str]:
    """Its outputs; those that came inside the answer, and are in no database, as they are remembered or looked at again."""
    if INSIDE not in prediction.output:
        return prediction.output
    fresh = context.app.fresh.find(prediction.id)
    if fresh is not None or prediction.upstream_id is None:
        return fresh or prediction.output
    try:
        seen = (await backend.look(prediction)).output
    except ImagenError:
        return prediction.output
    context.app.fresh.keep(prediction.id, seen)
    return seen or prediction.output


async def fetch_all(context: Context, backend: Backend, shots: Sequence[Shot]) -> list[Whole | ImagenError]:
    """Each picture, or why it could not be had, a few at a time."""
    places = asyncio.Semaphore(_AT_ONCE)
    found: list[Whole | ImagenError] = []

    async def one(shot: Shot) -> Whole | ImagenError:
        async with places:
            try:
                return await _fetch(context, backend, shot)
            except ImagenError as error:
                return error

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(shot)) for shot in shots]
    finally:
        # Of what was broken off the rest is not wanted either.
        found = [task.result() for task in tasks if task.done() and not task.cancelled()]
        if len(found) < len(shots):
            close_all(found)
    return found


def close_all(pictures: Sequence[Whole | ImagenError]) -> None:
    """Give back those that there are."""
    for picture in pictures:
        if isinstance(picture, Whole):
            picture.close()


async def _fetch(context: Context, backend: Backend, shot: Shot) -> Whole:
    """A picture by its file, or from where the service has it.

    Raises:
        ImagenError: it could not be had.
    """
    settings = context.app.settings
    if shot.path is not None:
        with contextlib.suppress(FileNotFoundError):
            return Whole(shot.path.open("rb"))
    folder = settings.data_dir / "incoming"
    part = folder / f"{shot.prediction_id}-{secrets.token_hex(6)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            await backend.fetch(shot.url, part, limit_bytes=settings.max_picture_mb << 20)
            whole = Whole(part.open("rb"))
            if whole.format is not None:
                return whole
            whole.close()  # perhaps the page of a proxy
        raise OutputDefective("the picture is no picture; it was charged", prediction_id=shot.prediction_id)
    except OSError as error:
        raise DeliveryError(
            f"{folder} cannot be written: {error.strerror}", prediction_id=shot.prediction_id
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
