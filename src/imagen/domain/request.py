"""What a caller asks for, before any backend has looked at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from imagen.domain.draft import FinalWish
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Tier
from imagen.errors import InvalidInput, Problem

MAX_COUNT = 100
MAX_PROMPT_CHARACTERS = 100_000
MAX_SIDE = 16_384
INPUT = "input"
"""What a model's whole input is called where it is given verbatim."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One wish for one or more pictures, in words that every backend can translate.

    Attributes:
        prompt: what to show.
        model: another model than the backend's own.
        width, height: pixels; together they choose an aspect ratio where the model wants one.
        aspect_ratio: `W:H`, instead of width and height.
        steps: denoising steps.
        seed: None lets us choose one; it is always known before anything is bought.
        negative_prompt: what to avoid, for models that can.
        count: number of pictures, 1 to 100.
        input_image: a picture to start from: a URL, a data URI, or a file of the caller's own (never from a stranger).
        options: the model's own parameters by their own names; they win over everything above.
        text_options: the same as text, as typed on a command line; read by the model's own types.
        max_cost: refuse to buy when all of it would cost more, or when nobody knows what it would cost.
        deadline_seconds: when the prediction must have ended, measured from its creation.
        output_format: `png`, `jpg` or `webp`, for models that let one choose.
        repeat_lost: after a create whose answer was lost and which cannot be found, send it again.
        semaphore: a named limit to wait for before anything is bought.
        resume: take up an unfinished prediction of the very same request before buying a new one.
        plain: send only what is given here: no format, shape or steps of ours.
        verbatim: `options` is the model's whole input as it is, the prompt too where it has one, for one prediction; what
            stands in the other words of this request about the picture is not sent.
        preset: the named set of inputs that was laid under these; only told, it is applied already.
        tier: `preview` for cheap pictures to choose from, `final` for one made of a chosen preview.
        parent: that preview.
        draft: what the previews of one wish, and the finals made of them, have in common.
        wished: of a preview: what its final is made of.
        offers: what the preset says: sent where the model has such a parameter, and where nothing is said for it here.
        carried: what is taken over from another picture: the same, but left out too where the model does not allow it.
        cache: take the pictures from the cache where they were made before, and keep them there; None: by the settings.
    """

    prompt: str
    model: ModelRef | None = None
    width: int | None = None
    height: int | None = None
    aspect_ratio: str | None = None
    steps: int | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    count: int = 1
    input_image: str | Path | None = None
    options: Mapping[str, Any] = {}
    text_options: Mapping[str, str] = {}
    max_cost: Usd | None = None
    deadline_seconds: float | None = None
    output_format: str | None = None
    semaphore: str | None = None
    repeat_lost: bool = True
    resume: bool = True
    plain: bool = False
    verbatim: bool = False
    cache: bool | None = None
    preset: str | None = None
    tier: Tier | None = None
    parent: str | None = None
    draft: str | None = None
    wished: FinalWish | None = None
    offers: Mapping[str, Any] = {}
    carried: Mapping[str, Any] = {}

    def check(self) -> None:
        """Refuse what no backend could serve.

        Raises:
            InvalidInput: naming every field that is out of range.
        """
        problems = [
            Problem(field, f"{value} is not allowed; it must be from {low} to {high}")
            for field, value, low, high in (
                ("width", self.width, 1, MAX_SIDE),
                ("height", self.height, 1, MAX_SIDE),
                ("steps", self.steps, 1, 1000),
                ("seed", self.seed, 0, 2**63 - 1),
                ("count", self.count, 1, MAX_COUNT),
            )
            if value is not None and not low <= value <= high
        ]
        if not self.prompt.strip() and not self.verbatim:
            problems.append(Problem("prompt", "it is empty; say what the picture shall show"))
        if len(self.prompt) > MAX_PROMPT_CHARACTERS:
            field = f"{INPUT}.prompt" if self.verbatim else "prompt"
            problems.append(Problem(field, f"it is longer than {MAX_PROMPT_CHARACTERS:,} characters"))
        problems += self._unsendable()
        if (self.width is None) != (self.height is None):
            problems.append(
                Problem(
                    "width" if self.width is None else "height", "give width and height together, or neither"
                )
            )
        if self.aspect_ratio is not None and self.width is not None:
            problems.append(Problem("aspect_ratio", "give either aspect_ratio or width and height"))
        if self.deadline_seconds is not None and not 0 < self.deadline_seconds <= 86_400:
            problems.append(
                Problem(
                    "timeout",
                    f"{self.deadline_seconds:g} is not allowed; it must be above 0 and at most 86400 seconds",
                )
            )
        if problems:
            raise InvalidInput(problems)

    def _unsendable(self) -> Iterator[Problem]:
        """Every text that no JSON, or no model, takes."""
        for field, value in self._texts_to_send():
            try:
                texts = list(_texts(value))
            except RecursionError:
                yield Problem(field, "it is nested too deeply")
                continue
            if any("\0" in text for text in texts):
                yield Problem(field, "it holds a NUL character, which no model takes")
            if not all(map(_is_unicode, texts)):
                yield Problem(field, "it is not valid Unicode (a lone surrogate)")

    def _texts_to_send(self) -> Iterator[tuple[str, Any]]:
        """What is sent and may be text, or hold it, each by the name that its sender knows."""
        if self.verbatim:
            yield from ((f"{INPUT}.{name}", value) for name, value in self.options.items())
            return
        yield "prompt", self.prompt
        yield "negative_prompt", self.negative_prompt
        yield "aspect_ratio", self.aspect_ratio
        yield "output_format", self.output_format
        yield "input_image", self.input_image
        for named in (self.text_options, self.options, self.offers, self.carried):
            yield from named.items()


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value that is going to be JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in (*value.keys(), *value.values()):
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
