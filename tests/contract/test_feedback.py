"""What `ports.FeedbackStore` promises, of every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import BEGINNING
from imagen.domain.feedback import Feedback
from imagen.ports import FeedbackStore
from imagen.store.database import Database
from imagen.store.feedback import SqlFeedback

pytestmark = pytest.mark.anyio


def said(number: int = 1, **facts: Any) -> Feedback:
    given = {
        "prediction_id": f"pred_{number}",
        "caller": "shop",
        "model": "acme/brush",
        "kind": "photo",
        "kept": True,
        "at": BEGINNING + timedelta(minutes=number),
    }
    return Feedback(**given | facts)


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeedbackStore]:
    database = Database(tmp_path / "imagen.db")
    yield SqlFeedback(database)
    database.close()


async def test_what_was_said_comes_back_whole_the_newest_first(store: FeedbackStore) -> None:
    assert list(await store.list()) == []
    for number in (1, 3, 2):
        await store.put(said(number, kept=number != 2))
    assert list(await store.list()) == [said(3), said(2, kept=False), said(1)]


async def test_the_last_word_on_a_prediction_counts(store: FeedbackStore) -> None:
    await store.put(said())
    later = said(kept=False, kind="text", at=BEGINNING + timedelta(days=1))
    assert await store.put(later) == later
    assert list(await store.list()) == [later]


async def test_the_same_again_changes_nothing(store: FeedbackStore) -> None:
    await store.put(said())
    assert await store.put(said(at=BEGINNING + timedelta(days=1))) == said()
    assert list(await store.list()) == [said()]


async def test_callers_are_kept_apart(store: FeedbackStore) -> None:
    await store.put(said(1))
    await store.put(said(2, caller="app"))
    assert [one.prediction_id for one in await store.list(caller="app")] == ["pred_2"]
    assert list(await store.list(caller="nobody")) == []
    assert await store.erase(caller="shop") == 1
    assert await store.erase(caller="shop") == 0
    assert list(await store.list()) == [said(2, caller="app")]


async def test_all_can_be_forgotten(store: FeedbackStore) -> None:
    for number in range(3):
        await store.put(said(number))
    assert await store.erase() == 3
    assert list(await store.list()) == []
