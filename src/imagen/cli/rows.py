"""Rows of a file and what the command line says of all of them, as requests with places for their pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.preset import BUILT_IN, Preset, with_preset
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput, InvalidRequest, Problem
from imagen.pictures import OutputPattern, numbered
from imagen.pictures.naming import DEFAULT_NAME
from imagen.service.manifest import Row

OTHER_NAMES: Mapping[str, str] = {
    "model_name": "model",
    "output_filename": "output",
    "external_semaphore_id": "semaphore",
}
"""What the gateway calls these fields."""
SEMAPHORE_FIELDS = frozenset({"semaphore", "external_semaphore_id"})
FIELDS = frozenset(
    {
        "prompt",
        "model",
        "width",
        "height",
        "aspect_ratio",
        "steps",
        "seed",
        "negative_prompt",
        "count",
        "input_image",
        "output",
        "output_format",
        "preset",
        "semaphore",
        "timeout",
        "max_cost",
    }
)
"""Those that are the same for all models; any other is a parameter of the model."""

_WHOLE = frozenset({"width", "height", "steps", "seed", "count"})
_TEXT = frozenset(
    {
        "model",
        "aspect_ratio",
        "negative_prompt",
        "input_image",
        "output",
        "output_format",
        "preset",
        "semaphore",
    }
)
_LARGEST_INTEGER = 2**63 - 1
_ADDRESSES = ("https://", "http://", "data:")
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".svg", ".bmp"})


class Wanted(msgspec.Struct, frozen=True):
    """One row as a request, and where its pictures go: as `Destination.output`."""

    request: GenerationRequest
    output: str


class WrongValue(ValueError):
    """A field means nothing; the text says what is allowed."""


class Places:
    """Where the pictures of all rows go: each in a place of its own.

    Args:
        output: what `-o` says, absolute: a folder, or a template. None for a folder of the file's name.
        default_folder: holds that folder.
        name: of the file, without its ending.
        rows: how many there are.

    Attributes:
        folder: what precedes every name, absolute.

    Raises:
        InvalidInput: for the field `output`: it names one file for all rows.
    """

    def __init__(self, output: str | None, *, default_folder: Path, name: str, rows: int) -> None:
        self._digits = max(len(str(rows)), 3)
        if output is not None and "{" in output and not _is_folder(output):
            self._template = output
            self.folder = OutputPattern.parse(output, default_folder=default_folder).folder
            return
        if output is not None and Path(output).suffix.lower() in _PICTURES and not _is_folder(output):
            problem = Problem("output", f"{output} is one file for {rows} rows")
            raise InvalidInput([problem], hint="Give a folder, or a template with {index}.")
        self.folder = Path(output) if output is not None else default_folder.absolute() / name
        own = f"{{index:0{self._digits}}}-{DEFAULT_NAME}"
        self._template = f"{_escaped(str(self.folder))}/{own}"

    def of(self, number: int, name: str | None) -> str:
        """Where the pictures of row `number` (from 1) go; `name` is what the row itself says, below the folder.

        Raises:
            InvalidInput: the name leads elsewhere.
        """
        if name is None:
            return numbered(self._template, number)
        path = PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts or "\\" in name
        if leaves or not path.name or name.endswith("/") or not name.isprintable():
            raise InvalidInput(
                [Problem("output", "it must be the name of a file below the folder of the pictures")]
            )
        place = str(self.folder / path)
        return _escaped(place) if "{" in place else place


class Reading:
    """Makes requests of rows.

    Args:
        common: what the command line says for every row that says nothing itself.
        places: where pictures go.
        folder: files of `input_image` are named from here.
        resolve: the model of a name.
        presets: named sets of inputs that rows may name.
    """

    def __init__(
        self,
        *,
        common: GenerationRequest,
        places: Places,
        folder: Path,
        resolve: Callable[[str], ModelRef],
        presets: Mapping[str, Preset] = BUILT_IN,
    ) -> None:
        self._common = common
        self._places = places
        self._folder = folder
        self._resolve = resolve
        self._presets = presets
        self._resolved: dict[str, ModelRef] = {}

    def wanted(self, row: Row, number: int) -> Wanted:
        """The request of a row; `number` is its place among the rows, from 1.

        Raises:
            InvalidInput: naming the fields that make no sense.
        """
        problems: list[Problem] = []
        said: dict[str, Any] = {}
        own: dict[str, Any] = {}
        taken: dict[str, str] = {}
        for given, value in row.fields.items():
            name = OTHER_NAMES.get(given, given)
            if name not in FIELDS:
                own[given] = value
            elif name in taken:
                problems.append(Problem(given, f"it is the same as {taken[name]}, which is there too"))
            else:
                taken[name] = given
                try:
                    said[name] = self._value(name, value, typed=row.typed)
                except ValueError as error:
                    problems.append(Problem(given, str(error)))
        output = said.pop("output", None)
        place = ""
        try:
            place = self._places.of(number, output)
        except InvalidInput as error:
            problems += error.problems
        if problems:
            raise InvalidInput(problems)
        said["output_format"] = said.get("output_format") or self._common.output_format or _format_of(place)
        said["deadline_seconds"] = said.pop("timeout", self._common.deadline_seconds)
        preset = said.pop("preset", None) or self._common.preset
        request = msgspec.structs.replace(self._shaped(said), **said, **self._options(own, typed=row.typed))
        return Wanted(with_preset(request, preset, self._presets, resolve=self._resolve), place)

    def _shaped(self, said: Mapping[str, Any]) -> GenerationRequest:
        """What holds for all rows; a shape that the row gives in one way takes the place of one in another way."""
        if "aspect_ratio" in said:
            return msgspec.structs.replace(self._common, width=None, height=None)
        if "width" in said or "height" in said:
            return msgspec.structs.replace(self._common, aspect_ratio=None)
        return self._common

    def _options(self, own: Mapping[str, Any], *, typed: bool) -> dict[str, Any]:
        """The model's own parameters: the row's in place of the command line's."""
        common = self._common.text_options
        if typed:
            return {
                "options": own,
                "text_options": {name: value for name, value in common.items() if name not in own},
            }
        return {"options": {}, "text_options": {**common, **own}}

    def _value(self, name: str, value: Any, *, typed: bool) -> Any:
        """What a field means.

        Raises:
            WrongValue: it means nothing; the text says what is allowed.
        """
        if name in _WHOLE:
            return _whole(value, typed=typed)
        if name == "timeout":
            return _seconds(value, typed=typed)
        if name == "max_cost":
            return _cost(value)
        if not isinstance(value, str):
            raise WrongValue("it must be text; put it in quotes")
        if name == "model":
            return self._model(value.strip())
        if name == "input_image":
            return self._image(value.strip())
        return value.strip() if name in _TEXT else value

    def _model(self, name: str) -> ModelRef:
        found = self._resolved.get(name)
        if found is None:
            try:
                found = self._resolve(name)
            except InvalidRequest as error:
                raise WrongValue(error.detail) from None
            self._resolved[name] = found
        return found

    def _image(self, text: str) -> str | Path:
        """An address stays text; anything else is a file of the user's own, seen from where their file of rows lies."""
        if text.startswith(_ADDRESSES):
            return text
        try:
            path = self._folder / Path(text).expanduser()
            there = path.is_file()
        except (OSError, ValueError, RuntimeError):
            there = False
        if not there:
            raise WrongValue(f"{text[:200]!r} is neither a file nor an https address")
        return path


def _whole(value: Any, *, typed: bool) -> int:
    if not typed and isinstance(value, str):
        try:
            value = int(value.strip()[:40])
        except ValueError:
            raise WrongValue(f"{value[:40]!r} is no whole number") from None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongValue("it must be a whole number")
    if abs(value) > _LARGEST_INTEGER:
        raise WrongValue(f"it must be a whole number from -{_LARGEST_INTEGER} to {_LARGEST_INTEGER}")
    return value


def _seconds(value: Any, *, typed: bool) -> float:
    if not typed and isinstance(value, str):
        try:
            value = float(value.strip()[:40])
        except ValueError:
            raise WrongValue(f"{value[:40]!r} is no number of seconds") from None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise WrongValue("it must be a number of seconds")
    try:
        return float(value)
    except OverflowError:
        raise WrongValue("it is too large for a number of seconds") from None


def _cost(value: Any) -> Usd:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise WrongValue("it must be US dollars, such as 0.05")
    amount = Usd.parse(str(value))
    if amount < Usd(0):
        raise WrongValue(f"{amount} is below zero")
    return amount


def _format_of(output: str) -> str | None:
    """The picture format that the name of a place asks for."""
    return OutputPattern.parse(output, default_folder=Path()).wanted_format


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except OSError:
        return False


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
