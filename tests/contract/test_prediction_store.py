"""What `ports.PredictionStore` promises, of every implementation."""

from __future__ import annotations

import asyncio
from datetime import timedelta, timezone
from typing import Any

import pytest
from msgspec.structs import replace

from fakes.clock import BEGINNING
from fakes.make import make_entry, make_prediction
from imagen.domain.money import Usd
from imagen.domain.prediction import TERMINAL, Prediction, Status
from imagen.errors import NotFound, StoreError, UpstreamTaken
from imagen.ports import Ledger, PredictionStore, Sight, Stretch

pytestmark = pytest.mark.anyio

OPEN = [status for status in Status if status not in TERMINAL]
ENDINGS = sorted(TERMINAL)


async def test_what_was_added_comes_back_whole(store: PredictionStore):
    told = make_prediction(
        status=Status.SUCCEEDED,
        upstream_id="up-1",
        version="hidden",
        output=("https://replicate.delivery/a.png", "https://replicate.delivery/b.png"),
        error="none",
        category="model",
        logs="50%|████",
        predict_seconds=1.25,
        image_count=2,
        started_at=BEGINNING,
        ended_at=BEGINNING + timedelta(seconds=3, microseconds=1),
        owner="123-0123456789abcdef",
        charged=True,
        cost=Usd(6000),
        destination={"output": "x.png", "first": 1},
        files=("/a.png", "/b.png"),
        delivered_at=BEGINNING,
        settled_at=BEGINNING,
        seed=2**63 - 1,
        input={"prompt": "größer 水", "nested": [{"a": None, "b": 1.5}], "flag": True},
    )
    await store.add(told)
    assert await store.get(told.id) == told


async def test_an_intent_comes_back_with_nothing_added(store: PredictionStore):
    intent = make_prediction(seed=None)
    await store.add(intent)
    assert await store.get(intent.id) == intent


async def test_the_same_id_is_not_added_twice(store: PredictionStore):
    await store.add(make_prediction(caller="first"))
    with pytest.raises(StoreError):
        await store.add(make_prediction(caller="second"))
    assert (await store.get(make_prediction().id)).caller == "first"


@pytest.mark.parametrize("after", list(Status))
@pytest.mark.parametrize("before", list(Status))
async def test_save_moves_on_from_every_open_status_and_never_from_a_terminal_one(
    store: PredictionStore, before: Status, after: Status
):
    await store.add(make_prediction(status=before, error="before"))
    returned = await store.save(make_prediction(status=after, error="after"))
    stays = before in TERMINAL and after is not before
    status = before if stays or after is Status.QUEUED else after
    assert (returned.status, returned.error) == (status, "before" if stays else "after")
    assert await store.get(returned.id) == returned


async def test_who_has_seen_less_takes_nothing_back_and_is_told(store: PredictionStore):
    """What decides whether another create is sent: somebody else has found the first one in the meantime."""
    east = timezone(timedelta(hours=2))
    known = make_prediction(
        status=Status.SUCCEEDED,
        upstream_id="up-1",
        delivered_at=BEGINNING.astimezone(east),
        settled_at=BEGINNING + timedelta(seconds=1, microseconds=5),
    )
    await store.add(make_prediction(status=Status.STARTING))
    await store.save(known)
    returned = await store.save(make_prediction(status=Status.SUCCEEDED, logs="100%"))
    assert returned == replace(known, logs="100%")
    assert await store.get(known.id) == returned


async def test_an_intent_that_runs_already_does_not_wait_again(store: PredictionStore):
    await store.add(make_prediction())
    await store.save(make_prediction(status=Status.PROCESSING, upstream_id="up-1"))
    later = BEGINNING + timedelta(hours=1)
    returned = await store.save(make_prediction(status=Status.QUEUED, sent_at=later))
    assert (returned.status, returned.upstream_id, returned.sent_at) == (Status.PROCESSING, "up-1", later)
    assert await store.get(returned.id) == returned


@pytest.mark.parametrize("name", ["delivered_at", "settled_at", "ended_at"])
async def test_the_latest_instant_counts_whatever_its_zone(store: PredictionStore, name: str):
    await store.add(make_prediction(status=Status.SUCCEEDED, upstream_id="up-1", **{name: BEGINNING}))
    at = (BEGINNING + timedelta(hours=3)).astimezone(timezone(timedelta(hours=-5)))
    moved = make_prediction(status=Status.SUCCEEDED, upstream_id="up-1", **{name: at})
    assert getattr(await store.save(moved), name) == at
    assert getattr(await store.get(moved.id), name) == at


async def test_what_is_known_of_an_ended_prediction_may_still_grow(store: PredictionStore):
    ended = make_prediction(status=Status.SUCCEEDED, upstream_id="up-1")
    await store.add(ended)
    delivered = replace(ended, delivered_at=BEGINNING, files=("/a.png",))
    assert await store.save(delivered) == delivered
    assert await store.get(ended.id) == delivered


async def test_saving_leaves_the_owner_as_it_is(store: PredictionStore):
    await store.add(make_prediction(owner="me"))
    await store.save(make_prediction(owner=None, status=Status.STARTING))
    assert (await store.get(make_prediction().id)).owner == "me"


async def test_saving_leaves_the_input_as_it_is(store: PredictionStore):
    hidden = {"prompt": "a fox", "api_key": "[hidden]"}
    await store.add(make_prediction(input=hidden))
    await store.save(make_prediction(input={**hidden, "api_key": "sk-1"}, status=Status.STARTING))
    assert (await store.get(make_prediction().id)).input == hidden


async def test_what_was_never_added_cannot_be_saved(store: PredictionStore):
    with pytest.raises(NotFound):
        await store.save(make_prediction())


async def test_an_upstream_id_belongs_to_one_prediction_of_an_account(store: PredictionStore):
    await store.add(make_prediction(1))
    await store.add(make_prediction(2))
    await store.add(make_prediction(3, account="account-b"))
    await store.save(make_prediction(1, upstream_id="up-1", status=Status.STARTING))
    with pytest.raises(UpstreamTaken, match="up-1"):
        await store.save(make_prediction(2, upstream_id="up-1", status=Status.STARTING))
    assert (await store.get(make_prediction(2).id)).status is Status.QUEUED
    await store.save(make_prediction(3, account="account-b", upstream_id="up-1"))
    await store.save(make_prediction(1, upstream_id="up-1", status=Status.PROCESSING))


async def test_pictures_inside_an_answer_are_not_kept_in_the_row(store: PredictionStore):
    await store.add(make_prediction())
    picture = f"data:image/png;base64,{'A' * 100_000}"
    saved = await store.save(
        make_prediction(output=(picture, "https://a.b/c.png"), status=Status.SUCCEEDED, upstream_id="u")
    )
    assert saved.output[0] == picture
    assert (await store.get(saved.id)).output == ("data:", "https://a.b/c.png")


@pytest.mark.parametrize("given", ["pred_a1", " pred_a1\n", "up-a", "pred_a"])
async def test_get_by_id_by_unique_beginning_and_by_upstream_id(store: PredictionStore, given: str):
    await store.add(make_prediction(id="pred_a1", upstream_id="up-a"))
    await store.add(make_prediction(id="pred_b2", upstream_id="up-b"))
    assert (await store.get(given)).id == "pred_a1"


async def test_where_one_stands_is_told_without_the_rest(store: PredictionStore):
    await store.add(make_prediction(status=Status.PROCESSING, upstream_id="up-1"))
    whole = make_prediction().id
    assert await store.status(whole) is Status.PROCESSING
    for other in (whole[:-1], "up-1", "", "%"):
        assert await store.status(other) is None


async def test_a_whole_id_wins_over_beginnings(store: PredictionStore):
    for identity in ("pred_a11", "pred_a12", "pred_a1"):
        await store.add(make_prediction(id=identity))
    assert (await store.get("pred_a1")).id == "pred_a1"


@pytest.mark.parametrize("given", ["pred_", "pred_c", "", "  ", "%", "_", "pred%", "up", "' OR 1=1 --", "\0"])
async def test_get_refuses_what_names_none_or_several(store: PredictionStore, given: str):
    await store.add(make_prediction(id="pred_a1", upstream_id="up-a"))
    await store.add(make_prediction(id="pred_b2", upstream_id="up-b"))
    with pytest.raises(NotFound):
        await store.get(given)


async def test_an_empty_name_means_nothing_even_if_there_is_only_one(store: PredictionStore):
    await store.add(make_prediction())
    with pytest.raises(NotFound):
        await store.get("")


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("status", list(Status))
async def test_unfinished_is_what_is_open_or_not_delivered(
    store: PredictionStore, status: Status, delivered: bool
):
    one = make_prediction(status=status, delivered_at=BEGINNING if delivered else None)
    await store.add(one)
    wanted = status not in TERMINAL or (status is Status.SUCCEEDED and not delivered)
    assert list(await store.unfinished()) == ([one] if wanted else [])
    assert one.finished is not wanted


async def test_unfinished_comes_oldest_first_and_of_one_request_if_wanted(store: PredictionStore):
    for number, key in ((3, "a"), (1, "a"), (2, "b")):
        await store.add(make_prediction(number, request_key=key))
    assert [one.id[-1] for one in await store.unfinished()] == ["1", "2", "3"]
    assert [one.id[-1] for one in await store.unfinished(request_key="a")] == ["1", "3"]
    assert list(await store.unfinished(request_key="c")) == []


async def test_unfinished_may_leave_out_what_one_owner_follows(store: PredictionStore):
    for number, owner in ((1, "me"), (2, "you"), (3, None)):
        await store.add(make_prediction(number, owner=owner))
    assert [one.id[-1] for one in await store.unfinished(besides="me")] == ["2", "3"]


async def test_an_end_and_its_ledger_entry_are_written_together(house: Any):
    await house.store.add(make_prediction())
    ended = make_prediction(status=Status.SUCCEEDED, upstream_id="up-1")
    entry = make_entry(1)
    kept = await house.store.save(ended, entry=entry)
    assert kept.settled_at is not None
    assert list(await house.ledger.entries()) == [entry]
    assert list(await house.store.unsettled()) == []
    # Whoever comes later with another end changes neither.
    await house.store.save(make_prediction(status=Status.FAILED), entry=make_entry(1, outcome="failed"))
    assert list(await house.ledger.entries()) == [entry]


async def test_what_an_intent_says_once_stays(store: PredictionStore):
    await store.add(make_prediction())
    await store.save(make_prediction(status=Status.PROCESSING, prompt="another", seed=99, model="a/b"))
    kept = await store.get(make_prediction().id)
    assert (kept.prompt, kept.seed, kept.model) == ("a red fox in the snow", 7, make_prediction().model)


async def test_of_fifty_takers_one_wins(store: PredictionStore):
    await store.add(make_prediction(owner="dead"))
    identity = make_prediction().id
    won = await asyncio.gather(*(store.take(identity, owner=f"taker-{n}", was="dead") for n in range(50)))
    assert won.count(True) == 1
    assert (await store.get(identity)).owner == f"taker-{won.index(True)}"


async def test_take_wants_the_owner_to_be_whom_one_thinks(store: PredictionStore):
    await store.add(make_prediction())
    identity = make_prediction().id
    assert not await store.take(identity, owner="me", was="somebody")
    assert await store.take(identity, owner="me", was=None)
    assert not await store.take(identity, owner="other", was=None)
    assert not await store.take("pred_none", owner="me", was=None)


async def test_only_the_owner_releases(store: PredictionStore):
    await store.add(make_prediction(owner="me"))
    identity = make_prediction().id
    await store.release(identity, owner="other")
    assert (await store.get(identity)).owner == "me"
    await store.release(identity, owner="me")
    assert (await store.get(identity)).owner is None


async def test_list_is_newest_first_of_one_status_if_wanted(store: PredictionStore):
    for number in range(1, 6):
        await store.add(make_prediction(number, status=Status.FAILED if number % 2 else Status.QUEUED))
    assert [one.id[-1] for one in await store.list(limit=3)] == ["5", "4", "3"]
    assert [one.id[-1] for one in await store.list(limit=9, status=Status.QUEUED)] == ["4", "2"]
    assert list(await store.list(limit=9, status=Status.UNKNOWN)) == []


def _is_unsettled(one: Prediction) -> bool:
    return one.status in TERMINAL and one.upstream_id is not None and one.settled_at is None


@pytest.mark.parametrize("settled_at", [None, BEGINNING])
@pytest.mark.parametrize("upstream_id", [None, "up-1"])
@pytest.mark.parametrize("status", list(Status))
async def test_unsettled_is_what_was_bought_has_ended_and_is_not_in_the_ledger(
    store: PredictionStore, status: Status, upstream_id: str | None, settled_at: object
):
    one = make_prediction(status=status, upstream_id=upstream_id, settled_at=settled_at)
    await store.add(one)
    assert list(await store.unsettled()) == ([one] if _is_unsettled(one) else [])


async def test_the_ledger_settles_predictions(store: PredictionStore, ledger: Ledger):
    await store.add(make_prediction(status=Status.SUCCEEDED, upstream_id="up-1"))
    await ledger.record([make_entry()])
    assert list(await store.unsettled()) == []
    assert (await store.get(make_prediction().id)).settled_at is not None


async def test_known_upstream_ids_are_those_of_one_account_since_then(store: PredictionStore):
    await store.add(make_prediction(1, upstream_id="old"))
    await store.add(make_prediction(2, upstream_id="new"))
    await store.add(make_prediction(3))
    await store.add(make_prediction(4, upstream_id="other", account="account-b"))
    since = make_prediction(2).created_at
    # Accepted with a batch long before, and sent now.
    await store.add(
        make_prediction(5, upstream_id="late", created_at=since - timedelta(days=9), sent_at=since)
    )
    assert await store.known_upstream_ids("account-a", since=since) == {"new", "late"}
    assert await store.known_upstream_ids("account-a", since=since - timedelta(days=1)) == {
        "old",
        "new",
        "late",
    }
    assert await store.known_upstream_ids("nobody", since=since) == frozenset()


async def test_predictions_are_found_by_their_upstream_ids_in_their_own_account(store: PredictionStore):
    for number, account in enumerate(("account-a", "account-a", "account-b", "account-a"), 1):
        await store.add(
            make_prediction(number, upstream_id=f"up-{number}" if number < 4 else None, account=account)
        )
    found = await store.of_upstream("account-a", ["up-2", "up-1", "up-3", "up-9", "' OR 1=1 --"])
    assert {one.upstream_id for one in found} == {"up-1", "up-2"}
    assert list(await store.of_upstream("account-a", [])) == []
    many = [f"none-{number}" for number in range(500)]
    assert [one.upstream_id for one in await store.of_upstream("account-b", [*many, "up-3"])] == ["up-3"]


async def test_where_nothing_is_damaged_nothing_is_unreadable(store: PredictionStore):
    await store.add(make_prediction())
    assert len(await store.unfinished()) == 1
    assert list(await store.unreadable()) == []


async def test_a_write_that_was_asked_for_is_made_though_nobody_waits_for_it(store: PredictionStore):
    await store.add(make_prediction(1))
    writing = asyncio.ensure_future(store.add(make_prediction(2)))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await store.add(make_prediction(3))
    assert [one.id[-1] for one in await store.list(limit=9)] == ["3", "2", "1"]


async def test_values_of_sql_are_only_values(store: PredictionStore):
    nasty = "'; DROP TABLE predictions; --"
    await store.add(make_prediction(prompt=nasty, caller=nasty, request_key=nasty, model=nasty))
    assert (await store.unfinished(request_key=nasty))[0].caller == nasty


async def test_what_ended_without_being_bought_is_written_with_its_entry_or_not_at_all(house: Any):
    ended = make_prediction(
        status=Status.SUCCEEDED, charged=False, delivered_at=BEGINNING, settled_at=BEGINNING
    )
    entry = make_entry(outcome="cached")
    await house.store.add(ended, entry=entry)
    assert await house.store.get(ended.id) == ended
    assert list(await house.store.unfinished()) == list(await house.store.unsettled()) == []
    with pytest.raises(StoreError):
        await house.store.add(ended, entry=make_entry(2, outcome="cached"))
    assert list(await house.ledger.entries()) == [entry]


async def test_a_stretch_has_what_somebody_may_see_newest_first(store: PredictionStore):
    mine, theirs = {"key": "key_a", "account": "ours"}, {"key": "key_b", "account": "ours"}
    nobodys = {"key": None, "caller": "local", "account": "ours"}
    for number, whose in enumerate([mine, theirs, mine, nobodys, {**nobodys, "account": "other"}, mine]):
        await store.add(make_prediction(id=f"pred_{number}", upstream_id=f"up-{number}", **whose))

    async def shown(sight: Sight, **bounds: Any) -> list[str]:
        found = await store.stretch(sight, Stretch(**{"limit": 10} | bounds))
        return [one.removeprefix("pred_") for one in found]

    assert await shown(Sight()) == ["5", "4", "3", "2", "1", "0"]
    assert await shown(Sight(key="key_a")) == ["5", "2", "0"]
    assert await shown(Sight(account="other")) == ["4"]
    assert await shown(Sight(account="ours", caller="local")) == ["3"]
    assert await shown(Sight(key="key_a"), limit=2) == ["5", "2"]
    assert await shown(Sight(key="key_a"), limit=2, rising=True) == ["0", "2"]
    assert await shown(Sight(), below="pred_4", above="pred_1") == ["3", "2"]
    assert await shown(Sight(), above="pred_1", limit=2, rising=True) == ["2", "3"]
