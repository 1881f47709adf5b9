"""Stories of `imagen doctor`: every fault comes with the one command that mends it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from seeded import prediction, succeeded

from imagen.cli.checkup import check_clock
from imagen.domain.prediction import Status
from imagen.emulator import EmulatorThread


def findings(done: Any) -> dict[str, dict[str, Any]]:
    for finding in done.json["findings"]:
        assert (finding["mend"] is None) == (finding["level"] == "ok"), finding
        assert (finding["blame"] is not None) == (finding["level"] == "fault"), finding
    return {finding["what"]: finding for finding in done.json["findings"]}


def levels(done: Any) -> dict[str, str]:
    return {what: finding["level"] for what, finding in findings(done).items()}


def test_a_fresh_machine_can_practise(cli: Any) -> None:
    done = cli("doctor", code=0)
    assert "emulator" in done.stdout
    assert done.lines[-1] or done.stderr.endswith("0 faults, 1 warning\n")
    marks = [line for line in done.lines if line.strip().startswith("mend: ")]
    assert marks == ["      mend: imagen auth login"]


def test_with_a_token_that_works_all_is_well(cli: Any, replicate_emulator: EmulatorThread) -> None:
    cli.use(replicate_emulator.url)
    done = cli("doctor", "--json", code=0)
    assert set(levels(done).values()) == {"ok"}, done
    assert {"config", "data folder", "database", "token", "service", "clock", "prices"} <= set(levels(done))


def test_a_token_that_does_not_work(cli: Any, replicate_emulator: EmulatorThread) -> None:
    cli.use(replicate_emulator.url, "r8_invalid_canary")
    done = cli("doctor", "--json", code=4)
    assert findings(done)["token"]["mend"] == "imagen auth login"
    assert "canary" not in done.stdout + done.stderr


def test_a_service_out_of_reach_and_a_missing_token_are_the_service_s_faults(cli: Any) -> None:
    cli.use("http://127.0.0.1:9")
    done = cli("doctor", "--json", code=4)
    assert levels(done)["service"] == "fault"
    assert "refused" in findings(done)["service"]["detail"]
    assert "service" not in levels(cli("doctor", "--offline", "--json", code=0))
    del cli.env["REPLICATE_API_TOKEN"]
    cli("config", "init", code=0)
    done = cli("doctor", "--json", code=4)
    assert findings(done)["token"]["mend"] == "imagen auth login"


def test_a_broken_configuration_is_found_first(cli: Any) -> None:
    cli.write_config("timeuot: 90\n")
    done = cli("doctor", "--json", code=2)
    assert levels(done) == {"config": "fault"}
    assert "timeout" in findings(done)["config"]["mend"]


def test_a_default_backend_without_a_known_model_is_a_fault_and_another_s_a_warning(cli: Any) -> None:
    cli.write_config(
        "default_backend: a\nbackends:\n  a: {type: replicate, model: flux-schnel}\n"
        "  b: {type: diffusers, model: x/y}\n"
    )
    done = cli("doctor", "--json", code=2)
    assert levels(done)["backend a"] == "fault"
    assert "imagen.yaml:3" in findings(done)["backend a"]["mend"]
    assert levels(done)["backend b"] == "warn"


def test_credentials_open_to_others(cli: Any) -> None:
    file = cli.config_home / "imagen" / "credentials.json"
    file.parent.mkdir()
    file.write_text("{}")
    file.chmod(0o644)
    done = cli("doctor", "--json", code=2)
    assert findings(done)["credentials"]["mend"] == f"chmod 600 '{file}'"


def test_a_damaged_database_is_this_machine_s_fault(cli: Any) -> None:
    cli.data.mkdir()
    (cli.data / "imagen.db").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    done = cli("doctor", "--json", "--offline", code=70)
    assert levels(done)["database"] == "fault"


def test_a_data_folder_that_is_a_file(cli: Any) -> None:
    cli.data.write_text("")
    done = cli("doctor", "--json", "--offline", code=70)
    assert levels(done)["data folder"] == "fault"
    assert "IMAGEN_DATA_DIR" in findings(done)["data folder"]["mend"]


def test_what_is_left_to_do_is_a_warning_with_its_command(cli: Any, remember: Callable[..., None]) -> None:
    left = succeeded(ago=timedelta(minutes=5), delivered_at=None, files=(), settled_at=None)
    remember(left)
    done = cli("doctor", "--offline", "--json", code=0)
    assert findings(done)["unfinished"]["mend"] == f"imagen predictions adopt {left.id}"
    assert findings(done)["ledger"]["mend"] == "imagen usage"
    remember(prediction(upstream_id="up9", status=Status.PROCESSING))
    cli("usage", code=0)
    done = cli("doctor", "--offline", "--json", code=0)
    assert findings(done)["unfinished"]["mend"] == "imagen predictions list --unfinished"
    assert levels(done)["ledger"] == "ok"


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, "ok"), (30, "ok"), (-30, "ok"), (31, "fault"), (-3600, "fault")]
)
def test_a_clock_may_differ_by_half_a_minute(seconds: int, level: str) -> None:
    found = check_clock(timedelta(seconds=seconds))
    assert found.level == level
    if level == "fault":
        assert ("ahead of" if seconds > 0 else "behind") in found.detail
        assert found.mend
        assert found.mend.startswith("sudo ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_cannot_be_written(cli: Any) -> None:
    cli.data.mkdir(mode=0o500)
    assert levels(cli("doctor", "--json", "--offline", code=70))["data folder"] == "fault"


def test_a_damaged_row_is_a_warning_that_names_it(cli: Any, remember: Callable[..., None]) -> None:
    left = prediction()
    remember(left)
    with sqlite3.connect(cli.data / "imagen.db") as connection:
        connection.execute("UPDATE predictions SET input = '{'")
    connection.close()

    found = findings(cli("doctor", "--offline", "--json", code=0))["damaged rows"]

    assert found["level"] == "warn"
    assert left.id in found["detail"]
    assert "backup" in found["mend"]


def test_stale_and_unknown_prices_of_configured_models_are_counted_and_named(cli: Any) -> None:
    cli.write_config(
        "default_backend: a\nbackends:\n  a: {type: replicate, model: flux-1.1-pro-ultra}\n"
        "  b: {type: replicate, model: photon-flash}\n  c: {type: replicate, model: sdxl}\n"
    )
    found = findings(cli("doctor", "--offline", "--json", env={"REPLICATE_API_TOKEN": "r8_any"}, code=0))[
        "prices"
    ]
    assert found["level"] == "warn"
    assert "of 2 models last checked more than 90 days ago" in found["detail"]
    assert "black-forest-labs/flux-1.1-pro-ultra" in found["detail"]
    assert "of 1 model not known: luma/photon-flash" in found["detail"]
    assert "imagen.yaml" in found["mend"]
    with (cli.work / "imagen.yaml").open("a") as file:
        file.write("models:\n  flux-1.1-pro-ultra: {price: 0.06}\n  photon-flash: {price: 0.01}\n")
        file.write("  sdxl: {per_second: gpu-l40s}\n")
    found = findings(cli("doctor", "--offline", "--json", env={"REPLICATE_API_TOKEN": "r8_any"}, code=0))[
        "prices"
    ]
    assert found["level"] == "ok"
    assert "of all 3 configured models" in found["detail"]


def test_a_price_that_makes_no_sense_is_a_fault_of_the_configuration(cli: Any) -> None:
    cli.write_config("models:\n  flux-dev:\n    price: cheap\n")
    found = findings(cli("doctor", "--offline", "--json", code=2))["config"]
    assert found["level"] == "fault"
    assert "imagen.yaml:3: models.flux-dev.price" in found["detail"]
