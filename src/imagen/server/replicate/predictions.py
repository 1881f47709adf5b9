"""Predictions in the words of Replicate: create, get, list, cancel."""

from __future__ import annotations

from imagen.server.operation import Operation

OPERATIONS: tuple[Operation, ...] = ()
