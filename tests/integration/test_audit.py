"""What only an hour brings: an orphan whose input the service has forgotten. Time here is that of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from durable import accepted, worked_off
from msgspec.structs import replace
from stories import FOX, stuck

from imagen.assembly import GATEWAY, App, build
from imagen.domain.audit import Audit
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import BackendError
from imagen.instrumentation.clock import SystemClock
from imagen.service.audit import Auditor
from imagen.service.deliver import Destination
from imagen.settings import load_settings
from waiting import until

pytestmark = pytest.mark.anyio
HOUR = timedelta(hours=1, minutes=5)
SCHNELL = ModelRef.parse("black-forest-labs/flux-schnell")


class Later(SystemClock):
    """The clock of a process that runs so much later."""

    def __init__(self, by: timedelta) -> None:
        super().__init__()
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by

    async def sleep(self, seconds: float) -> None:
        """Pauses between tries are short."""
        await super().sleep(min(seconds, 0.05))


def built(environ: Mapping[str, str], tmp_path: Path, *, later: timedelta = timedelta(0)) -> App:
    settings = load_settings(environ=environ, cwd=tmp_path)
    return build(settings, environ=environ, clock=Later(later))


async def audit(
    app: App, *, since: timedelta = timedelta(days=1), dry_run: bool = False, adopt_foreign: bool = False
) -> Audit:
    auditor = Auditor(
        gateway=app.gateway,
        store=app.store,
        ledger=app.ledger,
        bookkeeper=app.bookkeeper,
        owners=app.owners,
        clock=app.clock,
        batches=app.batches,
    )
    return await auditor.run(
        app.backends.get(None),
        since=app.clock.now() - since,
        dry_run=dry_run,
        adopt_foreign=adopt_foreign,
    )


async def leave_an_intent(app: App, emulator: EmulatorThread, *, sends: bool) -> str:
    """The id of a prediction whose process dies before it hears what its create has bought."""
    order = await app.gateway.prepare(
        GenerationRequest(prompt="a red fox", model=SCHNELL), backend=app.backends.get(None)
    )
    ((intent, _),) = order.intents
    intent = replace(intent, sent_at=app.clock.now())
    await app.store.add(intent)
    if sends:
        await order.backend.submit(intent, hold_seconds=0, secrets={})
    return intent.id


async def test_an_orphan_that_can_no_longer_be_recognised_is_lost_and_told_once(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with built(environ, tmp_path) as app:
        orphan = await leave_an_intent(app, replicate_emulator, sends=True)
    replicate_emulator.clock.advance(HOUR.total_seconds())

    async with built(environ, tmp_path, later=HOUR) as app:
        foreseen = await audit(app, dry_run=True)
        report = await audit(app)
        again = await audit(app)
        stored = await app.store.get(orphan)

    assert [(one.kind, one.id) for one in foreseen.findings] == [("lost", orphan)]
    assert [(one.kind, one.id, one.cost) for one in report.findings] == [("lost", orphan, None)]
    assert report.foreign.predictions == 1
    assert stored.status is Status.UNKNOWN
    assert again.findings == []


async def test_an_intent_that_the_list_would_show_and_does_not_was_never_bought(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with built(environ, tmp_path) as app:
        intent = await leave_an_intent(app, replicate_emulator, sends=False)

    async with built(environ, tmp_path, later=HOUR) as app:
        report = await audit(app)

    assert [(one.kind, one.id, one.cost) for one in report.findings] == [("never_bought", intent, Usd(0))]


async def test_an_intent_from_before_the_list_begins_is_looked_for_by_itself(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with built(environ, tmp_path) as app:
        intent = await leave_an_intent(app, replicate_emulator, sends=False)

    async with built(environ, tmp_path, later=HOUR) as app:
        report = await audit(app, since=timedelta(minutes=10))

    assert [(one.kind, one.id, one.cost) for one in report.findings] == [("never_bought", intent, Usd(0))]


async def test_many_pages_are_read_and_two_hundred_pictures_told_apart(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.set_mode(creates_per_minute=0, others_per_minute=0)
    async with built(environ, tmp_path) as app:
        backend = app.backends.get(None)
        intents = []
        for number in range(250):
            order = await app.gateway.prepare(
                GenerationRequest(prompt=f"fox {number}", model=SCHNELL), backend=backend
            )
            intents.append(order.intents[0][0])
        for intent in intents[:150]:
            await app.store.add(intent)
        sending = asyncio.Semaphore(20)

        async def send(number: int) -> None:
            async with sending:
                await backend.submit(intents[number], hold_seconds=0, secrets={})

        await asyncio.gather(*(send(number) for number in range(250)))

    async with built(environ, tmp_path) as app:
        report = await audit(app, dry_run=True)

    assert report.listed == 250
    assert sorted(one.id for one in report.findings) == sorted(intent.id for intent in intents[:150])
    assert {one.kind for one in report.findings} == {"adopted"}
    assert report.foreign.predictions == 100


@pytest.mark.parametrize("fault", ["garbage", "drop"])
async def test_a_list_that_cannot_be_read_ends_the_audit_before_anything_is_changed(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, fault: str
) -> None:
    async with built(environ, tmp_path) as app:
        intent = await leave_an_intent(app, replicate_emulator, sends=True)
        replicate_emulator.add_fault(fault, operation="predictions.list", times=None)

    async with built(environ, tmp_path, later=HOUR) as app:
        with pytest.raises(BackendError):
            await audit(app)
        assert (await app.store.get(intent)).status is Status.QUEUED


# --- beside others -----------------------------------------------------------------------------------------


@pytest.mark.replicate_emulator(run_seconds=0.3)
@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_ends_by_itself_while_the_list_is_read_is_not_told(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, dry_run: bool
) -> None:
    replicate_emulator.add_fault("delay", operation="predictions.list", seconds=1.5, times=1)
    async with built(environ, tmp_path) as live, built(environ, tmp_path) as other:
        making = asyncio.ensure_future(live.gateway.generate(FOX))
        await until(lambda: replicate_emulator.purchases == 1)
        auditing = asyncio.ensure_future(audit(other, dry_run=dry_run))
        (made,) = await making
        assert not auditing.done()
        report = await auditing
    assert made.error is None
    assert (report.listed, report.under_way, report.findings, report.errors) == (1, 0, [], [])


@pytest.mark.replicate_emulator(run_seconds=0.3)
async def test_what_was_delivered_while_the_list_is_read_is_not_delivered_once_more(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    out = tmp_path / "out"
    replicate_emulator.add_fault("delay", operation="predictions.list", seconds=2, times=1)
    async with built(environ, tmp_path) as other:
        async with built(environ, tmp_path) as live:
            making = asyncio.ensure_future(
                live.gateway.generate(FOX, destination=Destination(output=f"{out}/"))
            )
            await until(lambda: replicate_emulator.purchases == 1)
            auditing = asyncio.ensure_future(audit(other))
            (made,) = await making
        (picture,) = made.pictures
        picture.path.rename(tmp_path / "moved.png")
        assert not auditing.done()
        report = await auditing
    assert report.findings == []
    assert list(out.iterdir()) == []


async def test_of_two_audits_at_once_one_writes_down_what_others_made_and_neither_leaves_it(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    elsewhere = environ | {"IMAGEN_DATA_DIR": str(tmp_path / "elsewhere")}
    async with built(elsewhere, tmp_path) as stranger:
        for number in range(4):
            (made,) = await stranger.gateway.generate(replace(FOX, prompt=f"fox {number}"))
            assert made.error is None

    async with built(environ, tmp_path) as one, built(environ, tmp_path) as two:
        reports = await asyncio.gather(*(audit(app, adopt_foreign=True) for app in (one, two)))
        again = await audit(one, adopt_foreign=True)
        entries = await one.ledger.entries()

    findings = [finding for report in reports for finding in report.findings]
    assert {finding.kind for finding in findings} == {"foreign"}
    assert len({finding.id for finding in findings}) == len(findings) == len(entries) == 4
    assert [report.errors for report in reports] == [[], []]
    assert again.findings == []


@pytest.mark.parametrize("moment", ["before it left", "on its way"])
async def test_what_an_unfinished_batch_still_wants_is_left_to_it(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, moment: str
) -> None:
    async def nothing(*_: Any, **_more: Any) -> None:
        return None

    async with built(environ, tmp_path) as app:
        batch = await accepted(app, ["a fox"])
        there = stuck(app.backends.get(GATEWAY), moment)
        async with worked_off(app):
            await until(lambda: there)
            app.finisher.hands_over = True
            app.store.release = nothing  # type: ignore[method-assign]
            app.limits.give_back = nothing  # type: ignore[method-assign]

    async with built(environ, tmp_path, later=HOUR) as app:
        report = await audit(app)
        assert report.findings == []
        async with worked_off(app), asyncio.timeout(20):
            assert (await app.batches.ended(batch.id)).tally.succeeded == 1
    assert replicate_emulator.purchases == 1
