"""What `ports.UsageSink` promises, of PostgreSQL and of Supabase (its REST API over a real PostgreSQL)."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from fakes.clock import ManualClock
from fakes.make import make_entry
from fakes.postgres import Postgres
from fakes.postgrest import ANON_KEY, SERVICE_KEY, PostgrestDouble, postgrest_double
from imagen.domain.identifiers import new_id, to_uuid
from imagen.domain.money import Usd
from imagen.domain.secret import Secret
from imagen.domain.usage import UsageEntry
from imagen.errors import SinkError
from imagen.ports import UsageSink
from imagen.service.mirror import Mirror
from imagen.sinks.postgres import PostgresSink
from imagen.sinks.schema import schema_sql
from imagen.sinks.supabase import SupabaseSink
from imagen.store.database import Database
from imagen.store.ledger import SqlLedger

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("postgres")]

NINE_COLUMNS = """
create schema mai;
create table mai.imagen_usage (
    id uuid primary key default gen_random_uuid(), created_at timestamptz not null default now(), backend text not null,
    model text not null, seed bigint, prompt_hash text not null, latency_ms integer not null,
    cost_usd_estimate numeric(10, 6), caller text not null
);
create index imagen_usage_created_at_idx on mai.imagen_usage (created_at desc);
create index imagen_usage_caller_idx on mai.imagen_usage (caller);
"""
OLD_ROW = """
insert into mai.imagen_usage (created_at, backend, model, seed, prompt_hash, latency_ms, cost_usd_estimate, caller)
values ('2026-05-01 08:00+00', 'flux-schnell-replicate', 'black-forest-labs/flux-schnell', 42, repeat('c', 64), 1800, 0.003, 'ada')
"""


class AlwaysMine:
    def mine(self) -> bool:
        return True


@dataclass
class Place:
    """A sink, its database, and the server before that where there is one."""

    sink: UsageSink
    url: str
    run: Callable[[str], list[tuple[object, ...]]]
    double: PostgrestDouble | None = None


@pytest.fixture(params=["postgresql", "supabase"])
async def bare(request: pytest.FixtureRequest, postgres: Postgres) -> AsyncIterator[Place]:
    """A place without the table."""
    with ExitStack() as stack:
        if request.param == "postgresql":
            url, double = postgres.database(), None
            sink: UsageSink = PostgresSink(Secret(url))
        else:
            double = stack.enter_context(postgrest_double(postgres))
            url = double.database
            sink = SupabaseSink(double.url, Secret(SERVICE_KEY), seconds=5)
        yield Place(sink, url, lambda sql: postgres.run(sql, url=url), double)
        await sink.aclose()


@pytest.fixture
def place(bare: Place) -> Place:
    bare.run(schema_sql())
    return bare


def full(number: int = 1) -> UsageEntry:
    """An entry in which nothing is left out."""
    at = datetime(2026, 11, 1, 12, tzinfo=UTC) + timedelta(minutes=number, microseconds=123_457)
    return make_entry(
        id=new_id("pred", at), created_at=at, seed=2**63 - 1, cost=Usd(3_000_001), upstream_id="up-1", images=4,
        key="key_01", quoted=Usd(2_999_999), predict_seconds=1.25, saved=Usd(0), tier="final", parent=new_id("pred", at),
    )  # fmt: skip


async def test_an_entry_comes_back_whole(place: Place):
    most, least = full(2), make_entry(seed=None, cost=None, outcome="failed", images=0)
    await place.sink.write([most, least])
    assert list(await place.sink.read()) == [most, least]


async def test_money_is_exact_for_whoever_reads_the_table(place: Place):
    entry = full()
    await place.sink.write([entry])
    (row,) = place.run("select id, cost_usd_estimate, cost_usd_micros from mai.imagen_usage")
    assert (row[0], str(row[1]), row[2]) == (to_uuid(entry.id), "3.000001", 3_000_001)


async def test_written_again_nothing_changes(place: Place):
    await place.sink.write([make_entry(1, cost=Usd(1)), make_entry(2)])
    await place.sink.write([make_entry(1, cost=Usd(9)), make_entry(2), make_entry(3), make_entry(3)])
    assert [entry.cost for entry in await place.sink.read()] == [None, None, Usd(1)]


async def test_writing_nothing_does_nothing(place: Place):
    await place.sink.write([])
    assert list(await place.sink.read()) == []


async def test_entries_are_read_newest_first_since_then_and_so_many(place: Place):
    await place.sink.write([make_entry(number) for number in (2, 4, 1, 3)])
    assert [entry.id[-1] for entry in await place.sink.read()] == ["4", "3", "2", "1"]
    since = make_entry(3).created_at.astimezone(timezone(timedelta(hours=9)))
    assert [entry.id[-1] for entry in await place.sink.read(since=since)] == ["4", "3"]
    assert [entry.id[-1] for entry in await place.sink.read(since=since, limit=1)] == ["4"]


async def test_more_than_the_server_gives_at_once_is_read_whole(place: Place):
    """Many of one instant, too: the next page begins in the middle of it."""
    if place.double is not None:
        place.double.max_rows = 7
    same = make_entry(1).created_at
    entries = [
        make_entry(number, created_at=same if number % 2 else make_entry(number).created_at)
        for number in range(1, 41)
    ]
    await place.sink.write(entries)
    read = await place.sink.read()
    assert sorted(entry.id for entry in read) == sorted(entry.id for entry in entries)
    assert [entry.created_at for entry in read] == sorted((entry.created_at for entry in read), reverse=True)
    assert len(await place.sink.read(limit=9)) == 9


async def test_five_hundred_at_once(place: Place):
    await place.sink.write([make_entry(number, cost=Usd(number)) for number in range(500)])
    (row,) = place.run(
        "select count(*), sum(cost_usd_micros), sum(cost_usd_estimate)::text from mai.imagen_usage"
    )
    assert row == (500, 124_750, "0.124750")


# --- the table -------------------------------------------------------------------------------------------


async def test_the_migration_may_be_applied_again(place: Place):
    await place.sink.write([make_entry()])
    place.run(schema_sql())
    assert list(await place.sink.read()) == [make_entry()]
    indexes = place.run("select indexname from pg_indexes where tablename = 'imagen_usage' order by 1")
    assert [name for (name,) in indexes] == [
        "imagen_usage_caller",
        "imagen_usage_created_at",
        "imagen_usage_pkey",
    ]
    assert place.run("select relrowsecurity from pg_class where relname = 'imagen_usage'") == [(True,)]


async def test_a_table_of_the_nine_columns_of_before_is_taken_over(bare: Place):
    bare.run(NINE_COLUMNS)
    bare.run(OLD_ROW)
    bare.run(schema_sql())
    bare.run(schema_sql())
    entry = full()
    await bare.sink.write([entry])
    new, old = await bare.sink.read()
    assert new == entry
    assert (old.cost, old.outcome, old.images, old.seed, old.caller) == (Usd(3000), "succeeded", 1, 42, "ada")
    assert isinstance(to_uuid(old.id), UUID)
    await bare.sink.write([old])
    assert len(await bare.sink.read()) == 2


async def test_a_table_without_a_key_gets_one(bare: Place):
    bare.run(NINE_COLUMNS.replace(" primary key", ""))
    bare.run(schema_sql())
    await bare.sink.write([make_entry()])
    await bare.sink.write([make_entry()])
    assert len(await bare.sink.read()) == 1


async def test_a_table_whose_ids_are_no_uuids_is_refused_and_stays(bare: Place):
    bare.run(
        NINE_COLUMNS.replace("id uuid primary key default gen_random_uuid()", "id bigserial primary key")
    )
    bare.run(OLD_ROW)
    with pytest.raises(psycopg.errors.RaiseException, match="not of type uuid"):
        bare.run(schema_sql())
    assert bare.run("select count(*) from mai.imagen_usage") == [(1,)]


async def test_a_missing_table_is_told_with_what_makes_it(bare: Place):
    with pytest.raises(SinkError) as refused:
        await bare.sink.write([make_entry()])
    assert "imagen sink" in (refused.value.hint or "")
    with pytest.raises(SinkError):
        await bare.sink.read()


async def test_a_table_with_too_few_columns_is_told_with_what_adds_them(bare: Place):
    bare.run(NINE_COLUMNS)
    bare.run("grant usage on schema mai to public; grant all on mai.imagen_usage to public")
    with pytest.raises(SinkError) as refused:
        await bare.sink.write([make_entry()])
    assert "imagen sink" in (refused.value.hint or "")


async def test_only_postgresql_is_migrated_from_here(bare: Place):
    if bare.double is None:
        await bare.sink.migrate()
        await bare.sink.migrate()
        await bare.sink.write([make_entry()])
    else:
        with pytest.raises(SinkError, match="makes no tables"):
            await bare.sink.migrate()


async def test_a_sink_goes_on_after_a_failure(bare: Place):
    with pytest.raises(SinkError):
        await bare.sink.write([make_entry()])
    bare.run(schema_sql())
    await bare.sink.write([make_entry()])
    assert len(await bare.sink.read()) == 1


async def test_longer_than_24_days_fits_in_a_new_table_and_in_one_of_before(bare: Place):
    bare.run(NINE_COLUMNS)
    bare.run(schema_sql())
    bare.run(schema_sql())
    entry = make_entry(latency_ms=26 * 86_400_000)
    await bare.sink.write([entry])
    assert list(await bare.sink.read()) == [entry]


async def test_an_entry_that_does_not_fit_is_told_apart_from_an_outage(bare: Place):
    with pytest.raises(SinkError) as away:
        await bare.sink.write([make_entry()])
    bare.run(schema_sql())
    bare.run("alter table mai.imagen_usage add constraint only_short check (length(caller) < 50)")
    for unfit in (make_entry(latency_ms=2**63), make_entry(caller="a\0b"), make_entry(caller="c" * 60)):
        with pytest.raises(SinkError) as refused:
            await bare.sink.write([unfit])
        assert (away.value.unfit, refused.value.unfit) == (False, True)


async def test_what_is_refused_is_passed_over_and_offered_again_when_asked(place: Place, tmp_path: Path):
    database = Database(tmp_path / "imagen.db")
    ledger = SqlLedger(database)
    mirror = Mirror(ledger=ledger, sink=place.sink, turn=AlwaysMine(), clock=ManualClock())
    place.run("alter table mai.imagen_usage add constraint not_eve check (caller <> 'eve')")
    await ledger.record(
        [make_entry(number, caller="eve" if number in {3, 7} else "ada") for number in range(20)]
    )
    await mirror.flush(within_seconds=10)
    assert len(await place.sink.read()) == 18
    assert (await mirror.waiting(), await mirror.refused()) == (2, 2)
    assert mirror.trouble is not None
    assert "2 entries were refused and passed over" in mirror.trouble.detail
    await ledger.record([make_entry(20)])
    await mirror.flush(within_seconds=10)
    assert len(await place.sink.read()) == 19
    with pytest.raises(SinkError, match="2 entries were refused"):
        await mirror.sync()
    place.run("alter table mai.imagen_usage drop constraint not_eve")
    assert await mirror.sync() == 2
    assert (await mirror.waiting(), await mirror.refused(), mirror.trouble) == (0, 0, None)
    database.close()


# --- PostgreSQL ------------------------------------------------------------------------------------------


async def test_no_error_of_postgresql_tells_the_password(postgres: Postgres):
    secret = "wr0ng&pass"
    for url in (
        postgres.url("postgres", password="wr0ng%26pass"),
        f"postgresql://postgres:{secret}@127.0.0.1:1/postgres",
        f"postgresql://postgres:{secret}@127.0.0.1:{postgres.port}/nowhere?{secret}=1",
        f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres?password=wr0ng",
        f"postgresql://postgres:wr0ng%zz@127.0.0.1:{postgres.port}/postgres",
    ):
        sink = PostgresSink(Secret(url), seconds=5)
        with pytest.raises(SinkError) as refused:
            await sink.write([make_entry()])
        assert refused.value.__cause__ is None
        assert secret not in f"{refused.value} {refused.value!r} {sink.name} {vars(sink)['_url']}"
        assert "wr0ng" not in str(refused.value)
        await sink.aclose()


async def test_a_connection_that_was_cut_is_made_anew(postgres: Postgres):
    url = postgres.database()
    postgres.run(schema_sql(), url=url)
    sink = PostgresSink(Secret(url))
    await sink.write([make_entry(1)])
    postgres.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'imagen'")
    with pytest.raises(SinkError):
        await sink.write([make_entry(2)])
    await sink.write([make_entry(2)])
    assert len(await sink.read()) == 2
    await sink.aclose()


async def test_a_batch_is_written_whole_or_not_at_all(postgres: Postgres):
    url = postgres.database()
    postgres.run(schema_sql(), url=url)
    sink = PostgresSink(Secret(url))
    with pytest.raises(SinkError):
        await sink.write([make_entry(1), make_entry(2, latency_ms=2**63)])
    assert list(await sink.read()) == []
    await sink.aclose()


async def test_a_table_that_is_locked_is_waited_for_no_longer_than_allowed(postgres: Postgres):
    url = postgres.database()
    postgres.run(schema_sql(), url=url)
    sink = PostgresSink(Secret(url), seconds=0.3)
    with psycopg.connect(url) as holder:
        holder.execute("lock table mai.imagen_usage")
        with pytest.raises(SinkError, match="did not answer"):
            await sink.write([make_entry()])
    await sink.write([make_entry()])
    await sink.aclose()


def test_the_same_database_has_the_same_name_whoever_asks():
    names = {
        PostgresSink(Secret(f"postgresql://{who}@db.example:5432/usage")).name
        for who in ("ada:one", "ada:two", "bob:three")
    }
    assert len(names) == 1
    assert PostgresSink(Secret("postgresql://ada:one@db.example:5432/other")).name not in names
    assert re.fullmatch(r"postgresql:[0-9a-f]{16}", names.pop())


# --- Supabase --------------------------------------------------------------------------------------------


@pytest.fixture
def project(postgres: Postgres) -> Iterator[PostgrestDouble]:
    with postgrest_double(postgres) as double:
        double.migrate(schema_sql())
        yield double


@pytest.fixture
async def supabase(project: PostgrestDouble) -> AsyncIterator[SupabaseSink]:
    sink = SupabaseSink(project.url, Secret(SERVICE_KEY), seconds=5)
    yield sink
    await sink.aclose()


@pytest.mark.parametrize("fault", ["503", "html", "drop", "lost", "half"])
async def test_after_an_outage_the_same_batch_is_there_once(
    project: PostgrestDouble, supabase: SupabaseSink, fault: str
):
    entries = [make_entry(number) for number in range(10)]
    project.faults.extend([fault, fault])
    for _ in range(2):
        with pytest.raises(SinkError) as refused:
            await supabase.write(entries)
        assert SERVICE_KEY not in str(refused.value)
    await supabase.write(entries)
    assert [entry.id for entry in await supabase.read()] == [entry.id for entry in reversed(entries)]


async def test_a_slow_answer_is_waited_for_no_longer_than_allowed(project: PostgrestDouble):
    sink = SupabaseSink(project.url, Secret(SERVICE_KEY), seconds=0.3)
    project.faults.append("slow")
    with pytest.raises(SinkError, match=r"did not answer within 0\.3 s|timed out|Timeout"):
        await sink.write([make_entry()])
    project.released.set()
    await sink.write([make_entry()])
    assert len(await sink.read()) == 1
    await sink.aclose()


@pytest.mark.parametrize(
    ("key", "helps"), [("sb-wrong-key-000", "SUPABASE_SERVICE_ROLE_KEY"), (ANON_KEY, "service role")]
)
async def test_a_key_that_may_not_is_told_and_not_shown(project: PostgrestDouble, key: str, helps: str):
    sink = SupabaseSink(project.url, Secret(key))
    for attempt in (sink.write([make_entry()]), sink.read()):
        with pytest.raises(SinkError) as refused:
            await attempt
        assert key not in str(refused.value)
        assert helps in (refused.value.hint or "")
    await sink.aclose()


@pytest.mark.parametrize("key", ["s3cr3t-key\nnext", " s3cr3t-key", "s3cr3té", "s3cr3t\0", ""])
async def test_a_key_that_is_none_is_told_and_not_shown(project: PostgrestDouble, key: str):
    sink = SupabaseSink(project.url, Secret(key))
    for attempt in (sink.write([make_entry()]), sink.read()):
        with pytest.raises(SinkError) as refused:
            await attempt
        assert "s3cr3t" not in f"{refused.value} {refused.value!r}"
        assert not refused.value.unfit
    await sink.aclose()


async def test_a_schema_that_is_not_exposed_is_told(project: PostgrestDouble, supabase: SupabaseSink):
    project.schemas.remove("mai")
    with pytest.raises(SinkError) as refused:
        await supabase.write([make_entry()])
    assert "exposed schemas" in (refused.value.hint or "")


async def test_nobody_is_followed_elsewhere_with_the_key(project: PostgrestDouble):
    sink = SupabaseSink("http://127.0.0.1:1", Secret(SERVICE_KEY), seconds=2)
    with pytest.raises(SinkError, match="could not be reached"):
        await sink.write([make_entry()])
    await sink.aclose()


LIVE = {name: os.environ.get(f"LIVE_SUPABASE_{name}") for name in ("URL", "KEY")}


@pytest.mark.skipif(not all(LIVE.values()), reason="LIVE_SUPABASE_URL and LIVE_SUPABASE_KEY are not set")
async def test_a_real_project_takes_and_gives_an_entry():
    """It leaves one row of the caller `imagen-live-test` behind; the table must be there."""
    sink = SupabaseSink(str(LIVE["URL"]), Secret(str(LIVE["KEY"])))
    now = datetime.now(UTC)
    entry = make_entry(
        id=new_id("pred", now), created_at=now.replace(microsecond=123_456), caller="imagen-live-test",
        cost=Usd(1), upstream_id=str(uuid4()),
    )  # fmt: skip
    try:
        await sink.write([entry])
        await sink.write([entry])
        assert entry in await sink.read(since=now - timedelta(minutes=1))
    finally:
        await sink.aclose()
