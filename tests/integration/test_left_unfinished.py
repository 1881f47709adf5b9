"""Predictions that a process left behind, in every state in which it can: found, finished or given up, bought once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stories import FOX, Shifted, again, die

from imagen.assembly import App, build
from imagen.domain.events import Adopted, AnswerLost, GivenUp, Resumed
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Prediction, Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread, Model
from imagen.errors import InvalidRequest, OutcomeUnknown, OutputDefective, PredictionFailed, WaitTimeout
from imagen.service.deliver import Destination
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio

CREATE = "predictions.create"


@pytest.fixture
def left(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> Callable[..., Awaitable[Prediction]]:
    """A prediction whose process died; `bought` tells whether its create had arrived."""

    async def leave(*, bought: bool = True, known: bool = False, run_seconds: float = 1.0) -> Prediction:
        if not bought:
            replicate_emulator.add_fault("delay", operation=CREATE, seconds=0.5)
            replicate_emulator.add_fault("drop", operation=CREATE)
        elif known:
            replicate_emulator.add_fault("hold_returns_starting")
            replicate_emulator.add_fault("slow", run_seconds=run_seconds)
        else:
            replicate_emulator.add_fault("slow", run_seconds=run_seconds)
        app = open_app()
        reached = {
            (False, False): lambda: (Path(app.settings.data_dir) / "imagen.db").exists() and _rows(app),
            (True, False): lambda: replicate_emulator.purchases,
            (True, True): lambda: replicate_emulator.journal.entries(operation="predictions.get"),
        }[bought, known]
        return await die(app, reached)

    return leave


def _rows(app: App) -> int:
    import sqlite3  # noqa: PLC0415

    connection = sqlite3.connect(app.database.path)
    try:
        return int(connection.execute("SELECT count(*) FROM predictions").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


async def test_the_same_request_takes_up_what_was_bought(
    left: Any, open_app: Any, replicate_emulator: EmulatorThread, record: Any
) -> None:
    old = await left()
    assert old.upstream_id is None
    outcome = await again(open_app(), record=record)
    assert outcome.error is None
    assert outcome.prediction.id == old.id
    assert outcome.prediction.seed == old.seed
    assert [len(record.of(kind)) for kind in (Resumed, AnswerLost, Adopted)] == [1, 1, 1]
    assert replicate_emulator.purchases == 1
    assert outcome.prediction.cost == Usd.parse("0.003")


async def test_a_different_request_is_a_new_one(
    left: Any, open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    await left(known=True)
    outcome = await again(open_app(), GenerationRequest(prompt="a hound"))
    assert outcome.error is None
    assert replicate_emulator.purchases == 2


async def test_new_buys_although_one_was_left(
    left: Any, open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    await left(known=True)
    await again(open_app(), GenerationRequest(prompt="a fox", resume=False))
    assert replicate_emulator.purchases == 2


async def test_what_never_arrived_is_bought_once_after_the_grace(
    left: Any, open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    old = await left(bought=False)
    outcome = await again(open_app())
    assert outcome.error is None
    assert outcome.prediction.id == old.id
    assert replicate_emulator.purchases == 1


async def test_adopting_what_never_arrived_buys_nothing_and_says_so(
    left: Any, open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    old = await left(bought=False)
    async with open_app() as app:
        outcome = await app.gateway.resume(old.id)
    assert isinstance(outcome.error, OutcomeUnknown)
    assert "never arrived" in str(outcome.error)
    assert outcome.prediction.status is Status.QUEUED
    assert outcome.prediction.charged is None
    assert replicate_emulator.purchases == 0


async def test_after_the_hour_a_lost_answer_is_unknown(
    left: Any, environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    old = await left()
    later = timedelta(hours=1, minutes=1)
    replicate_emulator.clock.advance(later.total_seconds())
    settings = load_settings(environ=environ, cwd=tmp_path)
    async with build(settings, environ=environ, clock=Shifted(later)) as app:
        outcome = await app.gateway.resume(old.id)
        assert isinstance(outcome.error, OutcomeUnknown)
        assert outcome.prediction.status is Status.UNKNOWN
        again_outcome = await app.gateway.resume(old.id)
        assert isinstance(again_outcome.error, OutcomeUnknown)
    assert replicate_emulator.purchases == 1


async def test_after_the_hour_the_same_request_says_what_is_lost_and_buys_anew(
    left: Any, environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, record: Any
) -> None:
    old = await left(known=True)
    later = timedelta(hours=1, minutes=1)
    replicate_emulator.clock.advance(later.total_seconds())
    settings = load_settings(environ=environ, cwd=tmp_path)
    app = build(settings, environ=environ, clock=Shifted(later))
    outcome = await again(app, record=record)
    assert outcome.error is None
    assert outcome.prediction.id != old.id
    (given_up,) = record.of(GivenUp)
    assert "one hour" in given_up.reason
    async with build(settings, environ=environ) as app:
        entries = {entry.id: entry for entry in await app.ledger.entries()}
    assert entries[old.id].cost == Usd.parse("0.003")
    assert replicate_emulator.purchases == 2


async def test_adopting_what_expired_says_that_it_was_charged(
    left: Any, environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    old = await left(known=True)
    replicate_emulator.clock.advance(3700)
    settings = load_settings(environ=environ, cwd=tmp_path)
    async with build(settings, environ=environ) as app:
        outcome = await app.gateway.resume(old.id)
        assert isinstance(outcome.error, OutputDefective)
        assert "charged" in str(outcome.error)
        assert [entry.outcome for entry in await app.ledger.entries()] == ["succeeded"]


@pytest.mark.parametrize("hours", [-30, -2, 2, 30])
async def test_a_clock_that_is_wrong_by_hours_still_finds_what_was_bought(
    hours: int, environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop_after", operation=CREATE)
    settings = load_settings(environ=environ, cwd=tmp_path)
    outcome = await again(build(settings, environ=environ, clock=Shifted(timedelta(hours=hours))))
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_equal_requests_without_a_seed_never_share_a_purchase(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    """A model without seed: what three lost answers bought looks the same. Each gets one of its own."""
    replicate_emulator.add_fault("drop_after", operation=CREATE, times=2)
    request = GenerationRequest(prompt="a fox", model=None, count=3)
    async with open_app(
        IMAGEN_BACKENDS__NANO__TYPE="replicate", IMAGEN_BACKENDS__NANO__MODEL="google/nano-banana"
    ) as app:
        outcomes = await app.gateway.generate(request, backend="nano", destination=Destination())
    assert [outcome.error for outcome in outcomes] == [None, None, None]
    assert len({outcome.prediction.upstream_id for outcome in outcomes}) == 3
    assert replicate_emulator.purchases == 3


async def test_nobody_takes_what_a_living_process_follows(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("hold_returns_starting")
    replicate_emulator.add_fault("slow", run_seconds=1.5)
    async with open_app() as first, open_app() as second:
        running = asyncio.ensure_future(first.gateway.generate(FOX, destination=Destination()))
        await until(lambda: replicate_emulator.journal.entries(operation="predictions.get"))
        (row,) = await second.store.unfinished()
        with pytest.raises(InvalidRequest, match="another process"):
            await second.gateway.resume(row.id)
        (outcome,) = await running
    assert outcome.error is None


async def test_another_account_may_not_adopt(left: Any, open_app: Any) -> None:
    old = await left(known=True)
    async with open_app(REPLICATE_API_TOKEN="r8_somebody_else") as app:
        with pytest.raises(InvalidRequest, match="another Replicate account"):
            await app.gateway.resume(old.id)


async def test_a_service_that_goes_away_while_it_runs_is_waited_for(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("hold_returns_starting")
    replicate_emulator.add_fault("slow", run_seconds=1.0)
    replicate_emulator.add_fault("rate_limit", operation="predictions.get", retry_after=1, times=5)
    outcome = await again(open_app())
    assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_practice_that_was_left_is_written_off(open_app: Any) -> None:
    async with open_app() as app:
        intent = await _intent_of_practice(app)
        outcome = await app.gateway.resume(intent.id)
        assert isinstance(outcome.error, PredictionFailed)
        assert "practice" in str(outcome.error)
        assert outcome.prediction.charged is False
        assert not await app.store.unfinished()


async def _intent_of_practice(app: App) -> Prediction:
    """What a killed practice run leaves: a row of an emulator that is gone."""
    (made,) = await app.gateway.generate(FOX, backend="emulator")
    left = msgspec.structs.replace(
        made.prediction, id="pred_left", upstream_id="gone", account="practice-of-another-process",
        status=Status.PROCESSING, delivered_at=None, owner=None,
    )  # fmt: skip
    await app.store.add(left)
    return left


async def test_a_key_inside_the_input_is_sent_but_never_written_down(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    names = ("prompt", "openai_api_key", "aspect_ratio", "output_format", "number_of_images")
    parameters: dict[str, Any] = {name: {} for name in names}
    replicate_emulator.add_model(Model(name="openai/gpt-image-1.5", description="", parameters=parameters))
    replicate_emulator.add_fault("drop_after", operation=CREATE)
    request = GenerationRequest(
        prompt="a fox",
        model=ModelRef.parse("openai/gpt-image-1.5"),
        options={"openai_api_key": "sk-canary-key"},
        output_format="webp",
    )
    async with open_app() as app:
        (outcome,) = await app.gateway.generate(request)
        assert outcome.error is None
        (row,) = await app.store.list(limit=5)
        assert row.input["openai_api_key"] == "[hidden]"
        folder = app.settings.data_dir
    (sent,) = replicate_emulator.journal.entries(operation=CREATE)
    assert sent.body["input"]["openai_api_key"] == "sk-canary-key"
    assert not any(b"sk-canary" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert replicate_emulator.purchases == 1


async def test_never_repeat_leaves_a_lost_answer_alone(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop", operation=CREATE)
    request = msgspec.structs.replace(FOX, repeat_lost=False)
    outcome = await again(open_app(), request)
    assert outcome.error is not None
    assert outcome.error.code == "exchange_failed"
    assert replicate_emulator.purchases == 0
    assert outcome.prediction.status is Status.QUEUED


async def test_canceling_by_id_settles_what_ran(
    left: Any, open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    old = await left(known=True, run_seconds=60.0)
    async with open_app() as app:
        canceled = await app.gateway.cancel(old.id)
        assert canceled.status is Status.CANCELED
        (entry,) = await app.ledger.entries()
        assert entry.outcome == "canceled"
        assert (await app.gateway.cancel(old.id)).status is Status.CANCELED
    assert replicate_emulator.purchases == 1


async def test_when_it_can_neither_end_nor_be_canceled_the_wait_ends(
    open_app: Any, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen.service.follow.DEADLINE_MARGIN_SECONDS", 0.2)
    replicate_emulator.add_fault("slow", run_seconds=60)
    replicate_emulator.add_fault("status", operation="predictions.cancel", status=500, times=None)
    request = msgspec.structs.replace(FOX, deadline_seconds=1.0)
    async with open_app() as app:
        (outcome,) = await app.gateway.generate(request, destination=Destination())
    assert isinstance(outcome.error, WaitTimeout)
    assert "did not complete within 1 s" in str(outcome.error)
