"""What callers have left, and who may ask for it again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from fakes.clock import ManualClock
from imagen.server.left_runs import LeftRuns, Run, patience_with

pytestmark = pytest.mark.anyio


class _Context:
    """As much of the server as a run needs."""

    def begin(self, work: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(work)

    async def attend(self, _request: Any, task: asyncio.Task[Any]) -> Any:
        return await asyncio.shield(task)


async def made(*, fails: bool = False, goes_on: bool = True) -> Run:
    run = Run(goes_on=goes_on)

    async def work() -> list[Any]:
        if fails:
            raise OSError
        return []

    class _Nobody:
        def notify(self, _event: Any) -> None: ...

    try:
        await run.outcomes(_Context(), None, _Nobody(), work=work)  # type: ignore[arg-type]
    except OSError:
        assert fails
    return run


async def test_it_is_found_once_by_the_same_caller_for_the_same_and_for_two_minutes() -> None:
    clock = ManualClock()
    left, run = LeftRuns(clock), await made()
    assert not left
    left.add(run, scope="admin", fingerprint="a")
    assert left
    assert left.take(scope="key:1", fingerprint="a") is None
    assert left.take(scope="admin", fingerprint="b") is None
    assert left.take(scope="admin", fingerprint="a") is run
    assert left.take(scope="admin", fingerprint="a") is None
    left.add(run, scope="admin", fingerprint="a")
    clock.advance(121)
    assert not left
    assert left.take(scope="admin", fingerprint="a") is None


async def test_what_failed_before_anything_was_bought_is_tried_anew() -> None:
    left = LeftRuns(ManualClock())
    left.add(await made(fails=True), scope="admin", fingerprint="a")
    good = await made()
    left.add(good, scope="admin", fingerprint="a")
    assert left.take(scope="admin", fingerprint="a") is good


async def test_there_is_room_for_so_many() -> None:
    left, runs = LeftRuns(ManualClock()), [await made() for _ in range(1001)]
    for index, run in enumerate(runs):
        left.add(run, scope="admin", fingerprint=str(index))
    assert left.take(scope="admin", fingerprint="0") is None
    assert left.take(scope="admin", fingerprint="1") is runs[1]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"x-stainless-lang": "python"}, 3.5),
        ({"x-stainless-retry-count": "0"}, 3.5),
        ({"x-stainless-retry-count": "1"}, 4.0),
        ({"x-stainless-retry-count": "30"}, 11.0),
        ({"x-stainless-retry-count": "9" * 5000}, 3.5),
        ({"x-stainless-retry-count": "-1"}, 3.5),
    ],
)
def test_patience_is_as_long_as_the_client_rests(headers: dict[str, str], seconds: float) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert patience_with(Request({"type": "http", "headers": raw})) == seconds
