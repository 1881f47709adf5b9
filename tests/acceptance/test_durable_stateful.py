"""Whatever happens to a gateway, in whatever order: each item ends once, what ran was bought once, all of it is accounted for.

A gateway runs as a process of its own in front of the emulator. Batches are accepted, canceled, paused; the process is killed
and started again; answers to creates are dropped; webhooks come twice, late or never; the hour in which Replicate keeps
things passes. In the end everything is counted.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
import urllib.error
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from killing import LOST_ANSWER_GRACE_SECONDS, Gateway

from imagen.emulator import EmulatorThread

RUN_SECONDS = 0.3
_ON_ITS_WAY_SECONDS = 0.2
"""What a process sent before it was killed has arrived by then."""
HOUR = timedelta(seconds=3_700)
_SHIFTED = {
    "predictions": ("created_at", "sent_at", "started_at", "ended_at"),
    "batches": ("created_at",),
}
PROMPTS = st.lists(
    st.sampled_from(
        [
            "",
            "",
            "",
            " [fault:fail preset=nsfw]",
            " [fault:fail preset=interrupted times=1]",
            " [fault:drop_after]",
        ]
    ),
    min_size=1,
    max_size=5,
)


class DurableWork(RuleBasedStateMachine):
    """A gateway, its callers, and everything that befalls them."""

    @initialize(held=st.sampled_from([0, 500]))
    def begin(self, held: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.emulator = EmulatorThread(run_seconds=RUN_SECONDS)
        self.emulator.start()
        self.emulator.set_mode(creates_per_minute=0, others_per_minute=0)
        self.gateway = Gateway(
            self.folder,
            self.emulator.url,
            IMAGEN_PUBLIC_URL="https://gateway.example",
            IMAGEN_REPLICATE__HELD_OPEN=str(held),
        )
        self.runs = False
        self.batches: list[str] = []
        self.accepted = 0
        self.restart()

    @precondition(lambda self: not self.runs)
    @rule()
    def restart(self) -> None:
        self.gateway.start()
        self.emulator.set_mode(webhooks_via=self.gateway.url)
        self.runs = True

    @precondition(lambda self: self.runs)
    @rule(faults=PROMPTS)
    def create(self, faults: list[str]) -> None:
        number = len(self.batches)
        prompts = [f"batch {number} item {index}{fault}" for index, fault in enumerate(faults)]
        self.batches.append(self.gateway.accept_prompts(prompts))
        self.accepted += len(prompts)

    @precondition(lambda self: self.runs)
    @rule(after=st.floats(0, 0.8))
    def kill(self, after: float) -> None:
        time.sleep(after)
        self.gateway.kill()
        self.runs = False

    @rule(times=st.integers(1, 2))
    def drop_answers(self, times: int) -> None:
        self.emulator.add_fault("drop_after", operation="predictions.create", times=times)

    @rule(kind=st.sampled_from(["webhook_duplicate", "webhook_drop", "webhook_delay", "webhook_forge"]))
    def spoil_webhooks(self, kind: str) -> None:
        self.emulator.add_fault(kind, times=3)

    @precondition(lambda self: self.runs and self.batches)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "pause", "resume"]))
    def steer(self, data: st.DataObject, how: str) -> None:
        chosen = data.draw(st.sampled_from(self.batches))
        with contextlib.suppress(urllib.error.HTTPError):  # what has ended is not steered
            self.gateway.ask("POST", f"/batches/{chosen}/{how}")

    @precondition(lambda self: self.runs and self.batches)
    @rule(killed_after=st.floats(0, 0.3))
    def pause_all_and_kill(self, killed_after: float) -> None:
        """Of what is paused nothing is bought: not by this process, and not by the next, whatever this one left behind."""
        for batch_id in self.batches:
            with contextlib.suppress(urllib.error.HTTPError):
                self.gateway.ask("POST", f"/batches/{batch_id}/pause")
        self.kill(killed_after)
        time.sleep(_ON_ITS_WAY_SECONDS)
        bought = self.emulator.purchases
        self.restart()
        time.sleep(LOST_ANSWER_GRACE_SECONDS + 0.5)
        assert self.emulator.purchases == bought

    @precondition(lambda self: not self.runs and self.batches)
    @rule()
    def expire(self) -> None:
        """While nobody serves, the hour passes for everybody."""
        self.emulator.clock.advance(HOUR.total_seconds())
        self._shift()

    def teardown(self) -> None:
        if not hasattr(self, "gateway"):
            return
        try:
            if self.batches:
                self._settle()
                self._count()
        finally:
            self.gateway.kill()
            self.emulator.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _settle(self) -> None:
        self.emulator.clear_faults()
        if not self.runs:
            self.restart()
        for batch_id in self.batches:
            with contextlib.suppress(urllib.error.HTTPError):
                self.gateway.ask("POST", f"/batches/{batch_id}/resume")
        ends = time.monotonic() + 60
        while not all(map(self.gateway.has_ended, self.batches)) or self.emulator.state()["running"]:
            assert time.monotonic() < ends, [
                self.gateway.ask("GET", f"/batches/{one}") for one in self.batches
            ]
            time.sleep(0.1)

    def _count(self) -> None:
        rows = self.gateway.rows
        ended = rows(
            "SELECT count(*) FROM items WHERE ended_at IS NOT NULL AND status NOT IN ('queued', 'running')"
        )
        assert ended == [(self.accepted,)]
        for batch_id in self.batches:
            (sequence,) = rows("SELECT sequence FROM batches WHERE id = ?", batch_id)[0]
            numbers = rows("SELECT sequence FROM items WHERE batch_id = ? ORDER BY sequence", batch_id)
            assert numbers == [(number,) for number in range(1, sequence + 1)]
        heard = rows("SELECT count(DISTINCT upstream_id) FROM predictions WHERE upstream_id IS NOT NULL")[0][
            0
        ]
        unknown = rows("SELECT count(*) FROM predictions WHERE status IN ('unknown', 'queued')")[0][0]
        # What was bought is known by its id; but for answers that were lost and could no longer be looked up.
        assert heard <= self.emulator.purchases <= heard + unknown
        assert self._bought_twice() == []
        paid = rows("SELECT count(*), sum(cost) FROM imagen_usage WHERE upstream_id IS NOT NULL")[0]
        assert paid[0] == heard
        told = rows("SELECT sum(cost) FROM items WHERE cost IS NOT NULL")[0][0] if self.accepted else None
        if unknown == 0:
            assert (told or 0) == (paid[1] or 0)
            assert rows("SELECT count(*) FROM leases") == [(0,)]

    def _bought_twice(self) -> list[tuple[object, ...]]:
        """Items with more than one purchase that was charged."""
        return self.gateway.rows(
            'SELECT i.batch_id, i."index" FROM item_predictions i JOIN predictions p ON p.id = i.prediction_id'
            ' WHERE p.charged GROUP BY i.batch_id, i."index" HAVING count(*) > 1'
        )

    def _shift(self) -> None:
        """Let everything that is written down have happened an hour earlier."""
        connection = sqlite3.connect(self.gateway.data / "imagen.db")
        with connection:
            for table, columns in _SHIFTED.items():
                for column in columns:
                    shifted = (
                        f"strftime('%Y-%m-%d %H:%M:%f000', {column}, '-{HOUR.total_seconds():.0f} seconds')"
                    )
                    connection.execute(f"UPDATE {table} SET {column} = {shifted} WHERE {column} IS NOT NULL")  # noqa: S608
        connection.close()


TestDurableWork = pytest.mark.timeout(600)(DurableWork.TestCase)
TestDurableWork.settings = settings(
    max_examples=6,
    stateful_step_count=12,
    phases=[Phase.explicit, Phase.generate],  # an example takes seconds: what fails is told as it was found
    suppress_health_check=list(HealthCheck),
)
