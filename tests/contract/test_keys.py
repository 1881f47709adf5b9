"""What `ports.Keys` promises, of every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import BEGINNING
from imagen.domain.key import Key, hash_key
from imagen.errors import IdempotencyConflict, NotFound, StoreError
from imagen.ports import Keys
from imagen.store.database import Database
from imagen.store.keys import SqlKeys

pytestmark = pytest.mark.anyio

LATER = BEGINNING + timedelta(minutes=5)


def make_key(name: str = "shop", **facts: Any) -> Key:
    return Key(**{"id": f"key_{name}", "name": name, "created_at": BEGINNING} | facts)


@pytest.fixture(params=["sqlite"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keys]:
    database = Database(tmp_path / "imagen.db")
    yield SqlKeys(database)
    database.close()


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"models": frozenset({"a/x", "a/y"}), "routes": frozenset({"/generate"})},
        {"concurrent": 4, "per_minute": 60},
    ],
)
async def test_a_key_comes_back_whole(keys: Keys, facts: dict[str, Any]):
    key = make_key(**facts)
    await keys.add(key, digest=hash_key("one"))
    assert await keys.find(hash_key("one")) == key
    assert list(await keys.list()) == [key]


async def test_an_unknown_digest_finds_nothing(keys: Keys):
    await keys.add(make_key(), digest=hash_key("one"))
    for digest in (hash_key("two"), "", hash_key("one").upper(), "%"):
        assert await keys.find(digest) is None


async def test_keys_are_listed_by_name(keys: Keys):
    assert list(await keys.list()) == []
    for name in ("web", "app", "cron"):
        await keys.add(make_key(name), digest=hash_key(name))
    assert [key.name for key in await keys.list()] == ["app", "cron", "web"]


async def test_a_name_that_is_taken_is_refused_and_the_first_stays(keys: Keys):
    await keys.add(make_key(), digest=hash_key("one"))
    with pytest.raises(IdempotencyConflict, match="shop"):
        await keys.add(make_key(id="key_other", concurrent=9), digest=hash_key("two"))
    assert await keys.find(hash_key("one")) == make_key()
    assert await keys.find(hash_key("two")) is None


async def test_of_fifty_who_want_one_name_one_gets_it(keys: Keys):
    answers = await asyncio.gather(
        *(keys.add(make_key(id=f"key_{number}"), digest=hash_key(str(number))) for number in range(50)),
        return_exceptions=True,
    )
    assert answers.count(None) == 1
    assert sum(isinstance(answer, IdempotencyConflict) for answer in answers) == 49
    assert len(await keys.list()) == 1


async def test_a_digest_belongs_to_one_key(keys: Keys):
    await keys.add(make_key("one"), digest=hash_key("same"))
    with pytest.raises(StoreError):
        await keys.add(make_key("two"), digest=hash_key("same"))
    assert [key.name for key in await keys.list()] == ["one"]


async def test_a_revoked_key_is_good_for_nothing(keys: Keys):
    await keys.add(make_key(), digest=hash_key("one"))
    await keys.add(make_key("other"), digest=hash_key("two"))
    assert await keys.revoke("shop", at=LATER) == make_key(revoked_at=LATER)
    assert await keys.find(hash_key("one")) is None
    assert [key.name for key in await keys.list()] == ["other"]


async def test_what_is_not_there_or_revoked_cannot_be_revoked(keys: Keys):
    await keys.add(make_key(), digest=hash_key("one"))
    await keys.revoke("shop", at=LATER)
    for name in ("shop", "other", "SHOP", ""):
        with pytest.raises(NotFound) as raised:
            await keys.revoke(name, at=LATER)
        assert raised.value.hint


async def test_the_name_of_a_revoked_key_is_given_again_and_the_old_key_stays_bad(keys: Keys):
    for number in range(3):
        again = make_key(id=f"key_{number}")
        await keys.add(again, digest=hash_key(str(number)))
        assert await keys.find(hash_key(str(number))) == again
        await keys.revoke("shop", at=LATER)
    assert [await keys.find(hash_key(str(number))) for number in range(3)] == [None] * 3


async def test_what_another_process_writes_is_seen(tmp_path: Path):
    here, there = Database(tmp_path / "imagen.db"), Database(tmp_path / "imagen.db")
    try:
        await SqlKeys(here).add(make_key(), digest=hash_key("one"))
        assert await SqlKeys(there).find(hash_key("one")) == make_key()
        with pytest.raises(IdempotencyConflict):
            await SqlKeys(there).add(make_key(id="key_2"), digest=hash_key("two"))
        await SqlKeys(there).revoke("shop", at=LATER)
        assert await SqlKeys(here).find(hash_key("one")) is None
    finally:
        here.close()
        there.close()
