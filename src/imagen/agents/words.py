"""What people at a terminal are told, in the words of whoever has tools instead."""

from __future__ import annotations

import re

_WORDS = (
    (re.compile(r"--max-cost"), "max_cost_usd"),
    (re.compile(r"use --force or another name"), "use another name"),  # no tool writes over a file
    (re.compile(r"`imagen models`"), "list_models"),
    (re.compile(r"`imagen models [^`]+`"), "describe_model"),
    (re.compile(r"`imagen predictions show(?: [^`]+)?`"), "get_prediction"),
)
"""What sentences name, and what that is called here."""
_COMMAND = re.compile(r"`imagen [^`]+`")


def in_words_of_tools(sentence: str, *, local: bool) -> str:
    """A sentence that names tools in place of commands.

    Args:
        sentence: as people at a terminal are told.
        local: commands can be run where it is read; else it says of those that are left whose they are.
    """
    for there, here in _WORDS:
        sentence = there.sub(here, sentence)
    if local or not _COMMAND.search(sentence):
        return sentence
    return f"{sentence} Commands are for whoever runs the gateway."
