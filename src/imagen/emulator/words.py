"""What models of text say here: always the same for the same input, plainly marked, and short."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imagen.emulator.models import Model

_PIECE = re.compile(r"\s*\S+|\s+$")
_MOST_CHARACTERS = 500


def pieces_of(model: Model, given: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model says to an input, piece by piece; nothing, if its output is files.

    `max_tokens` is the most pieces, where the model has it.
    """
    if model.makes_files:
        return ()
    values = model.with_defaults(given)
    if model.output == "string":
        return (f"hello {values.get('text', values.get('prompt', ''))}",)
    said = str(values.get("prompt", ""))[:_MOST_CHARACTERS]
    text = f"EMULATED: no model wrote this text. You asked:\n{said}\nA model would answer here, a few words at a time."
    pieces = tuple(_PIECE.findall(text))
    return pieces[: int(values.get("max_tokens", len(pieces)))]
