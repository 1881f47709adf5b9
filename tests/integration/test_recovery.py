"""What a process that ended has left: the next one finishes it, whatever stands beside it, and gives back its place."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway import ADMIN_KEY, RunningGateway, running_gateway
from test_gateway_limits import predictions_of

from imagen.assembly import GATEWAY, App, build
from imagen.domain.model_ref import ModelRef
from imagen.domain.prediction import Prediction
from imagen.domain.request import GenerationRequest
from imagen.domain.secret import Secret
from imagen.emulator import EmulatorThread
from imagen.errors import StoreError
from imagen.service import finish, recover
from imagen.service.deliver import Destination
from imagen.settings import load_settings

pytestmark = pytest.mark.anyio
MODEL = ModelRef.parse("black-forest-labs/flux-schnell")
FLUX = "flux-schnell"
OWN_TOKEN = "r8_a_caller_s_own"
GRACE = {"IMAGEN_REPLICATE__LOST_ANSWER_GRACE": "1"}


async def until(
    holds: Callable[[], object] | Callable[[], Awaitable[object]], *, within: float = 5.0
) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(within):
        while True:
            found = holds()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.05)


def rows(tmp_path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """What the database of the gateway has; a change is written."""
    connection = sqlite3.connect(tmp_path / "data" / "imagen.db", timeout=5)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def places(tmp_path: Path) -> int:
    return int(rows(tmp_path, "SELECT count(*) FROM leases")[0][0])


def age(tmp_path: Path, by: timedelta) -> None:
    """Let everything have been sent, and what has ended have ended, so much earlier."""
    at = (datetime.now(UTC) - by).replace(tzinfo=None).isoformat(" ", "microseconds")
    rows(tmp_path, "UPDATE predictions SET sent_at = ?, created_at = ?", at, at)
    rows(tmp_path, "UPDATE predictions SET ended_at = ? WHERE ended_at IS NOT NULL", at)


async def _nothing(*_args: Any, **_more: Any) -> None:
    return None


async def kill(
    tmp_path: Path,
    emulator: EmulatorThread,
    prompts: Sequence[str],
    *,
    when: Callable[[App], object],
    token: str | None = None,
) -> dict[str, str]:
    """A gateway's process that is killed when `when` holds: nothing is cleaned up but its lock. Ids by prompt."""
    environ = {
        "HOME": str(tmp_path),
        "IMAGEN_DATA_DIR": str(tmp_path / "data"),
        "CONCURRENT_DOCKER_ADMIN_API_KEY": ADMIN_KEY,
        "REPLICATE_API_TOKEN": "r8_the_servers_own_token",
        "IMAGEN_REPLICATE__API_BASE": emulator.url,
    }
    app = build(load_settings(environ=environ, cwd=tmp_path), environ=environ)
    backend = app.backends.get(GATEWAY) if token is None else app.backends.of(Secret(token))
    tasks, ids = [], {}
    try:
        for prompt in prompts:
            order = await app.gateway.prepare(
                GenerationRequest(prompt=prompt, model=MODEL),
                backend=backend,
                destination=Destination(shelf=True),
            )
            ids[prompt] = order.intents[0][0].id
            tasks.append(asyncio.ensure_future(app.gateway.carry_out(order)))
            await asyncio.sleep(0.02)
        await until(lambda: when(app))
        assert not any(task.done() for task in tasks), tasks
    finally:
        app.finisher._cancel_quietly = _nothing  # type: ignore[method-assign]
        app.store.release = _nothing  # type: ignore[method-assign]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await app.__aexit__(None, None, None)
    return ids


def bought(emulator: EmulatorThread, count: int) -> Callable[[App], object]:
    return lambda _: emulator.purchases == count


async def finished(gateway: RunningGateway, prediction_id: str, *, within: float = 5.0) -> Prediction:
    """A prediction, when everything that can be done for it is done."""

    async def is_finished() -> bool:
        return (await gateway.app.store.get(prediction_id)).finished

    await until(is_finished, within=within)
    return await gateway.app.store.get(prediction_id)


def are_there(prediction: Prediction) -> bool:
    return bool(prediction.files) and all(Path(file).stat().st_size > 0 for file in prediction.files)


# --- what was bought -------------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=3.5)
async def test_a_process_that_drains_leaves_what_it_has_taken_up_running_and_the_next_one_finishes_it(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    ids = await kill(tmp_path, replicate_emulator, ["a fox"], when=bought(replicate_emulator, 1))
    async with running_gateway(tmp_path, replicate_emulator) as gateway:

        async def is_followed() -> bool:
            one = await gateway.app.store.get(ids["a fox"])
            return one.owner == gateway.app.owners.me and one.upstream_id is not None

        await until(is_followed)
    assert [one["status"] for one in predictions_of(replicate_emulator)] == ["processing"]
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        found = await finished(gateway, ids["a fox"], within=8.0)
    assert (found.status, found.charged, found.error) == ("succeeded", True, None)
    assert are_there(found)
    assert replicate_emulator.purchases == 1
    assert places(tmp_path) == 0


@pytest.mark.replicate_emulator(run_seconds=0.7)
async def test_one_bad_row_does_not_end_the_taking_up_of_the_others(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "EVERY_SECONDS", 0.3)
    ids = await kill(
        tmp_path, replicate_emulator, ["a bad row", "a good one"], when=bought(replicate_emulator, 2)
    )
    rows(
        tmp_path,
        """UPDATE predictions SET destination = '{"first": "one"}' WHERE id = ?""",
        ids["a bad row"],
    )
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert are_there(await finished(gateway, ids["a good one"]))
        # It lives on: what is left behind later is found as well.
        later = await kill(tmp_path, replicate_emulator, ["a late one"], when=bought(replicate_emulator, 3))
        assert are_there(await finished(gateway, later["a late one"]))
        bad = await gateway.app.store.get(ids["a bad row"])
        assert not bad.files
        await until(lambda: places(tmp_path) == 0)


async def test_a_slow_one_keeps_no_quick_one_waiting(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    slow = [f"slow {number}" for number in range(9)]
    replicate_emulator.add_fault("slow", prompt="slow", run_seconds=60.0, times=9)
    replicate_emulator.add_fault("slow", prompt="quick", run_seconds=1.5)
    ids = await kill(
        tmp_path, replicate_emulator, [*slow, "quick"], when=bought(replicate_emulator, len(slow) + 1)
    )
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        assert are_there(await finished(gateway, ids["quick"]))
        assert replicate_emulator.state()["running"] == len(slow)
        assert places(tmp_path) == len(slow)


# --- a caller's own token, which is kept nowhere ----------------------------------------------------------


async def test_pictures_of_a_caller_s_own_account_are_fetched_without_its_token(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    ids = await killed_before_delivery(tmp_path, replicate_emulator)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        found = await finished(gateway, ids["own"])
        entries = await gateway.app.ledger.entries()
    assert (found.status, found.error) == ("succeeded", None)
    assert are_there(found)
    assert [entry.id for entry in entries] == [found.id]
    assert predictions_of(replicate_emulator) == []  # nothing on the server's account
    assert places(tmp_path) == 0


async def test_pictures_of_a_caller_s_own_account_are_written_off_after_the_hour(
    tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    ids = await killed_before_delivery(tmp_path, replicate_emulator)
    age(tmp_path, timedelta(hours=2))
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        found = await finished(gateway, ids["own"])
        assert await gateway.app.store.unfinished() == []
    assert found.status == "succeeded"
    assert "was not fetched in time" in (found.error or "")
    assert not any(found.files)


@pytest.mark.replicate_emulator(run_seconds=60.0)
async def test_a_run_of_a_caller_s_own_account_is_given_up_after_the_hour_and_not_before(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "EVERY_SECONDS", 0.2)
    bought_one = bought(replicate_emulator, 1)
    ids = await kill(tmp_path, replicate_emulator, ["own"], when=bought_one, token=OWN_TOKEN)
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        await asyncio.sleep(0.8)
        left = await gateway.app.store.get(ids["own"])
        assert not left.finished
        assert left.owner is None or not gateway.app.owners.alive(left.owner)
        assert places(tmp_path) == 1  # it runs, as far as anybody knows
    age(tmp_path, timedelta(hours=2))
    async with running_gateway(tmp_path, replicate_emulator) as gateway:
        found = await finished(gateway, ids["own"])
    assert (found.status, found.charged) == ("unknown", None)
    assert places(tmp_path) == 0


async def killed_before_delivery(tmp_path: Path, emulator: EmulatorThread) -> dict[str, str]:
    delay = emulator.add_fault("delay", operation="delivery", seconds=600)
    ids = await kill(tmp_path, emulator, ["own"], when=lambda _: delay.struck, token=OWN_TOKEN)
    assert rows(tmp_path, "SELECT status, delivered_at FROM predictions") == [("succeeded", None)]
    return ids


# --- places ----------------------------------------------------------------------------------------------


async def test_a_create_that_never_arrived_gives_its_place_back_after_the_grace(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "EVERY_SECONDS", 0.3)
    monkeypatch.setattr(finish, "_CANCEL_SEARCH_SECONDS", 0.3)
    delay = replicate_emulator.add_fault("delay", operation="predictions.create", seconds=600, times=3)
    async with running_gateway(
        tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="3", **GRACE
    ) as gateway:
        asked = [
            asyncio.ensure_future(gateway.generate(prompt=f"gone {number}", model_name=FLUX))
            for number in range(3)
        ]
        await until(lambda: delay.struck == 3)
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)
        assert places(tmp_path) == 3
        await until(lambda: places(tmp_path) == 0, within=10)
        answer = await gateway.generate(prompt="the next caller", model_name=FLUX)
        assert answer.status == 200
    assert replicate_emulator.purchases == 1


@pytest.mark.replicate_emulator(run_seconds=1.0)
async def test_ends_that_the_database_would_not_take_are_written_down_when_it_does_again(
    tmp_path: Path, replicate_emulator: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "EVERY_SECONDS", 0.3)

    async def full(_: object) -> None:
        raise StoreError("the disk is full")

    async with running_gateway(
        tmp_path, replicate_emulator, REPLICATE_CONCURRENT_LIMIT="3", IMAGEN_LIMITS__WAIT="5"
    ) as gateway:
        wishes: list[dict[str, Any]] = [
            {"prompt": f"fox {number}", "model_name": FLUX, "store": number == 0} for number in range(3)
        ]
        asked = [asyncio.ensure_future(gateway.generate(**wish)) for wish in wishes]
        await until(lambda: replicate_emulator.purchases == 3)
        with monkeypatch.context() as patch:
            patch.setattr(gateway.app.database, "write", full)
            assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200, 200]
            assert places(tmp_path) == 3
        await until(lambda: places(tmp_path) == 0)
        answer = await gateway.generate(prompt="the next caller", model_name=FLUX)
        assert answer.status == 200
        assert await gateway.app.store.unsettled() == []
        assert await gateway.app.store.unfinished() == []
        found = await gateway.app.store.list(limit=10)
        entries = await gateway.app.ledger.entries()
    assert [(one.status, one.charged) for one in found] == [("succeeded", True)] * 4
    assert sorted(entry.id for entry in entries) == sorted(one.id for one in found)
    assert [one.prompt for one in found if one.files] == ["fox 0"]
