"""Pictures in the words of OpenAI: generations and edits."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
