"""OpenAI's words in the words of one model, by that model's schema. No I/O.

A word goes to the model's parameter of the same name where that takes it. Else it goes to whatever says the same there: a
size becomes width and height, or the nearest aspect ratio and size in megapixels. What came out otherwise than it was said
is told as adapted; what the model has no word for at all is told as unmapped. What would be worse ignored than refused, a
mask for example, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import msgspec

from imagen.catalog.model import COUNT_KEYS, EDIT_KEYS, GUIDE_KEYS, STEPS_KEYS
from imagen.domain.aspect_ratio import ASPECT_RATIOS
from imagen.domain.input_schema import Schema, check_input, property_schema
from imagen.domain.request import MAX_SIDE
from imagen.errors import InvalidInput, Problem
from imagen.server.openai.wish import FORMATS, QUALITIES, ImagesWish

MASK = "mask"
_SIZE = re.compile(r"([1-9][0-9]{0,4})\s*[xX]\s*([1-9][0-9]{0,4})")
_RATIO = re.compile(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})")
_MEGAPIXELS = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?)(?: ?MP)?")
_K = re.compile(r"([1-9])K")
_MEGAPIXEL = 1024 * 1024
_LEVEL_KEYS = ("megapixels", "output_megapixels", "resolution", "size", "image_size")
"""Parameters whose words say how many pixels a picture has, whatever its shape."""
_FARTHEST = math.log(1.25)
"""A ratio that differs by more is another shape, and none that was asked for."""
_LEFT_TO_THE_MODEL = "as the model has it"
_MATCH, _CUSTOM = "match_input_image", "custom"
_LEVELS: Mapping[str, int] = {"low": -1, "medium": 0, "standard": 0, "high": 1, "hd": 1, "xhigh": 1, "max": 1}
"""Less care than the model takes by itself, as much, or more."""
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "standard": ("standard", "medium"),
    "hd": ("hd", "high"),
    "xhigh": ("xhigh", "high"),
    "max": ("max", "xhigh", "high"),
    "jpeg": ("jpeg", "jpg"),
}
_GPT_WORDS = frozenset({"low", "medium", "high"})
_BLACK_IS_EDITED = re.compile(
    r"black[^.,;:]*\b(?:inpainted|repainted|edited|replaced|changed)\b", re.IGNORECASE
)
_SAME_MEANING = frozenset({"output_format", "output_compression"})
"""Where models have another name, or another spelling, for the very same."""
_ONLY_OPENAI = ("complexity", "frame_count", "frame_duration_ms", "svg")
"""Said for models of OpenAI's alone: no model here has a word for them."""

Values = Mapping[str, Any]


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """A wish in the words of a model.

    Attributes:
        options: its parameters, without pictures.
        origins: OpenAI's field, by the parameter that it became.
        unmapped: OpenAI's fields that the model has no word for.
        adapted: what became of those that came out otherwise than they were said, by OpenAI's field.
        picture_key: the parameter that takes the pictures of an edit; picture_list: whether it takes a list of them.
        black_is_edited: of a mask, whether black is what is to be painted anew.
    """

    options: dict[str, Any]
    origins: dict[str, str]
    unmapped: tuple[str, ...]
    adapted: dict[str, str]
    picture_key: str | None = None
    picture_list: bool = False
    black_is_edited: bool = False


def in_words_of(
    schema: Schema | None,
    wish: ImagesWish,
    *,
    model: str,
    said: Collection[str] = (),
    pictures: int = 0,
    masked: bool = False,
) -> Words:
    """A wish in the words of a model.

    Args:
        schema: of the model's input; None where nobody knows it, then nothing can be mapped.
        wish: in OpenAI's words.
        model: named in errors.
        said: parameters that the caller names by the model's own names: they are left alone.
        pictures: how many there are to edit; 0 for a picture of words alone.
        masked: whether there is a mask with them.

    Raises:
        InvalidInput: naming OpenAI's field: a word that nobody knows, or one that would be worse ignored than refused.
    """
    taker = _Taker(schema, frozenset(said))
    made = _Made()
    for field, translate in _TRANSLATIONS.items():
        if (value := getattr(wish, field)) is None:
            continue
        made.note(field, value, taker.same(field, value) or translate(taker, value, made))
    if wish.size is None and pictures:
        made.options.update(_like_the_input(taker) or {})
    elif wish.size == "auto" and pictures:
        made.note("size", "auto", _like_the_input(taker) or {}, exact=True)
    made.unmapped += [field for field in _ONLY_OPENAI if getattr(wish, field) is not None]
    if wish.n is not None and not taker.said.isdisjoint(COUNT_KEYS):
        made.unmapped.append("n")
    if wish.partial_images:
        made.unmapped.append("partial_images")
    if wish.stream and wish.response_format == "url":
        made.unmapped.append("response_format")
    key = _check_pictures(taker, made, pictures=pictures, masked=masked)
    if made.problems:
        raise InvalidInput(made.problems, subject=model, hint=f"`imagen models {model}` lists what it takes.")
    return Words(
        options=made.options,
        origins=made.origins | ({} if key is None else {key: "image"}) | ({MASK: MASK} if masked else {}),
        unmapped=tuple(made.unmapped),
        adapted=made.adapted,
        picture_key=key,
        picture_list=key is not None and taker.takes_list(key),
        black_is_edited=masked and bool(_BLACK_IS_EDITED.search(taker.description(MASK))),
    )


class _Made:
    """What has been mapped so far."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.unmapped: list[str] = []
        self.adapted: dict[str, str] = {}
        self.problems: list[Problem] = []

    def note(self, field: str, value: Any, values: Values | None, *, exact: bool = False) -> None:
        """What became of a field: None for nothing, empty where nothing has to be said for it."""
        if values is None:
            if not any(problem.field == field for problem in self.problems):
                self.unmapped.append(field)
            return
        self.options.update(values)
        self.origins.update(dict.fromkeys(values, field))
        exact = exact or field in _SAME_MEANING or values == {field: value} or _says_pixels(values, value)
        if values and not exact:
            self.adapted.setdefault(field, _said(values))


class _Taker:
    """What a model takes, but for what its caller says himself."""

    def __init__(self, schema: Schema | None, said: frozenset[str]) -> None:
        self._schema = schema
        self.said = said

    @property
    def known(self) -> bool:
        """Whether anybody knows what it takes."""
        return self._schema is not None

    def find(self, name: str) -> Schema | None:
        """The schema of a parameter; None where it has none of that name, or it is taken."""
        if self._schema is None or name in self.said:
            return None
        return property_schema(self._schema, name)

    def allows(self, name: str, value: Any) -> bool:
        """Whether it takes that value, as far as its schema tells."""
        found = self.find(name)
        return found is not None and not check_input({"properties": {name: found}}, {name: value})

    def choices(self, name: str) -> Sequence[Any]:
        """The only values that it takes; none where any goes, or nobody wrote them down."""
        return (self.find(name) or {}).get("enum") or ()

    def lists(self, name: str, value: Any) -> bool:
        """Whether it names that value among those that it takes."""
        return any(value == choice for choice in self.choices(name))

    def open_text(self, name: str) -> bool:
        """Whether it takes text, and nobody wrote down which."""
        found = self.find(name)
        return found is not None and found.get("type") == "string" and not found.get("enum")

    def takes_list(self, name: str) -> bool:
        """Whether it takes a list."""
        return (self.find(name) or {}).get("type") == "array"

    def description(self, name: str) -> str:
        """What is written about it."""
        return str((self.find(name) or {}).get("description") or "")

    def same(self, field: str, value: Any) -> Values | None:
        """The value by the same name, where the model's own parameter names that very value."""
        if self.lists(field, value):
            return {field: value}
        return {field: value} if isinstance(value, int) and self.allows(field, value) else None

    def first(self, names: Sequence[str]) -> str | None:
        """The first of these parameters that it has."""
        return next((name for name in names if self.find(name) is not None), None)


# --- size ----------------------------------------------------------------------------------------------------


def _size(taker: _Taker, value: str, made: _Made) -> Values | None:
    if value == "auto":
        return {}
    if match := _RATIO.fullmatch(value):
        return _shape(taker, Fraction(int(match[1]), int(match[2])))
    match = _SIZE.fullmatch(value)
    if match is None or max(int(match[1]), int(match[2])) > MAX_SIDE:
        made.problems.append(
            Problem("size", f"it must be WIDTHxHEIGHT such as 1024x1024, at most {MAX_SIDE} each, or auto")
        )
        return None
    width, height = int(match[1]), int(match[2])
    exact = _pixels(taker, width, height)
    if exact is not None:
        return exact
    shape = _shape(taker, Fraction(width, height))
    level = _level(taker, width * height)
    if shape is None and level is not None and "aspect_ratio" not in taker.said:
        made.adapted["size"] = f"{_said(level)}, aspect_ratio={_LEFT_TO_THE_MODEL}"
    return None if shape is None and level is None else {**(shape or {}), **(level or {})}


def _pixels(taker: _Taker, width: int, height: int) -> Values | None:
    """The very size, where the model can be told it."""
    text = f"{width}x{height}"
    for name in ("size", "resolution"):
        if taker.lists(name, text):
            return {name: text}
    if not (taker.allows("width", width) and taker.allows("height", height)):
        return None
    sides = {"width": width, "height": height}
    for switch in ("aspect_ratio", "size"):
        if taker.lists(switch, _CUSTOM):
            return {switch: _CUSTOM, **sides}
    # Width and height beside another word for the size count only with a switch that this model does not have.
    return None if taker.first(("size", "aspect_ratio")) else sides


def _shape(taker: _Taker, wanted: Fraction) -> Values | None:
    """The nearest aspect ratio of the model's."""
    known = taker.choices("aspect_ratio")
    if not known and taker.open_text("aspect_ratio"):
        known = ASPECT_RATIOS
    ratios = {text: ratio for text in known if (ratio := _ratio(text)) is not None}
    if not ratios:
        return None
    nearest = min(ratios, key=lambda text: abs(math.log(ratios[text] / wanted)))
    if abs(math.log(ratios[nearest] / wanted)) > _FARTHEST:
        return None
    return {"aspect_ratio": nearest}


def _level(taker: _Taker, pixels: int) -> Values | None:
    """The nearest of the sizes that the model has, whatever the shape."""
    for name in _LEVEL_KEYS:
        levels = {word: size for word in taker.choices(name) if (size := _pixels_of(word, name)) is not None}
        if levels:
            return {name: min(levels, key=lambda word: abs(math.log(levels[word] / pixels)))}
    return None


def _like_the_input(taker: _Taker) -> Values | None:
    return {"aspect_ratio": _MATCH} if taker.lists("aspect_ratio", _MATCH) else None


def _ratio(text: Any) -> Fraction | None:
    match = _RATIO.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else Fraction(int(match[1]), int(match[2]))


def _pixels_of(word: Any, name: str) -> float | None:
    """How many pixels a word such as `1`, `0.5 MP` or `2K` means."""
    if not isinstance(word, str):
        return None
    if match := _K.fullmatch(word):
        return float(int(match[1]) * 1024) ** 2
    match = _MEGAPIXELS.fullmatch(word)
    return None if match is None or not float(match[1]) or name == "size" else float(match[1]) * _MEGAPIXEL


def _says_pixels(values: Values, said: Any) -> bool:
    """Whether the values are the very size that was said."""
    if "width" in values:
        return bool(f"{values['width']}x{values['height']}" == said)
    return any(said == value for value in values.values())


# --- how carefully, in what manner ---------------------------------------------------------------------------


def _quality(taker: _Taker, value: str, made: _Made) -> Values | None:
    if value not in QUALITIES:
        made.problems.append(Problem("quality", f"it must be one of {', '.join(QUALITIES)}"))
        return None
    if value == "auto":
        return {}
    words = _SYNONYMS.get(value, (value,))
    if (word := next((word for word in words if taker.lists("quality", word)), None)) is not None:
        return {"quality": word}
    if taker.open_text("quality"):
        return {"quality": next((word for word in words if word in _GPT_WORDS), value)}
    found = dict(_levers(taker, _LEVELS[value]))
    # A lever that has nothing to give in that direction is one all the same: the model does what it can.
    return {name: each for name, each in found.items() if each is not None} if found else None


def _levers(taker: _Taker, level: int) -> Iterator[tuple[str, Any]]:
    """What makes a model take more or less care, and the value for it; None leaves it as it is."""
    speeds = {-1: "Turbo", 0: "Default", 1: "Quality"}
    if taker.lists("rendering_speed", speeds[level]):
        yield "rendering_speed", speeds[level]
    aims = {-1: "optimize_for_speed", 1: "optimize_for_quality"}
    if taker.lists("image_size", aims[1]):
        yield "image_size", aims.get(level)
    steps = taker.first(STEPS_KEYS)
    if steps is not None:
        facts = taker.find(steps) or {}
        usual = facts.get("default")
        if isinstance(usual, int):
            yield steps, _steps(usual, level, facts)
    if taker.find("go_fast") is not None:
        yield "go_fast", {-1: True, 1: False}.get(level)


def _steps(usual: int, level: int, facts: Schema) -> int | None:
    """Half as many steps, or half as many more, as far as the model allows."""
    wanted = {-1: math.ceil(usual / 2), 0: usual, 1: usual + math.ceil(usual / 2)}[level]
    wanted = max(int(facts.get("minimum", 1)), min(int(facts.get("maximum", wanted)), wanted))
    return None if wanted == usual else wanted


def _style(taker: _Taker, value: str, made: _Made) -> Values | None:
    if value not in {"vivid", "natural"}:
        made.problems.append(Problem("style", "it must be vivid, natural, or a style of the model's own"))
        return None
    natural = (("style", "realistic_image"), ("style_type", "Realistic"), ("raw", True))
    found = natural if value == "natural" else (("raw", False),)
    return next(({name: each} for name, each in found if taker.allows(name, each)), None)


def _background(taker: _Taker, value: str, made: _Made) -> Values | None:
    if value not in {"transparent", "opaque", "auto"}:
        made.problems.append(Problem("background", "it must be transparent, opaque or auto"))
        return None
    if taker.open_text("background"):
        return {"background": value}
    if value == "transparent":
        made.problems.append(
            Problem("background", "this model makes none that are transparent; gpt-image-1.5 does")
        )
    return {} if value == "auto" else None


def _moderation(taker: _Taker, value: str, made: _Made) -> Values | None:
    if value not in {"low", "auto"}:
        made.problems.append(Problem("moderation", "it must be low or auto"))
        return None
    if taker.open_text("moderation"):
        return {"moderation": value}
    # No check is switched off for the sake of a word: whoever means that says it in the model's own words.
    least = "block_only_high"
    if taker.lists("safety_filter_level", least) and value == "low":
        return {"safety_filter_level": least}
    return {} if value == "auto" else None


def _fidelity(taker: _Taker, value: str, made: _Made) -> Values | None:
    if value not in {"low", "high"}:
        made.problems.append(Problem("input_fidelity", "it must be low or high"))
        return None
    return {"input_fidelity": value} if taker.open_text("input_fidelity") else None


# --- files ---------------------------------------------------------------------------------------------------


def _format(taker: _Taker, value: str, made: _Made) -> Values | None:
    value = "jpeg" if value == "jpg" else value
    if value not in FORMATS:
        made.problems.append(Problem("output_format", f"it must be one of {', '.join(FORMATS)}"))
        return None
    words = _SYNONYMS.get(value, (value,))
    if taker.open_text("output_format"):
        usual = (taker.find("output_format") or {}).get("default")
        return {"output_format": usual if usual in words else value}
    word = next((word for word in words if taker.lists("output_format", word)), None)
    return None if word is None else {"output_format": word}


def _compression(taker: _Taker, value: int, _made: _Made) -> Values | None:
    """100 is best for both."""
    return {"output_quality": value} if taker.allows("output_quality", value) else None


_TRANSLATIONS: Mapping[str, Callable[[_Taker, Any, _Made], Values | None]] = {
    "size": _size,
    "quality": _quality,
    "style": _style,
    "background": _background,
    "moderation": _moderation,
    "input_fidelity": _fidelity,
    "output_format": _format,
    "output_compression": _compression,
}


# --- pictures ------------------------------------------------------------------------------------------------


def _check_pictures(taker: _Taker, made: _Made, *, pictures: int, masked: bool) -> str | None:
    """The parameter that takes the pictures of an edit."""
    if not pictures:
        return None
    key = taker.first(EDIT_KEYS + GUIDE_KEYS)
    if not taker.known:
        made.problems.append(Problem("image", "nobody knows under which name this model takes a picture"))
    elif key is None:
        made.problems.append(Problem("image", "this model takes no picture"))
    elif taker.takes_list(key):
        most = (taker.find(key) or {}).get("maxItems", pictures)
        if pictures > most:
            made.problems.append(Problem("image", f"there are {pictures}; this model takes at most {most}"))
    elif pictures > 1:
        made.problems.append(Problem("image", f"there are {pictures}; this model takes one"))
    if key in GUIDE_KEYS:
        made.adapted["image"] = f"{key}: it guides the new picture, and is not edited"
    if masked and taker.find(MASK) is None:
        made.problems.append(
            Problem(
                MASK,
                "this model takes none, and to edit all of the picture is not what was asked for; flux-fill-pro takes one",
            )
        )
    return key


def _said(values: Values) -> str:
    return ", ".join(f"{name}={_shown(each)}" for name, each in values.items())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
