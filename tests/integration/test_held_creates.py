"""What a create that is held open until its end costs: how often it goes to the database."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, running_gateway

from imagen.emulator import EmulatorThread
from imagen.store.database import Database

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.3)]

CREATES = 20
MOST_READS, MOST_WRITES = 8, 9
"""A create. Each costs a fifth of a millisecond and more; a look a second for each who waits would be the most of them."""


def _counted(do: Callable[[Database, Any], Any], asked: Counter[str]) -> Callable[[Database, Any], Any]:
    def counted(self: Database, job: Any) -> Any:
        asked[do.__name__] += 1
        return do(self, job)

    return counted


async def test_a_create_that_is_held_open_asks_the_database_a_few_times_only(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    for name in ("read", "write"):
        monkeypatch.setattr(Database, name, _counted(getattr(Database, name), asked))
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def create(number: int) -> str:
            answer = await gateway.request(
                "POST",
                "/v1/models/black-forest-labs/flux-schnell/predictions",
                json={"input": {"prompt": f"fox {number}"}},
                headers=ADMIN | {"Prefer": "wait"},
            )
            assert (answer.status, answer.json()["status"]) == (201, "succeeded")
            return str(answer.json()["id"])

        await create(0)
        asked.clear()
        made = await asyncio.gather(*map(create, range(1, CREATES + 1)))
    assert len(set(made)) == CREATES
    # Apart from the loops beside it, which are as busy for one as for many.
    assert asked["read"] <= MOST_READS * CREATES + 20
    assert asked["write"] <= MOST_WRITES * CREATES + 20
