"""What a request says in OpenAI's words, read and checked; whatever else it says is a parameter of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from imagen.decoding import convert
from imagen.domain.plain_words import what_is_allowed
from imagen.domain.request import MAX_PROMPT_CHARACTERS
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.server.bodies import to_value

MOST_PICTURES = 10
MOST_PARTIAL = 3
QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd")
FORMATS = ("png", "jpeg", "webp", "gif", "svg")
_MOST_PERCENT = 100
_LONGEST_USER = 512


class ImagesWish(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures in OpenAI's words. Source: the types of its package for Python, 3.54.

    Attributes:
        prompt: what to show.
        model: a name of the catalog, `owner/name[:version]`, or one that the settings map; None for the default.
        n: how many pictures.
        size: `WIDTHxHEIGHT`, `auto`, or a word of the model's own.
        quality, style, background, moderation, input_fidelity: words of OpenAI's, or of the model's own.
        response_format: addresses, or the pictures themselves.
        output_format, output_compression: of the files.
        stream: tell the end by an event; partial_images: pictures on the way that are wished for.
        user, safety_identifier: for whom the caller asks; the second counts where both are told.
        complexity, frame_count, frame_duration_ms, svg: for models of OpenAI's alone.
    """

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    input_fidelity: str | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: str | None = None
    output_compression: int | None = None
    stream: bool | None = None
    partial_images: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    complexity: str | None = None
    frame_count: int | None = None
    frame_duration_ms: int | None = None
    svg: Any = None

    @property
    def count(self) -> int:
        """How many pictures are wished for."""
        return 1 if self.n is None else self.n

    @property
    def person(self) -> str | None:
        """For whom the caller asks."""
        return self.safety_identifier or self.user or None


_FIELDS: Mapping[str, Any] = {field.name: field.type for field in msgspec.structs.fields(ImagesWish)}
PICTURES = frozenset({"image", "images", "mask", "markup"})
"""What an edit says besides, and is read as pictures; OpenAI's names win over parameters that models have of that name."""


def read_wish(fields: Mapping[str, Any]) -> tuple[ImagesWish, dict[str, Any]]:
    """A wish of a JSON object, and what stands beside it.

    Raises:
        InvalidRequest: the prompt is missing.
        InvalidInput: naming the field and what is allowed.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    wish = to_value(_with_prompt({name: given[name] for name in given if name in _FIELDS}), ImagesWish)
    _check(wish)
    return wish, {name: value for name, value in given.items() if name not in _FIELDS}


def read_texts(texts: Mapping[str, str]) -> tuple[ImagesWish, dict[str, str]]:
    """The same of the fields of a form, all of which are text.

    Raises:
        InvalidRequest: the prompt is missing.
        InvalidInput: naming the field and what is allowed.
    """
    known: dict[str, Any] = {}
    others: dict[str, str] = {}
    problems = []
    for name, text in texts.items():
        # A nested value comes as `svg[model]`.
        field = name.partition("[")[0]
        if field not in _FIELDS:
            others[name] = text
            continue
        try:
            known[field] = convert(text, _FIELDS[field], strict=False)
        except msgspec.ValidationError as error:
            problems.append(Problem(field, what_is_allowed(error, _FIELDS[field])))
    if problems:
        raise InvalidInput(problems)
    wish = to_value(_with_prompt(known), ImagesWish)
    _check(wish)
    return wish, others


def _with_prompt(given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("prompt"):
        raise InvalidInput([Problem("prompt", "it is missing; say what the picture shall show")])
    return given


def _check(wish: ImagesWish) -> None:
    """Refuse what no model could do.

    Raises:
        InvalidInput: naming each field and what is allowed.
    """
    problems = [
        Problem(name, f"{value} is not allowed; it must be from {low} to {high}")
        for name, value, low, high in (
            ("n", wish.n, 1, MOST_PICTURES),
            ("partial_images", wish.partial_images, 0, MOST_PARTIAL),
            ("output_compression", wish.output_compression, 0, _MOST_PERCENT),
        )
        if value is not None and not low <= value <= high
    ]
    if len(wish.prompt) > MAX_PROMPT_CHARACTERS:
        problems.append(Problem("prompt", f"it is longer than {MAX_PROMPT_CHARACTERS:,} characters"))
    if wish.partial_images and not wish.stream:
        problems.append(Problem("partial_images", "it needs stream"))
    problems += [
        Problem(name, f"it is longer than {_LONGEST_USER} characters")
        for name in ("user", "safety_identifier")
        if len(getattr(wish, name) or "") > _LONGEST_USER
    ]
    if wish.background == "transparent" and wish.output_format == "jpeg":
        problems.append(Problem("output_format", "a transparent background needs png or webp"))
    if problems:
        raise InvalidInput(problems)


def refuse_reserved(extras: Mapping[str, Any]) -> None:
    """Refuse what a request of these operations cannot say.

    Raises:
        InvalidRequest: it belongs elsewhere.
    """
    if "tier" in extras:
        raise InvalidRequest("tier: previews are made by POST /generate", hint="Leave it away, or ask there.")
