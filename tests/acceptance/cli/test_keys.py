"""Stories of `imagen keys`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def files_with(root: Path, text: str) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_key_is_printed_alone_and_is_found_nowhere_afterwards(cli: Any) -> None:
    done = cli("keys", "create", "web-shop", code=0)
    (plain,) = done.lines
    assert re.fullmatch(r"imk_[0-9a-z]{32}", plain)
    assert "once" in done.stderr
    assert plain not in done.stderr
    assert files_with(cli.root, "web-shop") != []
    assert files_with(cli.root, plain) == []
    for shown in (cli("keys", "list", code=0), cli("keys", "list", "--json", code=0)):
        assert "web-shop" in shown.stdout
        assert plain not in str(shown)
        assert plain.removeprefix("imk_") not in str(shown)


def test_a_key_has_models_paths_and_limits(cli: Any) -> None:
    options = ["--model", "flux-dev", "--model", "acme/fox", "--route", "/generate"]
    limits = ["--concurrent", "4", "--rpm", "60"]
    made = cli("keys", "create", "shop", *options, *limits, "--json", code=0).json
    assert made.pop("key").startswith("imk_")
    assert made == {
        "name": "shop",
        "id": made["id"],
        "models": ["acme/fox", "black-forest-labs/flux-dev"],
        "routes": ["/generate"],
        "concurrent": 4,
        "rpm": 60,
        "created_at": made["created_at"],
    }
    cli("keys", "create", "app", code=0)
    (first, second) = cli("keys", "list", "--json", code=0).json
    assert first["name"] == "app"
    assert first["models"] == first["routes"] == []
    assert second == made
    lines = cli("keys", "list", code=0).lines
    assert lines[0].split() == ["name", "id", "models", "routes", "concurrent", "rpm", "created"]
    assert lines[1].split()[2:6] == ["all", "all", "-", "-"]
    assert "acme/fox, black-forest-labs/flux-dev" in lines[2]


def test_without_any_the_list_says_how_to_begin(cli: Any) -> None:
    done = cli("keys", "list", code=0)
    assert done.stdout == ""
    assert "imagen keys create" in done.stderr
    assert cli("keys", "list", "--json", code=0).json == []


def test_a_revoked_key_is_gone_and_its_name_is_free(cli: Any) -> None:
    first = cli("keys", "create", "shop", code=0).stdout
    taken = cli("keys", "create", "shop", code=2)
    assert taken.stdout == ""
    assert "revoke" in taken.stderr
    assert cli("keys", "revoke", "shop", code=0).stderr == "key shop revoked\n"
    assert cli("keys", "list", "--json", code=0).json == []
    assert "imagen keys list" in cli("keys", "revoke", "shop", code=2).stderr
    assert cli("keys", "create", "shop", code=0).stdout != first


def test_what_makes_no_sense_is_refused_by_field(cli: Any) -> None:
    for options, told in (
        (["web shop"], "name"),
        (["shop", "--model", "flux-devv"], "flux-dev"),
        (["shop", "--route", "/keys"], "/generate-batch"),
        (["shop", "--concurrent", "0"], "100000"),
        (["shop", "--rpm", "0"], "1000000"),
    ):
        done = cli("keys", "create", *options, "--json", code=2)
        assert done.json["error"] == "invalid_input"
        assert told in done.stderr
    assert cli("keys", "list", "--json", code=0).json == []


def test_a_revocation_says_which_budgets_count_nobody_now(cli: Any) -> None:
    cli("keys", "create", "alice", code=0)
    cli("budget", "set", "hers", "--usd", "1", "--per", "day", "--key", "alice", code=0)
    said = cli("keys", "revoke", "alice", code=0).stderr
    assert "budget hers counts nobody now" in said
    assert "--key alice" in said
    assert "alice (revoked)" in cli("budget", "list", code=0).stdout
    assert "hers counts nobody" in cli("doctor", code=0).stdout
    cli("keys", "create", "alice", code=0)
    cli("budget", "set", "hers", "--usd", "1", "--per", "day", "--key", "alice", code=0)
    assert "revoked" not in cli("budget", "list", code=0).stdout
    assert "counts nobody" not in cli("doctor", code=0).stdout


def test_a_sink_that_is_away_is_said_once_by_sync(cli: Any) -> None:
    cli("generate", "a fox", code=0)
    done = cli(
        "sink", "sync", env={"IMAGEN_SINK__POSTGRES_URL": "postgresql://imagen@127.0.0.1:1/usage"}, code=4
    )
    assert done.stderr.count("PostgreSQL") == 1
    assert "WARNING" not in done.stderr
