"""Previews, picks and finals on the command line; the emulator is Replicate, at the catalog's prices."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any, Self

import pytest
from PIL import Image

from imagen.emulator import EmulatorThread
from imagen.emulator.models import Model

CREATE = "predictions.create"
PROMPT = "a red fox in the snow"
SCHNELL, PRO = 0.003, 0.04


@pytest.fixture
def replicate(cli: Any, replicate_emulator: EmulatorThread) -> EmulatorThread:
    cli.env |= {
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
        "REPLICATE_API_TOKEN": "r8_a_token_of_the_tests",
    }
    return replicate_emulator


def bought(emulator: EmulatorThread) -> list[tuple[str, dict[str, Any]]]:
    entries = emulator.journal.entries(operation=CREATE)
    return [
        (entry.path.removesuffix("/predictions").rpartition("/")[2], entry.body["input"]) for entry in entries
    ]


def test_previews_a_pick_and_the_saving(cli: Any, replicate: EmulatorThread) -> None:
    done = cli(
        "generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "4", "--pick", "3", "--seed", "100",
        "--aspect-ratio", "16:9", "-o", "out/", "--json", code=0,
    )  # fmt: skip
    report = done.json
    assert [one["seed"] for one in report["previews"]] == [100, 101, 102, 103]
    assert {one["model"] for one in report["previews"]} == {"black-forest-labs/flux-schnell"}
    (final,) = report["finals"]
    assert (final["tier"], final["parent"]) == ("final", report["previews"][2]["id"])
    assert (final["model"], final["seed"], final["aspect_ratio"]) == (
        "black-forest-labs/flux-1.1-pro",
        102,
        "16:9",
    )
    assert report["quote"]["previews"]["high_usd"] == 4 * SCHNELL
    assert report["spent"] == {
        "previews": 4,
        "finals": 1,
        "previews_usd": 0.012,
        "finals_usd": 0.04,
        "instead_usd": 0.16,
        "saved_usd": 0.108,
    }
    assert "4 previews $0.012 + final $0.04; 4 finals would have cost $0.16: saved $0.108" in done.stderr
    creates = bought(replicate)
    assert len(creates) == 5
    assert all(given["aspect_ratio"] == "16:9" and given["prompt"] == PROMPT for _, given in creates)
    assert [given["seed"] for _, given in creates[-1:]] == [102]
    assert Path(final["files"][0]).parent == cli.work / "out"
    with Image.open(report["contact_sheet"]) as sheet:
        assert sheet.format == "PNG"
    assert Path(report["contact_sheet"]).parent == Path(report["previews"][0]["files"][0]).parent

    (row, *rows) = cli("usage", "--raw", "--json", code=0).json["entries"]
    assert {one["tier"] for one in (row, *rows)} == {"preview", "final"}


def test_a_final_later_carries_over_and_says_what_it_cannot(cli: Any, replicate: EmulatorThread) -> None:
    report = cli(
        "generate", PROMPT, "-m", "qwen-image", "--preview", "2", "--seed", "7", "--negative-prompt", "dogs",
        "--aspect-ratio", "4:3", "--json", code=0,
    ).json  # fmt: skip
    assert (report["picked"], report["finals"]) == ([], [])
    assert len(bought(replicate)) == 2
    preview = report["previews"][1]["id"]

    dry = cli("promote", preview, "--dry-run", "--json", code=0).json
    assert (dry["seed"], dry["left_out"], dry["parent"]) == (8, [], preview)
    assert len(bought(replicate)) == 2

    final = cli("promote", preview, "-o", "final.png", "--json", code=0).json
    name, given = bought(replicate)[-1]
    assert name == "qwen-image"
    assert (given["seed"], given["negative_prompt"], given["aspect_ratio"]) == (8, "dogs", "4:3")
    assert (final["parent"], final["tier"], final["files"]) == (
        preview,
        "final",
        [str(cli.work / "final.png")],
    )
    assert final["saved_usd"] == pytest.approx(final["spent"]["instead_usd"] - 0.006 - final["cost_usd"])

    other = cli("promote", preview, "-m", "nano-banana", "--json", code=0)
    assert set(other.json["left_out"]) == {"seed", "negative_prompt"}
    assert re.search(r"nano-banana does not take \w+, \w+ as they were, which are left out", other.stderr)
    assert "seed" not in bought(replicate)[-1][1]

    shown = cli("predictions", "show", preview, "--json", code=0).json
    assert shown["tier"] == "preview"
    assert shown["finals"] == [final["id"], other.json["id"]]
    text = cli("predictions", "show", final["id"], code=0).stdout
    assert f"final of {preview}" in text


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--preview", "17", "-m", "flux-dev"], "from 1 to 16"),
        (["--preview", "4"], "makes the previews"),
        (["--preview", "2", "--pick", "3", "-m", "flux-dev"], "from 1 to 2"),
        (["--preview", "2", "-n", "2", "-m", "flux-dev"], "count"),
        (["--pick", "1"], "--preview"),
        (["--preview", "2", "-m", "flux-dev", "--opt", "gidance=3"], "gidance"),
        (["--preview", "2", "-m", "flux-dev", "--no-download"], "no_download"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_bought(
    cli: Any, replicate: EmulatorThread, args: list[str], told: str
) -> None:
    done = cli("generate", PROMPT, *args, code=2)
    assert told in done.stderr
    assert replicate.purchases == 0


def test_the_whole_is_held_below_max_cost(cli: Any, replicate: EmulatorThread) -> None:
    wish = ("generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "4", "--pick", "1", "--json")
    assert cli(*wish, "--max-cost", "0.0519", code=3).json["error"] == "budget_exceeded"
    assert replicate.purchases == 0
    assert len(cli(*wish, "--max-cost", "0.052", code=0).json["finals"]) == 1


def test_a_preview_whose_answer_was_lost_counts_against_max_cost(cli: Any, replicate: EmulatorThread) -> None:
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "1"
    replicate.add_fault("drop_after", operation=CREATE, times=1)
    replicate.add_fault("status", operation="predictions.list", status=500, times=None)
    done = cli(
        "generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "3", "--pick", "1,2,3", "--max-cost", "0.087", "--json"
    )  # fmt: skip
    assert sorted(one["cost_usd"] or 0 for one in done.json["previews"]) == [0, SCHNELL, SCHNELL]
    assert [one["cost_usd"] for one in done.json["previews"] if not one["files"]] == [None]
    assert len(done.json["finals"]) == 1
    assert "budget_exceeded" in {one["error"] for one in done.json["errors"]}
    assert replicate.purchases == 3 + 1


def test_a_wish_with_an_image_is_previewed_by_a_model_that_edits(cli: Any, replicate: EmulatorThread) -> None:
    parameters = {
        "prompt": {"type": "string"},
        "images": {"type": "array"},
        "aspect_ratio": {"type": "string"},
        "output_format": {"type": "string"},
        "seed": {"type": "integer"},
    }
    replicate.add_model(Model(name="black-forest-labs/flux-2-klein-4b", parameters=parameters))
    Image.new("RGB", (8, 8), "red").save(cli.work / "fox.png")
    report = cli(
        "generate", "make it blue", "-m", "flux-kontext-max", "--input-image", "fox.png", "--preview", "1",
        "--pick", "1", "--json", code=0,
    ).json  # fmt: skip
    assert report["preview_model"] == "black-forest-labs/flux-2-klein-4b"
    (_, preview), (name, final) = bought(replicate)
    assert name == "flux-kontext-max"
    image = final["input_image"]
    assert preview["images"] == [image]
    assert report["finals"][0]["parent"] == report["previews"][0]["id"]


def test_somebody_at_a_terminal_picks(cli: Any, replicate: EmulatorThread) -> None:
    """Others first, then two of the second round, each agreed to."""
    with Terminal(cli, "generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "2", "-o", "out/") as terminal:
        terminal.wait_for("Which shall be made")
        terminal.type("r")
        terminal.wait_for("Which shall be made")
        terminal.type("9")
        terminal.wait_for("from 1 to 2")
        terminal.wait_for("Which shall be made")
        terminal.type("2")
        terminal.wait_for("Make it?")
        terminal.type("y")
        assert terminal.end() == 0, terminal.seen
    assert [name for name, _ in bought(replicate)].count("flux-1.1-pro") == 1
    seeds = [given["seed"] for _, given in bought(replicate)]
    assert len(set(seeds[:4])) == 4
    assert seeds[4] in seeds[2:4]
    assert "4 previews $0.012 + final $0.04" in terminal.seen


def test_other_previews_have_what_max_cost_leaves(cli: Any, replicate: EmulatorThread) -> None:
    """Two rounds fit with their final, a third one does not; those that are there can be picked."""
    wish = ("generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "2", "--max-cost", "0.052")
    with Terminal(cli, *wish) as terminal:
        for _ in range(2):
            terminal.wait_for("Which shall be made")
            terminal.type("r")
        terminal.wait_for("more than the $0.04 that you allow")
        terminal.wait_for("Which shall be made")
        terminal.type("1")
        terminal.wait_for("Make it?")
        terminal.type("y")
        assert terminal.end() == 0, terminal.seen
    assert replicate.purchases == 4 + 1


@pytest.mark.parametrize("limit", ["0.045", "0.046"])
def test_previews_begin_only_where_a_budget_holds_their_final_too(
    cli: Any, replicate: EmulatorThread, limit: str
) -> None:
    cli("budget", "set", "small", "--usd", limit, "--per", "day", "--all", code=0)
    wish = ("generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "2", "--pick", "1", "--json")
    if limit == "0.046":
        assert len(cli(*wish, code=0).json["finals"]) == 1
        return
    told = cli(*wish, code=3).json
    assert (told["error"], told["budget"], told["quote_usd"]) == ("budget_exceeded", "small", 0.046)
    assert told["renews_at"]
    assert replicate.purchases == 0


def test_whoever_says_no_buys_no_final(cli: Any, replicate: EmulatorThread) -> None:
    with Terminal(cli, "generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "1") as terminal:
        terminal.wait_for("Which shall be made")
        terminal.type("1")
        terminal.wait_for("Make it?")
        terminal.type("n")
        assert terminal.end() == 0, terminal.seen
    assert replicate.purchases == 1
    assert "nothing was bought" in terminal.seen


def test_pictures_are_sent_to_a_terminal_that_can_show_them(cli: Any, replicate: EmulatorThread) -> None:
    with Terminal(cli, "generate", PROMPT, term="xterm-256color", sixel=True) as terminal:
        assert terminal.end() == 0, terminal.seen
    assert "\x1bP" in terminal.seen


@pytest.mark.parametrize(
    ("args", "environ"),
    [
        (["--no-show"], {}),
        ([], {"IMAGEN_TERMINAL__PICTURES": "never"}),
        ([], {"NO_COLOR": "1"}),
        ([], {"CI": "true"}),
        ([], {"TERM": "dumb"}),
        (["--json"], {}),
    ],
)
def test_no_pictures_where_they_are_not_wanted(
    cli: Any, replicate: EmulatorThread, args: list[str], environ: dict[str, str]
) -> None:
    with Terminal(cli, "generate", PROMPT, *args, term="xterm-256color", sixel=True, **environ) as terminal:
        assert terminal.end() == 0, terminal.seen
    assert "\x1bP" not in terminal.seen
    assert "\x1b[c" not in terminal.seen  # nobody even asked


def test_no_pictures_outside_a_terminal(cli: Any, replicate: EmulatorThread) -> None:
    done = cli("generate", PROMPT, "--show", code=0)
    assert "\x1b" not in done.stdout
    assert "no pictures here: this is no terminal" in done.stderr


class Terminal:
    """A command in a terminal that says whether it shows pictures; both streams are seen."""

    def __init__(self, cli: Any, *args: str, term: str = "dumb", sixel: bool = False, **environ: str) -> None:
        self.seen = ""
        self._found = 0
        self._sixel = sixel
        self._ours, theirs = pty.openpty()
        if sixel:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 1000, 800))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "imagen", *args],
            env=cli.env | {"TERM": term} | environ,
            cwd=cli.work,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - the test has no threads then
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._ours)

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def wait_for(self, text: str, *, seconds: float = 25) -> None:
        """Until it is seen, once more than before."""
        end = time.monotonic() + seconds
        while (at := self.seen.find(text, self._found)) < 0:
            assert time.monotonic() < end, self.seen
            assert self._read(), self.seen
        self._found = at + len(text)

    def end(self) -> int:
        while self._read():
            pass
        return self._process.wait(timeout=20)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 25)[0]:
            return False
        try:
            data = os.read(self._ours, 65_536)
        except OSError:  # it has ended
            return False
        self.seen += data.decode("utf-8", "replace")
        if self._sixel and b"\x1b[c" in data:
            os.write(self._ours, b"\x1b[?62;4;22c")
        return bool(data)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_presets_are_listed(cli: Any) -> None:
    (cli.work / "imagen.yaml").write_text("presets:\n  poster:\n    aspect_ratio: 16:9\n    guidance: 2.5\n")
    pod, poster = cli("presets", "--json", code=0).json
    assert (pod["name"], pod["built_in"], pod["fields"]["aspect_ratio"]) == ("pod", True, "4:3")
    assert poster["fields"] == {"aspect_ratio": "16:9", "guidance": 2.5}
    assert re.search(r"poster\s+guidance\s+2\.5\s+imagen\.yaml:2", cli("presets").stdout)


POD = "blurry, low quality, pixelated, watermark, text overlay, copyright, signature, distorted, amateur, poor lighting"


def test_a_preset_lies_under_what_is_said(cli: Any, replicate: EmulatorThread) -> None:
    report = cli("generate", PROMPT, "-m", "qwen-image", "--preset", "pod", "--json", code=0).json
    assert (report["preset"], report["left_out"]) == ("pod", [])
    given = bought(replicate)[-1][1]
    assert (given["negative_prompt"], given["aspect_ratio"], given["output_format"]) == (POD, "4:3", "png")

    cli(
        "generate", PROMPT, "-m", "qwen-image", "--preset", "pod", "--aspect-ratio", "1:1",
        "--opt", "negative_prompt=dogs", code=0,
    )  # fmt: skip
    given = bought(replicate)[-1][1]
    assert (given["negative_prompt"], given["aspect_ratio"]) == ("dogs", "1:1")


def test_a_field_that_the_model_does_not_know_is_said(cli: Any, replicate: EmulatorThread) -> None:
    done = cli("generate", PROMPT, "-m", "flux-dev", "--preset", "pod", "--json", code=0)
    assert done.json["left_out"] == ["negative_prompt"]
    assert done.stderr.count("preset pod: flux-dev does not take negative_prompt, which is left out") == 1
    assert "negative_prompt" not in bought(replicate)[-1][1]


def test_a_preset_names_the_model_and_wins_over_the_backend(cli: Any, replicate: EmulatorThread) -> None:
    (cli.work / "imagen.yaml").write_text(
        "backends:\n  mine:\n    type: replicate\n    model: flux-schnell\n    default_aspect_ratio: '9:16'\n"
        "presets:\n  poster:\n    model: flux-dev\n    aspect_ratio: 16:9\n    steps: 12\n    guidance: 2.5\n"
    )
    cli("generate", PROMPT, "--preset", "poster", code=0)
    name, given = bought(replicate)[-1]
    assert name == "flux-dev"
    assert (given["aspect_ratio"], given["num_inference_steps"], given["guidance"]) == ("16:9", 12, 2.5)
    cli("generate", PROMPT, "--preset", "poster", "-m", "flux-schnell", "--steps", "3", code=0)
    name, given = bought(replicate)[-1]
    assert (name, given["num_inference_steps"]) == ("flux-schnell", 3)
    assert "guidance" not in given


def test_values_out_of_range_name_preset_and_field(cli: Any, replicate: EmulatorThread) -> None:
    (cli.work / "imagen.yaml").write_text("presets:\n  odd:\n    aspect_ratio: 7:5\n    guidance: 99\n")
    done = cli("generate", PROMPT, "-m", "flux-dev", "--preset", "odd", code=2)
    assert "presets.odd.aspect_ratio" in done.stderr
    assert "presets.odd.guidance" in done.stderr
    assert "no preset is called 'pods'" in cli("generate", PROMPT, "--preset", "pods", code=2).stderr
    assert replicate.purchases == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("presets: 3\n", "presets must be a mapping"),
        ("presets:\n  a: 3\n", "presets.a must be"),
        ("presets:\n  a:\n    steps: many\n", "imagen.yaml:3: presets.a.steps: it must be a whole number"),
        ("presets:\n  a:\n    prompt: x\n", "presets.a.prompt"),
        ("presets:\n  a:\n    width: 100\n", "width and height together"),
    ],
)
def test_a_preset_that_makes_no_sense_is_told_with_its_line(cli: Any, text: str, told: str) -> None:
    (cli.work / "imagen.yaml").write_text(text)
    assert told in cli("presets", code=2).stderr


def test_rows_of_a_file_name_presets(cli: Any, replicate: EmulatorThread) -> None:
    (cli.work / "foxes.csv").write_text("prompt,preset\na fox,pod\na hare,\n")
    done = cli("batch", "foxes.csv", "-m", "flux-dev", "--json", code=0)
    assert "preset pod: flux-dev does not take negative_prompt" in done.stderr
    ratios = {given["prompt"]: given["aspect_ratio"] for _, given in bought(replicate)}
    assert ratios == {"a fox": "4:3", "a hare": "1:1"}
    (cli.work / "hares.jsonl").write_text('{"prompt": "a hare"}\n')
    cli("batch", "hares.jsonl", "-m", "qwen-image", "--preset", "pod", code=0)
    assert bought(replicate)[-1][1]["negative_prompt"] == POD
