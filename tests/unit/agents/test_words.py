"""What agents elsewhere are told names tools of theirs, and nothing of ours."""

from __future__ import annotations

import pytest

from imagen.agents.words import in_words_of_tools
from imagen.errors import ImagenError, InvalidRequest, SchemaMismatch, StoreBusy, StoreError, for_elsewhere


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ("`imagen models acme/painter` lists its parameters.", "describe_model lists its parameters."),
        ("`imagen models` lists the known models.", "list_models lists the known models."),
        ("`imagen predictions show pred_1` has its addresses", "get_prediction has its addresses"),
        ("Leave --max-cost away.", "Leave max_cost_usd away."),
        ("fox.png exists already: use --force or another name", "fox.png exists already: use another name"),
    ],
)
def test_commands_are_tools_where_there_is_one(told: str, read: str) -> None:
    assert in_words_of_tools(told, local=False) == in_words_of_tools(told, local=True) == read


def test_of_other_commands_it_is_said_whose_they_are() -> None:
    told = "`imagen predictions adopt pred_1` fetches it."
    assert in_words_of_tools(told, local=True) == told
    assert in_words_of_tools(told, local=False) == f"{told} Commands are for whoever runs the gateway."


@pytest.mark.parametrize("kind", [StoreError, StoreBusy, SchemaMismatch])
def test_a_database_tells_others_nothing_of_our_files(kind: type[ImagenError]) -> None:
    told = for_elsewhere(
        kind("the database /home/me/imagen.db failed", hint="Look at /home/me", retry_after=2.0)
    )
    assert (told.code, told.retry_after) == (kind.code, 2.0)
    assert "/home" not in str(told)
    other = InvalidRequest("a sentence")
    assert for_elsewhere(other) is other
