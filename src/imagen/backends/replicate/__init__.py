"""Replicate: wire (protocol without I/O) · refusals · translate · schema · backend."""

from imagen.backends.replicate.backend import ReplicateBackend

build_backend = ReplicateBackend
"""The entry point of type `replicate`."""
