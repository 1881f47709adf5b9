"""Replicate on localhost, for tests and practice: buys nothing, forgets nothing, fails on request.

    async with Emulator(run_seconds=0.2) as emulator:
        emulator.add_fault("drop_after", operation="predictions.create")
        ...                                  # talk to emulator.url with any Replicate client
        assert emulator.purchases == 1

It answers every operation of the published API document, with the hosted API's words, limits and error bodies,
on one port. Pictures come from a second one, another origin, as `replicate.delivery` is.
Time is virtual: `emulator.clock.advance(seconds=3600)`. What happened is in `emulator.journal`.

The package imports nothing else of imagen but `decoding`, so that a bug in the client cannot cancel itself out here.
The names below are imported when first used: loading this package alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.emulator.clock import Clock
    from imagen.emulator.fault import Fault
    from imagen.emulator.journal import Entry, Journal
    from imagen.emulator.models import Model
    from imagen.emulator.server import Emulator
    from imagen.emulator.thread import EmulatorThread

__all__ = ["Clock", "Emulator", "EmulatorThread", "Entry", "Fault", "Journal", "Model"]

_HOMES = {
    "Clock": "clock",
    "Emulator": "server",
    "EmulatorThread": "thread",
    "Entry": "journal",
    "Fault": "fault",
    "Journal": "journal",
    "Model": "models",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
