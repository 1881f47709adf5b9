"""Models, in one answer that clients of Replicate and of OpenAI can read."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
