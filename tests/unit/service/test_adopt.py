"""The search for a lost create passes over what is others', and comes to an end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest

from fakes.clock import ManualClock
from fakes.make import make_prediction, make_sighting
from fakes.stores import Memory, MemoryPredictionStore
from imagen.domain.prediction import Prediction, Sighting
from imagen.errors import GarbledResponse
from imagen.ports import Backend
from imagen.service.adopt import adopt

pytestmark = pytest.mark.anyio


class Account:
    """A backend whose account has equal predictions; each look takes a second."""

    name = "fast"

    def __init__(self, clock: ManualClock, ids: list[str]) -> None:
        self._clock = clock
        self._ids = ids
        self.looks = 0

    async def find(self, _: Prediction, *, ignore: frozenset[str]) -> Sighting | None:
        self.looks += 1
        self._clock.advance(1.0)
        return next((make_sighting(upstream_id=one) for one in self._ids if one not in ignore), None)


async def search(account: Account, store: MemoryPredictionStore, clock: ManualClock, **facts: Any) -> Any:
    lost = make_prediction(1)
    await store.add(lost)
    return await adopt(
        cast("Backend", account),
        store,
        clock,
        lost,
        notify=lambda _: None,
        **{"within_seconds": 5.0, **facts},
    )


async def test_all_that_were_sent_by_a_clock_that_was_wrong_are_known_after_the_first() -> None:
    clock, store = ManualClock(), MemoryPredictionStore(Memory())
    ids = [f"up-{number}" for number in range(200)]
    for number, one in enumerate(ids):
        sent = make_prediction(2).created_at - timedelta(days=9, seconds=-number)
        await store.add(make_prediction(number + 2, upstream_id=one, created_at=sent, sent_at=sent))
    account = Account(clock, ids)
    assert await search(account, store, clock) is None
    assert account.looks < 10
    assert clock.monotonic() < 10


async def test_its_own_is_found_behind_what_is_others_even_when_the_time_is_up() -> None:
    clock, store = ManualClock(), MemoryPredictionStore(Memory())
    old = make_prediction(1).created_at - timedelta(days=9)
    await store.add(make_prediction(2, upstream_id="other", sent_at=old))
    found = await search(Account(clock, ["other", "own"]), store, clock, within_seconds=0.0)
    assert found is not None
    assert found.upstream_id == "own", "that it is not there would have bought it again"


async def test_nothing_is_concluded_where_ever_more_belong_to_others() -> None:
    """Others take each just before we do, without end."""

    class Taken(MemoryPredictionStore):
        async def known_upstream_ids(self, *_: Any, **__: Any) -> frozenset[str]:
            return frozenset()

    clock, store = ManualClock(), Taken(Memory())
    ids = [f"up-{number}" for number in range(1000)]
    for number, one in enumerate(ids):
        await store.add(make_prediction(number + 2, upstream_id=one))
    account = Account(clock, ids)
    with pytest.raises(GarbledResponse, match="nothing is concluded") as raised:
        await search(account, store, clock)
    assert raised.value.retryable
    assert account.looks == 50
