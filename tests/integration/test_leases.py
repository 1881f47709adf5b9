"""What a prediction holds: as long as its run lasts, no longer, and nothing at all for what was never bought."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN, running_gateway

from imagen.assembly import App, build
from imagen.domain.limits import Need, Patience
from imagen.emulator import EmulatorThread
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio
FLUX = "flux-schnell"
CREATE = "predictions.create"
LIST = "predictions.list"


def rows(tmp_path: Path, statement: str) -> list[tuple[Any, ...]]:
    """What the database has."""
    connection = sqlite3.connect(tmp_path / "data" / "imagen.db", timeout=5)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


# --- a run that begins later also ends later --------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=2.0)
async def test_a_create_that_is_sent_again_holds_its_place_for_as_long_anew(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop", operation=CREATE)
    async with running_gateway(
        tmp_path, replicate_emulator, IMAGEN_REPLICATE__LOST_ANSWER_GRACE="1"
    ) as gateway:
        asked = asyncio.ensure_future(gateway.generate(model_name=FLUX))
        await until(lambda: replicate_emulator.journal.entries(operation=CREATE))
        ((lease, first),) = rows(tmp_path, "SELECT lease, expires_at FROM leases")
        await until(lambda: replicate_emulator.purchases == 1)
        ((still, then),) = rows(tmp_path, "SELECT lease, expires_at FROM leases")
        assert still == lease
        assert then - first >= 0.9  # the grace that passed before it was sent again
        assert (await asked).status == 200
        assert rows(tmp_path, "SELECT count(*) FROM leases") == [(0,)]


async def test_a_place_that_has_run_out_is_held_again_when_it_is_renewed(tmp_path: Path) -> None:
    async with an_app(tmp_path, REPLICATE_CONCURRENT_LIMIT="1") as app:
        need = Need(lease="one", holder="kai", lasts_seconds=0.3, account="acc")
        async with app.admission.admit(need, patience=Patience(), notify=lambda _: None) as place:
            await asyncio.sleep(0.4)
            state = await app.limits.show("acc", now=app.admission.now())
            assert state.running == 0  # anybody could take it now
            await place.renew()
            await asyncio.sleep(0.1)
            state = await app.limits.show("acc", now=app.admission.now())
            assert state.running == 1
        state = await app.limits.show("acc", now=app.admission.now())
        assert state.running == 0


def an_app(tmp_path: Path, **environ: str) -> App:
    given = {"HOME": str(tmp_path), "IMAGEN_DATA_DIR": str(tmp_path / "data")} | environ
    return build(load_settings(environ=given, cwd=tmp_path), environ=given)


# --- what was never bought -------------------------------------------------------------------------------


async def test_a_caller_who_leaves_after_a_429_has_a_canceled_prediction_that_nobody_looks_for(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("rate_limit", operation=CREATE, retry_after=20)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        asking = asyncio.ensure_future(gateway.generate(model_name=FLUX))
        await until(lambda: replicate_emulator.journal.entries(operation=CREATE))
        await asyncio.sleep(0.5)  # so that it has heard of its refusal
        asking.cancel()
        await until(
            lambda: (
                rows(tmp_path, "SELECT status, upstream_id, charged FROM predictions")
                == [("canceled", None, 0)]
            )
        )
        assert rows(tmp_path, "SELECT count(*) FROM leases") == [(0,)]
        assert await gateway.app.store.unfinished() == []
        await asyncio.sleep(0.5)
        health = (await gateway.request("GET", "/health")).json()
        assert health["concurrency_status"]["waiting"] == 0
        assert await gateway.app.ledger.entries() == []
    assert len(replicate_emulator.journal.entries(operation=CREATE)) == 1
    assert replicate_emulator.journal.entries(operation=LIST) == ()
    assert replicate_emulator.purchases == 0


async def test_a_create_whose_answer_stays_lost_is_named_to_who_asked_for_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("drop_after", operation=CREATE)
    replicate_emulator.add_fault("status", status=403, operation=LIST, times=None)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answer = await gateway.generate(model_name=FLUX)
        (left,) = await gateway.app.store.unfinished()
    body = answer.json()
    assert (answer.status, body["cost_usd"]) == (502, None)
    assert body["prediction_id"] == left.id
    assert "do not ask for it again" in body["hint"]
    assert replicate_emulator.purchases == 1


async def test_a_made_up_token_leaves_nothing_behind(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation=CREATE, prompt="stranger", status=401, times=None)

    def wish(number: int) -> dict[str, Any]:
        return {
            "model_name": FLUX,
            "prompt": f"stranger {number}",
            "credentials": {"replicate_api_token": f"r8_made_up_{number}"},
        }

    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        answers = await asyncio.gather(
            *(gateway.request("POST", "/generate", json=wish(number)) for number in range(20))
        )
        assert [one.status for one in answers] == [401] * 20
        batch = wish(20) | {"tasks": [{"prompt": "stranger 21"}]}
        del batch["prompt"]
        answer = await gateway.request("POST", "/generate-batch", json=batch)
        assert answer.json().get("successful_count", 0) == 0
        for table in ("predictions", "leases", "imagen_usage"):
            assert rows(tmp_path, f"SELECT count(*) FROM {table}") == [(0,)], table  # noqa: S608
        # The server's own token is another matter: what became of such a wish is kept.
        refused = await gateway.generate(model_name=FLUX, prompt="no stranger", headers=ADMIN)
        assert (refused.status, refused.json()["code"]) == (502, "backend_unauthenticated")
        assert rows(tmp_path, "SELECT status, charged FROM predictions") == [("failed", 0)]
        assert rows(tmp_path, "SELECT count(*) FROM leases") == [(0,)]
