"""Somebody else acts on the same prediction, or the world says half-truths: still one purchase, and nothing forgotten."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stories import FOX, Shifted, again, die

from imagen.assembly import build
from imagen.domain.events import AnswerLost, CancelUnconfirmed
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread, Model
from imagen.errors import DeliveryError, InvalidRequest, OutcomeUnknown, OutputDefective, StoreBusy
from imagen.service.deliver import Destination
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio

CREATE, GET = "predictions.create", "predictions.get"


async def test_canceling_while_another_process_waits_to_buy_is_refused(
    open_app: Any, replicate_emulator: EmulatorThread, record: Any
) -> None:
    replicate_emulator.add_fault("rate_limit", operation=CREATE, retry_after=1)
    async with open_app() as buyer, open_app() as other:
        buying = asyncio.ensure_future(buyer.gateway.generate(FOX, observer=record))
        await until(lambda: replicate_emulator.journal.entries(operation=CREATE))
        (row,) = await other.store.unfinished()
        with pytest.raises(InvalidRequest, match="being bought by another process"):
            await other.gateway.cancel(row.id)
        (outcome,) = await buying
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_a_row_that_ended_meanwhile_is_not_bought(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    """However it came to that: after a wait, what is written down counts."""
    replicate_emulator.add_fault("rate_limit", operation=CREATE, retry_after=1)
    async with open_app() as app:
        buying = asyncio.ensure_future(app.gateway.generate(FOX))
        await until(lambda: replicate_emulator.journal.entries(operation=CREATE))
        (row,) = await app.store.unfinished()
        ended = msgspec.structs.replace(row, status=Status.CANCELED, charged=False)
        await app.store.save(ended)
        (outcome,) = await buying
    assert outcome.prediction.status is Status.CANCELED
    assert replicate_emulator.purchases == 0


async def test_ctrl_c_while_the_list_lags_claims_nothing(
    open_app: Any, replicate_emulator: EmulatorThread, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.service.finish._CANCEL_SEARCH_SECONDS", 0.3)
    replicate_emulator.add_fault("slow", run_seconds=3.0)
    replicate_emulator.add_fault("hidden_from_list", seconds=2)
    async with open_app() as app:
        running = asyncio.ensure_future(app.gateway.generate(FOX, observer=record))
        await until(lambda: replicate_emulator.purchases)
        running.cancel()
        await asyncio.wait([running])
        assert record.of(CancelUnconfirmed)
        (left,) = await app.store.unfinished()
        assert left.charged is None
    outcome = await again(open_app(IMAGEN_REPLICATE__LOST_ANSWER_GRACE="5"))
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


@pytest.mark.parametrize("fault", [("status", {"status": 404}), ("garbage", {})])
async def test_one_bad_answer_about_what_was_left_buys_nothing_anew(
    fault: tuple[str, dict[str, Any]], open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("hold_returns_starting")
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    await die(open_app(), lambda: replicate_emulator.journal.entries(operation=GET))
    replicate_emulator.add_fault(fault[0], operation=GET, times=1, **fault[1])
    first = await again(open_app())
    second = first if first.error is None else await again(open_app())
    assert second.error is None
    assert replicate_emulator.purchases == 1


async def test_a_file_host_that_says_404_within_the_hour_loses_nothing(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation="delivery", status=404, times=None)
    first = await again(open_app())
    assert isinstance(first.error, DeliveryError)
    replicate_emulator.clear_faults()
    second = await again(open_app())
    assert second.error is None
    assert second.prediction.id == first.prediction.id
    assert replicate_emulator.purchases == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_5xx_whose_purchase_is_listed_late_is_waited_for(
    status: int, open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status_after", operation=CREATE, status=status)
    replicate_emulator.add_fault("hidden_from_list", seconds=4)
    outcome = await again(open_app(IMAGEN_REPLICATE__LOST_ANSWER_GRACE="8"))
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_never_repeat_holds_for_the_next_run_too(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop_after", operation=CREATE)
    replicate_emulator.add_fault("hidden_from_list", seconds=600)
    request = msgspec.structs.replace(FOX, repeat_lost=False)
    assert (await again(open_app(), request)).error is not None
    outcome = await again(open_app(), request)
    assert isinstance(outcome.error, OutcomeUnknown)
    assert replicate_emulator.purchases == 1


async def test_a_tuple_is_recognised_as_the_list_that_was_sent(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    names = ("prompt", "colors", "seed")
    replicate_emulator.add_model(
        Model(name="some/palette", description="", parameters={name: {} for name in names}, official=True)
    )
    replicate_emulator.add_fault("drop_after", operation=CREATE)
    request = GenerationRequest(
        prompt="a fox", model=ModelRef.parse("some/palette"), options={"colors": ("red", "blue")}
    )
    outcome = await again(open_app(), request)
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_who_finished_it_meanwhile_is_believed(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    """Between seeing a left-over and taking it its owner may have finished it: then it is not bought again."""
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    left = await die(open_app(), lambda: replicate_emulator.purchases)
    async with open_app() as quick, open_app() as slow:
        unfinished = slow.store.unfinished
        seen = await unfinished(request_key=left.request_key)
        (outcome,) = await quick.gateway.generate(FOX, destination=Destination())
        assert outcome.error is None

        async def stale(*, request_key: str | None = None) -> Any:
            slow.store.unfinished = unfinished  # type: ignore[method-assign]
            return seen

        slow.store.unfinished = stale  # type: ignore[method-assign,assignment]
        (second,) = await slow.gateway.generate(FOX, destination=Destination())
    assert second.prediction.id != left.id  # a new wish, honestly bought
    assert replicate_emulator.purchases == 2
    assert outcome.prediction.id == left.id


async def test_the_same_token_elsewhere_is_another_account(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("hold_returns_starting")
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    left = await die(open_app(), lambda: replicate_emulator.journal.entries(operation=GET))
    with EmulatorThread() as elsewhere:
        outcome = await again(open_app(IMAGEN_REPLICATE__API_BASE=elsewhere.url))
        assert outcome.prediction.id != left.id
    mine = await again(open_app())
    assert mine.prediction.id == left.id
    assert replicate_emulator.purchases == 1


async def test_a_clock_set_back_does_not_search_for_hours(
    open_app: Any, replicate_emulator: EmulatorThread, environ: dict[str, str], tmp_path: Path, record: Any
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=0.5)
    await die(open_app(), lambda: replicate_emulator.purchases)
    settings = load_settings(environ=environ, cwd=tmp_path)
    app = build(settings, environ=environ, clock=Shifted(timedelta(hours=-3)))
    outcome = await again(app, record=record)
    assert outcome.error is None
    assert all(event.seconds <= 1 for event in record.of(AnswerLost))
    assert replicate_emulator.purchases == 1


async def test_one_bad_picture_of_four_takes_no_other_down(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("broken_picture", operation="delivery", times=2, skip=1)
    outcome = await again(open_app(), msgspec.structs.replace(FOX, count=4))
    assert isinstance(outcome.error, OutputDefective)
    assert len(outcome.pictures) == 3
    assert len([file for file in outcome.prediction.files if file]) == 3


async def test_what_landed_is_not_fetched_again(open_app: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("status", operation="delivery", status=503, times=2, skip=1)
    request = msgspec.structs.replace(FOX, count=2)
    first = await again(open_app(), request)
    assert isinstance(first.error, DeliveryError)
    assert len(first.pictures) == 1
    second = await again(open_app(), request)
    assert second.error is None
    assert len(second.pictures) == 2
    assert len(list(second.pictures[0].path.parent.iterdir())) == 2
    assert replicate_emulator.purchases == 1


async def test_adopting_what_was_delivered_keeps_its_record(
    open_app: Any, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    made = await again(open_app())
    replicate_emulator.clock.advance(4000)
    async with open_app() as app:
        place = Destination(output=str(tmp_path / "elsewhere.png"))
        outcome = await app.gateway.resume(made.prediction.id, destination=place)
        assert isinstance(outcome.error, OutputDefective)
        kept = await app.store.get(made.prediction.id)
    assert kept.files == made.prediction.files
    assert kept.error is None


async def test_a_place_that_cannot_be_given_back_costs_no_picture(
    open_app: Any, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app() as app:
        await app.semaphores.register("two", 2)

        async def busy(*_: Any, **__: Any) -> None:
            raise StoreBusy("somebody holds it")

        monkeypatch.setattr(app.limits, "give_back", busy)
        (outcome,) = await app.gateway.generate(
            msgspec.structs.replace(FOX, semaphore="two"), destination=Destination()
        )
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_a_fault_of_ours_in_one_run_cancels_no_other(
    open_app: Any, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app() as app:
        settle = app.bookkeeper.settle
        broken = iter([True])

        async def sometimes(prediction: Any, **more: Any) -> Any:
            if next(broken, False):
                raise RuntimeError("a fault of ours")
            return await settle(prediction, **more)

        monkeypatch.setattr(app.bookkeeper, "settle", sometimes)
        outcomes = await app.gateway.generate(
            msgspec.structs.replace(FOX, count=9), destination=Destination()
        )
    assert sorted(outcome.error is None for outcome in outcomes) == [False, True, True]
    assert not replicate_emulator.journal.entries(operation="predictions.cancel")


async def test_killed_after_the_picture_landed(
    open_app: Any, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    """The file is ours: the same command says so instead of refusing to replace it."""
    target = str(tmp_path / "fox.png")
    async with open_app() as app:
        (first,) = await app.gateway.generate(FOX, destination=Destination(output=target))
        row = msgspec.structs.replace(first.prediction, delivered_at=None, files=())
    import sqlite3  # noqa: PLC0415

    connection = sqlite3.connect(app.database.path)
    connection.execute("UPDATE predictions SET delivered_at = NULL, files = '[]'")
    connection.commit()
    connection.close()
    async with open_app() as app:
        (second,) = await app.gateway.generate(FOX, destination=Destination(output=target))
    assert second.error is None
    assert second.prediction.id == row.id
    assert [str(picture.path) for picture in second.pictures] == [target]
    assert replicate_emulator.purchases == 1


async def test_a_deployment_runs_from_end_to_end(open_app: Any, replicate_emulator: EmulatorThread) -> None:
    request = msgspec.structs.replace(FOX, model=ModelRef.parse("deployments/emulated/flux-deployment"))
    outcome = await again(open_app(), request)
    assert outcome.error is None
    assert outcome.prediction.cost is None
    assert replicate_emulator.purchases == 1


async def test_nothing_is_concluded_from_a_list_that_does_not_end(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    """More than a page of others came after ours, and the list's address leads to another host: it is found all the same."""
    replicate_emulator.set_mode(creates_per_minute=0, others_per_minute=0)
    replicate_emulator.add_fault("drop_after", operation=CREATE)
    replicate_emulator.add_fault("hidden_from_list", seconds=0)
    async with open_app(IMAGEN_REPLICATE__LOST_ANSWER_GRACE="20") as app:
        find = app.backends.get(None).find
        others = [GenerationRequest(prompt=f"other {number}") for number in range(130)]

        async def later(*args: Any, **more: Any) -> Any:
            app.backends.get(None).find = find  # type: ignore[method-assign]
            await asyncio.gather(*(app.gateway.generate(other) for other in others))
            return await find(*args, **more)

        app.backends.get(None).find = later  # type: ignore[method-assign]
        (outcome,) = await app.gateway.generate(FOX)
    assert outcome.error is None
    assert replicate_emulator.purchases == 131
