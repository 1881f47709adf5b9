"""Kill -9, a thousand times: what is lost, bought twice or ends twice. All of it should be nothing.

    make soak                        or    .venv/bin/python bench/soak.py [kills] [items in each batch]

A gateway works off batches in a process of its own, is killed at random moments and started again. After each batch
the items, the purchases at the emulator, the ledger, the pictures and the places are counted, and the tally is printed.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "acceptance"))

from killing import Gateway, Tally, count, work_off

from imagen.emulator import EmulatorThread


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    items = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    seed = random.randrange(10**9)  # noqa: S311 - moments, no secret
    chance = random.Random(seed)  # noqa: S311 - as above
    tally, began, number = Tally(), time.monotonic(), 0
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder, EmulatorThread(run_seconds=0.4) as emulator:
        emulator.set_mode(creates_per_minute=0, others_per_minute=0)
        gateway = Gateway(Path(folder), emulator.url)
        gateway.start()
        try:
            while tally.kills < kills:
                number += 1
                batch_id = gateway.accept(f"round {number} fox", items)
                left = kills - tally.kills
                tally.kills += work_off(gateway, batch_id, kills=left, chance=chance, within=600)
                count(gateway, emulator, tally, batch_id, items)
                print(f"{time.monotonic() - began:6.0f} s  {tally}", flush=True)
        finally:
            gateway.kill()
    wrong = tally.lost or tally.ended_twice or tally.bought_twice or tally.entries != tally.bought
    sys.exit("something was lost, or done twice" if wrong else 0)


if __name__ == "__main__":
    main()
