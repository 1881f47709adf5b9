"""Stories of `imagen backends` and `imagen models`."""

from __future__ import annotations

from typing import Any

from imagen.emulator import EmulatorThread, Model

CONFIG = """\
default_backend: fast
backends:
  fast: {type: replicate, model: flux-schnell}
  typo: {type: replicate, model: flux-schnel}
  own-gpu: {type: diffusers, model: black-forest-labs/FLUX.1-schnell}
  other: {type: replicate, model: black-forest-labs/flux-dev, api_token_env: OTHER_TOKEN}
"""


def test_backends_are_ok_or_say_what_to_set(cli: Any) -> None:
    done = cli("backends", code=0)
    rows = {line.split()[0]: line for line in done.lines}
    assert rows["flux-schnell-replicate"].endswith("not configured (set REPLICATE_API_TOKEN)")
    assert rows["emulator"].split() == ["emulator", "emulator", "black-forest-labs/flux-schnell", "yes", "ok"]
    assert "practice" in done.stderr
    done = cli("backends", env={"REPLICATE_API_TOKEN": "r8_any"}, code=0)
    rows = {line.split()[0]: line for line in done.lines}
    assert rows["flux-schnell-replicate"].split()[3:] == ["yes", "ok"]
    assert done.stderr == ""


def test_a_faulty_backend_shows_its_fault_and_spoils_no_other(cli: Any) -> None:
    cli.write_config(CONFIG)
    rows = cli("backends", "--json", env={"REPLICATE_API_TOKEN": "r8_any"}, code=0).json
    status = {row["name"]: row["status"] for row in rows}
    assert list(status) == ["fast", "typo", "own-gpu", "other", "emulator"]
    assert status["fast"] == "ok"
    assert status["typo"].startswith("fault: No model is called 'flux-schnel'. Did you mean flux-schnell")
    assert status["own-gpu"].startswith("fault: ")
    assert "diffusers" in status["own-gpu"]
    assert status["other"] == "not configured (set OTHER_TOKEN)"
    assert [row["name"] for row in rows if row["default"]] == ["fast"]
    assert [row["name"] for row in rows if row["ready"]] == ["fast", "emulator"]


def test_credentials_that_cannot_be_read_show_in_the_rows_that_need_them(cli: Any) -> None:
    file = cli.config_home / "imagen" / "credentials.json"
    file.parent.mkdir()
    file.write_text("{}")
    file.chmod(0o644)
    rows = {row["name"]: row for row in cli("backends", "--json", code=0).json}
    assert "chmod 600" in rows["flux-dev-replicate"]["status"]
    assert rows["emulator"]["ready"]


def test_models_are_listed_with_price_and_unit(cli: Any) -> None:
    done = cli("models", code=0)
    assert done.lines[0].split() == ["name", "price", "checked", "quality", "seconds", "abilities"]
    schnell = next(line for line in done.lines if line.startswith("black-forest-labs/flux-schnell "))
    assert "$0.003/image" in schnell
    assert "several outputs" in schnell
    assert "stale" in done.stderr
    listed = cli("models", "--json", code=0).json
    assert len(listed) == len(done.lines) - 1
    price = next(one["price"] for one in listed if one["name"] == "black-forest-labs/flux-schnell")
    assert (price["unit"], price["usd"]) == ("image", 0.003)
    assert any(one["price"] is None for one in listed)


def test_one_model_is_told_in_full_by_any_of_its_names(cli: Any) -> None:
    done = cli("models", "fluxSchnell", code=0)
    for told in ("black-forest-labs/flux-schnell", "also called", "$0.003/image", "checked on", "60 s"):
        assert told in done.stdout
    steps = next(line for line in done.lines if line.startswith("num_inference_steps"))
    assert "1 to 4" in steps
    assert "integer" in steps
    facts = cli("models", "black-forest-labs/flux-schnell:5599ed30", "--json", code=0).json
    assert facts["input_schema"]["properties"]["num_inference_steps"]["maximum"] == 4
    assert facts["prices"][0]["source"]


def test_the_list_tells_how_old_a_price_is_and_what_is_not_known(cli: Any) -> None:
    done = cli("models", code=0)
    rows = {line.split()[0]: line for line in done.lines}
    assert "2025-01-01 stale" in rows["black-forest-labs/flux-1.1-pro-ultra"]
    assert rows["luma/photon-flash"].split()[1:3] == ["?", "-"]
    assert "stale" in done.stderr
    assert "are not known. `models:` in imagen.yaml" in done.stderr
    listed = {one["name"]: one for one in cli("models", "--json", code=0).json}
    ultra = listed["black-forest-labs/flux-1.1-pro-ultra"]
    assert (ultra["price"]["checked_on"], ultra["price"]["stale"]) == ("2025-01-01", True)
    assert (ultra["quality"], ultra["typical_seconds"], ultra["abilities"]) == (4, None, ["photo", "seed"])
    assert listed["luma/photon-flash"]["price"] is None


def test_show_tells_every_price_with_its_condition_and_source(cli: Any) -> None:
    done = cli("models", "show", "nano-banana-pro", code=0)
    assert done.stdout == cli("models", "nano-banana-pro", code=0).stdout
    assert "$0.30/image when resolution = 4K" in done.stdout
    assert "$0.15/image when resolution = 1K or 2K" in done.stdout
    assert done.stdout.count("checked on 2026-01-01") == 2
    assert "5 of 5" in done.stdout
    prices = cli("models", "show", "nano-banana-pro", "--json", code=0).json["prices"]
    assert [price["when"] for price in prices] == [{"resolution": ["4K"]}, {"resolution": ["1K", "2K"]}]
    assert "one model" in cli("models", "show", code=2).stderr
    assert "one model" in cli("models", "show", "a", "b", code=2).stderr


def test_facts_of_the_configuration_are_shown_and_mistakes_told_with_their_line(cli: Any) -> None:
    cli.write_config(
        "models:\n  flux-dev: {price: 0.02}\n  someone/hobby: {per_second: gpu-a100-large}\n"
        "  someone/flat: {per_run: 0.05}\n"
    )
    assert "$0.02/image\n" in cli("models", "show", "flux-dev", code=0).stdout
    assert "configured" in cli("models", "show", "flux-dev", code=0).stdout
    listed = {one["name"]: one["price"] for one in cli("models", "--json", code=0).json}
    hobby, flat = listed["someone/hobby"], listed["someone/flat"]
    assert (hobby["unit"], hobby["usd"], hobby["hardware"]) == ("second", 0.0014, "gpu-a100-large")
    assert (flat["unit"], flat["usd"], flat["text"]) == ("run", 0.05, "$0.05/run")
    shown = {row["name"]: row for row in cli("config", "show", "--json", code=0).json["settings"]}
    assert shown["models.flux-dev.price"]["value"] == "0.02"
    assert shown["models.flux-dev.price"]["source"].endswith("imagen.yaml:2")
    cli.write_config("models:\n  flux-dev:\n    prize: 0.02\n")
    assert "imagen.yaml:3: models.flux-dev.prize" in cli("models", code=2).stderr


def test_a_model_that_the_catalog_lacks_is_asked_for_where_there_is_a_token(
    cli: Any, replicate_emulator: EmulatorThread
) -> None:
    community = "someone/watercolours"
    replicate_emulator.add_model(Model(name=community, official=False))
    done = cli("models", community, code=2)
    assert "is not in the catalog" in done.stderr
    assert "REPLICATE_API_TOKEN" in done.stderr
    done = cli("models", "flux-schnel", code=2)
    assert "Did you mean flux-schnell" in done.stderr
    cli.use(replicate_emulator.url)
    facts = cli("models", community, "--json", code=0).json
    assert facts["input_schema"]["required"] == ["prompt"]
    assert facts["price"] is None
    assert facts["runs_as"].startswith(f"{community}:")
    done = cli("models", community, code=0)
    assert "Not in the catalog" in done.stdout
    assert "required" in done.lines[-1]
    done = cli("models", "nobody/nothing", code=4)
    assert "nobody/nothing" in done.stderr
