"""The file host: another origin than the API, as `replicate.delivery` is, without accounts and tokens.

Pictures are painted when they are first fetched, in a thread of their own.
"""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from functools import lru_cache

from aiohttp import web

from imagen.emulator import problems
from imagen.emulator.course import Prediction, Training
from imagen.emulator.exchange import Exchange, answer
from imagen.emulator.fault import DELIVERY
from imagen.emulator.pictures import CONTENT_TYPES
from imagen.emulator.world import World

_FILE = re.compile(r"out-(\d{1,3})\.(png|webp|jpg|svg)")
_WEIGHTS = "trained_model.tar"
_NOT_A_PICTURE = b"<!doctype html><title>Sign in</title><h1>This page is not a picture</h1>"


def build_delivery_app(world: World) -> web.Application:
    """The application of the second port."""

    async def respond(request: web.Request) -> web.StreamResponse:
        return await answer(Exchange(world, request, "delivery", DELIVERY), _find, _deliver)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", respond)
    return app


async def picture_bytes(world: World, prediction: Prediction, index: int) -> bytes:
    """A file's bytes as it should be.

    Raises:
        Problem: 404, there is no such file.
    """
    spec = world.picture_of(prediction, index)
    if spec is None:
        raise problems.not_found("File not found")
    return await asyncio.to_thread(world.studio.picture, spec, world.mode.picture_kib * 1024)


def _find(exchange: Exchange) -> None:
    parts = exchange.request.path.strip("/").split("/")
    if len(parts) == 3 and parts[0] == "xezq" and (_FILE.fullmatch(parts[2]) or parts[2] == _WEIGHTS):
        exchange.prediction = exchange.world.state.delivered.get(parts[1])


async def _deliver(exchange: Exchange) -> web.Response:
    world, prediction = exchange.world, exchange.prediction
    if exchange.request.method not in {"GET", "HEAD"}:
        raise problems.method_not_allowed(exchange.request.method, "GET, HEAD")
    if prediction is None or not prediction.has_output(world.clock.time()):
        raise problems.not_found("File not found")
    if isinstance(prediction, Training):
        return web.Response(body=_weights(), content_type="application/x-tar")
    if not isinstance(prediction, Prediction):
        raise problems.not_found("File not found")
    course, names = world.faults.bend(prediction.course, exchange.subject())
    exchange.struck_by += names
    if course.pictures == "html":
        return web.Response(body=_NOT_A_PICTURE, content_type="text/html")
    index, kind = _index_of(exchange.request.path)
    content = await picture_bytes(world, prediction, index)
    if course.pictures == "truncated":
        content = content[: len(content) // 2]
    headers = {"Cache-Control": "public, max-age=3600", "Accept-Ranges": "none"}
    return web.Response(body=content, content_type=CONTENT_TYPES[kind], headers=headers)


@lru_cache(maxsize=1)
def _weights() -> bytes:
    """A tar file with a note in it: there are no weights."""
    note = b"EMULATED: nothing was trained.\n"
    entry = tarfile.TarInfo("README")
    entry.size = len(note)
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(entry, io.BytesIO(note))
        return buffer.getvalue()


def _index_of(path: str) -> tuple[int, str]:
    match = _FILE.fullmatch(path.rsplit("/", 1)[-1])
    if match is None:
        raise problems.not_found("File not found")
    return int(match[1]), match[2]
