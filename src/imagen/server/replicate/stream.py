"""The output of a prediction as server-sent events: `urls.stream`."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
