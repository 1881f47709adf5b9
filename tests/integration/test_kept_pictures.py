"""Predictions whose pictures go on the shelf: kept whole, once, and found again, whatever dies on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stories import FOX

from imagen.assembly import App
from imagen.domain.events import Saved
from imagen.domain.prediction import Prediction
from imagen.domain.request import GenerationRequest
from imagen.emulator import EmulatorThread
from imagen.errors import ConfigError, DeliveryError, OutputDefective
from imagen.pictures import inspect_picture, read_note
from imagen.service.deliver import Destination

pytestmark = pytest.mark.anyio

SHELF = Destination(shelf=True)
FOUR = GenerationRequest(prompt="a fox", count=4)
OUTPUTS = "delivery"


def shelved(app: App) -> list[Path]:
    return sorted(path for path in app.shelf.folder.rglob("*") if path.is_file())


async def dies(app: App, when: Callable[[], bool], request: GenerationRequest = FOX) -> Prediction:
    """Ask for kept pictures, and vanish like a killed process when `when` holds."""
    task = asyncio.ensure_future(app.gateway.generate(request, destination=SHELF))
    while not when():
        assert not task.done(), task
        await asyncio.sleep(0.005)
    (left,) = await app.store.unfinished()
    app.finisher._cancel_quietly = _nothing  # type: ignore[method-assign,assignment]
    app.store.release = _nothing  # type: ignore[method-assign,assignment]
    task.cancel()
    await asyncio.wait([task])
    await app.__aexit__(None, None, None)
    return left


async def _nothing(*_args: Any, **_more: Any) -> None:
    return None


async def _for_ever(*_args: Any, **_more: Any) -> None:
    await asyncio.Event().wait()


# --- all is well -----------------------------------------------------------------------------------------


async def test_pictures_are_on_the_shelf_and_nowhere_else(open_app: Any, record: Any) -> None:
    async with open_app() as app:
        (outcome,) = await app.gateway.generate(FOUR, destination=SHELF)
        assert outcome.error is None
        ids = [picture.shelf_id for picture in outcome.pictures]
        assert len(set(ids)) == 4
        located = [await app.shelf.locate(one) for one in ids]
        assert [str(one.path) for one in located] == list(outcome.prediction.files)
        assert shelved(app) == sorted(one.path for one in located)
        assert all(inspect_picture(one.path).media_type == one.media_type for one in located)
        assert not (app.settings.data_dir / "pictures").exists()
        assert not list((app.settings.data_dir / "incoming").iterdir())
        again = await app.store.get(outcome.prediction.id)
        assert again.delivered_at is not None
        assert [saved.renamed for saved in record.of(Saved)] == [False] * 4
        assert again.id not in "".join(ids)


@pytest.mark.parametrize("metadata", [True, False])
async def test_the_prompt_is_written_into_them_only_when_wished(open_app: Any, metadata: bool) -> None:
    async with open_app() as app:
        (outcome,) = await app.gateway.generate(FOX, destination=Destination(shelf=True, metadata=metadata))
        (path,) = shelved(app)
    assert (read_note(path.read_bytes()) is not None) is metadata
    assert outcome.pictures[0].path == path


async def test_they_lie_where_the_settings_say(open_app: Any, tmp_path: Path) -> None:
    async with open_app(IMAGEN_PICTURES__FOLDER=str(tmp_path / "elsewhere")) as app:
        (outcome,) = await app.gateway.generate(FOX, destination=SHELF)
    assert outcome.pictures[0].path.is_relative_to(tmp_path / "elsewhere")


async def test_a_named_output_wins_over_the_shelf(open_app: Any, tmp_path: Path) -> None:
    async with open_app() as app:
        (kept,) = await app.gateway.generate(FOX, destination=SHELF)
        place = Destination(shelf=True, output=str(tmp_path / "fox.png"))
        outcome = await app.gateway.resume(kept.prediction.id, destination=place)
        assert outcome.pictures[0].path == tmp_path / "fox.png"
        assert outcome.pictures[0].shelf_id is None
        assert len(shelved(app)) == 1


async def test_asking_twice_for_what_is_kept_keeps_one_copy_and_fetches_none(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        (first,) = await app.gateway.generate(FOX, destination=SHELF)
        replicate_emulator.add_fault("drop", operation=OUTPUTS, times=None)
        second = await app.gateway.resume(first.prediction.id)
        assert second.error is None
        assert second.pictures == first.pictures
        assert len(shelved(app)) == 1


async def test_a_kept_picture_that_was_damaged_is_fetched_once_more(open_app: Any) -> None:
    async with open_app() as app:
        (first,) = await app.gateway.generate(FOX, destination=SHELF)
        whole = first.pictures[0].path.read_bytes()
        first.pictures[0].path.write_bytes(whole[:100])
        second = await app.gateway.resume(first.prediction.id)
        assert second.error is None
        assert second.pictures[0].shelf_id == first.pictures[0].shelf_id
        (path,) = shelved(app)
        assert path.read_bytes() == whole


# --- something dies on the way ---------------------------------------------------------------------------


async def test_what_died_while_fetching_is_shelved_by_the_next(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation=OUTPUTS, seconds=30)
    app = open_app()
    incoming = app.settings.data_dir / "incoming"
    left = await dies(app, incoming.exists)
    assert left.delivered_at is None
    assert shelved(app) == []
    replicate_emulator.clear_faults()
    async with open_app() as following:
        outcome = await following.gateway.resume(left.id)
        assert outcome.error is None
        assert shelved(following) == [outcome.pictures[0].path]
        assert outcome.prediction.finished
    assert replicate_emulator.purchases == 1


async def test_what_died_between_shelf_and_record_has_no_second_copy(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    app = open_app()
    app.finisher._mark_delivered = _for_ever
    left = await dies(app, lambda: len(shelved(app)) == 4, FOUR)
    before = {path: path.stat().st_mtime_ns for path in shelved(app)}
    async with open_app() as following:
        outcome = await following.gateway.resume(left.id)
        assert outcome.error is None
        assert {path: path.stat().st_mtime_ns for path in shelved(following)} == before
        assert sorted(map(Path, outcome.prediction.files)) == sorted(before)
    assert replicate_emulator.purchases == 1


async def test_the_same_request_takes_up_what_was_left_and_keeps_it(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("delay", operation=OUTPUTS, seconds=30)
    app = open_app()
    left = await dies(app, (app.settings.data_dir / "incoming").exists)
    replicate_emulator.clear_faults()
    async with open_app() as following:
        (outcome,) = await following.gateway.generate(FOX, destination=SHELF)
        assert outcome.prediction.id == left.id
        assert outcome.pictures[0].shelf_id is not None
    assert replicate_emulator.purchases == 1


async def test_it_is_delivered_only_when_all_are_on_the_shelf(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    replicate_emulator.add_fault("status", operation=OUTPUTS, status=404, skip=1, times=2)
    async with open_app() as app:
        (outcome,) = await app.gateway.generate(FOUR, destination=SHELF)
        assert isinstance(outcome.error, DeliveryError)
        assert not outcome.prediction.finished
        first = shelved(app)
        assert 0 < len(first) < 4
        before = {path: path.stat().st_mtime_ns for path in first}
        done = await app.gateway.resume(outcome.prediction.id)
        assert done.error is None
        assert done.prediction.finished
        assert len(shelved(app)) == 4
        assert {path: path.stat().st_mtime_ns for path in first} == before
        assert all(picture.shelf_id is not None for picture in done.pictures)


async def test_a_picture_that_is_none_is_not_kept(open_app: Any, replicate_emulator: EmulatorThread) -> None:
    replicate_emulator.add_fault("not_a_picture", times=None)
    async with open_app() as app:
        (outcome,) = await app.gateway.generate(FOX, destination=SHELF)
        assert isinstance(outcome.error, OutputDefective)
        assert shelved(app) == []


# --- the disk says no ------------------------------------------------------------------------------------


async def test_a_folder_that_cannot_be_written_is_said_before_anything_is_bought(
    open_app: Any, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    async with open_app(IMAGEN_PICTURES__FOLDER=str(tmp_path / "file")) as app:
        with pytest.raises(ConfigError, match="pictures cannot be kept") as caught:
            await app.gateway.generate(FOX, destination=SHELF)
        assert caught.value.setting == "pictures.folder"
        (outcome,) = await app.gateway.generate(FOX)
        assert outcome.error is None
    assert replicate_emulator.purchases == 1


async def test_a_full_disk_is_said_before_anything_is_bought(
    open_app: Any, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        app.shelf._spare_bytes = 10**18
        with pytest.raises(ConfigError, match="no space left"):
            await app.gateway.generate(FOX, destination=SHELF)
    assert replicate_emulator.purchases == 0


async def test_a_shelf_that_breaks_after_the_purchase_loses_nothing(
    open_app: Any, replicate_emulator: EmulatorThread, tmp_path: Path
) -> None:
    async with open_app() as app:
        app.shelf.check = lambda: None
        app.shelf.folder.parent.mkdir(exist_ok=True)
        app.shelf.folder.write_text("no folder")
        (outcome,) = await app.gateway.generate(FOX, destination=SHELF)
        assert isinstance(outcome.error, DeliveryError)
        assert "adopt" in str(outcome.error)
        assert str(tmp_path) not in str(outcome.error)
        assert not outcome.prediction.finished
        app.shelf.folder.unlink()
        done = await app.gateway.resume(outcome.prediction.id)
        assert done.error is None
        assert shelved(app) == [done.pictures[0].path]
    assert replicate_emulator.purchases == 1
