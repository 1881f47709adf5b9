"""Kill -9 at any point, then the same command or `predictions adopt`: nothing is bought twice, the picture is there."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagen.emulator import EmulatorThread

CREATE, GET = "predictions.create", "predictions.get"
COMMAND = ("generate", "a red fox in the snow", "-o", "fox.png", "--json")


@pytest.fixture
def practised(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command with a token, spoken to by the emulator."""
    cli.use(replicate_emulator.url)
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "3"
    return cli


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def started_and_killed(cli: Any, when: Callable[[], object]) -> None:
    process = cli.start(*COMMAND)
    wait_for(lambda: when() or process.process.poll() is not None)
    process.stop(signal.SIGKILL)
    assert process.process.returncode == -signal.SIGKILL


def only_id(data: Path) -> str:
    with sqlite3.connect(data / "imagen.db") as connection:
        ((found,),) = connection.execute("SELECT id FROM predictions").fetchall()
    connection.close()
    return str(found)


def rows(data: Path, table: str) -> int:
    if not (data / "imagen.db").exists():
        return 0
    connection = sqlite3.connect(data / "imagen.db")
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a table's name
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


POINTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "the create is still on its way": [("delay", {"operation": CREATE, "seconds": 1.0})],
    "the create is held open": [("slow", {"run_seconds": 1.5})],
    "it is being followed": [("hold_returns_starting", {}), ("slow", {"run_seconds": 1.5})],
    "its picture is being fetched": [("delay", {"operation": "delivery", "seconds": 1.0})],
}


def reached(name: str, emulator: EmulatorThread, data: Path) -> Callable[[], object]:
    entries = emulator.journal.entries
    return {
        "the create is still on its way": lambda: rows(data, "predictions") and time.sleep(0.3) is None,
        "the create is held open": lambda: emulator.purchases,
        "it is being followed": lambda: entries(operation=GET),
        "its picture is being fetched": lambda: rows(data, "imagen_usage"),
    }[name]


@pytest.mark.parametrize("again", ["the same command", "predictions adopt"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_while(point: str, again: str, practised: Any, replicate_emulator: EmulatorThread) -> None:
    for fault, attributes in POINTS[point]:
        replicate_emulator.add_fault(fault, **attributes)
    started_and_killed(practised, reached(point, replicate_emulator, practised.data))
    assert not (practised.work / "fox.png").exists()

    if again == "the same command":
        done = practised(*COMMAND, code=0)
        assert done.json["files"] == [str(practised.work / "fox.png")]
    else:
        practised("predictions", "adopt", only_id(practised.data), code=0)
    assert (practised.work / "fox.png").is_file()
    assert replicate_emulator.purchases == 1
    assert rows(practised.data, "predictions") == 1
    assert rows(practised.data, "imagen_usage") == 1
    assert not list((practised.data / "incoming").glob("*.part")) or point == "its picture is being fetched"


def test_killed_before_the_create_was_sent(practised: Any, replicate_emulator: EmulatorThread) -> None:
    """Nothing was bought, nobody can know: the same command looks first, waits the grace, then buys once."""
    replicate_emulator.add_fault("drop", operation=CREATE, times=1)
    started_and_killed(practised, lambda: replicate_emulator.journal.entries(operation=CREATE))
    practised(*COMMAND, code=0)
    assert replicate_emulator.purchases == 1


def test_killed_at_random_moments(practised: Any, replicate_emulator: EmulatorThread) -> None:
    """Ten kills in a row anywhere in the life of the command; then it is let through."""
    replicate_emulator.add_fault("slow", run_seconds=2.0, times=None)
    chance = random.Random(20261122)
    for number in range(10):
        # a second of imports, in which nothing of ours happens; all others begin after them
        cold = number < 2
        process = practised.start(*COMMAND, cold=cold)
        time.sleep(chance.uniform(0.3, 2.2) if cold else chance.uniform(0.0, 1.0))  # to the last rename
        process.stop(signal.SIGKILL)
        assert replicate_emulator.purchases <= 1
        if rows(practised.data, "predictions WHERE delivered_at IS NOT NULL"):
            break  # this time everything was done before the kill came
    else:
        practised(*COMMAND, code=0)
    assert replicate_emulator.purchases == 1
    assert (practised.work / "fox.png").is_file()


def test_two_at_once_are_two_wishes(practised: Any, replicate_emulator: EmulatorThread) -> None:
    """A living process's work is not taken away: two terminals asking for the same get a picture each."""
    replicate_emulator.add_fault("slow", run_seconds=2.0, times=None)
    first = practised.start("generate", "a fox", "-o", "one.png")
    wait_for(lambda: replicate_emulator.purchases)
    practised("generate", "a fox", "-o", "two.png", code=0)
    first.process.wait(20)
    assert replicate_emulator.purchases == 2
    assert (practised.work / "one.png").is_file()
    assert (practised.work / "two.png").is_file()


def test_ctrl_c_cancels_upstream_and_says_so(practised: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("slow", run_seconds=30.0)
    process = practised.start(*COMMAND)
    wait_for(lambda: replicate_emulator.purchases)
    done = process.stop(signal.SIGINT)
    assert done.code == 130
    assert "canceled" in done.stderr
    assert [entry.status for entry in replicate_emulator.journal.entries(operation="predictions.cancel")] == [
        200
    ]
    usage = practised("usage", "--json").json
    assert usage is not None


def test_ctrl_c_while_fetching_says_how_to_get_the_picture(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation="delivery", seconds=5)
    process = practised.start(*COMMAND)
    wait_for(lambda: rows(practised.data, "imagen_usage"))
    done = process.stop(signal.SIGINT)
    assert done.code == 130
    assert f"imagen predictions adopt {only_id(practised.data)}" in done.stderr
    replicate_emulator.clear_faults()
    practised("predictions", "adopt", only_id(practised.data), code=0)
    assert (practised.work / "fox.png").is_file()
    assert replicate_emulator.purchases == 1
