"""Stories of `imagen config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagen.settings import SAMPLE


def test_init_writes_the_sample_and_never_over_a_file(cli: Any) -> None:
    done = cli("config", "init", code=0)
    assert done.stdout == "wrote imagen.yaml\n"
    assert "auth login" in done.stderr
    written = cli.work / "imagen.yaml"
    assert written.read_text() == SAMPLE
    written.write_text("default_backend: emulator\n")
    refused = cli("config", "init", code=2)
    assert "--force" in refused.stderr
    assert written.read_text() == "default_backend: emulator\n"
    cli("config", "init", "--force", env={"REPLICATE_API_TOKEN": "r8_any"}, code=0)
    assert written.read_text() == SAMPLE
    assert [path.name for path in cli.work.iterdir()] == ["imagen.yaml"]


def test_init_for_the_user_and_elsewhere(cli: Any) -> None:
    own = cli.config_home / "imagen" / "imagen.yaml"
    assert cli("config", "init", "--user", code=0).stdout == f"wrote {own}\n"
    (cli.work / "sub").mkdir()
    done = cli("config", "init", "sub", code=0)
    assert done.stdout == f"wrote {Path('sub') / 'imagen.yaml'}\n"
    assert str(own) in done.stderr  # that one is read here
    assert "cannot be written" in cli("config", "init", "nowhere/imagen.yaml", code=2).stderr
    assert "exclude each other" in cli("config", "init", "--user", "x.yaml", code=2).stderr


def test_show_tells_where_each_value_came_from_and_hides_secrets(cli: Any) -> None:
    cli.write_config("timeout: 90\nadmin_api_key: canary-4711\n")
    done = cli("config", "show", env={"IMAGEN_LOG__LEVEL": "info"}, code=0)
    rows = {line.split()[0]: line.split()[1:] for line in done.lines[1:]}
    assert rows["timeout"] == ["90", "s", "imagen.yaml:1"]
    assert rows["admin_api_key"] == ["***", "imagen.yaml:2"]
    assert rows["log.level"] == ["info", "environment", "IMAGEN_LOG__LEVEL"]
    assert "canary" not in done.stdout + done.stderr
    shown = cli("config", "show", "--json", code=0).json
    assert shown["config_file"] == str(cli.work / "imagen.yaml")
    assert {"name", "value", "source", "help"} == set(shown["settings"][0])


def test_a_broken_file_is_told_in_one_line_and_still_found(cli: Any) -> None:
    cli.write_config("timeuot: 90\n")
    done = cli("config", "show", code=2)
    assert done.stderr.startswith(
        "imagen: imagen.yaml:1: there is no setting 'timeuot'. Did you mean timeout?"
    )
    assert len(done.stderr.splitlines()) == 1
    places = cli("config", "path", "--json", code=0).json
    assert places["read"] == str(cli.work / "imagen.yaml")


def test_path_shows_all_places_in_order(cli: Any) -> None:
    own = cli.config_home / "imagen" / "imagen.yaml"
    own.parent.mkdir()
    own.write_text("")
    other = cli.root / "other.yaml"
    rows = cli("config", "path", "--json", env={"IMAGEN_CONFIG": str(other)}, code=0).json
    assert rows["read"] == str(other)
    assert [place["state"] for place in rows["places"]] == [
        "not named",
        "named, but not there",
        "not there",
        "there, but not read",
    ]
    lines = cli("config", "path", code=0).lines
    assert lines[-1].endswith("  read")
    assert str(own) in lines[-1]
