"""What all tests share: one event loop library, a clock that stands still, and unhurried Hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

from fakes.clock import ManualClock

if TYPE_CHECKING:
    from fakes.postgres import Postgres

hypothesis.settings.register_profile("imagen", deadline=None)
hypothesis.settings.load_profile("imagen")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real server for the whole run. Who asks for it is in the group `postgres`, so that one worker starts it."""
    from fakes.postgres import postgres_server  # noqa: PLC0415 - most runs need none

    with postgres_server() as server:
        yield server
