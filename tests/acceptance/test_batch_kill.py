"""Kill -9 of a gateway in the middle of a batch, at random moments: nothing is lost, nothing is bought or ends twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killing import Gateway, Tally, count, work_off

from imagen.emulator import EmulatorThread

ITEMS, KILLS = 500, 10


@pytest.mark.timeout(180)
@pytest.mark.replicate_emulator(run_seconds=0.5)
def test_five_hundred_items_survive_ten_kills(tmp_path: Path, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.set_mode(creates_per_minute=0, others_per_minute=0)
    gateway, tally = Gateway(tmp_path, replicate_emulator.url), Tally()
    gateway.start()
    try:
        batch_id = gateway.accept("a fox", ITEMS)
        tally.kills = work_off(
            gateway,
            batch_id,
            kills=KILLS,
            chance=random.Random(),
            within=150,
        )
        count(gateway, replicate_emulator, tally, batch_id, ITEMS)
        order = [line["index"] for line in gateway.results(batch_id)]
    finally:
        gateway.kill()
    assert tally.kills == KILLS
    assert (tally.succeeded, tally.lost, tally.ended_twice) == (ITEMS, 0, 0)
    assert (tally.bought, tally.bought_twice, tally.entries) == (ITEMS, 0, ITEMS)
    assert (tally.pictures, tally.places_held) == (ITEMS, 0)
    assert order == list(range(ITEMS))
