"""Heeding the store: while it takes nothing work waits, and when it does again work goes on at once."""

from __future__ import annotations

import logging

from imagen.errors import ImagenError
from imagen.ports import Clock, Pulse
from imagen.service.gateway import Gateway
from imagen.service.troubles import STORE, Troubles, reason_of_store

EVERY_SECONDS = 1.0

_log = logging.getLogger(__name__)


class StoreHeed:
    """Notes trouble with the store wherever it was met: also where only an end could not be written down.

    Args:
        pulse: knows how the store is.
        troubles: what keeps work waiting.
        gateway: has ends that could not be written down, and the places that they hold.
        clock: tells the time.
    """

    def __init__(self, *, pulse: Pulse, troubles: Troubles, gateway: Gateway, clock: Clock) -> None:
        self._pulse = pulse
        self._troubles = troubles
        self._gateway = gateway
        self._clock = clock
        self._ill = False

    async def run(self) -> None:
        """Look every second, until cancelled. As long as all is well that costs nothing."""
        while True:
            await self.look()
            await self._clock.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """Note how the store is, and after trouble write down what has waited."""
        condition = self._pulse.last
        if condition.state != "ok":
            condition = await self._pulse.feel(within_seconds=EVERY_SECONDS)
        if condition.state != "ok":
            if not self._ill:
                _log.warning("the database is %s: %s", condition.state, condition.detail)
            self._ill = True
            self._troubles.note(STORE, reason_of_store(condition.state))
            return
        if not self._ill:
            return
        self._ill = False
        _log.warning("the database takes what is written again")
        self._troubles.clear(STORE)
        try:
            await self._gateway.write_what_waits()
        except ImagenError as error:
            _log.warning("what waits to be written down still waits: %s", error.code)
