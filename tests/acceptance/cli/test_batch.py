"""`imagen batch` and `imagen batches`: a file is checked whole, bought once, and taken up again after anything."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.emulator import EmulatorThread

from ..conftest import COMMAND  # noqa: TID252 - the command as the fixtures run it

CREATE = "predictions.create"
PRICE = 0.003
SLOW_SECONDS = 40.0
"""Of the emulator's clock, which a test lets pass when it wants to."""
TAKES_NOTHING = "/proc"
"""A folder that says no when it comes to it, to root too, and that permissions do not tell of."""
READS_STDIN = (["0", "0x0"], ["63", "0x0"])
"""How a process that waits for standard input is seen by the kernel: the number of `read`, on either processor, and the file."""
GATEWAYS_OWN = "r8_the_gateways_own_token"


@pytest.fixture
def practised(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command with a token, spoken to by the emulator."""
    cli.use(replicate_emulator.url)
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "2"
    return cli


def write(cli: Any, name: str, *rows: Any) -> Path:
    """A file of rows: texts as they are, everything else as JSON."""
    path = Path(cli.work / name)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def results_of(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def wait_for(condition: Callable[[], object], *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def cli_batches(cli: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cli("batches", "list", "--json", code=0).json
    return found


def is_paused(data: Path, *, queued: int = 0) -> bool:
    """Whether the only batch is paused and so many of its items wait, as the database has it."""
    with contextlib.closing(sqlite3.connect(data / "imagen.db")) as connection:
        (control,) = connection.execute("SELECT control FROM batches").fetchone()
        (waiting,) = connection.execute("SELECT count(*) FROM items WHERE status = 'queued'").fetchone()
    return bool(control == "pause" and waiting == queued)


def is_closed(data: Path) -> bool:
    """Whether the only batch has ended, as the database has it."""
    with contextlib.closing(sqlite3.connect(data / "imagen.db")) as connection:
        (at,) = connection.execute("SELECT ended_at FROM batches").fetchone()
    return at is not None


def id_of(cli: Any) -> str:
    """The id of the only batch."""
    (one,) = cli("batches", "list", "--json", code=0).json
    return str(one["id"])


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"fox number {number}", "seed": number} for number in range(1, count + 1)]


def begin(cli: Any, emulator: EmulatorThread, count: int, *args: str, bought: int) -> Any:
    """A batch of so many rows in a process of its own, whose predictions run until `let_end`."""
    emulator.add_fault("slow", run_seconds=SLOW_SECONDS, times=None)
    write(cli, "foxes.jsonl", *rows(count))
    process = cli.start("batch", "foxes.jsonl", *args)
    wait_for(lambda: emulator.purchases >= bought or process.process.poll() is not None)
    return process


def let_end(emulator: EmulatorThread) -> None:
    """All that runs, and what is bought from now on is quick."""
    emulator.clear_faults()
    emulator.clock.advance(SLOW_SECONDS)


def check_pictures(records: list[dict[str, Any]]) -> None:
    """Each row succeeded and has a picture of its own, whole, with its own prompt in it."""
    names = [name for record in records for name in record["files"]]
    assert len(set(names)) == len(records)
    for record in records:
        assert record["status"] == "succeeded", record
        (name,) = record["files"]
        with Image.open(name) as image:
            image.load()
            assert image.text["Description"] == record["prompt"]


# --- every form ------------------------------------------------------------------------------------------


def test_line_i_of_the_results_is_row_i_of_the_file(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(
        practised, "foxes.jsonl",
        {"prompt": "a red fox", "seed": 7}, "", '"an owl"', {"prompt": "a bear", "output_filename": "bears/one.png"},
        {"prompt": "a cat", "count": 2, "aspect_ratio": "16:9"},
    )  # fmt: skip
    done = practised("batch", "foxes.jsonl", "-o", "out", "--json", code=0)
    report = done.json
    assert (report["status"], report["total"], report["succeeded"], report["images"]) == (
        "succeeded",
        4,
        4,
        5,
    )
    assert report["cost_usd"] == report["quoted_usd"] == pytest.approx(5 * PRICE)
    records = results_of(report["results"])
    assert Path(report["results"]) == practised.work / "foxes.results.jsonl"
    assert [record["index"] for record in records] == [0, 1, 2, 3]
    assert [record["line"] for record in records] == [1, 3, 4, 5]
    assert [record["prompt"] for record in records] == ["a red fox", "an owl", "a bear", "a cat"]
    assert records[0]["files"] == [str(practised.work / "out" / "001-a-red-fox-7.png")]
    assert records[2]["files"] == [str(practised.work / "out" / "bears" / "one.png")]
    assert [Path(name).name for name in records[3]["files"]] == [
        f"004-a-cat-{records[3]['seed']}_{number}.png" for number in (1, 2)
    ]
    assert all(record["charged"] and record["attempts"] == 1 for record in records)
    check_pictures(records[:3])
    assert replicate_emulator.purchases == 4


def test_cells_of_a_table_mean_what_the_model_takes_them_for(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(
        practised, "foxes.csv", "prompt,seed,go_fast,aspect_ratio", '"a fox, red",7,false,16:9', "an owl,,,"
    )
    report = practised("batch", "foxes.csv", "--opt", "output_quality=70", "--json", code=0).json
    records = results_of(report["results"])
    check_pictures(records)
    inputs = {
        entry.body["input"]["prompt"]: entry.body["input"]
        for entry in replicate_emulator.journal.entries(operation=CREATE)
    }
    assert (inputs["a fox, red"]["seed"], inputs["a fox, red"]["go_fast"]) == (7, False)
    assert inputs["a fox, red"]["aspect_ratio"] == "16:9"
    assert "go_fast" not in inputs["an owl"]
    assert inputs["an owl"]["output_quality"] == 70
    assert Path(report["folder"]) == practised.data / "pictures" / "foxes"


def test_yaml_says_once_what_all_tasks_have_in_common(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(
        practised, "foxes.yaml",
        "model: flux-schnell", "aspect_ratio: 16:9", "tasks:", "  - a fox  # red", "  - {prompt: an owl, aspect_ratio: 1:1}",
    )  # fmt: skip
    practised("batch", "foxes.yaml", "-o", "{index:02}-{model}.{ext}", code=0)
    assert sorted(path.name for path in practised.work.glob("*.png")) == [
        "01-flux-schnell.png",
        "02-flux-schnell.png",
    ]
    ratios = [
        entry.body["input"]["aspect_ratio"] for entry in replicate_emulator.journal.entries(operation=CREATE)
    ]
    assert sorted(ratios) == ["16:9", "1:1"]


def test_prompts_may_come_through_a_pipe_and_results_go_out_through_one(practised: Any) -> None:
    done = practised(
        "batch", "-", "--format", "txt", "--results", "-", "-o", "out/", stdin="a fox\n\nan owl\n", code=0
    )
    records = [json.loads(line) for line in done.lines]
    check_pictures(records)
    assert [record["line"] for record in records] == [1, 3]


def test_paths_alone_stand_on_standard_output_in_a_pipe(practised: Any) -> None:
    write(practised, "foxes.jsonl", '"a fox"', '"an owl"')
    done = practised("batch", "foxes.jsonl", code=0)
    records = results_of(practised.data / "pictures" / "foxes.results.jsonl")
    assert done.lines == [name for record in records for name in record["files"]]
    assert "2 of 2 ended" in done.stderr


def test_without_a_token_it_is_practice_and_says_so(cli: Any) -> None:
    write(cli, "foxes.txt", "a fox", "an owl")
    done = cli("batch", "foxes.txt", "--json", code=0)
    assert done.json["practice"] is True
    assert "practice: these pictures come from the built-in emulator" in done.stderr


# --- refused ---------------------------------------------------------------------------------------------


def test_one_wrong_row_refuses_the_whole_file_and_every_mistake_is_told(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(
        practised, "foxes.jsonl",
        {"prompt": "a fox"}, {"prompt": "a fox", "sed": 7}, {"prompt": "a fox", "width": "wide"},
        {"prompt": "a fox", "output": "../fox.png"}, {"prompt": "a fox", "model": "nobody/nothing"},
        {"prompt": "a fox", "input_image": "missing.png"}, {"prompt": "a fox", "output": "x"}, {"prompt": "b", "output": "x"},
    )  # fmt: skip
    done = practised("batch", "foxes.jsonl", "-o", "out/", code=2)
    for part in (
        "line 2, sed: this model has no such parameter; did you mean seed?",
        "line 3, width: it must be a whole number",
        "line 4, output: it must be the name of a file below the folder",
        "line 5, model: ",
        "line 6, input_image: 'missing.png' is neither a file nor an https address",
        "line 8, output: x.png is the picture of line 7 already",
        "Nothing was bought.",
    ):
        assert part in done.stderr, done
    assert "line 1" not in done.stderr
    assert replicate_emulator.purchases == 0
    assert cli_batches(practised) == []


def test_mistakes_of_reading_of_models_and_of_semaphores_are_told_together_in_the_order_of_their_lines(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    practised("semaphore", "register", "gpu", "2", code=0)
    write(
        practised, "foxes.jsonl",
        {"prompt": "a fox", "sed": 7}, "{oops", {"prompt": "an owl", "semaphore": "gpu"}, {"seed": 7},
        {"prompt": "a cat", "semaphore": "nobody"}, {"prompt": "a bear", "external_semaphore_id": "nobody"},
        {"prompt": "a wolf", "width": "wide"},
    )  # fmt: skip
    done = practised("batch", "foxes.jsonl", "--semaphore", "none", "--json", code=2)
    problems = {problem["field"]: problem["message"] for problem in done.json["problems"]}
    assert list(problems) == [
        "--semaphore", "line 1, sed", "line 2", "line 4, prompt", "line 5, semaphore", "line 7, width",
    ]  # fmt: skip
    assert "did you mean seed?" in problems["line 1, sed"]
    assert "'nobody'" in problems["line 5, semaphore"]
    assert problems["line 5, semaphore"].endswith("; 2 rows name it")
    assert "'none'" in problems["--semaphore"]
    assert done.json["detail"] == "foxes.jsonl: it has 6 mistakes"
    assert replicate_emulator.purchases == 0
    assert cli_batches(practised) == []


@pytest.mark.parametrize("name", ["foxes.json", "foxes.yaml"])
def test_rows_of_one_line_are_told_apart_by_their_place_in_the_list(practised: Any, name: str) -> None:
    write(
        practised, name,
        '[{"prompt": "a fox"}, {"prompt": "a fox", "sed": 7}, {"prompt": 7}, {"prompt": "a fox", "output": "x"},'
        ' {"prompt": "b", "output": "x"}]',
    )  # fmt: skip
    told = practised("batch", name, code=2).stderr
    for part in (
        "line 1, item 2, sed: ",
        "line 1, item 3, prompt: ",
        "line 1, item 5, output: x.png is the picture of line 1, item 4",
    ):
        assert part in told
    assert f"imagen: {name}: it has 3 mistakes. Nothing was bought." in told


def test_of_very_many_mistakes_people_are_told_the_first_and_programs_a_thousand(practised: Any) -> None:
    write(practised, "foxes.txt", *(f"fox {number}" for number in range(1200)))
    done = practised("batch", "foxes.txt", "--opt", "sed=7", "--json", code=2)
    assert done.json["detail"] == "foxes.txt: it has 1,200 mistakes"
    assert done.json["hint"] == "And 200 more. Nothing was bought."
    assert [problem["field"] for problem in done.json["problems"]] == [
        f"line {line}, sed" for line in range(1, 1001)
    ]
    assert "line 20, sed" in done.stderr
    assert "line 21, sed" not in done.stderr
    assert "and 1,180 more; --json names up to 1,000" in done.stderr


def test_lines_that_are_none_are_told_by_number(practised: Any) -> None:
    write(practised, "foxes.jsonl", '"a fox"', "{oops", '{"seed": 7}')
    done = practised("batch", "foxes.jsonl", "--json", code=2)
    fields = [problem["field"] for problem in done.json["problems"]]
    assert fields == ["line 2", "line 3, prompt"]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ((), "Give a FILE"),
        (("foxes.jsonl", "-o", "fox.png"), "is one file for 2 rows"),
        (("foxes.jsonl", "--max-cost", "0.001"), "more than the $0.001 that you allow"),
        (("foxes.jsonl", "--semaphore", "nobody"), "nobody"),
        (("--resume", "batch_12345"), "no batch here is called"),
        (("foxes.jsonl", "--results", "-", "--json"), "standard output has the JSON"),
        (("foxes.jsonl", "--results", "folder/"), "results: folder/ is a folder; it must be a file"),
        (("foxes.jsonl", "--results", "folder/", "--dry-run"), "results: folder/ is a folder"),
        (("foxes.jsonl", "--results", "."), "results: . is a folder; it must be a file"),
        (
            ("foxes.jsonl", "--results", f"{TAKES_NOTHING}/nope"),
            f"results: nothing can be written to {TAKES_NOTHING}",
        ),
        (
            ("foxes.jsonl", "--results", f"{TAKES_NOTHING}/nope", "--dry-run"),
            "results: nothing can be written to",
        ),
        (
            ("foxes.jsonl", "-o", f"{TAKES_NOTHING}/nope/"),
            f"output: nothing can be written to {TAKES_NOTHING}",
        ),
        (("foxes.jsonl", "-o", f"{TAKES_NOTHING}/nope/", "--dry-run"), "output: nothing can be written to"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_bought(
    args: tuple[str, ...], part: str, practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(practised, "foxes.jsonl", '"a fox"', '"an owl"')
    done = practised("batch", *args)
    assert done.code in {2, 3}, done
    assert part in done.stderr, done
    assert replicate_emulator.purchases == 0


def test_a_dry_run_shows_the_quote_and_leaves_nothing_behind(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(practised, "foxes.jsonl", '"a fox"', {"prompt": "an owl", "count": 3})
    shown = practised("batch", "foxes.jsonl", "--dry-run", "-o", "out/", "--json", code=0).json
    assert (shown["rows"], shown["images"], shown["quoted_usd"]) == (2, 4, pytest.approx(4 * PRICE))
    assert shown["seconds"] > 0
    assert shown["bound_by"]
    line = practised("batch", "foxes.jsonl", "--dry-run", code=0).lines[0]
    assert line.startswith("foxes.jsonl: 2 rows, 4 pictures, about $0.012, ")
    assert replicate_emulator.purchases == 0
    assert not (practised.work / "out").exists()
    assert cli_batches(practised) == []


def test_pictures_that_are_there_are_replaced_by_force_alone(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(practised, "foxes.jsonl", {"prompt": "a fox", "output": "fox.png"})
    first = practised("batch", "foxes.jsonl", "-o", "out/", "--json", code=0).json
    refused = practised("batch", "foxes.jsonl", "-o", "out/", code=2)
    assert "line 1, output: " in refused.stderr or "exists already" in refused.stderr
    assert replicate_emulator.purchases == 1
    again = practised("batch", "foxes.jsonl", "-o", "out/", "--force", "--json", code=0).json
    assert replicate_emulator.purchases == 2
    assert first["results"] == again["results"]


def test_results_of_an_earlier_run_stay(practised: Any) -> None:
    write(practised, "foxes.jsonl", '"a fox"')
    first = practised("batch", "foxes.jsonl", "--json", code=0).json
    second = practised("batch", "foxes.jsonl", "--json", code=0).json
    assert first["results"] != second["results"]
    assert results_of(first["results"])[0]["files"] != results_of(second["results"])[0]["files"]
    named = practised("batch", "foxes.jsonl", "--results", first["results"], code=2)
    assert "exists already" in named.stderr


# --- what fails ------------------------------------------------------------------------------------------


def test_a_row_that_fails_fails_alone_and_can_be_tried_again(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("fail", prompt="a bear", preset="nsfw", times=1)
    write(practised, "foxes.jsonl", '"a fox"', '"a bear"', '"an owl"')
    done = practised("batch", "foxes.jsonl", "--json", code=5)
    assert "line 2: failed: " in done.stderr or done.json["failed"] == 1
    records = results_of(done.json["results"])
    assert [record["status"] for record in records] == ["succeeded", "failed", "succeeded"]
    assert records[1]["code"] == "prediction_failed"
    assert "NSFW" in records[1]["error"]
    assert records[1]["files"] == []

    batch = done.json["id"]
    shown = practised("batches", "show", batch, code=0).stdout
    assert "line 2: " in shown
    assert f"imagen batches retry {batch}" in shown
    assert practised("batches", "retry", batch, "--json", code=0).json["queued"] == 1
    again = practised("batch", "--resume", batch, "--json", code=0).json
    assert again["succeeded"] == 3
    records = results_of(done.json["results"])
    assert [record["attempts"] for record in records] == [1, 2, 1]
    check_pictures(records)
    assert replicate_emulator.purchases == 4


def test_an_account_without_credit_pauses_the_batch_until_somebody_goes_on(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("payment_required", operation=CREATE, times=None)
    write(practised, "foxes.jsonl", *rows(3))
    done = practised("batch", "foxes.jsonl", "--json", code=4)
    assert done.json["status"] == "paused"
    assert "not enough credit" in done.json["reason"]
    assert done.stderr.count("not enough credit") == 1  # however many rows were refused at once
    assert done.json["resume"] in done.stderr
    replicate_emulator.clear_faults()
    assert practised("batch", "--resume", done.json["id"], "--json", code=0).json["succeeded"] == 3
    assert replicate_emulator.purchases == 3


def test_the_same_file_is_not_bought_again_in_other_words(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("payment_required", operation=CREATE, times=None)
    write(practised, "foxes.jsonl", *rows(2))
    batch = practised("batch", "foxes.jsonl", "-o", "out/", "--json", code=4).json["id"]
    replicate_emulator.clear_faults()
    write(practised, "renamed.jsonl", *rows(2))
    for args in (
        ("foxes.jsonl",),
        ("foxes.jsonl", "-o", "other/", "--steps", "2"),
        ("renamed.jsonl", "-m", "flux-dev"),
    ):
        refused = practised("batch", *args, code=2)
        assert f"is the batch {batch} already, which has not ended" in refused.stderr
        assert f"imagen batch --resume {batch}" in refused.stderr
        assert "--new begins another one" in refused.stderr
    assert replicate_emulator.purchases == 0
    other = practised("batch", "foxes.jsonl", "-o", "other/", "--new", "--json", code=0).json
    assert (other["id"] != batch, other["succeeded"]) == (True, 2)
    assert replicate_emulator.purchases == 2


def test_steering_what_has_ended_says_that_nothing_was_done(cli: Any) -> None:
    write(cli, "foxes.txt", "a fox")
    batch = cli("batch", "foxes.txt", "--json", code=0).json["id"]
    for verb in ("pause", "resume", "cancel"):
        done = cli("batches", verb, batch, code=0)
        assert "nothing was done: it has ended already" in done.stderr
    done = cli("batches", "retry", batch, code=0)
    assert "nothing was done: nothing of it has failed, expired or was canceled" in done.stderr
    assert len(cli("batches", "list", "--limit", "100", "--json", code=0).json) == 1


# --- broken off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_waits_for_a_pipe_can_be_interrupted_once(practised: Any, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "batch", "-"],
        env=practised.env, cwd=practised.work, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        syscall = Path(f"/proc/{process.pid}/syscall")
        wait_for(lambda: syscall.read_text().split()[:2] in READS_STDIN or process.poll() is not None)
        process.send_signal(number)
        process.wait(timeout=10)
        assert process.stderr is not None
        assert process.stderr.read() == "imagen: interrupted\n"
    assert process.returncode == 130


def test_ctrl_c_pauses_and_resume_goes_on_with_nothing_bought_twice(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    practised.env["IMAGEN_LIMITS__CONCURRENT"] = "2"
    process = begin(practised, replicate_emulator, 8, "-o", "out/", "--json", bought=2)
    process.process.send_signal(signal.SIGINT)
    wait_for(lambda: is_paused(practised.data, queued=6))
    let_end(replicate_emulator)
    done = process.stop(0)
    assert done.code == 130, done
    assert replicate_emulator.purchases == 2
    report = done.json
    assert (report["status"], report["running"], report["succeeded"]) == ("paused", 0, 2)
    assert f"imagen batch --resume {report['id']}" in done.stderr
    statuses = [record["status"] for record in results_of(report["results"])]
    assert (len(statuses), statuses.count("queued")) == (8, 6)

    again = practised("batch", "--resume", report["id"], "--json", code=0).json
    assert (again["succeeded"], again["results"]) == (8, report["results"])
    check_pictures(results_of(report["results"]))
    assert replicate_emulator.purchases == 8


def test_ctrl_c_when_everything_is_on_its_way_waits_for_the_end(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    process = begin(practised, replicate_emulator, 3, "-o", "out/", "--json", bought=3)
    process.process.send_signal(signal.SIGINT)
    wait_for(lambda: is_paused(practised.data))
    let_end(replicate_emulator)
    done = process.stop(0, seconds=20)
    assert (done.code, done.json["status"], done.json["succeeded"]) == (0, "succeeded", 3), done
    assert is_closed(practised.data)

    # As a release left it that did not see the end of one that was paused meanwhile.
    with contextlib.closing(sqlite3.connect(practised.data / "imagen.db", isolation_level=None)) as database:
        database.execute("UPDATE batches SET ended_at = NULL, control = 'pause'")
    assert practised("batch", "--resume", done.json["id"], "--json", code=0).json["status"] == "succeeded"
    assert is_closed(practised.data)
    assert replicate_emulator.purchases == 3


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT), (signal.SIGKILL,)])
def test_whatever_ends_it_resume_buys_nothing_again(
    signals: tuple[signal.Signals, ...], practised: Any, replicate_emulator: EmulatorThread
) -> None:
    process = begin(practised, replicate_emulator, 5, "-o", "out/", bought=5)
    batch = id_of(practised)
    refused = practised("batch", "foxes.jsonl", "-o", "out/", code=2)
    assert f"imagen batch --resume {batch}" in refused.stderr
    if len(signals) == 2:
        process.process.send_signal(signals[0])
        wait_for(lambda: is_paused(practised.data))
    done = process.stop(signals[-1])
    killed = signals[-1] is signal.SIGKILL
    assert done.code == (-signal.SIGKILL if killed else 130), done
    assert killed or f"imagen batch --resume {batch}" in done.stderr
    let_end(replicate_emulator)
    report = practised("batch", "--resume", batch[:16], "--json", code=0).json
    assert report["succeeded"] == 5
    check_pictures(results_of(report["results"]))
    assert replicate_emulator.purchases == 5


def test_a_batch_that_a_living_process_works_on_is_only_looked_at(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    process = begin(practised, replicate_emulator, 2, "--json", bought=2)
    batch = id_of(practised)
    beside = practised.start("batch", "--resume", batch, "--json")
    assert "another process" in beside.process.stderr.readline()
    let_end(replicate_emulator)
    assert beside.stop(0).json["succeeded"] == 2
    assert process.stop(0).code == 0
    assert replicate_emulator.purchases == 2


def test_a_running_batch_is_canceled_from_beside(practised: Any, replicate_emulator: EmulatorThread) -> None:
    practised.env["IMAGEN_LIMITS__CONCURRENT"] = "1"
    process = begin(practised, replicate_emulator, 30, "--json", bought=1)
    practised("batches", "cancel", id_of(practised), code=0)
    done = process.stop(0, seconds=40)
    assert done.code == 5, done
    assert (done.json["status"], done.json["canceled"]) == ("canceled", 30)
    assert replicate_emulator.purchases == 1
    records = results_of(done.json["results"])
    assert {record["code"] for record in records} == {"prediction_canceled"}


def test_what_a_killed_command_left_is_ended_by_whoever_cancels_it(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    """No gateway runs: the command stops what runs itself, buys nothing, and the results can be had afterwards."""
    practised.env["IMAGEN_LIMITS__CONCURRENT"] = "2"
    process = begin(practised, replicate_emulator, 6, "-o", "out/", bought=2)
    batch = id_of(practised)
    process.stop(signal.SIGKILL)
    canceled = practised("batches", "cancel", batch, "--json", code=0).json
    assert (canceled["status"], canceled["canceled"], canceled["running"]) == ("canceled", 6, 0)
    assert canceled["ended_at"] is not None
    assert is_closed(practised.data)
    assert replicate_emulator.purchases == 2
    assert replicate_emulator.state()["running"] == 0
    assert "has ended already" in practised("batches", "cancel", batch, code=0).stderr
    report = practised("batch", "--resume", batch, "--json").json
    assert {record["status"] for record in results_of(report["results"])} == {"canceled"}
    assert replicate_emulator.purchases == 2


def test_what_runs_on_an_account_that_is_not_at_hand_is_stopped_once_its_token_is_set(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    process = begin(practised, replicate_emulator, 2, bought=2)
    batch, token = id_of(practised), practised.env["REPLICATE_API_TOKEN"]
    process.stop(signal.SIGKILL)
    practised.env["REPLICATE_API_TOKEN"] = "r8_of_another_account"
    told = practised("batches", "cancel", batch, code=0).stderr
    assert "not stopped yet" in told
    assert "another Replicate account" in told
    assert f"imagen batches cancel {batch}" in told
    assert replicate_emulator.state()["running"] == 2
    practised.env["REPLICATE_API_TOKEN"] = token
    canceled = practised("batches", "cancel", batch, "--json", code=0).json
    assert (canceled["status"], canceled["canceled"]) == ("canceled", 2)
    assert replicate_emulator.state()["running"] == 0


# --- a terminal ------------------------------------------------------------------------------------------


def test_a_person_at_a_terminal_sees_how_far_it_is(
    practised: Any, replicate_emulator: EmulatorThread
) -> None:
    write(practised, "foxes.jsonl", *rows(3))
    replicate_emulator.add_fault("slow", run_seconds=SLOW_SECONDS, times=None)
    practised.env["IMAGEN_LIMITS__CONCURRENT"] = "2"
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 65_536):
                seen.extend(data)
        except OSError:  # how a terminal says that nobody writes any more
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        process = subprocess.Popen(
            [*COMMAND, "batch", "foxes.jsonl"], env=practised.env | {"TERM": "xterm"}, cwd=practised.work,
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        try:
            wait_for(lambda: b"2 running  1 in line  0 queued" in seen or process.poll() is not None)
            let_end(replicate_emulator)
            code = process.wait(timeout=40)
        finally:
            process.kill()
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    text = seen.decode()
    assert code == 0, text
    for part in ("━━━━", "2 running  1 in line  0 queued", "3 of 3 ended", "results in"):
        assert part in text, text


# --- through a gateway -----------------------------------------------------------------------------------


@pytest.fixture
def served(cli: Any, replicate_emulator: EmulatorThread) -> Iterator[Any]:
    """The command without a token, beside a gateway with one."""
    cli.env["CONCURRENT_DOCKER_ADMIN_API_KEY"] = "the-admins-key-of-this-test"
    gateway = cli.start(
        "serve", "--port", "0", "--json",
        env={
            "IMAGEN_DATA_DIR": str(cli.root / "gateway"),
            "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
            "REPLICATE_API_TOKEN": GATEWAYS_OWN,
            "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1",
        },
    )  # fmt: skip
    cli.env["IMAGEN_SERVER"] = str(json.loads(gateway.read_line())["url"])
    yield cli
    done = gateway.stop()
    assert done.code == 0, done


def test_a_gateway_makes_the_pictures_and_they_come_here(
    served: Any, replicate_emulator: EmulatorThread
) -> None:
    write(
        served, "foxes.jsonl",
        {"prompt": "a fox", "seed": 7}, {"prompt": "a bear [fault:fail preset=nsfw]"}, {"prompt": "an owl", "count": 6},
    )  # fmt: skip
    done = served("batch", "foxes.jsonl", "-o", "out/", "--json", code=5)
    records = results_of(done.json["results"])
    assert [record["status"] for record in records] == ["succeeded", "failed", "succeeded"]
    check_pictures(records[:1])
    assert records[0]["files"] == [str(served.work / "out" / "001-a-fox-7.png")]
    assert "NSFW" in records[1]["error"]
    assert len(records[2]["files"]) == 6
    assert all(Path(name).is_file() for name in records[2]["files"])
    assert replicate_emulator.purchases == 4
    (listed,) = served("batches", "list", "--json", code=0).json
    assert listed["id"] == done.json["id"]


def test_pictures_of_a_gateway_are_fetched_once_however_often_we_are_killed(
    served: Any, replicate_emulator: EmulatorThread
) -> None:
    process = begin(served, replicate_emulator, 4, "-o", "out/", bought=4)
    process.stop(signal.SIGKILL)
    batch = id_of(served)
    refused = served("batch", "foxes.jsonl", "-o", "out/", code=2)
    assert f"imagen batch --resume {batch}" in refused.stderr
    let_end(replicate_emulator)
    report = served("batch", "--resume", batch, "--json", code=0).json
    check_pictures(results_of(report["results"]))
    served("batch", "--resume", batch, code=0)
    assert len(list((served.work / "out").iterdir())) == 4
    assert replicate_emulator.purchases == 4


def test_ctrl_c_pauses_the_batch_of_a_gateway(served: Any, replicate_emulator: EmulatorThread) -> None:
    process = begin(served, replicate_emulator, 3, "-o", "out/", "--json", bought=3)
    process.process.send_signal(signal.SIGINT)
    wait_for(lambda: is_paused(served.root / "gateway"))
    let_end(replicate_emulator)
    done = process.stop(0, seconds=40)
    assert done.code == 0, done
    assert done.json["succeeded"] == 3
    check_pictures(results_of(done.json["results"]))
    assert replicate_emulator.purchases == 3


def test_next_steps_name_the_gateway_that_the_command_line_named(
    served: Any, replicate_emulator: EmulatorThread
) -> None:
    url = served.env.pop("IMAGEN_SERVER")
    write(served, "foxes.jsonl", {"prompt": "a fox"}, {"prompt": "a bear [fault:fail preset=nsfw]"})
    done = served("batch", "foxes.jsonl", "--server", url, code=5)
    (listed,) = served("batches", "list", "--limit", "100", "--json", "--server", url, code=0).json
    batch = listed["id"]
    assert f"`imagen batch --resume {batch} --server {url}` goes on" in done.stderr
    assert f"again with: imagen batches retry {batch} --server {url}" in done.stderr
    shown = served("batches", "show", batch, "--json", "--server", url, code=0).json
    assert shown["next"] == [f"imagen batches retry {batch} --server {url}"]
    short = served("batches", "show", "b", "--server", url, code=2)
    assert f"`imagen batches list --server {url}` shows them." in short.stderr
    assert "nothing was done" in served("batches", "pause", batch, "--server", url, code=0).stderr
    assert replicate_emulator.purchases == 2
