"""Equal requests: made once, kept, and given to whoever asks again; damage only costs what it would have saved."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from stories import Shifted

from imagen.assembly import App, build
from imagen.domain.events import CacheHit, Submitted
from imagen.domain.model_ref import ModelRef
from imagen.domain.money import Usd
from imagen.domain.prediction import Status
from imagen.domain.request import GenerationRequest
from imagen.domain.usage import UsageQuery
from imagen.emulator import EmulatorThread
from imagen.errors import DeliveryError, OutputDefective
from imagen.pictures import inspect_picture, read_note
from imagen.service.deliver import Destination
from imagen.service.finish import Outcome
from imagen.service.usage import report_usage
from imagen.settings import load_settings
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.replicate_emulator(run_seconds=0.02)]

SEEDED = GenerationRequest(prompt="a fox", seed=7, cache=True, resume=False)
SHELF = Destination(shelf=True)
SEEDLESS = ModelRef.parse("google/nano-banana")


async def ask(
    app: App,
    request: GenerationRequest = SEEDED,
    to: Path | str | Destination | None = SHELF,
    **more: Any,
) -> Outcome:
    place = Destination(output=str(to)) if isinstance(to, Path | str) else to
    (outcome,) = await app.gateway.generate(request, destination=place, **more)
    return outcome


def cached(app: App) -> list[Path]:
    folder = app.settings.data_dir / "cache" / "pictures"
    return sorted(folder.iterdir()) if folder.exists() else []


def shelved(app: App) -> list[Path]:
    return sorted(path for path in app.shelf.folder.rglob("*") if path.is_file())


async def outcomes(app: App) -> list[str]:
    return [entry.outcome for entry in reversed(await app.ledger.entries())]


# --- what a hit is -----------------------------------------------------------------------------------------


async def test_the_same_request_costs_nothing_the_second_time(
    open_app: Callable[..., App], record: Any, tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        first = await ask(app, to=tmp_path / "one.png")
        second = await ask(app, to=tmp_path / "two.png", caller=app.caller())
        assert (first.cache, second.cache) == ("miss", "hit")
        assert first.error is second.error is None
        assert replicate_emulator.purchases == 1
        assert len(replicate_emulator.journal.entries(operation="delivery")) == 1
        # Its own prediction, which says that nothing was bought for it.
        kept = await app.store.get(second.prediction.id)
        assert kept == second.prediction
        assert kept.id != first.prediction.id
        assert (kept.status, kept.charged, kept.cost) == (Status.SUCCEEDED, False, Usd(0))
        assert (kept.upstream_id, kept.sent_at, kept.finished, kept.reused) == (None, None, True, True)
        assert kept.output == first.prediction.output
        assert kept.files == (str(tmp_path / "two.png"),)
        assert not first.prediction.reused
        # The picture says in itself by whom it was made.
        assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()
        note = read_note((tmp_path / "two.png").read_bytes())
        assert note is not None
        assert note.prediction_id == first.prediction.upstream_id
        assert await outcomes(app) == ["succeeded", "cached"]
        entry = (await app.ledger.entries())[0]
        assert (entry.id, entry.cost, entry.upstream_id) == (kept.id, Usd(0), None)
    (hit,) = record.of(CacheHit)
    assert (hit.prediction.id, hit.made_as, hit.shared) == (kept.id, first.prediction.id, False)
    assert len(record.of(Submitted)) == 1


async def test_what_was_reused_is_told_of_and_counts_as_no_purchase(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        for _ in range(3):
            await ask(app)
        report = await report_usage(app.ledger, UsageQuery())
    assert (report.total.predictions, report.total.succeeded, report.total.images) == (1, 1, 1)
    assert (report.total.cached, report.total.cost_usd, report.total.unpriced) == (2, 0.003, 0)
    assert report.total.saved_usd == 0.006


async def test_nothing_waits_for_a_place_or_a_turn_to_get_a_copy(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(REPLICATE_CONCURRENT_LIMIT="1") as app:
        await ask(app)
        replicate_emulator.add_fault("slow", prompt="takes", run_seconds=30.0)
        busy = asyncio.ensure_future(ask(app, GenerationRequest(prompt="takes the only place")))
        await until(lambda: replicate_emulator.purchases >= 2)
        async with asyncio.timeout(15):
            assert (await ask(app)).cache == "hit"
        busy.cancel()
        await asyncio.wait([busy])


async def test_several_pictures_of_one_request_all_come_back_in_order(
    open_app: Callable[..., App], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    four = replace(SEEDED, count=4)
    async with open_app() as app:
        first = await ask(app, four, Destination(output=f"{tmp_path}/one/", metadata=False))
        second = await ask(app, four, Destination(output=f"{tmp_path}/two/", metadata=False))
        assert second.cache == "hit"
        assert len(second.pictures) == 4
        contents = [[each.path.read_bytes() for each in one.pictures] for one in (first, second)]
        assert contents[0] == contents[1]
        assert len(set(contents[0])) == 4
        assert (await ask(app)).cache == "miss"  # one of them is another wish
    assert replicate_emulator.purchases == 2


@pytest.mark.parametrize("metadata", [True, False])
async def test_whether_the_prompt_is_written_into_it_is_for_each_to_say(
    open_app: Callable[..., App], tmp_path: Path, metadata: bool
) -> None:
    async with open_app() as app:
        await ask(app, to=Destination(output=str(tmp_path / "one.png"), metadata=not metadata))
        await ask(app, to=Destination(output=str(tmp_path / "two.png"), metadata=metadata))
    notes = [read_note((tmp_path / name).read_bytes()) is not None for name in ("one.png", "two.png")]
    assert notes == [not metadata, metadata]


async def test_a_file_that_somebody_changes_changes_nothing_in_the_cache(
    open_app: Callable[..., App], tmp_path: Path
) -> None:
    async with open_app() as app:
        await ask(app, to=Destination(output=str(tmp_path / "one.png"), metadata=False))
        whole = (tmp_path / "one.png").read_bytes()
        (tmp_path / "one.png").write_bytes(b"scribbled over, in place")
        again = await ask(app, to=Destination(output=str(tmp_path / "two.png"), metadata=False))
    assert again.cache == "hit"
    assert (tmp_path / "two.png").read_bytes() == whole


# --- which requests are reused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        replace(SEEDED, seed=None),
        replace(SEEDED, cache=False),
        replace(SEEDED, cache=None),
        replace(SEEDED, seed=None, count=2),
    ],
    ids=["our seed", "not wanted", "by the settings", "several of our seeds"],
)
async def test_a_wish_for_a_new_picture_gets_one(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, request_: GenerationRequest
) -> None:
    async with open_app() as app:
        found = [await ask(app, request_) for _ in range(2)]
        assert [one.cache for one in found] == [None, None]
        assert cached(app) == []
    assert replicate_emulator.purchases == 2


@pytest.mark.parametrize(
    "other",
    [{"seed": 8}, {"prompt": "a dog"}, {"steps": 3}, {"options": {"seed": 8}}, {"aspect_ratio": "16:9"}],
)
async def test_another_input_is_another_request(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, other: dict[str, Any]
) -> None:
    async with open_app() as app:
        await ask(app)
        assert (await ask(app, replace(SEEDED, **other))).cache == "miss"
    assert replicate_emulator.purchases == 2


async def test_what_does_not_change_the_picture_does_not_make_it_another_request(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await ask(app)
        same = replace(SEEDED, seed=None, options={"seed": 7}, deadline_seconds=50.0, max_cost=Usd(900_000))
        assert (await ask(app, same)).cache == "hit"
    assert replicate_emulator.purchases == 1


async def test_a_model_that_takes_no_seed_makes_the_same_of_the_same(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    plain = GenerationRequest(prompt="a fox", model=SEEDLESS, cache=True, resume=False)
    async with open_app() as app:
        found = [await ask(app, plain) for _ in range(2)]
    assert [one.cache for one in found] == ["miss", "hit"]
    assert [one.prediction.seed for one in found] == [None, None]
    assert replicate_emulator.purchases == 1


@pytest.mark.parametrize("keeps", [{"IMAGEN_CACHE__KEEP": "true"}, {"IMAGEN_BACKENDS__FAST__STORE": "true"}])
async def test_the_settings_say_what_a_request_leaves_open(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread, keeps: dict[str, str]
) -> None:
    (tmp_path / "imagen.yaml").write_text(
        "default_backend: fast\n"
        "backends:\n  fast: {type: replicate, model: flux-schnell}\n  other: {type: replicate, model: flux-schnell}\n"
    )
    given = environ | keeps
    async with build(load_settings(environ=given, cwd=tmp_path), environ=given) as app:
        open_ = replace(SEEDED, cache=None)
        assert [(await ask(app, open_)).cache for _ in range(2)] == ["miss", "hit"]
        assert (await ask(app, replace(open_, cache=False))).cache is None
        by_another = (await ask(app, replace(open_, seed=8), backend="other")).cache
        assert by_another == ("miss" if "IMAGEN_CACHE__KEEP" in keeps else None)
    assert replicate_emulator.purchases == 3


async def test_another_account_never_sees_what_this_one_paid_for(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await ask(app)
    async with open_app(REPLICATE_API_TOKEN="r8_somebody_else") as app:
        assert (await ask(app)).cache == "miss"
        assert len(cached(app)) == 2
    async with open_app() as app:
        assert (await ask(app)).cache == "hit"
    assert replicate_emulator.purchases == 2


@pytest.mark.parametrize("fault", ["fail", "broken_picture", "not_a_picture", "empty_output"])
async def test_what_failed_is_not_kept(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, fault: str
) -> None:
    async with open_app() as app:
        replicate_emulator.add_fault(fault, prompt="fox", times=1)
        first = await ask(app)
        assert first.error is not None
        assert cached(app) == []
        second = await ask(app)
        assert (second.error, second.cache) == (None, "miss")
    assert replicate_emulator.purchases == 2


async def test_a_picture_that_is_no_picture_is_not_kept_where_it_is_not_delivered(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        replicate_emulator.add_fault("not_a_picture", prompt="fox", times=1)
        first = await ask(app, to=None)
        assert (first.error, first.cache) == (None, "miss")  # nobody asked us to look at it
        assert cached(app) == []
        assert (await ask(app, to=None)).cache == "miss"


# --- where the pictures go ---------------------------------------------------------------------------------


async def test_a_picture_that_was_left_upstream_outlives_its_hour(
    environ: dict[str, str], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    clock = Shifted()
    async with build(load_settings(environ=environ, cwd=tmp_path), environ=environ, clock=clock) as app:
        first = await ask(app, to=None)
        assert first.pictures == ()
        assert len(cached(app)) == 1
        replicate_emulator.clock.advance(seconds=7200)
        clock.by = timedelta(hours=2)
        found = [await ask(app, to=None) for _ in range(3)]
        assert [one.cache for one in found] == ["hit"] * 3
        # It lies on the shelf, once for all who ask.
        assert {one.pictures[0].shelf_id for one in found} == {shelved(app)[0].stem}
        assert len(shelved(app)) == 1
        assert inspect_picture(shelved(app)[0]).media_type == "image/png"
        assert read_note(shelved(app)[0].read_bytes()) is None
    assert replicate_emulator.purchases == 1


async def test_each_one_that_keeps_its_picture_has_one_of_its_own(open_app: Callable[..., App]) -> None:
    async with open_app() as app:
        found = [await ask(app) for _ in range(3)]
        ids = [one.pictures[0].shelf_id for one in found]
        assert len(set(ids)) == 3
        await app.shelf.remove(str(ids[0]))
        assert len(shelved(app)) == 2


async def test_a_place_that_takes_no_picture_fails_that_request_alone_and_buys_nothing(
    open_app: Callable[..., App], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await ask(app)
        order = await app.gateway.prepare(
            SEEDED, backend=app.backends.get(None), destination=Destination(output=f"{tmp_path}/there/a.png")
        )
        (tmp_path / "there").rmdir()
        (tmp_path / "there").write_text("a file stands where the folder should be")
        (outcome,) = await app.gateway.carry_out(order)
        assert isinstance(outcome.error, DeliveryError)
        assert "adopt" not in str(outcome.error.hint)
        assert await outcomes(app) == ["succeeded"]
        (tmp_path / "there").unlink()
        (again,) = await app.gateway.carry_out(order)
        assert (again.error, again.cache) == (None, "hit")
    assert replicate_emulator.purchases == 1


async def test_a_reused_prediction_is_delivered_once_more_from_the_cache(
    open_app: Callable[..., App], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        await ask(app)
        hit = await ask(app, to=tmp_path / "one.png")
        (tmp_path / "one.png").unlink()
        again = await app.gateway.resume(hit.prediction.id)
        assert again.error is None
        assert inspect_picture(tmp_path / "one.png").width == 1024
        other = await app.gateway.resume(
            hit.prediction.id, destination=Destination(output=str(tmp_path / "b.png"))
        )
        assert [each.path for each in other.pictures] == [tmp_path / "b.png"]
        shutil.rmtree(app.settings.data_dir / "cache" / "pictures")
        (tmp_path / "b.png").unlink()
        gone = await app.gateway.resume(hit.prediction.id)
        assert isinstance(gone.error, OutputDefective)
        assert gone.error.charged is False
        assert (await app.store.get(hit.prediction.id)).status is Status.SUCCEEDED
    assert replicate_emulator.purchases == 1


# --- damage ------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_another_picture_of_it(path: Path) -> None:
    from PIL import Image  # noqa: PLC0415 - only here

    Image.new("RGB", (8, 8)).save(path, "png")


@pytest.mark.parametrize(
    "damage", [Path.unlink, cut, turn_a_bit, make_another_picture_of_it, lambda path: path.write_bytes(b"")]
)
async def test_a_damaged_picture_is_bought_again_and_mended(
    open_app: Callable[..., App],
    replicate_emulator: EmulatorThread,
    damage: Callable[[Path], Any],
) -> None:
    async with open_app() as app:
        await ask(app)
        (lies,) = cached(app)
        damage(lies)
        again = await ask(app)
        assert (again.error, again.cache) == (None, "miss")
        assert lies not in cached(app)
        assert len(cached(app)) == 1
        assert (await ask(app)).cache == "hit"
    assert replicate_emulator.purchases == 2


@pytest.mark.parametrize("prompt", ["a fox", "a hare"])
async def test_a_row_that_cannot_be_read_only_costs_what_it_would_have_saved(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, prompt: str
) -> None:
    async with open_app(IMAGEN_CACHE__MAX_MB="1") as app:
        await ask(app)
        path = app.settings.data_dir / "imagen.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE cached SET pictures = '[\"x'")
    connection.close()
    async with open_app(IMAGEN_CACHE__MAX_MB="1") as app:
        wish = replace(SEEDED, prompt=prompt)
        assert [((one := await ask(app, wish)).error, one.cache) for _ in range(2)] == [
            (None, "miss"),
            (None, "hit"),
        ]
        assert (await app.cache._index.size())[0] == 1
    assert replicate_emulator.purchases == 2


async def test_no_fault_of_the_cache_takes_back_what_was_paid_for(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: Any) -> bool:
        raise RuntimeError("a fox, whoever asked")

    async with open_app() as app:
        app.cache.put = fails  # type: ignore[method-assign]
        outcome = await ask(app)
        assert (outcome.error, outcome.fault, outcome.cache) == (None, False, "miss")
        assert len(outcome.pictures) == 1
    assert outcome.prediction.id in caplog.text
    assert "a fox" not in caplog.text


async def test_an_index_that_names_other_files_of_this_machine_reads_none_of_them(
    open_app: Callable[..., App], tmp_path: Path, replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        first = await ask(app, to=Destination(output=str(tmp_path / "own.png"), metadata=False))
        entry = await app.cache._index.find(first.prediction.request_key, now=app.clock.now())
        assert entry is not None
        await app.cache._index.put(replace(entry, pictures=("../../../own.png",)))
        assert (await ask(app)).cache == "miss"
        assert (tmp_path / "own.png").exists()
    assert replicate_emulator.purchases == 2


async def test_a_death_between_the_file_and_its_entry_leaves_a_file_that_is_swept(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    app = open_app()
    at_the_entry = asyncio.Event()

    async def never(_: Any) -> None:
        at_the_entry.set()
        await asyncio.Event().wait()

    app.cache._index.put = never  # type: ignore[method-assign]
    task = asyncio.ensure_future(ask(app))
    await at_the_entry.wait()
    task.cancel()
    await asyncio.wait([task])
    await app.__aexit__(None, None, None)
    async with open_app() as later:
        (orphan,) = cached(later)
        assert await later.cache.sweep() == 0  # somebody may be about to write its entry
        assert (await ask(later)).cache == "miss"
        assert len(cached(later)) == 2
        assert await later.cache.sweep(older_than_seconds=-1) == 1
        assert orphan not in cached(later)
        assert (await ask(later)).cache == "hit"
    assert replicate_emulator.purchases == 2


async def test_a_folder_that_takes_nothing_keeps_no_picture_from_whoever_paid_for_it(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as app:
        folder = app.settings.data_dir / "cache"
        folder.mkdir(parents=True)
        (folder / "pictures").write_text("a file stands where the folder should be")
        for _ in range(2):
            outcome = await ask(app)
            assert (outcome.error, outcome.cache) == (None, "miss")
            assert inspect_picture(outcome.pictures[0].path).width == 1024
    assert replicate_emulator.purchases == 2


# --- size, and several processes ---------------------------------------------------------------------------


async def test_the_least_recently_used_makes_room(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app(IMAGEN_CACHE__MAX_MB="1") as app:
        wishes = [replace(SEEDED, seed=number) for number in range(1, 9)]  # of about 157 kB each
        for wish in wishes:
            await ask(app, wish)
            assert (await ask(app, wishes[0])).cache == "hit"
            assert (await app.cache._index.size())[1] <= 1 << 20
            assert sum(path.stat().st_size for path in cached(app)) <= 1 << 20
        assert (await ask(app, wishes[1])).cache == "miss"
    assert replicate_emulator.purchases == 9


async def test_what_another_process_keeps_meanwhile_is_not_forgotten_with_what_is_gone(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as here, open_app() as there:
        key = (await ask(here)).prediction.request_key
        loop, read = asyncio.get_running_loop(), here.cache._read

        async def kept_anew() -> None:
            anew = await ask(there, replace(SEEDED, cache=False))
            assert await there.cache.put(key, anew.prediction, there.cache.tap(there.backends.get(None)))

        def read_late(entry: Any) -> Any:
            asyncio.run_coroutine_threadsafe(kept_anew(), loop).result(20)
            return read(entry)

        here.cache._read = read_late  # type: ignore[method-assign]
        assert await here.cache.find(key) is None
        assert await there.cache.find(key) is not None
        assert len(cached(there)) == 1
    assert replicate_emulator.purchases == 2


async def test_two_processes_share_what_they_keep_and_what_they_let_go(
    open_app: Callable[..., App], replicate_emulator: EmulatorThread
) -> None:
    async with open_app() as here, open_app() as there:
        assert (await ask(here)).cache == "miss"
        assert (await ask(there)).cache == "hit"
        both = [replace(SEEDED, seed=number) for number in range(20, 26)]
        await asyncio.gather(*(ask(app, wish) for wish in both for app in (here, there)))
        assert [(await ask(app, wish)).cache for wish in both for app in (here, there)] == ["hit"] * 12
        await here.cache.sweep(older_than_seconds=-1)  # of two who kept the same at once one was too late
        entries = await there.cache._index.oldest(above_bytes=0)
        assert sorted(path.name for path in cached(here)) == sorted(
            name for entry in entries for name in entry.pictures
        )
        assert len(entries) == 7
        for entry in entries:
            await there.cache._drop(entry)
        assert cached(here) == []
        assert (await ask(here)).cache == "miss"
