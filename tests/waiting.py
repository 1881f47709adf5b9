"""Waiting for what others do: another thread, process or task, none of which tells when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def until(holds: Callable[[], Any], *, within: float = 20.0) -> Any:
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
