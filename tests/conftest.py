"""What all tests share: one event loop library, a clock that stands still, and unhurried Hypothesis."""

from __future__ import annotations

import hypothesis
import pytest

from fakes.clock import ManualClock

hypothesis.settings.register_profile("imagen", deadline=None)
hypothesis.settings.load_profile("imagen")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
