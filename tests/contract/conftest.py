"""Every implementation of the store's two ports, each on ground of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes.databases import copy_new_ones
from fakes.stores import Memory, MemoryLedger, MemoryPredictionStore
from imagen.ports import Ledger, PredictionStore
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger
from imagen.store.predictions import SqlPredictionStore


@pytest.fixture(autouse=True)
def _databases(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_new_ones(monkeypatch)


@dataclass(frozen=True)
class House:
    """A store and a ledger that share their ground."""

    store: PredictionStore
    ledger: Ledger


@pytest.fixture(params=["sqlite", "memory"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    if request.param == "memory":
        memory = Memory()
        yield House(MemoryPredictionStore(memory), MemoryLedger(memory))
        return
    database = Database(tmp_path / "imagen.db")
    yield House(SqlPredictionStore(database), SqlLedger(database))
    database.close()


@pytest.fixture
def store(house: House) -> PredictionStore:
    return house.store


@pytest.fixture
def ledger(house: House) -> Ledger:
    return house.ledger
