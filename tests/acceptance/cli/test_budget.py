"""Stories of `imagen budget`: set, spent, refused, renewed by another limit, removed; here and at a gateway."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from imagen.emulator import EmulatorThread

ADMIN = {"CONCURRENT_DOCKER_ADMIN_API_KEY": "the-admins-key-of-this-test"}
PROMPT = "a red fox in the snow"
PRICE = 0.003


@pytest.fixture
def gateway(cli: Any, replicate_emulator: EmulatorThread) -> str:
    """The address of a gateway with data of its own; commands have neither its token nor its database."""
    env = {
        "IMAGEN_DATA_DIR": str(cli.root / "gateway"),
        "IMAGEN_REPLICATE__API_BASE": replicate_emulator.url,
        "REPLICATE_API_TOKEN": "r8_the_gateways_own_token",
    }
    started = cli.start("serve", "--port", "0", "--json", env=env | ADMIN)
    return str(json.loads(started.read_line())["url"])


def test_pictures_are_made_until_the_budget_is_used_up(cli: Any, replicate_emulator: EmulatorThread) -> None:
    cli.use(replicate_emulator.url)
    done = cli("budget", "set", "mine", "--usd", "0.005", "--per", "day", "--all", code=0)
    assert (done.stdout, done.stderr) == ("", "budget mine: everything, $0.005 a day\n")
    made = cli("generate", PROMPT, "--json", code=0).json
    assert (made["cost_usd"], made["quoted_usd"]) == (PRICE, PRICE)
    shown = cli("predictions", "show", made["id"], "--json", code=0).json
    assert (shown["cost_usd"], shown["quoted_usd"]) == (PRICE, PRICE)

    refused = cli("generate", "another fox", "--json", code=3)
    told = refused.json
    assert (told["error"], told["budget"], told["quote_usd"]) == ("budget_exceeded", "mine", PRICE)
    assert told["status"] == "refused"
    assert datetime.fromisoformat(told["renews_at"]) > datetime.now(UTC)
    for part in ("$0.003", "'mine'", "$0.005 a day", "$0.002 is left", "nothing was bought", "It renews at"):
        assert part in refused.stderr
    assert replicate_emulator.purchases == 1
    (one,) = cli("budget", "list", "--json", code=0).json
    assert (one["settled_usd"], one["reserved_usd"], one["left_usd"]) == (PRICE, 0, 0.002)


def test_the_list_is_a_table_and_a_removed_budget_is_gone(cli: Any) -> None:
    key = cli("keys", "create", "web-shop", "--json", code=0).json["id"]
    by_id = ["--usd", "$1.5", "--per", "day", "--key", key]
    by_name = ["--usd", "1.50", "--per", "day", "--key", "web-shop", "--json"]
    each = ["--usd", "5", "--per", "month", "--caller", "*", "--count", "succeeded"]
    cli("budget", "set", "shop", *by_id, code=0)
    cli("budget", "set", "each", *each, code=0)
    cli("budget", "set", "dev", "--usd", "2", "--per", "total", "--model", "flux-dev", "--warn", code=0)
    assert cli("budget", "set", "shop", *by_name, code=0).json["key"] == "web-shop"
    header, *rows = cli("budget", "list", code=0).lines
    assert header.split() == ["name", "whom", "limit", "settled", "reserved", "left", "renews"]
    dev, of_each, shop = (" ".join(row.split()) for row in rows)
    assert dev == "dev model black-forest-labs/flux-dev $2.00 in all, only warns $0.00 $0.00 $2.00 never"
    assert of_each.startswith("each each caller $5.00 a month for what succeeds $0.00 $0.00 $5.00 ")
    assert of_each.endswith("-01 00:00 UTC")
    assert shop.startswith("shop key web-shop $1.50 a day $0.00 $0.00 $1.50 ")
    assert cli("budget", "remove", "shop", code=0).stderr == "budget shop removed\n"
    assert "imagen budget list" in cli("budget", "remove", "shop", "--json", code=2).json["hint"]
    assert [one["name"] for one in cli("budget", "list", "--json", code=0).json] == ["dev", "each"]


def test_what_makes_no_sense_names_the_field_and_what_is_allowed(cli: Any) -> None:
    for options, fields in (
        (["two words", "--usd", "1", "--per", "day", "--all"], ["name"]),
        (["a", "--usd", "0.0000001", "--per", "week", "--count", "all"], ["usd", "per", "count", "key"]),
        (["a", "--usd", "1", "--per", "day", "--key", "nobody"], ["key"]),
    ):
        told = cli("budget", "set", *options, "--json", code=2).json
        assert told["error"] == "invalid_input"
        assert [problem["field"] for problem in told["problems"]] == fields
    assert "imagen budget set" in cli("budget", "list", code=0).stderr


def test_a_quota_counts_for_each_caller_only_what_succeeded(
    cli: Any, replicate_emulator: EmulatorThread
) -> None:
    cli.use(replicate_emulator.url)
    each = ["--usd", "0.003", "--per", "month", "--caller", "*", "--count", "succeeded"]
    cli("budget", "set", "quota", *each, code=0)
    alice, bob = {"MAI_FROM_ID": "alice"}, {"MAI_FROM_ID": "bob"}
    failing = cli("generate", "a fox [fault:fail preset=nsfw]", "--json", env=alice, code=5).json
    assert (failing["cost_usd"], failing["quoted_usd"]) == (0, PRICE)
    cli("generate", "a fox", env=alice, code=0)
    assert "'quota' (alice)" in cli("generate", "another fox", env=alice, code=3).stderr
    cli("generate", "a fox", env=bob, code=0)
    found = cli("budget", "list", "--json", code=0).json
    assert [(one["subject"], one["left_usd"]) for one in found] == [("alice", 0), ("bob", 0)]


def test_a_budget_that_only_warns_says_so(cli: Any, replicate_emulator: EmulatorThread) -> None:
    cli.use(replicate_emulator.url)
    cli("budget", "set", "soft", "--usd", "0.001", "--per", "day", "--all", "--warn", code=0)
    done = cli("generate", PROMPT, code=0)
    assert "soft" in done.stderr
    assert "$0.001" in done.stderr


def test_a_whole_file_is_held_below_budgets_and_max_cost(
    cli: Any, replicate_emulator: EmulatorThread
) -> None:
    cli.use(replicate_emulator.url)
    (cli.work / "foxes.jsonl").write_text('"fox 1"\n"fox 2"\n"fox 3"\n')
    dear = cli("batch", "foxes.jsonl", "--max-cost", "0.008", "--json", code=3).json
    assert (dear["error"], dear["budget"], dear["quote_usd"]) == ("budget_exceeded", None, 0.009)
    cli("budget", "set", "b", "--usd", "0.008", "--per", "day", "--all", code=0)
    dear = cli("batch", "foxes.jsonl", "--json", code=3).json
    assert (dear["error"], dear["budget"], dear["quote_usd"]) == ("budget_exceeded", "b", 0.009)
    assert replicate_emulator.purchases == 0


def test_through_a_gateway_it_is_the_gateways_budget(
    cli: Any, gateway: str, replicate_emulator: EmulatorThread
) -> None:
    there = ["--server", gateway]
    made = cli("keys", "create", "shop", "--json", *there, env=ADMIN, code=0).json
    key = {"IMAGEN_API_KEY": made["key"]}
    options = ["--usd", "0.005", "--per", "day", "--key", "shop"]
    done = cli("budget", "set", "small", *options, *there, env=ADMIN, code=0)
    assert done.stderr == "budget small: key shop, $0.005 a day\n"
    first = cli("generate", PROMPT, "--json", *there, env=key, code=0).json
    assert (first["cost_usd"], first["quoted_usd"]) == (PRICE, PRICE)

    refused = cli("generate", "another fox", "--json", *there, env=key, code=3)
    told = refused.json
    assert (told["error"], told["budget"], told["quote_usd"]) == ("budget_exceeded", "small", PRICE)
    assert datetime.fromisoformat(told["renews_at"]) > datetime.now(UTC)
    for part in ("'small'", "$0.002 is left", "It renews at"):
        assert part in refused.stderr
    assert replicate_emulator.purchases == 1

    (row,) = cli("budget", "list", *there, env=ADMIN, code=0).lines[1:]
    assert row.split()[:8] == ["small", "key", "shop", "$0.005", "a", "day", "$0.003", "$0.00"]
    (own,) = cli("budget", "list", "--json", *there, env=key, code=0).json
    assert (own["subject"], own["left_usd"]) == ("shop", 0.002)
    cli("budget", "remove", "small", *there, env=ADMIN, code=0)
    assert cli("budget", "remove", "small", *there, env=ADMIN, code=2).stderr.count("imagen budget list") == 1
