"""What a picture's file is called: from a pattern such as `out/{date}/{prompt}-{seed}.png`.

What the user writes literally is kept as it is written. What comes from fields (a prompt, a model's name,
an id) is made safe first: it can never hold a separator, begin with a dot or a dash, or leave the folder.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from pathlib import Path, PurePath
from string import Formatter

import msgspec

from imagen.errors import InvalidInput, Problem

FIELDS = ("prompt", "model", "seed", "index", "id", "date", "time", "ext")
"""What may stand in braces."""

DEFAULT_NAME = "{prompt}-{seed}.{ext}"
"""The name in a folder when none is given. Without a seed, the end of the prediction's id takes its place."""

MAX_SLUG = 48
"""Characters of a slug."""

MAX_NAME_BYTES = 200
"""Bytes (UTF-8) of a name made from fields: file systems take 255, and a part file needs some of them."""

_RESERVED = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
_SUFFIX = re.compile(r"\.([A-Za-z][A-Za-z0-9]{0,4})", re.ASCII)
_NUMBER_FORMAT = re.compile(r"0?\d{1,2}d?", re.ASCII)
_FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}
_SMALLER_SLUGS = (MAX_SLUG, 32, 24, 16, 8, 4)


class NameFields(msgspec.Struct, frozen=True):
    """What is known about one picture when it is named.

    Attributes:
        prompt: the whole prompt.
        model: `owner/name` or `owner/name:version`; only the name is used.
        seed: None when the model told none: then the end of `id` is used.
        id: of the prediction.
        at: the instant for {date} and {time}, shown in its own time zone.
    """

    prompt: str
    model: str
    seed: int | None
    id: str
    at: datetime


class _Field(msgspec.Struct, frozen=True):
    name: str
    spec: str = ""


_Piece = str | _Field


class OutputPattern(msgspec.Struct, frozen=True):
    """Where the pictures of one request go.

    Attributes:
        folder: what precedes every name; never contains a field.
        parts: the names below it, each as text and fields.
    """

    folder: Path
    parts: tuple[tuple[_Piece, ...], ...]

    @classmethod
    def parse(cls, text: str | None, *, default_folder: Path) -> OutputPattern:
        """Read the text of `-o`.

        None means the default name in `default_folder`; an existing folder, or a text that ends in `/`,
        means the default name in that folder; a text with fields in braces is a template; anything else is
        one file. In templates `{{` and `}}` stand for braces themselves.

        Raises:
            InvalidInput: for the field `output`: an unknown field, lone braces, no such home.
        """
        name = _parse_part(DEFAULT_NAME)
        if text is None:
            return cls(_expand(str(default_folder)), (name,))
        if not text.strip() or "\0" in text:
            raise _problem("is empty or holds a NUL: give a file, a folder or a template")
        path = _expand(text)
        if "{" not in text or (not text.endswith("/") and _is_folder(path)):
            if text.endswith("/") or _is_folder(path):
                return cls(path, (name,))
            if path.name in {"", ".."}:
                raise _problem(f"{text!r} names no file")
            return cls(path.parent, ((path.name,),))
        anchor, *parts = path.parts if path.anchor else ("", *path.parts)
        parsed = [_parse_part(part) for part in parts]
        if text.endswith("/"):
            parsed.append(name)
        literal = 0
        while literal < len(parsed) - 1 and all(isinstance(piece, str) for piece in parsed[literal]):
            literal += 1
        folder = Path(anchor, *("".join(map(str, part)) for part in parsed[:literal]))
        return cls(folder, tuple(parsed[literal:]))

    @property
    def wanted_format(self) -> str | None:
        """`png`, `jpg` or `webp` when the name that was given ends in that, else None."""
        _, suffix = _split_suffix(self.parts[-1])
        return _FORMATS.get(suffix[1:].lower())

    @property
    def names_each(self) -> bool:
        """Whether the pattern itself tells the pictures of one request apart."""
        return any(
            isinstance(piece, _Field) and piece.name == "index" for part in self.parts for piece in part
        )

    def path_for(self, index: int, count: int, fields: NameFields, ext: str) -> Path:
        """The path of picture `index` (1-based) of `count`.

        Args:
            index: 1 for the first picture.
            count: how many there are; with more than one and no {index}, `_1`, `_2` … are added.
            fields: what is known about the picture.
            ext: the picture's format, used for {ext} and where the pattern has no extension.
        """
        if not 1 <= index <= count:
            raise ValueError(f"index {index} is not one of 1 to {count}")
        ext = re.sub(r"[^a-z0-9]", "", ext.lower())[:8] or "bin"
        stem, suffix = _split_suffix(self.parts[-1])
        number = f"_{index}" if count > 1 and not self.names_each else ""
        folders = (_render(part, "", index, fields, ext) for part in self.parts[:-1])
        return self.folder.joinpath(
            *folders, _render(stem, number + (suffix or f".{ext}"), index, fields, ext)
        )


def numbered(text: str, number: int) -> str:
    """A template with `number` in place of {index}, for one request of many; everything else of it stays.

    Raises:
        InvalidInput: for the field `output`: an unknown field, lone braces, or a format that {index} does not take.
    """
    parts = []
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            parts.append(literal.replace("{", "{{").replace("}", "}}"))
            if name == "index":
                field = _parse_field(name, spec or "", conversion)
                parts.append(format(number, field.spec))
            elif name is not None:
                parts.append(
                    f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
                )
    except ValueError:
        raise _problem(f"{text!r} has a lone brace: write {{{{ or }}}} for a brace itself") from None
    made = "".join(parts)
    if not made.endswith("/") and _suffix_of(made) != _suffix_of(text):  # fox.v{index}: v7 is no extension
        return f"{PurePath(made)}.{{ext}}"
    return made if "{" in made else made.replace("}}", "}")  # without fields it is a plain path


def slug(text: str, *, limit: int = MAX_SLUG) -> str:
    """The letters and digits of `text` in lower case, in any script, with dashes between; maybe empty.

    It is cut at a word where that leaves at least half of it, and never between a letter and its accents.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text[: limit * 40]).lower())
    kept: list[str] = []
    for character in folded:
        category = unicodedata.category(character)
        if category[0] in "LN" or (category[0] == "M" and kept and kept[-1] != "-"):
            kept.append(character)
        elif category != "Cf" and character not in "'’" and kept and kept[-1] != "-":  # noqa: RUF001  an apostrophe
            kept.append("-")
    words = "".join(kept).strip("-")
    if len(words) <= limit:
        return words
    end = limit
    while end and unicodedata.category(words[end])[0] == "M":
        end -= 1
    cut = words[: end or limit]
    if words[len(cut)] != "-" and (dash := cut.rfind("-")) >= limit // 2:
        cut = cut[:dash]
    return cut.strip("-")


def _suffix_of(template: str) -> str:
    return _split_suffix(_parse_part(PurePath(template).name))[1]


def _split_suffix(part: tuple[_Piece, ...]) -> tuple[tuple[_Piece, ...], str]:
    """A name without its extension, and the extension that the user wrote, empty for none or for {ext}."""
    *before, last = part
    if isinstance(last, _Field):
        if last.name != "ext":
            return part, ""
        if before and isinstance(before[-1], str):
            before[-1] = before[-1].removesuffix(".")
        return tuple(before), ""
    stem, dot, name = last.rpartition(".")
    if not _SUFFIX.fullmatch(dot + name) or not (stem or before):  # ".png" alone is a name, not an extension
        return part, ""
    return (*before, stem), dot + name


def _render(part: tuple[_Piece, ...], tail: str, index: int, fields: NameFields, ext: str) -> str:
    """One name with `tail` at its end. A name without fields is the user's own and stays as it is."""
    if not any(isinstance(piece, _Field) for piece in part):
        return ("".join(map(str, part)) or "picture") + tail
    name = ""
    for limit in _SMALLER_SLUGS:
        name = "".join(
            piece if isinstance(piece, str) else _value(piece, index, fields, ext, limit) for piece in part
        )
        if _size(name + tail) < MAX_NAME_BYTES:
            break
    while name and _size(name + tail) >= MAX_NAME_BYTES:
        name = name[:-1]
    stem, dot, rest = (name + tail).partition(".")
    return f"{stem}_{dot}{rest}" if stem.lower() in _RESERVED else name + tail


def _size(name: str) -> int:
    return len(name.encode("utf-8", "surrogateescape"))


def _value(field: _Field, index: int, fields: NameFields, ext: str, limit: int) -> str:
    id_end = slug(fields.id)[-8:].strip("-") or "0"
    match field.name:
        case "prompt":
            return slug(fields.prompt, limit=limit) or "picture"
        case "model":
            name = fields.model.rpartition("/")[2].partition(":")[0]
            return slug(name, limit=limit) or "model"
        case "seed":
            return id_end if fields.seed is None else format(abs(fields.seed), field.spec)
        case "index":
            return format(index, field.spec)
        case "id":
            return re.sub(r"[^A-Za-z0-9_]+", "-", fields.id, flags=re.ASCII)[:64].strip("-_") or "0"
        case "date":
            return f"{fields.at:%Y-%m-%d}"
        case "time":
            return f"{fields.at:%H-%M-%S}"
        case _:
            return ext


def _parse_part(text: str) -> tuple[_Piece, ...]:
    pieces: list[_Piece] = []
    try:
        for literal, name, spec, conversion in Formatter().parse(text):
            if literal:
                pieces.append(literal)
            if name is not None:
                pieces.append(_parse_field(name, spec or "", conversion))
    except ValueError:
        raise _problem(f"{text!r} has a lone brace: write {{{{ or }}}} for a brace itself") from None
    joined: list[_Piece] = []
    for piece in pieces:  # the parser splits text at doubled braces
        if joined and isinstance(piece, str) and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


def _parse_field(name: str, spec: str, conversion: str | None) -> _Field:
    if name not in FIELDS:
        raise _problem(f"{{{name}}} is no field; known: {', '.join(f'{{{field}}}' for field in FIELDS)}")
    if conversion or (spec and not (name in {"index", "seed"} and _NUMBER_FORMAT.fullmatch(spec))):
        raise _problem(f"{{{name}}} takes no format here; only {{index:03}} and {{seed:06}} may have a width")
    return _Field(name, spec)


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise _problem(f"the home folder of {text.partition('/')[0]} is not known") from None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a folder that we may not look into
        return False


def _problem(message: str) -> InvalidInput:
    return InvalidInput([Problem("output", message)])
