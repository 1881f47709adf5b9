"""Files for inputs: uploads and downloads, streamed through."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
