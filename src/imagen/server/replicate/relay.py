"""What of Replicate's API is passed on to the service as it is, within the limits of its account."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
