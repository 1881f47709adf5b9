"""`--cache` and `cache.keep`: the same command again costs nothing and says so."""

from __future__ import annotations

from typing import Any

import pytest

from imagen.emulator import EmulatorThread

FOX = ("generate", "a fox", "--seed", "7")


@pytest.mark.replicate_emulator(run_seconds=0.05)
def test_the_same_command_again_costs_nothing_and_says_so(
    cli: Any, replicate_emulator: EmulatorThread
) -> None:
    cli.use(replicate_emulator.url)
    first = cli(*FOX, "--cache", "-o", "one.png", "--json", code=0).json
    assert (first["cached"], first["charged"], first["cost_usd_estimate"]) == (False, True, 0.003)
    cli.env["IMAGEN_CACHE__KEEP"] = "true"
    again = cli(*FOX, "-o", "two.png", "--json", code=0)
    assert "from the cache" in again.stderr
    assert first["id"] in again.stderr
    assert "nothing was bought" in again.stderr
    facts = [again.json[name] for name in ("cached", "charged", "cost_usd_estimate", "prediction_id")]
    assert facts == [True, False, 0.0, None]
    assert (cli.work / "one.png").read_bytes() == (cli.work / "two.png").read_bytes()
    assert replicate_emulator.purchases == 1
    new = cli(*FOX, "--new", "-o", "three.png", "--json", code=0).json
    assert new["cached"] is False
    assert replicate_emulator.purchases == 2
    told = cli("usage", code=0).stdout
    assert "pictures of equal ones, not counted above: $0.003 saved." in told
    (total,) = [line.split() for line in told.splitlines() if line.startswith("total")]
    assert total[1:3] == ["2", "2"]
