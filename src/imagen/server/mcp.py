"""Tools for agents over streamable HTTP: `/mcp`."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
