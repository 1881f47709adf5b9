"""A run as the API shows it at an instant, with pictures inside the answer where its course says so."""

from __future__ import annotations

import base64
from typing import Any

from imagen.emulator.course import Prediction, Run, Training
from imagen.emulator.delivery import picture_bytes
from imagen.emulator.pictures import CONTENT_TYPES
from imagen.emulator.shapes import prediction_json, training_json
from imagen.emulator.world import World


async def shown(world: World, run: Run, at: float | None = None) -> dict[str, Any]:
    """The object of a prediction or a training as it looks at the instant `at`, or now."""
    now = world.clock.time() if at is None else at
    if isinstance(run, Prediction):
        return prediction_json(run, now, world.api_url, await data_uris(world, run, now))
    assert isinstance(run, Training)  # noqa: S101 - there is no third kind
    return training_json(run, now, world.api_url)


async def data_uris(world: World, prediction: Prediction, now: float) -> list[str]:
    """Its files as data URIs, once they are there; none where its answers hold links."""
    if prediction.course.output != "data_uris" or not prediction.has_output(now):
        return []
    uris = []
    for index, url in enumerate(prediction.files):
        content = base64.b64encode(await picture_bytes(world, prediction, index)).decode()
        uris.append(f"data:{CONTENT_TYPES[url.rsplit('.', 1)[-1]]};base64,{content}")
    return uris
