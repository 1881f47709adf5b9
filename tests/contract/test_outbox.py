"""What `ports.Outbox` promises, of every implementation."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fakes.clock import BEGINNING
from imagen.domain.delivery import Delivery
from imagen.errors import NotFound, StoreError
from imagen.ports import Outbox
from imagen.store.database import Database
from imagen.store.outbox import SqlOutbox, put_deliveries

pytestmark = pytest.mark.anyio

LATER = BEGINNING + timedelta(minutes=5)
MUCH_LATER = BEGINNING + timedelta(days=8)
HOOK = "https://a.example/hook"


def make_delivery(number: int = 1, **facts: Any) -> Delivery:
    given = {
        "id": f"msg_{number}",
        "subject": f"pred_{number}",
        "url": HOOK,
        "scope": "admin",
        "event": "prediction.completed",
        "body": {"type": "prediction.completed", "data": {"number": number}},
        "created_at": BEGINNING,
        "due_at": BEGINNING,
    }
    return Delivery(**given | facts)


def taken(delivery: Delivery) -> Delivery:
    return replace(
        delivery, attempts=delivery.attempts + 1, due_at=None, delivered_at=LATER, answer="status 200"
    )


def failed(delivery: Delivery, **facts: Any) -> Delivery:
    told = {"attempts": delivery.attempts + 1, "tried_since": BEGINNING, "due_at": LATER, "answer": "no"}
    return replace(delivery, **told | facts)


def given_up(delivery: Delivery, **facts: Any) -> Delivery:
    return failed(delivery, due_at=None, given_up_at=LATER, **facts)


@pytest.fixture(params=["sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    database = Database(tmp_path / "imagen.db")
    yield SqlOutbox(database)
    database.close()


async def due(outbox: Outbox, *, now: Any = BEGINNING, limit: int = 100) -> list[str]:
    return [one.id for one in await outbox.due(now=now, limit=limit)]


async def test_a_delivery_comes_back_whole(outbox: Outbox):
    whole = make_delivery(attempts=3, tried_since=BEGINNING, answer="status 500", due_at=LATER)
    await outbox.put([whole])
    assert list(await outbox.list(limit=10)) == [whole]
    assert list(await outbox.due(now=LATER, limit=10)) == [whole]


async def test_what_is_put_without_an_instant_is_due_when_it_happened(outbox: Outbox):
    await outbox.put([make_delivery(due_at=None)])
    assert await due(outbox) == ["msg_1"]


async def test_one_is_due_at_its_instant_and_not_before(outbox: Outbox):
    await outbox.put([make_delivery(due_at=LATER)])
    assert await due(outbox, now=LATER - timedelta(microseconds=1)) == []
    assert await due(outbox, now=LATER) == ["msg_1"]


async def test_put_twice_is_put_once_also_after_it_was_taken(outbox: Outbox):
    one = make_delivery()
    await outbox.put([one, one])
    await outbox.put([one])
    await outbox.done(taken(one), now=LATER)
    await outbox.put([one])
    assert [(each.id, each.status) for each in await outbox.list(limit=10)] == [("msg_1", "taken")]
    assert await due(outbox) == []


async def test_of_one_subject_and_address_only_the_first_is_due(outbox: Outbox):
    await outbox.put([make_delivery(number, subject="batch_1") for number in range(1, 4)])
    first, second, third = reversed(await outbox.list(limit=10))
    assert await due(outbox) == [first.id]
    following = await outbox.done(taken(first), now=LATER)
    assert following == second
    assert await due(outbox) == [second.id]
    assert await outbox.done(given_up(second), now=LATER) == third
    assert await outbox.done(taken(third), now=LATER) is None
    assert await due(outbox, now=MUCH_LATER) == []


async def test_a_failed_one_keeps_those_behind_it_waiting(outbox: Outbox):
    await outbox.put([make_delivery(number, subject="batch_1") for number in (1, 2)])
    first = make_delivery(1, subject="batch_1")
    assert await outbox.done(failed(first), now=BEGINNING) is None
    assert await due(outbox) == []
    assert await due(outbox, now=LATER) == [first.id]


async def test_other_subjects_and_addresses_do_not_wait(outbox: Outbox):
    await outbox.put(
        [
            make_delivery(1, subject="batch_1"),
            make_delivery(2, subject="batch_1"),
            make_delivery(3, subject="batch_2"),
            make_delivery(4, subject="batch_1", url="https://b.example/"),
        ]
    )
    assert sorted(await due(outbox)) == ["msg_1", "msg_3", "msg_4"]


@pytest.mark.parametrize("end", ["/hook/{}", "?id={}", "/hook?id={}", ":443/{}"])
async def test_a_host_with_many_leaves_room_for_the_others(outbox: Outbox, end: str):
    many = [make_delivery(number, url="https://slow.example" + end.format(number)) for number in range(200)]
    await outbox.put([*many, make_delivery(500, url="https://b.example/"), make_delivery(501, url=HOOK)])
    found = await due(outbox, limit=20)
    assert {"msg_500", "msg_501"} < set(found)
    assert 1 <= len(found) - 2 <= 20 - 2


async def test_the_oldest_are_due_first(outbox: Outbox):
    await outbox.put([make_delivery(number) for number in range(4)])
    assert await due(outbox) == ["msg_0", "msg_1", "msg_2", "msg_3"]
    assert await due(outbox, limit=2) == ["msg_0", "msg_1"]


async def test_what_was_taken_stays_taken(outbox: Outbox):
    one = make_delivery()
    await outbox.put([one])
    await outbox.done(taken(one), now=LATER)
    await outbox.done(given_up(one), now=LATER)
    await outbox.done(failed(one, attempts=2), now=LATER)
    (found,) = await outbox.list(limit=10)
    assert (found.status, found.answer, found.attempts) == ("taken", "status 200", 1)


async def test_the_failed_ones_are_listed_apart(outbox: Outbox):
    waits, fails, lost, done = (make_delivery(number) for number in range(4))
    await outbox.put([waits, fails, lost, done])
    await outbox.done(failed(fails), now=LATER)
    await outbox.done(given_up(lost), now=LATER)
    await outbox.done(taken(done), now=LATER)
    assert [one.id for one in await outbox.list(limit=10, failed=True)] == ["msg_2", "msg_1"]
    assert [one.id for one in await outbox.list(limit=1, failed=True)] == ["msg_2"]
    assert await outbox.waiting() == 2


async def test_a_scope_sees_its_own(outbox: Outbox):
    await outbox.put([make_delivery(1), make_delivery(2, scope="key:a"), make_delivery(3, scope="key:a")])
    assert [one.id for one in await outbox.list(limit=10, scope="key:a")] == ["msg_3", "msg_2"]
    assert [one.id for one in await outbox.list(limit=10, scope="key")] == []


async def test_one_that_was_given_up_is_sent_again_for_a_new_day(outbox: Outbox):
    one = make_delivery()
    await outbox.put([one])
    await outbox.done(given_up(one), now=LATER)
    again = await outbox.retry(one.id, now=MUCH_LATER)
    assert (again.status, again.due_at, again.attempts, again.tried_since) == (
        "waiting", MUCH_LATER, 0, MUCH_LATER,
    )  # fmt: skip
    assert list(await outbox.due(now=MUCH_LATER, limit=10)) == [again]


async def test_an_attempt_of_before_does_not_end_the_new_day(outbox: Outbox):
    one = failed(make_delivery(attempts=8), due_at=LATER)
    await outbox.put([one])
    await outbox.retry(one.id, now=LATER)
    await outbox.done(given_up(one), now=LATER)
    assert await due(outbox, now=LATER) == [one.id]
    await outbox.done(taken(one), now=LATER)
    assert [each.status for each in await outbox.list(limit=1)] == ["taken"]


async def test_what_was_taken_is_not_sent_again(outbox: Outbox):
    one = make_delivery()
    await outbox.put([one])
    await outbox.done(taken(one), now=LATER)
    assert (await outbox.retry(one.id, now=LATER)).status == "taken"
    assert await due(outbox, now=LATER) == []


async def test_an_unknown_one_cannot_be_sent_again(outbox: Outbox):
    await outbox.put([make_delivery()])
    for unknown in ("msg_2", "", "msg_%", "MSG_1"):
        with pytest.raises(NotFound) as raised:
            await outbox.retry(unknown, now=LATER)
        assert raised.value.hint


async def test_sweeping_forgets_what_is_done_and_old(outbox: Outbox):
    waits, lost, done, again = (make_delivery(number) for number in range(4))
    await outbox.put([waits, lost, done, again])
    await outbox.done(given_up(lost), now=LATER)
    await outbox.done(given_up(again), now=LATER)
    await outbox.done(taken(done), now=LATER)
    await outbox.retry(again.id, now=LATER)
    await outbox.sweep(before=LATER)
    assert len(await outbox.list(limit=10)) == 4
    await outbox.sweep(before=LATER + timedelta(seconds=1))
    assert [one.id for one in await outbox.list(limit=10)] == [again.id, waits.id]


async def test_the_order_holds_after_the_newest_were_swept(outbox: Outbox):
    first, last = make_delivery(1, subject="batch_1"), make_delivery(2, subject="batch_2")
    await outbox.put([first, last])
    await outbox.done(taken(last), now=LATER)
    await outbox.sweep(before=MUCH_LATER)
    await outbox.put([make_delivery(3, subject="batch_1")])
    assert await due(outbox) == ["msg_1"]


async def test_deliveries_are_written_with_what_they_tell_of_or_not_at_all(tmp_path: Path):
    database = Database(tmp_path / "imagen.db")
    outbox = SqlOutbox(database)

    def job(connection: Any) -> None:
        put_deliveries(connection, [make_delivery()])
        raise NotFound("what it tells of was not written")

    try:
        with pytest.raises(NotFound):
            await database.write(job)
        assert list(await outbox.list(limit=10)) == []
    finally:
        database.close()


# --- rows that are damaged ---

RUBBISH = [
    ("body", "'{\"a secret fox'"),
    ("body", "'[\"a secret fox\"]'"),
    ("due_at", "'a secret fox'"),
    ("due_at", "''"),
    ("due_at", "x'ff'"),
    ("tried_since", "'a secret fox'"),
    ("created_at", "'2026-02-30 00:00:00'"),
    ("attempts", "'a secret fox'"),
    ("event", "cast(x'ff' as text)"),
    ("answer", "x'ff'"),
]


def damage(tmp_path: Path, table: str, column: str, sql: str, where: str = "1") -> None:
    """As a disk, or somebody with an editor, leaves it."""
    connection = sqlite3.connect(tmp_path / "imagen.db")
    try:
        with connection:
            statement = f"update {table} set {column} = {sql} where {where}"  # noqa: S608 - all of it is ours
            assert connection.execute(statement).rowcount == 1
    finally:
        connection.close()


@pytest.mark.parametrize(("column", "sql"), RUBBISH)
async def test_a_damaged_one_is_given_up_and_holds_up_nobody(
    outbox: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, sql: str
):
    line = [make_delivery(number, subject="batch_1") for number in (1, 2)]
    await outbox.put([*line, make_delivery(3, subject="batch_2")])
    damage(tmp_path, "deliveries", column, sql, "id = 'msg_1'")
    assert {one.id for one in await outbox.list(limit=10)} == {"msg_1", "msg_2", "msg_3"}
    with caplog.at_level(logging.ERROR, logger="imagen"):
        assert await due(outbox) == ["msg_3"]
        assert await due(outbox) == ["msg_2", "msg_3"]
    (told,) = caplog.messages
    assert "msg_1" in told
    assert "fox" not in told
    shown = {one.id: (one.status, one.answer) for one in await outbox.list(limit=10, failed=True)}
    assert shown == {"msg_1": ("given_up", "it cannot be read in the database")}
    await outbox.sweep(before=MUCH_LATER)
    assert {one.id for one in await outbox.list(limit=10)} == {"msg_2", "msg_3"}


async def test_one_that_is_damaged_behind_another_does_not_lose_the_end_of_that(
    outbox: Outbox, tmp_path: Path
):
    first, *_ = line = [make_delivery(number, subject="batch_1") for number in (1, 2, 3)]
    await outbox.put(line)
    damage(tmp_path, "deliveries", "body", "'{'", "id = 'msg_2'")
    assert await outbox.done(taken(first), now=LATER) is None
    assert await due(outbox, now=LATER) == []
    assert await due(outbox, now=LATER) == ["msg_3"]
    assert [one.status for one in await outbox.list(limit=10)] == ["waiting", "given_up", "taken"]


async def test_a_damaged_one_is_sent_again_only_where_what_it_says_can_be_read(
    outbox: Outbox, tmp_path: Path
):
    await outbox.put([make_delivery(1), make_delivery(2)])
    damage(tmp_path, "deliveries", "body", "'{'", "id = 'msg_1'")
    damage(tmp_path, "deliveries", "tried_since", "'?'", "id = 'msg_2'")
    assert await due(outbox) == []
    with pytest.raises(StoreError, match="msg_1") as raised:
        await outbox.retry("msg_1", now=LATER)
    assert raised.value.of_one_row
    assert raised.value.hint
    assert (await outbox.retry("msg_2", now=LATER)).body == make_delivery(2).body
    assert await due(outbox, now=LATER) == ["msg_2"]


# --- what signs them ---


@pytest.mark.parametrize("column", ["secret", "created_at"])
async def test_a_damaged_secret_is_there_until_another_takes_its_place(
    outbox: Outbox, tmp_path: Path, column: str
):
    await outbox.rotate("one", now=BEGINNING, overlap_seconds=0)
    damage(tmp_path, "signing_secrets", column, "x'ff'")
    assert len(await outbox.secrets(now=BEGINNING)) == 1
    kept = await outbox.rotate("two", now=BEGINNING, overlap_seconds=0, first=True)
    assert kept.secret != "two"
    await outbox.rotate("three", now=BEGINNING, overlap_seconds=0)
    assert [one.secret for one in await outbox.secrets(now=BEGINNING)] == ["three"]


async def test_there_is_no_secret_before_the_first(outbox: Outbox):
    assert list(await outbox.secrets(now=BEGINNING)) == []


async def test_the_old_secret_signs_beside_the_new_one_until_the_overlap_is_over(outbox: Outbox):
    await outbox.rotate("one", now=BEGINNING, overlap_seconds=60)
    new = await outbox.rotate("two", now=LATER, overlap_seconds=60)
    assert (new.secret, new.created_at, new.retires_at) == ("two", LATER, None)
    over = LATER + timedelta(seconds=60)
    both = await outbox.secrets(now=over - timedelta(microseconds=1))
    assert [(one.secret, one.retires_at) for one in both] == [("two", None), ("one", over)]
    assert [one.secret for one in await outbox.secrets(now=over)] == ["two"]


async def test_a_later_rotation_does_not_keep_an_old_secret_longer(outbox: Outbox):
    for number in range(3):
        await outbox.rotate(
            str(number), now=BEGINNING + timedelta(seconds=number), overlap_seconds=10 - 4 * number
        )
    retire = {
        one.secret: one.retires_at for one in await outbox.secrets(now=BEGINNING + timedelta(seconds=2))
    }
    assert retire == {
        "2": None,
        "1": BEGINNING + timedelta(seconds=4),
        "0": BEGINNING + timedelta(seconds=4),
    }


async def test_without_an_overlap_the_new_secret_signs_alone(outbox: Outbox):
    first = await outbox.rotate("one", now=BEGINNING, overlap_seconds=60)
    second = await outbox.rotate("two", now=LATER, overlap_seconds=0)
    assert [one.secret for one in await outbox.secrets(now=LATER)] == ["two"]
    assert second.id > first.id


async def test_of_many_who_need_a_first_secret_one_makes_it(tmp_path: Path):
    databases = [Database(tmp_path / "imagen.db") for _ in range(3)]
    try:
        made = await asyncio.gather(
            *(
                SqlOutbox(databases[number % 3]).rotate(
                    str(number), now=BEGINNING, overlap_seconds=0, first=True
                )
                for number in range(30)
            )
        )
        assert len({one.secret for one in made}) == 1
        assert list(await SqlOutbox(databases[0]).secrets(now=BEGINNING)) == [made[0]]
    finally:
        for database in databases:
            database.close()
