"""`--server`: the same commands, and a running `imagen serve` does the work."""

from __future__ import annotations

import base64
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.emulator import EmulatorThread
from imagen.emulator.models import Model

ADMIN = {"CONCURRENT_DOCKER_ADMIN_API_KEY": "the-admins-key-of-this-test"}
CREATE = "predictions.create"
ONE_AT_A_TIME = "mkdir inside && sleep 0.4 && rmdir inside"
"""Fails when somebody else is inside."""
PROMPT = "a red fox in the snow"


class Served:
    """A gateway in a process of its own, with a token and a data folder of its own; commands have neither."""

    def __init__(self, cli: Any, emulator: EmulatorThread, **settings: str) -> None:
        self.data: Path = cli.root / "gateway"
        self.env = {
            "IMAGEN_DATA_DIR": str(self.data),
            "IMAGEN_REPLICATE__API_BASE": emulator.url,
            "REPLICATE_API_TOKEN": "r8_the_gateways_own_token",
            "IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1",
            "IMAGEN_LIMITS__WAIT": "2",
            **ADMIN,
            **settings,
        }
        self.as_if_here = {
            "IMAGEN_SERVER": "",
            "IMAGEN_REPLICATE__API_BASE": emulator.url,
            "REPLICATE_API_TOKEN": "r8_the_gateways_own_token",
        }
        """With it a command does the work itself, on the gateway's account."""
        self.process = cli.start("serve", "--port", "0", "--json", env=self.env)
        self.url = str(json.loads(self.process.read_line())["url"])


@pytest.fixture
def serve(cli: Any, replicate_emulator: EmulatorThread) -> Iterator[Callable[..., Served]]:
    """Starts a gateway, which all commands ask from then on."""
    started: list[Served] = []

    def start(**settings: str) -> Served:
        one = Served(cli, replicate_emulator, **settings)
        started.append(one)
        cli.env["IMAGEN_SERVER"] = one.url
        return one

    yield start
    for one in started:
        done = one.process.stop()
        assert done.code in {0, -signal.SIGKILL}, done
        assert "Traceback" not in done.stderr


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def shell(line: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", line)


# --- generate --------------------------------------------------------------------------------------------


def test_a_picture_lands_here_and_everything_else_stays_there(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    del cli.env["IMAGEN_SERVER"]
    report = cli("generate", PROMPT, "-o", "out/", "--json", "--server", served.url, code=0).json
    (file,) = report["files"]
    assert Path(file).parent == cli.work / "out"
    assert Path(file).name == f"a-red-fox-in-the-snow-{report['seed']}.png"
    with Image.open(file) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (report["width"], report["height"]))
        assert image.text["Description"] == PROMPT
    assert report["status"] == "succeeded"
    assert report["cost_usd_estimate"] == 0.003
    assert (report["charged"], report["practice"]) == (True, False)
    (sent,) = replicate_emulator.journal.entries(operation=CREATE)
    assert sent.body["input"]["seed"] == report["seed"]

    there = {"IMAGEN_DATA_DIR": str(served.data)}
    (row,) = cli("usage", "--raw", "--json", env=there, code=0).json["entries"]
    assert (row["id"], row["cost_usd_estimate"]) == (report["id"], 0.003)
    shown = cli("predictions", "show", report["id"], "--json", env=there, code=0).json
    assert shown["upstream_id"] == report["prediction_id"]
    assert cli("usage", "--raw", "--json", code=0).json["entries"] == []
    asked = cli("usage", "--raw", "--json", "--server", served.url, code=0).json
    assert [(one["id"], one["cost_usd_estimate"]) for one in asked["entries"]] == [(report["id"], 0.003)]
    shown = cli("usage", "--by", "day", "--server", served.url, code=0)
    assert shown.lines[0].startswith("day (UTC) ")
    assert "$0.003" in shown.lines[-1] or "$0.003" in shown.lines[-2]


WISHES: dict[str, list[str]] = {
    "plain": [PROMPT],
    "in general words": ["a fox", "-m", "flux-dev", "--width", "1600", "--height", "900", "--steps", "9", "--seed", "5"],
    "several": ["a fox", "-n", "6", "--seed", "100", "-o", "{index}.webp"],
    "a backend of the configuration": ["a fox", "-b", "flux-dev-replicate", "--timeout", "77"],
    "own parameters": ["a fox", "-m", "flux-dev", "--opt", "go_fast=false", "--opt", "guidance=2.5"],
    "a model that the catalog does not know": ["a fox", "-m", "acme/unheard-of", "--opt", "style=neat"],
}  # fmt: skip


@pytest.mark.timeout(120)
def test_the_same_wish_is_bought_alike_and_told_alike(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    parameters = {"prompt": {"type": "string"}, "style": {"type": "string"}, "seed": {"type": "integer"}}
    replicate_emulator.add_model(Model(name="acme/unheard-of", parameters=parameters))
    for name, wish in WISHES.items():
        told, bought = [], []
        for environ in (served.as_if_here, {}):
            before = len(replicate_emulator.journal.entries(operation=CREATE))
            told.append(cli("generate", *wish, "--force", "--json", env=environ, code=0).json)
            creates = replicate_emulator.journal.entries(operation=CREATE)[before:]
            bought.append(sorted(bought_by(one, with_seed="--seed" in wish) for one in creates))
        assert bought[0] == bought[1], name
        here, there = told
        assert list(here) == list(there), name
        for field in ("status", "model", "width", "height", "aspect_ratio", "cost_usd_estimate", "charged"):
            assert here[field] == there[field], (name, field)
        assert len(here["files"]) == len(there["files"]) == len(there["urls"]), name


def bought_by(create: Any, *, with_seed: bool) -> tuple[str, str]:
    """What a create asks for, but for a seed that nobody chose."""
    wanted = {name: value for name, value in create.body["input"].items() if with_seed or name != "seed"}
    return create.headers["cancel-after"], json.dumps(wanted, sort_keys=True)


def test_several_pictures_are_named_by_the_template_and_paid_for_together(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    args = ("generate", "a fox", "-n", "6", "-o", "out/{model}_{index:02}.webp", "--json")
    refused = cli(*args, "--max-cost", "0.0179", code=3)
    assert refused.json["error"] == "budget_exceeded"
    assert replicate_emulator.purchases == 0
    report = cli(*args, "--max-cost", "0.018", code=0).json
    assert [Path(file).name for file in report["files"]] == [f"flux-schnell_{n:02}.webp" for n in range(1, 7)]
    assert replicate_emulator.purchases == 2  # four at a time
    assert report["cost_usd_estimate"] == 0.018
    assert len({entry["id"] for entry in report["predictions"]}) == 2
    with Image.open(report["files"][5]) as image:
        assert image.format == "WEBP"


def test_an_existing_file_is_kept_unless_forced(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    target = cli.work / "fox.png"
    target.write_text("mine")
    assert "--force" in cli("generate", "a fox", "-o", "fox.png", code=2).stderr
    assert replicate_emulator.purchases == 0
    cli("generate", "a fox", "-o", "fox.png", "--force", "--no-metadata", code=0)
    with Image.open(target) as image:
        assert image.text == {}


def test_pictures_can_be_left_where_they_are(cli: Any, served: Served) -> None:
    done = cli("generate", "a fox", "--no-download", code=0)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/xezq/\S+", done.stdout.strip())
    both = cli("generate", "a fox", "--url", code=0)
    picture, address = both.lines
    assert Path(picture).is_file()
    assert address.startswith("http://127.0.0.1:")
    assert len(list((cli.data / "pictures").iterdir())) == 1


def test_a_picture_that_the_gateway_keeps_is_fetched_there(
    cli: Any, serve: Callable[..., Served], replicate_emulator: EmulatorThread
) -> None:
    served = serve(IMAGEN_PICTURES__KEEP="yes")
    report = cli("generate", "a fox", "--json", code=0).json
    assert report["urls"][0].startswith(f"{served.url}/pictures/pic_")
    assert Path(report["files"][0]).is_file()
    assert len(replicate_emulator.journal.entries(operation="delivery")) == 1


def test_a_small_file_travels_inside_the_request_and_a_large_one_is_refused(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    Image.new("RGB", (8, 8), "red").save(cli.work / "small.png")
    (cli.work / "large.png").write_bytes(b"\x89PNG" + b"x" * (256 * 1024))
    edit = ("generate", "make it blue", "-m", "flux-kontext-max", "--input-image")
    refused = cli(*edit, "large.png", code=2)
    assert "large.png is larger than the 256 KiB that a gateway takes" in refused.stderr
    assert replicate_emulator.purchases == 0
    cli(*edit, "small.png", code=0)
    (sent,) = replicate_emulator.journal.entries(operation=CREATE)
    head, _, body = sent.body["input"]["input_image"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == (cli.work / "small.png").read_bytes()


# --- what goes wrong -------------------------------------------------------------------------------------


BAD: dict[str, tuple[list[str], int, str]] = {
    "wrong range": (["a fox", "--steps", "99"], 2, "from 1 to 4"),
    "something the model cannot": (["a fox", "--negative-prompt", "dogs"], 2, "negative_prompt"),
    "unknown model": (["a fox", "-m", "flux-shnell"], 2, "flux-schnell"),
    "wrong range of a model that only Replicate knows": (["a fox", "-m", "acme/unheard-of", "--opt", "strength=9"], 2, "from 0 to 1"),
    "unknown key of a model that only Replicate knows": (["a fox", "-m", "acme/unheard-of", "--opt", "strenth=1"], 2, "strength"),
    "a model that nobody has": (["a fox", "-m", "acme/nothing"], 4, "acme/nothing"),
    "too dear": (["a fox", "-m", "flux-dev", "--max-cost", "0.02"], 3, "$0.025"),
    "semaphore unknown": (["a fox", "--semaphore", "nope"], 2, "External semaphore 'nope' not found"),
}  # fmt: skip


@pytest.mark.timeout(120)
def test_bad_input_is_told_as_if_the_work_were_done_here(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    strength = {"type": "number", "minimum": 0, "maximum": 1}
    parameters = {"prompt": {"type": "string"}, "strength": strength}
    replicate_emulator.add_model(Model(name="acme/unheard-of", parameters=parameters))
    for name, (args, code, text) in BAD.items():
        there = cli("generate", *args, "--json")
        here = cli("generate", *args, "--json", env=served.as_if_here)
        assert (there.code, here.code) == (code, code), (name, there, here)
        assert text in there.stderr, name
        assert [there.json[one] for one in ("error", "detail", "hint")] == [
            here.json[one] for one in ("error", "detail", "hint")
        ], name
        # Here the line begins with the backend that said so.
        assert there.stderr == re.sub(r"^imagen: [\w-]+-replicate: ", "imagen: ", here.stderr), name
    assert not replicate_emulator.journal.entries(operation=CREATE)


def test_a_prediction_that_fails_is_5(cli: Any, served: Served, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("fail", preset="nsfw")
    done = cli("generate", "a fox", "--json", code=5)
    report = done.json
    assert (report["error"], report["status"], report["charged"]) == ("prediction_failed", "failed", False)
    assert re.match(r"imagen: prediction \w+ failed: .* The content filter refused it", done.stderr)
    shown = cli("predictions", "show", report["id"], "--json", env={"IMAGEN_DATA_DIR": str(served.data)})
    assert shown.json["status"] == "failed"


def test_what_came_of_each_of_several_is_told(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("fail", error="the model fell over", times=1)
    report = cli("generate", "a fox", "-n", "6", "--json", code=5).json
    assert sorted(one["status"] for one in report["predictions"]) == ["failed", "succeeded"]
    assert len(report["files"]) in {2, 4}


def test_no_place_in_a_semaphore_is_3(cli: Any, served: Served, replicate_emulator: EmulatorThread) -> None:
    cli("semaphore", "register", "gpu", "1", env=ADMIN, code=0)
    holding = cli.start("semaphore", "run", "gpu", *shell("echo in; exec sleep 30"))
    assert holding.read_line() == "in\n"
    done = cli("generate", "a fox", "--semaphore", "gpu", "--json", code=3)
    assert done.json["error"] == "rate_limited"
    assert replicate_emulator.purchases == 0
    holding.stop()
    cli("generate", "a fox", "--semaphore", "gpu", code=0)


def test_a_wrong_key_is_3_and_shown_nowhere(cli: Any, served: Served) -> None:
    done = cli("generate", "a fox", env={"IMAGEN_API_KEY": "imk_canary"}, code=3)
    assert done.stderr.startswith("imagen: Invalid API key. ")
    admin = cli("keys", "list", env={"CONCURRENT_DOCKER_ADMIN_API_KEY": "canary"}, code=3)
    assert admin.stderr == (
        "imagen: Invalid admin API key. Set CONCURRENT_DOCKER_ADMIN_API_KEY to its admin key.\n"
    )
    assert "canary" not in str(done) + str(admin)


def test_nobody_there_is_4_and_so_is_another_service(cli: Any, replicate_emulator: EmulatorThread) -> None:
    gone = cli("generate", "a fox", "--server", "http://127.0.0.1:1", "--json", code=4)
    assert gone.json["error"] == "connect_failed"
    assert gone.json["hint"] == "Is `imagen serve` running at http://127.0.0.1:1?"
    for args in (("generate", "a fox"), ("semaphore", "list"), ("keys", "list")):
        other = cli(*args, "--server", replicate_emulator.url, code=4)
        assert (
            f"what answers at {replicate_emulator.url} refused, and not as an imagen gateway" in other.stderr
        )
    assert replicate_emulator.purchases == 0


@pytest.mark.parametrize(
    "address", ["http://192.0.2.7:5003", "pictures.example", "https://me:secret@pictures.example", "ftp://h"]
)
def test_no_key_and_no_prompt_travel_in_clear(cli: Any, address: str) -> None:
    done = cli("generate", "a fox", "--server", address, env={"IMAGEN_API_KEY": "imk_x"}, code=2)
    assert "server: it must be an address such as https://host/path" in done.stderr
    assert "ssh -L 5003:127.0.0.1:5003" in done.stderr
    assert "secret" not in done.stderr
    setting = cli("generate", "a fox", env={"IMAGEN_SERVER": address}, code=2)
    assert setting.stderr.startswith("imagen: environment IMAGEN_SERVER: remote.url must be an address")


def test_what_a_gateway_cannot_be_asked_for_is_refused(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    assert "never_repeat" in cli("generate", "a fox", "--never-repeat", code=2).stderr
    taken = cli("generate", "a fox", "-m", "acme/unheard-of", "--opt", "store=true", code=2)
    assert "store: a gateway takes this name for itself" in taken.stderr
    assert replicate_emulator.purchases == 0


def test_ctrl_c_cancels_upstream_and_says_so(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=50.0)
    asking = cli.start("generate", "a fox")
    wait_for(lambda: replicate_emulator.purchases)
    done = asking.stop(signal.SIGINT)
    assert done.code == 130
    assert f"the connection to {served.url} is closed: the gateway cancels what it was making" in done.stderr
    wait_for(lambda: replicate_emulator.journal.entries(operation="predictions.cancel"))
    listed: list[Any] = []

    def is_canceled() -> bool:
        there = {"IMAGEN_DATA_DIR": str(served.data)}
        listed[:] = cli("predictions", "list", "--json", env=there, code=0).json
        return [one["status"] for one in listed] == ["canceled"]

    wait_for(is_canceled)


def test_ctrl_c_while_fetching_says_where_the_picture_is(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation="delivery", seconds=20)
    asking = cli.start("generate", "a fox")
    wait_for((cli.data / "incoming").exists)
    time.sleep(0.3)
    done = asking.stop(signal.SIGINT)
    assert done.code == 130
    assert re.search(
        r"had made pred_\w+ already \(charged\); for an hour: http://127\.0\.0\.1:\d+/", done.stderr
    )
    assert not replicate_emulator.journal.entries(operation="predictions.cancel")


def test_a_picture_that_does_not_come_is_told_with_its_address(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop", operation="delivery", times=None)
    done = cli("generate", "a fox", "--json", code=70)
    report = done.json
    assert report["error"] == "delivery_error"
    assert report["status"] == "succeeded"
    assert report["hint"] == (
        f"`curl -O {report['urls'][0]}` fetches it within the hour; nothing is bought again."
    )


def test_a_gateway_that_dies_meanwhile_is_4_and_the_next_step_is_told(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=50.0)
    asking = cli.start("generate", "a fox")
    wait_for(lambda: replicate_emulator.purchases)
    served.process.stop(signal.SIGKILL)
    asking.process.wait(20)
    done = asking.stop()
    assert done.code == 4
    assert "`imagen predictions list` there tells what became of it" in done.stderr


def test_a_preview_that_was_lost_with_its_gateway_is_not_told_as_free(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=50.0, times=1)
    asking = cli.start("generate", "a fox", "-m", "flux-dev", "--preview", "2", "-o", "out/", "--json")
    wait_for(lambda: list((cli.work / "out").glob("previews-*/*.*")))
    served.process.stop(signal.SIGKILL)
    asking.process.wait(20)
    costs = {bool(one["files"]): one["cost_usd"] for one in asking.stop().json["previews"]}
    assert costs == {True: 0.003, False: None}


# --- semaphores and keys ---------------------------------------------------------------------------------


def test_commands_on_two_machines_exclude_each_other(cli: Any, served: Served) -> None:
    assert "Set CONCURRENT_DOCKER_ADMIN_API_KEY" in cli("semaphore", "register", "gpu", "1", code=3).stderr
    assert "limit: 0 is not allowed" in cli("semaphore", "register", "gpu", "0", code=2).stderr
    cli("semaphore", "register", "gpu", "1", env=ADMIN, code=0)
    run = ("semaphore", "run", "gpu", *shell(ONE_AT_A_TIME))
    started = [
        cli.start(*run, env={"IMAGEN_DATA_DIR": str(cli.root / name)}) for name in ("one", "two", "three")
    ]
    for each in started:
        each.process.wait(50)
    assert [each.process.returncode for each in started] == [0, 0, 0]
    assert cli("semaphore", "list", code=0).lines == ["gpu  0 of 1 held, 0 waiting"]
    assert "No semaphore yet" in cli("semaphore", "list", "--server", "", code=0).stderr


def test_a_place_is_held_there_for_as_long_as_the_command_runs_here(cli: Any, served: Served) -> None:
    cli("semaphore", "register", "gpu", "1", env=ADMIN, code=0)
    until_done = "echo in; while [ ! -e done ]; do sleep 0.1; done; exit 7"
    long = cli.start("semaphore", "run", "gpu", "--ttl", "1", "--holder", "nightly", *shell(until_done))
    assert long.read_line() == "in\n"
    for wait in ("0", "1.5"):
        done = cli("semaphore", "run", "gpu", "--wait", wait, *shell("touch ran"), code=3)
        assert "no place in semaphore 'gpu'" in done.stderr
    shown = cli("semaphore", "show", "gpu", "--json", code=0).json
    assert [one["holder"] for one in shown["holders"]] == ["nightly"]
    assert cli("semaphore", "show", "gpu", code=0).lines[0] == "gpu  1 of 1 held, 0 waiting"
    (cli.work / "done").touch()
    assert long.process.wait(30) == 7
    cli("semaphore", "run", "gpu", "--wait", "0", *shell("true"), code=0)
    assert not (cli.work / "ran").exists()
    cli("semaphore", "remove", "gpu", env=ADMIN, code=0)
    cli("semaphore", "run", "gpu", *shell("true"), code=2)


def test_interrupting_a_command_gives_its_place_back(cli: Any, served: Served) -> None:
    cli("semaphore", "register", "gpu", "1", env=ADMIN, code=0)
    holding = cli.start("semaphore", "run", "gpu", *shell("echo in; exec sleep 30"))
    assert holding.read_line() == "in\n"
    waiting = cli.start("semaphore", "run", "gpu", *shell("true"))
    wait_for(lambda: "1 waiting" in cli("semaphore", "list", code=0).stdout)
    assert waiting.stop(signal.SIGINT).code == 130
    wait_for(lambda: "0 waiting" in cli("semaphore", "list", code=0).stdout)
    assert holding.stop(signal.SIGTERM).code == 143
    assert cli("semaphore", "list", code=0).lines == ["gpu  0 of 1 held, 0 waiting"]


def test_a_key_that_is_made_there_is_good_there(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    assert "Set CONCURRENT_DOCKER_ADMIN_API_KEY" in cli("keys", "create", "shop", code=3).stderr
    made = cli("keys", "create", "shop", "--model", "flux-schnell", "--json", env=ADMIN, code=0).json
    (listed,) = cli("keys", "list", "--json", env=ADMIN, code=0).json
    assert listed | {"key": made["key"]} == made
    again = cli("keys", "create", "shop", env=ADMIN, code=2)
    assert "revoke" in again.stderr
    assert "name" in cli("keys", "create", "web shop", env=ADMIN, code=2).stderr

    # The key, and not the admin's, is shown where it is good enough: the ledger there names it.
    env = ADMIN | {"IMAGEN_API_KEY": made["key"]}
    cli("generate", "a fox", env=env, code=0)
    assert (
        cli("generate", "a fox", "-m", "flux-dev", "--json", env=env, code=3).json["error"]
        == "permission_denied"
    )
    (row,) = cli("usage", "--raw", "--json", env=env, code=0).json["entries"]
    (own,) = cli("usage", "--raw", "--json", env={"IMAGEN_API_KEY": made["key"]}, code=0).json["entries"]
    assert row == own
    assert (row["caller"], row["key_id"]) == ("shop", made["id"])
    assert cli("usage", "--raw", "--json", code=0).json["entries"] == []  # without a key: not theirs

    assert cli("keys", "revoke", "shop", env=env, code=0).stderr == "key shop revoked\n"
    assert cli("keys", "list", "--json", env=env, code=0).json == []
    cli("generate", "a fox", env=env, code=3)
    assert replicate_emulator.purchases == 1
    found = [
        path for path in cli.root.rglob("*") if path.is_file() and made["key"].encode() in path.read_bytes()
    ]
    assert found == []


def test_previews_and_their_final_are_held_below_what_they_may_cost_there(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    wish = ("generate", PROMPT, "-m", "flux-1.1-pro", "--preview", "2", "--pick", "1", "--json")
    dear = cli(*wish, "--max-cost", "0.0459", code=3)
    assert (dear.json["error"], dear.json["quote_usd"]) == ("budget_exceeded", 0.046)
    cli("budget", "set", "small", "--usd", "0.045", "--per", "day", "--all", env=ADMIN, code=0)
    short = cli(*wish, code=3)
    assert (short.json["error"], short.json["budget"], short.json["quote_usd"]) == (
        "budget_exceeded",
        "small",
        0.046,
    )
    assert "unknown" not in dear.stderr + short.stderr
    assert replicate_emulator.purchases == 0
    cli("budget", "set", "small", "--usd", "0.046", "--per", "day", "--all", env=ADMIN, code=0)
    done = cli(*wish, "--max-cost", "0.046", code=0)
    assert len(done.json["finals"]) == 1
    assert (
        "2 previews on black-forest-labs/flux-schnell: $0.006; a final on black-forest-labs/flux-1.1-pro: $0.04"
        in (done.stderr)
    )


def test_previews_and_their_finals_are_made_there(
    cli: Any, served: Served, replicate_emulator: EmulatorThread
) -> None:
    wish = (
        "generate",
        PROMPT,
        "-m",
        "flux-1.1-pro",
        "--preview",
        "2",
        "--pick",
        "2",
        "--seed",
        "5",
        "--json",
    )
    done = cli(*wish, "--preset", "pod", "-o", "out/", code=0)
    (final,) = done.json["finals"]
    assert done.json["preview_model"] == "black-forest-labs/flux-schnell"
    assert (final["seed"], final["parent"]) == (6, done.json["previews"][1]["id"])
    assert done.json["spent"]["saved_usd"] == 0.034
    assert "preset pod: flux-1.1-pro does not take negative_prompt" in done.stderr
    assert Path(final["files"][0]).parent == cli.work / "out"
    picked = done.json["previews"][0]["id"]
    dry = cli("promote", picked, "--dry-run", "--json", code=0).json
    assert dry["quote"] == {"low_usd": 0.04, "likely_usd": 0.04, "high_usd": 0.04}
    assert "$0.04" in cli("promote", picked, "--dry-run", code=0).stdout
    later = cli("promote", picked, "-m", "nano-banana", "--json", code=0).json
    assert (later["tier"], later["left_out"]) == ("final", ["seed"])
    assert later["saved_usd"] is not None
    bought = [one.body["input"] for one in replicate_emulator.journal.entries(operation=CREATE)]
    assert [one["aspect_ratio"] for one in bought] == ["4:3"] * 4
