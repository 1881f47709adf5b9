"""Presets: named sets of inputs, laid under what a request says itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from imagen.domain.model_ref import ModelRef
from imagen.domain.request import GenerationRequest
from imagen.errors import InvalidInput, Problem

COMMON = frozenset(
    {"model", "width", "height", "aspect_ratio", "steps", "seed", "negative_prompt", "output_format"}
)
"""What has one name for all models; any other field is a parameter of the model."""
_WHOLE = frozenset({"width", "height", "steps", "seed"})
_SAID_BY_WISH = frozenset(
    {
        "prompt",
        "preset",
        "model_name",
        "count",
        "num_outputs",
        "number_of_images",
        "output",
        "output_filename",
        "timeout",
        "max_cost",
        "semaphore",
        "external_semaphore_id",
        "store",
        "cache",
        "credentials",
        "tier",
        "draft",
    }
)
"""What each wish says for itself."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_FIELDS = 100


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of inputs.

    Attributes:
        name: its own; letters, digits, dots, dashes and underscores, 64 at most.
        fields: common names (`COMMON`), and parameters of models by their own names.
        built_in: it comes with imagen.
    """

    name: str
    fields: Mapping[str, Any]
    built_in: bool = False

    def problems(self) -> list[Problem]:
        """What is wrong with it, whatever the model; each names the field."""
        found = []
        if not _NAME.fullmatch(self.name):
            found.append(Problem("name", "1 to 64 letters, digits, dots, dashes and underscores are allowed"))
        if len(self.fields) > _MOST_FIELDS:
            found.append(
                Problem("fields", f"it has {len(self.fields)} fields; at most {_MOST_FIELDS} are read")
            )
        for name, value in self.fields.items():
            if name in _SAID_BY_WISH:
                found.append(Problem(name, "it belongs to each wish, and not to a preset"))
            elif name in _WHOLE and (not isinstance(value, int) or isinstance(value, bool)):
                found.append(Problem(name, "it must be a whole number"))
            elif name in COMMON - _WHOLE and (not isinstance(value, str) or not value.strip()):
                found.append(Problem(name, "it must be text"))
        if ("width" in self.fields) != ("height" in self.fields):
            found.append(
                Problem(
                    "height" if "width" in self.fields else "width", "give width and height together, or neither"
                )
            )  # fmt: skip
        if "aspect_ratio" in self.fields and "width" in self.fields:
            found.append(Problem("aspect_ratio", "give either aspect_ratio or width and height"))
        return found


POD = Preset(
    name="pod",
    fields={
        "negative_prompt": "blurry, low quality, pixelated, watermark, text overlay, copyright, signature, distorted, "
        "amateur, poor lighting",
        "aspect_ratio": "4:3",
        "output_format": "png",
    },
    built_in=True,
)
"""For prints on demand."""

BUILT_IN: Mapping[str, Preset] = {POD.name: POD}


def find_preset(presets: Mapping[str, Preset], name: str) -> Preset:
    """The preset of that name.

    Raises:
        InvalidInput: for the field `preset`: there is none.
    """
    found = presets.get(name)
    if found is None:
        problem = Problem("preset", f"no preset is called {name[:80]!r}; there are {', '.join(presets)}")
        raise InvalidInput([problem], hint="`imagen presets` lists them; imagen.yaml has room for more.")
    return found


def with_preset(
    request: GenerationRequest,
    name: str | None,
    presets: Mapping[str, Preset],
    *,
    resolve: Callable[[str], ModelRef],
) -> GenerationRequest:
    """The request with the preset of that name under it; as it is where none is named.

    Raises:
        InvalidInput: for the field `preset`: there is none.
        NotFound, InvalidModelRef: the preset names a model that there is not.
    """
    return request if name is None else lay_under(request, find_preset(presets, name), resolve=resolve)


def lay_under(
    request: GenerationRequest, preset: Preset, *, resolve: Callable[[str], ModelRef]
) -> GenerationRequest:
    """The request with the preset under it: what it says itself wins, the defaults of a backend do not.

    Args:
        request: a wish.
        preset: what holds where the wish says nothing.
        resolve: the model of a name.

    Raises:
        NotFound, InvalidModelRef: the preset names a model that there is not.
    """
    model = preset.fields.get("model")
    return msgspec.structs.replace(
        request,
        preset=preset.name,
        model=request.model if request.model is not None or model is None else resolve(model),
        offers={name: value for name, value in preset.fields.items() if name != "model"},
    )
