"""A row that cannot be read keeps nobody from the others, is told, and is there again when it was mended."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.make import make_prediction
from imagen.domain.prediction import Prediction
from imagen.errors import StoreError
from imagen.store.database import Database
from imagen.store.predictions import SqlPredictionStore

pytestmark = pytest.mark.anyio

DAMAGE = {
    "a status of a later release": ("status", "dreaming"),
    "input that is no JSON": ("input", "{"),
    "files that are null": ("files", "null"),
    "an instant that is none": ("sent_at", "yesterday"),
    "text that is no UTF-8": ("logs", b"\xff\xfe"),
    "an output that is a number": ("output", "7"),
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "imagen.db")
    yield opened
    opened.close()


def write(database: Database, column: str, value: Any, prediction_id: str) -> None:
    connection = sqlite3.connect(database.path)
    put = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
    with connection:
        connection.execute(
            f"UPDATE predictions SET {column} = {put} WHERE id = ?",  # noqa: S608 - a column's name
            (value, prediction_id),
        )
    connection.close()


async def added(store: SqlPredictionStore, count: int) -> list[Prediction]:
    made = [make_prediction(number) for number in range(1, count + 1)]
    for one in made:
        await store.add(one)
    return made


@pytest.mark.parametrize("damage", DAMAGE)
async def test_the_others_are_read_and_the_damaged_one_is_told(
    database: Database, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = SqlPredictionStore(database)
    made = await added(store, 3)
    write(database, *DAMAGE[damage], made[1].id)

    with caplog.at_level(logging.ERROR):
        first = await store.unfinished()
        second = await store.unfinished(besides="somebody")

    # One whose damage is its status may count as unfinished or not; the others always do.
    assert [one.id for one in first] == [made[0].id, made[2].id]
    assert [one.id for one in second] == [made[0].id, made[2].id]
    assert list(await store.unreadable()) == [made[1].id]
    assert [record.getMessage() for record in caplog.records] == [
        f"{made[1].id} is left out: its row in the database cannot be read"
    ]


async def test_one_of_hundreds_is_found_and_the_order_stays(database: Database) -> None:
    store = SqlPredictionStore(database)
    made = await added(store, 230)
    for number in (0, 117, 229):
        write(database, "input", "{", made[number].id)

    found = await store.unfinished()

    sound = [one.id for number, one in enumerate(made) if number not in {0, 117, 229}]
    assert [one.id for one in found] == sound
    assert [one.id for one in await store.list(limit=5)] == sound[::-1][:4]
    assert len(await store.unreadable()) == 3


async def test_a_damaged_one_that_is_asked_for_by_name_is_an_error_of_the_store(database: Database) -> None:
    store = SqlPredictionStore(database)
    (one,) = await added(store, 1)
    write(database, "input", "{", one.id)

    with pytest.raises(StoreError, match="damaged"):
        await store.get(one.id)


async def test_one_that_was_mended_is_there_again(database: Database) -> None:
    store = SqlPredictionStore(database)
    (one,) = await added(store, 1)
    write(database, "files", "null", one.id)
    assert list(await store.unfinished()) == []
    assert list(await store.unreadable()) == [one.id]

    write(database, "files", "[]", one.id)

    assert list(await store.unreadable()) == []
    assert [left.id for left in await store.unfinished()] == [one.id]
