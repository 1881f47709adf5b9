"""`Client` and `AsyncClient`, as an application uses them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PillowImage

from imagen import AsyncClient, Client, Usd
from imagen.domain.events import Ended, Event, LetIn, Submitted
from imagen.emulator import EmulatorThread
from imagen.errors import BudgetExceeded, DeliveryError, InvalidInput, PredictionFailed

CREATE = "predictions.create"


@pytest.fixture
def client(environ: dict[str, str]) -> Any:
    with Client(environ=environ) as one:
        yield one


def test_a_picture_its_cost_and_its_seed(
    client: Client, tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    prediction = client.generate("a red fox in the snow", aspect_ratio="16:9", go_fast=False)
    saved = prediction.images[0].save(tmp_path / "fox.png")
    with PillowImage.open(saved) as image:
        assert image.size == (prediction.images[0].facts.width, prediction.images[0].facts.height)
    assert prediction.cost == Usd.parse("0.003")
    (sent,) = replicate_emulator.journal.entries(operation=CREATE)
    assert sent.body["input"]["seed"] == prediction.seed
    assert sent.body["input"]["go_fast"] is False
    assert str(prediction.status) == "succeeded"
    assert prediction.id.startswith("pred_")


def test_several_runs_come_back_as_one(client: Client) -> None:
    prediction = client.generate("a fox", count=5)
    assert len(prediction.images) == 5
    assert len(prediction.records) == 2
    assert prediction.cost == Usd.parse("0.015")
    assert len({image.path for image in prediction.images}) == 5


def test_one_run_that_fails_does_not_lose_the_others(
    client: Client, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("fail", preset="nsfw")
    prediction = client.generate("a fox", count=5)
    assert 0 < len(prediction.images) < 5
    assert [type(error) for error in prediction.errors] == [PredictionFailed]


def test_errors_are_raised_with_their_fields(client: Client, replicate_emulator: EmulatorThread) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.generate("a fox", steps=9)
    assert [problem.field for problem in caught.value.problems] == ["num_inference_steps"]
    with pytest.raises(BudgetExceeded):
        client.generate("a fox", max_cost=Usd.parse("0.001"))
    assert replicate_emulator.purchases == 0


def test_left_upstream(client: Client) -> None:
    image = client.generate("a fox", download=False).images[0]
    assert image.path is None
    assert image.url is not None
    with pytest.raises(DeliveryError, match="download=True"):
        image.read_bytes()


def test_saving_never_replaces_when_told_so(client: Client, tmp_path: Path) -> None:
    image = client.generate("a fox").images[0]
    image.save(tmp_path / "fox.png")
    with pytest.raises(FileExistsError):
        image.save(tmp_path / "fox.png", force=False)


def test_events_and_an_observer_that_raises(client: Client) -> None:
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("an observer's own fault")

    client.generate("a fox", on_event=listen)
    assert isinstance(seen[0], LetIn)
    assert isinstance(seen[1], Submitted)
    assert isinstance(seen[-1], Ended)


def test_threads_share_a_client(client: Client, replicate_emulator: EmulatorThread) -> None:
    threads = [threading.Thread(target=client.generate, args=(f"fox {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replicate_emulator.purchases == 8


def test_resume_and_cancel_by_id(client: Client, replicate_emulator: EmulatorThread) -> None:
    prediction = client.generate("a fox")
    assert client.cancel(prediction.id).status == "succeeded"
    replicate_emulator.add_fault("drop", operation="delivery", times=None)
    with pytest.raises(DeliveryError) as caught:
        client.generate("a hound")
    assert caught.value.prediction_id is not None
    replicate_emulator.clear_faults()
    assert len(client.resume(caught.value.prediction_id).images) == 1
    assert replicate_emulator.purchases == 2


@pytest.mark.anyio
async def test_the_async_client_is_the_same(environ: dict[str, str]) -> None:
    async with AsyncClient(environ=environ) as client:
        prediction = await client.generate("a fox", seed=7)
    assert prediction.seed == 7
    assert prediction.images[0].read_bytes().startswith(b"\x89PNG")


def test_a_program_that_never_closes_its_client_ends_cleanly(environ: dict[str, str]) -> None:
    program = "from imagen import Client\nprint(Client().generate('a fox').images[0].path)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Path(done.stdout.strip()).is_file()


def test_interrupting_a_sync_call_cancels_upstream(
    environ: dict[str, str], replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("slow", run_seconds=30)
    program = (
        "import os, signal, threading\nfrom imagen import Client\n"
        "client = Client()\n"
        "threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    client.generate('a fox')\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.stdout == "interrupted\n", done.stderr
    assert [entry.status for entry in replicate_emulator.journal.entries(operation="predictions.cancel")] == [
        200
    ]
