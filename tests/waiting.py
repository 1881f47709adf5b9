"""Waiting for what others do: another thread, process or task, none of which tells when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def until(holds: Callable[[], Any], *, within: float = 30.0) -> Any:
    """What it gives, as soon as that is something; asked every 10 ms.

    Raises:
        TimeoutError: It was nothing for `within` seconds.

    """
    async with asyncio.timeout(within):
        while True:
            found = holds()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


async def least(measure: Callable[[], Awaitable[float]], *, enough: float, tries: int = 3) -> float:
    """The least of some measurements, no more of them than one below `enough`.

    A busy machine adds to a time now and then, a fault adds to it each time.
    """
    found = await measure()
    for _ in range(tries - 1):
        if found < enough:
            break
        found = min(found, await measure())
    return found


async def longest_pause(work: Awaitable[Any]) -> float:
    """For how many seconds at most nothing else had its turn in this loop while something was done."""
    loop = asyncio.get_running_loop()
    longest, doing = 0.0, asyncio.ensure_future(work)
    while not doing.done():
        began = loop.time()
        await asyncio.sleep(0.002)
        longest = max(longest, loop.time() - began - 0.002)
    await doing
    return longest
