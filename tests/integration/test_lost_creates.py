"""A create whose answer is lost is looked for among what others bought, and that search comes to an end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from durable import ADMIN, worked_off
from stories import Shifted

from imagen.assembly import GATEWAY, App, build
from imagen.domain.limits import Lane
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.service.accept import Entry, NewBatch
from imagen.service.recover import Recovery
from imagen.settings import load_settings
from imagen.store.predictions import SqlPredictionStore
from waiting import until

pytestmark = pytest.mark.anyio


def a_fox(app: App) -> GenerationRequest:
    model = app.catalog.resolve("flux-schnell")
    return GenerationRequest(prompt="a fox", seed=7, model=model, resume=False, plain=True, repeat_lost=True)


@pytest.mark.parametrize("unknown", [False, True])
async def test_an_equal_one_that_was_accepted_long_ago_is_passed_over(
    environ: dict[str, str],
    tmp_path: Path,
    replicate_emulator: EmulatorThread,
    monkeypatch: pytest.MonkeyPatch,
    *,
    unknown: bool,
) -> None:
    """Also where nobody knows that it is another's before it is to be written down."""
    environ["IMAGEN_REPLICATE__LOST_ANSWER_GRACE"] = "2"

    def app_at(by: timedelta) -> App:
        return build(load_settings(environ=environ, cwd=tmp_path), environ=environ, clock=Shifted(by))

    async with app_at(-timedelta(hours=26)) as app:
        backend = app.backends.get(GATEWAY)
        order = await app.gateway.prepare(a_fox(app), backend=backend, caller=ADMIN, lane=Lane.BATCH)
        batch = await app.acceptance.accept(
            NewBatch(backend=backend, caller=ADMIN, scope="admin"), [Entry(order)]
        )
    async with app_at(timedelta(0)) as app:
        async with worked_off(app), asyncio.timeout(20):
            await app.batches.ended(batch.id)
        if unknown:

            async def none(*_: Any, **__: Any) -> frozenset[str]:
                return frozenset()

            monkeypatch.setattr(SqlPredictionStore, "known_upstream_ids", none)
        replicate_emulator.add_fault("drop", operation="predictions.create", times=1)
        async with asyncio.timeout(15):
            (outcome,) = await app.gateway.generate(a_fox(app))
    assert outcome.error is None
    assert replicate_emulator.purchases == 2
    # The pauses between two looks grow: a search of two seconds is a few of them.
    assert len(replicate_emulator.journal.entries(operation="predictions.list")) < 20


async def test_what_an_open_batch_still_wants_is_not_given_up_by_whoever_takes_up_what_is_left(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    """Long after a create was lost: the batch finds out that it never arrived, and buys it."""
    async with build(load_settings(environ=environ, cwd=tmp_path), environ=environ) as app:
        backend = app.backends.get(GATEWAY)
        order = await app.gateway.prepare(a_fox(app), backend=backend, caller=ADMIN, lane=Lane.BATCH)
        batch = await app.acceptance.accept(
            NewBatch(backend=backend, caller=ADMIN, scope="admin"), [Entry(order)]
        )
        wanted = order.intents[0][0]
        long_ago = app.clock.now() - timedelta(hours=2)
        left = msgspec.structs.replace(wanted, sent_at=long_ago, created_at=long_ago, owner=None)
        await app.store.add(left)
        await app.store.add(msgspec.structs.replace(left, id=wanted.id[:-3] + "abc"))
        recovery = Recovery(
            gateway=app.gateway,
            store=app.store,
            limits=app.limits,
            owners=app.owners,
            clock=app.clock,
            backend=GATEWAY,
            batches=app.batches,
        )
        taking_up = asyncio.ensure_future(recovery.run())
        try:
            await until(lambda: recovery._following)
            async with asyncio.timeout(10):
                await asyncio.gather(*recovery._following.values())
        finally:
            taking_up.cancel()
            await asyncio.wait({taking_up})
        assert (await app.store.get(wanted.id[:-3] + "abc")).status is Status.UNKNOWN, "nobody wants this one"
        assert (await app.store.get(wanted.id)).status is Status.QUEUED
        async with worked_off(app), asyncio.timeout(20):
            await app.batches.ended(batch.id)
        assert (await app.store.get(wanted.id)).status is Status.SUCCEEDED
    assert replicate_emulator.purchases == 1
