"""The pytest fixture `replicate_emulator`: a fresh Replicate on localhost for one test.

It is registered as the pytest plugin `imagen_emulator`, so it is there as soon as imagen is installed:

    def test_a_picture_is_bought_once(replicate_emulator):
        client = Client(base_url=replicate_emulator.url, token="r8_any")
        ...
        assert replicate_emulator.purchases == 1

Arguments for the emulator are given with a marker: `@pytest.mark.replicate_emulator(run_seconds=5)`.
The emulator itself is imported by the fixture only, so that a test run that does not use it pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from imagen.emulator.thread import EmulatorThread

_MARKER = "replicate_emulator(**arguments): arguments of the Emulator that the fixture of this name starts"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, so that `--strict-markers` accepts it."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def replicate_emulator(request: pytest.FixtureRequest) -> Iterator[EmulatorThread]:
    """A running emulator on free loopback ports, stopped when the test ends."""
    from imagen.emulator.thread import EmulatorThread  # noqa: PLC0415 - light when not used

    marker = request.node.get_closest_marker("replicate_emulator")
    with EmulatorThread(**(marker.kwargs if marker else {})) as emulator:
        yield emulator
