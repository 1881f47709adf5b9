"""Instants: what Replicate keeps for an hour is reckoned from the right one, and a clock that was wrong costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stories import FOX, Shifted

from imagen.assembly import App, build
from imagen.domain.prediction import Status
from imagen.domain.secret import Secret
from imagen.emulator import EmulatorThread
from imagen.errors import InvalidRequest
from imagen.service.deliver import Destination, to_stored
from imagen.settings import load_settings

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("ended", "fetched"), [(1, True), (59, True), (61, False)])
async def test_pictures_live_an_hour_from_the_end_of_a_run_however_long_it_took(
    open_app: Callable[..., App], *, ended: int, fetched: bool
) -> None:
    """A run of more than an hour on a caller's own token, of which a process died between its end and its pictures."""
    async with open_app() as app:
        backend = app.backends.of(Secret("r8_callers_own_token_0000000000000000000"))
        request = msgspec.structs.replace(FOX, model=app.catalog.resolve("flux-schnell"))
        (made,) = await app.gateway.carry_out(await app.gateway.prepare(request, backend=backend))
        now = app.clock.now()
        sent = now - timedelta(minutes=ended + 70)
        left = msgspec.structs.replace(
            made.prediction,
            id=made.prediction.id[:-3] + "abc",
            upstream_id="x" * 26,
            delivered_at=None,
            owner=None,
            destination=to_stored(Destination()),
            created_at=sent,
            sent_at=sent,
            ended_at=now - timedelta(minutes=ended),
        )
        await app.store.add(left)
    async with open_app() as app:
        outcome = await app.gateway.resume(left.id, leaves_running=True)
    assert bool(outcome.pictures) is fetched
    assert (outcome.prediction.error is None) is fetched


@pytest.mark.parametrize(
    ("sent", "status"), [(71, Status.PROCESSING), (179, Status.PROCESSING), (181, Status.UNKNOWN)]
)
async def test_a_run_that_nobody_can_look_at_is_given_up_an_hour_after_its_deadline(
    open_app: Callable[..., App], sent: int, status: Status
) -> None:
    """Before, its end may still be told with its pictures; it was allowed two hours."""
    async with open_app() as app:
        backend = app.backends.of(Secret("r8_callers_own_token_0000000000000000000"))
        request = msgspec.structs.replace(
            FOX, model=app.catalog.resolve("flux-schnell"), deadline_seconds=7200
        )
        (made,) = await app.gateway.carry_out(await app.gateway.prepare(request, backend=backend))
        at = app.clock.now() - timedelta(minutes=sent)
        left = msgspec.structs.replace(
            made.prediction,
            id=made.prediction.id[:-3] + "abc",
            upstream_id="x" * 26,
            status=Status.PROCESSING,
            **dict.fromkeys(("created_at", "sent_at"), at),
            **dict.fromkeys(("ended_at", "delivered_at", "settled_at", "owner", "cost", "charged")),
        )
        await app.store.add(left)
    async with open_app() as app:
        with suppress(InvalidRequest):
            await app.gateway.resume(left.id, leaves_running=True)
        assert (await app.store.get(left.id)).status is status


@pytest.mark.replicate_emulator(run_seconds=4.0)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (-20, 0), (0, 20)])
async def test_a_clock_that_was_wrong_or_goes_wrong_makes_no_young_run_overdue(
    environ: dict[str, str],
    tmp_path: Path,
    replicate_emulator: EmulatorThread,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: int,
    after: int,
) -> None:
    """What is paid for is stopped at the age that the service tells."""

    def app_at(by: timedelta) -> App:
        return build(load_settings(environ=environ, cwd=tmp_path), environ=environ, clock=Shifted(by))

    async def nothing(*_: Any, **__: Any) -> None:
        """As a process does that was killed."""

    replicate_emulator.add_fault("hold_returns_starting", times=9)
    async with app_at(timedelta(minutes=before)) as app:
        making = asyncio.ensure_future(app.gateway.generate(FOX))
        async with asyncio.timeout(10):
            while not (left := [one for one in await app.store.unfinished() if one.upstream_id]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        monkeypatch.setattr(app.finisher, "_cancel_quietly", nothing)
        monkeypatch.setattr(app.store, "release", nothing)
        making.cancel()
        await asyncio.wait({making})
    async with app_at(timedelta(minutes=after)) as app, asyncio.timeout(25):
        outcome = await app.gateway.resume(left[0].id, leaves_running=True)
    assert outcome.error is None
    assert outcome.prediction.status is Status.SUCCEEDED
    assert not replicate_emulator.journal.entries(operation="predictions.cancel")
