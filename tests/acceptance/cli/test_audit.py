"""`imagen audit`: whatever was left behind is found, mended or told, once; and nothing is bought."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from seeded import SCHNELL, entry, now, prediction, succeeded

from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.secret import Secret
from imagen.emulator import EmulatorThread

TOKEN = "r8_acceptance_test_token"
FOX = "a red fox in the snow"
GENERATE = ("generate", FOX, "-o", "fox.png", "--json")
SCHNELL_COST = 0.003
HOUR = timedelta(hours=1, minutes=5)


@pytest.fixture
def audited(cli: Any, replicate_emulator: EmulatorThread) -> Any:
    """The command with a token, spoken to by the emulator."""
    cli.use(replicate_emulator.url, TOKEN)
    cli.env["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "1"
    return cli


@pytest.fixture
def account(replicate_emulator: EmulatorThread) -> str:
    return f"{Secret(TOKEN).fingerprint()}@{replicate_emulator.url}"


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def sql(data: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(data / "imagen.db", timeout=5)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def rows(data: Path, table: str) -> int:
    try:
        return int(sql(data, f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - a table's name
    except sqlite3.OperationalError:
        return 0


def kill_when(cli: Any, holds: Callable[[], object]) -> None:
    process = cli.start(*GENERATE)
    wait_for(lambda: holds() or process.process.poll() is not None)
    process.stop(signal.SIGKILL)
    assert process.process.returncode == -signal.SIGKILL


def an_hour_passes(cli: Any, emulator: EmulatorThread) -> None:
    """At the service, and by what is written down here."""
    emulator.clock.advance(HOUR.total_seconds())
    back = (datetime.now(UTC) - HOUR).replace(tzinfo=None).isoformat(" ", "microseconds")
    sql(cli.data, "UPDATE predictions SET created_at = ?, sent_at = ?, ended_at = ended_at", back, back)


def bought_by_hand(emulator: EmulatorThread, prompt: str = "by hand") -> dict[str, Any]:
    """A prediction that another client makes with the same token; held until its end."""
    request = urllib.request.Request(
        f"{emulator.url}/v1/models/{SCHNELL}/predictions",
        data=json.dumps({"input": {"prompt": prompt, "seed": 3}}).encode(),
        headers={
            "authorization": f"Bearer {TOKEN}",
            "content-type": "application/json",
            "prefer": "wait=30",
        },
    )
    with urllib.request.urlopen(request) as answer:
        made: dict[str, Any] = json.load(answer)
    return made


def audit(cli: Any, *options: str, code: int = 0) -> Any:
    return cli("audit", "--json", *options, code=code).json


def kinds(report: Any) -> list[str]:
    return sorted(finding["kind"] for finding in report["findings"])


def test_a_picture_whose_process_was_killed_while_its_create_was_held_open_is_adopted(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=20.0)
    kill_when(audited, lambda: replicate_emulator.purchases)
    replicate_emulator.clock.advance(20)

    report = audit(audited)

    (found,) = report["findings"]
    assert found["kind"] == "adopted"
    assert found["files"] == [str(audited.work / "fox.png")]
    assert (audited.work / "fox.png").is_file()
    assert report["recovered"] == {
        "predictions": 1,
        "images": 1,
        "cost_usd": SCHNELL_COST,
        "unpriced": 0,
    }
    assert report["foreign"]["predictions"] == 0
    assert replicate_emulator.purchases == 1
    assert rows(audited.data, "imagen_usage") == 1
    assert audit(audited)["findings"] == []


def test_a_picture_that_nobody_fetched_is_fetched_and_told_in_a_table(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation="delivery", seconds=2)
    kill_when(audited, lambda: rows(audited.data, "imagen_usage"))
    replicate_emulator.clear_faults()

    told = audited("audit", code=0)

    assert "fetched" in told.stdout
    assert "recovered 1 picture of 1 prediction, $0.003" in told.stdout
    assert (audited.work / "fox.png").is_file()
    assert "all is well: 1 prediction compared" in audited("audit", code=0).stdout


def test_what_ended_while_nobody_looked_is_finished(audited: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("hold_returns_starting")
    replicate_emulator.add_fault("slow", run_seconds=20.0)
    kill_when(audited, lambda: rows(audited.data, "predictions WHERE upstream_id IS NOT NULL"))

    running = audit(audited)
    assert (running["findings"], running["under_way"]) == ([], 1)

    replicate_emulator.clock.advance(20)
    assert kinds(audit(audited)) == ["finished"]
    assert (audited.work / "fox.png").is_file()
    assert replicate_emulator.purchases == 1


def test_a_picture_that_was_missed_for_an_hour_is_told_as_expired_with_its_cost_once(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation="delivery", seconds=2)
    kill_when(audited, lambda: rows(audited.data, "imagen_usage"))
    replicate_emulator.clear_faults()
    an_hour_passes(audited, replicate_emulator)

    foreseen = audit(audited, "--dry-run", code=5)
    report = audit(audited, code=5)

    assert kinds(foreseen) == kinds(report) == ["expired"]
    assert report["lost"] == {"predictions": 1, "images": 1, "cost_usd": SCHNELL_COST, "unpriced": 0}
    assert not (audited.work / "fox.png").exists()
    assert audit(audited)["findings"] == []
    (listed,) = audited("predictions", "list", "--json").json
    assert "gone" in listed["error"]


def test_a_create_that_never_arrived_is_told_as_never_bought(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop", operation="predictions.create", times=None)
    kill_when(audited, lambda: replicate_emulator.journal.entries(operation="predictions.create"))
    an_hour_passes(audited, replicate_emulator)

    report = audit(audited)

    assert kinds(report) == ["never_bought"]
    assert report["findings"][0]["cost_usd"] == 0
    assert replicate_emulator.purchases == 0
    assert audit(audited)["findings"] == []


def test_a_create_that_surely_never_arrived_is_ended_and_told_once_and_can_be_bought_anew(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop", operation="predictions.create", times=None)
    kill_when(audited, lambda: replicate_emulator.journal.entries(operation="predictions.create"))
    replicate_emulator.clear_faults()
    bought_by_hand(replicate_emulator)  # of the same model in the same minute, and not it: its input tells

    foreseen = audit(audited, "--dry-run")
    told = audited("audit", code=0).stdout

    assert kinds(foreseen) == ["never_bought"]
    assert "1 prediction never arrived at the service and costs nothing" in told
    assert "the same `imagen generate` command buys anew" in told
    assert audit(audited)["findings"] == []
    (listed,) = audited("predictions", "list", "--json").json
    assert (listed["status"], listed["charged"]) == ("failed", False)
    assert replicate_emulator.purchases == 1
    made = audited(*GENERATE, code=0).json
    assert made["id"] != listed["id"]
    assert replicate_emulator.purchases == 2


def test_a_create_that_a_paused_batch_still_wants_is_left_to_it(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop", operation="predictions.create", times=None)
    (audited.work / "foxes.jsonl").write_text(json.dumps({"prompt": FOX, "seed": 1}) + "\n")
    process = audited.start("batch", "foxes.jsonl", "--json")
    wait_for(lambda: replicate_emulator.journal.entries(operation="predictions.create"))
    process.stop(signal.SIGKILL)
    replicate_emulator.clear_faults()
    (batch,) = audited("batches", "list", "--json", code=0).json

    for later in (lambda: None, lambda: an_hour_passes(audited, replicate_emulator)):
        later()
        for options in (("--dry-run",), ()):
            report = audit(audited, *options)
            assert (report["findings"], report["under_way"]) == ([], 1)

    assert audited("batch", "--resume", batch["id"], "--json", code=0).json["succeeded"] == 1
    assert replicate_emulator.purchases == 1


def test_what_another_program_made_is_counted_with_its_cost_and_left_alone(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    audited(*GENERATE, code=0)
    bought_by_hand(replicate_emulator)
    bought_by_hand(replicate_emulator, "[fault:fail] by hand")

    report = audit(audited)
    told = audited("audit", code=0).stdout

    assert report["findings"] == []
    assert report["listed"] == 3
    assert report["foreign"] == {
        "predictions": 2,
        "by_status": {"failed": 1, "succeeded": 1},
        "cost_usd": SCHNELL_COST,
        "unpriced": 0,
    }
    assert "2 predictions made by other programs: 1 failed, 1 succeeded; about $0.003" in told
    assert "--adopt-foreign" in told
    assert rows(audited.data, "predictions") == 1


def test_what_another_program_made_is_written_down_and_fetched_when_asked_for(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    made = bought_by_hand(replicate_emulator)

    foreseen = audit(audited, "--adopt-foreign", "--dry-run")
    assert kinds(foreseen) == ["foreign"]
    assert rows(audited.data, "predictions") == 0

    (found,) = audit(audited, "--adopt-foreign")["findings"]
    assert (found["kind"], found["upstream_id"], found["cost_usd"]) == ("foreign", made["id"], SCHNELL_COST)
    (file,) = found["files"]
    assert Path(file).is_relative_to(audited.data / "pictures")
    assert Path(file).is_file()
    (entered,) = audited("usage", "--raw", "--json").json["entries"]
    assert (entered["caller"], entered["cost_usd_estimate"]) == ("foreign", SCHNELL_COST)

    again = audit(audited, "--adopt-foreign")
    assert again["findings"] == []
    assert again["foreign"]["predictions"] == 0
    assert replicate_emulator.purchases == 1


def test_what_another_program_made_long_ago_is_written_down_without_its_picture(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    bought_by_hand(replicate_emulator)
    replicate_emulator.clock.advance(HOUR.total_seconds())

    (found,) = audit(audited, "--adopt-foreign")["findings"]

    assert (found["kind"], found["files"], found["cost_usd"]) == ("foreign", [], SCHNELL_COST)
    assert audit(audited, "--adopt-foreign")["findings"] == []


def test_what_a_living_process_is_just_buying_is_nobody_elses(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    """Its create is held open: the service lists it, and here its upstream id is not known yet."""
    replicate_emulator.add_fault("slow", run_seconds=40.0)
    process = audited.start(*GENERATE)
    wait_for(lambda: replicate_emulator.purchases)

    report = audit(audited, "--adopt-foreign")

    assert (report["findings"], report["under_way"], report["foreign"]["predictions"]) == ([], 1, 0)
    replicate_emulator.clock.advance(40)
    process.process.wait(20)
    assert process.process.returncode == 0
    assert (audited.work / "fox.png").is_file()
    assert replicate_emulator.purchases == 1


def test_an_end_that_the_ledger_lacks_is_entered(
    audited: Any, account: str, remember: Callable[..., None]
) -> None:
    remember(succeeded(account=account, settled_at=None))

    assert kinds(audit(audited, "--dry-run")) == ["entered"]
    assert rows(audited.data, "imagen_usage") == 0
    report = audit(audited)

    assert kinds(report) == ["entered"]
    assert report["recovered"]["cost_usd"] == SCHNELL_COST
    assert audited("usage", "--json").json["total"]["cost_usd"] == SCHNELL_COST
    assert "entered" not in kinds(audit(audited))


def test_an_entry_that_the_ledger_has_lost_is_entered_again(
    audited: Any, replicate_emulator: EmulatorThread
) -> None:
    audited(*GENERATE, code=0)
    sql(audited.data, "DELETE FROM imagen_usage")

    assert kinds(audit(audited)) == ["entered"]

    assert rows(audited.data, "imagen_usage") == 1
    assert audit(audited)["findings"] == []
    assert replicate_emulator.purchases == 1


def test_an_entry_whose_prediction_the_service_does_not_list_is_reported(
    audited: Any, account: str, remember: Callable[..., None]
) -> None:
    made = succeeded(account=account, ago=timedelta(hours=2))
    older = succeeded(account=account, ago=timedelta(days=3))
    elsewhere = succeeded(account="another", ago=timedelta(hours=2))
    remember(
        made,
        older,
        elsewhere,
        *(
            entry(id=one.id, upstream_id=one.upstream_id, ago=now() - one.created_at, cost=Usd(3000))
            for one in (made, older, elsewhere)
        ),
    )

    report = audit(audited)

    assert [(finding["kind"], finding["id"]) for finding in report["findings"]] == [("unlisted", made.id)]


def test_unfinished_ones_of_other_accounts_are_left_alone(
    audited: Any, remember: Callable[..., None]
) -> None:
    other = prediction(account="another", status=Status.PROCESSING, upstream_id="up-1")
    remember(other)

    assert audit(audited)["findings"] == []
    assert sql(audited.data, "SELECT status FROM predictions") == [("processing",)]


def test_a_service_that_refuses_fails_the_audit_and_nothing_is_changed(
    audited: Any, account: str, remember: Callable[..., None], replicate_emulator: EmulatorThread
) -> None:
    remember(succeeded(account=account, settled_at=None))
    replicate_emulator.add_fault("status", operation="predictions.list", status=401, times=None)

    told = audited("audit", code=4)

    assert told.stdout == ""
    assert rows(audited.data, "imagen_usage") == 0


def test_practice_has_nothing_to_audit(cli: Any) -> None:
    told = cli("audit", code=2)

    assert "practice" in told.stderr


def test_since_must_be_a_date(audited: Any) -> None:
    assert "--since" in audited("audit", "--since", "soon", code=2).stderr
