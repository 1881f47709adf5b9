"""Stories of `imagen generate`, told through the command itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.emulator import EmulatorThread

COMMAND = [sys.executable, "-m", "imagen"]
CREATE = "predictions.create"
PROMPT = "a red fox in the snow, secret-canary-4711"


@pytest.fixture
def real(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command with a token, spoken to by the emulator."""
    cli.use(replicate_emulator.url)
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "1"
    return cli


def columns(path: Path, table: str) -> dict[str, Any]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    row = dict(connection.execute(f"SELECT * FROM {table}").fetchone())  # noqa: S608 - a table's name
    connection.close()
    return row


def test_without_a_token_it_practises_and_says_so(cli: Any) -> None:
    done = cli("generate", "a red fox in the snow", code=0)
    (picture,) = done.lines
    assert Path(picture).parent == cli.data / "pictures"
    assert Path(picture).name.startswith("a-red-fox-in-the-snow-")
    assert "practice" in done.stderr
    assert "REPLICATE_API_TOKEN" in done.stderr
    with Image.open(picture) as image:
        image.load()
        assert image.format == "PNG"
        assert image.text["Description"] == "a red fox in the snow"


def test_metadata_as_json_has_the_names_of_the_contract(
    real: Any, replicate_emulator: EmulatorThread
) -> None:
    report = real("generate", PROMPT, "--width", "1600", "--height", "900", "--json", code=0).json
    assert {
        "backend", "backend_type", "model", "model_version", "prediction_id", "seed", "width", "height",
        "aspect_ratio", "latency_ms", "predict_time_seconds", "cost_usd_estimate", "files",
    } <= set(report)  # fmt: skip
    assert report["backend"] == "flux-schnell-replicate"
    assert report["backend_type"] == "replicate"
    assert report["model"] == "black-forest-labs/flux-schnell"
    assert report["aspect_ratio"] == "16:9"
    assert report["cost_usd_estimate"] == 0.003
    assert report["practice"] is False
    (sent,) = replicate_emulator.journal.entries(operation=CREATE)
    assert sent.body["input"] == {
        "prompt": PROMPT,
        "aspect_ratio": "16:9",
        "num_outputs": 1,
        "num_inference_steps": 4,
        "output_format": "png",
        "seed": report["seed"],
    }
    assert sent.headers["prefer"] == "wait=60"
    assert sent.headers["cancel-after"] == "60s"


def test_the_ledger_has_the_columns_of_the_contract_and_not_the_prompt(real: Any) -> None:
    report = real("generate", PROMPT, "--json", env={"MAI_FROM_ID": "painter-7"}, code=0).json
    row = columns(real.data / "imagen.db", "imagen_usage")
    assert row["backend"] == "flux-schnell-replicate"
    assert row["model"] == "black-forest-labs/flux-schnell"
    assert row["seed"] == report["seed"]
    assert row["prompt_hash"] == hashlib.sha256(PROMPT.encode()).hexdigest()
    assert row["latency_ms"] == report["latency_ms"]
    assert row["cost_usd_estimate"] == 0.003
    assert row["cost"] == 3000
    assert row["caller"] == "painter-7"
    assert "canary" not in json.dumps(row)


def test_neither_token_nor_prompt_is_written_anywhere_else(
    real: Any, replicate_emulator: EmulatorThread
) -> None:
    token = "r8_" + "t0psecret" * 4
    env = {"REPLICATE_API_TOKEN": token, "IMAGEN_LOG__LEVEL": "debug", "PYTHONASYNCIODEBUG": "1"}
    said = []
    for fault, attributes in (
        (None, {}),
        ("status", {"status": 422, "body": {"detail": f"bad prompt: {PROMPT}", "status": 422}}),
        ("fail", {"preset": "nsfw"}),
        ("status", {"status": 401}),
    ):
        if fault:
            replicate_emulator.add_fault(fault, operation=CREATE, **attributes)
        done = real("generate", PROMPT, "--no-metadata", "--new", env=env)
        said.append(done.stdout.replace("a-red-fox-in-the-snow-secret-canary-4711", "") + done.stderr)
    assert not any(
        "canary" in text.replace("a-red-fox-in-the-snow-secret-canary-4711", "") for text in said
    ), said
    assert not any(token in text or "t0psecret" in text for text in said)
    for path in real.root.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            content = path.read_bytes()
            assert b"t0psecret" not in content, path
            assert path.name.startswith("imagen.db") or b"canary" not in content, path
    connection = sqlite3.connect(real.data / "imagen.db")
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        names = [column[1] for column in connection.execute(f"PRAGMA table_xinfo({table})")]
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608 - a table's name
            for name, value in zip(names, row, strict=True):
                own_record = table == "predictions" and name in {"prompt", "input", "files"}
                assert own_record or "canary" not in str(value), (table, name)
    connection.close()


BAD: dict[str, tuple[list[str], str | None, int, str]] = {
    "unknown key": (["a fox", "--opt", "num_steps=3"], None, 2, "num_steps"),
    "wrong range": (["a fox", "--steps", "99"], None, 2, "from 1 to 4"),
    "wrong type": (["a fox", "--opt", "num_outputs=many"], None, 2, "num_outputs"),
    "negative size": (["a fox", "--width", "-5", "--height", "5"], None, 2, "width"),
    "half a size": (["a fox", "--width", "512"], None, 2, "height"),
    "ratio the model does not know": (["a fox", "--aspect-ratio", "7:5"], None, 2, "16:9"),
    "something the model cannot": (["a fox", "--negative-prompt", "dogs"], None, 2, "negative_prompt"),
    "NUL in the prompt": (["-"], "a \0 fox", 2, "NUL"),
    "empty prompt": (["  "], None, 2, "empty"),
    "prompt that is no text": (["-"], None, 2, "empty"),
    "unknown model": (["a fox", "-m", "flux-shnell"], None, 2, "flux-schnell"),
    "malformed model": (["a fox", "-m", "a/b/c"], None, 2, "owner/name"),
    "unknown backend": (["a fox", "-b", "nowhere"], None, 2, "flux-schnell-replicate"),
    "input file missing": (["a fox", "--input-image", "nothing.png"], None, 2, "nothing.png"),
    "pair without =": (["a fox", "--opt", "seed"], None, 2, "KEY=VALUE"),
    "output is a folder that cannot be": (["a fox", "-o", "/proc/nothing/fox.png"], None, 2, "output"),
    "unknown field in the template": (["a fox", "-o", "{nope}.png"], None, 2, "nope"),
    "too many": (["a fox", "-n", "1000"], None, 2, "count"),
    "too dear": (["a fox", "-m", "flux-dev", "--max-cost", "0.02"], None, 3, "$0.025"),
    "price unknown": (["a fox", "-m", "luma/photon-flash", "--max-cost", "5"], None, 3, "not known"),
    "semaphore unknown": (["a fox", "--semaphore", "nope"], None, 2, "External semaphore 'nope' not found"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_sent(
    name: str, real: Any, replicate_emulator: EmulatorThread
) -> None:
    args, stdin, code, text = BAD[name]
    done = real("generate", *args, stdin=stdin)
    assert done.code == code, done
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not replicate_emulator.journal.entries(operation=CREATE)


def test_a_configuration_that_cannot_be_read_names_the_file_and_line(real: Any) -> None:
    real.write_config("backends:\n  fast: {type: replicate, modle: x}\n")
    done = real("generate", "a fox", code=2)
    assert "imagen.yaml:2" in done.stderr
    assert "modle" in done.stderr


def test_an_existing_file_is_kept_unless_forced(real: Any, replicate_emulator: EmulatorThread) -> None:
    target = real.work / "fox.png"
    target.write_text("mine")
    done = real("generate", "a fox", "-o", "fox.png", code=2)
    assert "--force" in done.stderr
    assert target.read_text() == "mine"
    assert replicate_emulator.purchases == 0
    real("generate", "a fox", "-o", "fox.png", "--force", code=0)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_several_pictures_with_a_template_in_the_asked_format(
    real: Any, replicate_emulator: EmulatorThread
) -> None:
    report = real("generate", "a fox", "-n", "6", "-o", "out/{model}_{index:02}.webp", "--json", code=0).json
    assert [Path(file).name for file in report["files"]] == [f"flux-schnell_{n:02}.webp" for n in range(1, 7)]
    assert replicate_emulator.purchases == 2  # four at a time
    assert report["cost_usd_estimate"] == 0.018
    assert len({entry["seed"] for entry in report["predictions"]}) == 2
    with Image.open(report["files"][5]) as image:
        assert image.format == "WEBP"


def test_the_same_seed_gives_the_same_picture(real: Any) -> None:
    for name in ("one", "two"):
        real("generate", "a fox", "--seed", "7", "-o", f"{name}.png", "--no-metadata", code=0)
    assert (real.work / "one.png").read_bytes() == (real.work / "two.png").read_bytes()


def test_no_download_shows_the_addresses(real: Any) -> None:
    done = real("generate", "a fox", "--no-download", code=0)
    assert done.lines[0].startswith("http://127.0.0.1:")
    assert not (real.data / "pictures").exists()


def with_room(real: Any, kilobytes: int, *args: str) -> subprocess.CompletedProcess[str]:
    """The command on a disk where no file can grow beyond so much: what is written meets the end of it."""
    limit = f'ulimit -f {kilobytes}; exec "$@"'
    return subprocess.run(
        ["bash", "-c", limit, "-", *COMMAND, *args],
        env=real.env,
        cwd=real.work,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_without_room_for_the_intent_nothing_is_bought(real: Any, replicate_emulator: EmulatorThread) -> None:
    done = with_room(real, 8, "generate", "a fox")
    assert done.returncode == 70
    assert "full" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert replicate_emulator.purchases == 0


def test_without_room_for_the_picture_it_stays_upstream_and_the_next_step_is_told(
    real: Any, replicate_emulator: EmulatorThread
) -> None:
    real("usage", code=0)  # the database is there, and small
    replicate_emulator.add_fault("huge", operation="delivery", size=2 << 20)
    done = with_room(real, 1024, "generate", "a fox", "-o", "fox.png")
    assert done.returncode == 70
    assert "nothing is bought again" in done.stderr
    assert not list(real.work.iterdir())
    adopt = re.search(r"predictions adopt (pred_\w+)", done.stderr)
    assert adopt is not None
    real("predictions", "adopt", adopt[1], code=0)
    assert (real.work / "fox.png").is_file()
    assert replicate_emulator.purchases == 1


def test_an_answer_of_200_mb_is_not_read_to_its_end(real: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("huge", operation=CREATE, size=200 << 20, times=None)
    program = f'ulimit -v {1200 << 10}; exec "$@"'  # address space: 200 MB more would not fit
    done = subprocess.run(
        ["bash", "-c", program, "-", *COMMAND, "generate", "a fox"],
        env=real.env, cwd=real.work, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "larger than" in done.stderr.splitlines()[-1]
    assert replicate_emulator.purchases == 0


def test_a_ledger_that_cannot_be_written_delays_only_the_entry(real: Any) -> None:
    real("usage", code=0)
    connection = sqlite3.connect(real.data / "imagen.db")
    connection.execute(
        "CREATE TRIGGER broken BEFORE INSERT ON imagen_usage BEGIN SELECT RAISE(ABORT, 'no ledger today'); END"
    )
    connection.commit()
    done = real("generate", "a fox", "-o", "fox.png", code=0)
    assert "warning" in done.stderr
    assert (real.work / "fox.png").is_file()
    assert real("usage", "--json", "--raw", code=0).stdout.count("prompt_hash") == 0
    connection.execute("DROP TRIGGER broken")
    connection.commit()
    connection.close()
    assert real("usage", "--json", "--raw", code=0).stdout.count("prompt_hash") == 1
    assert real("usage", "--json", "--raw", code=0).stdout.count("prompt_hash") == 1


def test_a_semaphore_lets_only_so_many_through(real: Any, replicate_emulator: EmulatorThread) -> None:
    real("semaphore", "register", "one-at-a-time", "1", code=0)
    replicate_emulator.add_fault("slow", run_seconds=0.8, times=None)
    args = ("generate", "a fox", "--semaphore", "one-at-a-time", "--new")
    started = [real.start(*args) for _ in range(3)]
    for process in started:
        process.process.wait(40)
    assert [process.process.returncode for process in started] == [0, 0, 0]
    assert replicate_emulator.purchases == 3
    assert replicate_emulator.state()["max_running"] == 1
    assert "0 of 1 held" in real("semaphore", "list", code=0).stdout


def test_a_deadline_ends_the_run_upstream(real: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("slow", run_seconds=60.0)
    before = time.monotonic()
    done = real("generate", "a fox", "--timeout", "5", code=5)
    assert "did not complete within 5 s" in done.stderr
    assert time.monotonic() - before < 20
    (sent,) = replicate_emulator.journal.entries(operation=CREATE)
    assert sent.headers["cancel-after"] == "5s"


def test_the_command_is_the_same_as_the_module(cli: Any) -> None:
    assert cli("--version", code=0).stdout.startswith("imagen ")
    assert "Examples" in cli("generate", "--help", code=0).stdout
    assert os.environ.get("REPLICATE_API_TOKEN") is None
