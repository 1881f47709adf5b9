"""Stories of `imagen predictions`."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from seeded import SCHNELL, prediction, succeeded

from imagen.domain.prediction import Status
from imagen.emulator import EmulatorThread


@pytest.fixture
def real(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command with a token, spoken to by the emulator."""
    cli.use(replicate_emulator.url)
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "1"
    return cli


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def left_behind(real: Any, emulator: EmulatorThread, *options: str, run_seconds: float = 0.5) -> str:
    """The id of a prediction that was bought and whose process was killed then."""
    emulator.add_fault("slow", run_seconds=run_seconds)
    process = real.start("generate", "a red fox in the snow", *options)
    wait_for(lambda: emulator.purchases)
    process.stop(signal.SIGKILL)
    connection = sqlite3.connect(real.data / "imagen.db")
    ((found,),) = connection.execute("SELECT id FROM predictions").fetchall()
    connection.close()
    return str(found)


def test_without_any_the_list_says_how_to_begin(cli: Any) -> None:
    done = cli("predictions", "list", code=0)
    assert done.stdout == ""
    assert "imagen generate" in done.stderr
    assert cli("predictions", "list", "--json", code=0).json == []


def test_the_list_is_newest_first_and_can_be_narrowed(cli: Any, remember: Callable[..., None]) -> None:
    waiting = prediction(ago=timedelta(minutes=3), upstream_id="up3", status=Status.PROCESSING)
    undelivered = succeeded(ago=timedelta(minutes=2), delivered_at=None, files=())
    remember(
        succeeded(ago=timedelta(minutes=4), prompt="line one\nline two\x1b[31m " + "very " * 40 + "long"),
        waiting,
        undelivered,
        prediction(
            ago=timedelta(minutes=1), status=Status.FAILED, upstream_id="up1", charged=False, seed=None
        ),
    )
    done = cli("predictions", "list", code=0)
    assert done.lines[0].split() == ["id", "created", "status", "model", "seed", "cost", "files", "prompt"]
    assert [line.split()[3] for line in done.lines[1:]] == ["failed", "succeeded", "processing", "succeeded"]
    assert "\x1b" not in done.stdout
    assert done.lines[4].endswith("…")
    assert len(done.lines) == 5
    unfinished = cli("predictions", "list", "--unfinished", code=0)
    assert [line.split()[0] for line in unfinished.lines[1:]] == [undelivered.id, waiting.id]
    narrowed = cli("predictions", "list", "--status", "Succeeded", "--limit", "1", "--json", code=0)
    assert [one["id"] for one in narrowed.json] == [undelivered.id]
    assert narrowed.json[0]["cost_usd"] == 0.003
    assert "--limit" in narrowed.stderr
    wrong = cli("predictions", "list", "--status", "done", code=2)
    assert "succeeded" in wrong.stderr


def test_everything_about_one_is_shown_by_a_part_of_its_id(cli: Any, remember: Callable[..., None]) -> None:
    one = succeeded(
        input={"prompt": "a red fox in the snow", "seed": 7, "image": "data:image/png;base64," + "A" * 5000},
        files=("/nowhere/fox.png",),
    )
    remember(one, succeeded(ago=timedelta(days=1)))
    for part in (one.id.removeprefix("pred_")[:16], one.upstream_id):
        assert cli("predictions", "show", part, "--json", code=0).json["id"] == one.id
    shown = cli("predictions", "show", one.id[:20], code=0).stdout
    for told in (
        one.id,
        SCHNELL,
        "a red fox in the snow",
        "$0.003, charged",
        "(no longer there)",
        "good until",
        "ada",
    ):
        assert told in shown
    assert "AAAA" * 100 not in shown
    assert "\nnext" not in shown


def test_ids_that_mean_nothing_or_too_much_are_refused(cli: Any, remember: Callable[..., None]) -> None:
    one = prediction(upstream_id="up1")
    remember(one)
    assert "too short" in cli("predictions", "cancel", "", code=2).stderr
    assert "'pred_zzzzzz'" in cli("predictions", "show", "pred_zzzzzz", code=2).stderr
    remember(prediction(id=f"{one.id[:20]}zzz", upstream_id="up2"))
    assert "several" in cli("predictions", "show", one.id[:20], code=2).stderr


def test_secret_parameters_are_not_shown(cli: Any, remember: Callable[..., None]) -> None:
    secrets = {"openai_api_key": "sk-canary-4711", "hf_token": "hf_canary", "max_tokens": 5}
    one = prediction(model="openai/gpt-image-2", input={"prompt": "x", **secrets})
    remember(one)
    assert "canary" not in cli("predictions", "show", one.id, code=0).stdout
    shown = cli("predictions", "show", one.id, "--json", code=0).json["input"]
    assert shown == {"prompt": "x", "openai_api_key": "***", "hf_token": "***", "max_tokens": 5}


def test_what_was_left_behind_is_adopted_and_bought_once(
    real: Any, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    lost = left_behind(real, replicate_emulator)
    shown = real("predictions", "show", lost, "--json", code=0).json
    assert shown["finished"] is False
    assert shown["next"][0] == f"imagen predictions adopt {lost}"
    done = real("predictions", "adopt", lost, "-o", "found.png", code=0)
    assert done.lines == [str(real.work / "found.png")]
    assert (real.work / "found.png").read_bytes().startswith(b"\x89PNG")
    assert "$0.003, charged" in done.stderr
    assert replicate_emulator.purchases == 1
    again = real("predictions", "adopt", lost, code=0)
    assert again.lines == done.lines
    assert "finished already" in again.stderr
    same = real("predictions", "adopt", lost, "-o", "found.png", code=0)
    assert same.lines == done.lines  # it lies there already, to the last byte
    (real.work / "taken.png").write_text("mine")
    beside = real("predictions", "adopt", lost, "-o", "taken.png", code=0)
    assert beside.lines == [str(real.work / "taken-2.png")]
    assert (real.work / "taken.png").read_text() == "mine"
    elsewhere = real("predictions", "adopt", lost, "-o", "found.png", "--force", "--json", code=0)
    assert elsewhere.json["files"] == [str(real.work / "found.png")]
    assert [group["predictions"] for group in real("usage", "--json", code=0).json["groups"]] == [1]


def test_adopting_what_failed_ends_by_its_fault(real: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("fail", error="the model fell over")
    lost = left_behind(real, replicate_emulator)
    done = real("predictions", "adopt", lost, "--json", code=5)
    assert done.json["error"] == "prediction_failed"
    assert done.json["prediction_id"] == lost
    assert real("predictions", "show", lost, code=0).stdout.count("not charged") == 1


def test_cancel_stops_it_upstream_and_says_what_it_cost(
    real: Any, replicate_emulator: EmulatorThread
) -> None:
    lost = left_behind(real, replicate_emulator, run_seconds=60)
    done = real("predictions", "cancel", lost[:25], code=0)
    assert done.stdout.startswith(f"{lost} was canceled: ")
    assert replicate_emulator.state()["by_status"]["canceled"] == 1
    again = real("predictions", "cancel", lost, code=0)
    assert again.stdout == f"{lost} had ended already: canceled\n"


def test_what_another_process_follows_is_left_to_it(real: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("slow", run_seconds=60)
    process = real.start("generate", "a red fox in the snow")
    wait_for(lambda: replicate_emulator.purchases)
    (one,) = real("predictions", "list", "--unfinished", "--json", code=0).json
    assert one["followed"] is True
    done = real("predictions", "adopt", one["id"], code=2)
    assert "another process" in done.stderr
    assert "follows it" in real("predictions", "show", one["id"], code=0).stdout
    process.stop(signal.SIGTERM)
