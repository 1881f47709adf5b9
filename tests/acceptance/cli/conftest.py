"""Predictions and ledger entries that were there before a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imagen.domain.prediction import Prediction
from imagen.domain.usage import UsageEntry
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from imagen.store.predictions import SqlPredictionStore


@pytest.fixture
def remember(cli: Any) -> Callable[..., None]:
    """Writes entries and predictions into the database of the commands."""

    def write(*things: UsageEntry | Prediction) -> None:
        database = Database(cli.data / "imagen.db")
        store = SqlPredictionStore(database)

        async def run() -> None:
            for thing in things:
                if isinstance(thing, Prediction):
                    await store.add(thing)
            await SqlLedger(database).record([one for one in things if isinstance(one, UsageEntry)])

        try:
            asyncio.run(run())
        finally:
            database.close()

    return write
