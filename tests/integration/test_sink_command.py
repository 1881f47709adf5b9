"""`imagen sink`, and what the other commands have to do with the place that has the ledger besides."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result

from fakes.postgres import PASSWORD, Postgres
from fakes.postgrest import SERVICE_KEY, PostgrestDouble, postgrest_double
from imagen.domain.identifiers import to_uuid
from imagen.errors import ConfigError
from imagen.settings import choose_sink, load_settings
from imagen.sinks.schema import schema_sql

pytestmark = pytest.mark.xdist_group("postgres")

Run = Callable[..., Result]


@pytest.fixture
def run(invoke: Run) -> Run:
    return invoke


@pytest.fixture
def database(postgres: Postgres) -> dict[str, str]:
    return {"IMAGEN_SINK__POSTGRES_URL": postgres.database()}


@pytest.fixture
def project(postgres: Postgres) -> Iterator[PostgrestDouble]:
    with postgrest_double(postgres) as double:
        yield double


def supabase(project: PostgrestDouble) -> dict[str, str]:
    return {"SUPABASE_URL": project.url, "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY}


def rows(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("select id, caller from mai.imagen_usage order by created_at").fetchall()


def test_from_an_empty_database_to_a_ledger_in_it(run: Run, database: dict[str, str]):
    url = database["IMAGEN_SINK__POSTGRES_URL"]
    made = run("generate", "a red fox", "--json", **database, MAI_FROM_ID="ada")
    assert "entries of the ledger wait for their sink" in made.stderr
    assert json.loads(made.stdout)

    stands = json.loads(run("sink", "status", "--json", **database).stdout)
    assert (stands["kind"], stands["waiting"], stands["answers"]) == ("postgresql", 1, False)
    assert "imagen sink migrate" in stands["hint"]

    assert "the table mai.imagen_usage is there" in run("sink", "migrate", **database).stdout
    run("sink", "migrate", **database)
    assert rows(url) == []
    run("generate", "a blue fox", **database, MAI_FROM_ID="bob")
    assert [caller for _, caller in rows(url)] == ["ada", "bob"]
    assert run("sink", "sync", **database).stdout == "0 entries written\n"
    told = run("sink", "status", **database).stdout
    assert told == "postgresql: answers\n0 entries not written there yet\n"


def test_everything_of_before_is_written_too(run: Run, project: PostgrestDouble):
    for prompt in ("one", "two", "three"):
        run("generate", prompt)
    project.migrate(schema_sql())
    project.faults.append("lost")
    assert (
        json.loads(run("sink", "sync", "--json", fails=True, **supabase(project)).stdout)["error"]
        == "sink_error"
    )
    assert json.loads(run("sink", "sync", "--json", **supabase(project)).stdout) == {"written": 3}
    entries = json.loads(run("usage", "--raw", "--json").stdout)["entries"]
    assert [found for found, _ in rows(project.database)] == [
        to_uuid(entry["id"]) for entry in reversed(entries)
    ]


def test_usage_reads_back_from_either(run: Run, project: PostgrestDouble, database: dict[str, str]):
    for prompt, caller in (("one", "ada"), ("two", "bob"), ("three", "bob")):
        run("generate", prompt, MAI_FROM_ID=caller)
    project.migrate(schema_sql())
    project.max_rows = 2
    run("sink", "migrate", **database)
    here = {}
    for by in ("caller", "day"):
        here[by] = json.loads(run("usage", "--json", "--by", by).stdout)
    raw = json.loads(run("usage", "--json", "--raw", "--limit", "2").stdout)
    for environ in (database, supabase(project)):
        run("sink", "sync", **environ)
        for by, shown in here.items():
            assert (
                json.loads(run("usage", "--json", "--by", by, "--source", "sink", **environ).stdout) == shown
            )
        there = json.loads(
            run("usage", "--json", "--raw", "--limit", "2", "--source", "sink", **environ).stdout
        )
        assert there == raw
        assert "bob" in run("usage", "--by", "caller", "--source", "sink", **environ).stdout
    assert "imagen sink status" in run("usage", "--source", "sink", fails=True).stderr
    assert "ledger or sink" in run("usage", "--source", "moon", fails=True).stderr


def test_a_command_is_done_although_the_sink_is_not_there(run: Run, project: PostgrestDouble):
    began = time.monotonic()
    said = run(
        "generate", "a fox", "--json",
        SUPABASE_URL="http://127.0.0.1:1", SUPABASE_SERVICE_ROLE_KEY=SERVICE_KEY,
    )  # fmt: skip
    assert time.monotonic() - began < 15
    assert SERVICE_KEY not in said.output
    project.migrate(schema_sql())
    run("usage", **supabase(project))
    assert len(rows(project.database)) == 1


def test_a_sink_that_hangs_holds_a_command_up_for_two_seconds_only(run: Run, project: PostgrestDouble):
    project.migrate(schema_sql())
    run("generate", "a fox")
    project.faults.append("slow")
    began = time.monotonic()
    run("usage", **supabase(project))
    assert time.monotonic() - began < 10
    project.released.set()


def test_commands_that_look_at_no_ledger_ask_no_sink(run: Run, project: PostgrestDouble):
    run("models", **supabase(project))
    assert project.requests == []


def test_the_schema_is_printed_as_it_is_run(run: Run):
    assert run("sink", "schema").stdout == schema_sql()


def test_without_a_sink_commands_say_so(run: Run):
    assert run("sink", "status").stdout == "sqlite: imagen's own database, and nowhere besides\n"
    for words in (("sink", "sync"), ("sink", "migrate")):
        assert "IMAGEN_SINK__POSTGRES_URL" in run(*words, fails=True).stderr


def test_doctor_tells_how_the_sink_stands(run: Run, project: PostgrestDouble, postgres: Postgres):
    def sink(**environ: str) -> dict[str, Any]:
        findings = json.loads(run("doctor", "--json", **environ).stdout)["findings"]
        (found,) = [finding for finding in findings if finding["what"] == "sink"]
        return found

    assert sink()["level"] == "ok"
    half = sink(SUPABASE_URL=project.url)
    assert (half["level"], half["mend"]) == ("warn", "export SUPABASE_SERVICE_ROLE_KEY=...")
    unmade = sink(**supabase(project))
    assert unmade["level"] == "warn"
    assert "imagen sink schema" in unmade["mend"]
    project.migrate(schema_sql())
    assert sink(**supabase(project))["detail"] == "supabase has every entry of the ledger"
    wrong = sink(IMAGEN_SINK__POSTGRES_URL=postgres.url("postgres", password="not-that-one"))
    assert wrong["level"] == "warn"
    assert "not-that-one" not in json.dumps(wrong)


@pytest.mark.parametrize(
    ("extra", "library", "environ"),
    [
        ("postgres", "psycopg", {"IMAGEN_SINK__POSTGRES_URL": f"postgresql://a:{PASSWORD}@127.0.0.1/b"}),
        (
            "supabase",
            "postgrest",
            {"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_ROLE_KEY": SERVICE_KEY},
        ),
    ],
)
def test_an_extra_that_is_not_installed_is_named_and_stops_no_picture(
    run: Run, monkeypatch: pytest.MonkeyPatch, extra: str, library: str, environ: dict[str, str]
):
    monkeypatch.setitem(sys.modules, library, None)
    run("generate", "a fox", **environ)
    said = run("sink", "sync", fails=True, **environ)
    assert f"pip install 'imagen-gateway[{extra}]'" in said.stderr
    assert PASSWORD not in said.output


# --- which one -------------------------------------------------------------------------------------------

POSTGRES = {"IMAGEN_SINK__POSTGRES_URL": "postgresql://ada:pw@db.example/usage"}
SUPABASE = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "sb-key"}


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, "sqlite"),
        (POSTGRES, "postgresql"),
        (SUPABASE, "supabase"),
        (POSTGRES | SUPABASE, "postgresql"),
        (POSTGRES | SUPABASE | {"IMAGEN_SINK__KIND": "supabase"}, "supabase"),
        (POSTGRES | SUPABASE | {"IMAGEN_SINK__KIND": "sqlite"}, "sqlite"),
        ({"SUPABASE_URL": "https://abc.supabase.co"}, "sqlite"),
    ],
)
def test_the_sink_is_the_named_one_else_the_one_that_has_an_address(
    tmp_path: Path, environ: dict[str, str], kind: str
):
    assert choose_sink(load_settings(environ={"HOME": str(tmp_path)} | environ, cwd=tmp_path)) == kind


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("postgresql", "sink.postgres_url is"), ("supabase", "supabase.url and supabase.service_role_key are")],
)
def test_a_named_one_that_lacks_something_is_refused(tmp_path: Path, kind: str, missing: str):
    with pytest.raises(ConfigError, match=missing):
        load_settings(environ={"HOME": str(tmp_path), "IMAGEN_SINK__KIND": kind}, cwd=tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://a:hunter2@h/d", "postgresql://a:hunter2/x@h/d", "postgresql://a:hunter2@x@h/d", "postgresql://a:hunter2#x@h/d",
        "postgresql://a:12/hunter2@h/d", "postgresql://a:hunter2@h:port/d", "hunter2",
    ],
)  # fmt: skip
def test_an_address_that_would_show_its_password_is_refused_without_showing_it(tmp_path: Path, url: str):
    with pytest.raises(ConfigError) as refused:
        load_settings(environ={"HOME": str(tmp_path), "IMAGEN_SINK__POSTGRES_URL": url}, cwd=tmp_path)
    assert "hunter2" not in f"{refused.value} {refused.value!r}"
