"""Stories of `imagen deliveries`."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from imagen.domain.delivery import Delivery
from imagen.store.database import Database
from imagen.store.outbox import SqlOutbox

NOW = datetime.now(UTC)
SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")


def put(cli: Any, *deliveries: Delivery) -> None:
    database = Database(cli.data / "imagen.db")
    try:
        asyncio.run(SqlOutbox(database).put(deliveries))
    finally:
        database.close()


def make_delivery(number: int, **facts: Any) -> Delivery:
    given = {
        "id": f"msg_{number}",
        "subject": f"pred_{number}",
        "url": f"https://shop.example/hooks/{number}",
        "scope": "local",
        "event": "prediction.completed",
        "body": {"type": "prediction.completed", "data": {"prompt": "a hidden fox"}},
        "created_at": NOW,
        "due_at": NOW + timedelta(hours=1),
    }
    return Delivery(**given | facts)


@pytest.fixture
def three(cli: Any) -> None:
    put(
        cli,
        make_delivery(1),
        make_delivery(2, attempts=3, tried_since=NOW, answer="status 503"),
        make_delivery(
            3, scope="key:a", attempts=12, due_at=None, given_up_at=NOW, answer="no answer came in time"
        ),
    )


def test_without_any_the_list_says_so(cli: Any) -> None:
    done = cli("deliveries", "list", code=0)
    assert (done.stdout, done.stderr) == ("", "No delivery yet.\n")
    assert cli("deliveries", "list", "--failed", "--json", code=0).json == []


def test_deliveries_are_listed_newest_first_with_their_last_answer(cli: Any, three: None) -> None:
    lines = cli("deliveries", "list", code=0).lines
    assert lines[0].split()[:6] == ["id", "created", "event", "subject", "status", "attempts"]
    assert [line.split()[0] for line in lines[1:]] == ["msg_3", "msg_2", "msg_1"]
    assert "no answer came in time" in lines[1]
    assert "https://shop.example/hooks/2" in lines[2]
    failed = cli("deliveries", "list", "--failed", "--json", code=0).json
    assert [(one["id"], one["status"], one["answer"]) for one in failed] == [
        ("msg_3", "given_up", "no answer came in time"),
        ("msg_2", "waiting", "status 503"),
    ]
    assert [one["id"] for one in cli("deliveries", "list", "--scope", "key:a", "--json", code=0).json] == [
        "msg_3"
    ]
    assert len(cli("deliveries", "list", "-n", "1", "--json", code=0).json) == 1
    assert "hidden fox" not in cli("deliveries", "list", "--json", code=0).stdout


def test_one_is_sent_again(cli: Any, three: None) -> None:
    assert "sent again" in cli("deliveries", "retry", "msg_2", code=0).stderr
    (one,) = [each for each in cli("deliveries", "list", "--json", code=0).json if each["id"] == "msg_2"]
    assert one["attempts"] == 0
    assert datetime.fromisoformat(one["due_at"]) <= datetime.now(UTC)
    missing = cli("deliveries", "retry", "msg_9", code=2)
    assert "imagen deliveries list" in missing.stderr


def test_a_caller_has_a_secret_that_stays_until_it_is_changed(cli: Any) -> None:
    (first,) = cli("deliveries", "secret", "show", code=0).lines
    assert SECRET.fullmatch(first)
    assert cli("deliveries", "secret", "show", code=0).lines == [first]
    (other,) = cli("deliveries", "secret", "show", "--scope", "key:a", code=0).lines
    assert other != first

    assert "24 hours" in cli("deliveries", "secret", "rotate", code=0).stderr
    done = cli("deliveries", "secret", "show", code=0)
    assert len(done.lines) == 2
    assert done.lines[1] == first
    assert "until" in done.stderr

    cli("deliveries", "secret", "rotate", "--overlap", "0", code=0)
    told = cli("deliveries", "secret", "show", "--json", code=0).json
    assert told["scope"] == "local"
    (only,) = told["secrets"]
    assert only["secret"] not in {first, *done.lines}
    assert only["retires_at"] is None


def test_the_overlap_is_a_duration_or_a_number_of_hours(cli: Any) -> None:
    for told, hours in (("1h", 1), ("7d", 168), ("2w", 336), ("1.5", 1.5), ("36", 36), ("30d", 720)):
        done = cli("deliveries", "secret", "rotate", "--overlap", told, code=0)
        assert f"for {hours:g} hours" in done.stderr, told
    before = cli("deliveries", "secret", "show", "--json", code=0).json
    for told in ("1y", "soon", "", "-1", "nan", "inf", "1e300", "31d", "721", "999999w"):
        refused = cli("deliveries", "secret", "rotate", f"--overlap={told}", code=2)
        assert "--overlap" in refused.stderr, told
        assert "24h, 7d" in refused.stderr, told
    assert cli("deliveries", "secret", "show", "--json", code=0).json == before


def test_a_secret_that_was_sealed_needs_its_key(cli: Any) -> None:
    cli.env["IMAGEN_SECRET_KEY"] = "a-key-of-many-characters"
    (secret,) = cli("deliveries", "secret", "show", code=0).lines
    del cli.env["IMAGEN_SECRET_KEY"]
    refused = cli("deliveries", "secret", "show", "--json")
    assert refused.code != 0
    assert refused.json["error"] == "config_error"
    assert "IMAGEN_SECRET_KEY" in refused.stderr
    assert secret not in str(refused)


def test_after_the_key_was_lost_the_commands_tell_the_next_step(cli: Any) -> None:
    cli.env["IMAGEN_SECRET_KEY"] = "a-key-of-many-characters"
    cli("deliveries", "secret", "show", code=0)
    cli.env["IMAGEN_SECRET_KEY"] = "another-key-of-many-characters"
    assert "secret rotate --overlap 0" in cli("deliveries", "secret", "show").stderr
    assert "secret rotate --overlap 0" in cli("deliveries", "list", code=0).stderr
    beside = cli("deliveries", "secret", "rotate", code=0).stderr
    assert "not all old ones beside them" in beside
    shown = cli("deliveries", "secret", "show", code=0)
    assert len(shown.lines) == 1
    assert "secret rotate --overlap 0" in shown.stderr
    assert "they alone" in cli("deliveries", "secret", "rotate", "--overlap", "0", code=0).stderr
    assert "warning" not in cli("deliveries", "list", code=0).stderr


def test_one_that_is_damaged_is_listed_with_the_others(cli: Any, three: None) -> None:
    connection = sqlite3.connect(cli.data / "imagen.db")
    with connection:
        connection.execute("update deliveries set body = '{', tried_since = 'x' where id = 'msg_2'")
    connection.close()
    lines = cli("deliveries", "list", code=0).lines
    assert [line.split()[0] for line in lines[1:]] == ["msg_3", "msg_2", "msg_1"]
    refused = cli("deliveries", "retry", "msg_2")
    assert refused.code != 0
    assert "cannot be read" in refused.stderr
