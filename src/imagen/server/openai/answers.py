"""Pictures as OpenAI's answers have them, and what only this gateway tells, under `imagen`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from imagen.domain.money import to_dollars
from imagen.server.answers import json_answer
from imagen.server.openai.job import Job
from imagen.server.openai.making import Made
from imagen.server.openai.pictures import Part, Whole, close_all, length_of, sent

_TOLD_QUALITIES = frozenset({"low", "medium", "high", "xhigh", "max"})
_TOLD_BACKGROUNDS = frozenset({"transparent", "opaque"})
NO_TOKENS: dict[str, Any] = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""Nothing is charged by tokens here; clients whose events must have a `usage` find one."""


class Besides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What OpenAI's answer has no field for.

    Attributes:
        model: what really ran.
        prediction_ids: good for `imagen predictions show`.
        seeds: with which the same pictures can be made again, one for each prediction.
        cost_usd: what it cost; null where the price is not known.
        unmapped: what was said and the model has no word for.
        adapted: what became of what came out otherwise than it was said.
        missing: how many pictures fewer than asked for; a model's own check may have taken some out.
        failures: the predictions without a picture, each with its error.
        practice: true where the emulator painted it and no model was run.
        cached: true where nothing was bought, as the pictures were there.
    """

    model: str
    prediction_ids: list[str]
    seeds: list[int | None]
    cost_usd: float | None
    unmapped: list[str] = []
    adapted: dict[str, str] = {}
    missing: int = 0
    failures: list[dict[str, Any]] = []
    practice: bool = False
    cached: bool = False


def besides(job: Job, made: Made) -> Besides:
    """What is told of a job that has made pictures."""
    predictions = [outcome.prediction for outcome in made.outcomes]
    return Besides(
        model=predictions[0].model,
        prediction_ids=made.prediction_ids,
        seeds=[each.seed for each in predictions],
        cost_usd=to_dollars(made.cost),
        unmapped=list(job.words.unmapped),
        adapted=dict(job.words.adapted),
        missing=max(job.asked.wish.count - len(made.shots) + made.lost, 0),
        failures=[failure.shown() for failure in made.failures],
        practice=job.visitor.backend.practice,
        cached=all(each.reused for each in predictions),
    )


def facts(job: Job, pictures: Sequence[Whole] = ()) -> dict[str, Any]:
    """The fields by which OpenAI tells what the pictures are, as far as they are known."""
    wish, unmapped = job.asked.wish, job.words.unmapped
    said = {
        "background": wish.background if wish.background in _TOLD_BACKGROUNDS else None,
        "quality": wish.quality if wish.quality in _TOLD_QUALITIES else None,
        "safety_identifier": wish.person,
    }
    seen = {
        "output_format": _common([picture.format for picture in pictures]),
        "size": _common([picture.size for picture in pictures]),
    }
    found = {name: value for name, value in said.items() if name not in unmapped} | seen
    return {name: value for name, value in found.items() if value is not None}


def _common(values: Sequence[str | None]) -> str | None:
    return values[0] if values and len({*values}) == 1 else None


def by_address(job: Job, made: Made) -> Response:
    """The pictures by their addresses."""
    body = {
        "created": created(made),
        "data": [{"url": shot.address} for shot in made.shots],
        **facts(job),
        "imagen": besides(job, made),
    }
    return json_answer(body, headers=made.headers)


def in_base64(job: Job, made: Made, pictures: Sequence[Whole]) -> Response:
    """The pictures themselves: their base64 goes out as it is made, and no encoder goes over it."""
    tail = msgspec.json.encode({**facts(job, pictures), "imagen": besides(job, made)})
    parts: list[Part] = [b'{"created":%d,"data":[' % created(made)]
    for index, picture in enumerate(pictures):
        parts += [b'{"b64_json":"' if index == 0 else b',{"b64_json":"', picture, b'"}']
    parts.append(b"]," + tail[1:])
    return _Whole(parts, pictures, headers=made.headers)


class _Whole(StreamingResponse):
    """Parts with pictures between them. The pictures are given back however the answer ends."""

    def __init__(self, parts: Sequence[Part], pictures: Sequence[Whole], *, headers: dict[str, str]) -> None:
        told = {**headers, "content-length": str(length_of(parts))}
        super().__init__(sent(parts), 200, told, "application/json")
        self._pictures = pictures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer, as ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            close_all(self._pictures)


def created(made: Made) -> int:
    """When the first of them was asked for, in seconds since 1970; repeats of a request tell the same."""
    return int(made.outcomes[0].prediction.created_at.timestamp())
