"""`imagen estimate`, `recommend`, `keep`, `reject` and `preferences`, here and with `--server`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from imagen.emulator import EmulatorThread

pytestmark = pytest.mark.replicate_emulator(run_seconds=0.02)
CREATE = "predictions.create"
PHOTO = "a photo of a red fox, bokeh"
RULE = ("--budget", "2", "--iterations", "40")


@pytest.fixture
def buyer(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command, with a token and an account."""
    cli.env["IMAGEN_REPLICATE__API_BASE"] = replicate_emulator.url
    cli.env["REPLICATE_API_TOKEN"] = "r8_choice"
    return cli


@pytest.fixture
def served(cli: Any, replicate_emulator: EmulatorThread) -> Iterator[str]:
    """A gateway on data of its own; its address."""
    env = {
        "IMAGEN_DATA_DIR": str(cli.root / "gateway"),
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
        "REPLICATE_API_TOKEN": "r8_the_gateways_own",
        "CONCURRENT_DOCKER_ADMIN_API_KEY": "admin-of-this-test",
    }
    process = cli.start("serve", "--port", "0", "--json", env=env)
    cli.env["CONCURRENT_DOCKER_ADMIN_API_KEY"] = "admin-of-this-test"
    yield str(json.loads(process.read_line())["url"])
    assert process.stop().code in {0, -signal.SIGKILL}


def generate(cli: Any, *args: str) -> dict[str, Any]:
    return cli("generate", PHOTO, "--no-download", "--json", *args, code=0).json


# --- estimate --------------------------------------------------------------------------------------------


def test_an_estimate_of_practice_says_what_it_would_cost_with_a_token(cli: Any) -> None:
    shown = cli("estimate", "a red fox", "-m", "flux-dev", "--count", "4", code=0).stdout
    assert "nothing: it would be practice" in shown
    assert "$0.10" in shown
    assert "at once" in shown
    told = cli("estimate", "a red fox", "-m", "flux-dev", "-n", "4", "--json", code=0).json
    assert (told["practice"], told["quote"]["high_usd"], told["listed"]["high_usd"]) == (True, 0.0, 0.1)
    assert cli("predictions", "list", "--json", code=0).json == []


def test_an_estimate_with_an_account(buyer: Any, replicate_emulator: EmulatorThread) -> None:
    buyer("semaphore", "register", "gpu", "1", code=0)
    buyer("budget", "set", "tiny", "--usd", "0.07", "--per", "day", "--all", code=0)
    holding = buyer.start("semaphore", "run", "gpu", "--", "sh", "-c", "echo in; exec sleep 60")
    assert holding.read_line() == "in\n"
    args = ("estimate", "a red fox", "-m", "flux-1.1-pro-ultra")
    told = buyer(*args, "--semaphore", "gpu", "--json", code=0).json
    assert (told["practice"], told["quote"]["high_usd"], told["short_of"]) == (False, 0.06, None)
    assert (told["limit"], told["position"]) == ("semaphore:gpu", 1)
    assert all(one["quote"]["likely_usd"] < 0.06 for one in told["cheaper"])
    shown = buyer(*args, "--semaphore", "gpu", code=0).stdout
    assert "number 1 in line for the semaphore gpu" in shown
    holding.stop()
    shown = buyer(*args, "--count", "2", code=3).stdout
    assert "tiny: it would be refused; this costs up to $0.12" in shown
    assert "waits for" not in shown
    assert replicate_emulator.journal.entries(operation=CREATE) == ()


def test_an_estimate_names_its_preset_and_what_the_model_does_not_take_of_it(buyer: Any) -> None:
    told = buyer("estimate", "a red fox", "-m", "flux-dev", "--preset", "pod", "--json", code=0).json
    assert (told["preset"], told["left_out"]) == ("pod", ["negative_prompt"])
    shown = buyer("estimate", "a red fox", "-m", "flux-dev", "--preset", "pod", code=0).stdout
    assert "pod (without negative_prompt" in shown


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("-m", "nonsense"), 2, "No model is called"),
        (("--semaphore", "nope"), 2, "nope"),
        (("--max-cost", "0.001"), 3, "more than the $0.001"),
    ],
)
def test_an_estimate_refuses_what_generate_refuses(
    buyer: Any, args: tuple[str, ...], status: int, said: str
) -> None:
    assert said in buyer("estimate", "a red fox", *args, code=status).stderr


def test_an_estimate_of_a_gateway_counts_all_runs(
    cli: Any, served: str, replicate_emulator: EmulatorThread
) -> None:
    args = ("estimate", "a red fox", "-m", "flux-dev", "-n", "6", "--json", "--server", served)
    told = cli(*args, code=0).json
    assert (told["images"], told["predictions"], told["quote"]["high_usd"]) == (6, 2, 0.15)
    assert replicate_emulator.journal.entries(operation=CREATE) == ()


@pytest.mark.parametrize("there", [False, True])
def test_what_would_be_refused_is_told_in_one_way(cli: Any, buyer: Any, served: str, there: bool) -> None:
    at = ("--server", served) if there else ()
    args = ("estimate", "a red fox", "-m", "flux-dev", *at)
    cli("budget", "set", "small", "--usd", "0.01", "--per", "day", "--all", *at, code=0)
    for more, budget in (((), "small"), (("--max-cost", "0.02"), None)):
        told = buyer(*args, *more, "--json", code=3).json
        assert (told["error"], told["budget"], told["quote_usd"]) == ("budget_exceeded", budget, 0.025)
        assert (told["quote"]["high_usd"], told["limit"], told["short_of"]["waits"]) == (0.025, None, False)
        shown = buyer(*args, *more, code=3)
        assert "It renews at" in shown.stdout
        assert "waits for" not in shown.stdout
        assert "nothing was bought" in shown.stderr
    assert told["renews_at"] is None


# --- recommend -------------------------------------------------------------------------------------------


def test_a_recommendation_is_one_sentence_with_its_numbers(cli: Any) -> None:
    shown = cli("recommend", "--budget", "5", "--iterations", "40", "--quality", "high", code=0).lines
    assert shown[0].startswith("flux-1.1-pro-ultra at $0.06 a picture: $5.00 for 40 pictures is $0.125 each")
    assert "rule +20" in shown[3]
    told = cli("recommend", "--budget", "5", "--iterations", "40", "--needs", "mask", "--json", code=0).json
    assert told["rule"] == "bytedance/seedream-4"
    assert "cannot do all of what is needed (mask)" in told["sentence"]
    told = cli("recommend", 'a sign that says "Open"', *RULE, "--json", code=0).json
    assert (told["prompt"]["kind"], told["prompt"]["needs"]) == ("text", ["typography"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*RULE, "--quality", "best"), "must be standard or high"),
        ((*RULE, "--needs", "magic"), "must be one of edit, mask"),
        (
            (*RULE, "--needs", "vector", "--needs", "mask"),
            "no model of the catalog is known that can do mask and vector",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Any, args: tuple[str, ...], said: str) -> None:
    assert said in cli("recommend", *args, code=2).stderr


# --- keep and reject -------------------------------------------------------------------------------------


def test_what_is_kept_is_shown_exported_and_erased(buyer: Any) -> None:
    made, other = generate(buyer), generate(buyer, "-m", "flux-dev")
    assert "kept" in buyer("keep", made["id"], made["id"], other["id"][:20], code=0).stdout
    assert buyer("reject", other["id"], "--json", code=0).json[0]["verdict"] == "reject"
    shown = buyer("preferences", "show", code=0).stdout
    assert "photo  black-forest-labs/flux-schnell" in shown
    told = buyer("preferences", "show", "--json", code=0).json
    assert [(one["kept"], one["rejected"]) for one in told["preferences"]] == [(1, 0), (0, 1)]
    exported = buyer("preferences", "export", code=0).lines
    assert exported[0] == "prediction_id,verdict,caller,model,kind,at"
    assert {line.split(",")[1] for line in exported[1:]} == {"keep", "reject"}
    assert "fox" not in "".join(exported)
    assert buyer("preferences", "show", "--caller", "nobody", "--json", code=0).json["count"] == 0
    assert "2 judgements of unknown erased" in buyer("preferences", "erase", code=0).stderr
    assert "nothing was learned" in buyer("preferences", "show", code=0).stderr


def test_of_several_all_are_judged_or_none(cli: Any, served: str, buyer: Any) -> None:
    for at in ((), ("--server", served)):
        made = generate(buyer, *at)
        assert "pred_nothing" in buyer("keep", made["id"], "pred_nothing", *at, code=2).stderr
        assert buyer("preferences", "export", "--json", *at, code=0).json == []
        buyer("keep", made["id"], generate(buyer, "-m", "flux-dev", *at)["id"], *at, code=0)
        assert len(buyer("preferences", "export", "--json", *at, code=0).json) == 2


def test_what_is_not_there_or_switched_off_is_said(buyer: Any) -> None:
    assert "pred_nothing" in buyer("keep", "pred_nothing", code=2).stderr
    assert "too short" in buyer("keep", "", code=2).stderr
    made = generate(buyer)
    off = {"IMAGEN_LEARNING": "false"}
    assert "switched off here; nothing was written" in buyer("keep", made["id"], env=off, code=3).stderr
    assert buyer("preferences", "export", "--json", code=0).json == []
    assert "learning is switched off" in buyer("recommend", *RULE, env=off, code=0).stderr


def test_the_same_at_a_gateway(cli: Any, served: str) -> None:
    at = ("--server", served)
    made = generate(cli, *at)
    assert cli("keep", made["id"], *at, "--json", code=0).json[0]["verdict"] == "keep"
    told = cli("preferences", "show", *at, "--json", code=0).json
    assert (told["caller"], told["preferences"][0]["kept"]) == ("admin", 1)
    found = cli("recommend", PHOTO, *RULE, *at, "--json", code=0).json
    assert found["rule"] == "bytedance/seedream-4"
    assert cli("preferences", "erase", "--caller", "admin", *at, "--json", code=0).json["erased"] == 1
